"""Overlapping windows of an array: extraction, and overlap-add as its adjoint."""

import math

import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.linear.operator import Bound, Operator, Structure
from jaxnets.types import PyTree


def patches(structure: PyTree, size: tuple[int, ...], stride: tuple[int, ...], *, window: str | None = None) -> Operator:
    """Windows of `size` every `stride` along the last axes: `(..., traces, time) -> (..., rows, columns, *size)`.

    Zeros are added at the far ends until every entry is covered. `window=None` cuts plainly: the adjoint adds up the overlaps.
    With "flat" or "sine" (a half sine) the windows' squares sum to 1 at every entry: an isometry, `A.adjoint(A(x)) = x`.
    """
    structure = Structure.of(structure)
    shape = structure.shape[len(structure.shape) - len(size) :]
    if not 1 <= len(size) == len(stride) == len(shape):
        raise ValueError(
            f"patches: expected one size and stride per axis, got size {size}, stride {stride} for {structure.shape}."
        )
    if not all(1 <= step <= width <= n for step, width, n in zip(stride, size, shape, strict=True)):
        raise ValueError(f"patches: must have 1 <= stride <= size <= shape, got stride {stride}, size {size}, shape {shape}.")
    if window not in (None, *_WINDOWS):
        raise ValueError(f"patches: window must be None or one of {sorted(_WINDOWS)}, got {window!r}.")
    return Operator((), structure, Bound(_patches, (size, stride, window)))


_WINDOWS = {
    "flat": np.ones,
    "sine": lambda size: np.sin(np.pi * (np.arange(size) + 0.5) / size),
}


def _patches(_, x, size, stride, window):
    axes = len(size)
    for i in range(axes):
        # Axis i and those after it are in front of the pairs (count, width) of the axes before it.
        x = _windows(jnp.moveaxis(x, -axes - i, -1), size[i], stride[i], window)
    batch = x.ndim - 2 * axes
    return x.transpose(*range(batch), *range(batch, x.ndim, 2), *range(batch + 1, x.ndim, 2))


def _windows(x, width, step, window):
    """`(..., n) -> (..., count, width)`."""
    n = x.shape[-1]
    count = math.ceil((n - width) / step) + 1
    # A window is `overlap` neighboring blocks of `step` entries: no gather, whose adjoint would be a scatter.
    overlap = math.ceil(width / step)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(0, (count - 1 + overlap) * step - n))])
    blocks = x[..., : (count - 1 + overlap) * step].reshape(*x.shape[:-1], count - 1 + overlap, step)
    x = jnp.stack([blocks[..., i : i + count, :] for i in range(overlap)], axis=-2)
    x = x.reshape(*x.shape[:-2], overlap * step)[..., :width]
    if window is None:
        return x
    weights = jnp.asarray(_tight(_WINDOWS[window](width), count, step), x.real.dtype)
    return x * jnp.expand_dims(weights, tuple(range(x.ndim - 2)))


def _tight(taper, count, step):
    """`taper / sqrt(sum of the squares of all windows that cover an entry)`, one row per window."""
    index = step * np.arange(count)[:, None] + np.arange(len(taper))
    coverage = np.bincount(index.ravel(), np.tile(taper**2, count))
    return taper / np.sqrt(coverage[index])
