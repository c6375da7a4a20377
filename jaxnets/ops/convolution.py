"""Convolutions of images `batch height width channels` with kernels `rows columns inputs outputs`."""

import jax.numpy as jnp
from jax import lax

from jaxnets.ops.common import Images, Padding, Pair, pads, pair
from jaxnets.types import Array, Float

NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: Images,
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width outputs"]:
    """`y[i, o] = Σ_u Σ_c x[s i + d u - p, c] k[u, c, o]`, in both directions of the image; `inputs` is that of one group."""
    stride, dilation = pair(stride), pair(dilation)
    span = [d * (n - 1) + 1 for d, n in zip(dilation, kernel.shape[:2], strict=True)]
    padding = pads(x.shape[1:3], span, stride, padding)
    return lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=NHWC, feature_group_count=groups
    )


def transposed_convolution(
    x: Images,
    kernel: Float[Array, "rows columns channels outputs"],
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
) -> Float[Array, "batch out_height out_width outputs"]:
    """`y[s i + d u - p, o] += Σ_c x[i, c] k[u, c, o]`: torch's, whose size is `s (n - 1) + d (k - 1) + 1 - 2 p + output padding`."""
    stride, dilation, padding, extra = pair(stride), pair(dilation), pair(padding), pair(output_padding)
    ends = [d * (n - 1) - p for d, n, p in zip(dilation, kernel.shape[:2], padding, strict=True)]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        [(end, end + more) for end, more in zip(ends, extra, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=NHWC,
    )


def bilinear_kernel(size: int) -> Float[Array, "{size} {size}"]:
    """The kernel of bilinear upsampling as a transposed convolution. Source: Long et al. (2015), arXiv:1411.4038, code."""
    factor = (size + 1) // 2
    center = factor - (1.0 if size % 2 else 0.5)
    line = 1 - jnp.abs(jnp.arange(size) - center) / factor
    return line[:, None] * line[None, :]


def bilinear_upsample(x: Images, factor: int, size: int | None = None) -> Images:
    """Each channel's transposed convolution with `bilinear_kernel(size)`, stride `factor` and no padding; size 2 factor - factor % 2."""
    size = 2 * factor - factor % 2 if size is None else size
    channels = x.shape[-1]
    kernel = bilinear_kernel(size).astype(x.dtype)[:, :, None, None] * jnp.eye(channels, dtype=x.dtype)[None, None]
    return transposed_convolution(x, kernel, stride=factor)
