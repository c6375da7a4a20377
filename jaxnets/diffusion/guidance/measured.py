"""What methods for measurements share: how an operator fits x, and systems `A C A^H + noise²` solved matrix-free."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.diffusion import parametrization
from jaxnets.proximal import linear, tree
from jaxnets.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Measured:
    """`y = A x_0` as it fits one x: `A` and its adjoint, of all examples of a batch where the operator takes one of them."""

    apply: Callable
    adjoint: Callable
    y: PyTree
    batched: bool  # whether numbers such as norms are one per example

    def residual(self, x0: PyTree) -> PyTree:
        return tree.subtract(self.y, self.apply(x0))

    def squared_norm(self, y: PyTree) -> Array:
        """`|y|²`, of each example if batched."""
        return dot(self.batched, y, y)

    def descent(self, x0: PyTree) -> tuple[PyTree, Array]:
        """`(∂A/∂x_0)^T (y - A(x_0))`, down the gradient of half of `|y - A(x_0)|²`, which comes second."""

        def misfit(x0):
            square = self.squared_norm(self.residual(x0))
            return -square.sum() / 2, square

        return jax.grad(misfit, has_aux=True)(x0)

    def pull(self, x0: PyTree, penalty: Array, solver: tuple[int, float], covariance: Callable | None = None) -> PyTree:
        """`A^H (A C A^H + penalty)^-1 (y - A x_0)` by conjugate gradients; `covariance` applies C, 1 without it.

        Of y only what A can make counts, in the sense of least squares: the rest would have no solution without a penalty.
        """
        residual = self.residual(x0)
        if covariance is None:
            return self.shortest(residual, penalty, solver)
        residual = self.apply(self.shortest(residual, jnp.zeros_like(penalty), solver))
        like = residual

        def system(parts):
            u = tree.from_real(parts, like)
            back = self.adjoint(u)
            return tree.to_real(_axpy(self.apply(covariance(back)), penalty, u))

        solution = solve(system, tree.to_real(residual), self.batched, *solver)
        return self.adjoint(tree.from_real(solution, like))

    def shortest(self, y: PyTree, penalty: Array, solver: tuple[int, float]) -> PyTree:
        """`A^H (A A^H + penalty)^-1 y = (A^H A + penalty)^-1 A^H y`; without penalty `A^+ y`, in the range of A or not."""
        back = self.adjoint(y)

        def system(parts):
            z = tree.from_real(parts, back)
            return tree.to_real(_axpy(self.adjoint(self.apply(z)), penalty, z))

        return tree.from_real(solve(system, tree.to_real(back), self.batched, *solver), back)


def check(function: str, operator: linear.Operator, y: PyTree, noise: Any) -> None:
    """What can be checked before x is known; raises ValueError."""
    if not isinstance(operator, linear.Operator):
        raise ValueError(f"{function}: operator must be a linear.Operator; linear.operator(function, shape) makes one.")
    expected, shapes = operator.output.shapes(), jax.tree.map(jnp.shape, y)
    if expected not in (shapes, jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], y)):
        raise ValueError(f"{function}: y must have the shape of A(x), {expected}, or a batch axis before it, got {shapes}.")
    check_noise(function, noise)


def check_noise(function: str, noise: Any) -> None:
    if isinstance(noise, int | float) and not noise >= 0:
        raise ValueError(f"{function}: noise must be at least 0, got {noise}.")


def fit(function: str, operator: Callable, y: PyTree, x: PyTree, t: Array | None = None) -> Measured:
    """The operator applied to all of x if it takes that, to each example of the leading axis if it takes one.

    What is no `linear.Operator` takes all of x, and has no adjoint: only `descent` is for it.

    Raises:
      ValueError: x of neither shape; a y whose batch isn't that of x; one time for each example where the operator takes all.
    """
    dtype = parametrization.as_time(0.0, x).dtype
    y = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), dtype)), y)
    shapes, given = (jax.tree.map(jnp.shape, z) for z in (x, y))

    def whole(gives, adjoint):
        if given != gives:
            raise ValueError(f"{function}: y must have the shape of A(x), {gives}, got {given}.")
        if t is not None and t.ndim:
            raise ValueError(f"{function}: an operator that takes all of x needs one time for all, got {t.shape}.")
        return Measured(operator, adjoint, y, False)

    if not isinstance(operator, linear.Operator):
        return whole(jax.tree.map(jnp.shape, jax.eval_shape(operator, x)), operator)
    takes, gives = operator.structure.shapes(), operator.output.shapes()
    if shapes == takes:
        return whole(gives, operator.adjoint)
    if jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], x) != takes:
        raise ValueError(f"{function}: the operator takes {takes}, which is neither x, {shapes}, nor one of its examples.")
    batch = jax.tree.leaves(x)[0].shape[0]
    if given == gives:
        y = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), y)
    elif jax.tree.leaves(y)[0].shape[0] != batch:
        raise ValueError(f"{function}: y has {jax.tree.leaves(y)[0].shape[0]} examples, x has {batch}.")
    return Measured(jax.vmap(operator), jax.vmap(operator.adjoint), y, True)


def solve(system: Callable, b: PyTree, batched: bool, steps: int, tolerance: float) -> PyTree:
    """Conjugate gradients for a symmetric positive `system`, each example by itself, until `|residual| <= tolerance |b|`.

    Derivatives go through the solution, not the steps.
    """

    def run(system, b):
        enough = tolerance**2 * dot(batched, b, b)

        def going(state):
            _, _, _, square, step = state
            return (step < steps) & jnp.any(square > enough)

        def step(state):
            x, residual, direction, square, count = state
            image = system(direction)
            curvature = dot(batched, direction, image)
            # An example that has come to its solution stays there while others go on.
            active = (square > enough) & (curvature > 0)
            length = jnp.where(active, square / jnp.where(active, curvature, 1), 0)
            x, residual = _axpy(x, length, direction), _axpy(residual, -length, image)
            left = jnp.where(active, dot(batched, residual, residual), jnp.minimum(square, enough))
            ratio = jnp.where(active, left / jnp.where(active, square, 1), 0)
            return x, residual, _axpy(residual, ratio, direction), left, count + 1

        start = (tree.zeros_like(b), b, b, dot(batched, b, b), jnp.zeros((), int))
        return lax.while_loop(going, step, start)[0]

    return lax.custom_linear_solve(system, b, run, symmetric=True)


def _axpy(x: PyTree, factor: Array, direction: PyTree) -> PyTree:
    return jax.tree.map(lambda x, d: x + parametrization.expand(factor, d).astype(d.dtype) * d, x, direction)


def dot(batched: bool, a: PyTree, b: PyTree) -> Array:
    """`Re <a, b>`, of each example if batched."""
    return jax.vmap(tree.vdot)(a, b) if batched else tree.vdot(a, b)


def denoised(denoise: Callable, x: PyTree, t: Array, conditions: dict[str, Any]) -> tuple[PyTree, Callable]:
    """The data, and the transposed Jacobian as a function in the dtypes of t's precision."""
    x0, back = jax.vjp(lambda x: denoise(x, t, **conditions), x)

    def pulled(direction):
        (result,) = back(jax.tree.map(lambda d, like: d.astype(like.dtype), direction, x0))
        return wide(result, t)

    return x0, pulled


def wide(x: PyTree, t: Array) -> PyTree:
    """As x, in at least the precision of t."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, t.dtype)), x)
