"""What the terms share: checks of weights, parameters broadcast to a tree, norms whose gradient is finite at 0."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.types import PyTree


def nonnegative(what: str, value: PyTree) -> PyTree:
    """`value`, weights >= 0. ValueError where one is negative or not finite; NaN where that one is traced, so that it shows."""
    return jax.tree.map(lambda leaf: _checked(f"{what} must be non-negative and finite", leaf, lambda a: a >= 0), value)


def positive(what: str, value: PyTree) -> PyTree:
    """`nonnegative` that refuses 0 too."""
    return jax.tree.map(lambda leaf: _checked(f"{what} must be positive and finite", leaf, lambda a: a > 0), value)


def nonzero(what: str, value: PyTree) -> PyTree:
    """`nonnegative` that refuses 0 and lets negative numbers pass."""
    return jax.tree.map(lambda leaf: _checked(f"{what} must be finite and not 0", leaf, lambda a: a * a > 0), value)


def concrete(value) -> bool:
    """Whether it is a number or an array whose elements are known by now."""
    return isinstance(value, int | float | np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)


def _checked(rule, value, rightly_signed):
    if isinstance(value, jax.core.Tracer):
        return jnp.where(rightly_signed(value) & (abs(value) < jnp.inf), value, jnp.nan)
    values = np.ravel(value)
    wrong = values[~(rightly_signed(values) & (abs(values) < np.inf))]
    if wrong.size:
        raise ValueError(f"{rule}, got {wrong[0]}.")
    return value


def check_real(name: str, x: PyTree) -> None:
    """Raises ValueError when a leaf is complex."""
    for leaf in jax.tree.leaves(x):
        if jnp.iscomplexobj(leaf):
            raise ValueError(f"{name}: expected real arrays, got {jnp.result_type(leaf)}.")


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
    """The sum of all elements of all leaves, in single precision at least."""
    return sum(jnp.sum(wide(leaf)) for leaf in jax.tree.leaves(x))


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
    """`|x|^2`, in single precision at least."""
    x = wide(x)
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


def rounding(x: PyTree):
    """A relative error that rounding in the dtypes of `x` may have added up to."""
    return max(jnp.finfo(jnp.result_type(leaf, float)).eps for leaf in jax.tree.leaves(x)) ** 0.75


def indicator(excess, x: PyTree, scale=1.0):
    """0 where `excess <= 0` up to the rounding of `x`, of a quantity as large as `scale`; inf elsewhere."""
    return jnp.where(excess <= rounding(x) * scale, 0.0, jnp.inf)
