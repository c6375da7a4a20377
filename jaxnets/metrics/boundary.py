"""Intersection over union near the contours, where that of whole regions hardly sees an error."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxnets.metrics.confusion import ConfusionState, check_indices, confusion_matrix, iou
from jaxnets.metrics.streaming import Metric, Weight, broadcast_weight
from jaxnets.types import Array, Bool, Float, Integer


class BoundaryIou(NamedTuple):
    mean_iou: Float[Array, "..."]  # over the classes that have a boundary, true or predicted
    iou: Float[Array, "... classes"]  # NaN for the others


def boundary_iou(classes: int, *, width: int | float = 0.02, ignore_index: int | None = None) -> Metric:
    """`|G_d ∩ P_d| / |G_d ∪ P_d|` per class: `update(state, predictions, labels, weight=None)` with `[*batch height width]`.

    `G_d` are the pixels of the true mask at most d = `width` times the diagonal (rounded, at least one pixel) from a pixel
    outside of the mask or of the image, `P_d` those of the predicted one: mask minus its erosion by a square of 2 d + 1
    pixels. Ignored pixels are cut out of both masks, which ends at them. Other labels or predictions that no class has make
    the result NaN.

    Raises:
      ValueError: `classes < 1`; `width` not positive; predictions that are not integers, or of another shape.
    Source: Cheng et al. (2021), arXiv:2103.16562; the image's edge as in its code.
    """
    if classes < 1:
        raise ValueError(f"boundary_iou: classes must be at least 1, got {classes}.")
    if not width > 0:
        raise ValueError(f"boundary_iou: width must be positive, a share of the diagonal, got {width}.")
    # One label more, for all that is no boundary: the counts are those of a confusion matrix.
    matrix = confusion_matrix(classes + 1)

    def update(
        state: ConfusionState, predictions: Any, labels: Integer[Array, "*batch height width"], weight: Weight = None
    ) -> ConfusionState:
        check_indices("boundary_iou", predictions, labels)
        distance = max(1, round(width * math.hypot(*labels.shape[-2:])))
        labels, predictions = labels.astype(int), predictions.astype(int)
        ignored = jnp.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
        weight = jnp.where(ignored, 0, broadcast_weight(weight, labels.shape))

        def boundaries(index):
            index = jnp.where(ignored | (index >= classes), -1, index)
            return jnp.where((index >= 0) & ~_near_another(index, distance), classes, index)

        return matrix.update(state, boundaries(predictions), boundaries(labels), weight=weight)

    def compute(state: ConfusionState) -> BoundaryIou:
        scores = iou(matrix.compute(state))[..., :classes]
        return BoundaryIou(jnp.nanmean(scores, axis=-1), scores)

    return Metric(matrix.init, update, compute)


def _near_another(index: Integer[Array, "*batch height width"], distance: int) -> Bool[Array, "*batch height width"]:
    """Whether a pixel is at most `distance` rows and columns from another index, or from the image's edge: for all classes."""
    lead = index.ndim - 2
    low = high = jnp.pad(index, [(0, 0)] * lead + [(distance, distance)] * 2, constant_values=-1)
    span, last = 2 * distance + 1, jnp.iinfo(index.dtype)
    for window in ((span, 1), (1, span)):  # a square's extremes are those of its columns, along its rows
        window, strides = (1,) * lead + window, (1,) * index.ndim
        low = lax.reduce_window(low, last.max, lax.min, window, strides, "VALID")
        high = lax.reduce_window(high, last.min, lax.max, window, strides, "VALID")
    return low != high
