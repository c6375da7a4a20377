"""Streaming metrics, in the shape of optax: a triple `(init, update, compute)` of pure functions over a state of sums.

    metric = metrics.accuracy()
    state = metric.init()
    for batch in batches:
        state = metric.update(state, model.apply(params, batch.x), batch.y, weight=batch.weight)
    metric.compute(state)

- `weight` is 0 for padding (an uneven last batch) and 1 or any positive number elsewhere; it has the leading axes of what it
  weighs. What has weight 0 counts for nothing, even when it is NaN.
- A state is a tree of sums. Two states merge by `jax.tree.map(jnp.add, a, b)`, the states of several devices by
  `jax.lax.psum(state, axis)`: start each from `init()`, or the past is counted once per device.
- Whole numbers are counted exactly up to 2^36 (`Sum`), with x64 off, where float32 stops at 2^24 and int32 at 2^31. One
  update may count up to 2^24 examples; the confusion matrix, whose weights are absent, masks or integers, up to 2^31.
- `logits` may be any scores for accuracies. Calibration and perplexity normalize them: pass `log p` for probabilities.
"""

from jaxnets.metrics.boundary import BoundaryIou, boundary_iou
from jaxnets.metrics.calibration import Calibration, CalibrationState, calibration
from jaxnets.metrics.confusion import (
    ConfusionState,
    Segmentation,
    confusion,
    confusion_matrix,
    f1,
    frequency_weighted_iou,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    precision,
    recall,
    segmentation,
)
from jaxnets.metrics.generation import (
    ManifoldScores,
    Memorization,
    Moments,
    MomentsState,
    Nearest,
    frechet,
    frechet_of_moments,
    manifold_scores,
    memorization,
    moments,
    nearest,
)
from jaxnets.metrics.streaming import (
    MeanState,
    Metric,
    Sum,
    accuracy,
    add,
    correct,
    mean,
    mean_of,
    perplexity,
    top_k,
    top_k_correct,
    total,
    zero,
)

__all__ = [
    "BoundaryIou",
    "Calibration",
    "CalibrationState",
    "ConfusionState",
    "ManifoldScores",
    "MeanState",
    "Memorization",
    "Metric",
    "Moments",
    "MomentsState",
    "Nearest",
    "Segmentation",
    "Sum",
    "accuracy",
    "add",
    "boundary_iou",
    "calibration",
    "confusion",
    "confusion_matrix",
    "correct",
    "f1",
    "frechet",
    "frechet_of_moments",
    "frequency_weighted_iou",
    "iou",
    "manifold_scores",
    "mean",
    "mean_accuracy",
    "mean_iou",
    "mean_of",
    "memorization",
    "moments",
    "nearest",
    "perplexity",
    "pixel_accuracy",
    "precision",
    "recall",
    "segmentation",
    "top_k",
    "top_k_correct",
    "total",
    "zero",
]
