"""Divergences against SciPy, and at the zeros where a gradient is easily NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxnets import losses

P, Q = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3)).astype("float32")


def test_both_directions_are_the_relative_entropy_of_scipy():
    forward = jax.jit(losses.kl_divergence)(jnp.log(Q), jnp.asarray(P))
    reverse = jax.jit(losses.reverse_kl_divergence)(jnp.log(Q), jnp.asarray(P))
    np.testing.assert_allclose(forward, scipy.stats.entropy(P, Q, axis=1), rtol=1e-5)
    np.testing.assert_allclose(reverse, scipy.stats.entropy(Q, P, axis=1), rtol=1e-5)
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(P), jnp.asarray(P)), 0, atol=1e-7)


def test_a_class_of_probability_zero_adds_nothing():
    """p = (1/2, 1/2, 0), q = (1/4, 3/4, 0): log(2) / 2 + log(2/3) / 2 one way."""
    log_q, p = jnp.log(jnp.array([0.25, 0.75, 0.0])), jnp.array([0.5, 0.5, 0.0])
    value, gradients = jax.value_and_grad(losses.kl_divergence, (0, 1))(log_q, p)
    np.testing.assert_allclose(value, np.log(4 / 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], -p)
    assert np.isfinite(gradients[1]).all()
    value, gradients = jax.value_and_grad(losses.reverse_kl_divergence, (0, 1))(log_q, p)
    np.testing.assert_allclose(value, 0.25 * np.log(0.5) + 0.75 * np.log(1.5), rtol=1e-6)
    assert np.isfinite(gradients).all()


def test_an_impossible_class_costs_infinitely_much_with_a_finite_gradient():
    sure, even = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])
    for loss, log_q, p in [(losses.kl_divergence, jnp.log(sure), even), (losses.reverse_kl_divergence, jnp.log(even), sure)]:
        value, gradient = jax.value_and_grad(loss)(log_q, p)
        assert value == np.inf
        assert np.isfinite(gradient).all()


def test_what_is_missing_or_broken_is_no_class_of_probability_zero():
    even, nan = jnp.log(jnp.array([0.5, 0.5])), jnp.full(2, jnp.nan)
    for loss in (losses.kl_divergence, losses.reverse_kl_divergence):
        assert np.isnan(loss(even, nan))
        np.testing.assert_array_equal(jax.grad(loss)(even, nan), 0)
    assert not np.isfinite(losses.reverse_kl_divergence(jnp.array([0.0, jnp.nan]), jnp.array([1.0, 0.0])))


def test_gaussian_kl_is_the_closed_form_and_zero_only_at_the_prior():
    mean, log_variance = jnp.array([0.0, 1.0, -2.0, 0.0]), jnp.array([0.0, 0.0, 1.0, -3.0])
    variance = np.exp(np.asarray(log_variance))
    expected = (np.asarray(mean) ** 2 + variance - 1 - np.log(variance)) / 2
    np.testing.assert_allclose(losses.gaussian_kl(mean, log_variance), expected, rtol=1e-6, atol=1e-7)
    # by quadrature as well: ∫ N(m, σ²) log(N(m, σ²) / N(0, 1))
    x = np.linspace(-12, 12, 4001)
    density = scipy.stats.norm(-2, np.exp(0.5))
    integral = np.trapezoid(density.pdf(x) * (density.logpdf(x) - scipy.stats.norm.logpdf(x)), x)
    np.testing.assert_allclose(losses.gaussian_kl(mean, log_variance)[2], integral, rtol=1e-4)


def test_shapes_are_checked(unchecked):
    for loss in (losses.kl_divergence, losses.reverse_kl_divergence, losses.gaussian_kl):
        with pytest.raises(ValueError, match=rf"{loss.__name__}: shapes must be equal"):
            loss(jnp.ones(3), jnp.ones(2))
