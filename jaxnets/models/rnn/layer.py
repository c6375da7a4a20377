"""The Flax layer that runs any cell over sequences: stacked, in both directions, over rows of different lengths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnets.models.common import require
from jaxnets.models.rnn.cells import Cell
from jaxnets.models.rnn.recurrence import Conditions
from jaxnets.types import Array, Bool, Float, Num, Params


class Recurrent(nn.Module):
    """Layers of a cell over sequences `x`: (outputs `[batch, time, features]`, final state).

    `lengths` says how many steps of each row count, 0 too: a row's final state is that of its own last step, outputs beyond are
    exactly 0, and whatever `x` holds there, NaN included, touches neither outputs nor gradients; the backward direction starts
    at the row's own last step. Where `reset` is True the state starts anew, from zero, before that step.

    `initial` and the final state are tuples with the state of each layer (a pair of both directions if `bidirectional`, whose
    outputs are side by side): the final state is the next call's `initial`. None is zeros, `layer.initial(batch)`.

    Dropout acts between layers, with one mask for all steps of a sequence if `variational`; `recurrent_dropout` is such a mask
    on the state inside the products. `zoneout` is the probability that a unit keeps its old state (a pair for `LSTMState`:
    hidden, cell); in evaluation, the share that it keeps. All three need `rngs={"dropout": key}` when `train`. `residual` adds
    a layer's input to its output where the widths agree.

    Parameters: `layer_i/...` as the cell has them, or `layer_i/forward/...` and `layer_i/backward/...`.

    Raises:
      ValueError: a bad field; lengths outside 0..time or not integers; `x`, `initial` or `reset` of another shape.
    Source: one mask: Gal & Ghahramani (2016), arXiv:1512.05287; zoneout: Krueger et al. (2017), arXiv:1606.01305; both
      directions: Schuster & Paliwal (1997), doi:10.1109/78.650093.
    """

    cell: Cell
    layers: int = 1
    bidirectional: bool = False
    dropout: int | float = 0.0
    variational: bool = False
    recurrent_dropout: int | float = 0.0
    zoneout: int | float | tuple[int | float, ...] = 0.0
    residual: bool = False
    time_major: bool = False  # `x`, `reset` and outputs are [time, batch, ...]
    unroll: int = 1  # steps per turn of the loop
    remat: int | None = None  # keep the state of every so many steps, compute the others again: less memory
    plain: bool = False  # differentiate the scan as it is written: forward mode needs it
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        require(self, isinstance(self.cell, Cell), "cell must be a cell such as rnn.LSTM(256)", self.cell)
        require(self, self.layers >= 1, "layers must be at least 1", self.layers)
        for name in ("dropout", "recurrent_dropout", "zoneout"):
            rates = getattr(self, name)
            inside = all(0 <= rate < 1 for rate in (rates if isinstance(rates, tuple) else (rates,)))
            require(self, inside, f"{name} must be in [0, 1)", rates)
        super().__post_init__()

    def initial(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """The zero state of `batch` rows."""
        state = self.cell.initial(batch, dtype)
        return ((state, state) if self.bidirectional else state,) * self.layers

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "..."],
        *,
        lengths: Num[Array, " batch"] | None = None,
        initial: Any = None,
        reset: Bool[Array, "..."] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "..."], Any]:
        require(self, x.ndim == 3, "x must be a batch of sequences, three axes", x.shape)
        if not self.time_major:
            x, reset = x.swapaxes(0, 1), None if reset is None else reset.swapaxes(0, 1)
        if reset is not None:
            require(self, reset.shape == x.shape[:2], f"reset must have one flag for each of {x.shape[:2]} steps", reset.shape)
        mask = _mask(lengths, *x.shape[:2])
        x, finals = _hide(x, mask), []
        for index in range(self.layers):
            if index:
                axes = (0,) if self.variational else ()
                x = nn.Dropout(self.dropout, broadcast_dims=axes, deterministic=not train)(x)
            outputs, final = self._layer(index, x, initial, Conditions(mask, reset), train)
            x = x + outputs if self.residual and x.shape == outputs.shape else outputs
            finals.append(final)
        return x if self.time_major else x.swapaxes(0, 1), tuple(finals)

    def _layer(self, index: int, x: Array, initial: Any, conditions: Conditions, train: bool) -> tuple[Array, Any]:
        """One layer over time-major `x`."""
        params = self.param(f"layer_{index}", self._draw, x.shape[-1])
        dtype = jnp.result_type(x, *jax.tree.leaves(params))
        start = _checked(self.initial(x.shape[1], dtype), initial)[index]
        if not self.bidirectional:
            return self._direction(params, start, x, conditions, train)
        forward, last = self._direction(params["forward"], start[0], x, conditions, train)
        backward, first = self._direction(params["backward"], start[1], x, conditions, train, reverse=True)
        return jnp.concatenate([forward, backward], axis=-1), (last, first)

    def _direction(self, params, start, x, conditions, train, reverse=False):
        if reverse and conditions.reset is not None:  # backwards, a document is entered at the step before the next one starts
            starts = conditions.reset if conditions.mask is None else conditions.reset & conditions.mask
            conditions = conditions._replace(reset=jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])]))
        conditions = self._noise(start, x.shape[:2], conditions, train)
        options = {"reverse": reverse, "unroll": self.unroll, "remat": self.remat, "plain": self.plain}
        final, states = self.cell.scan(params, start, x, conditions, **options)
        return _hide(self.cell.read(params, states, x), conditions.mask), final

    def _noise(self, state: Any, shape: tuple[int, int], conditions: Conditions, train: bool) -> Conditions:
        """The conditions with masks of recurrent dropout and zoneout drawn."""
        leaves, tree = jax.tree.flatten(state)
        if self.recurrent_dropout and train:
            ones = jnp.ones((shape[1], self.cell.outputs), leaves[0].dtype)
            keep = nn.Dropout(self.recurrent_dropout, deterministic=False)(ones)
            conditions = conditions._replace(keep=keep)
        rates = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(leaves)
        require(self, len(rates) == len(leaves), f"zoneout must be one number or {len(leaves)}", self.zoneout)
        if any(rates):
            shares = [
                jax.random.bernoulli(self.make_rng("dropout"), rate, (shape[0], *leaf.shape)).astype(leaf.dtype)
                if train
                else jnp.full((shape[0], 1, 1), rate, leaf.dtype)
                for rate, leaf in zip(rates, leaves, strict=True)
            ]
            conditions = conditions._replace(zoneout=tree.unflatten(shares))
        return conditions

    def _draw(self, key: Any, inputs: int) -> Params:
        """Parameters of one layer, each from a key of its own."""
        if not self.bidirectional:
            return self.cell.init(key, inputs, self.param_dtype)
        forward, backward = jax.random.split(key)
        return {
            "forward": self.cell.init(forward, inputs, self.param_dtype),
            "backward": self.cell.init(backward, inputs, self.param_dtype),
        }


def _mask(lengths: Array | None, time: int, batch: int) -> Array | None:
    """True at the steps that count, `[time, batch]`."""
    if lengths is None:
        return None
    require("Recurrent", bool(jnp.issubdtype(lengths.dtype, jnp.integer)), "lengths must be integers", lengths.dtype)
    require("Recurrent", lengths.shape == (batch,), f"lengths must be one number for each of {batch} rows", lengths.shape)
    if not isinstance(lengths, jax.core.Tracer):
        known = np.asarray(lengths)  # NumPy's: inside jit even a comparison of constants is traced
        require(
            "Recurrent", bool(np.all((known >= 0) & (known <= time))), f"lengths must be in 0..{time}, the steps of x", known
        )
    return jnp.arange(time)[:, None] < lengths[None]


def _hide(x: Array, mask: Array | None) -> Array:
    """Zero at the steps that don't count: a select, since NaN times 0 is NaN."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def _checked(zeros: Any, initial: Any) -> Any:
    """The given initial state as the layer computes it, or zeros."""
    if initial is None:
        return zeros
    expected, got = (jax.tree.map(jnp.shape, state) for state in (zeros, initial))
    require("Recurrent", expected == got, f"initial must be a state of shapes {expected}", got)
    return jax.tree.map(lambda zero, given: jnp.asarray(given).astype(zero.dtype), zeros, initial)
