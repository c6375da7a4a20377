"""Pooling of images `batch height width channels`."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.ops import common
from jaxnets.ops.common import Images, Padding, Pair, Window
from jaxnets.types import Array, Float


def max_pool(
    x: Images, window: Pair, *, stride: Pair | None = None, padding: Padding = 0, ceil: bool = False
) -> Float[Array, "batch rows columns channels"]:
    """`y[i] = max_u x[s i + u - p]`; the stride is the window unless given; padding never wins; NaN does.

    `ceil` keeps the last, incomplete window, if it begins inside the image or its left padding, as in torch. Of equal
    values the first in row-major order takes the gradient, as in torch.

    Raises:
      ValueError: an input that is no batch of floating images, a window that does not fit, a number out of range, or more
        padding than half the window.
    """
    place = _window("max_pool", x, window, stride, padding, ceil)
    return common.recomputed(common.on_cpu(*(functools.partial(f, window=place) for f in (_largest, _plain_max))))(x)


def average_pool(
    x: Images, window: Pair, *, stride: Pair | None = None, padding: Padding = 0, ceil: bool = False, count_padding: bool = True
) -> Float[Array, "batch rows columns channels"]:
    """`y[i] = Σ_u x[s i + u - p] / n`, with the padding among the `n` unless `count_padding` is False.

    `ceil` and errors as for `max_pool`; what lies beyond the padding is never counted.
    """
    place = _window("average_pool", x, window, stride, padding, ceil)
    given = common.window("average_pool", x, window, place.stride, 1, padding).padding
    rows, columns = (
        _counts(n, m, k, s, low, low if count_padding else 0, high if count_padding else 0)
        for n, m, k, s, (low, high) in zip(
            x.shape[1:3], place.outputs(x.shape[1:3]), place.size, place.stride, given, strict=True
        )
    )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = common.on_cpu(*(functools.partial(f, window=place) for f in (_total, _plain_total)))(wide)
    return (total * jnp.asarray(1 / np.outer(rows, columns), wide.dtype)[None, :, :, None]).astype(x.dtype)


def adaptive_average_pool(x: Images, size: Pair) -> Float[Array, "batch rows columns channels"]:
    """Mean over bin i of `size`: pixels `floor(i n / size)` to `ceil((i + 1) n / size)`, as in torch, also for fewer pixels.

    Raises:
      ValueError: an input that is no batch of floating images, or without pixels; a size below 1.
    """
    (height, width), (rows, columns) = x.shape[1:3], _adaptive("adaptive_average_pool", x, size)
    if height % rows == 0 and width % columns == 0:
        return x.reshape(x.shape[0], rows, height // rows, columns, width // columns, x.shape[3]).mean((2, 4))
    return common.interpolate(x, _shares(height, rows), _shares(width, columns))


def adaptive_max_pool(x: Images, size: Pair) -> Float[Array, "batch rows columns channels"]:
    """Maximum over the bins of `adaptive_average_pool`; equal values share the gradient."""
    sizes = _adaptive("adaptive_max_pool", x, size)
    rows, columns = (_bins(n, m) for n, m in zip(x.shape[1:3], sizes, strict=True))
    x = jnp.stack([x[:, low:high].max(1) for low, high in rows], 1)
    return jnp.stack([x[:, :, low:high].max(2) for low, high in columns], 2)


def _adaptive(name: str, x: Images, size: Pair) -> tuple[int, int]:
    common.check_images(name, x)
    if 0 in x.shape[1:3]:
        raise ValueError(f"{name}: an image needs pixels, got {list(x.shape)}.")
    return common.pair(name, "size", size)


def _bins(length: int, count: int) -> list[tuple[int, int]]:
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def _shares(length: int, count: int) -> np.ndarray:
    """`[count, length]`, each row the weights of a bin's mean."""
    return np.array([[(low <= i < high) / (high - low) for i in range(length)] for low, high in _bins(length, count)])


def _counts(length, outputs, size, stride, start, low, high):
    """How many of each window's places are inside the image and the counted padding."""
    first = np.arange(outputs) * stride - start
    return np.minimum(first + size, length + high) - np.maximum(first, -low)


def _window(name: str, x: Images, size: Pair, stride: Pair | None, padding: Padding, ceil: bool) -> Window:
    """The window, with the padding at the end that its `ceil`-th place needs."""
    window = common.window(name, x, size, size if stride is None else stride, 1, padding)
    if any(p > k // 2 for pads, k in zip(window.padding, window.size, strict=True) for p in pads):
        raise ValueError(f"{name}: padding must be at most half the window {window.size}, got {padding}.")
    if not ceil:
        return window
    pads = []
    for n, (low, high), k, s in zip(x.shape[1:3], window.padding, window.size, window.stride, strict=True):
        count = -(-(n + low + high - k) // s) + 1
        count -= (count - 1) * s >= n + low  # the last window must begin inside the image or its left padding
        pads.append((low, max(0, (count - 1) * s + k - n - low)))
    return window._replace(padding=(pads[0], pads[1]))


# --- formulations: equal in value and gradient ---


def _largest(x, window):
    """The maximum over strided slices; of a large window along rows first, then along columns, for a shorter program."""
    steps = [window]
    if math.prod(window.size) > 16:
        (rows, columns), (down, right) = window.size, window.stride
        steps = [
            Window((1, columns), (1, right), (1, 1), ((0, 0), window.padding[1])),
            Window((rows, 1), (down, 1), (1, 1), (window.padding[0], (0, 0))),
        ]
    for step in steps:
        x = functools.reduce(_later_if_larger, common.slices(x, step, -jnp.inf))
    return x


def _later_if_larger(first, later):
    return jnp.where((later > first) | (later != later), later, first)


def _plain_max(x, window):
    return _reduce_window(x, window, -jnp.inf, lax.max)


def _total(x, window):
    if math.prod(window.size) <= 16:
        return sum(common.slices(x, window))
    ones = [
        np.array([[0 <= i + low - s * j < k for i in range(n)] for j in range(m)], float)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:3], window.outputs(x.shape[1:3]), window.size, window.stride, window.padding, strict=True
        )
    ]
    return common.interpolate(x, *ones)


def _plain_total(x, window):
    return _reduce_window(x, window, 0.0, lax.add)


def _reduce_window(x, window, start, combine):
    # a scalar of NumPy: only a start known to be the identity has a gradient
    start = np.asarray(start, x.dtype)[()]
    return lax.reduce_window(x, start, combine, (1, *window.size, 1), (1, *window.stride, 1), ((0, 0), *window.padding, (0, 0)))
