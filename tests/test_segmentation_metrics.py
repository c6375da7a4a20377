"""Scores of segmentations against scikit-learn, and of their boundaries against erosion by scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from jaxnets import metrics

CLASSES, VOID = 5, 255  # class 4 is in no picture
RNG = np.random.default_rng(0)
TRUTH = np.kron(RNG.integers(0, 4, (2, 3, 4)), np.ones((1, 20, 25), int)).astype("uint8")  # 60 x 100: d = round(2.33)
PREDICTED = np.where(RNG.random(TRUTH.shape) < 0.01, 3, np.roll(TRUTH, (1, 3), (1, 2))).astype("int32")
TRUTH[:, 10:24, 5:45] = VOID
KEPT = TRUTH != VOID
BOUNDARY = metrics.boundary_iou(CLASSES, ignore_index=VOID)


def measure(metric, predictions, labels, weight=None):
    return metric.compute(metric.update(metric.init(), jnp.asarray(predictions), jnp.asarray(labels), weight=weight))


def boundary(mask, distance):
    """The mask minus its erosion; what is outside of the picture is not in the mask."""
    return mask & ~scipy.ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)


def boundary_iou_by_erosion(predictions, labels, distance, weight=(1, 1)):
    hits, union = np.zeros((2, CLASSES))
    for p, t, w in zip(predictions, labels, weight, strict=True):
        for c in range(CLASSES):
            a, b = (boundary((index == c) & (t != VOID), distance) for index in (p, t))
            hits[c] += w * (a & b).sum()
            union[c] += w * (a | b).sum()
    return np.divide(hits, union, out=np.full(CLASSES, np.nan), where=union > 0)


# ------------------------------------------------------------------------------------------------------- scores of a matrix


def test_confusion_of_one_call_is_that_of_scikit_learn_and_of_the_stream(jit):
    matrix = jit(lambda p, t: metrics.confusion(p, t, classes=CLASSES, ignore_index=VOID))(PREDICTED, TRUTH)
    expected = sklearn.metrics.confusion_matrix(TRUTH[KEPT], PREDICTED[KEPT], labels=range(CLASSES))
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(measure(metrics.confusion_matrix(CLASSES, ignore_index=VOID), PREDICTED, TRUTH), matrix)


def test_segmentation_scores_are_those_of_scikit_learn_over_the_classes_there_are(jit):
    """scikit-learn's warnings about class 4, which is nowhere, are avoided by leaving it out there."""
    got = jit(metrics.segmentation)(metrics.confusion(PREDICTED, TRUTH, classes=CLASSES, ignore_index=VOID))
    pair, present = (TRUTH[KEPT], PREDICTED[KEPT]), {"labels": range(4)}
    per_class = {
        "accuracy": sklearn.metrics.recall_score(*pair, average=None, **present),
        "iou": sklearn.metrics.jaccard_score(*pair, average=None, **present),
        "dice": sklearn.metrics.f1_score(*pair, average=None, **present),
    }
    for name, scores in per_class.items():
        np.testing.assert_allclose(getattr(got, name), [*scores, np.nan], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(getattr(got, f"mean_{name}"), scores.mean(), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(got.pixel_accuracy, sklearn.metrics.accuracy_score(*pair), rtol=1e-6)
    weighted = sklearn.metrics.jaccard_score(*pair, average="weighted", **present)
    np.testing.assert_allclose(got.frequency_weighted_iou, weighted, rtol=1e-6)


def test_a_class_that_is_only_predicted_counts_as_missed_but_has_no_accuracy():
    got = metrics.segmentation(metrics.confusion(jnp.array([0, 1]), jnp.array([0, 0]), classes=3))
    for name, expected in (("accuracy", [0.5, np.nan, np.nan]), ("iou", [0.5, 0, np.nan]), ("dice", [2 / 3, 0, np.nan])):
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-6)
    np.testing.assert_allclose((got.mean_accuracy, got.mean_iou, got.mean_dice), (0.5, 0.25, 1 / 3), rtol=1e-6)


def test_scores_of_an_ensemble_and_of_a_spoiled_matrix():
    matrices = jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.nan)])
    for name, values in metrics.segmentation(matrices)._asdict().items():
        assert (values[0] == 1).all(), name
        assert jnp.isnan(values[1]).all(), name


# ------------------------------------------------------------------------------------------------------------------ boundaries


@pytest.mark.parametrize(("width", "distance"), [(0.02, 2), (0.001, 1), (0.07, 8)])
def test_boundary_iou_is_that_of_masks_minus_their_erosion(width, distance):
    """Cut at ignored pixels, and at the picture's edge; at least one pixel wide."""
    metric = metrics.boundary_iou(CLASSES, width=width, ignore_index=VOID)
    got = jax.jit(functools.partial(measure, metric))(PREDICTED, TRUTH)
    expected = boundary_iou_by_erosion(PREDICTED, TRUTH, distance)
    np.testing.assert_allclose(got.iou, expected, rtol=1e-6)
    assert np.isnan(expected[4])
    np.testing.assert_allclose(got.mean_iou, expected[:4].mean(), rtol=1e-6)


def test_wide_boundaries_are_the_whole_masks():
    truth, predicted = TRUTH[:, 24:], PREDICTED[:, 24:]
    got = measure(metrics.boundary_iou(CLASSES, width=1), predicted, truth)
    matrix = metrics.confusion(predicted, truth, classes=CLASSES)
    np.testing.assert_allclose(got.iou, metrics.iou(matrix), rtol=1e-6)
    np.testing.assert_allclose(got.mean_iou, metrics.mean_iou(matrix), rtol=1e-6)


def test_boundary_iou_sees_a_thin_error_that_the_iou_of_areas_hardly_sees():
    truth = np.zeros((1, 100, 100), int)
    truth[:, 20:80, 20:80] = 1
    predicted = np.roll(truth, 2, axis=1)
    assert metrics.iou(metrics.confusion(predicted, truth, classes=2))[1] > 0.93
    assert measure(metrics.boundary_iou(2), predicted, truth).iou[1] < 0.6


def test_boundary_counts_add_up_over_batches_and_padding_counts_for_nothing(jit):
    update = jit(BOUNDARY.update)
    state = BOUNDARY.init()
    for i in range(2):
        padded = [np.stack([index[i], np.full(index[i].shape, 77)]) for index in (PREDICTED, TRUTH)]
        state = update(state, *map(jnp.asarray, padded), weight=jnp.array([1 + i, 0]))
    expected = boundary_iou_by_erosion(PREDICTED, TRUTH, 2, weight=(1, 2))
    np.testing.assert_allclose(BOUNDARY.compute(state).iou, expected, rtol=1e-6)


def test_boundaries_of_one_picture_under_vmap_and_in_float64():
    with jax.enable_x64(True):
        got = jax.vmap(functools.partial(measure, BOUNDARY))(jnp.asarray(PREDICTED), jnp.asarray(TRUTH))
        for i in range(2):
            expected = boundary_iou_by_erosion(PREDICTED[i : i + 1], TRUTH[i : i + 1], 2, weight=(1,))
            np.testing.assert_allclose(got.iou[i], expected, rtol=1e-12)


def test_an_ignored_label_may_follow_the_last_class():
    """As in CamVid: classes 0 to 10, and 11 for what has no label. Here it takes the place that boundaries use inside."""
    truth = np.where(KEPT, TRUTH, CLASSES)
    got = measure(metrics.boundary_iou(CLASSES, ignore_index=CLASSES), PREDICTED, truth)
    np.testing.assert_array_equal(got.iou, measure(BOUNDARY, PREDICTED, TRUTH).iou)


# ------------------------------------------------------------------------------------------------------------------ bad input


def test_a_label_that_no_class_has_is_named_outside_of_jit_and_nan_inside():
    labels, predictions = jnp.array([0, 255, 12]), jnp.array([0, 99, 1])
    for p, t, message in [
        (predictions, labels, r"confusion: labels other than ignore_index=255 must be in \[0, 11\), got 12\."),
        (labels, predictions % 11, r"confusion: predictions must be in \[0, 11\), got 255\."),
        (predictions, -labels, r"labels other than ignore_index=255 must be in \[0, 11\), got -255\."),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.confusion(p, t, classes=11, ignore_index=255)
    with jax.disable_jit(False):
        inside = jax.jit(lambda p, t: metrics.confusion(p, t, classes=11, ignore_index=255))(predictions, labels)
    assert jnp.isnan(inside).all()
    assert jnp.isnan(metrics.segmentation(inside).mean_iou)
    for wrong in (CLASSES, CLASSES + 1, -1):  # the first is what the metric itself uses for the inside of a mask
        spoiled = PREDICTED.copy()
        spoiled[1, 50, 50] = wrong
        got = measure(BOUNDARY, spoiled, TRUTH)
        assert jnp.isnan(got.mean_iou)
        assert jnp.isnan(got.iou).all()


def test_bad_arguments_are_named(unchecked):
    truth = jnp.zeros((2, 4, 4), int)
    for call, message in [
        (lambda: metrics.confusion(truth, truth, classes=0), r"classes must be at least 1, got 0\."),
        (lambda: metrics.confusion(truth[:, :3], truth, classes=2), r"of shape \(2, 4, 4\), got int32 of shape \(2, 3, 4\)\."),
        (lambda: metrics.confusion(truth, truth + 0.9, classes=2), r"labels must be class indices of .* got float32"),
        (lambda: metrics.confusion(truth, jnp.zeros((2, 4, 4, 3), int), classes=2), r"\(2, 4, 4, 3\); colors of a palette"),
        (lambda: metrics.boundary_iou(0), r"boundary_iou: classes must be at least 1, got 0\."),
        (lambda: metrics.boundary_iou(2, width=0), r"boundary_iou: width must be positive, .*, got 0\."),
        (lambda: measure(BOUNDARY, truth + 0.5, truth), r"boundary_iou: predictions must be class indices .* got float32"),
        (lambda: measure(BOUNDARY, truth[:, :3], truth), r"boundary_iou: .* got int32 of shape \(2, 3, 4\)\."),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
