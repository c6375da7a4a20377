"""Operators on the entries of one array: matrix, diagonal, selection, differences, sums, interpolation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.linear.operator import Bound, Operator, Structure, from_end, inexact
from jaxnets.types import Array, Bool, Float, Num, PyTree


def identity(structure: PyTree) -> Operator:
    """`x`, of any structure."""
    return Operator((), Structure.of(structure), _identity, _identity)


def matrix(a: Num[Array, "rows columns"], structure: PyTree = None, *, axis: int = -1) -> Operator:
    """`a x`: of a vector, or with a `structure` (one array) along one of its axes."""
    a = inexact(a)
    if structure is None:
        return Operator(a, Structure.of(a.shape[1], a.dtype), _matrix_vector, _vector_matrix)
    structure = Structure.of(structure, a.dtype)
    (axis,) = from_end("matrix", structure, (axis,))
    if structure.shape[axis] != a.shape[1]:
        raise ValueError(f"matrix: expected {a.shape[1]} entries along axis {axis}, got the shape {structure.shape}.")
    return Operator(a, structure, Bound(_matrix_along, (axis,)), Bound(_adjoint_along, (axis,)))


def diagonal(d: PyTree) -> Operator:
    """`d x`, entry by entry; `d` is an array or any pytree of arrays."""
    d = inexact(d)
    return Operator(d, Structure.of(d), _multiply, _multiply_conjugate)


def mask(keep: Bool[Array, "..."], structure: PyTree = None) -> Operator:
    """`x` where `keep` is true, 0 elsewhere (even where `x` is not finite). A projection: its own adjoint."""
    structure = Structure.of(keep.shape if structure is None else structure)
    if structure.shape != keep.shape:
        raise ValueError(f"mask: expected a mask of shape {structure.shape}, got {keep.shape}.")
    return Operator(keep, structure, _keep, _keep)


def restriction(structure: PyTree, index: slice | Sequence[int] | np.ndarray | Array, *, axis: int = -1) -> Operator:
    """`x[..., index]` along an axis: known traces or samples. The adjoint puts them back among zeros (and adds repeated ones).

    A slice is the fastest form; booleans, one per entry, select. Raises ValueError for indices beyond the axis, and for
    booleans that are traced or of another number.
    """
    structure = Structure.of(structure)
    (axis,) = from_end("restriction", structure, (axis,))
    if isinstance(index, slice):
        return Operator((), structure, Bound(_slice, (index.indices(structure.shape[axis]), axis)))
    entries = structure.shape[axis]
    if isinstance(index, jax.core.Tracer):
        if index.dtype == bool:
            raise ValueError(
                "restriction: booleans must not be traced, their number of trues is a shape; `mask` keeps the shape."
            )
    else:
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != (entries,):
                raise ValueError(f"restriction: expected {entries} booleans, one per entry, got the shape {index.shape}.")
            index = np.flatnonzero(index)
        beyond = [int(i) for i in index if not -entries <= i < entries]
        if beyond:
            raise ValueError(f"restriction: index {beyond[0]} is beyond an axis of {entries} entries.")
    return Operator(jnp.asarray(index), structure, Bound(_take, (axis,)))


def difference(structure: PyTree, *, axis: int = -1) -> Operator:
    """Forward difference `x[i + 1] - x[i]`, 0 at the last entry (Neumann); the length stays."""
    structure = Structure.of(structure)
    return Operator((), structure, Bound(_difference, from_end("difference", structure, (axis,))))


def gradient(structure: PyTree, *, axes: tuple[int, ...] = (-2, -1)) -> Operator:
    """Forward differences along each of `axes`, stacked in a new leading axis; isotropic total variation takes its norm."""
    structure = Structure.of(structure)
    return Operator((), structure, Bound(_gradient, (from_end("gradient", structure, axes),)))


def cumulative_sum(structure: PyTree, *, axis: int = -1) -> Operator:
    """`y[i] = sum_{j <= i} x[j]`, the inverse of a causal difference: reflectivity to log impedance."""
    structure = Structure.of(structure)
    (axis,) = from_end("cumulative_sum", structure, (axis,))
    return Operator((), structure, Bound(_cumulative_sum, (axis, False)), Bound(_cumulative_sum, (axis, True)))


def interpolation(structure: PyTree, positions: Float[Array, " length"], *, axis: int = -1, kernel: str = "linear") -> Operator:
    """Values at real-valued positions [entries] along an axis, by the kernel "linear" or "sinc"; `x` is 0 beyond its ends.

    A dense `[length, entries]` matrix along the axis; gradients reach `positions`.
    """
    structure = Structure.of(structure)
    (axis,) = from_end("interpolation", structure, (axis,))
    if kernel not in _KERNELS:
        raise ValueError(f"interpolation: kernel must be one of {sorted(_KERNELS)}, got {kernel!r}.")
    distance = positions[:, None] - jnp.arange(structure.shape[axis], dtype=positions.dtype)[None]
    return matrix(_KERNELS[kernel](distance), structure, axis=axis)


def resample(structure: PyTree, length: int, *, axis: int = -1, kernel: str = "linear") -> Operator:
    """`interpolation` at `length` equidistant positions, both ends kept. It has no anti-alias filter."""
    structure = Structure.of(structure)
    if length < 1:
        raise ValueError(f"resample: length must be at least 1, got {length}.")
    last = structure.shape[from_end("resample", structure, (axis,))[0]] - 1
    positions = jnp.linspace(0, last, length, dtype=jnp.finfo(structure.dtype).dtype)
    return interpolation(structure, positions, axis=axis, kernel=kernel)


def _triangle(distance):
    return jnp.maximum(0, 1 - jnp.abs(distance))


# Accelerators would round the factors to 10 bits or fewer; a product with a vector waits for memory, so exact is free.
_PRECISION = jax.lax.Precision.HIGHEST
_KERNELS = {"linear": _triangle, "sinc": jnp.sinc}


def _identity(_, x):
    return x


def _matrix_vector(a, x):
    return jnp.matmul(a, x, precision=_PRECISION)


def _vector_matrix(a, y):
    # Never `a.T @ y`: inside a loop it is far slower on CPU. Conjugating the vector twice is cheaper than the matrix once.
    return jnp.conj(jnp.matmul(jnp.conj(y), a, precision=_PRECISION))


def _matrix_along(a, x, axis):
    return jnp.moveaxis(jnp.tensordot(x, a, (axis, 1), precision=_PRECISION), -1, axis)


def _adjoint_along(a, y, axis):
    return jnp.moveaxis(jnp.conj(jnp.tensordot(jnp.conj(y), a, (axis, 0), precision=_PRECISION)), -1, axis)


def _multiply(d, x):
    return jax.tree.map(jnp.multiply, d, x)


def _multiply_conjugate(d, y):
    return jax.tree.map(lambda d, y: jnp.conj(d) * y, d, y)


def _keep(keep, x):
    return jnp.where(keep, x, 0)


def _slice(_, x, index, axis):
    start, stop, step = index
    return jnp.moveaxis(jnp.moveaxis(x, axis, 0)[slice(start, stop if stop >= 0 else None, step)], 0, axis)


def _take(index, x, axis):
    return jnp.take(x, index, axis=axis)


def _difference(_, x, axis):
    x = jnp.moveaxis(x, axis, -1)
    last = jnp.zeros_like(x[..., :1])
    return jnp.moveaxis(jnp.concatenate([x[..., 1:] - x[..., :-1], last], axis=-1), -1, axis)


def _gradient(_, x, axes):
    return jnp.stack([_difference(None, x, axis) for axis in axes])


def _cumulative_sum(_, x, axis, reverse):
    return jax.lax.cumsum(x, axis=axis % x.ndim, reverse=reverse)
