"""Fully convolutional networks: FCN-32s, 16s and 8s with their surgery on weights, and the dilated one of torchvision."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from jaxnets import ops
from jaxnets.models import cnn, layers
from jaxnets.models.cnn import vgg
from jaxnets.models.common import Images, LogitMaps, require
from jaxnets.types import Array, Float

SKIPS = {"32s": (), "16s": (16,), "8s": (16, 8)}  # strides of the maps whose scores are added
SCORES = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}  # as the authors call them
UPSCORES = {32: "upscore2", 16: "upscore_pool4"}
AT_ONCE = {16: 0.01, 8: 0.0001}  # scales of the maps


class FCN(nn.Module):
    """FCN-32s, 16s or 8s: logits of the image's height and width, any of them.

    The scores of the last map (stride 32) are upsampled by two and added to those of the map before ("16s"), these once
    more ("8s"), and the sum is upsampled to the image. Maps are cropped to where both are, pixel over pixel.

    The backbone is a `cnn.VGG`, whose `fc6` (7x7) and `fc7` become convolutions of its `hidden` channels, or another module
    whose `features` end in maps of strides 8, 16 and 32 of centered windows (`resnet.resnet18()`). None is the original,
    `cnn.vgg16(padding=100, ceil=True)`: `fc6` sees no border but that padding's, and the crops are the authors' (19 of
    32s; 5, 27 of 16s; 5, 9, 31 of 8s). Where a VGG pads its first convolution by 1, `fc6` is padded too: the cost is that
    of the image. There, and with another backbone, the scores at the border go on beyond it instead of fading to zero.

    `upsampling` is "fixed" (bilinear) or "learned", kernels between all classes that begin bilinear; the paper learns all but
    the last, `upscore8`. `at_once` scales the maps of strides 16 and 8 by 0.01 and 0.0001, with which an "8s" is
    trained without the stages of `transplant`. Scores begin at zero: so does the gradient of all below.

    Dropout needs `rngs={"dropout": key}` when `train`.

    Raises:
      ValueError: a bad field, at construction.
    Source: Long, Shelhamer & Darrell (2015), arXiv:1411.4038; at once: Shelhamer et al. (2017), arXiv:1605.06211.
    """

    variant: str  # "32s", "16s" or "8s"
    classes: int
    backbone: Any = None
    upsampling: str = "fixed"  # or "learned"
    at_once: bool = False

    def __post_init__(self):
        require("FCN", self.variant in SKIPS, f"variant must be one of {', '.join(SKIPS)}", self.variant)
        require("FCN", self.classes >= 1, "classes must be at least 1", self.classes)
        require("FCN", self.upsampling in ("fixed", "learned"), "upsampling must be 'fixed' or 'learned'", self.upsampling)
        if self.backbone is None:
            self.backbone = cnn.vgg16(padding=100, ceil=True)
        if isinstance(self.backbone, cnn.VGG):
            depths, padding, ceil = self.backbone.depths, self.backbone.padding, self.backbone.ceil
            require("FCN", len(depths) == 5, "a VGG must have five stages", depths)
            known = padding == 1 or (padding == 100 and ceil)
            require("FCN", known, "a VGG must have padding=1, or padding=100 and ceil=True", (padding, ceil))
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Images, *, train: bool = False) -> LogitMaps:
        maps = list(self.backbone.features(image, train=train).values())
        if isinstance(self.backbone, cnn.VGG):
            maps[-1] = self._fully_connected(maps[-1], train)
        else:
            sizes = [x.shape[1:3] for x in maps[-3:]]
            expected = [tuple(-(-length // stride) for length in image.shape[1:3]) for stride in (8, 16, 32)]
            require("FCN", sizes == expected, f"the backbone's last maps must have strides 8, 16, 32: {expected}", sizes)
        scores = self._score(maps.pop(), 32)
        for stride in SKIPS[self.variant]:
            scores = _add(self._upsample(scores, 2, UPSCORES[2 * stride]), self._score(maps.pop(), stride))
        scores = self._upsample(scores, scores.stride, f"upscore{scores.stride}")
        start = round(-scores.place)
        return scores.x[:, start : start + image.shape[1], start : start + image.shape[2]]

    @property
    def _original(self) -> bool:
        return isinstance(self.backbone, cnn.VGG) and self.backbone.padding == 100

    def _fully_connected(self, x: Array, train: bool) -> Array:
        drop = nn.Dropout(self.backbone.dropout, deterministic=not train)
        for name, window in (("fc6", vgg.GRID), ("fc7", 1)):
            padding = 0 if self._original else window // 2
            x = drop(nn.relu(layers.Convolution(self.backbone.hidden, window, padding=padding, use_bias=True, name=name)(x)))
        return x

    def _score(self, x: Array, stride: int) -> "_Scores":
        """Scores of a map, whose first pixel is the middle of poolings by two of the padded image, or the image's first."""
        x = x * AT_ONCE.get(stride, 1) if self.at_once else x
        zeros = nn.initializers.zeros
        x = layers.Convolution(self.classes, 1, use_bias=True, kernel_init=zeros, name=SCORES[stride])(x)
        if not isinstance(self.backbone, cnn.VGG):
            return _Scores(x, stride, 0.0)
        unseen = vgg.GRID // 2 * stride if self._original and stride == 32 else 0  # fc6 begins so far inside
        return _Scores(x, stride, (stride - 1) / 2 - (self.backbone.padding - 1) + unseen)

    def _upsample(self, scores: "_Scores", factor: int, name: str) -> "_Scores":
        """By a kernel whose middle is between two pixels where those of the maps are, else on one."""
        x, stride, place = scores
        if not self._original:
            x, place = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge"), place - stride
        size = 2 * factor - (0 if isinstance(self.backbone, cnn.VGG) else 1)
        x = Upsampling(factor, size, name=name)(x) if self.upsampling == "learned" else ops.bilinear_upsample(x, factor, size)
        return _Scores(x, stride // factor, place - stride // factor * (size - 1) / 2)


class Upsampling(nn.Module):
    """A transposed convolution that begins bilinear: `kernel [size, size, classes, classes]` leaves each class alone."""

    factor: int
    size: int

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch rows columns channels"]:
        kernel = self.param("kernel", bilinear, (self.size, self.size, x.shape[-1], x.shape[-1]))
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        return ops.transposed_convolution(x, kernel, stride=self.factor)


class ResNetFCN(nn.Module):
    """torchvision's FCN-ResNet: `(logits, auxiliary logits)` of heads on a backbone's last map and on the one before.

    Both have the image's height and width, any of them. The auxiliary logits are for a second loss in training, or None;
    unused they cost nothing under jit. torchvision dilates the last two stages: `resnet.resnet50(output_stride=8)`.

    Batch statistics are in `batch_stats` (`mutable=["batch_stats"]` when `train`); dropout needs `rngs={"dropout": key}`.

    Raises:
      ValueError: a bad field, at construction.
    """

    backbone: Any
    classes: int
    auxiliary: bool = True
    dropout: int | float = 0.1
    normalization: layers.Kind = "batch"

    def __post_init__(self):
        require("ResNetFCN", self.classes >= 1, "classes must be at least 1", self.classes)
        require("ResNetFCN", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        layers.require_kind("ResNetFCN", self.normalization)
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Images, *, train: bool = False) -> tuple[LogitMaps, LogitMaps | None]:
        *_, before, last = self.backbone.features(image, train=train).values()

        def logits(x, name):
            width = max(1, x.shape[-1] // 4)
            head = Head(self.classes, width, self.dropout, normalization=self.normalization, name=name)
            return ops.resize(head(x, train=train), (image.shape[1], image.shape[2]))

        return logits(last, "head"), logits(before, "auxiliary_head") if self.auxiliary else None


class Head(nn.Module):
    """3x3 convolution, normalization, relu, dropout and the 1x1 convolution that scores the classes.

    `drop_channels` drops whole channels of an image (torch's Dropout2d), not single pixels.
    """

    classes: int
    width: int
    dropout: int | float = 0.1
    drop_channels: bool = False
    normalization: layers.Kind = "batch"

    @nn.compact
    def __call__(self, x: Images, *, train: bool = False) -> LogitMaps:
        x = layers.Convolution(self.width, 3, name="conv")(x)
        x = nn.relu(layers.normalization(self.normalization, self.width, name="norm")(x, train=train))
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2) if self.drop_channels else ())(x, deterministic=not train)
        score = layers.Convolution(self.classes, 1, use_bias=True, kernel_init=nn.initializers.lecun_normal(), name="score")
        return score(x)


def bilinear(key: Any, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """The initializer of bilinear upsampling: `ops.bilinear_kernel` from each class to itself."""
    del key
    return (ops.bilinear_kernel(shape[0])[:, :, None, None] * jnp.eye(shape[-1])[None, None]).astype(dtype)


class _Scores(NamedTuple):
    x: Array
    stride: int
    place: float  # row and column in the image where its first pixel is


def _add(a: _Scores, b: _Scores) -> _Scores:
    """The sum where both are."""
    place = max(a.place, b.place)
    x, y = (scores.x[:, start:, start:] for scores in (a, b) for start in [round((place - scores.place) / scores.stride)])
    rows, columns = (min(x.shape[axis], y.shape[axis]) for axis in (1, 2))
    return _Scores(x[:, :rows, :columns] + y[:, :rows, :columns], a.stride, place)


def fully_convolutional(variables: Mapping[str, Any], classes: int | None = None) -> dict[str, Any]:
    """The variables of a `cnn.VGG` as those of the `FCN("32s", ...)` on it: `fc6`, `fc7` and `head` become convolutions.

    Without `classes` the FCN has the classes of the VGG, and what they score; with it the new scores are zero.

    Raises:
      ValueError: not the variables of a VGG; zero classes.
    """
    params = dict(variables["params"])
    require("fully_convolutional", {"fc6", "fc7", "head"} <= set(params), "expected the variables of a VGG", sorted(params))
    require("fully_convolutional", classes is None or classes >= 1, "classes must be at least 1", classes)
    dense = {name: params.pop(name) for name in ("fc6", "fc7", "head")}
    if classes is not None:
        dense["head"] = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape[:-1], classes), leaf.dtype), dense["head"])
    convolutions = {
        name: {**layer, "kernel": layer["kernel"].reshape(window, window, -1, layer["kernel"].shape[-1])}
        for (name, layer), window in zip(dense.items(), (vgg.GRID, 1, 1), strict=True)
    }
    convolutions["score_fr"] = convolutions.pop("head")
    others = {name: {"backbone": tree} for name, tree in variables.items() if name != "params"}
    return {**others, "params": {"backbone": params, **convolutions}}


def transplant(model: FCN, from_: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of `model` to train on from those of a coarser FCN, or from `fully_convolutional`: 32s, 16s, 8s.

    What both have is taken; new scores are zero and new upsampling is bilinear, so that the network begins as the coarser
    one upsampled in two steps. They have the dtype of its scores. Its images may have any number of channels.

        fcn8 = fcn.transplant(fcn.FCN("8s", classes=21), from_=fcn16_variables)

    Raises:
      ValueError: names or shapes differ in more than that; the first of them are listed.
    """
    old: dict[str, Any] = traverse_util.flatten_dict(dict(from_), sep="/")
    new = _shapes(model, channels=3)
    others = [k for k in new if k in old and old[k].shape != new[k].shape]
    if len(others) == 1 and old[others[0]].ndim == 4:  # of other images, if it is the first kernel
        new = _shapes(model, channels=old[others[0]].shape[2])
    dtype = jnp.result_type(old.get("params/score_fr/kernel", jnp.float32))
    added = {
        k: bilinear(None, v.shape, dtype) if "/upscore" in k else jnp.zeros(v.shape, dtype)
        for k, v in new.items()
        if k not in old and k.startswith(("params/upscore", "params/score_pool"))
    }
    wrong = [f"{k} is missing" for k in new if k not in old and k not in added]
    wrong += [f"{k} is unused" for k in old if k not in new and not k.startswith("params/upscore")]
    wrong += [f"{k} is {old[k].shape}, not {new[k].shape}" for k in new if k in old and old[k].shape != new[k].shape]
    if wrong:
        raise ValueError(f"transplant: from_ is no earlier stage of this {model.variant} network: {'; '.join(wrong[:6])}.")
    return traverse_util.unflatten_dict({k: added[k] if k in added else old[k] for k in new}, sep="/")


def _shapes(model: FCN, channels: int) -> dict[str, Any]:
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return traverse_util.flatten_dict(shapes, sep="/")
