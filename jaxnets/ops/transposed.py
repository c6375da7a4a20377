"""Transposed convolution of images `batch height width channels`, and bilinear upsampling as one."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.ops import common
from jaxnets.ops.common import Images, Pair
from jaxnets.types import Array, Float


def transposed_convolution(
    x: Images,
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
) -> Float[Array, "batch out_height out_width outputs"]:
    """`y[s i + d u - p, o] += Σ_c x[i, c] k[u, c, o]`, of size `s (n - 1) + d (k - 1) + 1 - 2 p + output padding`, as torch's.

    Raises:
      ValueError: an input that is no batch of floating images, channels that the kernel does not take, a number out of range,
        output padding not below the stride or the dilation, or padding that leaves nothing.
    """
    name = "transposed_convolution"
    common.check_images(name, x)
    if kernel.ndim != 4:
        raise ValueError(f"{name}: expected a kernel [rows, columns, inputs, outputs], got {list(kernel.shape)}.")
    stride, dilation = common.pair(name, "stride", stride), common.pair(name, "dilation", dilation)
    padding, extra = common.pair(name, "padding", padding, 0), common.pair(name, "output_padding", output_padding, 0)
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(f"{name}: a kernel of {list(kernel.shape)} takes {kernel.shape[2]} channels, got {x.shape[3]}.")
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(f"{name}: output_padding must be below the stride or the dilation, got {output_padding}.")
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    numbers = zip(stride, x.shape[1:3], span, padding, extra, strict=True)
    size = [s * (n - 1) + k - 2 * p + e for s, n, k, p, e in numbers]
    if min(size) < 1:
        raise ValueError(f"{name}: padding {padding} leaves an output of {size}.")
    dtype = jnp.result_type(x, kernel)
    forms = (functools.partial(f, stride=stride, padding=padding, size=size, dilation=dilation) for f in (_phases, _plain))
    return common.recomputed(common.on_cpu(*forms))(x.astype(dtype), kernel.astype(dtype))


def bilinear_kernel(size: int) -> Float[Array, "{size} {size}"]:
    """The kernel of bilinear upsampling as a transposed convolution. Source: Long et al. (2015), arXiv:1411.4038, code."""
    if size < 1:
        raise ValueError(f"bilinear_kernel: size must be at least 1, got {size}.")
    line = jnp.asarray(_tent(size))
    return line[:, None] * line[None, :]


def bilinear_upsample(x: Images, factor: int, size: int | None = None) -> Float[Array, "batch rows columns channels"]:
    """Each channel's transposed convolution with `bilinear_kernel(size)`, stride `factor`; `factor (n - 1) + size` pixels.

    `size` is `2 factor - factor % 2` unless given. Two products with interpolation matrices. The interior is an interpolation;
    the border, which sees zeros outside the image, is for cropping.
    """
    size = 2 * factor - factor % 2 if size is None else size
    if factor < 1 or size < 1:
        raise ValueError(f"bilinear_upsample: factor and size must be at least 1, got {factor} and {size}.")
    common.check_images("bilinear_upsample", x)
    rows, columns = (_spread(n, factor, _tent(size)) for n in x.shape[1:3])
    return common.interpolate(x, rows, columns)


def _tent(size: int) -> np.ndarray:
    factor = (size + 1) // 2
    center = factor - (1.0 if size % 2 else 0.5)
    return 1 - np.abs(np.arange(size) - center) / factor


def _spread(length: int, factor: int, line: np.ndarray) -> np.ndarray:
    """`[factor (length - 1) + size, length]`: column i holds `line` from `factor i` on."""
    weights = np.zeros((factor * (length - 1) + len(line), length))
    for i in range(length):
        weights[factor * i : factor * i + len(line), i] = line
    return weights


def _plain(x, kernel, stride, padding, size, dilation):
    ends = [d * (k - 1) - p for d, k, p in zip(dilation, kernel.shape[:2], padding, strict=True)]
    spread = zip(stride, x.shape[1:3], ends, size, dilation, kernel.shape[:2], strict=True)
    pads = [(end, m + d * (k - 1) - (s * (n - 1) + 1) - end) for s, n, end, m, d, k in spread]
    kernel = kernel[::-1, ::-1]
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, stride, dilation, numbers)


def _phases(x, kernel, stride, padding, size, dilation):
    """Sub-pixel: output `s i + r` sees `x[i - t] k[s t + r]` for all t, one product of matrices for all s x s phases r."""
    (rows, columns), channels, outputs = stride, *kernel.shape[2:]
    zero = jnp.zeros((), x.dtype)
    kernel = lax.pad(kernel, zero, [*((0, 0, d - 1) for d in dilation), (0, 0, 0), (0, 0, 0)])
    taps = [-(-k // s) for k, s in zip(kernel.shape[:2], stride, strict=True)]
    whole = [(0, t * s - k, 0) for t, s, k in zip(taps, stride, kernel.shape[:2], strict=True)]
    kernel = lax.pad(kernel, zero, [*whole, (0, 0, 0), (0, 0, 0)])
    kernel = kernel.reshape(taps[0], rows, taps[1], columns, channels, outputs)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(math.prod(taps) * channels, -1)
    ends = ((taps[0] - 1,) * 2, (taps[1] - 1,) * 2)
    seen = jnp.concatenate(common.slices(x, common.Window((taps[0], taps[1]), (1, 1), (1, 1), ends)), axis=-1)
    y = lax.dot_general(seen, kernel, (((3,), (0,)), ((), ())))
    y = y.reshape(*y.shape[:3], rows, columns, outputs).swapaxes(2, 3)
    y = y.reshape(x.shape[0], y.shape[1] * rows, y.shape[3] * columns, outputs)
    crop = [(-p, m + p - n, 0) for p, m, n in zip(padding, size, y.shape[1:3], strict=True)]
    return lax.pad(y, zero, [(0, 0, 0), *crop, (0, 0, 0)])
