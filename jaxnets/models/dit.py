"""DiT, a transformer of patches that removes noise; time and label scale, shift and gate each of its blocks.

model = dit.dit_s(patch=4, classes=10)
prediction = model.apply(variables, x, t, label)
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnets.models import conditioning, layers
from jaxnets.models.common import Images, Maps, require
from jaxnets.types import Array, Float

Tokens = Float[Array, "batch tokens width"]
INIT, SMALL = nn.initializers.xavier_uniform(), nn.initializers.normal(0.02)
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_scale=False, use_bias=False, use_fast_variance=False)
Dense = functools.partial(nn.Dense, kernel_init=INIT)
ZeroDense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)


def positions(rows: int, columns: int, width: int, dtype: Any = jnp.float32) -> Float[Array, "1 tokens width"]:
    """The fixed embedding of a grid of patches, row by row: a half for the column and a half for the row.

    Each half is `sin(p ω_i)` and then `cos(p ω_i)`, with `ω_i = 10000^(-4 i / width)` for i below width / 4.
    """
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.indices((rows, columns)).reshape(2, -1, 1) * frequencies[None]
    waves = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return jnp.asarray(np.concatenate(waves, axis=1)[None], dtype)


class Block(nn.Module):
    """`x += g1 attention((1 + s1) norm x + b1)`, then `x += g2 mlp((1 + s2) norm x + b2)`, of a condition; at the start `x`."""

    heads: int
    hidden: int
    dropout: int | float

    @nn.compact
    def __call__(self, x: Tokens, condition: Float[Array, "batch features"], *, train: bool = False) -> Tokens:
        batch, tokens, width = x.shape
        drop = nn.Dropout(self.dropout, deterministic=not train)
        told = ZeroDense(6 * width, name="condition")(condition)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(told, 6, axis=-1)
        qkv = Dense(3 * width, name="qkv")(LayerNorm()(x) * (1 + scale1) + shift1)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        h = layers.attend(query, key, value).reshape(x.shape)
        x += gate1 * drop(Dense(width, name="project")(h))
        h = nn.gelu(Dense(self.hidden, name="mlp1")(LayerNorm()(x) * (1 + scale2) + shift2), approximate=True)
        return x + gate2 * drop(Dense(width, name="mlp2")(h))


class DiT(nn.Module):
    """A diffusion transformer with adaptive layer normalization, called as `conditioning` says; at the start it is zero.

    Height and width must be multiples of `patch`; an image of another size than in training has positions it never saw. Dropout
    needs `rngs={"dropout": key}` when `train`.

    `weights.torch.load("dit", ...)` loads the official checkpoints, whose times are indices (`time_scale=1`), and which learn
    variances (`outputs` twice the channels of the input). Their embedding of positions, if they hold it, is in the collection
    `constants` and used in place of `positions`; without it the variables serve every size.

    Raises:
      ValueError: a bad field, at construction; an image of another size; as `conditioning.labels`, `times`, `with_previous`.
    Source: Peebles & Xie (2023), section 3.2 (adaLN-Zero), arXiv:2212.09748.
    """

    width: int = 384
    depth: int = 12  # blocks
    heads: int = 6
    patch: int = 2  # pixels of its side
    classes: int | None = None
    null: bool = True  # there is a null class
    self_conditioning: bool = False
    outputs: int | None = None  # channels; None: as many as the input has
    expansion: int | float = 4  # of the perceptron in each block
    dropout: int | float = 0.0
    time_scale: int | float = 1000.0  # times t: what the sinusoids see, whose longest period is 2π 10000

    def __post_init__(self):
        for name in ("width", "depth", "heads", "patch"):
            require(self, getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(self, self.width % self.heads == 0, f"heads must divide the width {self.width}", self.heads)
        require(self, self.width % 4 == 0, "width must be a multiple of 4", self.width)
        require(self, self.expansion > 0, "expansion must be positive", self.expansion)
        conditioning.require_fields(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, t: Any, label: Any = None, *, previous: Any = None, train: bool = False) -> Maps:
        batch, height, width, channels = x.shape
        fits = not (height % self.patch or width % self.patch)
        require(self, fits, f"height and width must be multiples of the patch {self.patch}", (height, width))
        grid = (height // self.patch, width // self.patch)
        tell = conditioning.Condition(self.width, 256, self.classes, self.null, kernel_init=SMALL, name="condition")
        label = conditioning.labels(self, label, batch)
        condition = tell(self.time_scale * conditioning.times(self, t, x), label, x.dtype)

        x = conditioning.with_previous(self, x, previous)
        whole = {"window": self.patch, "stride": self.patch, "padding": 0, "use_bias": True, "kernel_init": INIT}
        h = layers.Convolution(self.width, **whole, name="patches")(x).reshape(batch, -1, self.width)
        h += self._positions(*grid, h.dtype)
        for index in range(self.depth):
            block = Block(self.heads, round(self.expansion * self.width), self.dropout, name=f"block{index}")
            h = block(h, condition, train=train)
        shift, scale = jnp.split(ZeroDense(2 * self.width, name="condition_out")(condition)[:, None], 2, axis=-1)
        outputs = self.outputs or channels
        h = ZeroDense(self.patch**2 * outputs, name="dense_out")(LayerNorm()(h) * (1 + scale) + shift)
        h = h.reshape(batch, *grid, self.patch, self.patch, outputs).swapaxes(2, 3)
        return h.reshape(batch, height, width, outputs)

    def _positions(self, rows: int, columns: int, dtype: Any) -> Float[Array, "1 tokens width"]:
        if not self.has_variable("constants", "positions"):
            return positions(rows, columns, self.width, dtype)
        loaded = jnp.asarray(self.get_variable("constants", "positions"), dtype)
        fits = loaded.shape == (1, rows * columns, self.width)
        require(self, fits, f"the variables hold positions {list(loaded.shape)}", f"{rows} x {columns} patches")
        return loaded


dit_s = functools.partial(DiT, 384, 12, 6)
dit_b = functools.partial(DiT, 768, 12, 12)
dit_l = functools.partial(DiT, 1024, 24, 16)
dit_xl = functools.partial(DiT, 1152, 28, 16)
