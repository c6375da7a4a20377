"""Linear recurrences against closed forms and dense systems; the two forms, and stepping, against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import linalg, signal, stats

from jaxnets import backprop
from jaxnets.models import rnn
from jaxnets.models.rnn import linear, state_space

TIME, BATCH, WIDTH = 4, 2, 4
FORMS = ("scan", "associative", None)
CELLS = {
    "mingru": state_space.MinGRU(WIDTH),
    "mingru-positive": state_space.MinGRU(WIDTH, candidate="positive"),
    "lru": state_space.LRU(WIDTH, state=3, r_min=0.5),
    "s5": state_space.S5(WIDTH, discretization="bilinear"),
    "s5-gated": state_space.S5(WIDTH, state=8, blocks=2, gate=True),
}
THREE = ["mingru", "lru", "s5-gated"]


def draw(rng, *shape, dtype=np.float64):
    real, imaginary = rng.standard_normal((2, *shape))
    return (real + 1j * imaginary if np.issubdtype(dtype, np.complexfloating) else real).astype(dtype)


def problem(dtype, constant=False):
    """a, b, initial, mask, reset; |a| about 1/2."""
    rng = np.random.default_rng(0)
    a = 0.5 * draw(rng, *((WIDTH,) if constant else (TIME, BATCH, WIDTH)), dtype=dtype)
    b, initial = draw(rng, TIME, BATCH, WIDTH, dtype=dtype), draw(rng, BATCH, WIDTH, dtype=dtype)
    mask = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], bool).T
    reset = np.array([[0, 1, 1, 0], [1, 0, 1, 0]], bool).T
    return *map(jnp.asarray, (a, b, initial)), jnp.asarray(mask), jnp.asarray(reset)


def written_out(a, b, initial, mask, reset, reverse):
    """The definition, step by step."""
    states, state = [None] * TIME, initial
    for t in reversed(range(TIME)) if reverse else range(TIME):
        before = jnp.where(reset[t, :, None], 0, state)
        state = jnp.where(mask[t, :, None], (a[t] if a.ndim == 3 else a[None]) * before + b[t], state)
        states[t] = state
    return state, jnp.stack(states)


def parameters(cell, inputs, key, dtype=jnp.float32):
    specs = cell.parameters(inputs)
    keys = jax.random.split(key, len(specs))
    return {name: init(k, shape, dtype) for k, (name, (init, shape)) in zip(keys, specs.items(), strict=True)}


def sequence(dtype=np.float32, inputs=WIDTH):
    return jnp.asarray(draw(np.random.default_rng(1), TIME, BATCH, inputs), dtype)


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_coefficient_gives_the_geometric_sum(jit, form):
    """h_T = a^T h_0 + Σ_t a^(T-t) b_t."""
    a, b, initial, *_ = problem(np.complex64, constant=True)
    final, states = jit(lambda *args: linear.linear_recurrence(*args, form=form))(a, b, initial)
    powers = np.asarray(a, complex) ** np.arange(TIME, -1, -1)[:, None]
    expected = np.einsum("tf,tbf->bf", powers, np.concatenate([initial[None], b]))
    np.testing.assert_allclose(final, expected, rtol=2e-6)
    np.testing.assert_array_equal(final, states[-1])


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize(("dtype", "reverse"), [(np.float32, False), (np.complex128, True)])
def test_masks_and_resets_are_those_of_the_definition(jit, dtype, form, reverse):
    with jax.enable_x64(dtype == np.complex128):
        a, b, initial, mask, reset = problem(dtype)
        run = jit(lambda *args: linear.linear_recurrence(*args, mask=mask, reset=reset, reverse=reverse, form=form))
        rtol = 1e-6 if dtype == np.float32 else 1e-14
        for got, expected in zip(run(a, b, initial), written_out(a, b, initial, mask, reset, reverse), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, expected, rtol=rtol)


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_at_masked_steps_touches_neither_states_nor_gradients(form):
    a, b, initial, mask, _ = problem(np.float32)
    mask = mask.at[:, 0].set(False)  # a row without any step
    dirty = [jnp.where(mask[..., None], x, jnp.nan) for x in (a, b)]

    def loss(a, b, initial):
        final, states = linear.linear_recurrence(a, b, initial, mask=mask, form=form)
        return jnp.sum(final**3) + jnp.sum(states**2), states

    with jax.disable_jit(False):
        run = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
        gradient, states = run(a, b, initial)
        with_nan, same_states = run(*dirty, initial)
    np.testing.assert_array_equal(states, same_states)
    jax.tree.map(np.testing.assert_array_equal, gradient, with_nan)
    if form == "scan":
        held = ~np.asarray(mask[1:])
        np.testing.assert_array_equal(states[1:][held], states[:-1][held])
    np.testing.assert_array_equal(states[:, 0], np.broadcast_to(initial[0], states[:, 0].shape))
    assert all((g[np.s_[:, 0]] == 0).all() for g in gradient[:2])


@pytest.mark.parametrize(("dtype", "constant"), [(np.float64, False), (np.complex128, True)])
@pytest.mark.parametrize("form", ["associative", None])
def test_derivatives_are_those_of_the_definition(form, dtype, constant):
    """Gradient, and its derivative in one direction (forward over reverse): exact for complex numbers too."""
    with jax.enable_x64(True), jax.disable_jit(False):
        a, b, initial, mask, reset = problem(dtype, constant)
        weights = jnp.asarray(draw(np.random.default_rng(2), TIME, BATCH, WIDTH, dtype=dtype))

        def derivatives(run):
            def loss(point):
                final, states = run(*point)
                return jnp.sum((weights * states**2).real) + jnp.sum(final**3).real

            point = (a, b, initial)
            return jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (jax.tree.map(jnp.cos, p),)))(point)

        options = {"mask": mask, "reset": reset}
        got = derivatives(lambda *p: linear.linear_recurrence(*p, **options, reverse=constant, form=form))
        expected = derivatives(lambda *p: written_out(*p, mask, reset, constant))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13), got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_stores_the_coefficients_and_the_states_only(form):
    a, b, initial, *_ = problem(np.float32)
    with jax.disable_jit(False):  # without jit, XLA would not see that an array is stored twice
        _, vjp = jax.vjp(lambda *args: linear.linear_recurrence(*args, form=form)[1], a, b, initial)
    assert sum(x.size for x in jax.tree.leaves(vjp) if len(x) == TIME) <= a.size + b.size


def test_vmapped_recurrences_are_the_single_ones():
    a, b, initial, *_ = problem(np.float32)
    factors = jnp.array([1.0, 0.5])

    def gradient(factor):
        return jax.grad(lambda a: jnp.sum(linear.linear_recurrence(a, b, initial)[1] ** 2))(factor * a)

    with jax.disable_jit(False):
        expected = [jax.jit(gradient)(factor) for factor in factors]
        np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(factors), expected, rtol=1e-5, atol=1e-6)


def test_a_cpu_takes_the_steps_in_turn_and_accelerators_all_at_once():
    a, b, initial, *_ = problem(np.complex64)
    with jax.disable_jit(False):
        gradient = jax.jit(jax.grad(lambda *args: jnp.abs(linear.linear_recurrence(*args)[1]).sum()))
        for platform in ("cpu", "cuda", "tpu"):
            exported = jax.export.export(gradient, platforms=(platform,))(a, b, initial)
            assert ("stablehlo.while" in exported.mlir_module()) == (platform == "cpu")


def test_no_steps_give_the_initial_state():
    a, b, initial, *_ = problem(np.float32)
    final, states = linear.linear_recurrence(a[:0], b[:0], initial)
    np.testing.assert_array_equal(final, initial)
    assert states.shape == (0, BATCH, WIDTH)


def test_a_recurrence_that_does_not_fit_is_refused():
    a, b, initial, *_ = problem(np.float32)
    with pytest.raises(ValueError, match="form must be None, 'scan' or 'associative', got 'parallel'"):
        linear.linear_recurrence(a, b, initial, form="parallel")
    with pytest.raises(ValueError, match=r"a must be \(4, 2, 4\) like b, or \(4,\), got \(3,\)"):
        linear.linear_recurrence(a[0, 0, :3], b, initial)


@pytest.mark.parametrize(("name", "x64"), [*((name, True) for name in THREE), ("lru", False)])
def test_stepping_chunks_and_both_forms_give_the_whole(key, name, x64):
    cell = CELLS[name]
    with jax.enable_x64(x64), jax.disable_jit(False):
        dtype, tolerance = (jnp.float64, 1e-12) if x64 else (jnp.float32, 1e-5)
        params, xs = parameters(cell, 3, key, dtype), sequence(dtype, 3)
        state = start = cell.initial(BATCH, dtype)
        scan, step, stepped = jax.jit(cell.scan, static_argnames="form"), jax.jit(cell.step), []
        final, states = scan(params, start, xs)
        assert states.dtype == start.dtype
        half, first = scan(params, start, xs[:2])
        _, rest = scan(params, half, xs[2:])
        _, other = scan(params, start, xs, form="associative")
        for x in xs:
            state = step(params, state, x)
            stepped.append(state)
        for got in (stepped, np.concatenate([first, rest]), other):
            np.testing.assert_allclose(got, states, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(final, states[-1])

        read = jax.jit(cell.read)
        outputs = read(params, states, xs)
        assert (outputs.shape, outputs.dtype) == ((TIME, BATCH, cell.outputs), dtype)
        np.testing.assert_allclose(read(params, state, xs[-1]), outputs[-1], rtol=tolerance, atol=tolerance)


def test_a_cell_obeys_masks_and_resets_and_refuses_what_is_for_nonlinear_cells(key):
    cell = state_space.MinGRU(WIDTH)
    params, xs, start = parameters(cell, WIDTH, key), sequence(), cell.initial(BATCH, jnp.float32) + 0.5
    *_, mask, reset = problem(np.float32)
    got = cell.scan(params, start, xs, rnn.Conditions(mask, reset), reverse=True, remat=2, plain=True)
    expected = written_out(*cell.terms(params, xs), start, mask, reset, reverse=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got, expected)
    for condition in ({"zoneout": xs}, {"keep": xs[0]}):
        with pytest.raises(ValueError, match="MinGRU: zoneout and recurrent dropout are for nonlinear cells"):
            cell.scan(params, start, xs, rnn.Conditions(**condition))


@pytest.mark.parametrize("name", [name for name in CELLS if name != "mingru"])
def test_gradients_agree_with_finite_differences(key, name):
    cell = CELLS[name]
    mask = np.array([[1, 1], [1, 1], [1, 0], [1, 0]], bool)
    xs, target = np.random.default_rng(3).standard_normal((2, TIME, BATCH, WIDTH))

    def loss(leaves):
        params, xs = leaves
        start = cell.initial(BATCH, xs.dtype) + 0.3
        final, states = cell.scan(params, start, xs, rnn.Conditions(mask=jnp.asarray(mask)))
        return jnp.sum(jnp.abs(final) ** 2) + jnp.sum((cell.read(params, states, xs) - jnp.asarray(target)) ** 2)

    with jax.disable_jit(False):
        params = jax.tree.map(np.asarray, parameters(cell, WIDTH, key))
        report = backprop.check_gradients(jax.jit(loss), (params, xs), key=key, directions=1)
    assert report.ok(1e-7), report


def test_mingru_moves_from_the_old_state_to_the_candidate_by_the_gate(jit, key):
    """By hand from the paper's equations; the state stays between the smallest and the largest it has seen."""
    rng = np.random.default_rng(4)
    xs, state = 3 * draw(rng, TIME, BATCH, 3), draw(rng, BATCH, WIDTH)
    for cell in (CELLS["mingru"], CELLS["mingru-positive"]):
        params = parameters(cell, 3, key)
        params["bias"] += jnp.asarray(draw(rng, 2 * WIDTH), jnp.float32)
        gate, candidate = np.split(xs @ np.asarray(params["input"], float) + np.asarray(params["bias"]), 2, axis=-1)
        gate = 1 / (1 + np.exp(-gate))
        if cell.candidate == "positive":
            candidate = np.where(candidate >= 0, candidate + 0.5, 1 / (1 + np.exp(-candidate)))
            assert (candidate > 0).all()
        expected = (1 - gate[0]) * state + gate[0] * candidate[0]
        start = jnp.asarray(state, jnp.float32)
        _, states = jit(cell.scan)(params, start, jnp.asarray(xs, jnp.float32))
        np.testing.assert_allclose(states[0], expected, rtol=1e-5, atol=1e-6)
        seen = np.concatenate([state[None], candidate])
        assert (np.minimum.accumulate(seen)[1:] - 1e-6 <= states).all()
        assert (states <= np.maximum.accumulate(seen)[1:] + 1e-6).all()


def impulse_response(cell, key, **fixed):
    """Parameters, and the outputs `[time, input, output]` after a 1 in each input."""
    with jax.enable_x64(True), jax.disable_jit(False):
        params = parameters(cell, WIDTH, key, jnp.float64) | fixed
        impulses = jnp.zeros((TIME, WIDTH, WIDTH)).at[0].set(jnp.eye(WIDTH))
        _, states = jax.jit(cell.scan)(params, cell.initial(WIDTH, jnp.float64), impulses)
        return params, jax.jit(cell.read)(params, states, impulses)


def test_the_impulse_response_of_the_lru_is_that_of_its_dense_system(key):
    """y_k = Re(C diag(λ)^k diag(γ) B), plus D at k = 0; by complex matrix powers in NumPy."""
    params, response = impulse_response(CELLS["lru"], key)
    p = jax.tree.map(np.asarray, params)
    a = np.diag(np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"])))
    b = np.diag(np.exp(p["gamma_log"])) @ (p["input"][:, :3] + 1j * p["input"][:, 3:]).T
    c = (p["output"][:3] - 1j * p["output"][3:]).T
    expected = [(c @ np.linalg.matrix_power(a, k) @ b).real + (k == 0) * np.diag(p["skip"]) for k in range(TIME)]
    np.testing.assert_allclose(response, np.swapaxes(expected, 1, 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("blocks", "method"), [(1, "zoh"), (2, "bilinear")])
def test_s5_starts_as_the_real_hippo_system_discretized_by_scipy(key, blocks, method):
    """The real system has the normal part of HiPPO-LegS, A + p pᵀ, and the B and C that the initializers draw."""
    cell, step = state_space.S5(WIDTH, state=8, blocks=blocks, discretization=method), 0.3
    size = 8 // blocks
    root = np.sqrt(2 * np.arange(size) + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(size) + 1)
    normal = linalg.block_diag(*[legs + np.outer(root, root) / 2] * blocks)
    _, response = impulse_response(cell, key, step_log=np.full(4, np.log(step)), skip=np.zeros(WIDTH))
    with jax.enable_x64(True), jax.disable_jit(False):
        specs, lecun = list(cell.parameters(WIDTH)), nn.initializers.lecun_normal()
        keys = dict(zip(specs, jax.random.split(key, len(specs)), strict=True))
        b = np.asarray(lecun(keys["input"], (WIDTH, 8), jnp.float64)).T
        c = np.asarray(lecun(keys["output"], (8, WIDTH), jnp.float64)).T
    a, b, _, _, _ = signal.cont2discrete((normal, b, c, np.zeros((WIDTH, WIDTH))), step, method)
    expected = [c @ np.linalg.matrix_power(a, k) @ b for k in range(TIME)]
    np.testing.assert_allclose(response, np.swapaxes(expected, 1, 2), rtol=1e-10, atol=1e-12)


def test_zero_order_hold_keeps_its_digits_at_small_steps(key):
    """(exp(ΛΔ) - 1) / Λ would lose 3 of the 7 digits of float32 at Δ = 1e-4."""
    cell = state_space.S5(WIDTH, min_step=1e-4, max_step=1e-4)
    params = parameters(cell, WIDTH, key)
    with jax.disable_jit(False):
        got = jax.jit(cell.discrete)(params)
    value = -np.exp(np.asarray(params["decay_log"], float)) + 1j * np.asarray(params["frequency"], float)
    step = np.exp(np.asarray(params["step_log"], float))
    np.testing.assert_allclose(got[0], np.exp(value * step), rtol=1e-6)
    np.testing.assert_allclose(got[1], np.expm1(value * step) / value, rtol=2e-6)


def test_the_lru_starts_uniform_on_its_ring(key):
    cell = state_space.LRU(200, r_min=0.4, r_max=0.9, max_phase=np.pi / 5)
    params = parameters(cell, 2, key)
    with jax.disable_jit(False):
        eigenvalues, scale = (np.asarray(x) for x in jax.jit(cell.discrete)(params))
    share = (np.abs(eigenvalues) ** 2 - 0.4**2) / (0.9**2 - 0.4**2)  # of the ring's area inside
    np.testing.assert_allclose(np.sort(share), (np.arange(200) + 0.5) / 200, atol=1e-5)
    phases = np.angle(eigenvalues)
    assert 0 < phases.min() < 0.02 < 0.6 < phases.max() <= np.pi / 5
    np.testing.assert_allclose(scale**2 + np.abs(eigenvalues) ** 2, 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.std(params["input"]), np.sqrt(1 / 4), rtol=0.1)  # |x B|² of unit inputs is 1 on average
    np.testing.assert_allclose(jnp.std(params["output"]), np.sqrt(1 / 200), rtol=0.1)  # as Re and Im of C


def test_the_steps_of_s5_start_between_their_bounds(key):
    init, shape = state_space.S5(200, min_step=0.02, max_step=0.3).parameters(2)["step_log"]
    with jax.disable_jit(False):
        steps = np.exp(init(key, shape))
    assert 0.02 <= steps.min() < 0.022 < 0.28 < steps.max() <= 0.3
    np.testing.assert_allclose(np.median(steps), np.sqrt(0.02 * 0.3), rtol=0.3)  # uniform in the logarithm


def test_the_gate_is_that_of_the_paper(key):
    """u σ(u W) with u = gelu(y), and y what the cell reads without it."""
    cell = CELLS["s5-gated"]
    params, xs = parameters(cell, WIDTH, key), sequence()
    with jax.disable_jit(False):
        _, states = jax.jit(cell.scan)(params, cell.initial(BATCH, jnp.float32), xs)
        gated, y = (jax.jit(c.read)(params, states, xs) for c in (cell, dataclasses.replace(cell, gate=False)))
    u = y * stats.norm.cdf(y)
    np.testing.assert_allclose(gated, u / (1 + np.exp(-u @ np.asarray(params["gate"]))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", THREE)
def test_no_parameters_make_a_state_grow(key, name):
    cell, rng = CELLS[name], np.random.default_rng(5)
    params = jax.tree.map(lambda p: p + rng.uniform(-3, 3, p.shape).astype(p.dtype), parameters(cell, WIDTH, key))
    with jax.disable_jit(False):
        a, _ = jax.jit(cell.terms)(params, sequence())
    assert (np.abs(a) < 1).all()
    assert all(jnp.issubdtype(value.dtype, jnp.floating) for value in params.values())


@pytest.mark.parametrize("name", THREE)
def test_half_precision_runs_on_single_precision_states(key, name):
    cell = CELLS[name]
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), parameters(cell, WIDTH, key))
    xs = sequence(jnp.bfloat16)

    @jax.jit
    def run(params, xs):
        final, states = cell.scan(params, cell.initial(BATCH, xs.dtype), xs)
        return final, cell.read(params, states, xs)

    with jax.disable_jit(False):
        final, outputs = run(half, xs)
        _, expected = run(*jax.tree.map(lambda p: p.astype(jnp.float32), (half, xs)))
    assert outputs.dtype == jnp.bfloat16
    assert final.dtype in (jnp.float32, jnp.complex64)
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("name", THREE)
def test_a_training_step_lowers_for_every_platform(key, name):
    cell = CELLS[name]

    def loss(params, xs):
        _, states = cell.scan(params, cell.initial(BATCH, xs.dtype), xs)
        return cell.read(params, states, xs).sum()

    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))
        assert exported(parameters(cell, WIDTH, key), sequence()).platforms == ("cpu", "cuda", "tpu")


def test_equal_cells_are_one_key():
    assert len({dataclasses.replace(cell) for cell in [*CELLS.values()] * 2}) == len(CELLS)


@pytest.mark.parametrize(
    ("cell", "fields", "message"),
    [
        (state_space.MinGRU, {"width": 0}, "MinGRU: width must be at least 1, got 0"),
        (state_space.MinGRU, {"width": 2, "candidate": "tanh"}, "candidate must be 'linear' or 'positive', got 'tanh'"),
        (state_space.LRU, {"width": 2, "state": 0}, "LRU: state must be None or at least 1, got 0"),
        (state_space.LRU, {"width": 2, "r_max": 1}, r"must be 0 <= r_min <= r_max < 1, r_max > 0, got \(0.0, 1\)"),
        (state_space.LRU, {"width": 2, "max_phase": 0}, r"max_phase must be in \(0, 2π\], got 0"),
        (state_space.S5, {"width": 3}, "S5: state must be a multiple of 2 blocks, got 3 with blocks 1"),
        (state_space.S5, {"width": 4, "blocks": 0}, "state must be a multiple of 2 blocks, got 4 with blocks 0"),
        (state_space.S5, {"width": 4, "discretization": "euler"}, "must be 'zoh' or 'bilinear', got 'euler'"),
        (state_space.S5, {"width": 4, "min_step": 0}, r"steps must be 0 < min_step <= max_step, got \(0, 0.1\)"),
    ],
)
def test_a_bad_field_is_refused_at_construction(cell, fields, message):
    with pytest.raises(ValueError, match=message):
        cell(**fields)
