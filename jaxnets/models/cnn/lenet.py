"""LeNet-5: as of 1998, with squashing, trainable subsampling and radial outputs, and as it is mostly built today."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnets import ops
from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require
from jaxnets.types import Array, Float, Key

# The maps of S2 that each map of C3 sees. Source: LeCun et al. (1998), table I.
CONNECTIONS = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)

# Ten codes of 7x12 pixels, a blank row above and below, drawn in the manner of the paper's figure 3.
DIGITS = """
..###.. ...#... .#####. ####### ....##. ####### ..####. ####### .#####. .#####.
.#...#. ..##... #.....# .....#. ...#.#. #...... .#..... ......# #.....# #.....#
#.....# .#.#... ......# ....#.. ..#..#. #...... #...... ......# #.....# #.....#
#.....# ...#... ......# ...#... .#...#. #.####. #...... .....#. #.....# #.....#
#.....# ...#... .....#. ..####. #....#. ##....# #.####. ....#.. .#####. .######
#.....# ...#... ...##.. ......# ####### ......# ##....# ....#.. #.....# ......#
#.....# ...#... ..#.... ......# .....#. ......# #.....# ...#... #.....# ......#
#.....# ...#... .#..... ......# .....#. ......# #.....# ...#... #.....# ......#
.#...#. ...#... #...... #.....# .....#. #.....# #.....# ..#.... #.....# .....#.
..###.. .#####. ####### .#####. .....#. .#####. .#####. ..#.... .#####. .####..
"""


def squash(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`1.7159 tanh(2 x / 3)`, which is 1 at 1 and -1 at -1. Source: LeCun et al. (1998), appendix A."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def digit_codes() -> Float[Array, "10 84"]:
    """The codes of the digits 0 to 9, each 12 rows of 7 pixels: 1 for ink, -1 for paper."""
    rows = np.array([[list(word) for word in line.split()] for line in DIGITS.split("\n")[1:-1]])
    ink = np.pad(np.where(rows == "#", 1.0, -1.0), ((1, 1), (0, 0), (0, 0)), constant_values=-1)
    return jnp.asarray(ink.swapaxes(0, 1).reshape(10, 84))


def uniform(fan_in: int | None = None) -> Any:
    """U(-2.4 / fan_in, 2.4 / fan_in). Source: LeCun et al. (1998), appendix A."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
        bound = 2.4 / (math.prod(shape[:-1]) if fan_in is None else fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _signs(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
    return jax.random.rademacher(key, shape, dtype)


class LeNet5(nn.Module):
    """LeNet-5 of 1998; `features` gives "c1", "s2", "c3", "s4", "c5" and "f6", the call `-|f6 - code|²` for each class.

    The largest is the class. With `losses.softmax_cross_entropy` the nearest code is drawn near and the others pushed away: the
    paper's criterion (eq. 9) without its rubbish class. `codes` are the "digits", fixed, or "learned" from random signs.

    A gray image of at most 32x32, in a frame of zeros up to that. The paper has its background at -0.1 and ink at 1.175.
    Parameters: exactly the paper's 60,000; `codes` besides where they are learned. It has no dropout: `train` changes nothing.

    Raises:
      ValueError: a bad field, at construction; another image.
    Source: LeCun, Bottou, Bengio & Haffner (1998), section II.B, doi:10.1109/5.726791.
    """

    classes: int = 10
    codes: Literal["digits", "learned"] = "digits"

    def __post_init__(self):
        require("LeNet5", self.classes >= 1, "classes must be at least 1", self.classes)
        require("LeNet5", self.codes in ("digits", "learned"), "codes must be 'digits' or 'learned'", self.codes)
        require("LeNet5", self.codes == "learned" or self.classes <= 10, "there are codes of 10 digits", self.classes)
        super().__post_init__()

    def setup(self):
        lecun = {"padding": 0, "use_bias": True, "kernel_init": uniform()}
        self.c1 = layers.Convolution(6, 5, **lecun)
        self.s2 = Subsampling()
        self.c3 = TableConvolution()
        self.s4 = Subsampling()
        self.c5 = layers.Convolution(120, 5, **lecun)
        self.f6 = nn.Dense(84, kernel_init=uniform())
        if self.codes == "learned":
            self.centers = self.param("codes", _signs, (self.classes, 84))

    def features(self, x: Images, *, train: bool = False) -> dict[str, Array]:
        """The states of the layers, after their squashing."""
        del train
        height, width = x.shape[1:3]
        require("LeNet5", max(height, width) <= 32 and x.shape[3] == 1, "an image must be gray, at most 32x32", x.shape)
        frame = [((32 - n) // 2, (33 - n) // 2) for n in (height, width)]
        x = jnp.pad(x, ((0, 0), *frame, (0, 0)))
        maps = {}
        for name in ("c1", "s2", "c3", "s4", "c5"):
            x = maps[name] = squash(getattr(self, name)(x))
        return {**maps, "f6": squash(self.f6(x.reshape(-1, 120)))}

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        state = self.features(x, train=train)["f6"]
        codes = self.centers if self.codes == "learned" else digit_codes()[: self.classes]
        return -((state[:, None] - codes.astype(state.dtype)[None]) ** 2).sum(-1)


class Subsampling(nn.Module):
    """The sum of 2x2 pixels times one coefficient per map, plus one bias."""

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        scale = self.param("scale", uniform(4), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return 4 * ops.average_pool(x, 2) * scale[None, None, None] + bias[None, None, None]


class TableConvolution(nn.Module):
    """A 5x5 convolution of the maps that `CONNECTIONS` lists; `kernel [5, 5, connections]` has none of the others."""

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        inputs, outputs = np.array([(i, o) for o, sources in enumerate(CONNECTIONS) for i in sources]).T

        def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
            fan_in = 25 * np.bincount(outputs)[outputs]
            return jax.random.uniform(key, shape, dtype, -1, 1) * jnp.asarray(2.4 / fan_in, dtype)[None, None]

        kernel, bias = self.param("kernel", init, (5, 5, len(inputs))), self.param("bias", nn.initializers.zeros, (16,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        full = jnp.zeros((5, 5, x.shape[-1], 16), kernel.dtype).at[:, :, inputs, outputs].set(kernel)
        return ops.convolution(x, full) + bias[None, None, None]


class LeNet(nn.Module):
    """LeNet-5 with relu, max pooling and a linear output; `features` gives its maps "pool1" and "pool2", the call logits.

    Images of one size, any channels, and at least 12x12 with the paddings (2, 0), which give a 28x28 image the maps of a 32x32
    one in LeNet-5; (2, 2) leaves the size as it is and takes 4x4 and more. Dropout needs `rngs={"dropout": key}` when `train`.

    Parameters: `conv1`, `conv2`, `dense1`, `dense2`, `head`.

    Raises:
      ValueError: a bad field, at construction; an image too small.
    """

    classes: int = 10
    widths: tuple[int, int, int, int] = (6, 16, 120, 84)  # channels of the convolutions, units of the dense layers
    padding: tuple[int, int] = (2, 0)  # of the two 5x5 convolutions
    dropout: int | float = 0.0  # before each dense layer

    def __post_init__(self):
        require("LeNet", self.classes >= 1, "classes must be at least 1", self.classes)
        require("LeNet", min(self.widths) >= 1, "widths must be at least 1", self.widths)
        require("LeNet", min(self.padding) >= 0, "padding must be at least 0", self.padding)
        require("LeNet", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        super().__post_init__()

    def setup(self):
        he = layers.scaled_normal(math.sqrt(2))
        self.conv1, self.conv2 = (
            layers.Convolution(width, 5, padding=padding, use_bias=True, kernel_init=he)
            for width, padding in zip(self.widths[:2], self.padding, strict=True)
        )
        self.dense1, self.dense2 = (nn.Dense(width, kernel_init=he) for width in self.widths[2:])
        self.head = nn.Dense(self.classes)
        self.drop = nn.Dropout(self.dropout)

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps after each pooling."""
        del train
        maps = {}
        for index, padding in enumerate(self.padding, start=1):
            require("LeNet", min(x.shape[1:3]) + 2 * padding >= 6, f"the input of conv{index} is too small", x.shape)
            x = maps[f"pool{index}"] = ops.max_pool(nn.relu(getattr(self, f"conv{index}")(x)), 2)
        return maps

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = self.features(x, train=train)["pool2"].reshape(x.shape[0], -1)
        for layer in (self.dense1, self.dense2):
            x = nn.relu(layer(self.drop(x, deterministic=not train)))
        return self.head(self.drop(x, deterministic=not train))
