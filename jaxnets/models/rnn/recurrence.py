"""One recurrence for every cell: `s_t = step(params, s_{t-1}, x_t)` over a batch of sequences, and its fast derivative.

Differentiated as written, a scan adds `s_{t-1}ᵀ dz_t` to the gradient of a recurrent weight at every step: small products that
read and write the whole gradient each time. Here the backward scan only keeps `dz_t`, and every 16 steps are one product.
The forward scan keeps the states and the values of its products, so that the backward one repeats elementwise work only.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.types import Array, Float, Params

# step(params, state, x [batch, features]) -> state. It uses parameters with two axes only as weights of `products`.
StepFn = Callable[[Params, Any, Array], Any]


class Conditions(NamedTuple):
    """What may interfere with the steps; None: not wanted."""

    mask: Any = None  # [time, batch]: False holds the state
    reset: Any = None  # [time, batch]: True sets the state to zero before the step
    zoneout: Any = None  # like the state, leaves [time, batch, ...]: share of the old state that stays
    keep: Any = None  # [batch, hidden]: factor on the state where a parameter named `recurrent...` weighs it


def products(*pairs: tuple[Array, Any]) -> Array:
    """`Σ a @ weight` over pairs (a, weight): the one way in which a step uses its matrices."""
    weights = [weight if isinstance(weight, _Weight) else _Weight(weight) for _, weight in pairs]
    factors = [a if weight.keep is None else a * weight.keep for (a, _), weight in zip(pairs, weights, strict=True)]
    if weights[0].tape is None:
        return _sum_of_products(factors, [weight.array for weight in weights])
    return weights[0].tape(factors, weights)


def scan(
    step: StepFn,
    params: Params,
    state: Any,
    xs: Float[Array, "time batch features"],
    conditions: Conditions = Conditions(),
    *,
    reverse: bool = False,
    unroll: int = 1,
    remat: int | None = None,
    plain: bool = False,
) -> tuple[Any, Any]:
    """(final state, states after every step `[time, batch, ...]`); `reverse` runs from the last step to the first.

    `remat` keeps the state of every so many steps and computes those between again: `time / remat + remat` of them in memory
    instead of `time`. Reverse-mode derivatives are exact to any order; forward mode (`jvp`, `jacfwd`) needs `plain`, the
    scan differentiated as it is written.

    Raises:
      ValueError: `unroll < 1` or `remat < 1`.
    Source: Werbos (1990), doi:10.1109/5.58337; remat: Chen et al. (2016), arXiv:1604.06174.
    """
    for name, value in (("unroll", unroll), ("remat", remat)):
        if value is not None and value < 1:
            raise ValueError(f"recurrence.scan: {name} must be at least 1, got {value}.")
    if not len(xs):  # without jit `lax.scan` refuses it
        return state, jax.tree.map(lambda s: jnp.zeros((0, *s.shape), s.dtype), state)
    run = (_plain if plain else _deferred)(step, reverse, unroll)
    if remat is None or remat >= len(xs):
        return run(params, state, xs, conditions)
    keep, conditions = conditions.keep, conditions._replace(keep=None)

    @jax.checkpoint
    def chunk(state, inputs):
        xs, conditions = inputs
        return run(params, state, xs, conditions._replace(keep=keep))

    whole = len(xs) // remat * remat
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, remat, *a.shape[1:]), (xs, conditions))
    tail = jax.tree.map(lambda a: a[whole:], (xs, conditions))
    if reverse:
        state, last = chunk(state, tail)
        state, first = lax.scan(chunk, state, chunks, reverse=True)
    else:
        state, first = lax.scan(chunk, state, chunks)
        state, last = chunk(state, tail)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a.reshape(-1, *a.shape[2:]), b]), first, last)


def _plain(step: StepFn, reverse: bool, unroll: int) -> Callable:
    def run(params, state, xs, conditions):
        def body(state, inputs):
            state = _advance(step, _weights(params, conditions.keep), state, *inputs)
            return state, state

        return lax.scan(body, state, (xs, conditions._replace(keep=None)), reverse=reverse, unroll=unroll)

    return run


def _deferred(step: StepFn, reverse: bool, unroll: int) -> Callable:
    """`_plain` with the derivative of the module's docstring."""
    plain = _plain(step, reverse, unroll)

    def forward(params, state, xs, conditions):
        def body(state, inputs):
            tape = _Recorder()
            state = _advance(step, _weights(params, conditions.keep, tape), state, *inputs)
            return state, (state, tape.values)

        inputs = (xs, conditions._replace(keep=None))
        final, (states, values) = lax.scan(body, state, inputs, reverse=reverse, unroll=unroll)
        return (final, states), ((params, state, xs), conditions, states, values)

    def backward(residuals, cotangents):
        return (*pull(*residuals, cotangents), None)

    @jax.custom_vjp
    def pull(primals, conditions, states, values, cotangents):
        params, state, xs = primals
        matrices = {name: value for name, value in params.items() if value.ndim == 2}
        vectors = {name: value for name, value in params.items() if value.ndim != 2}
        names: list[list[str]] = []

        def body(carry, inputs):
            d_state, d_vectors = carry
            before, x, at, values, d_after = inputs

            def again(vectors, before, x, shifts):
                tape = _Player(values, shifts)
                after = _advance(step, vectors | _weights(matrices, conditions.keep, tape), before, x, at)
                names[:] = tape.names
                return after, tape.factors

            shifts = [jnp.zeros_like(value) for value in values]
            _, vjp, factors = jax.vjp(again, vectors, before, x, shifts, has_aux=True)
            more, d_before, d_x, d_values = vjp(jax.tree.map(jnp.add, d_state, d_after))
            return (d_before, jax.tree.map(jnp.add, d_vectors, more)), (d_x, d_values, factors)

        def previous(start, after):
            if reverse:
                return jnp.concatenate([after, start[None]])[1:]
            return jnp.concatenate([start[None], after])[:-1]

        def chunk(carry, inputs):
            *carry, d_matrices = carry
            carry, (d_xs, d_values, factors) = lax.scan(body, tuple(carry), inputs, reverse=not reverse, unroll=unroll)
            for d_value, of_value, called in zip(d_values, factors, names, strict=True):
                for factor, name in zip(of_value, called, strict=True):
                    d_matrices = d_matrices | {name: d_matrices[name] + _outer(factor, d_value)}
            return (*carry, d_matrices), d_xs

        d_final, d_states = cotangents
        inputs = (jax.tree.map(previous, state, states), xs, conditions._replace(keep=None), values, d_states)
        length = _chunk(len(xs))
        chunks = jax.tree.map(lambda a: a.reshape(-1, length, *a.shape[1:]), inputs)
        d_matrices = {n: jnp.zeros(m.shape, jnp.promote_types(m.dtype, "float32")) for n, m in matrices.items()}
        carry = (d_final, jax.tree.map(jnp.zeros_like, vectors), d_matrices)
        (d_state, d_vectors, d_matrices), d_xs = lax.scan(chunk, carry, chunks, reverse=not reverse)
        d_matrices = {name: d.astype(matrices[name].dtype) for name, d in d_matrices.items()}
        return d_vectors | d_matrices, d_state, d_xs.reshape(xs.shape)

    # The derivative of the derivative is that of the plain scan, at its cost.
    def pull_forward(primals, conditions, states, values, cotangents):
        return pull(primals, conditions, states, values, cotangents), (primals, conditions, states, values, cotangents)

    def pull_backward(residuals, seconds):
        primals, conditions, *saved, cotangents = residuals

        def first(primals, cotangents):
            return jax.vjp(lambda *p: plain(*p, conditions), *primals)[1](cotangents)

        d_primals, d_cotangents = jax.vjp(first, primals, cotangents)[1](seconds)
        # Zeros, not None: jax 0.10 and 0.12 fail to transpose a scan of which only some outputs have a cotangent.
        return d_primals, None, *jax.tree.map(jnp.zeros_like, saved), d_cotangents

    pull.defvjp(pull_forward, pull_backward)
    run = jax.custom_vjp(plain)
    run.defvjp(forward, backward)
    return run


def _advance(step: StepFn, params: Params, state: Any, x: Array, at: Conditions) -> Any:
    """One step and what interferes with it."""
    before = state
    if at.reset is not None:
        before = jax.tree.map(lambda s: jnp.where(at.reset[:, None], 0, s), state)
    after = step(params, before, x)
    if at.zoneout is not None:
        after = jax.tree.map(lambda share, old, new: share * old + (1 - share) * new, at.zoneout, before, after)
    if at.mask is not None:
        after = jax.tree.map(lambda old, new: jnp.where(at.mask[:, None], new, old), state, after)
    return after


class _Weight(NamedTuple):
    """A matrix inside a step: what it multiplies, and where the product is recorded."""

    array: Array
    name: str = ""
    keep: Array | None = None
    tape: Any = None


def _weights(params: Params, keep: Array | None, tape: Any = None) -> Params:
    """Parameters with each matrix as a `_Weight`."""

    def weight(name, value):
        return _Weight(value, name, keep if name.startswith("recurrent") else None, tape)

    return {name: weight(name, value) if value.ndim == 2 else value for name, value in params.items()}


class _Recorder:
    """Keeps the value of every call of `products`."""

    def __init__(self):
        self.values: list[Array] = []

    def __call__(self, factors: list[Array], weights: list[_Weight]) -> Array:
        self.values.append(_sum_of_products(factors, [weight.array for weight in weights]))
        return self.values[-1]


class _Player:
    """Gives the kept values back, and keeps the factors; a `shift` (zero) added to a value has its cotangent."""

    def __init__(self, values: list[Array], shifts: list[Array]):
        self.recorded: Iterator[tuple[Array, Array]] = iter(zip(values, shifts, strict=True))
        self.factors: list[list[Array]] = []
        self.names: list[list[str]] = []

    def __call__(self, factors: list[Array], weights: list[_Weight]) -> Array:
        self.factors.append(factors)
        self.names.append([weight.name for weight in weights])
        return _known(factors, [weight.array for weight in weights], *next(self.recorded))


@jax.custom_vjp
def _known(factors, arrays, value, shift):
    """`Σ a @ w`, whose value is known."""
    del factors, arrays, shift
    return value


def _known_forward(factors, arrays, value, shift):
    del shift
    return value, (factors, arrays)


def _known_backward(residuals, cotangent):
    factors, arrays = residuals
    d_factors = [(cotangent @ w.T).astype(a.dtype) for a, w in zip(factors, arrays, strict=True)]
    return d_factors, None, None, cotangent


_known.defvjp(_known_forward, _known_backward)


def _sum_of_products(factors: list[Array], arrays: list[Array]) -> Array:
    total = factors[0] @ arrays[0]
    for a, w in zip(factors[1:], arrays[1:], strict=True):
        total += a @ w
    return total


def _outer(a: Array, d: Array) -> Array:
    """`Σ aᵀ d` over steps and rows, in float32 at least; two-dimensional, because XLA's CPU backend is slower with three."""
    wide = jnp.promote_types(d.dtype, "float32")
    return jnp.matmul(a.reshape(-1, a.shape[-1]).T, d.reshape(-1, d.shape[-1]), preferred_element_type=wide)


def _chunk(time: int) -> int:
    """Steps whose `dz` wait together: a divisor of `time`, few enough to stay in a CPU's cache; all where there is none."""
    return next((n for n in range(16, 3, -1) if time % n == 0), time)
