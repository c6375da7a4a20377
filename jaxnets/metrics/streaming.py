"""The exact running sum, the weighted mean, and the metrics that are a mean over examples."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Bool, Float, Integer, Num

Weight: TypeAlias = Num[Array, "..."] | Bool[Array, "..."] | None

BASE = 2**12


class Metric(NamedTuple):
    """Three pure functions; `state` is a pytree of sums, so it jits, scans, vmaps, shards and is saved like any other."""

    init: Callable[[], Any]  # () -> state
    update: Callable[..., Any]  # (state, *batch, weight=None) -> state
    compute: Callable[[Any], Any]  # state -> result


class Sum(NamedTuple):
    """A running sum `4096 high + low + lost` of three floats, which stays a sum when its fields are added to another's.

    Whole numbers are exact up to 2^36 in float32: `high` and `low` are then integers below 2^24, and adding up to 2^12
    states loses nothing. Fractions are compensated: `lost` collects what rounding took from `low`.

    Source: Knuth (1997), The Art of Computer Programming 2, 4.2.2 (two-sum); Neumaier (1974), doi:10.1002/zamm.19740540106.
    """

    high: Float[Array, "..."]  # in units of 4096
    low: Float[Array, "..."]  # at most 2048 in size after an `add`
    lost: Float[Array, "..."]


class MeanState(NamedTuple):
    """Weighted sum of the values, and the sum of their weights."""

    values: Sum
    weight: Sum


def mean() -> Metric:
    """Weighted mean of any values: `update(state, values, weight=None)`, `Σ w v / Σ w`; NaN of nothing.

    >>> metric = mean()
    >>> state = metric.update(metric.init(), jnp.array([1.0, 3.0, jnp.nan]), weight=jnp.array([1, 1, 0]))
    >>> float(metric.compute(state))
    2.0
    """
    return mean_of(_identity)


def mean_of(per_example: Callable[..., Num[Array, "..."]]) -> Metric:
    """Weighted mean of a function of the batch: `update(state, *batch, weight=None)`.

    `mean_of(correct)` is the accuracy; a loss that leaves the reduction to its caller becomes its mean over a data set.
    """

    def init() -> MeanState:
        return MeanState(zero(), zero())

    def update(state: MeanState, *batch: Any, weight: Weight = None) -> MeanState:
        values = per_example(*batch)
        weight = broadcast_weight(weight, values.shape)
        return MeanState(add(state.values, weighted(values, weight).sum()), add(state.weight, weight.sum()))

    def compute(state: MeanState) -> Float[Array, "..."]:
        return total(state.values) / total(state.weight)

    return Metric(init, update, compute)


def accuracy() -> Metric:
    """Share of examples whose largest logit is the label's: `update(state, logits, labels, weight=None)`."""
    return mean_of(correct)


def top_k(k: int) -> Metric:
    """Share of examples whose label is among the `k` largest logits: `update(state, logits, labels, weight=None)`.

    Raises:
      ValueError: `k < 1`; at the update, `k` larger than the number of classes.
    """
    if k < 1:
        raise ValueError(f"top_k: k must be at least 1, got {k}.")

    def per_example(logits, labels):
        return top_k_correct(logits, labels, k=k)

    return mean_of(per_example)


def perplexity() -> Metric:
    """`exp` of the mean of `-log softmax(logits)[label]`: `update(state, logits, labels, weight=None)`.

    At least 1; equals the number of classes for a uniform prediction. A label outside the classes gives NaN unless its
    weight is 0.
    """
    nats = mean_of(_negative_log_likelihood)

    def compute(state: MeanState) -> Float[Array, "..."]:
        return jnp.exp(nats.compute(state))

    return Metric(nats.init, nats.update, compute)


def correct(logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, else 0. Of equal logits the first counts as largest, as in `argmax`.

    A NaN logit is larger than all others and never correct; a label outside the classes is never correct.
    """
    return top_k_correct(logits, labels, k=1)


def top_k_correct(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], *, k: int
) -> Float[Array, "*batch"]:
    """1 where the label is among the `k` largest logits, else 0; ties and NaN as in `correct`.

    Raises:
      ValueError: `k` not in `[1, classes]`.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k_correct: k must be in [1, classes] = [1, {logits.shape[-1]}], got {k}.")
    logits = jax.lax.stop_gradient(logits)  # inside a loss: a rank has no gradient, so none is computed
    index, label = class_index(logits), jnp.expand_dims(labels, -1)
    hit = index == label
    score = jnp.max(logits, axis=-1, keepdims=True, where=hit, initial=-jnp.inf)
    # The label's rank: a count instead of a sort. `~(a <= b)` is true for NaN, where `a > b` is false.
    ahead = ~(logits <= score) | ((logits == score) & (index < label))
    return (hit.any(-1) & (ahead.sum(-1) < k)).astype(accumulator(logits.dtype))


def zero(shape: tuple[int, ...] = ()) -> Sum:
    """The empty sum: float32, or float64 where x64 is enabled."""
    return Sum(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape))


def add(state: Sum, value: Num[Array, "..."]) -> Sum:
    """Adds one batch's sum; `inf` and NaN stay what they are. An integer `value` is exact whatever its size."""
    high = state.high
    if jnp.issubdtype(value.dtype, jnp.integer):
        high, value = high + (value // BASE).astype(high.dtype), value % BASE
    value = value.astype(high.dtype)
    low = state.low + value
    part = low - state.low
    lost = (state.low - (low - part)) + (value - part)
    finite = jnp.isfinite(low)
    carry = jnp.where(finite, jnp.round(low / BASE), 0)
    return Sum(high + carry, low - BASE * carry, state.lost + jnp.where(finite, lost, 0))


def total(state: Sum) -> Float[Array, "..."]:
    """The value of a sum, rounded once to its dtype."""
    return BASE * state.high + (state.low + state.lost)


def broadcast_weight(weight: Weight, shape: tuple[int, ...]):
    """`weight`, which has the leading axes of `shape`, for each element; 1 without a weight.

    Masks and integers become int, so that they are counted exactly; floats become at least float32.
    """
    weight = jnp.ones(shape, int) if weight is None else weight
    if weight.shape != shape[: weight.ndim]:
        raise ValueError(f"metrics: weight must have the leading axes of {shape}, got {weight.shape}.")
    weight = weight.astype(accumulator(weight.dtype) if jnp.issubdtype(weight.dtype, jnp.inexact) else int)
    return jnp.broadcast_to(jnp.expand_dims(weight, range(weight.ndim, len(shape))), shape)


def weighted(values, weight):
    """`weight · values`, and 0 where the weight is 0 even if the value is NaN or infinite."""
    return jnp.where(weight == 0, 0, weight * values.astype(accumulator(values.dtype)))


def class_index(logits):
    """0, 1, ... along the last axis: compared with the labels it marks the target, and nothing for a label outside
    the classes (`take_along_axis` would wrap -1 to the last class).
    """
    return jax.lax.broadcasted_iota(int, logits.shape, logits.ndim - 1)


def accumulator(dtype):
    """The dtype to sum in: at least float32, because bfloat16 stops counting at 256."""
    return jnp.promote_types(dtype, "float32")


def _identity(values):
    return values


def _negative_log_likelihood(logits, labels):
    logits = logits.astype(accumulator(logits.dtype))
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)  # a common offset would take the digits of the difference
    hit = class_index(logits) == jnp.expand_dims(labels, -1)
    nats = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits, axis=-1, where=hit)
    return jnp.where(hit.any(-1), nats, jnp.nan)
