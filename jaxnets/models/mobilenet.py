"""MobileNetV2: inverted residual blocks, whose 3x3 convolutions are depthwise."""

from flax import linen as nn

from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require

# Of each stage: expansion, channels, blocks, stride of the first block. Source: Sandler et al. (2018), table 2.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 convolution to `expansion` times the channels, depthwise 3x3, linear 1x1; a shortcut where sizes agree."""

    channels: int
    stride: int = 1
    expansion: int = 6
    normalization: layers.Kind = "batch"

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        inner = x.shape[-1] * self.expansion
        expand = [("expand", inner, 1, 1, 1)] if self.expansion > 1 else []
        h = x
        for name, features, window, stride, groups in (
            *expand,
            ("depthwise", inner, 3, self.stride, inner),
            ("project", self.channels, 1, 1, 1),
        ):
            h = layers.Convolution(features, window, stride, groups=groups, name=f"{name}_conv")(h)
            h = layers.normalization(self.normalization, features, name=f"{name}_norm")(h, train=train)
            h = h if name == "project" else nn.relu6(h)
        return x + h if h.shape == x.shape else h


class MobileNetV2(nn.Module):
    """MobileNetV2; `features` gives its maps "stem", "stage1" ... "stage7" and "last" by name, the call logits.

    `width` multiplies all channels, rounded to a multiple of 8; those of "last" only where it is above 1. An image of any
    size. Batch statistics are in `batch_stats` (`mutable=["batch_stats"]` when `train`); dropout needs
    `rngs={"dropout": key}`.

    Raises:
      ValueError: a bad field, at construction.
    Source: Sandler et al. (2018), arXiv:1801.04381; initialized as torchvision does.
    """

    classes: int = 1000
    width: int | float = 1.0
    normalization: layers.Kind = "batch"
    dropout: int | float = 0.2  # before the last layer

    def __post_init__(self):
        require(self, self.classes >= 1, "classes must be at least 1", self.classes)
        require(self, self.width > 0, "width must be positive", self.width)
        require(self, 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        layers.require_kind(self, self.normalization)
        super().__post_init__()

    def setup(self):
        last = round_to_8(1280 * max(1, self.width))
        self.stem_conv = layers.Convolution(round_to_8(32 * self.width), 3, 2)
        self.stem_norm = layers.normalization(self.normalization, round_to_8(32 * self.width), name=None)
        for stage, (expansion, channels, blocks, stride) in enumerate(STAGES, start=1):
            for index in range(blocks):
                first = stride if index == 0 else 1
                block = InvertedResidual(round_to_8(channels * self.width), first, expansion, self.normalization)
                setattr(self, f"stage{stage}_block{index}", block)
        self.last_conv = layers.Convolution(last, 1)
        self.last_norm = layers.normalization(self.normalization, last, name=None)
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.01))

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps after the stem, after each stage, and after the last 1x1 convolution."""
        x = nn.relu6(self.stem_norm(self.stem_conv(x), train=train))
        maps = {"stem": x}
        for stage, (_, _, blocks, _) in enumerate(STAGES, start=1):
            for index in range(blocks):
                x = getattr(self, f"stage{stage}_block{index}")(x, train=train)
            maps[f"stage{stage}"] = x
        return {**maps, "last": nn.relu6(self.last_norm(self.last_conv(x), train=train))}

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = self.features(x, train=train)["last"].mean((1, 2))
        return self.head(self.drop(x, deterministic=not train))


def round_to_8(channels: int | float) -> int:
    """The nearest multiple of 8, at least 8 and not below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
