"""Vector-space operations on pytrees of real or complex arrays; the inner product is the real one, `Re <a, b>`."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.types import Array, Float, PyTree


def real_dtype(tree: PyTree) -> jnp.dtype:
    """The real floating type that belongs to the leaves: float32 for complex64."""
    return jnp.finfo(jnp.result_type(*jax.tree.leaves(tree))).dtype


def vdot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """`Re sum(conj(a) b)` over all leaves."""
    # Products of real parts: a complex product would compute the imaginary half for nothing.
    parts = jax.tree.map(lambda a, b: _dot(a.real, b.real) + (_dot(a.imag, b.imag) if jnp.iscomplexobj(a) else 0), a, b)
    return jax.tree.reduce(jnp.add, parts)


def squared_norm(a: PyTree) -> Float[Array, ""]:
    """`sum |a|^2` over all leaves."""
    return vdot(a, a)


def norm(a: PyTree) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(squared_norm(a))


def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor, a: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, a)


def add_scaled(a: PyTree, factor, b: PyTree) -> PyTree:
    """`a + factor b`."""
    return jax.tree.map(lambda a, b: a + factor * b, a, b)


def where(condition, a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf `jnp.where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)


def zeros_like(a: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, a)


def to_real(a: PyTree) -> PyTree:
    """The same vector over the real numbers: complex leaves become pairs (real, imaginary part)."""
    return jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,), a)


def from_real(parts: PyTree, like: PyTree) -> PyTree:
    """Inverse of `to_real`."""
    return jax.tree.map(lambda leaf, pair: lax.complex(*pair) if jnp.iscomplexobj(leaf) else pair[0], like, parts)


def _dot(a, b):
    """Summed in single precision at least."""
    dtype = jnp.result_type(a, b)
    return jnp.vdot(a, b, preferred_element_type=jnp.promote_types(dtype, jnp.float32)).astype(dtype)
