"""What every term keeps: dtype, NaN, finite derivatives at 0, one compilation, early errors, export; and some closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.proximal import fista, linear, prox

REAL_FFT = linear.fft(linear.Structure.of((4,), np.float32))


def soft_threshold(weight, v, noise):
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - weight * noise**2, 0)


def flip(_, x):
    return x[::-1]


def terms(weight):
    """Every factory; `weight` a number or an array."""
    return {
        "zero": prox.zero(),
        "l1": prox.l1(weight),
        "l2": prox.l2(weight),
        "squared_l2": prox.squared_l2(weight),
        "group_l21": prox.group_l21(weight),
        "elastic_net": prox.elastic_net(weight, weight),
        "huber": prox.huber(weight, 0.5),
        "nuclear": prox.nuclear(weight),
        "l0": prox.l0(weight),
        "l_half": prox.l_half(weight),
        "box": prox.box(-1.0, weight),
        "nonnegative": prox.nonnegative(),
        "l1_ball": prox.l1_ball(weight),
        "l2_ball": prox.l2_ball(weight),
        "linf_ball": prox.linf_ball(weight),
        "simplex": prox.simplex(weight),
        "total_variation": prox.total_variation(weight),
        "total_variation_2d": prox.total_variation_2d(weight, 3),
        "tree": prox.tree(prox.l1(weight)),
        "orthogonal": prox.orthogonal(prox.l1(weight), linear.Operator(None, linear.Structure.of((2, 3)), flip)),
        "translate": prox.translate(prox.l1(weight), 1.0),
        "tilt": prox.tilt(prox.l1(weight), 1.0),
        "scale": prox.scale(prox.l1(weight), 2.0),
        "dilate": prox.dilate(prox.l1(weight), 2.0),
        "plug_and_play": prox.plug_and_play(soft_threshold, weight),
    }


NAMES = list(terms(1.0))
SETS = {"l1_ball", "l2_ball", "linf_ball", "simplex", "box"}
NORMS = {"l1", "l2", "group_l21", "nuclear", "huber", "elastic_net"}


def test_no_factory_is_left_out_of_these_tests():
    assert set(NAMES) == set(prox.__all__) - {"Kind", "Static", "Term"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("weight", [0.5, np.float32(0.5), np.array(0.5)], ids=["number", "single", "double"])
def test_results_have_the_dtype_of_their_argument(dtype, weight):
    def every(weight, v, step):
        return [(term.prox(v, step), term.prox(v, 0.5), term.value(v)) for term in terms(weight).values()]

    with jax.enable_x64(True):
        got = jax.eval_shape(every, weight, jax.ShapeDtypeStruct((2, 3), dtype), jax.ShapeDtypeStruct((), np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(dtype)}


def test_every_term_exports_to_cpu_cuda_and_tpu():
    def every(weight, v):
        return {name: (term.prox(v, 0.5), term.value(v)) for name, term in terms(weight).items()}

    arguments = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((2, 3), np.float32)
    exported = jax.export.export(jax.jit(every), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@jax.jit
def prox_and_derivatives(terms, v):
    def every(terms, v):
        return {k: term.prox(v, 0.5) for k, term in terms.items()}, {k: term.value(v) for k, term in terms.items()}

    (x, _), slopes = jax.jvp(every, (terms, v), jax.tree.map(jnp.ones_like, (terms, v)))
    return x, slopes


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_derivatives_at_zero_are_finite(weight, dtype):
    chosen = jax.tree.map(jnp.asarray, terms(weight))
    if dtype is np.complex64:
        for name in ("box", "nonnegative", "simplex", "total_variation", "plug_and_play", "orthogonal"):
            del chosen[name]
    _, slopes = prox_and_derivatives(chosen, jnp.zeros((2, 3), dtype))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes)), slopes


def test_a_nan_is_never_removed():
    x, _ = prox_and_derivatives(jax.tree.map(jnp.asarray, terms(0.5)), jnp.array([[1, np.nan, 0.1], [0, 2, -1]], np.float32))
    assert [name for name in NAMES if not np.isnan(x[name]).any()] == []


def test_a_negative_weight_that_is_traced_gives_nan():
    v = jnp.array([[1, -0.2, 0.1], [0, 2, -1]])

    @jax.jit
    @jax.vmap  # traced without jit too
    def every(weight):
        return {name: (term.prox(v, 0.5), term.value(v)) for name, term in terms(weight).items()}

    got = every(jnp.array([-2.0]))
    assert {name for name in NAMES if not np.isnan(got[name][0]).any()} == {
        "zero",
        "nonnegative",
        "plug_and_play",
    }  # here a denoiser's params, not a weight
    finite = {name for name in NAMES if np.isfinite(got[name][1])}
    assert finite == {"zero", "plug_and_play"}


def test_a_solver_says_that_a_negative_weight_is_not_finite(jit):
    problem = fista.least_squares(linear.matrix(jnp.eye(3)), jnp.array([1.0, -2.0, 0.5]))

    def solve(weight):
        options = {"step": fista.constant(1.0), "stop": fista.gap(1e-6), "max_steps": 3}
        return fista.fista(problem, prox.l1(weight), jnp.zeros(3), **options).status

    np.testing.assert_array_equal(jit(jax.vmap(solve))(jnp.array([-0.1, 0.1])), [fista.NOT_FINITE, fista.CONVERGED])


def test_a_weight_that_is_traced_keeps_its_weak_type_and_its_slope_at_zero():
    out = jax.eval_shape(lambda weight: prox.l1(weight).params, 0.5)
    assert out.weak_type
    slope = jax.grad(lambda weight: prox.l1(weight).value(jnp.array([1.0, -2.0])))(0.0)
    assert slope == 3


@pytest.mark.parametrize("name", NAMES)
def test_two_terms_made_alike_share_one_compilation(name):
    assert jax.tree.structure(terms(0.5)[name]) == jax.tree.structure(terms(0.7)[name])


def test_a_composition_has_a_conjugate_where_its_parts_do():
    """A solver asks the kind whether it can certify a gap."""
    whole, part = prox.tree([prox.l1(1.0), prox.huber(1.0, 1.0)]), prox.tree([prox.l1(1.0), prox.l0(1.0)]).scaled(2.0)
    assert whole.kind.conjugate is not None
    assert whole.kind.at_zero is part.kind.conjugate is part.kind.domain is part.kind.at_zero is None


def test_a_tie_of_the_soft_threshold_has_derivative_zero_and_a_weight_of_zero_is_the_identity():
    slope = jax.jvp(lambda v: prox.l1(1.0).prox(v, 1.0), (jnp.array([-1.0, 0.0, 1.0, 1.5]),), (jnp.ones(4),))[1]
    np.testing.assert_array_equal(slope, [0, 0, 0, 1])
    slope = jax.jvp(lambda v: prox.l1(0.0).prox(v, 1.0), (jnp.array([-1.0, 0.0]),), (jnp.ones(2),))[1]
    np.testing.assert_array_equal(slope, [1, 1])


@pytest.mark.parametrize("values", [[2.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.3, 0.3, 0.0]])
@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_nuclear_derivative_where_singular_values_repeat_or_vanish(values, weight):
    """By differences: the SVD's own derivative is NaN there."""
    rng = np.random.default_rng(0)
    (left, _), (right, _) = np.linalg.qr(rng.normal(size=(4, 3))), np.linalg.qr(rng.normal(size=(3, 3)))
    v, tangent = left @ np.diag(values) @ right, rng.normal(size=(4, 3))
    with jax.enable_x64(True):
        shrink = jax.jit(lambda weight, v: prox.nuclear(weight).prox(v, 1.0))
        slope = jax.jvp(lambda v: shrink(weight, v), (v,), (tangent,))[1]
        difference = (shrink(weight, v + 1e-6 * tangent) - shrink(weight, v - 1e-6 * tangent)) / 2e-6
        np.testing.assert_allclose(slope, difference, atol=1e-6)


def test_hard_threshold_lies_at_the_square_root_of_twice_weight_times_step():
    v = jnp.array([1.99, 2.01])
    np.testing.assert_array_equal(prox.l0(1.0).prox(v, 2.0), [0, v[1]])


def test_conjugate_prox_of_l1_is_the_projection_and_moreau_envelope_of_l1_is_huber():
    v = jnp.array([-3.0, -0.4, 0.0, 0.2, 1.0])
    np.testing.assert_allclose(prox.l1(0.5).prox_conjugate(v, 0.3), np.clip(v, -0.5, 0.5), rtol=1e-6)
    np.testing.assert_allclose(prox.l1(1.0).moreau(v, 0.3), prox.huber(1 / 0.3, 0.3).value(v), rtol=1e-6)
    slope = jax.grad(lambda v: prox.l1(1.0).moreau(v, 0.3))(v)
    np.testing.assert_allclose(slope, (v - prox.l1(1.0).prox(v, 0.3)) / 0.3, rtol=1e-6)


def test_gauge_at_zero_is_the_smallest_weight_that_gives_zero():
    """`prox(v, 1)` is 0 from `at_zero(v)` times the term on, and not below."""
    v = jnp.array([[0.3, -2.0, 1.0], [0.5, 0.0, -1.5]])
    for term in (
        prox.l1(0.5),
        prox.l2(0.5),
        prox.group_l21(0.5),
        prox.elastic_net(0.5, 0.2),
        prox.nuclear(0.5),
        prox.dilate(prox.l1(1.0), 2.0),
    ):
        gauge = term.at_zero(v)
        assert jnp.abs(term.scaled(1.0001 * gauge).prox(v, 1.0)).max() == pytest.approx(0, abs=1e-6)
        assert jnp.abs(term.scaled(0.99 * gauge).prox(v, 1.0)).max() > 1e-4
    weighted = prox.l1(jnp.array([0.0, 1.0, 0.0]))
    assert weighted.at_zero(jnp.array([0.0, 3.0, 0.0])) == 3
    assert weighted.at_zero(jnp.array([0.1, 3.0, 0.0])) == np.inf


def test_complex_offsets_slopes_and_centers_enter_by_the_real_inner_product():
    b, v = jnp.array([0.5 + 2j, -1j]), jnp.array([1 - 1j, 0.3 + 4j])
    assert prox.tilt(prox.zero(), b).value(v) == pytest.approx(np.vdot(b, v).real)
    np.testing.assert_allclose(prox.tilt(prox.zero(), b).prox(v, 0.5), v - 0.5 * b, rtol=1e-6)
    for term in (prox.translate(prox.l1(0.5), b), prox.l2_ball(1.5, b)):
        x = term.prox(v, 1.0)
        assert term.value(x) + term.conjugate(v - x) == pytest.approx(np.vdot(x, v - x).real, rel=1e-5)


def test_the_domain_of_the_conjugate_without_curvature_is_that_of_the_rest():
    z = jnp.array([0.3, -2.0])
    assert prox.elastic_net(0.5, 0.0).domain(z) == prox.l1(0.5).domain(z) == 4
    assert prox.squared_l2(0.0).domain(z) == prox.zero().domain(z) == np.inf
    assert prox.elastic_net(0.5, 0.1).domain(z) == prox.squared_l2(0.1).domain(z) == prox.zero().domain(0 * z) == 0


def test_a_tree_of_terms_acts_on_each_branch_and_one_term_on_all_of_them():
    x = {"a": jnp.array([1.0, -3.0]), "b": (jnp.array([[2.0]]), jnp.array([4.0]))}
    got = prox.tree({"a": prox.l1(1.0), "b": prox.l2(1.0)}).prox(x, 0.5)
    np.testing.assert_allclose(got["a"], [0.5, -2.5])
    np.testing.assert_allclose([got["b"][0].item(), got["b"][1].item()], np.array([2, 4]) * (1 - 0.5 / np.sqrt(20)), rtol=1e-6)
    assert prox.l1({"a": jnp.array([0.0, 1.0]), "b": 2.0}).value(x) == 3 + 12
    ball = prox.l1_ball(3.0).prox(x, 1.0)
    np.testing.assert_allclose([*ball["a"], *ball["b"][0][0], *ball["b"][1]], [0, -1, 0, 2], atol=1e-6)


def test_simplex_and_ball_keep_their_radius_for_many_equal_and_large_entries():
    for v in (jnp.full(1000, 0.1), jnp.linspace(1e4, 2e4, 1000)):
        for radius in (0.0, 1.0):
            assert jnp.sum(prox.simplex(radius).prox(v, 1.0)) == pytest.approx(radius, abs=2e-3)
            assert jnp.sum(prox.l1_ball(radius).prox(-v, 1.0)) == pytest.approx(-radius, abs=2e-3)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 1.0), ("float32", 5e3)])
def test_projections_are_inside_and_scaled_dual_points_feasible_up_to_rounding(dtype, size):
    """By the term's own tolerance, also of large numbers onto a small set."""
    v = jnp.asarray(size * np.random.default_rng(0).normal(size=(8, 9)), dtype)

    @jax.jit
    def every(terms, v):
        values = {name: terms[name].value(terms[name].prox(v, 1.0)) for name in SETS}
        duals = {name: terms[name].conjugate(v / jnp.maximum(1, terms[name].domain(v))) for name in NORMS}
        return values, duals

    values, duals = every({name: term for name, term in terms(0.3).items() if name in SETS | NORMS}, v)
    assert values == dict.fromkeys(SETS, 0)
    assert {name for name in NORMS if not np.isfinite(duals[name])} == set()


def test_a_projection_onto_a_small_ball_around_a_large_center_is_inside():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.complex64):
        ball = prox.l2_ball(1.0, (5e3 * rng.normal(size=100)).astype(dtype))
        x = ball.prox(ball.params[1] + 3 * rng.normal(size=100).astype(dtype), 1.0)
        assert ball.value(x) == 0
        assert ball.value(ball.params[1] + 1.1 * (x - ball.params[1])) == np.inf


def test_the_conjugate_of_an_elastic_net_without_its_square_is_that_of_l1():
    term = prox.elastic_net(np.array([0.3, 0.7], np.float32), 0.0)
    just_outside = np.nextafter(term.params[0], np.float32(9))
    assert term.conjugate(just_outside) == 0
    assert term.conjugate(1.001 * just_outside) == np.inf


def test_a_factor_of_zero_leaves_the_zero_term():
    term, z = prox.l1(0.5).scaled(0.0), jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(term.prox(z, 1.0), z)
    assert (term.value(z), term.domain(0 * z), term.conjugate(0 * z), term.domain(z)) == (0, 0, 0, np.inf)


def test_half_precision_sums_in_single():
    x = {name: jnp.array([size], jnp.bfloat16) for name, size in {"a": 256, "b": 1, "c": 1}.items()}  # 256 + 1 is 256
    assert prox.l1(1.0).value(x) == prox.tree(jax.tree.map(prox.l1, dict.fromkeys(x, 1.0))).value(x) == 258


class Scale(nn.Module):
    @nn.compact
    def __call__(self, v, noise):
        return v / (1 + self.param("weight", nn.initializers.ones, ()) * noise**2)


def test_a_flax_model_is_a_prox_and_is_differentiated_in_its_parameters():
    model, v = Scale(), jnp.array([1.0, -2.0])
    params = model.init(jax.random.key(0), v, 1.0)
    term = prox.plug_and_play(model.apply, params, strength=0.5)
    same = prox.squared_l2(0.25)
    np.testing.assert_allclose(term.prox(v, 2.0), same.prox(v, 2.0), rtol=1e-6)
    assert term.value(v) == 0
    got = jax.grad(lambda term: jnp.sum(term.prox(v, 2.0)))(term)
    np.testing.assert_allclose(
        got.params[0]["params"]["weight"], 0.25 * jax.grad(lambda t: jnp.sum(t.prox(v, 2.0)))(same).params, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prox.l1(-1), "prox.l1: weight must be non-negative and finite, got -1."),
        (lambda: prox.l1(float("nan")), "prox.l1: weight must be non-negative and finite, got nan."),
        (lambda: prox.l2(float("inf")), "prox.l2: weight must be non-negative and finite, got inf."),
        (lambda: prox.elastic_net(1.0, -0.5), "prox.elastic_net: l2 must be non-negative and finite, got -0.5."),
        (lambda: prox.l1({"a": 1.0, "b": -2.0}), "prox.l1: weight must be non-negative and finite, got -2.0."),
        (lambda: prox.l1(np.float32(-1)), "prox.l1: weight must be non-negative and finite, got -1.0."),
        (lambda: prox.l0(jnp.float32(-1)), "prox.l0: weight must be non-negative and finite, got -1.0."),
        (lambda: prox.l1_ball(np.array([1.0, -3.0])), "prox.l1_ball: radius must be non-negative and finite, got -3.0."),
        (
            lambda: prox.box(np.zeros(2), jnp.array([1.0, -1.0])),
            "prox.box: lower must be at most upper, got [0. 0.] and [ 1. -1.].",
        ),
        (
            lambda: prox.orthogonal(prox.zero(), REAL_FFT),
            "prox.orthogonal: operator must be square, got one from 4 to 8 real numbers.",
        ),
        (lambda: prox.huber(1.0, 0.0), "prox.huber: delta must be positive and finite, got 0.0."),
        (lambda: prox.box(1.0, 0.0), "prox.box: lower must be at most upper, got 1.0 and 0.0."),
        (lambda: prox.box(float("nan"), 0.0), "prox.box: lower must be at most upper, got nan and 0.0."),
        (lambda: prox.scale(prox.zero(), -1.0), "prox.scale: factor must be non-negative and finite, got -1.0."),
        (lambda: prox.dilate(prox.zero(), 0.0), "prox.dilate: factor must be finite and not 0, got 0.0."),
        (lambda: prox.total_variation_2d(1.0, 0), "prox.total_variation_2d: iterations must be at least 1, got 0."),
        (lambda: prox.tree({"a": 1.0}), "prox.tree: every leaf must be a term"),
        (lambda: prox.nonnegative().prox(jnp.ones(2, complex), 1.0), "prox.nonnegative: expected real arrays, got complex64."),
        (lambda: prox.l0(1.0).conjugate(jnp.ones(2)), "prox: this term has no conjugate in closed form."),
        (lambda: prox.l0(1.0).scaled(2.0).domain(jnp.ones(2)), "prox: this term has no conjugate in closed form."),
        (lambda: prox.huber(1.0, 1.0).at_zero(jnp.ones(2)), "prox: this term has no subdifferential at 0 in closed form."),
    ],
)
def test_bad_input_is_an_error_that_names_it(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message)
