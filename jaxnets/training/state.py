"""The training state: one pytree that holds everything a step reads and writes, so a run can be stopped, saved and vmapped."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxnets.training.averaging import Average
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
    ema: Any  # moving average of params, or what `averaging.power` keeps of them; None when not wanted
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
    ema: bool | Average = False,
) -> TrainState:
    """State at step 0 of any parameters, Flax or not; `key` drives what the steps draw (dropout, augmentation).

    `ema` True holds one average, `averaging.power(widths)` several.
    """
    # Separate zeros and a copied average: aliased buffers can't be donated.
    average = ema.init(params) if isinstance(ema, Average) else jax.tree.map(jnp.copy, params) if ema else None
    counts = {name: jnp.zeros((), jnp.int32) for name in ("step", "skipped", "skipped_in_row")}
    return TrainState(params, {} if carry is None else carry, optimizer.init(params), average, key, **counts)


def create(
    model: Any,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    x: Any,
    *,
    carry: Carry = None,
    ema: bool | Average = False,
) -> TrainState:
    """State at step 0 of a Flax model: variables from `model.init` on the example input `x`, params apart from the rest.

    The rest is the carry, unless one is given: a recurrent state. Several states of one model are an ensemble:
    `jax.vmap(lambda k: create(model, optimizer, k, x))(jax.random.split(key, n))`.
    """
    init_key, train_key = jax.random.split(key)
    collections = dict(model.init(init_key, jnp.asarray(x)))
    params = collections.pop("params")
    # A copy, as the zeros of a state may be one buffer: that can't be donated.
    carry = collections if carry is None else jax.tree.map(jnp.copy, carry)
    return from_params(params, optimizer, train_key, carry=carry, ema=ema)
