"""How far gradients reach back: vanishing and exploding made visible."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import flatten_util, lax

from jaxnets.types import Array, Float, Int


def state_gradients(
    step: Callable, state: Any, xs: Float[Array, "batch time features"], *, spectral: bool = True
) -> Float[Array, "batch lags"]:
    """Natural logarithm of `‖∂s_T / ∂s_{T-lag}‖` for lag 0..T, where s_T is the state after all T steps of a row.

    The spectral norm: the most that a change of s_{T-lag} is amplified; otherwise the root mean square over all directions
    (Frobenius over √n). Both are 1 at lag 0; the slope against the lag, over long sequences, is the largest Lyapunov exponent.
    As logarithms they neither overflow nor underflow (-inf is an exact zero), and their mean over rows is the geometric mean.
    A complex state counts as pairs of real numbers. Exact, for narrow layers: each step costs n gradients of n states.

    `step(state, x) -> state` takes one step of all rows from `state`:

        rnn.state_gradients(functools.partial(cell.step, params), cell.initial(batch), xs)                      # a cell
        rnn.state_gradients(lambda s, x: layer.apply(variables, x[:, None], initial=s)[1], layer.initial(batch), xs)

    Source: Pascanu, Mikolov & Bengio (2013), eq. 5, arXiv:1211.5063.
    """
    row = jax.tree.map(lambda s: s[0], state)
    unravel = flatten_util.ravel_pytree(_split(row))[1]

    def advance(flat, x):  # one row, its state as one vector
        before = _merge(row, unravel(flat))
        after = step(jax.tree.map(lambda s: s[None], before), x[None])
        return flatten_util.ravel_pytree(_split(jax.tree.map(lambda s: s[0], after)))[0]

    def forward(flat, x):
        return jax.vmap(advance)(flat, x), flat

    def backward(carry, inputs):
        product, log_scale = carry  # ∂s_T/∂s_t = exp(log_scale) product
        product = product @ jax.vmap(jax.jacrev(advance))(*inputs)
        size = norm(product)
        product /= jnp.where(size > 0, size, 1)[:, None, None]
        log_scale += jnp.log(size)
        return (product, log_scale), log_scale

    def norm(matrices):
        if spectral:
            return jnp.linalg.norm(matrices, ord=2, axis=(-2, -1))
        return jnp.sqrt(jnp.sum(matrices**2, axis=(-2, -1)) / matrices.shape[-1])

    start = jax.vmap(lambda state: flatten_util.ravel_pytree(_split(state))[0])(state)
    xs = xs.swapaxes(0, 1)
    _, states = lax.scan(forward, start, xs)
    batch, size = start.shape
    first = (jnp.broadcast_to(jnp.eye(size, dtype=start.dtype), (batch, size, size)), jnp.zeros(batch, start.dtype))
    _, norms = lax.scan(backward, first, (states, xs), reverse=True)
    return jnp.concatenate([first[1][:, None], norms[::-1].T], axis=1)


def input_gradients(
    loss: Callable, x: Float[Array, "batch time features"], lengths: Int[Array, " batch"] | None = None
) -> Float[Array, "batch time"]:
    """`‖∂ loss(x) / ∂x_{T-lag}‖` for lag 0..T-1, where T is a row's own length; 0 beyond.

    `loss(x)` is a number: `lambda x: losses.softmax_cross_entropy(model.apply(variables, x, lengths=lengths), y).sum()`.
    """
    norms = jnp.linalg.norm(jax.grad(loss)(x), axis=-1)[:, ::-1]
    if lengths is None:
        return norms
    lags = jnp.arange(x.shape[1])[None]
    shifted = jnp.take_along_axis(norms, (lags - lengths[:, None]) % x.shape[1], axis=1)
    return jnp.where(lags < lengths[:, None], shifted, 0)


def _split(state: Any) -> Any:
    """Complex leaves as pairs of real ones."""
    return jax.tree.map(lambda s: (s.real, s.imag) if jnp.iscomplexobj(s) else s, state)


def _merge(like: Any, parts: Any) -> Any:
    return jax.tree.map(lambda s, part: lax.complex(*part) if jnp.iscomplexobj(s) else part, like, parts)
