"""Metric-learning losses against closed forms and optax, and where embeddings coincide or are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial.distance
import scipy.special

from jaxnets import losses

RNG = np.random.default_rng(0)
A, B, C = jnp.asarray(RNG.normal(size=(3, 6, 4)), jnp.float32)
LABELS = jnp.array([0, 1, 0, 2, 1, 2])
PAIR = scipy.spatial.distance.cdist


def test_cosine_is_that_of_scipy_and_in_range():
    expected = np.diag(PAIR(A, B, "cosine"))
    np.testing.assert_allclose(jax.jit(losses.cosine_distance)(A, B), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.cosine_similarity(A, -3 * A), -1, rtol=1e-6)


def test_cosine_is_finite_at_zero_and_right_at_every_scale():
    scale = jnp.array([1e-30, 1e-20, 1e25, 3e37, 1.0, 1.0])[:, None]
    np.testing.assert_allclose(losses.cosine_similarity(scale * A, B), losses.cosine_similarity(A, B), rtol=1e-5)
    zero = jnp.zeros_like(A)
    for first, second in [(zero, B), (A, zero), (zero, zero)]:
        value, gradients = jax.jit(jax.value_and_grad(lambda a, b: losses.cosine_similarity(a, b).sum(), (0, 1)))(first, second)
        assert value == 0
        assert np.isfinite(gradients).all()
    gradient = jax.grad(lambda a: losses.cosine_similarity(a, B).sum())(A)
    np.testing.assert_allclose((gradient * A).sum(-1), 0, atol=1e-6)  # the length doesn't matter: no slope along the vector


def test_contrastive_and_triplet_are_their_formulas():
    distance, same = np.diag(PAIR(A, B)), jnp.array([True, False] * 3)
    expected = np.where(same, distance**2, np.maximum(0, 3 - distance) ** 2) / 2
    np.testing.assert_allclose(losses.contrastive(A, B, same, margin=3.0), expected, rtol=1e-5)
    expected = np.maximum(0, distance - np.diag(PAIR(A, C)) + 0.5)
    np.testing.assert_allclose(losses.triplet(A, B, C, margin=0.5), expected, rtol=1e-5, atol=1e-6)
    optax_triplet = optax.losses.triplet_margin_loss(A, B, C, margin=0.5, eps=0.0)
    np.testing.assert_allclose(losses.triplet(A, B, C, margin=0.5), optax_triplet, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_distances_are_right_where_their_squares_are_not_floats(scale):
    triplet = jax.value_and_grad(lambda a, m: losses.triplet(a, scale * B, scale * C, margin=m).sum())
    value, gradient = triplet(scale * A, 9 * scale)
    distances = np.diag(PAIR(A, B)) - np.diag(PAIR(A, C))
    np.testing.assert_allclose(value / scale, (distances + 9).sum(), rtol=1e-5)
    slope = jax.grad(lambda a: losses.triplet(a, B, C, margin=9.0).sum())(A)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_gradients_are_finite_where_embeddings_coincide():
    same = jnp.array([True, False] * 3)
    gradients = jax.grad(lambda a, b: losses.contrastive(a, b, same).sum(), (0, 1))(A, A)
    assert np.isfinite(gradients).all()
    gradients = jax.grad(lambda a, p, n: losses.triplet(a, p, n).sum(), (0, 1, 2))(A, A, A)
    assert np.isfinite(gradients).all()
    for loss in (losses.info_nce, lambda a, b: losses.supervised_contrastive(a - b, LABELS)):
        slopes = jax.jit(jax.value_and_grad(lambda a, b, f=loss: f(a, b).sum(), (0, 1)))
        for embeddings in (jnp.zeros_like(A), jnp.ones_like(A)):
            value, gradients = slopes(embeddings, embeddings)
            assert np.isfinite(value)
            assert np.isfinite(gradients).all()


def test_info_nce_is_the_cross_entropy_of_the_diagonal():
    similarity = (1 - PAIR(A, B, "cosine")) / 0.2
    expected = -np.diag(scipy.special.log_softmax(similarity, axis=1))
    np.testing.assert_allclose(jax.jit(lambda a, b: losses.info_nce(a, b, temperature=0.2))(A, B), expected, rtol=1e-5)
    slope = jax.grad(lambda t: losses.info_nce(A, B, temperature=t).sum())(jnp.array(0.2))  # it may be learned
    steps = [losses.info_nce(A, B, temperature=t).sum() for t in (0.21, 0.19)]
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / 0.02, rtol=1e-2)


def test_supervised_contrastive_is_ntxent_on_pairs_and_its_formula_on_groups():
    np.testing.assert_allclose(
        losses.supervised_contrastive(A, LABELS, temperature=0.5).mean(), optax.losses.ntxent(A, LABELS, 0.5), rtol=1e-5
    )
    labels = np.array([0, 0, 0, 1, 1, 2])
    similarity = (1 - PAIR(A, A, "cosine")) / 0.1
    np.fill_diagonal(similarity, -np.inf)
    log_p = scipy.special.log_softmax(similarity, axis=1)
    positives = [np.flatnonzero((labels == labels[i]) & (np.arange(6) != i)) for i in range(6)]
    expected = [-log_p[i, others].mean() if len(others) else 0 for i, others in enumerate(positives)]
    np.testing.assert_allclose(losses.supervised_contrastive(A, jnp.asarray(labels)), expected, rtol=1e-5)


def test_an_example_alone_has_value_zero_and_gradient_zero():
    for embeddings in (A, A[:1]):
        size = len(embeddings)
        value, gradient = jax.value_and_grad(lambda a, n=size: losses.supervised_contrastive(a, jnp.arange(n)).sum())(
            embeddings
        )
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_options_and_shapes_are_checked(unchecked):
    for call, message in [
        (lambda: losses.cosine_similarity(A, B[:3]), r"cosine_similarity: shapes must be equal, got first \(6, 4\)"),
        (lambda: losses.cosine_distance(A, B[0]), r"cosine_distance: shapes must be equal"),
        (
            lambda: losses.contrastive(A, B, LABELS[:2] > 0),
            r"contrastive: shapes must be equal, got pairs \(6,\) and same \(2,\)",
        ),
        (lambda: losses.contrastive(A, B, LABELS > 0, margin=0.0), r"contrastive: margin must be positive, got 0\.0\."),
        (lambda: losses.triplet(A, B, C[:1]), r"triplet: shapes must be equal"),
        (lambda: losses.triplet(A, B, C, margin=-1.0), r"triplet: margin must be positive, got -1\.0\."),
        (lambda: losses.info_nce(A, B[:5]), r"info_nce: shapes must be equal"),
        (lambda: losses.info_nce(A, B, temperature=0.0), r"info_nce: temperature must be positive, got 0\.0\."),
        (lambda: losses.supervised_contrastive(A, LABELS[:5]), r"supervised_contrastive: shapes must be equal"),
        (lambda: losses.supervised_contrastive(A, LABELS, temperature=-1), r"temperature must be positive, got -1\."),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
