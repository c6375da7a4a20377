"""A classifier of whole sequences."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxnets.models.common import require
from jaxnets.models.rnn.cells import Cell
from jaxnets.models.rnn.layer import Recurrent
from jaxnets.types import Array, Float, Int


class Classifier(nn.Module):
    """Logits of the class of each sequence: `Recurrent` layers, one vector of their outputs, a linear head.

    The vector is, by `pooling`, the output at a row's own "last" step (of the backward direction at its first: each has then
    seen the whole row), or the "mean" or the "max" over the row's own steps; zero, for all three, where a row has length 0.
    Dropout acts between the layers and before the head. To train on batches with `lengths`:

        steps.supervised(model.apply, losses.softmax_cross_entropy, inputs=("lengths",))

    Parameters: `recurrent/layer_i/...`, `head/kernel [outputs, classes]`, `head/bias [classes]`.

    Raises:
      ValueError: a bad field; see `Recurrent`.
    """

    classes: int
    cell: Cell
    layers: int = 1
    bidirectional: bool = False
    dropout: int | float = 0.0
    pooling: str = "last"
    options: Any = None  # dict of further options of `Recurrent`: {"zoneout": 0.1}

    def __post_init__(self):
        require(self, self.classes >= 1, "classes must be at least 1", self.classes)
        known = self.pooling in ("last", "mean", "max")
        require(self, known, "pooling must be 'last', 'mean' or 'max'", repr(self.pooling))
        time_major = (self.options or {}).get("time_major", False)
        require(self, not time_major, "x is batch-major: options must not hold time_major", True)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time features"],
        *,
        lengths: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        layers = Recurrent(self.cell, self.layers, self.bidirectional, self.dropout, name="recurrent", **(self.options or {}))
        outputs, _ = layers(x, lengths=lengths, train=train)
        pooled = self._pool(outputs, jnp.full(x.shape[0], x.shape[1]) if lengths is None else lengths)
        pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return nn.Dense(self.classes, name="head")(pooled)

    def _pool(self, outputs: Array, lengths: Array) -> Array:
        """One vector for each row; outputs beyond its length are zero."""
        if self.pooling == "mean":
            return outputs.sum(1) / jnp.maximum(lengths, 1)[:, None].astype(outputs.dtype)
        steps, lengths = jnp.arange(outputs.shape[1])[None, :, None], lengths[:, None, None]
        if self.pooling == "max":
            highest = jnp.max(outputs, 1, where=steps < lengths, initial=-jnp.inf)
            return jnp.where(lengths[:, 0] > 0, highest, 0)
        last = jnp.where(steps == lengths - 1, outputs, 0).sum(1)
        if not self.bidirectional:
            return last
        backward = jnp.arange(last.shape[1])[None] >= self.cell.outputs
        return jnp.where(backward, outputs[:, 0], last)
