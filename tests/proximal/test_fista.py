import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.proximal import fista, linear, prox

RNG = np.random.default_rng(0)
MATRIX = (RNG.standard_normal((20, 12)) / np.sqrt(20)).astype(np.float32)
TRUTH = np.where(np.arange(12) % 4 == 1, 3.0, 0.0).astype(np.float32)
DATA = (MATRIX @ TRUTH + 0.1 * RNG.standard_normal(20)).astype(np.float32)
LARGEST = float(np.abs(MATRIX.T @ DATA).max())
L = float(np.linalg.norm(MATRIX.astype(np.float64), 2) ** 2)
A = linear.matrix(jnp.asarray(MATRIX))


def solve(y, lam, **options):
    return fista.fista(fista.least_squares(A, y), prox.l1(lam), jnp.zeros(12), **options)


def kkt(x, lam, matrix=MATRIX, data=DATA):
    """How far 0 is from grad f(x) + lam d|x|_1, largest element, by plain numpy."""
    x, matrix, data = (np.asarray(a, np.float64) for a in (x, matrix, data))
    g = matrix.T @ (matrix @ x - data)
    return np.where(x != 0, np.abs(g + lam * np.sign(x)), np.maximum(np.abs(g) - lam, 0)).max()


def soft(v, threshold):
    return v * np.maximum(1 - threshold / np.maximum(np.abs(v), 1e-30), 0)


def test_the_example_of_the_documentation(jit):
    def run(y, lam):
        return solve(y, lam, stop=fista.gap(1e-6), max_steps=2000)

    solution = jit(run)(DATA, 0.1)
    assert int(solution.status) == fista.CONVERGED
    assert fista.describe(solution) == "converged"
    assert 0 <= float(solution.gap) <= 1e-6 * np.sum(DATA**2) / 2
    assert kkt(solution.x, 0.1) < 2e-3
    slope = jit(jax.grad(lambda lam: jnp.sum((run(DATA, lam).x - TRUTH) ** 2)))(0.1)
    on = np.asarray(solution.x) != 0
    change = np.linalg.solve(MATRIX[:, on].T @ MATRIX[:, on], -np.sign(solution.x)[on])
    np.testing.assert_allclose(slope, 2 * change @ (np.asarray(solution.x) - TRUTH)[on], rtol=1e-3)


COMBINATIONS = [
    {"step": fista.constant(1 / L), "momentum": fista.none()},
    {"step": fista.constant(1 / L), "momentum": fista.chambolle_dossal(4), "restart": fista.every(20)},
    {"step": fista.backtracking(grow=1.0), "momentum": fista.greedy()},
    {"step": fista.backtracking(100.0, shrink=0.7), "momentum": fista.strongly_convex(0.05)},
    {"step": fista.barzilai_borwein(), "momentum": fista.none()},
    {"momentum": fista.greedy(), "monotone": True},
    {"restart": fista.function(), "monotone": True},
    {"restart": fista.never()},
]


@pytest.mark.parametrize("options", COMBINATIONS)
def test_every_option_meets_the_optimality_condition(options):
    with jax.disable_jit(False):
        solution = jax.jit(lambda y: solve(y, 0.2, stop=fista.residual(2e-6), max_steps=400, **options))(DATA)
    assert fista.describe(solution) == "converged"
    assert kkt(solution.x, 0.2) <= 1e-4 * LARGEST
    assert float(solution.residual) <= 2e-6


def test_an_orthogonal_operator_gives_the_soft_threshold(jit):
    q, _ = np.linalg.qr(RNG.standard_normal((12, 12)))
    y = RNG.standard_normal(12).astype(np.float32)
    problem = fista.least_squares(linear.matrix(jnp.asarray(q, jnp.float32)), jnp.asarray(y))
    solution = jit(lambda x0: fista.fista(problem, prox.l1(0.3), x0))(jnp.ones(12))
    np.testing.assert_allclose(solution.x, soft(q.T @ y, 0.3), atol=2e-6)


def test_at_lam_max_the_solution_is_exactly_zero_and_just_below_it_is_not(jit):
    largest = float(fista.lam_max(fista.least_squares(A, DATA), prox.l1(1.0)))
    np.testing.assert_allclose(largest, LARGEST, rtol=1e-5)
    for weight, zero in ((largest, True), (1.5 * largest, True), (0.99 * largest, False)):
        assert np.any(jit(solve)(DATA, weight).x) != zero


def test_gradient_descent_is_the_same_solver_without_term_and_momentum():
    """One step of size s multiplies the error by I - s A'A."""
    with jax.enable_x64(True):
        a = MATRIX.astype(np.float64)
        problem = fista.least_squares(linear.matrix(jnp.asarray(a)), jnp.asarray(DATA, jnp.float64))
        solution = fista.fista(
            problem, prox.zero(), jnp.zeros(12), step=fista.constant(0.5 / L), momentum=fista.none(), stop=None, max_steps=5
        )
    best = np.linalg.lstsq(a, DATA.astype(np.float64), rcond=None)[0]
    factor = np.linalg.matrix_power(np.eye(12) - 0.5 / L * a.T @ a, 5)
    np.testing.assert_allclose(solution.x, best - factor @ best, atol=1e-12)
    assert fista.describe(solution) == "stopped at the limit of steps"
    assert int(solution.steps) == 5


@pytest.mark.parametrize(("factor", "options"), [(3.0, {"momentum": fista.none()}), (1.8, {"restart": fista.never()})])
def test_a_step_beyond_the_limit_is_reported(factor, options):
    """At 3 / L iterates blow up; a ball keeps them finite, and then they go around for ever."""
    step = fista.constant(factor / L)
    with jax.disable_jit(False):
        free = jax.jit(lambda y: solve(y, 0.01, step=step, max_steps=2000, stop=fista.residual(1e-7), **options))(DATA)
        problem, ball = fista.least_squares(A, DATA), prox.linf_ball(1e3)
        kept = jax.jit(lambda x: fista.fista(problem, ball, x, step=step, max_steps=200, **options))(jnp.zeros(12))
    assert int(free.status) == fista.NOT_FINITE
    assert int(kept.status) == fista.NOT_DESCENDING
    assert "1 / L" in fista.describe(free)
    assert "1 / L" in fista.describe(kept)
    assert np.isfinite(free.x).all()


def test_a_step_below_the_limit_is_not_accused():
    """Plain gradient descent descends up to 2 / L, all others up to 1 / L."""
    with jax.disable_jit(False):
        for step, momentum in ((1.9 / L, fista.none()), (1 / L, fista.nesterov()), (1 / L, fista.greedy())):
            solution = jax.jit(lambda y, s, m=momentum: solve(y, 0.1, step=fista.constant(s), momentum=m, stop=None))(
                DATA, step
            )
            assert int(solution.status) == fista.LIMIT


def test_nan_data_stop_at_once_and_leave_x0(jit):
    solution = jit(lambda y: solve(y, 0.1, history=True, max_steps=9))(np.where(np.arange(20) == 3, np.nan, DATA))
    assert int(solution.status) == fista.NOT_FINITE
    assert int(solution.steps) == 0
    assert not np.any(solution.x)


def test_a_batch_is_the_loop_and_its_members_leave_each_other_alone():
    """One has NaN, one can't converge: the others stop when they would alone, with the same history."""
    ys = np.stack([DATA, 0.3 * DATA[::-1], np.full(20, np.nan), DATA + 1, 0 * DATA]).astype(np.float32)
    tolerances = np.array([1e-5, 1e-4, 1e-4, 0.0, 1e-5], np.float32)

    def run(y, tolerance):
        return solve(y, 0.1, stop=fista.gap(tolerance), max_steps=60, history=True)

    with jax.disable_jit(False):
        batch = jax.jit(jax.vmap(run))(ys, tolerances)
        alone = [jax.jit(run)(y, tolerance) for y, tolerance in zip(ys, tolerances, strict=True)]
    np.testing.assert_array_equal(
        batch.status, [fista.CONVERGED, fista.CONVERGED, fista.NOT_FINITE, fista.LIMIT, fista.CONVERGED]
    )
    assert fista.describe(batch)[1] == "converged"
    for i, one in enumerate(alone):
        assert abs(int(batch.steps[i]) - int(one.steps)) <= (3 if one.status == fista.CONVERGED else 0)
        np.testing.assert_allclose(batch.x[i], one.x, atol=3e-4 if one.status == fista.CONVERGED else 5e-6)
        same = min(int(batch.steps[i]), int(one.steps), 10)
        np.testing.assert_allclose(batch.history.objective[i, :same], one.history.objective[:same], rtol=1e-5)
        assert np.isnan(batch.history.objective[i, int(batch.steps[i]) + 1 :]).all()
    assert len(set(batch.steps.tolist())) >= 4


def test_history_says_what_the_solution_says(jit):
    solution = jit(lambda y: solve(y, 0.2, history=True, max_steps=30))(DATA)
    steps, x = int(solution.steps), np.asarray(solution.x, np.float64)
    assert solution.history.objective.shape == (31,)
    for name in ("objective", "gap", "residual"):
        row = np.asarray(getattr(solution.history, name))
        np.testing.assert_allclose(row[steps], getattr(solution, name), rtol=1e-6)
        assert np.isnan(row[steps + 1 :]).all()
        assert np.isfinite(row[1 : steps + 1]).all()
    np.testing.assert_allclose(solution.history.objective[0], np.sum(DATA**2) / 2, rtol=1e-6)
    np.testing.assert_allclose(solution.objective, np.sum((MATRIX @ x - DATA) ** 2) / 2 + 0.2 * np.abs(x).sum(), rtol=1e-6)
    assert solution.history.nonzeros[steps] == np.count_nonzero(x)
    best = np.nanmin(solution.history.objective)
    assert np.all(solution.history.gap[1 : steps + 1] >= solution.history.objective[1 : steps + 1] - best - 1e-6)


def test_monotone_runs_never_rise_where_the_plain_method_does():
    with jax.disable_jit(False):
        rises = [
            np.diff(
                jax.jit(
                    lambda y, m=m: solve(y, 0.05, restart=fista.never(), monotone=m, history=True, stop=None, max_steps=60)
                )(DATA).history.objective
            ).max()
            for m in (False, True)
        ]
    assert rises[0] > 1e-4
    assert rises[1] <= 0


def test_a_loop_of_steps_is_the_whole_run(jit):
    problem, term = fista.least_squares(A, DATA), prox.l1(0.1)
    step = jit(lambda state: fista.step(problem, term, state))
    state = fista.init(problem, term, jnp.zeros(12))
    for _ in range(4):
        state = step(state)
    solution = jit(lambda x0: fista.fista(problem, term, x0, stop=None, max_steps=4, history=True))(jnp.zeros(12))
    np.testing.assert_allclose(state.x, solution.x, atol=1e-6)
    np.testing.assert_allclose(state.gap, solution.gap, rtol=1e-5)
    np.testing.assert_allclose(state.image, MATRIX @ np.asarray(state.x), atol=1e-5)


def test_backtracking_keeps_its_step_when_only_rounding_is_left():
    """Thousands of steps at the solution, where differences of images are rounding: a naive test would halve it for ever."""
    with jax.disable_jit(False):
        solution = jax.jit(lambda y: solve(100 * y, 0.1, stop=None, max_steps=3000))(DATA)
    assert float(solution.step_size) >= 0.4 / L
    assert int(solution.status) == fista.LIMIT
    assert kkt(solution.x, 0.1, data=100 * DATA) <= 1e-5 * 100 * LARGEST


def test_stopping_rules_stop_where_they_say():
    level = 0.6 * float(np.linalg.norm(DATA))
    with jax.disable_jit(False):
        early = jax.jit(lambda y: solve(y, 0.0, step=fista.constant(0.2 / L), stop=fista.discrepancy(level)))(DATA)
        either = jax.jit(lambda y: solve(y, 0.1, stop=fista.any_of(fista.gap(0.0), fista.step_change(1e-3))))(DATA)
        default = jax.jit(lambda y: solve(y, 0.1))(DATA)
    misfit = np.linalg.norm(MATRIX @ np.asarray(early.x) - DATA)
    assert 0.5 * level < misfit <= level
    assert int(early.status) == int(either.status) == int(default.status) == fista.CONVERGED
    assert int(either.steps) < int(default.steps)


def test_a_complex_variable_and_a_tree_of_variables(jit):
    y = (RNG.standard_normal(12) + 1j * RNG.standard_normal(12)).astype(np.complex64)
    structure = jax.eval_shape(lambda: {"a": jnp.zeros(12, jnp.complex64), "b": jnp.zeros(())})
    operator = linear.Operator(None, linear.Structure.of(structure), _spectrum_and_offset)
    problem = fista.least_squares(operator, {"spectrum": y, "offset": jnp.float32(2.0)})
    x0 = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    solution = jit(lambda x0: fista.fista(problem, prox.l1(0.3), x0, max_steps=50))(x0)
    assert int(solution.status) == fista.CONVERGED
    np.testing.assert_allclose(solution.x["a"], soft(np.fft.ifft(y, norm="ortho"), 0.3), atol=1e-5)
    np.testing.assert_allclose(solution.x["b"], 1.7, atol=1e-5)
    assert 0 <= float(solution.gap) < 1e-3


def _spectrum_and_offset(_, x):
    return {"spectrum": jnp.fft.fft(x["a"], norm="ortho"), "offset": x["b"]}


def test_a_function_without_operator_is_minimized(jit):
    solution = jit(lambda x0: fista.fista(fista.smooth(_bowl, jnp.float32(2.0)), prox.nonnegative(), x0, max_steps=200))(
        {"a": jnp.ones(3), "b": -jnp.ones(())}
    )
    assert int(solution.status) == fista.CONVERGED
    np.testing.assert_allclose(solution.x["a"], np.full(3, np.log(2.0)), atol=1e-4)
    assert float(solution.x["b"]) == 0
    assert np.isnan(solution.gap)


def _bowl(center, x):
    return jnp.sum(jnp.exp(x["a"]) - center * x["a"]) + (x["b"] + 1) ** 2


PROBLEMS = {
    "least_squares": lambda: fista.least_squares(A, DATA),
    "weighted": lambda: fista.least_squares(A, DATA, weights=jnp.asarray(np.arange(20) % 3, jnp.float32)),
    "logistic": lambda: fista.logistic(A, jnp.sign(DATA)),
    "huber": lambda: fista.huber(A, DATA, delta=0.5),
}
VALUES = {
    "least_squares": lambda z: np.sum((z - DATA) ** 2) / 2,
    "weighted": lambda z: np.sum((np.arange(20) % 3) * (z - DATA) ** 2) / 2,
    "logistic": lambda z: np.sum(np.log1p(np.exp(-np.sign(DATA) * z))),
    "huber": lambda z: np.sum(np.where(np.abs(z - DATA) < 0.5, (z - DATA) ** 2 / 2, 0.5 * np.abs(z - DATA) - 0.125)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_losses_have_the_value_gradient_curvature_and_conjugate_that_they_say(name):
    problem, x, change = PROBLEMS[name](), jnp.asarray(RNG.standard_normal(12), jnp.float32), RNG.standard_normal(12)
    z, dz = problem.image(x), problem.image(jnp.asarray(change, jnp.float32))
    loss, u = problem.loss, problem.slope(z)
    np.testing.assert_allclose(problem(x), VALUES[name](np.asarray(z, np.float64)), rtol=1e-5)
    np.testing.assert_allclose(problem.gradient(x), jax.grad(problem)(x), rtol=1e-4, atol=1e-5)
    for scale in (0.1, 1.0, 10.0):
        rise = 2 * (loss.value(problem.data, z + scale * dz) - loss.value(problem.data, z) - scale * jnp.vdot(u, dz))
        assert rise <= 1.001 * loss.curvature(problem.data, scale * dz) + 1e-4
    # Fenchel and Young: equality at the gradient; elsewhere the conjugate exceeds <z, u> - f(z).
    np.testing.assert_allclose(loss.fenchel(problem.data, z, u), 0, atol=2e-5)
    other = 0.7 * problem.slope(z + dz)
    assert loss.fenchel(problem.data, z, other) > 0.01
    conjugate = loss.fenchel(problem.data, z, other) - loss.value(problem.data, z) + jnp.vdot(z, other)
    again = loss.fenchel(problem.data, z + dz, other) - loss.value(problem.data, z + dz) + jnp.vdot(z + dz, other)
    np.testing.assert_allclose(conjugate, again, rtol=1e-4)  # one number, whatever z


@pytest.mark.parametrize("name", ["weighted", "logistic", "huber"])
def test_other_losses_converge_with_a_certificate(name):
    problem = PROBLEMS[name]()

    def run(tolerance):
        return fista.fista(problem, prox.l1(0.05), jnp.zeros(12), stop=fista.gap(tolerance), max_steps=600)

    with jax.disable_jit(False):
        run = jax.jit(run)
        solution, exact = run(1e-5), run(0.0)
    assert int(solution.status) == fista.CONVERGED
    assert -1e-5 <= float(solution.objective - exact.objective) <= float(solution.gap) + 1e-5
    g = np.asarray(problem.gradient(exact.x))
    on = np.asarray(exact.x) != 0
    assert np.where(on, np.abs(g + 0.05 * np.sign(exact.x)), np.maximum(np.abs(g) - 0.05, 0)).max() < 2e-4


def test_a_path_is_its_single_problems_with_fewer_steps():
    lambdas = jnp.asarray(LARGEST * np.geomspace(1.1, 0.01, 8), jnp.float32)
    stop = fista.residual(1e-5)
    with jax.disable_jit(False):
        path = jax.jit(lambda y: fista.path(fista.least_squares(A, y), prox.l1, lambdas, jnp.zeros(12), stop=stop))(DATA)
        cold = jax.jit(jax.vmap(lambda lam: solve(DATA, lam, stop=stop)))(lambdas)
    np.testing.assert_allclose(path.x, cold.x, atol=1e-3)
    assert not np.any(path.x[0])
    assert int(path.steps.sum()) < int(cold.steps.sum())
    assert set(fista.describe(path)) == {"converged"}


def test_a_batch_in_float64_is_the_loop_to_1e_6():
    ys = np.stack([DATA, 0.3 * DATA[::-1], DATA + 1]).astype(np.float64)
    with jax.disable_jit(False), jax.enable_x64(True):
        operator = linear.matrix(jnp.asarray(MATRIX, jnp.float64))

        def run(y):
            problem = fista.least_squares(operator, y)
            return fista.fista(problem, prox.l1(0.1), jnp.zeros(12), stop=fista.gap(1e-13)).x

        batch, alone = jax.jit(jax.vmap(run))(ys), [jax.jit(run)(y) for y in ys]
    np.testing.assert_allclose(batch, alone, atol=1e-6)


def test_where_nothing_moves_the_step_size_stays_and_the_gradient_is_finite():
    """The solution 0 is reached at once and the rule never holds: 1100 growing steps would overflow."""

    def run(lam):
        return solve(DATA, lam, stop=fista.discrepancy(0.1), max_steps=1100)

    with jax.disable_jit(False):
        solution, slope = jax.jit(lambda lam: (run(lam), jax.grad(lambda lam: jnp.sum(run(lam).x))(lam)))(100.0)
    assert fista.describe(solution) == "stopped at the limit of steps"
    assert solution.step_size < 100 / L
    assert slope == 0


def test_a_start_at_the_solution_has_arrived():
    """Residuals are relative to the gradient at 0, not to that at the start, which is 0 here."""
    with jax.disable_jit(False):
        run = jax.jit(lambda x0: fista.fista(fista.least_squares(A, DATA), prox.zero(), x0))
        cold = run(jnp.zeros(12))
        warm = run(cold.x)
    assert fista.describe(warm) == "converged"
    assert int(warm.steps) < int(cold.steps)


def test_barzilai_borwein_from_outside_of_a_constraint_keeps_its_safeguard():
    options = {"step": fista.barzilai_borwein(), "momentum": fista.none()}
    problem, term = fista.least_squares(A, jnp.asarray(DATA)), prox.nonnegative()
    state = fista.init(problem, term, -jnp.ones(12), **options)
    assert np.isinf(state.reference)
    assert np.isfinite(fista.step(problem, term, state, **options).reference)


def test_unrolled_is_the_run_and_its_derivative_goes_through_the_steps(jit):
    with jax.enable_x64(True):
        operator = linear.matrix(jnp.asarray(MATRIX, jnp.float64))

        def run(lam, size):
            problem = fista.least_squares(operator, jnp.asarray(DATA, jnp.float64))
            return fista.unrolled(problem, prox.l1(lam), jnp.zeros(12), steps=4, step=fista.constant(size))

        options = {"step": fista.constant(0.5), "restart": fista.never(), "stop": None, "max_steps": 4}
        whole = fista.fista(
            fista.least_squares(operator, jnp.asarray(DATA, jnp.float64)), prox.l1(0.1), jnp.zeros(12), **options
        )
        np.testing.assert_allclose(jit(run)(0.1, 0.5), whole.x, atol=1e-12)

        def total(lam, size):
            return jnp.sum(run(lam, size) ** 3)

        gradient = jit(jax.grad(total, argnums=(0, 1)))
        slope = gradient(0.1, 0.5)
        _, forward = jit(lambda lam, size: jax.jvp(total, (lam, size), (1.0, 0.0)))(0.1, 0.5)
        h, value = 1e-6, jit(total)
        np.testing.assert_allclose(slope[0], (value(0.1 + h, 0.5) - value(0.1 - h, 0.5)) / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(slope[1], (value(0.1, 0.5 + h) - value(0.1, 0.5 - h)) / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(forward, slope[0], rtol=1e-10)
        assert np.isfinite(gradient(100.0, 0.5)).all()  # x stays 0: norms of zeros


EXPORTED = [
    {},
    {"step": fista.constant(0.1), "restart": fista.function(), "stop": fista.gap(1e-6), "history": True},
    {"step": fista.barzilai_borwein(), "momentum": fista.none(), "stop": fista.step_change(1e-4)},
    {"momentum": fista.chambolle_dossal(), "monotone": True, "stop": fista.discrepancy(0.1), "restart": fista.every(10)},
]


@pytest.mark.parametrize("options", EXPORTED)
def test_every_option_lowers_for_cpu_gpu_and_tpu(options):
    with jax.disable_jit(False):
        batched = jax.jit(jax.vmap(lambda y: solve(y, 0.1, **options)))
        exported = jax.export.export(batched, platforms=["cpu", "cuda", "tpu"])(jax.ShapeDtypeStruct((2, 20), jnp.float32))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_a_path_and_the_gradient_lower_for_cpu_gpu_and_tpu():
    def error(y, lambdas):
        last = jax.grad(lambda lam: jnp.sum(solve(y, lam).x))(lambdas[-1])
        return last, fista.path(fista.least_squares(A, y), prox.l1, lambdas, jnp.zeros(12)).x

    shapes = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (20, 3)]
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(error), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_options_may_be_traced():
    def run(size, tolerance):
        return solve(DATA, 0.2, step=fista.constant(size), stop=fista.gap(tolerance)).steps

    with jax.disable_jit(False):
        steps = jax.jit(jax.vmap(run, (0, None)))(jnp.array([1 / L, 0.1 / L]), 1e-4)
    assert steps[1] > steps[0]


PROBLEM, TERM, X0 = fista.least_squares(A, DATA), prox.l1(0.1), jnp.zeros(12)
ERRORS = {
    "least_squares: y must have the shape": lambda: fista.least_squares(A, jnp.zeros(12)),
    "least_squares: weights must have": lambda: fista.least_squares(A, DATA, weights=jnp.ones(3)),
    "logistic: labels must have": lambda: fista.logistic(A, jnp.ones(3)),
    "huber: delta must be positive": lambda: fista.huber(A, DATA, delta=0),
    "max_steps must be at least 1, got 0": lambda: fista.fista(PROBLEM, TERM, X0, max_steps=0),
    "expected": lambda: fista.fista(PROBLEM, TERM, jnp.zeros(20)),
    "x0 must be floating, got int32": lambda: fista.fista(PROBLEM, TERM, jnp.zeros(12, int)),
    "needs a problem with": lambda: fista.fista(fista.smooth(_bowl, 1.0), TERM, {"a": X0, "b": X0[0]}, stop=fista.gap(1e-3)),
    "is for least_squares": lambda: fista.fista(PROBLEMS["huber"](), TERM, X0, stop=fista.discrepancy(1.0)),
    "constant: step_size must be positive, got 0": lambda: fista.constant(0),
    "backtracking: initial must": lambda: fista.backtracking(-1.0),
    "backtracking: shrink must": lambda: fista.backtracking(shrink=1.0),
    "backtracking: grow must": lambda: fista.backtracking(grow=0.9),
    "barzilai_borwein: memory must": lambda: fista.barzilai_borwein(memory=1),
    "chambolle_dossal: a must": lambda: fista.chambolle_dossal(1),
    "strongly_convex: mu must": lambda: fista.strongly_convex(0.0),
    "greedy: stretch must": lambda: fista.greedy(2.0),
    "every: k must": lambda: fista.every(0),
    "gap: tolerance must not be negative, got -1": lambda: fista.gap(-1),
    "residual: tolerance must": lambda: fista.residual(float("nan")),
    "unrolled: steps must": lambda: fista.unrolled(PROBLEM, TERM, X0, steps=0, step=fista.constant(1.0)),
    "unrolled: step must be constant": lambda: fista.unrolled(PROBLEM, TERM, X0, steps=1, step=fista.backtracking()),
    "lam_max: this term": lambda: fista.lam_max(PROBLEM, dataclasses.replace(TERM, kind=prox.Kind(abs, abs))),
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()
