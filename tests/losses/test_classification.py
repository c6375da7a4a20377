"""Classification losses against closed forms, scikit-learn and optax, and where optax is not right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics

from jaxnets import losses

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(2 * RNG.normal(size=(6, 4)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 3, 3, 0])
SOFT = jnp.asarray(RNG.dirichlet(np.ones(4), 6), jnp.float32)
WEIGHTS = jnp.array([0.5, 2.0, 1.0, 3.0])
LOG_P = scipy.special.log_softmax(np.asarray(LOGITS, np.float64), axis=-1)
OWN = LOG_P[np.arange(6), LABELS]
BY_LABEL = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "smoothed": lambda *a, **k: losses.softmax_cross_entropy(*a, label_smoothing=0.1, **k),
    "softmax_focal": losses.softmax_focal,
    "poly": losses.poly,
    "multiclass_hinge": losses.multiclass_hinge,
    "nll": losses.nll,
}
INF, NAN = np.inf, np.nan


def value_and_gradient(loss, scores, *args, **kwargs):
    """Values, and the gradient of their sum over the finite ones."""
    values, pullback = jax.vjp(lambda s: loss(s, *args, **kwargs), scores)
    return values, pullback(jnp.isfinite(values).astype(values.dtype))[0]


def test_cross_entropy_is_that_of_scikit_learn_and_optax():
    values = jax.jit(losses.softmax_cross_entropy)(LOGITS, LABELS)
    np.testing.assert_allclose(values, -OWN, rtol=1e-5)
    np.testing.assert_allclose(values.mean(), sklearn.metrics.log_loss(LABELS, np.exp(LOG_P)), rtol=1e-5)
    soft = jax.jit(losses.softmax_cross_entropy)(LOGITS, SOFT)
    np.testing.assert_allclose(soft, optax.losses.softmax_cross_entropy(LOGITS, SOFT), rtol=1e-5)
    gradient = jax.grad(lambda x: losses.softmax_cross_entropy(x, LABELS).sum())(LOGITS)
    np.testing.assert_allclose(gradient, np.exp(LOG_P) - np.eye(4)[np.asarray(LABELS)], atol=1e-6)


def test_labels_and_their_one_hot_distribution_agree_in_any_dtype():
    one_hot = jax.nn.one_hot(LABELS, 4)
    for targets in (one_hot, one_hot.astype(int), one_hot.astype(bool), LABELS.astype(jnp.uint8)):
        for options in ({}, {"label_smoothing": 0.2}, {"class_weights": WEIGHTS}):
            expected = losses.softmax_cross_entropy(LOGITS, LABELS, **options)
            np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS, targets, **options), expected, rtol=1e-6)


@pytest.mark.parametrize("name", BY_LABEL)
def test_labels_of_eight_bits_do_not_wrap_around(name):
    """Compared as uint8, 300 classes are 44, and -100 is 156."""
    scores, labels = jnp.zeros((1, 300)).at[0, 156].set(1.0), jnp.array([156], jnp.uint8)
    got = BY_LABEL[name](scores, labels, ignore_index=-100)
    np.testing.assert_array_equal(got, BY_LABEL[name](scores, labels.astype(int)))
    assert got != 0 or name == "multiclass_hinge"
    assert losses.target_weights(labels, ignore_index=-100) == 1


def test_smoothing_and_class_weights_are_those_of_pytorch():
    """Per element: (1 - s) w_y nll_y + s / K Σ_c w_c nll_c."""
    smoothed = optax.losses.softmax_cross_entropy(LOGITS, optax.losses.smooth_labels(jax.nn.one_hot(LABELS, 4), 0.1))
    np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=0.1), smoothed, rtol=1e-5)
    w, y = np.asarray(WEIGHTS), np.asarray(LABELS)
    expected = -(0.9 * w[y] * OWN + 0.1 / 4 * (w * LOG_P).sum(-1))
    both = losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=0.1, class_weights=WEIGHTS)
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    soft = losses.softmax_cross_entropy(LOGITS, SOFT, class_weights=WEIGHTS)
    np.testing.assert_allclose(soft, -(w * np.asarray(SOFT) * LOG_P).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("name", BY_LABEL)
def test_ignored_labels_are_zero_and_foreign_ones_nan_without_a_gradient(name):
    loss, labels = BY_LABEL[name], LABELS.at[1:4].set(jnp.array([-100, -1, 4]))
    values, gradient = value_and_gradient(loss, LOGITS.at[1].set(NAN), labels, ignore_index=-100)
    expected, slope = value_and_gradient(loss, LOGITS, LABELS)
    np.testing.assert_allclose(values, [expected[0], 0, NAN, NAN, *expected[4:]])
    np.testing.assert_allclose(gradient, slope.at[1:4].set(0), rtol=1e-6)
    # Without ignore_index as well the gradient is finite, and a weight of 0 removes the NaN (optax: NaN).
    weights = losses.target_weights(labels, jnp.ones(4), -100).at[2:4].set(0)
    mean = losses.reduce(loss(LOGITS, labels), weights=weights)
    np.testing.assert_allclose(mean, (expected[0] + expected[4] + expected[5]) / 3, rtol=1e-6)
    # A class that is ignored although it exists
    np.testing.assert_array_equal(loss(LOGITS, LABELS, ignore_index=3)[3:5], 0)


@pytest.mark.parametrize("name", BY_LABEL)
def test_a_logit_of_minus_infinity_removes_its_class(name):
    """As if that class did not exist: values and gradients, smoothing included (optax: NaN)."""
    loss, labels = BY_LABEL[name], LABELS % 3
    values, gradient = value_and_gradient(loss, LOGITS.at[:, 3].set(-INF), labels)
    expected, slope = value_and_gradient(loss, LOGITS[:, :3], labels)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.pad(slope, ((0, 0), (0, 1))), rtol=1e-5, atol=1e-7)


def test_a_removed_class_is_infinitely_wrong_and_no_class_at_all_is_nan():
    logits = jnp.array([[0.0, -INF], [-INF, -INF], [NAN, 0.0], [INF, 0.0]])
    values, pullback = jax.vjp(lambda x: losses.softmax_cross_entropy(x, jnp.array([1, 0, 0, 0])), logits)
    np.testing.assert_array_equal(values, [INF, NAN, NAN, NAN])
    assert np.isfinite(pullback(jnp.ones(4))[0]).all()


def test_a_removed_class_of_weight_zero_costs_nothing():
    """A weight multiplies no infinite cost: neither its value nor its gradient is NaN, whatever the label."""
    logits, labels = jnp.array([[0.0, 1.0, -INF]] * 3), jnp.array([0, 2, 2])
    for smoothing in (0.0, 0.3):
        for weights, expected in [([1.0, 1.0, 0.0], 0), ([1.0, 1.0, 2.0], INF)]:
            loss = lambda x, w, s=smoothing: losses.softmax_cross_entropy(x, labels, class_weights=w, label_smoothing=s)  # noqa: E731
            values, pullback = jax.vjp(loss, logits, jnp.array(weights))
            uniform = losses.softmax_cross_entropy(logits[0, :2], jnp.array([0.5, 0.5]))
            np.testing.assert_allclose(values[1:], expected + smoothing * uniform, rtol=1e-6)
            assert all(np.isfinite(g).all() for g in pullback(jnp.ones(3)))


@pytest.mark.parametrize("name", BY_LABEL)
@pytest.mark.parametrize("size", [1e4, 1.6e38])
def test_extreme_logits_stay_finite(name, size):
    logits = size * jnp.array([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0]])
    values, gradient = value_and_gradient(BY_LABEL[name], logits, jnp.array([0, 1, 1]))
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
    if name in ("softmax_cross_entropy", "softmax_focal", "poly"):
        np.testing.assert_allclose(values, [0, 2 * size, *values[2:]], rtol=1e-3)
        np.testing.assert_allclose(gradient[0], 0, atol=1e-6)


def test_a_large_common_offset_costs_no_digits():
    """logsumexp(x) - x_y at 1e4 would keep 3 of them."""
    logits = jnp.array([[1.0, 2.5, -1.0]])
    moved = losses.softmax_cross_entropy(logits + 8192, jnp.array([0]))
    np.testing.assert_allclose(moved, losses.softmax_cross_entropy(logits, jnp.array([0])), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_losses_are_their_formulas(gamma):
    p = np.exp(OWN)
    focal = losses.softmax_focal(LOGITS, LABELS, gamma=gamma)
    np.testing.assert_allclose(focal, -((1 - p) ** gamma) * OWN, rtol=1e-4)
    weighted = losses.softmax_focal(LOGITS, LABELS, gamma=gamma, class_weights=WEIGHTS)
    np.testing.assert_allclose(weighted, focal * WEIGHTS[LABELS], rtol=1e-6)
    targets = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.3, 1.0]), LOGITS.shape)
    for alpha in (None, 0.25):
        expected = optax.losses.sigmoid_focal_loss(LOGITS, targets, gamma=gamma, alpha=alpha)
        np.testing.assert_allclose(losses.sigmoid_focal(LOGITS, targets, gamma=gamma, alpha=alpha), expected, rtol=1e-5)
    if gamma == 0:
        np.testing.assert_allclose(focal, losses.softmax_cross_entropy(LOGITS, LABELS), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_finite_where_the_answer_is_certain(gamma):
    """A power of the 0 that 1 - p rounds to has an infinite slope; optax is NaN at the largest logits."""
    for size in (30.0, 200.0, 1e4, 3e38):
        logits = jnp.array([[size, 0.0], [0.0, size]])
        _, gradient = value_and_gradient(losses.softmax_focal, logits, jnp.array([0, 0]), gamma=gamma)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, [[0, 0], [-1, 1]], atol=1e-6)
        logits = jnp.array([size, size, -size, -size])
        _, gradient = value_and_gradient(losses.sigmoid_focal, logits, jnp.array([1.0, 0.0, 1.0, 0.0]), gamma=gamma)
        np.testing.assert_allclose(gradient, [0, 1, -1, 0], atol=1e-6)


def test_sigmoid_cross_entropy_is_the_binary_log_loss():
    targets = (LABELS[:, None] == jnp.arange(4)[None]).astype(jnp.float32)
    expected = sklearn.metrics.log_loss(np.asarray(targets).ravel(), scipy.special.expit(np.asarray(LOGITS, float)).ravel())
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(LOGITS, targets).mean(), expected, rtol=1e-5)
    np.testing.assert_array_equal(
        losses.sigmoid_cross_entropy(LOGITS, targets.astype(bool)), losses.sigmoid_cross_entropy(LOGITS, targets)
    )
    logits, labels = jnp.array([1e4, -1e4, 3e38, -3e38, 3e38]), jnp.array([1.0, 0.0, 1.0, 1.0, 0.5])
    values, gradient = value_and_gradient(losses.sigmoid_cross_entropy, logits, labels)
    np.testing.assert_allclose(values, [0, 0, 0, 3e38, 1.5e38])
    np.testing.assert_allclose(gradient, [0, 0, 0, -1, 0.5])


def test_a_missing_binary_target_can_be_masked():
    targets, mask = jnp.array([1.0, NAN]), jnp.array([True, False])
    for loss in (losses.sigmoid_cross_entropy, losses.sigmoid_focal, losses.hinge):
        gradient = jax.grad(lambda x, loss=loss: losses.reduce(loss(x, targets), mask=mask))(jnp.array([0.3, 0.4]))
        assert gradient[0] < 0
        assert gradient[1] == 0


def test_hinge_losses_are_those_of_scikit_learn():
    scores, signs = LOGITS[:, 0], jnp.array([1, -1, -1, 1, 1, -1])
    expected = sklearn.metrics.hinge_loss(signs, scores)
    np.testing.assert_allclose(losses.hinge(scores, signs).mean(), expected, rtol=1e-6)
    expected = sklearn.metrics.hinge_loss(LABELS, LOGITS)
    np.testing.assert_allclose(losses.multiclass_hinge(LOGITS, LABELS).mean(), expected, rtol=1e-6)
    np.testing.assert_allclose(
        losses.multiclass_hinge(2 * LOGITS, LABELS, margin=2.0), 2 * losses.multiclass_hinge(LOGITS, LABELS), rtol=1e-6
    )


def test_poly_is_cross_entropy_plus_a_first_power():
    for epsilon in (-1.0, 0.0, 2.0):
        expected = optax.losses.poly_loss_cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 4), epsilon=epsilon)
        np.testing.assert_allclose(losses.poly(LOGITS, LABELS, epsilon=epsilon), expected, rtol=1e-5)


def test_nll_of_log_probabilities_is_cross_entropy_of_logits():
    log_p = jax.nn.log_softmax(LOGITS)
    for targets in (LABELS, SOFT):
        np.testing.assert_allclose(
            losses.nll(log_p, targets, class_weights=WEIGHTS),
            losses.softmax_cross_entropy(LOGITS, targets, class_weights=WEIGHTS),
            rtol=1e-6,
        )


def test_cross_entropy_needs_neither_gather_nor_scatter():
    gradient = jax.grad(lambda x: losses.softmax_cross_entropy(x, LABELS, ignore_index=0).sum())
    with jax.disable_jit(False):
        program = jax.jit(gradient).lower(LOGITS).as_text()
    assert "gather" not in program
    assert "scatter" not in program


def test_options_and_shapes_are_checked(unchecked):
    cross_entropy = losses.softmax_cross_entropy
    for call, message in [
        (
            lambda: cross_entropy(LOGITS, LABELS[:5]),
            r"softmax_cross_entropy: targets must be integer labels of shape \(6,\) or",
        ),
        (lambda: cross_entropy(LOGITS, LABELS.astype(jnp.float32)), r"got float32 of shape \(6,\)\."),
        (lambda: cross_entropy(LOGITS, LABELS, label_smoothing=1.0), r"label_smoothing must be inside \[0, 1\), got 1\.0\."),
        (
            lambda: cross_entropy(LOGITS, LABELS, class_weights=WEIGHTS[:2]),
            r"class_weights must have shape \(4,\), got \(2,\)\.",
        ),
        (lambda: cross_entropy(LOGITS, SOFT, ignore_index=0), r"ignore_index needs integer labels, got float32"),
        (lambda: losses.nll(LOGITS, LABELS[None]), r"nll: targets must be"),
        (lambda: losses.nll(LOGITS, jnp.zeros(LOGITS.shape, jnp.uint8)), r"targets must be integer labels .* got uint8"),
        (
            lambda: losses.softmax_cross_entropy(jnp.zeros((2, 0)), jnp.zeros(2, int)),
            r"at least one class .* got shape \(2, 0\)",
        ),
        (lambda: losses.softmax_focal(LOGITS, LABELS, gamma=-1.0), r"softmax_focal: gamma must not be negative, got -1\.0\."),
        (lambda: losses.softmax_focal(LOGITS, SOFT), r"softmax_focal: targets must be integer labels of shape \(6,\), got"),
        (lambda: losses.sigmoid_focal(LOGITS, LOGITS, alpha=2.0), r"sigmoid_focal: alpha must be inside \[0, 1\], got 2\.0\."),
        (lambda: losses.sigmoid_cross_entropy(LOGITS, LABELS), r"sigmoid_cross_entropy: shapes must be equal"),
        (lambda: losses.hinge(LOGITS, LABELS), r"hinge: shapes must be equal"),
        (lambda: losses.multiclass_hinge(LOGITS, LABELS, margin=0.0), r"multiclass_hinge: margin must be positive, got 0\.0\."),
        (lambda: losses.poly(LOGITS, LABELS, epsilon=-2.0), r"poly: epsilon must be at least -1, got -2\.0\."),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
