"""Convolution and pooling by hand, images in `batch height width channels`.

The gradient of a convolution is again a convolution: with respect to its input, of the cotangent with the flipped kernel;
with respect to its kernel, of the input with the cotangent. Stride and dilation change places on the way back.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Float

Images: TypeAlias = Float[Array, "batch height width channels"]
Pair: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConvolutionResiduals:
    """What the way back of a convolution needs."""

    x: Any
    kernel: Any
    stride: tuple[int, int] = dataclasses.field(metadata={"static": True})
    padding: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    dilation: tuple[int, int] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PoolResiduals:
    """What the way back of a pool needs: of an average no array at all."""

    x: Any
    y: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    window: tuple[int, int] = dataclasses.field(metadata={"static": True})
    stride: tuple[int, int] = dataclasses.field(metadata={"static": True})
    padding: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})


def convolution_forward(
    x: Images,
    kernel: Float[Array, "rows columns channels features"],
    bias: Float[Array, " features"],
    *,
    stride: Pair = 1,
    padding: Padding = "SAME",
    dilation: Pair = 1,
) -> tuple[Float[Array, "batch out_height out_width features"], ConvolutionResiduals]:
    """`y[i, o] = b[o] + Σ_u Σ_c x[s i + d u - p, c] k[u, c, o]`, in both directions of the image.

    `s` is the stride, `d` the dilation, `p` the padding before; explicit padding is `((top, bottom), (left, right))`.
    """
    stride, dilation = _pair(stride), _pair(dilation)
    span = [d * (size - 1) + 1 for d, size in zip(dilation, kernel.shape[:2], strict=True)]
    padding = _pads(x, span, stride, padding)
    y = jax.lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + jnp.broadcast_to(bias, y.shape), ConvolutionResiduals(x, kernel, stride, padding, dilation)


def convolution_backward(
    residuals: ConvolutionResiduals, cotangent: Float[Array, "batch out_height out_width features"]
) -> tuple[Array, Array, Array]:
    """`∂x[j, c] = Σ_i Σ_u Σ_o δ[i, o] k[u, c, o]` over the pairs with `s i + d u - p = j`;
    `∂k[u, c, o] = Σ_i Σ_batch x[s i + d u - p, c] δ[i, o]`; `∂b[o] = Σ δ[i, o]`.

    Source: LeCun et al. (1989), doi:10.1162/neco.1989.1.4.541; Dumoulin & Visin (2016), arXiv:1603.07285, section 4.
    """
    x, kernel, stride, dilation = residuals.x, residuals.kernel, residuals.stride, residuals.dilation
    input_pads, kernel_pads = [], []
    for axis, (before, _) in enumerate(residuals.padding):
        span = dilation[axis] * (kernel.shape[axis] - 1)  # of the dilated kernel, less one
        length = stride[axis] * (cotangent.shape[axis + 1] - 1) + 1  # of the cotangent with stride - 1 zeros between
        size = x.shape[axis + 1]
        # "Full" correlation gives an output for each input; a negative pad crops what the forward pass never read.
        input_pads.append((span - before, size - length + before))
        kernel_pads.append((before, span + length - size - before))
    input_gradient = jax.lax.conv_general_dilated(
        cotangent,
        kernel[::-1, ::-1],
        (1, 1),
        input_pads,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )
    # The sum runs over images and positions: the batch plays the channels, the channels play the batch.
    kernel_gradient = jax.lax.conv_general_dilated(
        x,
        cotangent,
        dilation,
        kernel_pads,
        rhs_dilation=stride,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    return input_gradient, kernel_gradient, cotangent.sum((0, 1, 2))


def max_pool_forward(
    x: Images, *, window: Pair = 2, stride: Pair | None = None, padding: Padding = "VALID"
) -> tuple[Float[Array, "batch out_height out_width channels"], PoolResiduals]:
    """`y[i] = max_u x[s i + u - p]`; the stride is the window unless given, padding never wins."""
    residuals = _pool(x, window, stride, padding)
    y = functools.reduce(jnp.maximum, _taps(x, residuals, -jnp.inf))
    return y, dataclasses.replace(residuals, x=x, y=y)


def max_pool_backward(
    residuals: PoolResiduals, cotangent: Float[Array, "batch out_height out_width channels"]
) -> tuple[Images]:
    """`∂x[j] = Σ_i δ[i]` over the windows whose maximum is `x[j]`; of equal values the first in row order receives it."""
    free = jnp.ones(cotangent.shape, bool)
    shares = []
    for tap in _taps(residuals.x, residuals, -jnp.inf):
        hit = free & (tap == residuals.y)
        free = free & ~hit
        shares.append(jnp.where(hit, cotangent, 0))
    return (_transposed_taps(shares, residuals),)


def average_pool_forward(
    x: Images, *, window: Pair = 2, stride: Pair | None = None, padding: Padding = "VALID"
) -> tuple[Float[Array, "batch out_height out_width channels"], PoolResiduals]:
    """`y[i] = Σ_u x[s i + u - p] / n` with the `n` positions of the window, padding (zeros) included as in Flax."""
    residuals = _pool(x, window, stride, padding)
    total = functools.reduce(jnp.add, _taps(x, residuals, 0))
    return total / math.prod(residuals.window), residuals


def average_pool_backward(
    residuals: PoolResiduals, cotangent: Float[Array, "batch out_height out_width channels"]
) -> tuple[Images]:
    """`∂x[j] = Σ_i δ[i] / n` over the windows that hold `j`."""
    size = math.prod(residuals.window)
    return (_transposed_taps([cotangent / size] * size, residuals),)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _pads(x, span, stride, padding):
    """`((top, bottom), (left, right))` for a window that spans `span` pixels and must fit into the padded images."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], span, stride, padding)
    padding = tuple((int(before), int(after)) for before, after in padding)
    if any(n + sum(pads) < size for n, pads, size in zip(x.shape[1:3], padding, span, strict=True)):
        raise ValueError(f"the window {tuple(span)} must fit into the padded images, got {x.shape[1:3]} + {padding}.")
    return padding


def _pool(x, window, stride, padding):
    window = _pair(window)
    stride = window if stride is None else _pair(stride)
    padding = _pads(x, window, stride, padding)
    return PoolResiduals(None, None, x.shape, window, stride, padding)


def _tap_slices(pool):
    """Where in the padded images each position of the window finds its value for all windows."""
    size = [n + sum(pads) for n, pads in zip(pool.shape[1:3], pool.padding, strict=True)]
    stops = [n - window + 1 for n, window in zip(size, pool.window, strict=True)]
    for offset in itertools.product(*map(range, pool.window)):
        rows, columns = (slice(u, u + stop, s) for u, stop, s in zip(offset, stops, pool.stride, strict=True))
        yield slice(None), rows, columns


def _taps(x, pool, fill):
    padded = jnp.pad(x, ((0, 0), *pool.padding, (0, 0)), constant_values=fill)
    return [padded[at] for at in _tap_slices(pool)]


def _transposed_taps(shares, pool):
    """The transpose of `_taps`: adds each position's share back where it was read, then crops the padding."""
    batch, height, width, channels = pool.shape
    (top, bottom), (left, right) = pool.padding
    padded = jnp.zeros((batch, top + height + bottom, left + width + right, channels), shares[0].dtype)
    for at, share in zip(_tap_slices(pool), shares, strict=True):
        padded = padded.at[at].add(share)
    return padded[:, top : top + height, left : left + width]
