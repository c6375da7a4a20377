"""Calibration: does a confidence of 0.8 mean that 80 % are right?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.metrics.streaming import (
    Metric,
    Sum,
    Weight,
    accumulator,
    add,
    broadcast_weight,
    class_index,
    correct,
    total,
    weighted,
    zero,
)
from jaxnets.types import Array, Float, Integer


class CalibrationState(NamedTuple):
    """Sums per bin of confidence, and the sum of Brier scores."""

    count: Sum
    correct: Sum
    confidence: Sum
    brier: Sum


class Calibration(NamedTuple):
    """Errors, and per bin what a reliability diagram draws (NaN in an empty bin)."""

    expected_error: Float[Array, "..."]  # Σ_b n_b / n |accuracy_b - confidence_b|
    maximum_error: Float[Array, "..."]  # max_b |accuracy_b - confidence_b|
    brier: Float[Array, "..."]  # mean of Σ_c (p_c - [c = label])², in [0, 2]
    accuracy: Float[Array, "... bins"]
    confidence: Float[Array, "... bins"]
    count: Float[Array, "... bins"]


def calibration(*, bins: int = 15) -> Metric:
    """Expected and maximum calibration error and the Brier score: `update(state, logits, labels, weight=None)`.

    Confidence is the largest of `softmax(logits)`, in `bins` equal intervals `(b / bins, (b + 1) / bins]`.

    Raises:
      ValueError: `bins < 1`.
    Source: Naeini, Cooper & Hauskrecht (2015), AAAI; Guo et al. (2017), arXiv:1706.04599, eq. 3 and 5; Brier (1950).
    """
    if bins < 1:
        raise ValueError(f"calibration: bins must be at least 1, got {bins}.")

    def init() -> CalibrationState:
        return CalibrationState(zero((bins,)), zero((bins,)), zero((bins,)), zero())

    def update(
        state: CalibrationState,
        logits: Float[Array, "*batch classes"],
        labels: Integer[Array, "*batch"],
        weight: Weight = None,
    ) -> CalibrationState:
        weight = broadcast_weight(weight, labels.shape)
        probability = jax.nn.softmax(logits.astype(accumulator(logits.dtype)))
        confidence = probability.max(-1)
        target = class_index(logits) == jnp.expand_dims(labels, -1)
        brier = jnp.sum((probability - target) ** 2, axis=-1)
        bin_ = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1).ravel()

        def per_bin(values):
            return jnp.bincount(bin_, values.ravel(), length=bins)

        return CalibrationState(
            count=add(state.count, per_bin(weight)),
            correct=add(state.correct, per_bin(weighted(correct(logits, labels), weight))),
            confidence=add(state.confidence, per_bin(weighted(confidence, weight))),
            brier=add(state.brier, weighted(brier, weight).sum()),
        )

    def compute(state: CalibrationState) -> Calibration:
        count, right, confidence = total(state.count), total(state.correct), total(state.confidence)
        size = count.sum(-1)
        return Calibration(
            expected_error=jnp.abs(right - confidence).sum(-1) / size,
            maximum_error=jnp.max(jnp.abs(right - confidence) / jnp.where(count > 0, count, 1), axis=-1),
            brier=total(state.brier) / size,
            accuracy=right / count,
            confidence=confidence / count,
            count=count,
        )

    return Metric(init, update, compute)
