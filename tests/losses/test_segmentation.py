"""Region losses against their formulas in NumPy, optax, and scikit-learn's Jaccard index; hard-example mining by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics

from jaxnets import losses

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(2, 3, 5, 4)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, (2, 3, 5)))  # class 3 is absent
VOID = LABELS.at[:, 0].set(255)
P, T = np.asarray(jax.nn.softmax(LOGITS), np.float64), np.eye(4)[np.asarray(LABELS)]
REGIONS = [losses.dice, losses.tversky, losses.generalized_dice, losses.lovasz_softmax]


def hard(labels):
    """Logits sure of these labels."""
    return 1000.0 * jax.nn.one_hot(labels, 4)


def lovasz_by_algorithm_1(p, foreground):
    """Berman et al., algorithm 1, for one class, with their differences of the sorted Jaccard losses."""
    errors = np.abs(foreground - p)
    order = np.argsort(-errors)
    sorted_foreground = foreground[order]
    intersection = foreground.sum() - np.cumsum(sorted_foreground)
    union = foreground.sum() + np.cumsum(1 - sorted_foreground)
    return errors[order] @ np.diff(1 - intersection / union, prepend=0)


def test_dice_and_tversky_are_their_formulas_and_optax():
    hit, false_positive, false_negative = (x.sum((1, 2)) for x in (P * T, P * (1 - T), (1 - P) * T))
    expected = 1 - ((hit + 0.5) / (hit + 0.3 * false_positive + 0.8 * false_negative + 0.5)).mean(-1)
    got = jax.jit(lambda x: losses.tversky(x, LABELS, alpha=0.3, beta=0.8, smooth=0.5))(LOGITS)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    one_hot = jax.nn.one_hot(LABELS, 4)
    np.testing.assert_allclose(losses.dice(LOGITS, LABELS), optax.losses.dice_loss(LOGITS, one_hot), rtol=1e-5)
    np.testing.assert_allclose(
        losses.dice(LOGITS, LABELS, smooth=1e-9), 1 - np.mean(2 * hit / (P + T).sum((1, 2)), -1), rtol=1e-5
    )
    for loss in REGIONS[:3]:
        np.testing.assert_allclose(loss(LOGITS, one_hot), loss(LOGITS, LABELS), rtol=1e-6)


def test_generalized_dice_weighs_each_class_by_its_squared_area():
    area = T.sum((1, 2))
    weight = np.where(area > 0, 1 / np.maximum(area, 1) ** 2, 0)
    overlap, total = (weight * (P * T).sum((1, 2))).sum(-1), (weight * (P + T).sum((1, 2))).sum(-1)
    np.testing.assert_allclose(losses.generalized_dice(LOGITS, LABELS), 1 - 2 * overlap / total, rtol=1e-5)


def test_generalized_dice_sees_errors_when_a_class_is_absent():
    """Half of four pixels wrong, one of three classes absent: 1/2, where optax has 1.7e-8."""
    got = losses.generalized_dice(hard(jnp.array([[0, 1, 0, 1]])), jnp.array([[0, 0, 1, 1]]))
    np.testing.assert_allclose(got, 0.5, rtol=1e-6)


def test_generalized_dice_takes_soft_areas_of_any_size():
    """1 / area² of float32 is inf below 1e-19; a class that small outweighs every other one."""
    target = jnp.zeros((1, 4, 3)).at[..., 0].set(1.0).at[0, :, 1].set(1e-25)
    value, gradient = jax.value_and_grad(lambda x: losses.generalized_dice(x, target)[0])(jnp.zeros((1, 4, 3)))
    np.testing.assert_allclose(value, 1, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_lovasz_is_algorithm_1_of_the_paper():
    expected = [
        np.mean([lovasz_by_algorithm_1(p[:, c], t[:, c]) for c in range(4) if t[:, c].any()])
        for p, t in zip(P.reshape(2, -1, 4), T.reshape(2, -1, 4), strict=True)
    ]
    np.testing.assert_allclose(jax.jit(losses.lovasz_softmax)(LOGITS, LABELS), expected, rtol=1e-5)


def test_lovasz_of_a_hard_prediction_is_one_minus_the_jaccard_index():
    predicted = (LABELS + (jnp.arange(5) // 3)[None, None]) % 3
    got = losses.lovasz_softmax(hard(predicted), LABELS)
    index = [
        sklearn.metrics.jaccard_score(t.ravel(), p.ravel(), average="macro", labels=np.unique(t))
        for t, p in zip(np.asarray(LABELS), np.asarray(predicted), strict=True)
    ]
    np.testing.assert_allclose(got, 1 - np.array(index), rtol=1e-5)


@pytest.mark.parametrize("loss", REGIONS)
def test_ignored_pixels_are_as_good_as_cut_out(loss):
    """Whatever the network says there, NaN included."""
    void = jax.value_and_grad(lambda x: loss(x, VOID, ignore_index=255).sum())
    cut = jax.value_and_grad(lambda x: loss(x, LABELS[:, 1:]).sum())
    value, gradient = jax.jit(void)(LOGITS.at[:, 0].set(jnp.nan))
    expected, slope = jax.jit(cut)(LOGITS[:, 1:])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, 0], 0)
    np.testing.assert_allclose(gradient[:, 1:], slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("loss", REGIONS)
def test_region_losses_go_from_zero_to_nearly_one(loss):
    labels = LABELS % 2
    np.testing.assert_allclose(loss(hard(labels), labels), 0, atol=1e-6)
    wrong = np.asarray(loss(hard(labels + 2), labels))
    assert (wrong > 0.6).all()
    assert (wrong <= 1).all()
    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(x, jnp.full_like(LABELS, 9), ignore_index=9).sum()))(LOGITS)
    np.testing.assert_allclose(value, 0, atol=1e-6)  # nothing to be wrong about
    np.testing.assert_array_equal(gradient, 0)
    assert np.isnan(loss(LOGITS, LABELS.at[0, 0, 0].set(9))).tolist() == [True, False]  # no such class


def test_hard_examples_are_those_above_the_threshold_or_else_the_largest():
    values = np.asarray(RNG.permutation(20) / 10, np.float32).reshape(4, 5)
    for threshold, min_kept in [(1.05, 1), (1.05, 15), (5.0, 3), (-1.0, 2), (5.0, 0), (5.0, 99)]:
        kept = jax.jit(lambda v, t=threshold, k=min_kept: losses.ohem(v, threshold=t, min_kept=k))(jnp.asarray(values))
        count = max((values > threshold).sum(), min(min_kept, 20))
        expected = np.isin(values, np.sort(values, axis=None)[20 - count :])
        np.testing.assert_array_equal(kept, expected)


def test_hard_examples_come_from_the_mask_only_and_bring_their_gradient():
    values, mask = jnp.array([jnp.nan, 3.0, 2.0, 0.1, jnp.inf]), jnp.array([False, True, True, True, False])
    np.testing.assert_array_equal(losses.ohem(values, min_kept=1, mask=mask), [False, True, True, False, False])
    np.testing.assert_array_equal(losses.ohem(values, min_kept=4, mask=mask), mask)
    assert losses.ohem(values)[0]  # a NaN that nothing masks stays to be seen
    mean = jax.grad(lambda v: losses.reduce(v, mask=losses.ohem(v, min_kept=2, mask=mask)))(values)
    np.testing.assert_array_equal(mean, [0, 0.5, 0.5, 0, 0])


def test_default_threshold_of_hard_examples_is_a_probability_of_seven_tenths():
    logits = jnp.log(jnp.array([[0.69, 0.31], [0.71, 0.29], [0.01, 0.99]]))
    kept = losses.ohem(losses.softmax_cross_entropy(logits, jnp.zeros(3, int)))
    np.testing.assert_array_equal(kept, [True, False, True])


def test_options_and_shapes_are_checked(unchecked):
    for call, message in [
        (lambda: losses.dice(LOGITS, LABELS[:, 0]), r"dice: targets must be integer labels of shape \(2, 3, 5\) or"),
        (lambda: losses.dice(LOGITS[..., :1], LABELS), r"dice: logits need at least 2 classes, got 1"),
        (lambda: losses.dice(LOGITS, LABELS, smooth=0.0), r"dice: smooth must be positive, got 0\.0\."),
        (
            lambda: losses.tversky(LOGITS, LABELS, alpha=-1.0),
            r"tversky: alpha must not be negative, got -1\.0\.",
        ),
        (lambda: losses.tversky(LOGITS, LOGITS, ignore_index=0), r"tversky: ignore_index needs integer labels, got float32"),
        (lambda: losses.lovasz_softmax(LOGITS, LOGITS), r"lovasz_softmax: targets must be integer labels of shape"),
        (lambda: losses.ohem(LOGITS, min_kept=-1), r"ohem: min_kept must not be negative, got -1\."),
        (lambda: losses.ohem(LOGITS, mask=LABELS > 0), r"ohem: shapes must be equal"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
