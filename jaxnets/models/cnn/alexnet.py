"""AlexNet: five convolutions and three fully connected layers."""

from flax import linen as nn
from jax import lax

from jaxnets import ops
from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require
from jaxnets.types import Array, Float

GRID = 6  # rows and columns of the maps that the fully connected layers see
NORMAL = nn.initializers.normal(0.01)


class AlexNet(nn.Module):
    """AlexNet in one tower, as in torchvision; `features` gives its maps "pool1", "pool2", "conv3", "conv4" and "pool5".

    The paper's has `widths=(96, 256, 384, 384, 256)`, `towers=2` (the groups of the second, fourth and fifth convolution) and
    `local_response=True`. An image of any size from 63x63; the last map is averaged to 6x6 (of 224x224 it is that already).
    Dropout, before fc6 and fc7, needs `rngs={"dropout": key}` when `train`.

    Parameters: `conv1` ... `conv5`, `fc6`, `fc7`, `head`; weights N(0, 0.01²), biases 0 or 1, as in the paper.

    Raises:
      ValueError: a bad field, at construction; an image too small.
    Source: Krizhevsky et al. (2012), doi:10.1145/3065386; one tower: Krizhevsky (2014), arXiv:1404.5997.
    """

    classes: int = 1000
    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096  # units of fc6 and fc7
    towers: int = 1
    local_response: bool = False  # normalization after the first two convolutions
    dropout: int | float = 0.5

    def __post_init__(self):
        require("AlexNet", self.classes >= 1, "classes must be at least 1", self.classes)
        require("AlexNet", min(*self.widths, self.hidden) >= 1, "widths and hidden must be at least 1", self.widths)
        split = self.towers >= 1 and all(width % self.towers == 0 for width in self.widths)
        require("AlexNet", split, "towers must divide all widths", self.towers)
        require("AlexNet", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        super().__post_init__()

    def setup(self):
        plan = [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
        for index, (width, (window, stride, padding)) in enumerate(zip(self.widths, plan, strict=True), start=1):
            split = index in (2, 4, 5)
            bias = {"use_bias": True, "bias_init": nn.initializers.constant(float(split))}
            groups = self.towers if split else 1
            conv = layers.Convolution(width, window, stride, padding, groups=groups, kernel_init=NORMAL, **bias)
            setattr(self, f"conv{index}", conv)
        self.fc6, self.fc7 = (nn.Dense(self.hidden, kernel_init=NORMAL, bias_init=nn.initializers.ones) for _ in range(2))
        self.head = nn.Dense(self.classes, kernel_init=NORMAL)
        self.drop = nn.Dropout(self.dropout)

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps by name, each after its activation and pooling."""
        del train
        require("AlexNet", min(x.shape[1:3]) >= 63, "an image must be at least 63 pixels high and wide", x.shape)
        maps = {}
        for index in range(1, 6):
            x = nn.relu(getattr(self, f"conv{index}")(x))
            if self.local_response and index <= 2:
                x = local_response(x)
            pools = index in (1, 2, 5)
            x = maps[f"pool{index}" if pools else f"conv{index}"] = ops.max_pool(x, 3, stride=2) if pools else x
        return maps

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = ops.adaptive_average_pool(self.features(x, train=train)["pool5"], GRID).reshape(x.shape[0], -1)
        for layer in (self.fc6, self.fc7):
            x = nn.relu(layer(self.drop(x, deterministic=not train)))
        return self.head(x)


def local_response(
    x: Float[Array, "*batch channels"], *, window: int = 5, bias=2.0, scale=1e-4, power=0.75
) -> Float[Array, "*batch channels"]:
    """`x / (bias + scale Σ x²)^power`, summed over the `window` channels around each.

    torch.nn.LocalResponseNorm divides its scale by the window. Source: Krizhevsky et al. (2012), section 3.3.
    """
    span = (1,) * (x.ndim - 1)
    return x / (bias + scale * lax.reduce_window(x * x, 0.0, lax.add, (*span, window), (*span, 1), "SAME")) ** power
