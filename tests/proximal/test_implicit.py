import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.proximal import fista, implicit, linear, prox

RNG = np.random.default_rng(1)
MATRIX = RNG.standard_normal((8, 12)) / np.sqrt(8)
DATA = MATRIX @ np.where(np.arange(12) % 5 == 1, 2.0, 0.0) + 0.05 * RNG.standard_normal(8)
DIRECTION = RNG.standard_normal(12)
LAM = 0.15


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def solve(a, y, lam, weights=None):
    problem = fista.least_squares(linear.matrix(a), y, weights=weights)
    return fista.fista(problem, prox.l1(lam), jnp.zeros(12), stop=fista.residual(1e-13), max_steps=4000).x


def refined(a, y, lam, weights=None):
    """The solution to rounding, by compiled FISTA whatever the mode, and its support."""
    with jax.disable_jit(False):
        x = np.asarray(
            jax.jit(solve)(*(jnp.asarray(v) for v in (a, y, lam)), None if weights is None else jnp.asarray(weights))
        )
    return x, x != 0


def attached(parameters, x, step=0.3):
    a, y, lam, weights = parameters
    return implicit.attach(x, fista.least_squares(linear.matrix(a), y, weights=weights), prox.l1(lam), jnp.asarray(step))


def everything():
    weights = np.linspace(0.5, 1.5, 8)
    return jax.tree.map(jnp.asarray, (MATRIX, DATA, np.full(12, LAM), weights))


def test_the_slope_in_lambda_is_the_inverse_on_the_support(jit):
    """x_S = (A_S'A_S)^-1 (A_S'y - lam sign x_S) while the support stays."""
    x, on = refined(MATRIX, DATA, LAM)
    assert 2 <= on.sum() <= 6
    expected = np.zeros(12)
    expected[on] = -np.linalg.solve(MATRIX[:, on].T @ MATRIX[:, on], np.sign(x[on]))
    problem = fista.least_squares(linear.matrix(jnp.asarray(MATRIX)), jnp.asarray(DATA))

    def run(lam):
        return implicit.attach(jnp.asarray(x), problem, prox.l1(lam), jnp.asarray(0.3))

    np.testing.assert_allclose(jit(lambda lam: jax.jvp(run, (lam,), (1.0,))[1])(LAM), expected, atol=1e-8)
    slope = jit(jax.grad(lambda lam: jnp.vdot(run(lam), DIRECTION)))(LAM)
    np.testing.assert_allclose(slope, expected @ DIRECTION, atol=1e-8)


def test_gradients_through_the_solver_equal_finite_differences():
    """With respect to the data, the matrix, a weight per unknown and a weight per datum, in both modes."""
    parameters = everything()
    direction = [RNG.standard_normal(np.shape(p)) * 0.1 for p in parameters]

    def total(p):
        return jnp.vdot(solve(*p), DIRECTION)

    def moved(h):
        return tuple(p + h * d for p, d in zip(parameters, direction, strict=True))

    with jax.disable_jit(False):
        values = jax.jit(jax.vmap(lambda h: total(moved(h))))(jnp.array([-1e-5, 1e-5]))
        difference = (values[1] - values[0]) / 2e-5
        gradient = jax.jit(jax.grad(total))(parameters)
        forward = jax.jit(lambda h: jax.jvp(lambda h: total(moved(h)), (h,), (1.0,))[1])(0.0)
    assert all(np.abs(g).max() > 1e-3 for g in gradient)
    np.testing.assert_allclose(sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True)), difference, rtol=1e-6)
    np.testing.assert_allclose(forward, difference, rtol=1e-6)


def test_gradients_are_the_same_with_and_without_jit_and_batched_either_way(jit):
    parameters = everything()
    x, _ = refined(*parameters)

    def total(p, step=0.3):
        return jnp.vdot(attached(p, jnp.asarray(x), step), DIRECTION)

    gradient = jit(jax.grad(total))
    single = gradient(parameters, 0.3)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), parameters)
    batch = jit(jax.vmap(jax.grad(total)))(stacked)
    summed = jit(jax.grad(lambda p: jnp.sum(jax.vmap(total)(p))))(stacked)
    for one, many, of_sum in zip(single, batch, summed, strict=True):
        np.testing.assert_allclose(many[1], one, atol=1e-10)
        np.testing.assert_allclose(of_sum[0], one, atol=1e-10)
    # The fixed point is one for every step size.
    other = gradient(parameters, 0.1)
    np.testing.assert_allclose(other[0], single[0], atol=1e-8)


def test_from_lambda_max_on_the_slope_is_zero_and_never_nan(jit):
    largest = float(np.abs(MATRIX.T @ DATA).max())

    def run(lam):
        return jnp.vdot(attached((jnp.asarray(MATRIX), jnp.asarray(DATA), lam, None), jnp.zeros(12)), DIRECTION)

    assert float(jit(jax.grad(run))(1.1 * largest)) == 0
    assert np.isfinite(jit(jax.grad(run))(largest))


def test_the_start_and_what_is_reported_have_no_derivative():
    problem = fista.least_squares(linear.matrix(jnp.asarray(MATRIX)), jnp.asarray(DATA))

    def run(x0, lam):
        return fista.fista(problem, prox.l1(lam), x0, stop=fista.gap(1e-6), history=True, max_steps=300)

    with jax.disable_jit(False):
        start = jax.jit(jax.grad(lambda x0: run(x0, LAM).x.sum()))(jnp.ones(12))
        told = jax.jit(jax.grad(lambda lam: run(jnp.ones(12), lam).objective + run(jnp.ones(12), lam).history.gap[1]))(LAM)
    assert not np.any(start)
    assert told == 0


def test_a_smooth_problem_has_second_derivatives():
    """Ridge: x = (A'A + lam)^-1 A'y, whose derivatives have a closed form."""
    gram, pulled = MATRIX.T @ MATRIX, MATRIX.T @ DATA
    problem = fista.least_squares(linear.matrix(jnp.asarray(MATRIX)), jnp.asarray(DATA))

    def run(lam):
        inverse = np.linalg.inv(gram + 0.5 * np.eye(12))
        return jnp.vdot(
            implicit.attach(jnp.asarray(inverse @ pulled), problem, prox.squared_l2(lam), jnp.asarray(0.3)), DIRECTION
        )

    inverse = np.linalg.inv(gram + 0.5 * np.eye(12))
    with jax.disable_jit(False):
        first, second = jax.jit(jax.grad(run))(0.5), jax.jit(jax.jacfwd(jax.grad(run)))(0.5)
    np.testing.assert_allclose(first, -DIRECTION @ inverse @ inverse @ pulled, rtol=1e-9)
    np.testing.assert_allclose(second, 2 * DIRECTION @ inverse @ inverse @ inverse @ pulled, rtol=1e-8)


def test_complex_and_integer_leaves_are_no_obstacle():
    """A complex unknown behind a mask: the modulus's threshold isn't complex linear; indices have no tangent."""
    kept = jnp.array([0, 2, 3, 5])
    basis = jnp.asarray(RNG.standard_normal((6, 6)) + 1j * RNG.standard_normal((6, 6)))
    operator = linear.Operator((basis, kept), linear.Structure.of(jax.ShapeDtypeStruct((6,), basis.dtype)), _rows)
    y = jnp.asarray(RNG.standard_normal(4) + 1j * RNG.standard_normal(4))

    def run(lam, y):
        solution = fista.fista(
            fista.least_squares(operator, y), prox.l1(lam), jnp.zeros(6, y.dtype), stop=fista.residual(1e-13), max_steps=5000
        )
        return jnp.sum(jnp.abs(solution.x) ** 2)

    h = 1e-6
    with jax.disable_jit(False):
        both = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))
        value, slope = both(1.0, y)
        difference = (both(1.0 + h, y)[0] - both(1.0 - h, y)[0]) / (2 * h)
        along = (both(1.0, y + 1j * h * jnp.arange(4))[0] - both(1.0, y - 1j * h * jnp.arange(4))[0]) / (2 * h)
    assert value > 0.1
    np.testing.assert_allclose(slope[0], difference, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.sum(slope[1] * 1j * jnp.arange(4)).real, along, rtol=1e-6
    )  # jax.grad's convention: conjugated


def _rows(params, x):
    basis, kept = params
    return (basis @ x)[kept]


@pytest.mark.parametrize("name", ["elastic_net", "group", "total_variation", "huber problem"])
def test_other_terms_and_losses_agree_with_finite_differences(name):
    terms = {
        "elastic_net": lambda lam: prox.elastic_net(lam, 0.1),
        "group": lambda lam: prox.group_l21(lam),
        "total_variation": prox.total_variation,
        "huber problem": prox.l1,
    }
    shape = (4, 3) if name == "group" else (12,)

    def run(lam):
        operator = linear.Operator(jnp.asarray(MATRIX), linear.Structure.of(shape), _flat)
        data = jnp.asarray(DATA)
        problem = fista.huber(operator, data, delta=0.5) if name == "huber problem" else fista.least_squares(operator, data)
        x0 = jnp.zeros(shape)
        return jnp.vdot(
            fista.fista(problem, terms[name](lam), x0, stop=fista.residual(1e-12), max_steps=5000).x.ravel(), DIRECTION
        )

    with jax.disable_jit(False):
        both = jax.jit(jax.value_and_grad(run))
        slope = both(LAM)[1]
        difference = (both(LAM + 1e-5)[0] - both(LAM - 1e-5)[0]) / 2e-5
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


def _flat(a, x):
    return a @ x.ravel()


SMOOTHER = 0.5 * np.eye(12) + np.tril(np.full((12, 12), 0.05), -1)


def _smooth(params, v, noise):
    return params @ v


def test_a_denoiser_whose_jacobian_is_not_symmetric_has_the_right_gradient():
    """The fixed point `x = W (x - s grad f(x))` is linear in y: `(I - W M) x = s W A' y`, in both modes."""
    s, matrix = 0.3, jnp.asarray(MATRIX)
    fixed = np.linalg.solve(np.eye(12) - SMOOTHER @ (np.eye(12) - s * MATRIX.T @ MATRIX), s * SMOOTHER @ MATRIX.T)
    term = prox.plug_and_play(_smooth, jnp.asarray(SMOOTHER)).scaled(2.0)

    def run(y):
        return implicit.attach(jnp.asarray(fixed @ DATA), fista.least_squares(linear.matrix(matrix), y), term, jnp.asarray(s))

    with jax.disable_jit(False):
        forward = jax.jit(lambda y, dy: jax.jvp(run, (y,), (dy,))[1])(DATA, DATA)
        backward = jax.jit(jax.grad(lambda y: jnp.vdot(run(y), DIRECTION)))(DATA)
    np.testing.assert_allclose(forward, fixed @ DATA, rtol=1e-8)
    np.testing.assert_allclose(backward, DIRECTION @ fixed, rtol=1e-8)


def test_a_start_in_single_precision_has_the_gradient_too():
    matrix = jnp.asarray(MATRIX)

    def run(y, dtype):
        problem = fista.least_squares(linear.matrix(matrix), y)
        return jnp.vdot(fista.fista(problem, prox.l1(LAM), jnp.zeros(12, dtype), max_steps=500).x, DIRECTION)

    with jax.disable_jit(False):
        single, double = (jax.jit(jax.grad(lambda y, d=dtype: run(y, d)))(DATA) for dtype in (jnp.float32, jnp.float64))
    np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4)
