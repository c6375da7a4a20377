"""What the operations share: the geometry of a sliding window, its strided slices, and a formulation per platform."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.types import Array, Float

Images: TypeAlias = Float[Array, "batch height width channels"]
Pair: TypeAlias = int | tuple[int, int]
Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = int | tuple[int, int] | Sequence[tuple[int, int]] | str  # "SAME" or "VALID"


class Window(NamedTuple):
    """Output i sees the inputs `stride i + dilation u - padding` for u below `size`, in both directions of the image."""

    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: Pads

    def outputs(self, image: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the output for an image of so many."""
        rows, columns = (
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, d, p in zip(image, self.size, self.stride, self.dilation, self.padding, strict=True)
        )
        return rows, columns


def window(name: str, x: Images, size: Pair, stride: Pair, dilation: Pair, padding: Padding) -> Window:
    """The window, checked: `name` is the function that the errors name.

    `padding` is a number, a pair (rows, columns), ((top, bottom), (left, right)), or "SAME" or "VALID".

    Raises:
      ValueError: `x` is no batch of floating images; a number out of range; a window larger than the padded image.
    """
    check_images(name, x)
    size, stride, dilation = (pair(name, *item) for item in (("window", size), ("stride", stride), ("dilation", dilation)))
    span = [d * (n - 1) + 1 for d, n in zip(dilation, size, strict=True)]
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"{name}: padding must be numbers, 'SAME' or 'VALID', got {padding!r}.")
        padding = lax.padtype_to_pads(x.shape[1:3], span, stride, padding)
    if isinstance(padding, int | np.integer):
        padding = (padding, padding)
    rows, columns = ((p, p) if isinstance(p, int | np.integer) else (int(p[0]), int(p[1])) for p in padding)
    if min(*rows, *columns) < 0:
        raise ValueError(f"{name}: padding must be at least 0, got {padding}.")
    for n, p, s in zip(x.shape[1:3], (rows, columns), span, strict=True):
        if s > n + sum(p):
            raise ValueError(
                f"{name}: a window of {span} does not fit into an image of {x.shape[1:3]}, padded by {rows, columns}."
            )
    return Window(size, stride, dilation, (rows, columns))


def pair(name: str, what: str, value: Pair, least: int = 1) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int | np.integer) else value
    if min(rows, columns) < least:
        raise ValueError(f"{name}: {what} must be at least {least}, got {value}.")
    return rows, columns


def check_images(name: str, x: Images) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating images [batch, height, width, channels], got {x.dtype} {list(x.shape)}.")


def slices(x: Images, window: Window, padding_value: int | float = 0) -> list[Array]:
    """What each place of the window sees, in row-major order: as many strided slices of the padded image."""
    value = jnp.asarray(padding_value, x.dtype)
    rows, columns = window.outputs(x.shape[1:3])
    x = lax.pad(x, value, [(0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, 0, 0)])
    (down, right), (row_step, column_step) = window.dilation, window.stride
    return [
        x[:, top : top + (rows - 1) * row_step + 1 : row_step, left : left + (columns - 1) * column_step + 1 : column_step]
        for top in range(0, down * window.size[0], down)
        for left in range(0, right * window.size[1], right)
    ]


def on_cpu(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`fast` where a program is compiled for the CPU, `plain` elsewhere: equal, so that one exported program serves all.

    `fast` is compiled apart, as a convolution of XLA's is: fused into its readers it would be computed anew for each of them,
    which made LeNet's gradient three times slower. It adds in float32 at least, as XLA's own does.
    """
    if fast is plain:
        return plain

    def apart(*arguments):
        # one barrier for each: a joint one would make tangents of all of them, where a derivative is of one
        dtype = arguments[0].dtype
        wide = [lax.optimization_barrier(a).astype(jnp.promote_types(dtype, jnp.float32)) for a in arguments]
        return lax.optimization_barrier(fast(*wide).astype(dtype))

    return lambda *arguments: lax.platform_dependent(*arguments, cpu=apart, default=plain)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose derivative keeps its arguments alone: a window's slices are many copies of an image."""
    return jax.checkpoint(function, prevent_cse=False)


def dot(x: Array, matrix: Array) -> Array:
    """The product over the last axis of `x` and the first of the matrix.

    Of the image as a matrix: the gradient's sum over one axis of positions, not three, is up to 1.6 times faster on the CPU.
    """
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[1])


def interpolate(x: Images, rows: np.ndarray, columns: np.ndarray) -> Float[Array, "batch rows columns channels"]:
    """`y[i, j] = Σ_h Σ_w rows[i, h] columns[j, w] x[h, w]`, in float32 at least, also where products are coarser by default.

    What is not finite spreads over its whole image, for a weight of zero times NaN is NaN.
    """
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    down, right = jnp.asarray(rows.astype(x.dtype)), jnp.asarray(columns.astype(x.dtype))
    (height, width), down_first = x.shape[1:3], len(rows) * x.shape[2] * (x.shape[1] + len(columns))
    if down_first <= len(columns) * height * (width + len(rows)):  # fewer multiplications
        y = product("jw,bhwc->bhjc", right, product("ih,bhwc->biwc", down, x))
    else:
        y = product("ih,bhwc->biwc", down, product("jw,bhwc->bhjc", right, x))
    return y.astype(dtype)
