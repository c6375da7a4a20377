"""Convolution with a 3x3 kernel in 16 products for each 2x2 outputs, where the definition takes 36."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.ops import common

_TAPS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G, of the kernel


def filters(image, window: common.Window) -> bool:
    """Whether `winograd` takes the window and doesn't waste too much on the margin of its blocks."""
    outputs = window.outputs(image[1:3])
    wasted = math.prod(2 * d * -(-n // (2 * d)) / n for n, d in zip(outputs, window.dilation, strict=True))
    return window.size == (3, 3) and window.stride == (1, 1) and wasted <= 1.8


def winograd(x, kernel, window: common.Window):
    """The convolution with a kernel [3, 3, inputs, outputs] and stride 1, as 16 products of matrices.

    In one direction two outputs of three taps need four products instead of six: `y = Aᵀ (G g ⊙ Bᵀ d)`, and the image is that
    twice over. With a dilation the d interleaved images are filtered alike. Its error is two to three times the plain form's.

    Source: Lavin & Gray (2015), F(2x2, 3x3), arXiv:1509.09308, section 4.1.
    """
    outputs = window.outputs(x.shape[1:3])
    blocks = [-(-n // (2 * d)) for n, d in zip(outputs, window.dilation, strict=True)]  # of 2 d outputs
    spans = [2 * d * (n + 1) for n, d in zip(blocks, window.dilation, strict=True)]
    pads = [(low, span - low - n) for n, span, (low, _) in zip(x.shape[1:3], spans, window.padding, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
    (down, across), (rows, columns) = window.dilation, blocks
    x = x.reshape(x.shape[0], rows + 1, 2, down, columns + 1, 2, across, x.shape[3])

    # The barriers keep XLA from computing the sums along the rows anew in each of those along the columns.
    seen = [_seen(lax.optimization_barrier(part), 3) for part in _seen(x, 1)]
    taps = common.dot(jnp.asarray(np.kron(_TAPS, _TAPS), x.dtype), kernel.reshape(9, -1)).reshape(4, 4, *kernel.shape[2:])
    products = [[common.dot(part, k) for part, k in zip(*pair, strict=True)] for pair in zip(seen, taps, strict=True)]
    sums = [lax.optimization_barrier(jnp.stack(_sums(*row), 4)) for row in products]
    y = jnp.stack(_sums(*sums), 2).reshape(x.shape[0], 2 * down * rows, 2 * across * columns, -1)
    return y[:, : outputs[0], : outputs[1]]


def _seen(x, axis):
    """Bᵀ d: of blocks `[..., n + 1, 2, ...]` at `axis`, what the four products see of each pair of neighbors."""
    even, odd = (lax.index_in_dim(x, half, axis + 1, keepdims=False) for half in (0, 1))
    n = even.shape[axis]
    a, b = (lax.slice_in_dim(half, 0, n - 1, axis=axis) for half in (even, odd))
    c, d = (lax.slice_in_dim(half, 1, n, axis=axis) for half in (even, odd))
    return a - c, b + c, c - b, b - d


def _sums(a, b, c, d):
    """Aᵀ m: the two outputs."""
    return a + b + c, b - c - d
