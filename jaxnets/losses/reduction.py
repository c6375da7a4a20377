"""One reduction for all losses, and the weights that make its mean PyTorch's weighted mean."""

import jax.numpy as jnp

from jaxnets.losses import common
from jaxnets.types import Array, Bool, Float, Integer, Num

REDUCTIONS = ("mean", "sum", "none")


def reduce(
    values: Float[Array, "*shape"],
    reduction: str = "mean",
    *,
    weights: Num[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Weighted mean `Σ w v / Σ w`, sum `Σ w v`, or the weighted values themselves (`none`), over `axis` (all by default).

    `w` is the weight (>= 0) where `mask` is True, and 0 elsewhere. The mean of nothing is 0. Whatever stands where `w` is 0,
    NaN included, reaches neither the value nor the gradient. `weights` and `mask` have the rank of `values`; their axes of
    length 1 repeat. Accumulates in float32 at least, returns the dtype of `values`.

    >>> float(reduce(jnp.array([1.0, 3.0, jnp.nan]), mask=jnp.array([True, True, False])))
    2.0

    Raises:
      ValueError: an unknown reduction; weights or a mask that don't fit the values.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduce: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    for name, array in (("weights", weights), ("mask", mask)):
        if array is not None and not _fits(array.shape, values.shape):
            raise ValueError(f"reduce: {name} must fit values of shape {values.shape}, got shape {array.shape}.")

    dtype, values = values.dtype, common.wide(values)
    weight = jnp.ones_like(values) if weights is None else jnp.broadcast_to(weights, values.shape).astype(values.dtype)
    if mask is not None:
        weight = jnp.where(mask, weight, 0)
    weighted = weight * jnp.where(weight == 0, 0, values)  # inside the product: the weights' gradient stays finite too
    if reduction == "none":
        return weighted.astype(dtype)
    total = weighted.sum(axis)
    if reduction == "mean":
        counted = weight.sum(axis)
        total = total / jnp.where(counted == 0, 1, counted)
    return total.astype(dtype)


def target_weights(
    labels: Integer[Array, "*batch"],
    class_weights: Float[Array, " classes"] | None = None,
    ignore_index: int | None = None,
) -> Float[Array, "*batch"]:
    """Weight of each target: that of its class (1 without `class_weights`), 0 for an ignored one, NaN for a label out of range.

    `reduce(softmax_cross_entropy(logits, labels), weights=target_weights(labels, class_weights, ignore_index))` is
    `torch.nn.functional.cross_entropy(logits, labels, class_weights, ignore_index=ignore_index)`: the mean divides by the
    weight of the targets. Give the class weights here *or* to the loss (where they only multiply), not to both.
    """
    labels = labels.astype(int)  # -100 would be 156 among uint8 labels
    if class_weights is None:
        weights = jnp.ones(labels.shape)
    else:
        classes = class_weights.shape[0]
        inside = common.in_range(labels, classes)
        weights = jnp.where(inside, class_weights[jnp.clip(labels, 0, classes - 1)], jnp.nan)
    return weights if ignore_index is None else jnp.where(labels == ignore_index, 0, weights)


def _fits(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    return len(shape) == len(onto) and all(n in (1, m) for n, m in zip(shape, onto, strict=True))
