"""Seismic metrics against closed forms, NumPy, and the maximum matching of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from jaxnets.seismic import metrics

TRUTH = jnp.array([[0, 1.0, 0, 0, -2.0, 0, 0, 0, 3.0, 0]])


def test_snr_is_that_of_the_noise_added():
    assert metrics.snr_db(TRUTH * 1.1, TRUTH) == pytest.approx(20, abs=1e-4)
    assert metrics.snr_db(0 * TRUTH, TRUTH) == 0
    assert metrics.snr_db(TRUTH, TRUTH) == np.inf


def test_correlation_is_numpys_and_ignores_scale_and_mean(jit):
    a, b = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    correlation = jit(metrics.correlation)
    np.testing.assert_allclose(correlation(jnp.asarray(a), jnp.asarray(b)), np.corrcoef(a.ravel(), b.ravel())[0, 1], atol=1e-6)
    np.testing.assert_allclose(correlation(jnp.asarray(-1e-6 * a), jnp.asarray(3 * a + 5)), -1, atol=1e-5)
    assert correlation(jnp.ones((5, 7)), jnp.asarray(a)) == 0


def largest_matching(found, true, tolerance):
    total = 0
    for f, t in zip(found, true, strict=True):
        reach = np.abs(np.flatnonzero(f)[:, None] - np.flatnonzero(t)) <= tolerance
        total += (maximum_bipartite_matching(scipy.sparse.csr_matrix(reach)) >= 0).sum()
    return total


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_support_f1_counts_the_largest_one_to_one_matching(tolerance, jit):
    rng = np.random.default_rng(tolerance)
    found, true = rng.normal(size=(2, 60, 16)) * (rng.random((2, 60, 16)) < 0.4)
    expected = 2 * largest_matching(found, true, tolerance) / ((found != 0).sum() + (true != 0).sum())
    score = jit(lambda e, t: metrics.support_f1(e, t, tolerance=tolerance))
    np.testing.assert_allclose(score(jnp.asarray(found, jnp.float32), jnp.asarray(true, jnp.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("estimate", "f1"),
    [
        ([0, 1, 0, 0, 9, 0, 0, 0, 1, 0], 1),  # exact, whatever the amplitudes
        ([1, 0, 0, 1, 0, 0, 0, 0, 0, -1], 1),  # each one sample off
        ([0, 1, 0, 0, 1, 0, 1, 0, 0, 0], 2 * 2 / 6),  # two samples off is a miss and a false alarm
        ([0, 1, 1, 0, 1, 0, 0, 0, 1, 0], 2 * 3 / 7),  # a split spike is one hit and one false alarm
        ([0] * 10, 0),
        ([0.1] * 10, 0),  # nothing above the threshold
        ([1] * 10, 2 * 3 / 13),  # everything: least squares without a threshold
    ],
)
def test_support_f1_by_hand(estimate, f1):
    np.testing.assert_allclose(metrics.support_f1(jnp.array([estimate], float), TRUTH, threshold=0.5), f1, rtol=1e-6)


def test_support_of_nothing_is_found_by_nothing():
    assert metrics.support_f1(jnp.zeros(10), jnp.zeros(10)) == 1


def test_amplitude_bias_is_that_of_the_nearest_spike(jit):
    bias = jit(metrics.amplitude_bias)
    assert bias(TRUTH, TRUTH) == 0
    np.testing.assert_allclose(bias(0.8 * TRUTH, TRUTH), -0.2, rtol=1e-5)
    shifted = jnp.roll(1.5 * TRUTH, -1, axis=-1)
    np.testing.assert_allclose(bias(shifted, TRUTH), 0.5, rtol=1e-5)
    # 1 found as 1 with a side lobe before it; -2 found with the wrong sign; 3 not found.
    estimate = jnp.array([[-0.5, 1.0, 0, 0, 0, 2.0, 0, 0, 0, 0]])
    np.testing.assert_allclose(bias(estimate, TRUTH), (0 + (-2 - 2)) / (1 + 2), rtol=1e-5)
    # A spike of the estimate serves one true spike only: the other finds the next.
    np.testing.assert_allclose(bias(jnp.array([[0, 2.0, 0, 7.0]]), jnp.array([[0, 1.0, 1.0, 0]])), (1 + 6) / 2, rtol=1e-5)
    assert np.isnan(bias(jnp.roll(TRUTH, 2, axis=-1) * 0, TRUTH))


def test_vmap_gives_one_number_per_trace():
    truth = jnp.concatenate([TRUTH, jnp.roll(TRUTH, 1, axis=-1)])
    estimate = jnp.concatenate([0.5 * TRUTH, jnp.zeros_like(TRUTH)])
    np.testing.assert_allclose(jax.vmap(metrics.support_f1)(estimate, truth), [1, 0])
    np.testing.assert_allclose(jax.vmap(metrics.amplitude_bias)(estimate, truth), [-0.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.support_f1(estimate, truth), 2 * 3 / 9, rtol=1e-6)


def test_bad_options_are_named():
    for score in (metrics.support_f1, metrics.amplitude_bias):
        with pytest.raises(ValueError, match="tolerance must not be negative, got -1"):
            score(TRUTH, TRUTH, tolerance=-1)
        with pytest.raises(ValueError, match=r"threshold must not be negative, got -0\.5"):
            score(TRUTH, TRUTH, threshold=-0.5)
