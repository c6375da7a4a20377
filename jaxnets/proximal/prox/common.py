"""What the terms share: checks of plain numbers, parameters broadcast to a tree, norms whose gradient is finite at 0."""

import math

import jax
import jax.numpy as jnp

from jaxnets.types import PyTree


def check_nonnegative(name: str, **values: PyTree) -> None:
    """Raises ValueError for a plain number that is negative, infinite or NaN; arrays and traced values pass."""
    for key, value in _plain_numbers(values):
        if not value >= 0:
            raise ValueError(f"{name}: {key} must be non-negative, got {value}.")
        if math.isinf(value):
            raise ValueError(f"{name}: {key} must be finite, got {value}.")


def check_positive(name: str, **values: PyTree) -> None:
    """Raises ValueError for a plain number that is not positive or not finite; arrays and traced values pass."""
    for key, value in _plain_numbers(values):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {key} must be positive and finite, got {value}.")


def check_real(name: str, x: PyTree) -> None:
    """Raises ValueError when a leaf is complex."""
    for leaf in jax.tree.leaves(x):
        if jnp.iscomplexobj(leaf):
            raise ValueError(f"{name}: expected real arrays, got {jnp.result_type(leaf)}.")


def _plain_numbers(values: dict):
    return [(key, leaf) for key, value in values.items() for leaf in jax.tree.leaves(value) if isinstance(leaf, int | float)]


def leafwise(function, x: PyTree, *params: PyTree) -> PyTree:
    """`function(leaf, *params)` for every leaf of `x`; each parameter is a tree, or a prefix of the tree, of `x`."""
    return jax.tree.map(function, x, *(jax.tree.broadcast(param, x) for param in params))


def elementwise(function, x: PyTree, *params: PyTree) -> PyTree:
    """`leafwise` with each parameter broadcast to the shape of its leaf."""
    return leafwise(lambda leaf, *params: function(leaf, *(fit(param, jnp.shape(leaf)) for param in params)), x, *params)


def fit(param, shape: tuple[int, ...]):
    """An array broadcast to `shape`. A scalar stays one: a Python number keeps its weak type and promotes nothing."""
    return param if jnp.ndim(param) == 0 else jnp.broadcast_to(param, shape)


def total(x: PyTree):
    """The sum of all elements of all leaves."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(x))


def largest(x: PyTree):
    """The largest element of all leaves, which are non-negative."""
    return jnp.stack([jnp.max(leaf, initial=0) for leaf in jax.tree.leaves(x)]).max()


def wide(x):
    """In single precision at least, for what accumulates rounding errors or doesn't exist in half precision."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x, float), jnp.float32))


def modulus(x):
    """`|x|`, gradient 0 at 0 (that of `jnp.abs` is 1 for a real 0)."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x * jnp.sign(x)


def square(x):
    """`|x|^2`."""
    return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x**2


def root(square):
    """Square root, gradient 0 at 0."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def norm(x: PyTree):
    """Euclidean norm over all leaves, gradient 0 at 0."""
    return root(total(jax.tree.map(square, x)))


def direction(v, size=None):
    """`v / size`, 0 where `size` is 0; without one, its modulus."""
    if size is None and not jnp.iscomplexobj(v):
        return jnp.sign(v)  # the derivative of v / |v| would be 0 only up to rounding
    size = modulus(v) if size is None else size
    return v / jnp.where(size == 0, 1, size)


def shrink(v, threshold, size=None):
    """`v` moved by `threshold` towards 0, and 0 where `size` (the norm of its group; without one, its modulus) is at most that.

    Its generalized derivative is 0 at a tie, and the identity everywhere when `threshold` is 0. A NaN stays.
    """
    small = (modulus(v) if size is None else size) <= threshold
    return jnp.where(small & (threshold > 0), 0, v - threshold * direction(v, size))


def project(v, radius, size=None):
    """`v` scaled to the length `radius` where `size` (a norm; without one, its modulus) is larger. A NaN stays."""
    small = (modulus(v) if size is None else size) <= radius
    return jnp.where(small, v, radius * direction(v, size))


def gauge(size, radius):
    """`size / radius` with `0 / 0 = 0` and `x / 0 = inf`."""
    return size / jnp.where(size == 0, 1, radius)


def indicator(excess, scale=1.0):
    """0 where `excess <= 0` up to rounding, of a quantity as large as `scale`; inf elsewhere."""
    return jnp.where(excess <= jnp.finfo(jnp.result_type(excess, float)).eps ** 0.75 * scale, 0.0, jnp.inf)
