"""Smooth parts of an objective, `f(x) = loss(A x; data)`, as plain data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.proximal import linear, tree
from jaxnets.types import Array, Float, PyTree


@dataclasses.dataclass(frozen=True)
class Loss:
    """Module-level functions of a loss; `z` stands for `A x`, `u` for the gradient with respect to it (a dual point)."""

    value: Callable  # (data, z) -> loss
    gradient: Callable | None = None  # (data, z) -> u; None: by `jax.grad`
    curvature: Callable | None = None  # (data, dz) -> bound on 2 (loss(z + dz) - loss(z) - Re<u, dz>), whatever z
    fenchel: Callable | None = None  # (data, z, u) -> loss(z) + loss*(u) - Re<z, u>, the loss's share of a duality gap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Smooth:
    """`f(x) = loss(A x; data)`; without an operator `f(x) = loss(x; data)`. Call it for its value."""

    operator: linear.Operator | None
    data: Any
    loss: Loss = dataclasses.field(metadata={"static": True})

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        return self.loss.value(self.data, self.image(x))

    def gradient(self, x: PyTree) -> PyTree:
        """`A^H loss'(A x)`, the gradient in the real inner product (of a complex x: the conjugate of `jax.grad`)."""
        return self.pull(self.slope(self.image(x)))

    def image(self, x: PyTree) -> PyTree:
        """`A x`."""
        return x if self.operator is None else self.operator(x)

    def pull(self, u: PyTree) -> PyTree:
        """`A^H u`."""
        return u if self.operator is None else self.operator.adjoint(u)

    def slope(self, image: PyTree) -> PyTree:
        """`loss'(z)` at `z = A x`."""
        if self.loss.gradient is not None:
            return self.loss.gradient(self.data, image)
        return jax.tree.map(jnp.conj, jax.grad(self.loss.value, argnums=1)(self.data, image))


def least_squares(A: linear.Operator, y: PyTree, *, weights: PyTree | None = None) -> Smooth:
    """`f(x) = 1/2 Σ w |A x - y|^2`; weights (>= 0) of the shape of `y`, 1 without.

    Raises:
      ValueError: `y` or `weights` not of the shape of `A(x)`.
    """
    _check("least_squares", "y", A, y)
    if weights is not None:
        _check("least_squares", "weights", A, weights)
    return Smooth(A, (y, weights), LEAST_SQUARES)


def logistic(A: linear.Operator, labels: PyTree) -> Smooth:
    """`f(x) = Σ log(1 + exp(-labels A x))` with labels -1 or +1.

    Raises:
      ValueError: labels not of the shape of `A(x)`.
    """
    _check("logistic", "labels", A, labels)
    return Smooth(A, labels, LOGISTIC)


def huber(A: linear.Operator, y: PyTree, *, delta: int | float | Array) -> Smooth:
    """`f(x) = Σ h(|A x - y|)`, `h(r) = r^2 / 2` up to `delta` and `delta r - delta^2 / 2` beyond: outliers count linearly.

    Raises:
      ValueError: `y` not of the shape of `A(x)`; `delta <= 0`.
    Source: Huber (1964), doi:10.1214/aoms/1177703732.
    """
    _check("huber", "y", A, y)
    if isinstance(delta, int | float) and delta <= 0:
        raise ValueError(f"huber: delta must be positive, got {delta}.")
    return Smooth(A, (y, delta), HUBER)


def smooth(fun: Callable, params: Any = None) -> Smooth:
    """`f(x) = fun(params, x)`, any differentiable module-level function; gradients of a solution reach `params`."""
    return Smooth(None, params, Loss(fun))


def _check(function, argument, A, y):
    shapes, expected = jax.tree.map(jnp.shape, y), A.output.shapes()
    if shapes != expected:
        raise ValueError(f"{function}: {argument} must have the shape of A(x), {expected}, got {shapes}.")


def _sum(function, *trees):
    """Sum of a real elementwise function over all elements of all leaves."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(jax.tree.map(function, *trees)))


def _squares(a):
    return a.real**2 + a.imag**2 if jnp.iscomplexobj(a) else a**2


def _weigh(weights, a):
    return a if weights is None else jax.tree.map(jnp.multiply, weights, a)


def _least_squares(data, z):
    y, weights = data
    return 0.5 * _sum(jnp.asarray, _weigh(weights, jax.tree.map(_squares, tree.subtract(z, y))))


def _least_squares_gradient(data, z):
    y, weights = data
    return _weigh(weights, tree.subtract(z, y))


def _least_squares_curvature(data, dz):
    return _sum(jnp.asarray, _weigh(data[1], jax.tree.map(_squares, dz)))


def _least_squares_fenchel(data, z, u):
    # 1/2 |z - y - u|^2 without weights: no difference of large numbers, so a small gap is right in float32.
    y, weights = data
    r = tree.subtract(z, y)
    if weights is None:
        return 0.5 * tree.squared_norm(tree.subtract(r, u))
    # An element of weight 0 has u = 0 and no share.
    return 0.5 * _sum(lambda w, r, u: jnp.where(w > 0, _squares(w * r - u) / jnp.where(w > 0, w, 1), 0), weights, r, u)


def _logistic(labels, z):
    return _sum(lambda b, z: jnp.logaddexp(0, -b * z), labels, z)


def _logistic_gradient(labels, z):
    return jax.tree.map(lambda b, z: -b * jax.nn.sigmoid(-b * z), labels, z)


def _logistic_curvature(labels, dz):
    return 0.25 * tree.squared_norm(dz)


def _logistic_fenchel(labels, z, u):
    def share(b, z, u):
        p = -b * u
        return jnp.logaddexp(0, -b * z) + jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlog1py(1 - p, -p) - z * u

    return _sum(share, labels, z, u)


def _huber(data, z):
    y, delta = data
    near = jax.tree.map(lambda z, y: jnp.minimum(jnp.abs(z - y), delta), z, y)
    return _sum(lambda z, y, near: near * (jnp.abs(z - y) - near / 2), z, y, near)


def _huber_gradient(data, z):
    y, delta = data
    return jax.tree.map(lambda z, y: (z - y) * (delta / jnp.maximum(jnp.abs(z - y), delta)), z, y)


def _huber_curvature(data, dz):
    return tree.squared_norm(dz)


def _huber_fenchel(data, z, u):
    return _huber(data, z) + 0.5 * tree.squared_norm(u) - tree.vdot(tree.subtract(z, data[0]), u)


LEAST_SQUARES = Loss(_least_squares, _least_squares_gradient, _least_squares_curvature, _least_squares_fenchel)
LOGISTIC = Loss(_logistic, _logistic_gradient, _logistic_curvature, _logistic_fenchel)
HUBER = Loss(_huber, _huber_gradient, _huber_curvature, _huber_fenchel)
