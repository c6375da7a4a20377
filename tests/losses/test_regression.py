"""Regression losses against closed forms, SciPy, scikit-learn and mpmath."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxnets import losses

PREDICTION = jnp.array([0.0, 0.5, -3.0, 2.0, 1e4, -3e38])
TARGET = jnp.array([0.0, 0.0, 1.0, 1.5, 0.0, 0.0])
ERROR = np.asarray(PREDICTION - TARGET, np.float64)
SIZE = np.abs(ERROR)


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (losses.absolute, SIZE, np.sign(ERROR)),
        (losses.huber, np.where(SIZE <= 1, ERROR**2 / 2, SIZE - 0.5), np.clip(ERROR, -1, 1)),
        (
            lambda p, t: losses.huber(p, t, delta=0.5),
            np.where(SIZE < 0.5, ERROR**2 / 2, SIZE / 2 - 1 / 8),
            np.clip(ERROR, -0.5, 0.5),
        ),
        (lambda p, t: losses.smooth_l1(p, t, beta=2.0), np.where(SIZE < 2, ERROR**2 / 4, SIZE - 1), np.clip(ERROR / 2, -1, 1)),
        (losses.log_cosh, SIZE + np.log1p(np.exp(-2 * SIZE)) - np.log(2), np.tanh(ERROR)),
        (lambda p, t: losses.quantile(p, t, level=0.25), np.where(ERROR > 0, 0.75, -0.25) * ERROR, None),
    ],
    ids=["absolute", "huber", "huber(0.5)", "smooth_l1(2)", "log_cosh", "quantile"],
)
def test_value_and_slope_are_the_closed_form_up_to_the_largest_floats(loss, value, slope):
    values, pullback = jax.vjp(jax.jit(lambda p: loss(p, TARGET)), PREDICTION)
    gradient = pullback(jnp.ones(6))[0]
    np.testing.assert_allclose(values, value, rtol=1e-6, atol=1e-7)
    assert np.isfinite(gradient).all()
    if slope is not None:
        np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-7)


def test_squared_is_the_square():
    np.testing.assert_allclose(losses.squared(PREDICTION[:5], TARGET[:5]), ERROR[:5] ** 2, rtol=1e-6)
    assert losses.squared(jnp.array([2.5]), jnp.array([1], jnp.int32)).item() == 2.25


def test_log_cosh_keeps_its_digits_near_zero():
    """Against mpmath: optax is 7 % off at 1e-3 and 0 at 1e-5."""
    errors = [1e-12, 1e-5, 1e-3, 0.1, 0.999, 1.0, 1.001, 20.0]
    with mpmath.workdps(40):
        expected = [float(mpmath.log(mpmath.cosh(mpmath.mpf(float(np.float32(e)))))) for e in errors]
    got = losses.log_cosh(jnp.array(errors, jnp.float32), jnp.zeros(len(errors)))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_quantile_is_the_pinball_loss_of_scikit_learn():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 20)).astype("float32")
    for level in (0.1, 0.5, 0.9):
        expected = sklearn.metrics.mean_pinball_loss(target, prediction, alpha=level)
        got = losses.reduce(losses.quantile(jnp.asarray(prediction), jnp.asarray(target), level=level))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_likelihoods_are_those_of_scipy():
    rng = np.random.default_rng(1)
    mean, log_variance, target = rng.normal(size=(3, 8))
    expected = -scipy.stats.norm.logpdf(target, mean, np.exp(log_variance / 2))
    prediction = jnp.asarray(mean, jnp.float32), jnp.asarray(log_variance, jnp.float32)
    np.testing.assert_allclose(losses.gaussian_nll(prediction, jnp.asarray(target, jnp.float32)), expected, rtol=2e-6)
    counts, rate = np.array([0, 1, 2, 7, 40, 300]), np.array([0.1, 1.5, 9.0, 7.0, 35.0, 280.0])
    expected = -scipy.stats.poisson.logpmf(counts, rate)
    got = losses.poisson_nll(jnp.log(jnp.asarray(rate, jnp.float32)), jnp.asarray(counts))
    np.testing.assert_allclose(got, expected, rtol=2e-4)  # float32: differences of terms of 1600 at the last one


@pytest.mark.parametrize("missing", [np.nan, np.inf])
@pytest.mark.parametrize(
    "loss", [losses.squared, losses.absolute, losses.huber, losses.log_cosh, losses.quantile, losses.poisson_nll]
)
def test_a_missing_target_is_visible_and_can_be_masked(loss, missing):
    prediction, target = jnp.array([2.0, 3.0]), jnp.array([1.0, missing])
    assert not np.isfinite(loss(prediction, target)[1])
    value, gradient = jax.value_and_grad(lambda p: losses.reduce(loss(p, target), mask=jnp.array([True, False])))(prediction)
    alone = jax.value_and_grad(lambda p: loss(p, target[:1])[0])(prediction[:1])
    assert value == alone[0]
    np.testing.assert_array_equal(gradient, [alone[1][0], 0])


def test_a_missing_target_of_the_gaussian_can_be_masked():
    target, mask = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    prediction = jnp.array([2.0, 3.0]), jnp.array([0.1, 0.2])
    gradients = jax.grad(lambda p: losses.reduce(losses.gaussian_nll(p, target), mask=mask))(prediction)
    assert all(g[1] == 0 and np.isfinite(g[0]) and g[0] != 0 for g in gradients)


def test_options_and_shapes_are_checked(unchecked):
    x = jnp.ones(3)
    for call, message in [
        (
            lambda: losses.squared(x, jnp.ones((3, 1))),
            r"squared: shapes must be equal, got prediction \(3,\) and target \(3, 1\)",
        ),
        (lambda: losses.huber(x, x, delta=0.0), r"huber: delta must be positive, got 0\.0\."),
        (lambda: losses.smooth_l1(x, x, beta=-1.0), r"smooth_l1: beta must be positive, got -1\.0\."),
        (lambda: losses.quantile(x, x, level=1.0), r"quantile: level must be inside \(0, 1\), got 1\.0\."),
        (lambda: losses.gaussian_nll((x, x[:2]), x), r"gaussian_nll: shapes must be equal"),
        (lambda: losses.poisson_nll(x, x[:2]), r"poisson_nll: shapes must be equal"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
