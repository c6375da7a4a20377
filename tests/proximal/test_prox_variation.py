"""Total variation in one dimension against a solver of its dual, at its edges, and batched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxnets.proximal import fista, linear, prox

denoise = jax.jit(lambda weight, v: prox.total_variation(weight).prox(v, 1.0))


def by_dual(v, weight):
    """`x = v - D'u` with `u` of the dual: least squares within bounds, by an active set: exact."""
    differences = np.diff(np.eye(len(v)), axis=0)
    bounds = (-weight - 1e-300, weight + 1e-300)
    return v - differences.T @ scipy.optimize.lsq_linear(differences.T, v, bounds, method="bvls", tol=1e-15).x


RNG = np.random.default_rng(0)
SIGNALS = {
    "noise": RNG.normal(size=12),
    "walk": RNG.normal(size=12).cumsum(),
    "ties": RNG.integers(-1, 2, size=12).astype(float),
    "steps": np.repeat([1.0, 5.0, 5.0, -2.0], 3),
    "ramp": np.arange(12.0),
    "doubling": 2.0 ** np.arange(12),
    "alternating": (-1.0) ** np.arange(12),
    "constant": np.full(12, 3.0),
}


def test_equals_the_solution_of_the_dual_for_every_weight():
    weights = [0.0, 1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e4]
    v = np.stack([v for v in SIGNALS.values() for _ in weights])
    weight = np.tile(weights, len(SIGNALS))
    with jax.enable_x64(True):
        got = np.asarray(denoise(weight, v))
    expected = np.stack([by_dual(*pair) for pair in zip(v, weight, strict=True)])
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-11)


def test_one_two_and_three_samples_and_a_weight_beyond_the_last():
    np.testing.assert_array_equal(denoise(0.5, jnp.array([3.0])), [3])
    np.testing.assert_allclose(denoise(0.5, jnp.array([3.0, 1.0])), [2.5, 1.5])
    np.testing.assert_allclose(denoise(5.0, jnp.array([3.0, 1.0, -1.0])), [1, 1, 1])


def test_a_large_offset_costs_no_more_than_its_rounding():
    v = SIGNALS["noise"].astype(np.float32)
    with_offset, without = denoise(0.3, np.stack([v + 4096, v]))
    np.testing.assert_allclose(with_offset - 4096, without, atol=2e-3)


def test_derivative_averages_over_the_segments_even_at_ties():
    v, tangent = jnp.array([0.0, 0.0, 3.0, 3.0, 3.0]), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    got = jax.jvp(denoise, (0.6, v), (1.0, tangent))
    np.testing.assert_allclose(got[0], [0.3, 0.3, 2.8, 2.8, 2.8], rtol=1e-6)
    np.testing.assert_allclose(got[1], np.array([1.5, 1.5, 4, 4, 4]) + np.array([1 / 2, 1 / 2, *[-1 / 3] * 3]), rtol=1e-6)


@pytest.mark.skipif(jax.config.jax_disable_jit, reason="thousands of steps one by one")
def test_long_noise_meets_the_optimality_conditions():
    """|u| <= weight, and u = ±weight at every jump: `u` is the running sum of `v - x`."""
    v = np.random.default_rng(1).normal(size=(2, 500)).cumsum(-1)
    with jax.enable_x64(True):
        x = np.asarray(denoise(2.0, v))
    u = np.cumsum(v - x, axis=-1)[:, :-1]
    jump = np.sign(np.diff(x))
    assert 20 < np.sum(jump != 0) < 400
    assert np.abs(u).max() <= 2 + 1e-11
    np.testing.assert_allclose(u[jump != 0], -2 * jump[jump != 0], rtol=1e-10)


@pytest.mark.parametrize("isotropic", [True, False])
def test_two_dimensions_of_rows_that_are_alike_are_one_dimension(isotropic):
    v = np.tile(SIGNALS["noise"], (3, 1)).astype(np.float32)
    iterations, tolerance = (20, 0.05) if jax.config.jax_disable_jit else (500, 1e-4)
    got = jax.jit(prox.total_variation_2d(0.5, iterations, isotropic).prox)(v, 1.0)
    np.testing.assert_allclose(got, denoise(0.5, v), atol=tolerance)


def test_a_minimizer_by_few_inner_iterations_has_the_derivative_of_its_own_fixed_point():
    """By differences. The Jacobian of ten iterations isn't symmetric: conjugate gradients are wrong by as much as the slope."""
    rng = np.random.default_rng(2)
    matrix, data = np.eye(5) + 0.3 * rng.normal(size=(5, 5)), rng.normal(size=(5, 5))

    def solve(weight):
        problem = fista.least_squares(linear.matrix(jnp.asarray(matrix), (5, 5)), data)
        term = prox.total_variation_2d(weight, 10)
        return fista.fista(problem, term, jnp.zeros((5, 5)), step=fista.constant(0.2), stop=fista.residual(1e-13)).x

    with jax.enable_x64(True), jax.disable_jit(False):
        got = np.asarray(jax.jit(jax.jacfwd(solve))(1.0))
        above, below = np.asarray(jax.jit(jax.vmap(solve))(np.array([1 + 1e-6, 1 - 1e-6])))
    np.testing.assert_allclose(got, (above - below) / 2e-6, atol=1e-7)
