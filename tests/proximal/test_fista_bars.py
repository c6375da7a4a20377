"""Four problems in float64, compiled: exactness against celer, numbers of iterations, the rate of the theory."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.proximal import fista, linear, prox

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def gaussian():
    rng = np.random.default_rng(0)
    matrix, truth = rng.standard_normal((500, 1250)) / np.sqrt(500), np.zeros(1250)
    truth[rng.choice(1250, 50, replace=False)] = rng.standard_normal(50)
    return matrix, matrix @ truth + 0.05 * rng.standard_normal(500)


def deconvolution():
    """512 samples of 4 ms, a Ricker wavelet of 25 Hz, noise of a tenth of the signal's deviation."""
    rng = np.random.default_rng(0)
    a = (np.pi * 25 * 0.004 * np.arange(-20, 21)) ** 2
    matrix = np.stack([np.convolve(spike, (1 - 2 * a) * np.exp(-a), "same") for spike in np.eye(512)], axis=1)
    truth = np.zeros(512)
    truth[rng.choice(512, 25, replace=False)] = rng.standard_normal(25)
    clean = matrix @ truth
    return matrix, clean + 0.1 * clean.std() * rng.standard_normal(512)


DATA = {  # with L
    name: (matrix, y, np.linalg.eigvalsh(matrix @ matrix.T)[-1])
    for name, (matrix, y) in {"gaussian": gaussian(), "deconvolution": deconvolution()}.items()
}
PROBLEMS = [("gaussian", 0.1), ("gaussian", 0.01), ("deconvolution", 0.05), ("deconvolution", 0.01)]
METHODS = {
    "plain": {"restart": fista.never()},
    "restart": {"restart": fista.gradient()},
    "greedy": {"momentum": fista.greedy()},
    "adaptive": {"step": fista.backtracking()},
}


def kkt(matrix, y, lam, x):
    """Distance of 0 from the subdifferential, largest element, relative to that at 0."""
    g = matrix.T @ (matrix @ x - y)
    distance = np.where(x != 0, np.abs(g + lam * np.sign(x)), np.maximum(np.abs(g) - lam, 0))
    return distance.max() / np.abs(matrix.T @ y).max()


def _kkt_reached(params, state):
    problem, lam, tolerance, limit = params
    g = problem.gradient(state.x)
    distance = jnp.where(state.x != 0, jnp.abs(g + lam * jnp.sign(state.x)), jnp.maximum(jnp.abs(g) - lam, 0))
    return (distance.max() <= tolerance) | (state.steps >= limit)


@functools.cache
def solver(method):
    def solve(a, y, lam, step_size, tolerance, limit):
        problem = fista.least_squares(linear.matrix(a), y)
        options = {"step": fista.constant(step_size), "stop": fista.Stop(_kkt_reached, (problem, lam, tolerance, limit))}
        return fista.fista(problem, prox.l1(lam), jnp.zeros(a.shape[1]), max_steps=6000, **options | METHODS[method])

    return jax.jit(solve)


@functools.cache
def run(name, fraction, method, tolerance, limit=6000):
    """Solved until the KKT conditions hold to a tolerance: matrix, data, lambda, solution; each run is made once."""
    matrix, y, largest = DATA[name]
    scale = np.abs(matrix.T @ y).max()
    with jax.disable_jit(False), jax.enable_x64(True):
        arguments = (jnp.asarray(a, jnp.float64) for a in (matrix, y, fraction * scale, 1 / largest, tolerance * scale, limit))
        return matrix, y, fraction * scale, jax.tree.map(np.asarray, solver(method)(*arguments))


@pytest.mark.parametrize(("name", "fraction"), PROBLEMS)
def test_the_solution_meets_the_kkt_conditions_and_its_gap_is_what_numpy_says(name, fraction):
    matrix, y, lam, solution = run(name, fraction, "adaptive", 1e-10)
    assert int(solution.status) == fista.CONVERGED
    assert kkt(matrix, y, lam, solution.x) <= 1e-9
    r = y - matrix @ solution.x
    u = r * min(1, lam / np.abs(matrix.T @ r).max())
    primal = r @ r / 2 + lam * np.abs(solution.x).sum()
    dual = y @ y / 2 - (y - u) @ (y - u) / 2
    np.testing.assert_allclose(solution.objective, primal, rtol=1e-13)
    np.testing.assert_allclose(solution.gap, primal - dual, atol=1e-12 * primal)
    assert abs(solution.gap) <= 1e-8 * primal


@pytest.mark.parametrize(("name", "fraction"), PROBLEMS)
def test_the_solution_is_celers_with_the_same_support(name, fraction):
    """Recorded by golden/celer_lasso.py, and celer itself where it is installed (it has no wheels for some machines)."""
    matrix, y, lam, solution = run(name, fraction, "adaptive", 1e-10)
    reference = np.zeros_like(solution.x)
    with np.load(GOLDEN / "celer_lasso.npz", allow_pickle=False) as recorded:
        reference[recorded[f"{name}_{fraction}_support"]] = recorded[f"{name}_{fraction}_values"]
    references = [reference]
    if importlib.util.find_spec("celer"):
        celer = importlib.import_module("celer")
        model = celer.Lasso(alpha=lam / len(y), fit_intercept=False, tol=1e-15, max_iter=200, max_epochs=200_000)
        references.append(model.fit(np.asfortranarray(matrix), y).coef_)
    for reference in references:
        np.testing.assert_array_equal(solution.x != 0, reference != 0)
        assert np.linalg.norm(solution.x - reference) <= 1e-7 * np.linalg.norm(reference)


@pytest.mark.parametrize(("name", "fraction"), PROBLEMS)
def test_restarts_and_greedy_steps_save_the_iterations_that_they_promise(name, fraction):
    """To KKT 1e-8: plain FISTA, stopped where the promises are due, isn't there. A step size that adapts saves more."""
    steps = {method: int(run(name, fraction, method, 1e-8)[3].steps) for method in ("restart", "greedy", "adaptive")}
    due = int(np.ceil(max(steps["restart"] / 0.35, steps["greedy"] / 0.25)))
    matrix, y, lam, plain = run(name, fraction, "plain", 1e-8, due)
    assert int(plain.steps) == due
    assert kkt(matrix, y, lam, plain.x) > 1e-8
    assert steps["greedy"] < steps["restart"] < due
    assert steps["adaptive"] <= 0.7 * steps["restart"]


def test_plain_fista_is_within_the_rate_of_the_theory_at_every_step():
    """`F(x_k) - F* <= 2 L |x0 - x*|^2 / (k + 1)^2`, and ISTA, which has no such bound, misses it."""
    matrix, y, lam, best = run("gaussian", 0.01, "adaptive", 1e-10)
    largest = DATA["gaussian"][2]
    bound = 2 * largest * best.x @ best.x / (np.arange(201) + 1) ** 2
    with jax.disable_jit(False), jax.enable_x64(True):

        def solve(a, y, momentum):
            options = {"step": fista.constant(1 / largest), "momentum": momentum, "restart": fista.never(), "stop": None}
            solution = fista.fista(
                fista.least_squares(linear.matrix(a), y),
                prox.l1(lam),
                jnp.zeros(1250),
                **options,
                max_steps=200,
                history=True,
            )
            return solution.history.objective - best.objective

        excess = [np.asarray(jax.jit(solve)(jnp.asarray(matrix), jnp.asarray(y), m)) for m in (fista.nesterov(), fista.none())]
    assert (excess[0] >= 0).all()
    assert (excess[0] <= bound).all()
    assert (excess[1] > bound).any()
