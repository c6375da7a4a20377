"""The Elman cell by hand, for one step and through time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Float


class Elman(NamedTuple):
    """Parameters of a simple recurrent layer."""

    input: Float[Array, "..."]  # U [features, hidden]
    recurrent: Float[Array, "..."]  # V [hidden, hidden]
    bias: Float[Array, "..."]  # b [hidden]


def elman_step_forward(
    params: Elman, x: Float[Array, "*batch features"], hidden: Float[Array, "*batch hidden"]
) -> tuple[Float[Array, "*batch hidden"], Any]:
    """`h' = tanh(x U + h V + b)`. Source: Elman (1990), Finding structure in time, doi:10.1207/s15516709cog1402_1."""
    z = x @ params.input + hidden @ params.recurrent
    new = jnp.tanh(z + jnp.broadcast_to(params.bias, z.shape))
    return new, (params, x, hidden, new)


def elman_step_backward(residuals: Any, cotangent: Float[Array, "*batch hidden"]) -> tuple[Elman, Array, Array]:
    """With `d = (1 - h'²) δ`: `∂U = Σ xᵀ d`, `∂V = Σ hᵀ d`, `∂b = Σ d`, `∂x = d Uᵀ`, `∂h = d Vᵀ`."""
    params, x, hidden, new = residuals
    d = _tanh_slope(new) * cotangent
    return _gradient(x, hidden, d), d @ params.input.T, d @ params.recurrent.T


def elman_forward(
    params: Elman, x: Float[Array, "*batch time features"], hidden: Float[Array, "*batch hidden"]
) -> tuple[Float[Array, "*batch time hidden"], Any]:
    """All states `h_t = tanh(x_t U + h_{t-1} V + b)` from `h_0 = hidden`."""

    def step(hidden, x):
        new, _ = elman_step_forward(params, x, hidden)
        return new, new

    _, states = jax.lax.scan(step, hidden, jnp.moveaxis(x, -2, 0))
    states = jnp.moveaxis(states, 0, -2)
    return states, (params, x, hidden, states)


def elman_backward(residuals: Any, cotangent: Float[Array, "*batch time hidden"]) -> tuple[Elman, Array, Array]:
    """Backpropagation through time: `d_t = (1 - h_t²) (δ_t + d_{t+1} Vᵀ)` from the last step to the first.

    `∂U = Σ_t x_tᵀ d_t`, `∂V = Σ_t h_{t-1}ᵀ d_t`, `∂b = Σ_t d_t`, `∂x_t = d_t Uᵀ`, `∂h_0 = d_1 Vᵀ`: the weight gradients
    wait until all `d_t` are known and are then one product each.

    Source: Werbos (1990), Backpropagation through time: what it does and how to do it, doi:10.1109/5.58337.
    """
    params, x, hidden, states = residuals

    def step(later, at):  # later: d_{t+1} Vᵀ
        state, delta = at
        d = _tanh_slope(state) * (delta + later)
        return d @ params.recurrent.T, d

    time_first = (jnp.moveaxis(states, -2, 0), jnp.moveaxis(cotangent, -2, 0))
    d_hidden, d = jax.lax.scan(step, jnp.zeros_like(hidden), time_first, reverse=True)
    d = jnp.moveaxis(d, 0, -2)
    previous = jnp.concatenate([jnp.expand_dims(hidden, -2), states[..., :-1, :]], axis=-2)
    return _gradient(x, previous, d), d @ params.input.T, d_hidden


def _tanh_slope(y):
    return (1 - y) * (1 + y)  # tanh' = 1 - y², which would cancel where the unit saturates


def _gradient(x, hidden, d):
    batch = tuple(range(d.ndim - 1))
    return Elman(jnp.tensordot(x, d, (batch, batch)), jnp.tensordot(hidden, d, (batch, batch)), d.sum(batch))
