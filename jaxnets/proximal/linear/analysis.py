"""What an operator is: its dense matrix, whether its adjoint is right, its largest singular value."""

import jax
import jax.numpy as jnp
from jax import flatten_util

from jaxnets.proximal import tree
from jaxnets.proximal.linear.operator import Operator, Structure
from jaxnets.types import Array, Float, Inexact, Key, PyTree


def dense(operator: Operator) -> Inexact[Array, "rows columns"]:
    """The matrix between the raveled input and output, for small sizes: column j is `A e_j`."""
    zeros, unravel = flatten_util.ravel_pytree(operator.structure.zeros())
    return jax.vmap(lambda e: flatten_util.ravel_pytree(operator(unravel(e)))[0], out_axes=1)(
        jnp.eye(zeros.size, dtype=zeros.dtype)
    )


def dot_test(operator: Operator, key: Key[Array, ""]) -> Float[Array, ""]:
    """`|<A x, y> - <x, A.H y>| / max(|A x| |y|, |x| |A.H y|)` of normal draws: rounding alone if the adjoint is right."""
    for_x, for_y = jax.random.split(key)
    x, y = _normal(for_x, operator.structure), _normal(for_y, operator.output)
    image, back = operator(x), operator.adjoint(y)
    scale = jnp.maximum(tree.norm(image) * tree.norm(y), tree.norm(x) * tree.norm(back))
    return jnp.abs(tree.vdot(image, y) - tree.vdot(x, back)) / jnp.where(scale == 0, 1, scale)


def check_adjoint(operator: Operator, key: Key[Array, ""], *, tolerance: float | None = None) -> None:
    """Raises ValueError when `dot_test` exceeds the tolerance: 1e-5 in single precision and 1e-12 in double if not given."""
    if tolerance is None:
        leaves = operator.structure.leaves + operator.output.leaves
        tolerance = _TOLERANCE[min(jnp.finfo(dtype).bits for _, dtype in leaves)]
    error = float(dot_test(operator, key))
    if not error <= tolerance:
        raise ValueError(
            f"check_adjoint: <A x, y> and <x, A.H y> must agree to {tolerance:g} of |A x| |y|, they differ by {error:.3g}."
        )


def largest_singular_value(
    operator: Operator, key: Key[Array, ""] | None = None, *, start: PyTree = None, steps: int = 20
) -> Float[Array, ""]:
    """Estimate of `|A|_2` from below: Lanczos on `A.H A`, one product with each per step, from a normal draw or from `start`.

    A lower bound up to rounding that grows with `steps`; for a step size `1 / L`, `L = (1.01 |A|)^2` leaves room.
    `power_iteration` needs many more steps for the same digits. Source: Kuczynski, Wozniakowski (1992), doi:10.1137/0613066.
    """
    start = _start("largest_singular_value", operator, key, start, steps)

    def step(state, _):
        before, beta, v = state
        image = operator(v)
        alpha = tree.squared_norm(image)
        w = tree.add_scaled(tree.add_scaled(operator.adjoint(image), -alpha, v), -beta, before)
        beta = tree.norm(w)
        return (v, beta, _over(w, beta)), (alpha, beta)

    state = (tree.zeros_like(start), jnp.zeros_like(tree.norm(start)), _over(start, tree.norm(start)))
    _, (alpha, beta) = jax.lax.scan(step, state, length=steps)
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    return jnp.sqrt(jnp.linalg.eigvalsh(tridiagonal)[-1])


def power_iteration(
    operator: Operator, key: Key[Array, ""] | None = None, *, start: PyTree = None, steps: int = 100
) -> Float[Array, ""]:
    """Estimate of `|A|_2` from below: `|A v|` after `steps` of `v <- A.H A v / |A.H A v|`."""
    start = _start("power_iteration", operator, key, start, steps)

    def step(v, _):
        w = operator.adjoint(operator(v))
        return _over(w, tree.norm(w)), None

    v, _ = jax.lax.scan(step, _over(start, tree.norm(start)), length=steps)
    return tree.norm(operator(v))


_TOLERANCE = {64: 1e-12, 32: 1e-5, 16: 2e-2}


def _start(name, operator, key, start, steps):
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, got {steps}.")
    if (key is None) == (start is None):
        raise ValueError(f"{name}: give either a key or a start.")
    return _normal(key, operator.structure) if start is None else start


def _over(x, norm):
    """`x / norm`, and 0 once the Krylov space is exhausted."""
    return tree.scale(jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm)), x)


def _normal(key: Key[Array, ""], structure: Structure) -> PyTree:
    leaves, treedef = jax.tree.flatten(structure.tree())
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef, [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )
