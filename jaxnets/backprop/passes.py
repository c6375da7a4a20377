"""Dense layer, activation and softmax cross entropy by hand, and a network of two layers composed of them.

Throughout, `δ` is the cotangent `∂L/∂y` of the output `y`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxnets.types import Array, Float


class Dense(NamedTuple):
    """Parameters of a dense layer."""

    kernel: Float[Array, "..."]  # [inputs, outputs]
    bias: Float[Array, "..."]  # [outputs]


def dense_forward(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"]
) -> tuple[Float[Array, "*batch outputs"], Any]:
    """`y = x W + b`. Source: Rumelhart et al. (1986), eq. 1."""
    y = x @ kernel
    return y + jnp.broadcast_to(bias, y.shape), (x, kernel)


def dense_backward(residuals: Any, cotangent: Float[Array, "*batch outputs"]) -> tuple[Array, Array, Array]:
    """`∂L/∂x = δ Wᵀ`, `∂L/∂W = Σ xᵀ δ`, `∂L/∂b = Σ δ`, sums over the batch. Source: Rumelhart et al. (1986), eq. 6-7."""
    x, kernel = residuals
    batch = tuple(range(x.ndim - 1))
    return cotangent @ kernel.T, jnp.tensordot(x, cotangent, (batch, batch)), cotangent.sum(batch)


def activation_forward(
    x: Float[Array, "*shape"], function: Callable[[Array], Array], derivative: Callable[[Array], Array]
) -> tuple[Float[Array, "*shape"], Any]:
    """`y = f(x)`, element by element; the residual is `f'(x)`, which is all that the way back needs."""
    return function(x), derivative(x)


def activation_backward(residuals: Any, cotangent: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"]]:
    """`∂L/∂x = f'(x) δ`. Source: Rumelhart et al. (1986), eq. 5."""
    return (residuals * cotangent,)


def softmax_cross_entropy_forward(
    logits: Float[Array, "*batch classes"], targets: Float[Array, "*batch classes"]
) -> tuple[Float[Array, "*batch"], Any]:
    """`L = -Σ_c t_c log p_c` with `p = softmax(logits)`, per example; `targets` are distributions (one-hot labels)."""
    shifted = logits - logits.max(-1, keepdims=True)  # softmax does not change, and exp can't overflow
    log_p = shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
    return -(targets * log_p).sum(-1), (log_p, targets)


def softmax_cross_entropy_backward(
    residuals: Any, cotangent: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"]]:
    """`∂L/∂logits = (p Σ_c t_c - t) δ`, which is `p - t` for a distribution, and `∂L/∂t = -log p δ`.

    Source: Bridle (1990), Probabilistic interpretation of feedforward classification network outputs.
    """
    log_p, targets = residuals
    delta = jnp.expand_dims(cotangent, -1)
    return delta * (jnp.exp(log_p) * targets.sum(-1, keepdims=True) - targets), -delta * log_p


def two_layer_value_and_gradient(
    params: tuple[Dense, Dense], x: Float[Array, "batch inputs"], targets: Float[Array, "batch classes"]
) -> tuple[Float[Array, ""], tuple[Dense, Dense]]:
    """Mean cross entropy of `tanh(x W₁ + b₁) W₂ + b₂` and its gradient: the passes in order, then in reverse."""
    first, second = params
    z, dense1 = dense_forward(x, *first)
    h, tanh = activation_forward(z, jnp.tanh, _tanh_derivative)
    logits, dense2 = dense_forward(h, *second)
    losses, cross_entropy = softmax_cross_entropy_forward(logits, targets)

    delta, _ = softmax_cross_entropy_backward(cross_entropy, jnp.full_like(losses, 1 / losses.size))
    delta, *second = dense_backward(dense2, delta)
    (delta,) = activation_backward(tanh, delta)
    _, *first = dense_backward(dense1, delta)
    return losses.mean(), (Dense(*first), Dense(*second))


def _tanh_derivative(x):
    y = jnp.tanh(x)
    return (1 - y) * (1 + y)  # 1 - y² would cancel where the unit saturates
