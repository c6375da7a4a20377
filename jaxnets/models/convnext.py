"""ConvNeXt: a residual network in the manner of a transformer, with depthwise 7x7 convolutions and layer normalization."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require

NORMAL = nn.initializers.normal(0.02)  # which the paper truncates at 100 standard deviations
Dense = functools.partial(nn.Dense, kernel_init=NORMAL)
Convolution = functools.partial(layers.Convolution, padding=0, use_bias=True, kernel_init=NORMAL)
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)  # whose digits would cancel


class Block(nn.Module):
    """`x + scale * W2 gelu(W1 norm(depthwise7x7(x)))`, the second summand left out of a whole image with probability `drop`."""

    drop: int | float
    layer_scale: int | float

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        channels = x.shape[-1]
        h = Convolution(channels, 7, padding=None, groups=channels, name="conv")(x)
        h = nn.gelu(Dense(4 * channels, name="expand")(LayerNorm(name="norm")(h)), approximate=False)
        scale = self.param("scale", nn.initializers.constant(self.layer_scale), (channels,))
        h = Dense(channels, name="project")(h) * scale[None, None, None]
        return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(h)


class Stage(nn.Module):
    """Halves the size, but for the first stage, and goes through a block for each of `drops`."""

    channels: int
    first: bool
    drops: Sequence[float]
    layer_scale: int | float

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        if not self.first:
            x = Convolution(self.channels, 2, 2, name="down_conv")(LayerNorm(name="down_norm")(x))
        for index, drop in enumerate(self.drops):
            x = Block(drop, self.layer_scale, name=f"block{index}")(x, train=train)
        return x


class ConvNeXt(nn.Module):
    """A ConvNeXt; `features` gives its maps "stem", "stage1", "stage2", ... by name, the call logits.

    An image of any size from 32x32 (with four stages). Stochastic depth, the rate of which grows from 0 at the first block to
    `drop_depth` at the last, needs `rngs={"dropout": key}` when `train`.

    Raises:
      ValueError: a bad field, at construction; an image too small.
    Source: Liu et al. (2022), arXiv:2201.03545; layer scale: Touvron et al. (2021), arXiv:2103.17239; stochastic depth:
      Huang et al. (2016), arXiv:1603.09382.
    """

    depths: Sequence[int]  # blocks of each stage
    widths: Sequence[int]  # channels of each stage
    classes: int = 1000
    drop_depth: int | float = 0.1
    layer_scale: int | float = 1e-6  # at the start

    def __post_init__(self):
        require(self, self.classes >= 1, "classes must be at least 1", self.classes)
        require(
            self, bool(self.depths) and min(self.depths) >= 1, "depths must be positive integers, at least one", self.depths
        )
        fit = len(self.widths) == len(self.depths) and min(self.widths) >= 1
        require(self, fit, f"widths must be {len(self.depths)} positive integers, one per stage", self.widths)
        require(self, 0 <= self.drop_depth < 1, "drop_depth must be in [0, 1)", self.drop_depth)
        super().__post_init__()

    def setup(self):
        self.stem_conv, self.stem_norm = Convolution(self.widths[0], 4, 4), LayerNorm()
        blocks, done = sum(self.depths), 0
        for index, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            drops = [self.drop_depth * block / max(blocks - 1, 1) for block in range(done, done + depth)]
            setattr(self, f"stage{index}", Stage(width, index == 1, drops, self.layer_scale))
            done += depth
        self.norm, self.head = LayerNorm(), Dense(self.classes)

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps after the stem and after each stage."""
        smallest = 4 * 2 ** (len(self.depths) - 1)
        require(self, min(x.shape[1:3]) >= smallest, f"an image must be at least {smallest} pixels high and wide", x.shape)
        x = self.stem_norm(self.stem_conv(x))
        maps = {"stem": x}
        for index in range(1, len(self.depths) + 1):
            x = maps[f"stage{index}"] = getattr(self, f"stage{index}")(x, train=train)
        return maps

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = self.features(x, train=train)[f"stage{len(self.depths)}"]
        return self.head(self.norm(jnp.mean(x, (1, 2))))


convnext_tiny = functools.partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768))
