"""A linear operator as plain data, and the algebra of operators."""

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.proximal import tree
from jaxnets.types import PyTree


@dataclasses.dataclass(frozen=True)
class Structure:
    """Shapes and dtypes of a pytree: hashable, so that it can be static under jit."""

    treedef: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, example: PyTree, dtype: Any = None) -> "Structure":
        """Structure of a pytree of arrays or `jax.ShapeDtypeStruct`; an int or a tuple of them is the shape of one array."""
        if isinstance(example, Structure):
            return example
        if isinstance(example, numbers.Integral):
            example = (example,)
        if isinstance(example, tuple) and all(isinstance(n, numbers.Integral) for n in example):
            example = jax.ShapeDtypeStruct(tuple(map(int, example)), jnp.result_type(float) if dtype is None else dtype)
        leaves, treedef = jax.tree.flatten(example)
        return cls(treedef, tuple((jnp.shape(leaf), jnp.dtype(jnp.result_type(leaf))) for leaf in leaves))

    def tree(self) -> PyTree:
        """The pytree of `jax.ShapeDtypeStruct`."""
        return jax.tree.unflatten(self.treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])

    def zeros(self) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.tree())

    def shapes(self) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.shape, self.tree())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, of a structure that is one array."""
        if not jax.tree_util.treedef_is_leaf(self.treedef):
            raise ValueError(f"linear: expected the structure of one array, got {self.shapes()}.")
        return self.leaves[0][0]

    @property
    def dtype(self) -> Any:
        """The dtype that the leaves promote to."""
        return jnp.result_type(*(dtype for _, dtype in self.leaves))


@dataclasses.dataclass(frozen=True)
class Bound:
    """`function(params, x, *options)` as a function of `(params, x)` that compares by value: equal options never recompile.

    A `functools.partial` or a closure compares by identity.
    """

    function: Callable
    options: tuple = ()

    def __call__(self, params, x):
        return self.function(params, x, *self.options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operator:
    """`A(x)` applies it, `A.adjoint(y)` its adjoint, `A.H` is the adjoint operator; `A @ B`, `A + B`, `2 * A`, `-A` compose.

    `params` are arrays (leaves: gradients and `vmap` reach them); `forward(params, x)` and `backward(params, y)` are static and
    compare by value (module-level functions, or `Bound`). With `backward=None` the adjoint comes from `jax.linear_transpose`.
    `<A x, y> = <x, A.H y>` in the real inner product: an operator from real to complex numbers has a real adjoint.
    Raises ValueError where the shapes are not the expected ones, or are complex instead of real.
    """

    params: Any
    structure: Structure = dataclasses.field(metadata={"static": True})
    forward: Callable = dataclasses.field(metadata={"static": True})
    backward: Callable | None = dataclasses.field(default=None, metadata={"static": True})

    __array_ufunc__ = None  # a numpy scalar times an operator is ours, not an array of objects

    def __call__(self, x: PyTree) -> PyTree:
        check_structure("linear: A(x)", self.structure, x)
        # A numpy array in becomes a JAX array: the functions use `x.at` and the like.
        return self.forward(self.params, jax.tree.map(jnp.asarray, x))

    def adjoint(self, y: PyTree) -> PyTree:
        """`A.H y`."""
        check_structure("linear: A.adjoint(y)", self.output, y)
        y = jax.tree.map(jnp.asarray, y)
        x = self._transpose(y) if self.backward is None else self.backward(self.params, y)
        return jax.tree.map(_real_if_real, self.structure.tree(), x)

    def _transpose(self, y):
        y = jax.tree.map(lambda leaf, like: jnp.conj(leaf).astype(like.dtype), y, self.output.tree())
        (x,) = jax.linear_transpose(lambda x: self.forward(self.params, x), self.structure.tree())(y)
        return jax.tree.map(jnp.conj, x)

    @property
    def output(self) -> Structure:
        """Structure of `A(x)`."""
        leaves, treedef = jax.tree.flatten(self.params)
        types = [jax.typeof(leaf) for leaf in leaves]
        types = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type) for leaf in types)
        return _output(self.forward, self.structure, treedef, types, jnp.result_type(float))

    @property
    def H(self) -> "Operator":
        """The adjoint as an operator."""
        return self.params if self.backward is _forward else Operator(self, self.output, _adjoint, _forward)

    def __matmul__(self, other):
        if not isinstance(other, Operator):
            return self(other)
        if other.output.shapes() != self.structure.shapes():
            raise ValueError(f"linear: A @ B: B gives {other.output.shapes()}, A takes {self.structure.shapes()}.")
        return Operator((self, other), other.structure, _compose, _compose_adjoint)

    def __add__(self, other):
        if not isinstance(other, Operator):
            return NotImplemented
        if self.structure.shapes() != other.structure.shapes() or self.output.shapes() != other.output.shapes():
            raise ValueError(
                f"linear: A + B: A maps {self.structure.shapes()} to {self.output.shapes()}, "
                f"B {other.structure.shapes()} to {other.output.shapes()}."
            )
        return Operator((self, other), self.structure, _add, _add_adjoint)

    def __sub__(self, other):
        return self + (-other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor):
        if isinstance(factor, Operator) or jnp.ndim(factor) != 0:
            raise ValueError("linear: c * A takes a scalar c; `A @ B` composes, `A(x)` applies.")
        return Operator((self, factor), self.structure, _scale, _scale_adjoint)

    __rmul__ = __mul__

    def __neg__(self):
        return -1.0 * self


def operator(function: Callable, structure: PyTree, *, params: PyTree = None, adjoint: Callable | None = None) -> Operator:
    """Any linear function as an operator: `function(x)`, or `function(params, x)` with the arrays that it uses in `params`.

    Gradients and `vmap` reach `params`, not what the function closes over. `adjoint(y)` or `adjoint(params, y)` defaults to
    `jax.linear_transpose`; `check_adjoint` says whether it is right. Functions compare by identity: pass the same one again.
    """
    if params is None:
        function, adjoint = Bound(_without_params, (function,)), adjoint and Bound(_without_params, (adjoint,))
    return Operator(params, Structure.of(structure), function, adjoint)


def check_structure(name: str, structure: Structure, x: PyTree) -> None:
    """Raises ValueError when the shapes of `x` are not those of `structure`, or are complex where it is real."""
    leaves, treedef = jax.tree.flatten(x)
    if treedef != structure.treedef or [jnp.shape(leaf) for leaf in leaves] != [shape for shape, _ in structure.leaves]:
        raise ValueError(f"{name}: expected {structure.shapes()}, got {jax.tree.map(jnp.shape, x)}.")
    for leaf, (_, dtype) in zip(leaves, structure.leaves, strict=True):
        if jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{name}: expected {dtype}, got {leaf.dtype}; state a complex `jax.ShapeDtypeStruct` for complex numbers."
            )


def from_end(name: str, structure: Structure, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of one array counted from the end; raises ValueError unless they are different axes of it."""
    dimensions = len(structure.shape)
    if not all(-dimensions <= axis < dimensions for axis in axes) or len({axis % dimensions for axis in axes}) < len(axes):
        raise ValueError(f"{name}: axes must be different ones of the {dimensions} axes of {structure.shape}, got {axes}.")
    return tuple(axis % dimensions - dimensions for axis in axes)


def inexact(params: PyTree) -> PyTree:
    """Arrays of real or complex numbers; integers become floats, as an adjoint doesn't map into integers."""
    params = jax.tree.map(jnp.asarray, params)
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.result_type(float)), params)


# Cached: without jit a solver asks for it at every step. The default dtype is part of the key: the trace depends on it.
@functools.lru_cache(maxsize=512)
def _output(forward, structure, treedef, types, default) -> Structure:
    return Structure.of(jax.eval_shape(forward, jax.tree.unflatten(treedef, types), structure.tree()))


def _real_if_real(like, x):
    return x if jnp.issubdtype(like.dtype, jnp.complexfloating) else x.real


def _without_params(_, x, function):
    return function(x)


def _forward(operator, x):
    return operator(x)


def _adjoint(operator, y):
    return operator.adjoint(y)


def _compose(pair, x):
    return pair[0](pair[1](x))


def _compose_adjoint(pair, y):
    return pair[1].adjoint(pair[0].adjoint(y))


def _add(pair, x):
    return tree.add(pair[0](x), pair[1](x))


def _add_adjoint(pair, y):
    return tree.add(pair[0].adjoint(y), pair[1].adjoint(y))


def _scale(pair, x):
    return tree.scale(pair[1], pair[0](x))


def _scale_adjoint(pair, y):
    return tree.scale(jnp.conj(pair[1]), pair[0].adjoint(y))
