"""Ensembles: many networks as one pytree with a leading member axis, trained by one compiled program.

    members = ensemble.init(lambda key: state.create(model, optimizer, key, x), key, 16)
    members, metrics = jax.jit(ensemble.step(step))(members, batch)      # metrics: [member]
    log_probabilities = ensemble.predict(model.apply, members, x)         # [example, class], of the mean probability

Members differ by their keys (initialization, dropout), and by hyperparameters when these are given.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets.training import averaging
from jaxnets.training.state import TrainState
from jaxnets.types import Any, Array, Float, Key, Step


def init(create: Callable, key: Key[Array, ""], members: int, **hyperparameters: Any) -> TrainState:
    """`create(key) -> TrainState` vmapped over keys split from `key`.

    `hyperparameters` (`learning_rate=[1e-3, 1e-2]`) hold one value per member and need an optimizer made by
    `optax.inject_hyperparams`.

    Raises:
      ValueError: `members < 1`; a hyperparameter without exactly `members` values, or that the optimizer doesn't inject.
    """
    if members < 1:
        raise ValueError(f"init: members must be at least 1, got {members}.")
    state = jax.vmap(create)(jax.random.split(key, members))
    for name, values in hyperparameters.items():
        if np.shape(values) != (members,):
            raise ValueError(f"init: {name} needs one value per member, shape ({members},), got {np.shape(values)}.")
        held = optax.tree.get_all_with_path(state.opt_state, name)
        if not held:
            raise ValueError(f"init: the optimizer injects no {name}; wrap it in optax.inject_hyperparams.")
        if len(held) > 1:  # a schedule keeps a state of its own under the same name
            raise ValueError(f"init: {name} of the optimizer must be one injected number, got a schedule or several of them.")
        values = jnp.asarray(values, held[0][1].dtype)
        state = dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, **{name: values}))
    return state


def step(step: Step, *, shared_batch: bool = True) -> Step:
    """The step of every member at once, on one shared batch or on a batch with a leading member axis."""
    return jax.vmap(step, in_axes=(0, None if shared_batch else 0))


def predict(apply: Callable, state: TrainState, x: Any, *, ema: bool | float = False) -> Float[Array, "*batch classes"]:
    """Log of the members' mean probability, `log(1/M sum_m softmax(logits_m))`, in evaluation mode.

    `ema` uses the averages, as in `make_eval_step`.

    Source: Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474.
    """
    x = jnp.asarray(x)
    members = (averaging.of_state(state, ema), state.carry)
    logits = jax.vmap(lambda params, carry: apply({"params": params, **carry}, x, train=False))(*members)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(logits.shape[0])
