"""Pooling of images `batch height width channels`."""

import math

import jax.numpy as jnp
from jax import lax

from jaxnets.ops.common import Images, Padding, Pair, pads, pair
from jaxnets.types import Array, Float


def max_pool(x: Images, window: Pair, *, stride: Pair | None = None, padding: Padding = 0, ceil: bool = False) -> Images:
    """`y[i] = max_u x[s i + u - p]`; the stride is the window unless given; padding never wins."""
    window, stride, padding = _geometry(x, window, stride, padding, ceil)
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0)))


def average_pool(
    x: Images, window: Pair, *, stride: Pair | None = None, padding: Padding = 0, ceil: bool = False, count_padding: bool = True
) -> Images:
    """`y[i] = Σ_u x[s i + u - p] / n`, with the padding among the `n` unless `count_padding` is False."""
    window, stride, padding = _geometry(x, window, stride, padding, ceil)
    total = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *stride, 1), ((0, 0), *padding, (0, 0)))
    return total / math.prod(window)


def adaptive_average_pool(x: Images, size: Pair) -> Float[Array, "batch rows columns channels"]:
    """Mean over bin i of `size`: pixels `floor(i n / size)` to `ceil((i + 1) n / size)`, as in torch."""
    rows, columns = (_bins(n, m) for n, m in zip(x.shape[1:3], pair(size), strict=True))
    return jnp.einsum("ih,bhwc,jw->bijc", rows.astype(x.dtype), x, columns.astype(x.dtype))


def adaptive_max_pool(x: Images, size: Pair) -> Float[Array, "batch rows columns channels"]:
    """Maximum over the bins of `adaptive_average_pool`."""
    (height, width), (rows, columns) = x.shape[1:3], pair(size)
    x = jnp.stack([x[:, i * height // rows : -(-(i + 1) * height // rows)].max(1) for i in range(rows)], 1)
    return jnp.stack([x[:, :, i * width // columns : -(-(i + 1) * width // columns)].max(2) for i in range(columns)], 2)


def _bins(length: int, count: int) -> Float[Array, "count length"]:
    index, place = jnp.arange(count)[:, None], jnp.arange(length)[None, :]
    inside = (place >= index * length // count) & (place < -(-(index + 1) * length // count))
    return inside / inside.sum(1, keepdims=True)


def _geometry(x, window, stride, padding, ceil):
    window = pair(window)
    stride = window if stride is None else pair(stride)
    padding = pads(x.shape[1:3], window, stride, padding)
    if ceil:
        more = []
        for n, (low, high), k, s in zip(x.shape[1:3], padding, window, stride, strict=True):
            count = -(-(n + low + high - k) // s) + 1
            count -= (count - 1) * s >= n + low  # the last window must begin inside the image or its left padding
            more.append((low, max(high, (count - 1) * s + k - n - low)))
        padding = tuple(more)
    return window, stride, padding
