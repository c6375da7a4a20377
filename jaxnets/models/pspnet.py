"""The pyramid scene parsing network."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxnets import ops
from jaxnets.models import fcn, layers
from jaxnets.models.common import Images, LogitMaps, require
from jaxnets.types import Array, Float


class PyramidPooling(nn.Module):
    """The map beside its poolings to `n` x `n` for each `n` of `bins`: 1x1 convolution, normalization, relu, and back to size.

    Each pooling has `channels // len(bins)` channels. A map smaller than a bin is pooled all the same: bins share pixels.
    """

    bins: Sequence[int] = (1, 2, 3, 6)
    pooling: str = "average"  # or "max"
    normalization: layers.Kind = "batch"
    align_corners: bool = True

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> Float[Array, "batch height width outputs"]:
        pool = ops.adaptive_average_pool if self.pooling == "average" else ops.adaptive_max_pool
        width, maps = max(1, x.shape[-1] // len(self.bins)), [x]
        for index, size in enumerate(self.bins):
            y = layers.Convolution(width, 1, name=f"conv{index}")(pool(x, size))
            y = nn.relu(layers.normalization(self.normalization, width, name=f"norm{index}")(y, train=train))
            maps.append(ops.resize(y, (x.shape[1], x.shape[2]), align_corners=self.align_corners))
        return jnp.concatenate(maps, axis=-1)


class PSPNet(nn.Module):
    """Pyramid pooling on a dilated backbone: `(logits, auxiliary logits)`, both of the image's height and width, any of them.

    An image whose sides aren't multiples of the backbone's `stride` plus 1 is padded below and at the right with zeros, and the
    logits are cropped: with `align_corners` they'd be drawn up to a stride beside what they are of. A backbone without
    `stride`, any but a ResNet, gets the image as it is.

    The backbone is a module with `features(image, train=)`: its last map is pooled over `bins` and fused by 3x3 convolution
    into `width` channels; the map before (stage 3 of a ResNet) gives the `auxiliary` logits for a second loss of weight 0.4
    in training, or None. In evaluation they cost nothing under jit if they aren't used.

        PSPNet(resnet.resnet50(output_stride=8, stem="deep"), classes=21)  # semseg's

    One image a batch can be trained on: the one value per channel of the 1x1 bin has no statistics, and its `BatchNorm` uses
    the running ones; `normalization="group"` (here and in the backbone) has no statistics at all.

    Batch statistics are in `batch_stats` (`mutable=["batch_stats"]` when `train`); dropout, of whole channels, needs
    `rngs={"dropout": key}`.

    Raises:
      ValueError: a bad field, at construction.
    Source: Zhao, Shi, Qi, Wang & Jia (2017), arXiv:1612.01105; widths, names and corners of the authors' semseg.
    """

    backbone: Any
    classes: int
    bins: Sequence[int] = (1, 2, 3, 6)
    pooling: str = "average"  # or "max"
    width: int = 512
    auxiliary: bool = True
    auxiliary_width: int = 256
    dropout: int | float = 0.1
    align_corners: bool = True
    normalization: layers.Kind = "batch"

    def __post_init__(self):
        require("PSPNet", self.classes >= 1, "classes must be at least 1", self.classes)
        require("PSPNet", bool(self.bins) and min(self.bins) >= 1, "bins must be positive integers, at least one", self.bins)
        require("PSPNet", self.pooling in ("average", "max"), "pooling must be 'average' or 'max'", self.pooling)
        require(
            "PSPNet",
            min(self.width, self.auxiliary_width) >= 1,
            "widths must be at least 1",
            (self.width, self.auxiliary_width),
        )
        require("PSPNet", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        layers.require_kind("PSPNet", self.normalization)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Images, *, train: bool = False) -> tuple[LogitMaps, LogitMaps | None]:
        require(self, image.ndim == 4, "images are [batch, height, width, channels]", image.shape)
        height, width = image.shape[1:3]
        if self.align_corners:  # the map's corners are the image's only where its sides are multiples of the stride plus 1
            stride = getattr(self.backbone, "stride", 1)
            image = jnp.pad(image, ((0, 0), (0, (1 - height) % stride), (0, (1 - width) % stride), (0, 0)))
        *_, before, x = self.backbone.features(image, train=train).values()
        x = PyramidPooling(self.bins, self.pooling, self.normalization, self.align_corners, name="pyramid")(x, train=train)

        def logits(x, channels, name):
            head = fcn.Head(
                self.classes, channels, self.dropout, drop_channels=True, normalization=self.normalization, name=name
            )
            scores = ops.resize(head(x, train=train), (image.shape[1], image.shape[2]), align_corners=self.align_corners)
            return scores[:, :height, :width]

        return logits(x, self.width, "head"), logits(before, self.auxiliary_width, "auxiliary_head") if self.auxiliary else None
