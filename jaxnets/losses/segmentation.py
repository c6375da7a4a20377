"""Losses of regions, one value per example, and the selection of hard pixels.

Logits are `batch *space classes`, targets integer labels `batch *space` (or, where said, a distribution like the logits).
Pixels labeled `ignore_index` take part in nothing. One value for a whole batch of pixels: `logits.reshape(1, -1, classes)`.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxnets.losses import common
from jaxnets.types import Array, Bool, Float, Integer, Shaped


def dice(
    logits: Float[Array, "batch *space classes"],
    targets: Integer[Array, " batch *space"] | Shaped[Array, "batch *space classes"],
    *,
    smooth: common.Scalar = 1.0,
    ignore_index: int | None = None,
) -> Float[Array, " batch"]:
    """`1 - 2 Σ p t / (Σ p + Σ t)` over the pixels, averaged over the classes; in [0, 1]. The Tversky loss at α = β = 1/2.

    Source: Milletari et al. (2016), arXiv:1606.04797, section 3 (without its squares).
    """
    return _tversky("dice", logits, targets, 0.5, 0.5, smooth, ignore_index)


def tversky(
    logits: Float[Array, "batch *space classes"],
    targets: Integer[Array, " batch *space"] | Shaped[Array, "batch *space classes"],
    *,
    alpha: common.Scalar = 0.5,
    beta: common.Scalar = 0.5,
    smooth: common.Scalar = 1.0,
    ignore_index: int | None = None,
) -> Float[Array, " batch"]:
    """`1 - (TP + s) / (TP + α FP + β FN + s)` with soft counts `TP = Σ p t` over the pixels, averaged over the classes.

    `smooth = s > 0` counts in pixels and makes a class that neither has nor gets a pixel perfect.

    Raises:
      ValueError: `alpha` or `beta` negative; `smooth <= 0`; fewer than two classes; targets of another shape.
    Source: Salehi et al. (2017), arXiv:1706.05721, eq. 4.
    """
    common.check_option("tversky", "alpha", alpha, alpha >= 0, "not be negative")
    common.check_option("tversky", "beta", beta, beta >= 0, "not be negative")
    return _tversky("tversky", logits, targets, alpha, beta, smooth, ignore_index)


def generalized_dice(
    logits: Float[Array, "batch *space classes"],
    targets: Integer[Array, " batch *space"] | Shaped[Array, "batch *space classes"],
    *,
    ignore_index: int | None = None,
) -> Float[Array, " batch"]:
    """`1 - 2 Σ_c w_c Σ p t / Σ_c w_c Σ (p + t)`, `w_c = 1 / (Σ t)²`: each class counts alike, whatever its area; in [0, 1].

    A class absent from the target has weight 0; without a valid pixel the loss is 0. optax averages `w_c` times the Dice loss
    and gives an absent class a weight of 1e7: 1.7e-8 for a half-wrong picture where one of three classes is absent.

    Source: Sudre et al. (2017), arXiv:1707.03237, eq. 2.
    """
    p, t = _regions("generalized_dice", logits, targets, ignore_index)
    area = t.sum(axis=1)
    size = jnp.where(area > 0, area, 1)
    smallest = lax.stop_gradient(size.min(axis=-1, keepdims=True))  # only ratios of weights count, and 1 / size² may overflow
    weight = jnp.where(area > 0, (smallest / size) ** 2, 0)
    overlap = 2 * (weight * (p * t).sum(axis=1)).sum(axis=-1)
    total = (weight * (p.sum(axis=1) + area)).sum(axis=-1)
    return jnp.where(total == 0, 0, 1 - overlap / jnp.where(total == 0, 1, total)).astype(logits.dtype)


def lovasz_softmax(
    logits: Float[Array, "batch *space classes"],
    labels: Integer[Array, " batch *space"],
    *,
    ignore_index: int | None = None,
) -> Float[Array, " batch"]:
    """Lovász extension of the Jaccard loss `1 - IoU`, averaged over the classes present in the labels; in [0, 1].

    For a hard prediction it is that average of `1 - IoU` exactly. Piecewise linear in the probabilities.

    Source: Berman et al. (2018), arXiv:1705.08790, eq. 8-12 and algorithm 1.
    """
    labels, _ = common.read_targets("lovasz_softmax", logits, labels, distribution=False)
    p, t = _regions("lovasz_softmax", logits, labels, ignore_index)
    errors = jnp.abs(t - p)
    slopes = lax.stop_gradient(_jaccard_slopes(errors, t))
    per_class, present = (errors * slopes).sum(axis=1), (t > 0).any(axis=1)
    mean = jnp.where(present, per_class, 0).sum(axis=-1) / jnp.maximum(present.sum(axis=-1), 1)
    return mean.astype(logits.dtype)


def ohem(
    values: Float[Array, "*shape"],
    *,
    threshold: common.Scalar = -math.log(0.7),
    min_kept: int = 1,
    mask: Bool[Array, "*shape"] | None = None,
) -> Bool[Array, "*shape"]:
    """Online hard-example mining: which of the per-element losses to keep, for `reduce(values, mask=ohem(values, ...))`.

    Keeps every value above `threshold` (by default the cross entropy of a probability below 0.7), or else the `min_kept`
    largest ones with all their equals. Nothing that `mask` excludes is kept. Per example: `jax.vmap`.

    Raises:
      ValueError: `min_kept < 0`; a mask of another shape.
    Source: Shrivastava et al. (2016), arXiv:1604.03540; with threshold: Yuan et al. (2020), arXiv:1909.11065, code.
    """
    if min_kept < 0:
        raise ValueError(f"ohem: min_kept must not be negative, got {min_kept}.")
    if mask is not None:
        common.check_same_shape("ohem", values=values, mask=mask)
    allowed = jnp.ones(values.shape, bool) if mask is None else mask
    ranked = jnp.where(allowed, values, -jnp.inf)
    kept = allowed & ~(values <= threshold)  # so written that a NaN is kept, and seen
    if min_kept and values.size:
        smallest = lax.top_k(ranked.reshape(-1), min(min_kept, values.size))[0][-1]
        kept |= allowed & (values >= smallest)
    return kept


def _tversky(function, logits, targets, alpha, beta, smooth, ignore_index):
    """Both losses; `optax.losses.dice_loss` can't leave pixels out, nor take probabilities under jit."""
    common.check_option(function, "smooth", smooth, smooth > 0, "be positive")
    p, t = _regions(function, logits, targets, ignore_index)
    hit, false_positive, false_negative = (p * t).sum(axis=1), (p * (1 - t)).sum(axis=1), ((1 - p) * t).sum(axis=1)
    index = (hit + smooth) / (hit + alpha * false_positive + beta * false_negative + smooth)
    return (1 - index.mean(axis=-1)).astype(logits.dtype)


def _regions(function, logits, targets, ignore_index):
    """Probabilities and targets as `batch pixels classes`, both 0 at ignored pixels."""
    batch, *_, classes = logits.shape
    if classes < 2:
        raise ValueError(f"{function}: logits need at least 2 classes, got {classes} (binary: concatenate a zero logit).")
    targets, labels = common.read_targets(function, logits, targets)
    if labels:
        t = jnp.where(common.in_range(targets, classes)[..., None], common.one_hot(targets, classes), jnp.nan)
        valid = jnp.ones(targets.shape, bool) if ignore_index is None else targets != ignore_index
    elif ignore_index is None:
        t, valid = targets, jnp.ones(targets.shape[:-1], bool)
    else:
        raise ValueError(f"{function}: ignore_index needs integer labels, got {targets.dtype} of shape {targets.shape}.")
    valid = valid.reshape(batch, -1, 1)
    p = jnp.exp(common.log_softmax(logits)).reshape(batch, -1, classes)
    t = jnp.where(valid, t.reshape(p.shape), 0).astype(p.dtype)
    return common.observed_rows(jnp.where(valid, p, 0), t, axis=(1, 2)), t


def _jaccard_slopes(errors, target):
    """Slope of the Lovász extension for each pixel (axis 1): how much the Jaccard loss grows when it joins the larger errors.

    A pixel of the class takes 1 from the intersection, another adds 1 to the union. Written as those quotients; the paper's
    differences of neighboring Jaccard losses lose their digits in a large picture.
    """
    place = lax.broadcasted_iota(int, errors.shape, 1)
    _, target, place = lax.sort((-errors, target, place), dimension=1, num_keys=1)
    area = target.sum(axis=1, keepdims=True)
    intersection, union = area - jnp.cumsum(target, axis=1), area + jnp.cumsum(1 - target, axis=1)
    slopes = jnp.where(target > 0, 1, intersection / jnp.maximum(union - 1, 1)) / union
    return lax.sort((place, slopes), dimension=1, num_keys=1)[1]  # back to the pixels' own order, without a scatter
