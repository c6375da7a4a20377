import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model

from jaxnets.proximal import fista, linear, prox

RNG = np.random.default_rng(0)
ROWS, COLUMNS, CAPACITY = 30, 60, 16
MATRIX = (RNG.standard_normal((ROWS, COLUMNS)) / np.sqrt(ROWS)).astype(np.float32)
TRUTH = np.where(np.arange(COLUMNS) % 15 == 1, 3.0, 0.0).astype(np.float32)
DATA = (MATRIX @ TRUTH + 0.1 * RNG.standard_normal(ROWS)).astype(np.float32)
LARGEST = float(np.abs(MATRIX.T @ DATA).max())
LAM = 0.15 * LARGEST


def solve(y=DATA, lam=LAM, x0=None, **options):
    problem = fista.least_squares(linear.matrix(jnp.asarray(MATRIX)), jnp.asarray(y))
    return fista.working_set(problem, prox.l1(lam), x0, **{"capacity": CAPACITY, **options})


def relative_gap(x, lam=LAM, y=DATA):
    """By numpy, with the residual scaled into the feasible set as the dual point."""
    x, y, matrix = (np.asarray(a, np.float64) for a in (x, y, MATRIX))
    residual = y - matrix @ x
    dual = residual * min(1, np.min(lam / np.abs(matrix.T @ residual)))
    primal = 0.5 * residual @ residual + np.sum(lam * np.abs(x))
    return (primal - 0.5 * y @ y + 0.5 * np.sum((y - dual) ** 2)) / (0.5 * y @ y)


def test_the_gap_of_the_whole_problem_is_certified(jit):
    solution = jit(lambda y: solve(y))(DATA)
    assert int(solution.status) == fista.CONVERGED
    assert relative_gap(solution.x) <= 2e-6  # 1e-6 and the rounding of float32
    assert abs(float(solution.gap) / (0.5 * DATA @ DATA) - relative_gap(solution.x)) < 1e-6
    assert 2 < np.count_nonzero(solution.x) < CAPACITY < np.sum(np.abs(MATRIX.T @ DATA) > LAM)


def test_it_is_the_solution_of_coordinate_descent_with_the_same_support(jit):
    with jax.enable_x64(True):
        a, y = jnp.asarray(MATRIX, float), jnp.asarray(DATA, float)
        problem = fista.least_squares(linear.matrix(a), y)
        solution = jit(lambda p: fista.working_set(p, prox.l1(LAM), capacity=CAPACITY, tolerance=1e-13))(problem)
        model = linear_model.Lasso(alpha=LAM / ROWS, fit_intercept=False, tol=1e-14, max_iter=100_000)
        expected = model.fit(MATRIX.astype(float), DATA.astype(float)).coef_
        np.testing.assert_allclose(solution.x, expected, rtol=1e-6, atol=1e-8)
        assert ((np.asarray(solution.x) != 0) == (expected != 0)).all()


def test_a_weight_for_each_column(jit):
    weight = (LAM * RNG.uniform(0.5, 2, COLUMNS)).astype(np.float32)
    solution = jit(lambda weight: solve(lam=weight))(jnp.asarray(weight))
    assert int(solution.status) == fista.CONVERGED
    assert relative_gap(solution.x, weight) <= 2e-6


def test_vmap_equals_the_loop():
    batch = DATA * np.array([[1.0], [-0.5], [2.0]], np.float32)
    together = jax.jit(jax.vmap(solve))(batch)
    one = jax.jit(solve)
    for i, y in enumerate(batch):
        np.testing.assert_allclose(together.x[i], one(y).x, atol=1e-5)
    assert (np.asarray(together.status) == fista.CONVERGED).all()


def test_the_gradient_is_that_of_the_support():
    x = np.asarray(solve().x, np.float64)
    on = x != 0
    change = np.linalg.solve(MATRIX[:, on].T @ MATRIX[:, on], -np.sign(x)[on])
    slope = jax.jit(jax.grad(lambda lam: jnp.sum((solve(lam=lam).x - TRUTH) ** 2)))(LAM)
    np.testing.assert_allclose(slope, 2 * change @ (x - TRUTH)[on], rtol=1e-3)


def test_more_nonzeros_than_capacity_is_the_limit_and_a_start_for_fista(jit):
    solution = jit(lambda y: solve(y, 0.01 * LARGEST, max_rounds=3, max_steps=30))(DATA)
    assert int(solution.status) == fista.LIMIT
    assert 0 < float(solution.objective) < 0.5 * DATA @ DATA
    assert np.count_nonzero(solution.x) <= CAPACITY


def test_nothing_to_do_costs_no_round(jit):
    nothing = jit(lambda y: solve(y, 1.0001 * LARGEST))(DATA)
    assert not np.any(nothing.x)
    assert (int(nothing.status), int(nothing.steps)) == (fista.CONVERGED, 0)
    answer = solve().x
    again = jit(lambda x0: solve(x0=x0, tolerance=1e-5))(answer)
    np.testing.assert_array_equal(again.x, answer)
    assert int(again.steps) == 0


def test_a_nan_is_reported(jit):
    assert int(jit(lambda y: solve(y))(np.where(np.arange(ROWS) == 3, np.nan, DATA)).status) == fista.NOT_FINITE


def test_bad_input_is_named():
    y = jnp.asarray(DATA)
    A = linear.matrix(jnp.asarray(MATRIX))
    lasso = fista.least_squares(A, y)
    for problem, term, options, message in [
        (lasso, prox.l1(LAM), {"capacity": 0}, "capacity must be at least 1, got 0"),
        (lasso, prox.l1(LAM), {"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
        (lasso, prox.l2(LAM), {}, r"the term must be prox\.l1"),
        (fista.least_squares(A @ linear.identity(COLUMNS), y), prox.l1(LAM), {}, r"must be a linear\.matrix"),
        (fista.least_squares(A, y, weights=jnp.ones(ROWS)), prox.l1(LAM), {}, "least_squares without weights"),
        (fista.least_squares(linear.matrix(jnp.asarray(MATRIX) + 0j), y + 0j), prox.l1(LAM), {}, "must be real, got complex64"),
    ]:
        with pytest.raises(ValueError, match=message):
            fista.working_set(problem, term, **{"capacity": CAPACITY, **options})


def test_it_lowers_for_every_platform():
    jax.export.export(jax.jit(solve), platforms=("cpu", "cuda", "tpu"))(DATA)


# The sums of the Gram matrix's moduli are an eigenvector: of 0, or (correlation -0.95) of the smallest eigenvalue.
HARD = {
    "circulant": 2 * np.eye(8) - np.roll(np.eye(8), 1, 0) - np.roll(np.eye(8), -1, 0),
    "correlated": np.sqrt([[0.975, 0.975], [0.025, 0.025]]) * [[1, -1], [1, 1]],
    "zero": np.zeros((3, 4)),
}


@pytest.mark.parametrize("name", HARD)
def test_the_step_size_suits_any_gram_matrix(jit, name):
    a = jnp.asarray(HARD[name], jnp.float32)
    lasso = fista.least_squares(linear.matrix(a), jnp.cos(jnp.arange(1.0, 1 + len(a))))
    solve = jit(lambda p: fista.working_set(p, prox.l1(0.1), jnp.ones(a.shape[1]), capacity=a.shape[1], tolerance=1e-5))
    solution = solve(lasso)
    assert int(solution.status) == fista.CONVERGED
    assert int(solution.steps) < 400


def test_a_step_size_from_far_below_the_norm_is_halved(monkeypatch):
    monkeypatch.setattr(linear.analysis, "largest_singular_value", lambda *_, **__: jnp.float32(0.05))
    solution = jax.jit(lambda y: solve(y))(DATA)
    assert int(solution.status) == fista.CONVERGED
    assert relative_gap(solution.x) <= 2e-6


def test_of_a_start_with_more_nonzeros_than_capacity_the_largest_are_kept(jit):
    x0 = jnp.asarray(np.where(TRUTH != 0, TRUTH, 0.01), jnp.float32)
    rounds = jit(lambda x0: solve(x0=x0))(x0)
    assert int(rounds.status) == fista.CONVERGED
    assert relative_gap(rounds.x) <= 2e-6
    # Certified as it is: the objective is that of the x returned.
    at_once = jit(lambda x0: solve(x0=x0, tolerance=10.0))(x0)
    assert int(at_once.steps) == 0
    x = np.asarray(at_once.x, np.float64)
    assert np.count_nonzero(x) == CAPACITY
    np.testing.assert_array_equal(x[TRUTH != 0], 3)
    expected = 0.5 * np.sum((MATRIX @ x - DATA) ** 2) + LAM * np.abs(x).sum()
    np.testing.assert_allclose(at_once.objective, expected, rtol=1e-5)


@pytest.mark.parametrize(("of_matrix", "of_data"), [("float32", "float64"), ("float64", "float32")])
def test_everything_has_the_dtype_of_the_matrix(jit, of_matrix, of_data):
    with jax.enable_x64(True):
        lasso = fista.least_squares(linear.matrix(jnp.asarray(MATRIX, of_matrix)), jnp.asarray(DATA, of_data))
        x0, lam = jnp.asarray(TRUTH, of_data), jnp.asarray(LAM, of_data)
        run = jit(lambda p, lam: fista.working_set(p, prox.l1(lam), x0, capacity=CAPACITY, tolerance=1e-5))
        solution = run(lasso, lam)
        assert int(solution.status) == fista.CONVERGED
        fields = (solution.x, solution.gap, solution.objective, solution.residual, solution.step_size)
        assert {str(field.dtype) for field in fields} == {of_matrix}
