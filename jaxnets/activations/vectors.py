"""Activations across features: softmax, maxout and the gated linear units."""

import jax
import jax.numpy as jnp

from jaxnets.activations.elementwise import relu, sigmoid
from jaxnets.activations.self_gated import gelu, silu
from jaxnets.activations.slopes import widened
from jaxnets.types import Array, Bool, Float


@widened
def softmax(
    logits: Float[Array, "*shape"], *, axis: int = -1, where: Bool[Array, "..."] | None = None
) -> Float[Array, "*shape"]:
    """`exp(x_i) / Σ_j exp(x_j)`; an entry that is -inf or left out by `where` is 0 and gets no gradient.

    A row with nothing left is 0 throughout, not NaN: attention to nothing. A logit of +inf is NaN: it has no limit.
    """
    logits, alive = _masked(logits, axis, where)
    return jnp.where(alive, jax.nn.softmax(logits, axis), 0)


@widened
def log_softmax(
    logits: Float[Array, "*shape"], *, axis: int = -1, where: Bool[Array, "..."] | None = None
) -> Float[Array, "*shape"]:
    """`x_i - log Σ_j exp(x_j)`, -inf where `softmax` has nothing. Its error is absolute: near 0, the rounding of 1."""
    logits, alive = _masked(logits, axis, where)
    return jnp.where(alive, jax.nn.log_softmax(logits, axis), -jnp.inf)


def maxout(x: Float[Array, "*batch features"], pieces: int = 2) -> Float[Array, "*batch units"]:
    """The maximum of each `pieces` neighboring features. Source: Goodfellow et al. (2013), arXiv:1302.4389, section 3.

    Raises:
      ValueError: `pieces` doesn't divide the features.
    """
    if pieces < 1 or x.shape[-1] % pieces:
        raise ValueError(f"maxout: pieces must divide the {x.shape[-1]} features, got {pieces}.")
    return x.reshape(*x.shape[:-1], -1, pieces).max(-1)


def glu(x: Float[Array, "*batch twice"]) -> Float[Array, "*batch half"]:
    """`v σ(g)` for `x = [v, g]`, value first and gate second. Source: Dauphin et al. (2017), arXiv:1612.08083, eq. 1.

    Raises, with all of its family:
      ValueError: an odd number of features.
    """
    value, gate = _halves("glu", x)
    return value * sigmoid(gate)


def bilinear(x: Float[Array, "*batch twice"]) -> Float[Array, "*batch half"]:
    """`v g`: `glu` without the sigmoid. Source, as of the three below: Shazeer (2020), arXiv:2002.05202, section 2."""
    value, gate = _halves("bilinear", x)
    return value * gate


def reglu(x: Float[Array, "*batch twice"]) -> Float[Array, "*batch half"]:
    """`v relu(g)`."""
    value, gate = _halves("reglu", x)
    return value * relu(gate)


def geglu(x: Float[Array, "*batch twice"]) -> Float[Array, "*batch half"]:
    """`v gelu(g)`, the exact gelu."""
    value, gate = _halves("geglu", x)
    return value * gelu(gate)


def swiglu(x: Float[Array, "*batch twice"]) -> Float[Array, "*batch half"]:
    """`v silu(g)`."""
    value, gate = _halves("swiglu", x)
    return value * silu(gate)


def _masked(logits, axis, where):
    """The logits, -inf where masked, and which rows have anything left; the others are set to 0."""
    if where is not None:
        logits = jnp.where(where, logits, -jnp.inf)
    alive = jnp.any(logits != -jnp.inf, axis, keepdims=True)  # NaN counts, and shows
    return jnp.where(alive, logits, 0), alive


def _halves(function, x):
    if x.shape[-1] % 2:
        raise ValueError(f"{function}: the number of features must be even, got {x.shape[-1]}.")
    return jnp.split(x, 2, axis=-1)
