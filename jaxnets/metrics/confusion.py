"""The confusion matrix, and the scores that are functions of it: precision, recall, F1 and the IoU family.

    metric = metrics.confusion_matrix(11, ignore_index=255)
    state = metric.update(metric.init(), logits.argmax(-1), labels)
    metrics.mean_iou(metric.compute(state))

    metrics.segmentation(metrics.confusion(labels, truth, classes=11, ignore_index=255))

A score takes a matrix `[*members, classes, classes]` with true classes in rows, predicted classes in columns.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.metrics.streaming import Metric, Sum, Weight, add, broadcast_weight, total, zero
from jaxnets.types import Array, Float, Integer

Matrix: TypeAlias = Float[Array, "*members classes classes"]
Average: TypeAlias = Literal["macro", "micro", "weighted"] | None


class ConfusionState(NamedTuple):
    """Counts per (true, predicted) pair, and how many counted pairs lay outside the classes."""

    matrix: Sum
    outside: Sum


class Segmentation(NamedTuple):
    """The usual scores of a confusion matrix; NaN for a class that has no pixel, and is left out of the means."""

    pixel_accuracy: Float[Array, "..."]
    mean_accuracy: Float[Array, "..."]
    mean_iou: Float[Array, "..."]
    frequency_weighted_iou: Float[Array, "..."]
    mean_dice: Float[Array, "..."]
    accuracy: Float[Array, "... classes"]  # share of a class's pixels that are found: recall
    iou: Float[Array, "... classes"]
    dice: Float[Array, "... classes"]  # F1


def confusion_matrix(classes: int, *, ignore_index: int | None = None) -> Metric:
    """Counts of (true, predicted) pairs: `update(state, predictions, labels, weight=None)` with class indices of any shape.

    Labels equal to `ignore_index` are left out. Any other label or prediction outside `[0, classes)` is a mistake in the
    data that can't be raised inside jit: the whole matrix is then NaN.

    Raises:
      ValueError: `classes < 1`; predictions that are not integers.
    """
    if classes < 1:
        raise ValueError(f"confusion_matrix: classes must be at least 1, got {classes}.")

    def init() -> ConfusionState:
        return ConfusionState(zero((classes, classes)), zero())

    def update(
        state: ConfusionState, predictions: Any, labels: Integer[Array, "*batch"], weight: Weight = None
    ) -> ConfusionState:
        check_indices("confusion_matrix", predictions, labels)
        labels, predictions = labels.astype(int), predictions.astype(int)  # uint8 would wrap, and -100 would equal 156
        weight = broadcast_weight(weight, labels.shape)
        weight = weight if ignore_index is None else jnp.where(labels == ignore_index, 0, weight)
        inside = (labels >= 0) & (labels < classes) & (predictions >= 0) & (predictions < classes)
        pair = labels * classes + predictions
        # bincount: one pass over the pairs, where a product of one-hot matrices costs classes² for each.
        counts = jnp.bincount(jnp.where(inside, pair, 0).ravel(), jnp.where(inside, weight, 0).ravel(), length=classes**2)
        return ConfusionState(
            add(state.matrix, counts.reshape(classes, classes)), add(state.outside, jnp.sum(~inside & (weight != 0)))
        )

    def compute(state: ConfusionState) -> Matrix:
        outside = jnp.expand_dims(total(state.outside), (-2, -1))
        return jnp.where(outside > 0, jnp.nan, total(state.matrix))

    return Metric(init, update, compute)


def confusion(predictions: Any, labels: Any, *, classes: int, ignore_index: int | None = None) -> Matrix:
    """The confusion matrix of predicted and true class indices, arrays of one shape, by `confusion_matrix`.

    Raises:
      ValueError: as there; outside of jit also an index that no class has, but for a label equal to `ignore_index`.
    """
    metric = confusion_matrix(classes, ignore_index=ignore_index)
    predictions, labels = jnp.asarray(predictions), jnp.asarray(labels)
    state = metric.update(metric.init(), predictions, labels)
    outside = total(state.outside)
    if not isinstance(outside, jax.core.Tracer) and outside > 0:
        counted = np.asarray(labels) != ignore_index
        for name, index in ((f"labels other than ignore_index={ignore_index}", labels), ("predictions", predictions)):
            index = np.asarray(index)[counted]
            for wrong in index[(index < 0) | (index >= classes)][:1]:
                raise ValueError(f"confusion: {name} must be in [0, {classes}), got {wrong}.")
    return metric.compute(state)


def segmentation(matrix: Matrix) -> Segmentation:
    """All scores of a segmentation, each by the function of its name; `accuracy` is `recall`, `dice` is `f1`."""
    return Segmentation(
        pixel_accuracy=pixel_accuracy(matrix),
        mean_accuracy=mean_accuracy(matrix),
        mean_iou=mean_iou(matrix),
        frequency_weighted_iou=frequency_weighted_iou(matrix),
        mean_dice=f1(matrix, average="macro", zero_division=jnp.nan),
        accuracy=recall(matrix, zero_division=jnp.nan),
        iou=iou(matrix),
        dice=f1(matrix, zero_division=jnp.nan),
    )


def precision(matrix: Matrix, *, average: Average = None, zero_division: float = 0.0) -> Float[Array, "..."]:
    """`hits / predicted` per class, or averaged.

    `macro` is the mean over classes, `weighted` weighs them by their true count, `micro` divides the sums over classes.
    A class with a zero denominator gets `zero_division`, and is left out of the average where that is NaN: the rules of
    scikit-learn.
    """
    hits, true, predicted = _margins(matrix)
    return _score(hits, predicted, true, average, zero_division)


def recall(matrix: Matrix, *, average: Average = None, zero_division: float = 0.0) -> Float[Array, "..."]:
    """`hits / true` per class, or averaged as in `precision`."""
    hits, true, _ = _margins(matrix)
    return _score(hits, true, true, average, zero_division)


def f1(matrix: Matrix, *, average: Average = None, zero_division: float = 0.0) -> Float[Array, "..."]:
    """`2 hits / (true + predicted)` per class, the harmonic mean of precision and recall, or averaged as in `precision`."""
    hits, true, predicted = _margins(matrix)
    return _score(2 * hits, true + predicted, true, average, zero_division)


def iou(matrix: Matrix, *, average: Average = None, zero_division: float = jnp.nan) -> Float[Array, "..."]:
    """Intersection over union `hits / (true + predicted - hits)` per class (Jaccard index), or averaged as in `precision`.

    A class neither present nor predicted is NaN and left out of averages.
    """
    hits, true, predicted = _margins(matrix)
    return _score(hits, true + predicted - hits, true, average, zero_division)


def mean_iou(matrix: Matrix) -> Float[Array, "*members"]:
    """Mean of `iou` over the classes present or predicted. Source: Long, Shelhamer & Darrell (2015), arXiv:1411.4038, 5."""
    return iou(matrix, average="macro")


def frequency_weighted_iou(matrix: Matrix) -> Float[Array, "*members"]:
    """Mean of `iou` weighted by how often each class is true. Source: Long, Shelhamer & Darrell (2015), section 5."""
    return iou(matrix, average="weighted")


def pixel_accuracy(matrix: Matrix) -> Float[Array, "*members"]:
    """Share of hits `Σ_i n_ii / Σ_ij n_ij`; NaN for an empty matrix."""
    return recall(matrix, average="micro", zero_division=jnp.nan)


def mean_accuracy(matrix: Matrix) -> Float[Array, "*members"]:
    """Mean of `recall` over the classes present (balanced accuracy)."""
    return recall(matrix, average="macro", zero_division=jnp.nan)


def check_indices(function: str, predictions: Any, labels: Any) -> None:
    if not jnp.issubdtype(labels.dtype, jnp.integer) or (labels.ndim, labels.shape[-1:]) == (predictions.ndim + 1, (3,)):
        raise ValueError(
            f"{function}: labels must be class indices of shape {predictions.shape}, got {labels.dtype} of shape "
            f"{labels.shape}; colors of a palette are turned into indices by data.segmentation."
        )
    if not jnp.issubdtype(predictions.dtype, jnp.integer) or predictions.shape != labels.shape:
        raise ValueError(
            f"{function}: predictions must be class indices (logits.argmax(-1)) of shape {labels.shape}, "
            f"got {predictions.dtype} of shape {predictions.shape}."
        )


def _margins(matrix):
    return jnp.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1), matrix.sum(-2)


def _score(hits, count, true, average, zero_division):
    if average not in (None, "macro", "micro", "weighted"):
        raise ValueError(f"metrics: average must be None, 'macro', 'micro' or 'weighted', got {average!r}.")
    if average == "micro":
        return _divide(hits.sum(-1), count.sum(-1), zero_division)
    score = _divide(hits, count, zero_division)
    if average is None:
        return score
    # A zero denominator is left out where zero_division is NaN; a NaN in the matrix itself must stay visible.
    defined = (count != 0) | (zero_division == zero_division)
    weight = jnp.where(defined, true if average == "weighted" else 1, 0)
    return _divide(jnp.sum(score * weight, axis=-1, where=defined), weight.sum(-1), zero_division)


def _divide(numerator, denominator, otherwise):
    empty = denominator == 0
    return jnp.where(empty, otherwise, numerator / jnp.where(empty, 1, denominator))
