"""Residual networks: the ImageNet depths, CIFAR's, ResNeXt and wide ones; dilated for segmentation.

`resnet50(classes=10)` is a module like any other; `backbone.features(x)` are its maps by name, for networks built on it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxnets import ops
from jaxnets.models import layers
from jaxnets.models.common import Images, Logits, Maps, require

EXPANSION = 4  # of a bottleneck: outputs per plane


class Block(nn.Module):
    """A residual block: two 3x3 convolutions ("basic"), or 1x1, 3x3 and 1x1 ("bottleneck"), beside a shortcut.

    The stride is in the first 3x3 convolution (v1.5), or, with `early_stride`, in the first of all (v1). `first_dilation` is
    the rate of the convolution that has the stride, `dilation` that of a later 3x3. With `preactivation` normalization and
    relu come before each convolution (v2).
    """

    kind: str  # "basic" or "bottleneck"
    planes: int
    stride: int = 1
    first_dilation: int = 1
    dilation: int = 1
    groups: int = 1
    group_width: int = 64
    early_stride: bool = False
    preactivation: bool = False
    shortcut: str = "projection"  # or "pad"
    normalization: layers.Kind = "batch"
    zero_scale: bool = True

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        if self.kind == "basic":
            plan = [(self.planes, 3, self.stride, self.first_dilation), (self.planes, 3, 1, self.dilation)]
        else:
            inner = int(self.planes * (self.group_width / 64)) * self.groups
            early, late = (self.stride, 1) if self.early_stride else (1, self.stride)
            rate = self.dilation if self.early_stride else self.first_dilation
            plan = [(inner, 1, early, 1), (inner, 3, late, rate), (self.planes * EXPANSION, 1, 1, 1)]
        outputs = plan[-1][0]
        shortcut = h = x
        for index, (features, window, stride, dilation) in enumerate(plan, start=1):
            groups = self.groups if window == 3 and self.kind == "bottleneck" else 1
            convolve = layers.Convolution(features, window, stride, dilation=dilation, groups=groups, name=f"conv{index}")
            last = index == len(plan)
            if self.preactivation:
                h = nn.relu(self._normalize(h, f"norm{index}", train))
                if index == 1:  # a projection sees the normalized input, an identity the input
                    shortcut = self._shortcut(x if self._same(x, outputs) else h, outputs, train)
                h = convolve(h)
            else:
                scale = nn.initializers.zeros if last and self.zero_scale else nn.initializers.ones
                h = self._normalize(convolve(h), f"norm{index}", train, scale)
                h = h if last else nn.relu(h)
        if self.preactivation:
            return shortcut + h
        return nn.relu(self._shortcut(x, outputs, train) + h)

    def _normalize(self, x, name, train, scale_init=nn.initializers.ones):
        return layers.normalization(self.normalization, x.shape[-1], name=name, scale_init=scale_init)(x, train=train)

    def _same(self, x, outputs):
        return x.shape[-1] == outputs and self.stride == 1

    def _shortcut(self, x, outputs, train):
        if self._same(x, outputs):
            return x
        if self.shortcut == "pad":
            return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((0, outputs - x.shape[-1]),))
        x = layers.Convolution(outputs, 1, self.stride, name="shortcut_conv")(x)
        return x if self.preactivation else self._normalize(x, "shortcut_norm", train)


class Stem(nn.Module):
    """A 7x7 convolution with stride 2 and 3x3 max pooling; "deep": three 3x3 instead of it; "cifar": one 3x3, no more."""

    kind: str  # "imagenet", "deep" or "cifar"
    width: int
    normalization: layers.Kind
    preactivation: bool

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        plan = {
            "imagenet": [(self.width, 7, 2)],
            "deep": [(self.width, 3, 2), (self.width, 3, 1), (2 * self.width, 3, 1)],
            "cifar": [(self.width, 3, 1)],
        }[self.kind]
        for index, (features, window, stride) in enumerate(plan, start=1):
            x = layers.Convolution(features, window, stride, name=f"conv{index}")(x)
            if not (self.preactivation and index == len(plan)):  # the first block begins with both
                x = nn.relu(layers.normalization(self.normalization, features, name=f"norm{index}")(x, train=train))
        return x if self.kind == "cifar" else ops.max_pool(x, 3, stride=2, padding=1)


class Stage(nn.Module):
    """Blocks of one width, the first with the stride and the change of width."""

    depth: int
    stride: int
    first_dilation: int
    dilation: int
    block: dict[str, Any]

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Maps:
        for index in range(self.depth):
            first = index == 0
            stride, dilation = (self.stride, self.first_dilation) if first else (1, self.dilation)
            rates = {"first_dilation": dilation, "dilation": self.dilation}
            x = Block(stride=stride, **rates, **self.block, name=f"block{index}")(x, train=train)
        return x


class ResNet(nn.Module):
    """A residual network; `features` gives its maps "stem", "stage1", "stage2", ... by name, the call logits.

    `output_stride` below the network's own turns the strides of the last stages into dilations. `dilate_first` is the
    convention for the first block of such a stage: False keeps the previous rate, as torchvision does, so that the maps agree
    with the strided network's at its positions; True uses the new one, as semseg does; None is True for semseg's deep stem.

    Batch statistics are in `batch_stats` (`mutable=["batch_stats"]` when `train`); dropout needs `rngs={"dropout": key}`.

    Raises:
      ValueError: a bad field, at construction.
    Source: He et al. (2015), arXiv:1512.03385; (2016), arXiv:1603.05027 (preactivation); stride in the 3x3: Goyal et al.
      (2017), arXiv:1706.02677, which also has the zero scale; Xie et al. (2017), arXiv:1611.05431 (groups); Yu & Koltun (2017),
      arXiv:1705.09914 (dilation); He et al. (2019), arXiv:1812.01187 (deep stem).
    """

    depths: Sequence[int]  # blocks of each stage
    classes: int = 1000
    block: str = "bottleneck"  # or "basic"
    width: int = 64  # of the stem, and planes of the first stage; each further stage has twice as many
    stem: str = "imagenet"  # or "deep", "cifar"
    output_stride: int | None = None
    dilate_first: bool | None = None
    groups: int = 1  # of the 3x3 in a bottleneck
    group_width: int = 64  # times planes / 64: channels of each group
    early_stride: bool = False  # in a bottleneck's first 1x1 (v1) rather than its 3x3 (v1.5)
    preactivation: bool = False  # v2
    shortcut: str = "projection"  # where sizes change: a 1x1 convolution, or "pad": slices and zeros
    normalization: layers.Kind = "batch"
    zero_scale: bool = True  # each block begins as its shortcut
    dropout: int | float = 0.0  # before the last layer

    def __post_init__(self):
        require(self, self.classes >= 1, "classes must be at least 1", self.classes)
        require(
            self, bool(self.depths) and min(self.depths) >= 1, "depths must be positive integers, at least one", self.depths
        )
        require(self, self.width >= 1, "width must be at least 1", self.width)
        choices = {"block": ("basic", "bottleneck"), "stem": ("imagenet", "deep", "cifar"), "shortcut": ("projection", "pad")}
        for name, known in choices.items():
            require(self, getattr(self, name) in known, f"{name} must be one of {', '.join(known)}", getattr(self, name))
        narrows = (self.block, self.stem, self.shortcut) == ("basic", "deep", "pad")
        require(self, not narrows, "shortcut must be 'projection' where a deep stem has more channels than basic blocks", "pad")
        require(self, self.groups >= 1, "groups must be at least 1", self.groups)
        groups = (self.groups, self.group_width)
        require(self, self.block == "bottleneck" or groups == (1, 64), "groups and group_width are a bottleneck's", groups)
        wide = self.width * self.group_width >= 64
        require(self, wide, "group_width must be at least 64 / width: a channel for each group", self.group_width)
        require(self, 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        layers.require_kind(self, self.normalization)
        require(
            self,
            self.output_stride in (None, *self._strides),
            f"output_stride must be one of {self._strides}",
            self.output_stride,
        )
        super().__post_init__()

    @property
    def stride(self) -> int:
        """Pixels from one position of the last map to the next; the first is at the image's first pixel."""
        return self.output_stride or self._strides[-1]

    @property
    def _strides(self):
        return [(1 if self.stem == "cifar" else 4) * 2**i for i in range(len(self.depths))]

    def setup(self):
        self.entry = Stem(self.stem, self.width, self.normalization, self.preactivation)
        block = {
            "kind": self.block,
            "groups": self.groups,
            "group_width": self.group_width,
            "early_stride": self.early_stride,
            "preactivation": self.preactivation,
            "shortcut": self.shortcut,
            "normalization": self.normalization,
            "zero_scale": self.zero_scale,
        }
        dilate_first = self.stem == "deep" if self.dilate_first is None else self.dilate_first
        reached, dilation = (1 if self.stem == "cifar" else 4), 1
        for index, depth in enumerate(self.depths):
            stride, before = (1 if index == 0 else 2), dilation
            if self.output_stride is not None and reached * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            first = dilation if dilate_first else before
            stage = Stage(depth, stride, first, dilation, {"planes": self.width * 2**index, **block})
            setattr(self, f"stage{index + 1}", stage)
        if self.preactivation:
            channels = self.width * 2 ** (len(self.depths) - 1) * (EXPANSION if self.block == "bottleneck" else 1)
            self.norm = layers.normalization(self.normalization, channels)
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.classes)

    def features(self, x: Images, *, train: bool = False) -> dict[str, Maps]:
        """The maps after the stem and after each stage; a last map of a v2 network is normalized and rectified."""
        x = self.entry(x, train=train)
        maps = {"stem": x}
        for index in range(len(self.depths)):
            name = f"stage{index + 1}"
            x = maps[name] = getattr(self, name)(x, train=train)
        if self.preactivation:
            maps[f"stage{len(self.depths)}"] = nn.relu(self.norm(x, train=train))
        return maps

    def __call__(self, x: Images, *, train: bool = False) -> Logits:
        x = self.features(x, train=train)[f"stage{len(self.depths)}"]
        return self.head(self.drop(x.mean((1, 2)), deterministic=not train))


# The ImageNet depths; an option that is given again counts: `resnet50(classes=21, output_stride=8, stem="deep")`.
resnet18 = functools.partial(ResNet, (2, 2, 2, 2), block="basic")
resnet34 = functools.partial(ResNet, (3, 4, 6, 3), block="basic")
resnet50 = functools.partial(ResNet, (3, 4, 6, 3))
resnet101 = functools.partial(ResNet, (3, 4, 23, 3))
resnet152 = functools.partial(ResNet, (3, 8, 36, 3))
resnext50 = functools.partial(resnet50, groups=32, group_width=4)  # 32x4d
resnext101 = functools.partial(resnet101, groups=32, group_width=8)  # 32x8d
# Twice the channels in each 3x3 of a bottleneck. Source: Zagoruyko & Komodakis (2016), arXiv:1605.07146.
wide_resnet50 = functools.partial(resnet50, group_width=128)
wide_resnet101 = functools.partial(resnet101, group_width=128)


def cifar_resnet(depth: int, **options: Any) -> ResNet:
    """The networks for 32x32 images: 20, 32, 44, 56 or 110 layers, three stages of 16, 32 and 64 channels, `6 n + 2` layers.

    Source: He et al. (2015), section 4.2, whose shortcut is `shortcut="pad"`.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"cifar_resnet: depth must be 6 n + 2 (20, 32, 44, 56, 110), got {depth}.")
    own: dict[str, Any] = {"block": "basic", "width": 16, "stem": "cifar", "classes": 10}
    return ResNet(((depth - 2) // 6,) * 3, **(own | options))
