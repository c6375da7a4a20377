"""The linear recurrence `h_t = a_t h_{t-1} + b_t` over a whole sequence, step by step or as a parallel scan."""

import jax.numpy as jnp
from jax import lax

from jaxnets.types import Array, Bool, Inexact


def linear_recurrence(
    a: Inexact[Array, "..."],
    b: Inexact[Array, "time batch features"],
    initial: Inexact[Array, "batch features"],
    *,
    mask: Bool[Array, "time batch"] | None = None,
    reset: Bool[Array, "time batch"] | None = None,
    reverse: bool = False,
    form: str | None = None,
    unroll: int = 1,
) -> tuple[Inexact[Array, "batch features"], Inexact[Array, "time batch features"]]:
    """All states `h_t = a_t h_{t-1} + b_t` from `h_0 = initial`, real or complex: the last one computed, and all of them.

    `a` is `[time, batch, features]`, or `[features]` where it is the same at every step. Where `mask` is False the state
    stays as it is, whatever stands in `a` and `b`; elsewhere, where `reset` is True, it is zero before the step. `reverse` runs
    from the last step to the first; a reset then cuts between a step and the one after it.

    `form` "scan" takes the steps in turn, `unroll` of them per turn of the loop; "associative" takes all at once in about
    `2 log2(time)` rounds, and equals it to round-off; None: the first on a CPU, the second on accelerators.

    The states solve a bidiagonal system, and are differentiated as such: the gradient is one recurrence in the other
    direction, which stores nothing beyond `a` and the states in either form. Derivatives of both modes and any order exist.

    >>> ones = jnp.ones((3, 1, 1))
    >>> linear_recurrence(jnp.array([0.5]), ones, jnp.zeros((1, 1)))[1].ravel().tolist()
    [1.0, 1.5, 1.75]

    Raises:
      ValueError: `a` of another shape; an unknown form.
    Source: Blelloch (1990), section 1.4, Prefix sums and their applications; Martin & Cundy (2018), arXiv:1709.04057.
    """
    if form not in (None, "scan", "associative"):
        raise ValueError(f"linear_recurrence: form must be None, 'scan' or 'associative', got {form!r}.")
    if a.shape not in (b.shape, b.shape[2:]):
        raise ValueError(f"linear_recurrence: a must be {b.shape} like b, or {b.shape[2:]}, got {a.shape}.")
    a = a.reshape((1,) * (3 - a.ndim) + a.shape)
    b = b.astype(jnp.result_type(a, b, initial))
    if not len(b):
        return initial.astype(b.dtype), b
    if reset is not None:
        a = jnp.where(reset[..., None], 0, a)
    if mask is not None:
        a, b = jnp.where(mask[..., None], a, 1), jnp.where(mask[..., None], b, 0)
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * initial)

    def residual(states):
        return states - a * _previous(states, reverse)

    def solve(_, b):
        return _states(a, b, reverse, form, unroll)

    def transpose_solve(_, b):  # row t of the transposed system holds the coefficient of the step after t
        return _states(jnp.roll(a, 1 if reverse else -1, axis=0), b, not reverse, form, unroll)

    states = lax.custom_linear_solve(residual, b, solve, transpose_solve)
    return states[0 if reverse else -1], states


def _previous(states, reverse):
    zero = jnp.zeros_like(states[:1])
    return jnp.concatenate([states[1:], zero] if reverse else [zero, states[:-1]])


def _states(a, b, reverse, form, unroll):
    """From a zero state; `a` of length 1 holds at every step."""

    def sequential(a, b):
        def step(state, at):
            a_t, b_t = at
            state = (a[0] if a_t is None else a_t) * state + b_t
            return state, state

        constant = len(a) == 1
        return lax.scan(step, jnp.zeros_like(b[0]), (None if constant else a, b), reverse=reverse, unroll=unroll)[1]

    def associative(a, b):
        def compose(earlier, later):
            return later[0] * earlier[0], later[0] * earlier[1] + later[1]

        return lax.associative_scan(compose, (jnp.broadcast_to(a, (len(b), *a.shape[1:])), b), reverse=reverse)[1]

    if form is None:
        return lax.platform_dependent(a, b, cpu=sequential, default=associative)
    return {"scan": sequential, "associative": associative}[form](a, b)
