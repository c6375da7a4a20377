"""VGG: stages of 3x3 convolutions and 2x2 max pooling, then three fully connected layers."""

import functools
from collections.abc import Sequence

from flax import linen as nn

from jaxnets import ops
from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require

GRID = 7  # rows and columns of the maps that the fully connected layers see
DENSE = nn.initializers.normal(0.01)


class VGG(nn.Module):
    """A VGG network; `features` gives its maps "pool1" ... "pool5" by name, the call logits.

    An image of any size whose last map isn't empty: it is averaged to 7x7 (of a 224x224 image it is that already), as in
    torchvision. Parameters: `conv1_1`, `norm1_1`, ... `conv5_3`, then `fc6`, `fc7`, `head`; `fc6/kernel [49 channels, hidden]`
    reshaped to `[7, 7, channels, hidden]` is the kernel of the same layer as a convolution, to which `padding=100` and
    `ceil=True` belong.

    Dropout needs `rngs={"dropout": key}` when `train`.

    Raises:
      ValueError: a bad field, at construction; an image too small.
    Source: Simonyan & Zisserman (2015), arXiv:1409.1556; initialized as torchvision does, so that 19 layers train from scratch.
    """

    depths: Sequence[int]  # convolutions of each stage
    classes: int = 1000
    normalization: layers.Kind = None
    width: int = 64  # channels of the first stage; each further stage has twice as many, at most 8 times
    hidden: int = 4096  # units of fc6 and fc7
    padding: int = 1  # of the first convolution
    ceil: bool = False  # pooling keeps a last odd row and column
    dropout: int | float = 0.5

    def __post_init__(self):
        require("VGG", self.classes >= 1, "classes must be at least 1", self.classes)
        require("VGG", bool(self.depths) and min(self.depths) >= 1, "depths must be positive integers", self.depths)
        require("VGG", min(self.width, self.hidden) >= 1, "width and hidden must be at least 1", (self.width, self.hidden))
        require("VGG", self.padding >= 0, "padding must be at least 0", self.padding)
        require("VGG", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        layers.require_kind("VGG", self.normalization)
        super().__post_init__()

    def setup(self):
        for stage, depth in enumerate(self.depths, start=1):
            width = self.width * min(2 ** (stage - 1), 8)
            for index in range(1, depth + 1):
                padding = self.padding if (stage, index) == (1, 1) else 1
                setattr(self, f"conv{stage}_{index}", layers.Convolution(width, padding=padding, use_bias=True))
                if self.normalization is not None:
                    setattr(self, f"norm{stage}_{index}", layers.normalization(self.normalization, width, name=None))
        self.fc6 = nn.Dense(self.hidden, kernel_init=DENSE)
        self.fc7 = nn.Dense(self.hidden, kernel_init=DENSE)
        self.head = nn.Dense(self.classes, kernel_init=DENSE)
        self.drop = nn.Dropout(self.dropout)

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps after each stage's pooling."""
        smallest = 2 ** len(self.depths) - 2 * (self.padding - 1)
        require("VGG", min(x.shape[1:3]) >= smallest, f"an image must be at least {smallest} pixels high and wide", x.shape)
        maps = {}
        for stage, depth in enumerate(self.depths, start=1):
            for index in range(1, depth + 1):
                x = getattr(self, f"conv{stage}_{index}")(x)
                if self.normalization is not None:
                    x = getattr(self, f"norm{stage}_{index}")(x, train=train)
                x = nn.relu(x)
            x = maps[f"pool{stage}"] = ops.max_pool(x, 2, ceil=self.ceil)
        return maps

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = self.features(x, train=train)[f"pool{len(self.depths)}"]
        x = ops.adaptive_average_pool(x, GRID).reshape(x.shape[0], -1)
        for layer in (self.fc6, self.fc7):
            x = self.drop(nn.relu(layer(x)), deterministic=not train)
        return self.head(x)


# An option that is given again counts: `vgg16(classes=21, normalization="batch")`.
vgg11 = functools.partial(VGG, (1, 1, 2, 2, 2))
vgg13 = functools.partial(VGG, (2, 2, 2, 2, 2))
vgg16 = functools.partial(VGG, (2, 2, 3, 3, 3))
vgg19 = functools.partial(VGG, (2, 2, 4, 4, 4))
