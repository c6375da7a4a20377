"""What the losses share: checks, a wide copy for sums, and the reading of targets."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.types import Array, Bool, Float, Integer, Num, Shaped

Scalar: TypeAlias = int | float | Num[Array, ""]  # an option that may be learned, or mapped over


def wide(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in the dtype its sums are accumulated in: float32, or float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_same_shape(function: str, **arrays: Any) -> None:
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{function}: shapes must be equal, got {got}.")


def check_option(function: str, name: str, value: Scalar, holds: Any, rule: str) -> None:
    """Raises where `holds`, a comparison of `value`, is a plain False; that of an array may be traced and isn't looked at."""
    if isinstance(holds, bool | np.bool_) and not holds:
        raise ValueError(f"{function}: {name} must {rule}, got {value}.")


def observed(prediction: Float[Array, "*shape"], target: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`prediction`, passing no gradient where it or its target is NaN or infinite.

    The chain rule would make 0 (the gradient that a mask sends back) times NaN a NaN; so a missing target can be masked.
    """
    return jnp.where(jnp.isfinite(prediction) & jnp.isfinite(target), prediction, lax.stop_gradient(prediction))


def observed_rows(
    prediction: Float[Array, "..."], target: Shaped[Array, "..."], axis: int | tuple[int, ...] = -1
) -> Float[Array, "..."]:
    """`prediction`, passing no gradient along `axis` where any target there is NaN or infinite: `observed` for whole rows."""
    known = jnp.isfinite(target).all(axis, keepdims=True)
    return jnp.where(known, prediction, lax.stop_gradient(prediction))


def centered(scores: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Wide scores minus the largest of their row; -inf stays -inf.

    A row without a finite maximum (NaN, +inf, or all -inf) becomes NaN and passes no gradient.
    """
    if scores.shape[-1] == 0:
        raise ValueError(f"scores: expected at least one class in the last axis, got shape {scores.shape}.")
    scores = wide(scores)
    peak = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    return jnp.where(jnp.isfinite(peak), scores - peak, jnp.nan)


def log_softmax(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Wide log-probabilities. Unlike that of `jax.nn`, a row that `centered` can't center passes no gradient."""
    shifted = centered(logits)
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))


def read_targets(function: str, scores: Any, targets: Any, *, distribution: bool = True) -> tuple[Any, bool]:
    """`targets`, and whether they are integer labels rather than a distribution over the classes, by shape and dtype.

    Labels become int32: compared with the uint8 of an image file, 300 classes would be 44 and an `ignore_index` of -100 be 156.
    """
    if targets.shape == scores.shape[:-1] and jnp.issubdtype(targets.dtype, jnp.integer):
        return targets.astype(int), True
    # Bytes are labels or colors: those of a mask whose palette has not been read would pass where there are three classes.
    if distribution and targets.shape == scores.shape and targets.dtype != jnp.uint8:
        return targets, False
    expected = f"integer labels of shape {scores.shape[:-1]}" + distribution * f" or a distribution of shape {scores.shape}"
    raise ValueError(f"{function}: targets must be {expected}, got {targets.dtype} of shape {targets.shape}.")


def one_hot(labels: Integer[Array, "*batch"], classes: int) -> Bool[Array, "*batch {classes}"]:
    """A mask for a sum or a `where`, which fuse; a gather's gradient would be a scatter. No class for a label out of range."""
    return jax.nn.one_hot(labels, classes, dtype=bool)


def in_range(labels: Integer[Array, "*batch"], classes: int) -> Bool[Array, "*batch"]:
    return (labels >= 0) & (labels < classes)


def screen(
    values: Float[Array, "*batch"], labels: Integer[Array, "*batch"], classes: int, ignore_index: int | None
) -> Float[Array, "*batch"]:
    """`values`, but 0 at ignored labels and NaN at other labels that no class has."""
    values = jnp.where(in_range(labels, classes), values, jnp.nan)
    return values if ignore_index is None else jnp.where(labels == ignore_index, 0, values)
