"""Metrics of generated samples: closed forms of Gaussians, SciPy and scikit-learn in float64, invariances, planted copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import sklearn.neighbors

from jaxnets import metrics


def samples(seed, size, features=4, scale=1.0, mean=0.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(mean + scale * rng.normal(size=(size, features)), "float32")


X, Y = samples(0, 40), samples(1, 30, scale=1.5, mean=0.3)


def frechet_by_scipy(x, y):
    """The formula as it stands, in float64."""
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.real(scipy.linalg.sqrtm(a @ b))
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root)


def frechet_by_singular_values(x, y):
    """`|m₁ - m₂|² + tr C₁ + tr C₂ - 2 Σ σ(A Bᵀ)`, in float64: also with fewer samples than features, where `sqrtm` fails."""
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    a, b = ((s - s.mean(0)) / np.sqrt(len(s) - 1) for s in (x, y))
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * nuclear


def measure(metric, x, weight=None):
    return metric.compute(metric.update(metric.init(), x, weight=weight))


# ---------------------------------------------------------------------------------------------------------- Fréchet distance


def test_frechet_equals_scipy_from_samples_and_from_moments(jit):
    expected = frechet_by_scipy(X, Y)
    np.testing.assert_allclose(jit(metrics.frechet)(X, Y), expected, rtol=1e-5)
    metric = metrics.moments(4)
    by_moments = jit(lambda x, y: metrics.frechet_of_moments(measure(metric, x), measure(metric, y)))(X, Y)
    np.testing.assert_allclose(by_moments, expected, rtol=1e-4)


def test_frechet_of_gaussians_with_common_axes_is_the_distance_of_their_deviations():
    """`|m₁ - m₂|² + Σ (s₁ - s₂)²`, also where deviations are 0 or equal."""
    means = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 0.0])
    deviations = jnp.array([1.0, 0.0, 3.0]), jnp.array([4.0, 0.5, 3.0])
    a, b = (metrics.Moments(m, jnp.diag(s**2), jnp.array(9.0)) for m, s in zip(means, deviations, strict=True))
    np.testing.assert_allclose(metrics.frechet_of_moments(a, b), 5 + 9 + 0.25, rtol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (5, 20), (20, 5)])
def test_frechet_holds_with_fewer_samples_than_features(n, m):
    x, y = samples(2, n, 12), samples(3, m, 12, scale=2.0)
    np.testing.assert_allclose(metrics.frechet(x, y), frechet_by_singular_values(x, y), rtol=1e-5)


def test_frechet_keeps_its_digits_between_near_sets_far_from_the_origin():
    """The difference of traces has none left in float32: the distance is 1e-8 of the trace."""
    x = samples(4, 50, 6, mean=10.0)
    y = x + 1e-4 * samples(5, 50, 6)
    expected = frechet_by_singular_values(x, y)
    assert expected < 2e-8 * np.trace(np.cov(np.asarray(x).T))
    np.testing.assert_allclose(metrics.frechet(x, y), expected, rtol=0.1)


def test_frechet_is_symmetric_and_sees_no_rotation_order_or_common_shift():
    rotation = jnp.asarray(scipy.stats.ortho_group.rvs(4, random_state=0), "float32")
    expected = metrics.frechet(X, Y)
    assert metrics.frechet(X, X) < 1e-10
    np.testing.assert_allclose(metrics.frechet(Y, X), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.frechet(X @ rotation, Y @ rotation), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.frechet(X[::-1] + 5, Y + 5), expected, rtol=1e-5)


def test_frechet_works_in_float64_and_takes_half_precision():
    half = metrics.frechet(X.astype("bfloat16"), Y.astype("bfloat16"))
    assert half.dtype == "float32"
    np.testing.assert_allclose(half, frechet_by_scipy(X.astype("bfloat16"), Y.astype("bfloat16")), rtol=1e-5)
    with jax.enable_x64(True):
        x, y = jnp.asarray(np.asarray(X, "float64")), jnp.asarray(np.asarray(Y, "float64"))
        np.testing.assert_allclose(metrics.frechet(x, y), frechet_by_scipy(X, Y), rtol=1e-12)
        a, b = (measure(metrics.moments(4), s) for s in (x, y))
        np.testing.assert_allclose(metrics.frechet_of_moments(a, b), frechet_by_scipy(X, Y), rtol=1e-11)


@pytest.mark.parametrize(("n", "features"), [(9, 3), (4, 6)], ids=["more samples", "fewer samples"])
def test_the_gradient_of_frechet_equals_differences_in_float64(jit, n, features):
    with jax.enable_x64(True):
        x, y, direction = (jnp.asarray(np.random.default_rng(i).normal(size=(n, features))) for i in range(3))
        slope = jnp.vdot(jit(jax.grad(metrics.frechet))(x, y), direction)
        ahead, behind = (frechet_by_singular_values(x + h * direction, y) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


def test_the_gradient_for_a_covariance_is_finite_at_equal_eigenvalues():
    """With C₁ = I and C₂ = 4 I the derivative is `I - C₂^½ = -I`, where the derivative of `eigh` is NaN."""

    def distance(covariance):
        mean, count = jnp.zeros(3), jnp.array(9.0)
        return metrics.frechet_of_moments(
            metrics.Moments(mean, covariance, count), metrics.Moments(mean, 4 * jnp.eye(3), count)
        )

    np.testing.assert_allclose(jax.grad(distance)(jnp.eye(3)), -np.eye(3), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------- moments


def test_moments_are_those_of_numpy_over_uneven_batches_with_padding(jit):
    metric = metrics.moments(4)
    update, state = jit(metric.update), metric.init()
    padded = jnp.concatenate([X[:35], jnp.full((5, 4), jnp.nan)]).reshape(2, 20, 4)
    for batch, mask in zip(padded, (jnp.arange(40) < 35).reshape(2, 20), strict=True):
        state = update(state, batch, weight=mask)
    found = metric.compute(state)
    np.testing.assert_allclose(found.mean, np.mean(X[:35], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(np.asarray(X[:35]).T), rtol=1e-5, atol=1e-6)
    assert found.count == 35


def test_moments_of_states_that_merge_are_those_of_all_samples_and_weights_repeat():
    metric = metrics.moments(4)
    states = [metric.update(metric.init(), x) for x in (X[:7], X[7:])]
    merged = metric.compute(jax.tree.map(jnp.add, *states))
    twice = measure(metric, X, jnp.full(40, 2.0))
    for a, b in zip((merged, twice), (measure(metric, X), measure(metric, jnp.concatenate([X, X]))), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)
    members = jax.vmap(metric.update, (None, 0))(metric.init(), X.reshape(2, 20, 4))
    np.testing.assert_allclose(metric.compute(members).covariance[1], np.cov(np.asarray(X[20:]).T), rtol=1e-5, atol=1e-6)


def test_a_shift_keeps_the_digits_that_a_large_mean_costs():
    far = X + 1000
    expected = np.cov(np.asarray(far, "float64").T)
    plain, shifted = (measure(metrics.moments(4, shift=shift), far) for shift in (None, far[0]))
    assert np.abs(plain.covariance - expected).max() > 1e-2
    np.testing.assert_allclose(shifted.covariance, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shifted.mean, np.mean(np.asarray(far, "float64"), axis=0), rtol=1e-7)


# --------------------------------------------------------------------------------------------------------- nearest neighbors


@pytest.mark.parametrize("block", [7, 64])
def test_nearest_are_those_of_sklearn_whatever_the_block(jit, block):
    found = jit(lambda x, y: metrics.nearest(x, y, k=3, block=block))(X, Y)
    distance, index = sklearn.neighbors.NearestNeighbors(n_neighbors=3, algorithm="brute").fit(Y).kneighbors(X)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-5)
    np.testing.assert_array_equal(found.index, index)


def test_a_copy_is_at_distance_zero_far_from_the_origin_too():
    far = Y + 1000
    found = metrics.nearest(far[::-1], far)
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(len(Y))[::-1])


@pytest.mark.parametrize("k", [1, 3])
def test_manifold_scores_equal_their_definitions(jit, k):
    scores = jit(lambda x, y: metrics.manifold_scores(x, y, k=k, block=16))(X, Y)
    between, among, generated = (scipy.spatial.distance.cdist(*pair) for pair in ((X, Y), (X, X), (Y, Y)))
    balls = between <= np.sort(among)[:, k, None]
    recalled = (between <= np.sort(generated)[:, k]).any(1)
    expected = [balls.any(0).mean(), recalled.mean(), balls.sum(0).mean() / k, balls.any(1).mean()]
    assert 0 < min(expected) < max(expected)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_manifold_scores_of_the_real_samples_themselves_are_full():
    """Each ball holds its own sample and, its edge included, k others: density (k + 1) / k."""
    scores = metrics.manifold_scores(X + 30, X + 30, k=4)
    np.testing.assert_allclose(scores, [1, 1, 5 / 4, 1], rtol=1e-6)
    np.testing.assert_array_equal(metrics.manifold_scores(X, Y + 100, k=4), 0)


def test_lost_modes_lower_recall_and_coverage_and_strays_lower_precision_and_density():
    real = jnp.concatenate([X, X[::-1] * 0.9 + 50])
    lost = metrics.manifold_scores(real, samples(7, 40))
    strays = metrics.manifold_scores(X, jnp.concatenate([samples(7, 40), samples(8, 40, mean=-50.0)]))
    assert lost.precision > 0.8
    assert lost.density > 0.7
    assert lost.recall <= 0.5
    assert lost.coverage <= 0.5
    assert strays.recall > 0.8
    assert strays.coverage > 0.8
    assert strays.precision <= 0.5
    assert strays.density <= 0.6


# -------------------------------------------------------------------------------------------------------------- memorization

TRAINING, HELD_OUT = samples(10, 80), samples(11, 60)


def test_new_samples_of_the_same_distribution_show_no_memorization():
    found = metrics.memorization(samples(12, 60), TRAINING, HELD_OUT)
    assert 0.8 < found.ratio < 1.25
    assert abs(found.z_score) < 3


def test_memorization_counts_planted_copies_and_shows_which_they_are(jit):
    fresh, score = samples(13, 60), jit(metrics.memorization)
    found = score(jnp.concatenate([fresh[:45], TRAINING[5:20] + 1e-3]), TRAINING, HELD_OUT)
    np.testing.assert_array_equal(found.nearest.index[45:, 0], np.arange(5, 20))
    np.testing.assert_allclose(found.nearest.distance[45:], 2e-3, rtol=1e-2)  # 1e-3 in each of four features
    assert 15 <= found.copies <= 20
    all_copies, far = (score(s, TRAINING, HELD_OUT) for s in (TRAINING[:60] + 1e-3, 3 * fresh))
    assert all_copies.copies == 60
    assert all_copies.ratio < 0.01
    assert all_copies.z_score < -3
    assert far.z_score > 3


def test_memorization_equals_scipy_ranks_and_the_written_criteria():
    generated = jnp.concatenate([HELD_OUT[:30], TRAINING[:15] + 0.02, 2 * X[:15]])  # with ties
    found = metrics.memorization(generated, TRAINING, HELD_OUT, share=0.5)
    ours, usual = (np.sort(scipy.spatial.distance.cdist(s, TRAINING)) for s in (generated, HELD_OUT))
    n, m = len(ours), len(usual)
    u = scipy.stats.mannwhitneyu(ours[:, 0], usual[:, 0]).statistic
    np.testing.assert_allclose(found.z_score, (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12), rtol=1e-4)
    np.testing.assert_allclose(found.ratio, np.median(ours[:, 0]) / np.median(usual[:, 0]), rtol=1e-4)
    assert found.copies == (ours[:, 0] < 0.5 * ours[:, 1]).sum() > 10
    assert found.held_out_copies == (usual[:, 0] < 0.5 * usual[:, 1]).sum() > 0


def test_a_copy_of_a_training_sample_that_is_there_twice_counts():
    twice = jnp.concatenate([TRAINING, TRAINING])
    assert metrics.memorization(TRAINING[:60], twice, HELD_OUT).copies == 60


# -------------------------------------------------------------------------------------------------------------------- errors


def test_bad_arguments_are_named():
    narrow = X[:, :3]
    with pytest.raises(ValueError, match="frechet: y must hold at least 2 samples, got 1"):
        metrics.frechet(X, Y[:1])
    with pytest.raises(ValueError, match=r"frechet: expected sets of the same number of features, got {'x': 4, 'y': 3}"):
        metrics.frechet(X, narrow)
    with pytest.raises(ValueError, match="expected moments of the same width"):
        metrics.frechet_of_moments(measure(metrics.moments(4), X), measure(metrics.moments(3), narrow))
    with pytest.raises(ValueError, match="moments: features must be at least 1, got 0"):
        metrics.moments(0)
    with pytest.raises(ValueError, match=r"moments: shift must have shape \(4,\), got \(3,\)"):
        metrics.moments(4, shift=jnp.zeros(3))
    with pytest.raises(ValueError, match="moments: expected samples of 4 features, got 3"):
        measure(metrics.moments(4), narrow)
    with pytest.raises(ValueError, match=r"nearest: k must be in \[1, samples of y\] = \[1, 30\], got 31"):
        metrics.nearest(X, Y, k=31)
    with pytest.raises(ValueError, match="nearest: block must be at least 1, got 0"):
        metrics.nearest(X, Y, block=0)
    with pytest.raises(ValueError, match=r"manifold_scores: k must be in \[1, samples - 1\] = \[1, 29\], got 30"):
        metrics.manifold_scores(X, Y, k=30)
    with pytest.raises(ValueError, match="manifold_scores: generated must hold at least 2 samples"):
        metrics.manifold_scores(X, Y[:1])
    with pytest.raises(ValueError, match=r"memorization: share must be in \(0, 1\], got 0"):
        metrics.memorization(X, X, Y, share=0)
    with pytest.raises(ValueError, match="memorization: training must hold at least 2 samples, got 1"):
        metrics.memorization(X, X[:1], Y)
