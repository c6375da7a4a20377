"""A small network that removes noise from vectors, or from images as vectors: toy data, digits of 8x8 pixels."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxnets.models import conditioning
from jaxnets.models.common import require
from jaxnets.types import Array, Float


class MLPDenoiser(nn.Module):
    """Residual blocks of two dense layers that are told time and label, `h + W2 silu((1 + s) norm(W1 h) + b)`.

    An example is all after the first axis: `[batch, 2]`, `[batch, 8, 8, 1]`. Called as `conditioning` says; at the start it
    is zero. Dropout needs `rngs={"dropout": key}` when `train`.

    Raises:
      ValueError: a bad field, at construction; as `conditioning.labels`, `times` and `with_previous`.
    """

    width: int = 256
    depth: int = 3  # blocks
    classes: int | None = None
    null: bool = True  # there is a null class
    self_conditioning: bool = False
    outputs: int | None = None  # length of the last axis; None: as the input's
    dropout: int | float = 0.0
    time_scale: int | float = 1000.0

    def __post_init__(self):
        require(self, self.width >= 1, "width must be at least 1", self.width)
        require(self, self.depth >= 1, "depth must be at least 1", self.depth)
        conditioning.require_fields(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "..."], t: Any, label: Any = None, *, previous: Any = None, train: bool = False
    ) -> Float[Array, "..."]:
        require(self, x.ndim >= 2, "an input is [batch, ...] with at least one axis for an example", x.shape)
        shape = (*x.shape[:-1], self.outputs or x.shape[-1])
        t = self.time_scale * conditioning.times(self, t, x)
        label = conditioning.labels(self, label, x.shape[0])
        condition = conditioning.Condition(self.width, 64, self.classes, self.null, name="condition")(t, label, x.dtype)
        h = conditioning.with_previous(self, x, previous).reshape(x.shape[0], -1)
        h = nn.Dense(self.width, name="dense_in")(h)
        for index in range(self.depth):
            told = nn.Dense(2 * self.width, name=f"block{index}_condition")(condition)
            scale, shift = jnp.split(told, 2, axis=-1)
            g = nn.Dense(self.width, name=f"block{index}_dense1")(h)
            g = nn.LayerNorm(use_fast_variance=False, name=f"block{index}_norm")(g)
            g = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(g * (1 + scale) + shift))
            h += nn.Dense(self.width, name=f"block{index}_dense2")(g)
        h = nn.Dense(math.prod(shape[1:]), kernel_init=nn.initializers.zeros, name="dense_out")(nn.silu(h))
        return h.reshape(shape)
