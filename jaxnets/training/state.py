"""The training state: one pytree that holds everything a step reads and writes, so a run can be stopped, saved and vmapped."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxnets.types import Any, Array, Carry, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes. `step + skipped` is the position in the data.

    Every field may get a leading member axis, and under a tree map hold shapes or shardings: hence no types here.
    """

    params: Params
    carry: Carry  # mutable collections (batch statistics) or recurrent state
    opt_state: Any
    ema: Params  # exponential moving average of params; None when not wanted
    key: Any  # typed key; never changes: step n draws from fold_in(key, n)
    step: Any  # int32: updates applied
    skipped: Any  # int32: updates left out because loss or gradient was not finite
    skipped_in_row: Any  # int32: of these, how many since the last applied one


def from_params(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    carry: Carry = None,
    ema: bool = False,
) -> TrainState:
    """State at step 0 of any parameters, Flax or not; `key` drives what the steps draw (dropout, augmentation)."""
    # Separate zeros and a copied average: aliased buffers can't be donated.
    average = jax.tree.map(jnp.copy, params) if ema else None
    counts = {name: jnp.zeros((), jnp.int32) for name in ("step", "skipped", "skipped_in_row")}
    return TrainState(params, {} if carry is None else carry, optimizer.init(params), average, key, **counts)


def create(
    model: Any, optimizer: optax.GradientTransformation, key: Key[Array, ""], x: Any, *, ema: bool = False
) -> TrainState:
    """State at step 0 of a Flax model: variables from `model.init` on the example input `x`, params apart from the rest.

    `jax.vmap(lambda k: create(model, optimizer, k, x))(jax.random.split(key, n))` is an ensemble of n.
    """
    init_key, train_key = jax.random.split(key)
    carry = dict(model.init(init_key, jnp.asarray(x)))
    return from_params(carry.pop("params"), optimizer, train_key, carry=carry, ema=ema)
