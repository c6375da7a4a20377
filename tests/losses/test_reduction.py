"""The one reduction: weighted means to the digit, and nothing from a masked place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import losses

NAN, INF = np.nan, np.inf


def test_mean_divides_by_the_weight_that_counted(jit):
    values, weights = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), jnp.array([[1.0, 2.0, 0.0], [3.0, 0.5, 4.0]])
    mask = jnp.array([[True, True, True], [True, False, True]])
    counted = np.asarray(weights * mask)
    kwargs = {"weights": weights, "mask": mask}
    mean = jit(lambda v: losses.reduce(v, **kwargs))(values)
    np.testing.assert_allclose(mean, np.average(values, weights=counted), rtol=1e-6)
    rows = jit(lambda v: losses.reduce(v, axis=1, **kwargs))(values)
    np.testing.assert_allclose(rows, np.average(values, weights=counted, axis=1), rtol=1e-6)
    np.testing.assert_allclose(losses.reduce(values, "sum", **kwargs), np.sum(values * counted), rtol=1e-6)
    np.testing.assert_allclose(losses.reduce(values, "none", **kwargs), values * counted, rtol=1e-6)
    np.testing.assert_allclose(losses.reduce(values), 3.5)


def test_axes_of_length_one_repeat_and_count_as_often():
    values = jnp.array([[1.0, 2.0], [4.0, 8.0]])
    np.testing.assert_allclose(losses.reduce(values, weights=jnp.array([[3.0], [1.0]])), (9 + 12) / 8)
    np.testing.assert_allclose(losses.reduce(values, mask=jnp.array([[False, True]])), 5.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_is_masked_reaches_neither_value_nor_gradient(reduction, bad):
    values, weights, mask = jnp.array([1.0, bad, 3.0, bad]), jnp.array([1.0, 0.0, 2.0, 1.0]), jnp.array([1, 1, 1, 0], bool)

    def total(values, weights):
        return losses.reduce(values, reduction, weights=weights, mask=mask).sum()

    value, (by_values, by_weights) = jax.value_and_grad(total, (0, 1))(values, weights)
    clean = jax.value_and_grad(total)(jnp.nan_to_num(values, posinf=0, neginf=0), weights)
    assert np.isfinite(value)
    assert value == clean[0]
    np.testing.assert_array_equal(by_values, clean[1])
    assert np.isfinite(by_weights).all()
    assert by_values[0] > 0


def test_an_unmasked_nan_stays_visible():
    assert np.isnan(losses.reduce(jnp.array([1.0, NAN])))
    assert np.isnan(losses.reduce(jnp.array([1.0, 2.0]), weights=jnp.array([1.0, NAN])))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_reduces_to_zero_with_gradient_zero(reduction):
    def total(v, mask):
        return losses.reduce(v, reduction, mask=mask)

    value, gradient = jax.value_and_grad(total)(jnp.array([NAN, 2.0]), jnp.array([False, False]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert losses.reduce(jnp.zeros((0,)), reduction) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    values, weights = jax.random.uniform(jax.random.key(0), (2, 32, 300)).astype(dtype)
    exact = np.average(np.asarray(values, float), axis=1, weights=np.asarray(weights, float))
    mean = losses.reduce(values, weights=weights, axis=1)
    assert mean.dtype == dtype
    np.testing.assert_array_equal(mean, jnp.asarray(exact, dtype))
    assert losses.reduce(values, "none").dtype == dtype
    assert losses.reduce(values, "sum").dtype == dtype


def test_target_weights_give_the_weighted_mean_of_pytorch():
    """`torch.nn.functional.cross_entropy(weight=, ignore_index=)`: Σ w_y nll / Σ w_y over the targets not ignored."""
    rng = np.random.default_rng(0)
    logits, labels, class_weights = rng.normal(size=(2, 3, 4)), np.array([[0, 3, -100], [2, 2, 1]]), np.array([0.5, 2, 1, 3])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    kept = [(i, j) for i in range(2) for j in range(3) if labels[i, j] >= 0]
    weight = [class_weights[labels[i]] for i in kept]
    expected = sum(-log_p[i][labels[i]] * w for i, w in zip(kept, weight, strict=True)) / sum(weight)

    labels = jnp.asarray(labels)
    values = losses.softmax_cross_entropy(jnp.asarray(logits), labels)  # -100 without ignore_index: NaN, weight 0
    weights = losses.target_weights(labels, jnp.asarray(class_weights), ignore_index=-100)
    np.testing.assert_allclose(losses.reduce(values, weights=weights), expected, rtol=1e-6)
    weighted = losses.softmax_cross_entropy(
        jnp.asarray(logits), labels, class_weights=jnp.asarray(class_weights), ignore_index=-100
    )
    np.testing.assert_allclose(weighted.sum() / weights.sum(), expected, rtol=1e-6)


def test_target_weights_show_a_label_out_of_range_and_hide_an_ignored_one():
    labels = jnp.array([0, 1, 255, 2, -1], jnp.int16)
    np.testing.assert_array_equal(losses.target_weights(labels, jnp.array([3.0, 4.0]), 255), [3, 4, 0, NAN, NAN])
    np.testing.assert_array_equal(losses.target_weights(labels, ignore_index=1), [1, 0, 1, 1, 1])
    np.testing.assert_array_equal(losses.target_weights(labels.astype(jnp.uint8)), np.ones(5))


def test_reduce_refuses_what_it_does_not_know(unchecked):
    values = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"reduce: reduction must be one of mean, sum, none, got 'avg'\."):
        losses.reduce(values, "avg")
    with pytest.raises(ValueError, match=r"reduce: weights must fit values of shape \(2, 3\), got shape \(3,\)\."):
        losses.reduce(values, weights=jnp.ones(3))
    with pytest.raises(ValueError, match=r"reduce: mask must fit values of shape \(2, 3\), got shape \(3, 1\)\."):
        losses.reduce(values, mask=jnp.ones((3, 1), bool))
