"""The U-Net of diffusion models: residual blocks that are told the time, with attention at the coarse levels.

model = unet.UNet((64, 128, 256), attention_levels=(2,), classes=10)
prediction = model.apply(variables, x, t, label, train=True, rngs={"dropout": key})
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxnets.models import conditioning, layers
from jaxnets.models.common import Images, Maps, require
from jaxnets.types import Array, Float

INIT = nn.initializers.xavier_uniform()  # of DDPM
Convolution = functools.partial(layers.Convolution, use_bias=True, kernel_init=INIT)
ZeroConvolution = functools.partial(layers.Convolution, use_bias=True, kernel_init=nn.initializers.zeros)


class Block(nn.Module):
    """`shortcut(x) + conv2 silu norm2 (conv1 silu norm1 x)`, told a condition at `norm2`; at the start its shortcut.

    With `scale_shift` the condition c scales and shifts what is normalized, `norm2(h) (1 + s(c)) + b(c)`; without it is added
    before, `norm2(h + b(c))`.
    """

    features: int
    scale_shift: bool
    groups: int
    epsilon: float
    dropout: int | float

    @nn.compact
    def __call__(self, x: Images, condition: Float[Array, "batch features"], *, train: bool = False) -> Maps:
        told = nn.Dense((1 + self.scale_shift) * self.features, kernel_init=INIT, name="condition")(condition)[:, None, None]
        h = Convolution(self.features, name="conv1")(nn.silu(normalization(x, self.groups, self.epsilon, "norm1")))
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = normalization(h, self.groups, self.epsilon, "norm2") * (1 + scale) + shift
        else:
            h = normalization(h + told, self.groups, self.epsilon, "norm2")
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = ZeroConvolution(self.features, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Convolution(self.features, 1, name="shortcut_conv")(x)
        return x + h


class Attention(nn.Module):
    """`x + out(attend(query(norm x), key(norm x), value(norm x)))` over all pixels; at the start its input."""

    head_width: int | None
    groups: int
    epsilon: float
    normalized: bool = True

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        channels = x.shape[-1]
        width = self.head_width or channels
        h = normalization(x, self.groups, self.epsilon, "norm") if self.normalized else x
        heads = (x.shape[0], math.prod(x.shape[1:3]), channels // width, width)
        query, key, value = (
            nn.Dense(channels, kernel_init=INIT, name=name)(h).reshape(heads) for name in ("query", "key", "value")
        )
        h = layers.attend(query, key, value).reshape(x.shape)
        return x + nn.Dense(channels, kernel_init=nn.initializers.zeros, name="out")(h)


def normalization(x: Images, groups: int, epsilon: float, name: str) -> Maps:
    """Group normalization; of fewer groups where so many don't divide the channels."""
    return layers.GroupNorm(math.gcd(groups, x.shape[-1]), epsilon=epsilon, name=name)(x)


def doubled(x: Images) -> Maps:
    """Each pixel four times: the nearest at twice the size."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class UNet(nn.Module):
    """A U-Net that predicts from a noisy image and its time; called as `conditioning` says. At the start it is zero.

    Each level has `depth` blocks on its way down and one more on its way up, and half the size of the level before. Height and
    width must be multiples of `2 ** (len(widths) - 1)`. Dropout needs `rngs={"dropout": key}` when `train`.

    The defaults are those of ADM; `scale_shift=False, sine_first=True, frequency_shift=1, downsample_padding=0, epsilon=1e-6,
    time_scale=1` those of DDPM. What `weights.torch.load("diffusers/unet2d", ...)` loads has `time_scale=1`, for its times are
    indices, and `middle_norm=False` where its `resnet_time_scale_shift` is "scale_shift" without `attn_norm_num_groups`.

    Raises:
      ValueError: a bad field, at construction; an image of another size; as `conditioning.labels`, `times`, `with_previous`.
    Source: Ho et al. (2020), arXiv:2006.11239; Dhariwal & Nichol (2021), arXiv:2105.05233 (ADM).
    """

    widths: Sequence[int]  # channels of each level, finest first
    depth: int = 2  # blocks of each level
    attention_levels: Sequence[int] = ()  # indices of the widths whose blocks are followed by attention
    head_width: int | None = None  # channels of each head of attention; None: one head
    classes: int | None = None
    null: bool = True  # there is a null class
    self_conditioning: bool = False
    outputs: int | None = None  # channels; None: as many as the input has
    scale_shift: bool = True
    dropout: int | float = 0.0
    time_scale: int | float = 1000.0  # times t: what the sinusoids see, whose longest period is 2π 10000
    time_width: int | None = None  # of the embedding of time and label; None: 4 widths[0]
    groups: int = 32  # of normalization, or what of them divides the channels
    epsilon: float = 1e-5  # of normalization
    middle_attention: bool = True  # at the coarsest level, between its two ways
    middle_norm: bool = True  # before that attention
    downsample_padding: int = 1  # around the image; 0: one row and column after it
    frequency_shift: int = 0
    sine_first: bool = False

    def __post_init__(self):
        positive = bool(self.widths) and min(self.widths) >= 1
        require(self, positive, "widths must be positive integers, at least one", self.widths)
        require(self, self.depth >= 1, "depth must be at least 1", self.depth)
        known = all(0 <= level < len(self.widths) for level in self.attention_levels)
        require(
            self, known, f"attention_levels must be indices of the {len(self.widths)} widths, from 0", self.attention_levels
        )
        conditioning.require_fields(self)
        levels = [*self.attention_levels, *([-1] if self.middle_attention else [])]
        attended = [self.widths[level] for level in levels]
        divides = self.head_width is None or (self.head_width >= 1 and not any(w % self.head_width for w in attended))
        require(self, divides, f"head_width must divide {attended}, the widths with attention", self.head_width)
        require(self, self.time_width is None or self.time_width >= 1, "time_width must be at least 1", self.time_width)
        require(self, self.groups >= 1, "groups must be at least 1", self.groups)
        require(self, self.downsample_padding in (0, 1), "downsample_padding must be 0 or 1", self.downsample_padding)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, t: Any, label: Any = None, *, previous: Any = None, train: bool = False) -> Maps:
        multiple = 2 ** (len(self.widths) - 1)
        fits = not (x.shape[1] % multiple or x.shape[2] % multiple)
        require(self, fits, f"height and width must be multiples of {multiple} for {len(self.widths)} levels", x.shape[1:3])
        told = (self.widths[0], self.classes, self.null, self.frequency_shift, self.sine_first)
        tell = conditioning.Condition(self.time_width or 4 * self.widths[0], *told, name="condition")
        label = conditioning.labels(self, label, x.shape[0])
        condition = tell(self.time_scale * conditioning.times(self, t, x), label, x.dtype)
        numbers: dict[str, Any] = {"groups": self.groups, "epsilon": self.epsilon}
        attention = functools.partial(Attention, self.head_width, **numbers)
        block = functools.partial(Block, scale_shift=self.scale_shift, dropout=self.dropout, **numbers)
        channels, levels = x.shape[-1], range(len(self.widths))

        h = Convolution(self.widths[0], name="conv_in")(conditioning.with_previous(self, x, previous))
        skips = [h]
        for level in levels:
            for index in range(self.depth):
                h = block(self.widths[level], name=f"down{level}_block{index}")(h, condition, train=train)
                if level in self.attention_levels:
                    h = attention(name=f"down{level}_attention{index}")(h)
                skips.append(h)
            if level != levels[-1]:
                padding = 1 if self.downsample_padding else ((0, 1), (0, 1))
                h = Convolution(self.widths[level], stride=2, padding=padding, name=f"down{level}_conv")(h)
                skips.append(h)
        h = block(self.widths[-1], name="middle_block0")(h, condition, train=train)
        if self.middle_attention:
            h = attention(normalized=self.middle_norm, name="middle_attention")(h)
        h = block(self.widths[-1], name="middle_block1")(h, condition, train=train)
        for level in reversed(levels):
            for index in range(self.depth + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(self.widths[level], name=f"up{level}_block{index}")(h, condition, train=train)
                if level in self.attention_levels:
                    h = attention(name=f"up{level}_attention{index}")(h)
            if level:
                h = Convolution(self.widths[level], name=f"up{level}_conv")(doubled(h))
        h = nn.silu(normalization(h, self.groups, self.epsilon, "norm_out"))
        return ZeroConvolution(self.outputs or channels, name="conv_out")(h)
