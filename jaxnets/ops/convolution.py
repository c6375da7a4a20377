"""Convolution of images `batch height width channels` with kernels `rows columns inputs outputs`.

On the CPU, XLA runs a plain convolution well, but falls to a scalar loop for depthwise and grouped ones. There those are
products of matrices, shifted multiply-adds or dense blocks, and 3x3 of many channels is minimal filtering: see `formulation`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxnets.ops import common
from jaxnets.ops.common import Images, Padding, Pair, Window
from jaxnets.ops.winograd import filters, winograd
from jaxnets.types import Array, Float

Form = Callable[[Any, Any], Any]  # (x, kernel) -> y, linear in each


class Formulation(NamedTuple):
    """How a convolution is computed, and how its derivative: the reverse mode transposes what is written here."""

    forward: Form
    inputs: Form  # of (dx, kernel)
    kernel: Form  # of (x, dkernel)


def convolution(
    x: Images,
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width outputs"]:
    """`y[i, o] = Σ_u Σ_c x[s i + d u - p, c] k[u, c, o]`, in both directions of the image; `inputs` is that of one group.

    `padding` is a number, a pair (rows, columns), ((top, bottom), (left, right)), or "SAME" or "VALID".

    Raises:
      ValueError: an input that is no batch of floating images, a kernel of another rank, channels that it doesn't take,
        outputs that the groups don't divide, a window that does not fit, or a number out of range.
    """
    if kernel.ndim != 4:
        raise ValueError(f"convolution: expected a kernel [rows, columns, inputs, outputs], got {list(kernel.shape)}.")
    window = common.window("convolution", x, (kernel.shape[0], kernel.shape[1]), stride, dilation, padding)
    if groups < 1 or kernel.shape[3] % groups:
        raise ValueError(f"convolution: groups must divide the {kernel.shape[3]} outputs of the kernel, got {groups}.")
    if x.shape[3] != kernel.shape[2] * groups:
        takes = f"a kernel of {list(kernel.shape)} in {groups} groups takes {kernel.shape[2] * groups} channels"
        raise ValueError(f"convolution: {takes}, got {x.shape[3]}.")
    dtype = jnp.result_type(x, kernel)
    return _convolve(x.astype(dtype), kernel.astype(dtype), window, groups)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, window, groups):
    return formulation(x.shape, kernel.shape, window, groups).forward(x, kernel)


def _convolve_jvp(window, groups, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    form = formulation(x.shape, kernel.shape, window, groups)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(form.inputs(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(form.kernel(x, dkernel))
    return _convolve(x, kernel, window, groups), sum(parts[1:], parts[0])


_convolve.defjvp(_convolve_jvp, symbolic_zeros=True)


def formulation(image: tuple[Any, ...], kernel: tuple[int, ...], window: Window, groups: int) -> Formulation:
    """The fastest on the CPU for these shapes; elsewhere the plain one. Measured: `experiments/benchmarks/vision_ops.py`."""
    plain, shifted, product = (functools.partial(f, window=window, groups=groups) for f in (_plain, _shifted, _product))
    places, channels, outputs = math.prod(window.size), image[3], kernel[3]
    positions = math.prod(window.outputs(image[1:3]))
    images = image[0] if isinstance(image[0], int) else 1  # unknown until an exported program is called
    seen = images * positions * places * channels  # numbers in the matrix of a product
    if groups == channels > 1:
        flipped, by_rows = (functools.partial(f, window=window, groups=groups) for f in (_flipped, _by_rows))
        large = window.stride == (1, 1) and places > 9 and outputs == groups
        forms = Formulation(shifted, flipped if large else shifted, by_rows)
    elif groups > 1:
        form = product if positions <= 64 else functools.partial(_blocks, window=window, groups=groups)
        forms = Formulation(form, form, form)
    elif min(channels, outputs) >= 96 and images * positions >= 512 and filters(image, window):
        # A small one takes as long to compile as a large one, and gains less.
        heavy = seen * outputs >= 8e8 or window.dilation != (1, 1)
        form = functools.partial(winograd, window=window) if heavy else plain
        forms = Formulation(form, form, form)
    elif places == 1 or (channels >= 128 and seen <= 2**22) or (channels >= 512 and positions <= 256):
        forms = Formulation(product, product, product)
    elif channels < 16:
        # The product's gradient is a sum of many parts, which jax 0.10 computes anew for each place of a pool's window.
        few = channels == 1 or seen <= 2**21
        forms = Formulation(shifted if channels == 1 else plain, product if few else plain, plain)
    else:
        forms = Formulation(plain, plain, plain)
    forward, *derivative = (common.on_cpu(form, plain) for form in forms)
    return Formulation(forward, *(common.recomputed(form) for form in derivative))


# --- formulations: equal in value and gradient ---


def _plain(x, kernel, window, groups):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, window.stride, window.padding, (1, 1), window.dilation, numbers, feature_group_count=groups
    )


def _product(x, kernel, window, groups):
    """A product of matrices for each group, with all that the window sees in a row of one; a window of one needs no copy."""
    rows, columns, inputs, outputs = kernel.shape
    seen = common.slices(x, window)
    if groups == 1:
        return common.dot(jnp.concatenate(seen, axis=-1), kernel.reshape(-1, outputs))
    seen = [s.reshape(*s.shape[:3], groups, inputs) for s in seen]
    kernel = kernel.reshape(rows * columns * inputs, groups, outputs // groups)
    y = jnp.einsum("bhwgi,igo->bhwgo", jnp.concatenate(seen, axis=-1), kernel)
    return y.reshape(*y.shape[:3], outputs)


def _blocks(x, kernel, window, groups):
    """Plain convolutions of blocks of about 64 channels, whose kernels are zero from one group to another."""
    rows, columns, inputs, outputs = kernel.shape
    together = max(m for m in range(1, max(64 // inputs, 1) + 1) if groups % m == 0)
    kernel = kernel.reshape(rows, columns, inputs, groups // together, together, outputs // groups)
    kernel = jnp.einsum("uvibgo,gh->buvhigo", kernel, jnp.eye(together, dtype=kernel.dtype))
    kernel = kernel.reshape(groups // together, rows, columns, together * inputs, -1)
    blocks = zip(jnp.split(x, len(kernel), axis=-1), kernel, strict=True)
    return jnp.concatenate([_plain(part, k, window, 1) for part, k in blocks], axis=-1)


def _shifted(x, kernel, window, groups):
    """The sum over the places of the window of a product of matrices each; without sums over channels if depthwise."""
    rows, columns, inputs, outputs = kernel.shape
    kernels = kernel.reshape(rows * columns, inputs, outputs)
    seen = common.slices(x, window)
    if groups == 1:
        return sum(common.dot(s, k) for s, k in zip(seen, kernels, strict=True))
    if outputs > groups:
        seen = [jnp.repeat(s, outputs // groups, axis=-1) for s in seen]
    return sum(s * k[None, None] for s, k in zip(seen, kernels, strict=True))


def _flipped(x, kernel, window, groups):
    """The transpose of depthwise multiply-adds with the flipped kernel: its own is those, of slices and not of pads."""
    sizes = zip(window.size, window.dilation, window.padding, strict=True)
    pads = [(d * (k - 1) - low, d * (k - 1) - high) for k, d, (low, high) in sizes]
    back = window._replace(padding=tuple(pads))
    y = jax.ShapeDtypeStruct((x.shape[0], *window.outputs(x.shape[1:3]), kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: _shifted(y, kernel[::-1, ::-1], back, groups), y)(x)[0]


def _by_rows(x, kernel, window, groups):
    """Depthwise multiply-adds, a row of the output at a time: the gradient of the kernel then adds up in an array of one row.

    XLA's CPU backend sums over all but the last axis in a scalar loop, 5 to 10 times slower.
    """
    rows, columns = window.outputs(x.shape[1:3])
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, 0, 0)])
    height = window.dilation[0] * (window.size[0] - 1) + 1
    strip = window._replace(padding=((0, 0), (0, 0)))
    kernel = jnp.broadcast_to(kernel.reshape(-1, 1, kernel.shape[3]), (math.prod(window.size), columns, kernel.shape[3]))

    @common.recomputed
    def row(kernel, x, top):
        seen = common.slices(lax.dynamic_slice_in_dim(x, top, height, axis=1), strip)
        return sum(jnp.repeat(s[:, 0], kernel.shape[2] // groups, -1) * k[None] for s, k in zip(seen, kernel, strict=True))

    tops = jnp.arange(rows) * window.stride[0]
    return jnp.moveaxis(lax.map(lambda top: row(kernel, x, top), tops), 0, 1)
