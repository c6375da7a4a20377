"""Activations that read the whole last axis (or `axis`): softmax, maxout and the gated linear units."""

import jax
import jax.numpy as jnp

from jaxnets.activations.elementwise import relu, sigmoid
from jaxnets.activations.self_gated import gelu, silu
from jaxnets.types import Array, Bool, Float


def softmax(
    logits: Float[Array, "*shape"], *, axis: int = -1, where: Bool[Array, "..."] | None = None
) -> Float[Array, "*shape"]:
    """`exp(x_i) / Σ_j exp(x_j)`; an entry that is -inf or masked by `where` is 0 and gets no gradient.

    A row with nothing left is 0 throughout, not NaN: attention to nothing.
    """
    logits, alive = _masked(logits, axis, where)
    return jnp.where(alive, jax.nn.softmax(logits, axis), 0)


def log_softmax(
    logits: Float[Array, "*shape"], *, axis: int = -1, where: Bool[Array, "..."] | None = None
) -> Float[Array, "*shape"]:
    """`x_i - log Σ_j exp(x_j)`, right to the rounding of the largest term; -inf where `softmax` is 0 by -inf or mask."""
    logits, alive = _masked(logits, axis, where)
    return jnp.where(alive, jax.nn.log_softmax(logits, axis), -jnp.inf)
