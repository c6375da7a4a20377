"""Operators made of operators: stacked, side by side, on the diagonal, over a batch."""

import functools
from collections.abc import Sequence

import jax

from jaxnets.proximal import tree
from jaxnets.proximal.linear.operator import Bound, Operator, Structure
from jaxnets.types import PyTree


def stack(operators: Sequence[Operator]) -> Operator:
    """`x -> (A x, B x, ...)`, a tuple."""
    operators = tuple(operators)
    shapes = [A.structure.shapes() for A in operators]
    if not operators or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"stack: expected operators on one structure, got {shapes}.")
    return Operator(operators, operators[0].structure, _each, _sum_of_adjoints)


def block_row(operators: Sequence[Operator]) -> Operator:
    """`(x, z, ...) -> A x + B z + ...`, of a tuple."""
    operators = tuple(operators)
    shapes = [A.output.shapes() for A in operators]
    if not operators or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"block_row: expected operators with one output structure, got {shapes}.")
    return Operator(operators, Structure.of(tuple(A.structure.tree() for A in operators)), _sum_of_each, _each_adjoint)


def block_diagonal(operators: PyTree) -> Operator:
    """`(x, z, ...) -> (A x, B z, ...)`, for a tuple, a dict or any pytree of operators."""
    if isinstance(operators, list):
        operators = tuple(operators)
    structure = jax.tree.map(lambda A: A.structure.tree(), operators, is_leaf=_is_operator)
    return Operator(operators, Structure.of(structure), _diagonal, _diagonal_adjoint)


def batch(operator: Operator, count: int, *, mapped: bool = False) -> Operator:
    """The operator applied to each of `count` entries of a leading axis, by `vmap`.

    `mapped=True`: its params carry that axis too, one operator per entry, as made by `jax.vmap(linear.matrix)(matrices)`.
    """
    if count < 1:
        raise ValueError(f"batch: count must be at least 1, got {count}.")
    structure = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), operator.structure.tree())
    axis = 0 if mapped else None
    return Operator(operator, Structure.of(structure), Bound(_batched, (axis,)), Bound(_batched_adjoint, (axis,)))


def _is_operator(x):
    return isinstance(x, Operator)


def _each(operators, x):
    return tuple(A(x) for A in operators)


def _sum_of_adjoints(operators, ys):
    return functools.reduce(tree.add, [A.adjoint(y) for A, y in zip(operators, ys, strict=True)])


def _sum_of_each(operators, xs):
    return functools.reduce(tree.add, [A(x) for A, x in zip(operators, xs, strict=True)])


def _each_adjoint(operators, y):
    return tuple(A.adjoint(y) for A in operators)


def _diagonal(operators, x):
    return jax.tree.map(lambda A, x: A(x), operators, x, is_leaf=_is_operator)


def _diagonal_adjoint(operators, y):
    return jax.tree.map(lambda A, y: A.adjoint(y), operators, y, is_leaf=_is_operator)


def _batched(operator, x, axis):
    return jax.vmap(lambda A, x: A(x), (axis, 0))(operator, x)


def _batched_adjoint(operator, y, axis):
    return jax.vmap(lambda A, y: A.adjoint(y), (axis, 0))(operator, y)
