"""Which parameter of ours is which of PyTorch's: tables of the classifiers of torchvision.

An architecture is a function of a state_dict's shapes, which say how many classes there are and what optional parts, and
gives its entries; of no shapes those with every part and the default number of classes.

    ARCHITECTURES["torchvision/resnet50"](shapes) -> [Entry("conv1.weight", ("params", "entry", "conv1", "kernel"), ...), ...]
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str, ...]  # of a module in our variables


class Entry(NamedTuple):
    """One array: of `shape` in PyTorch; seen as `view`, with its axes in `order`, then as `target`, ours at `path`."""

    name: str
    path: tuple[str, ...]  # collection, modules, leaf
    shape: Shape
    view: Shape
    order: Shape
    target: Shape


Architecture: TypeAlias = Callable[[Mapping[str, Shape]], list[Entry]]


# ---- layers ---------------------------------------------------------------------------------------------------------


def convolution(
    name: str, path: Path, inputs: int, outputs: int, window: int = 3, *, groups: int = 1, bias: bool = False
) -> list[Entry]:
    """A convolution's `weight` OIHW as `kernel` HWIO; `inputs` are those of all groups."""
    shape = (outputs, inputs // groups, window, window)
    kernel = _entry(f"{name}.weight", ("params", *path, "kernel"), shape, order=(2, 3, 1, 0))
    return [kernel, *([_entry(f"{name}.bias", ("params", *path, "bias"), (outputs,))] if bias else [])]


def dense(name: str, path: Path, inputs: int, outputs: int, *, pixels: tuple[int, int] = (1, 1)) -> list[Entry]:
    """A dense layer, its `weight` transposed; after maps of `pixels` were flattened, from their order CHW to HWC."""
    shape, view = (outputs, inputs * math.prod(pixels)), (outputs, inputs, *pixels)
    kernel = Entry(f"{name}.weight", ("params", *path, "kernel"), shape, view, (2, 3, 1, 0), shape[::-1])
    return [kernel, _entry(f"{name}.bias", ("params", *path, "bias"), (outputs,))]


def batch_norm(name: str, path: Path, channels: int) -> list[Entry]:
    """Batch normalization with its running statistics."""
    statistics = [_entry(f"{name}.running_{leaf}", ("batch_stats", *path, leaf), (channels,)) for leaf in ("mean", "var")]
    return [*layer_norm(name, path, channels), *statistics]


def layer_norm(name: str, path: Path, channels: int) -> list[Entry]:
    """Any normalization's `weight` and `bias` as `scale` and `bias`."""
    leaves = {"weight": "scale", "bias": "bias"}
    return [_entry(f"{name}.{theirs}", ("params", *path, ours), (channels,)) for theirs, ours in leaves.items()]


def classes(shapes: Mapping[str, Shape], name: str, otherwise: int = 1000) -> int:
    """The first length of the last layer's `name`, or `otherwise` where there is none: then the match says so."""
    return shapes.get(name, ())[0] if shapes.get(name) else otherwise


def _entry(name: str, path: tuple[str, ...], shape: Shape, order: Shape = (0,)) -> Entry:
    return Entry(name, path, shape, shape, order, tuple(shape[axis] for axis in order))


# ---- residual networks ----------------------------------------------------------------------------------------------


def resnet(
    shapes: Mapping[str, Shape], depths: Sequence[int], *, bottleneck: bool = True, groups: int = 1, group_width: int = 64
) -> list[Entry]:
    """ResNet, ResNeXt and wide ResNet: `models.resnet`."""
    stem = [*convolution("conv1", ("entry", "conv1"), 3, 64, 7), *batch_norm("bn1", ("entry", "norm1"), 64)]
    body, width = resnet_stages(depths, 64, bottleneck=bottleneck, groups=groups, group_width=group_width)
    return [*stem, *body, *dense("fc", ("head",), width, classes(shapes, "fc.weight"))]


def resnet_stages(
    depths: Sequence[int],
    inputs: int,
    *,
    bottleneck: bool = True,
    groups: int = 1,
    group_width: int = 64,
    prefix: str = "",
    path: Path = (),
) -> tuple[list[Entry], int]:
    """`layer1`, `layer2`, ... after a stem of `inputs` channels, and the channels of the last; `prefix`, `path` lead there."""
    entries = []
    for stage, depth in enumerate(depths, start=1):
        planes = 64 * 2 ** (stage - 1)
        inner = int(planes * group_width / 64) * groups
        outputs = 4 * planes if bottleneck else planes
        for index in range(depth):
            plan = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
            if not bottleneck:
                plan = [(inputs, planes, 3), (planes, planes, 3)]
            name, here = f"{prefix}layer{stage}.{index}", (*path, f"stage{stage}", f"block{index}")
            for number, (before, after, window) in enumerate(plan, start=1):
                split = groups if window == 3 and bottleneck else 1
                entries += convolution(f"{name}.conv{number}", (*here, f"conv{number}"), before, after, window, groups=split)
                entries += batch_norm(f"{name}.bn{number}", (*here, f"norm{number}"), after)
            if index == 0 and (inputs != outputs or stage > 1):
                entries += convolution(f"{name}.downsample.0", (*here, "shortcut_conv"), inputs, outputs, 1)
                entries += batch_norm(f"{name}.downsample.1", (*here, "shortcut_norm"), outputs)
            inputs = outputs
    return entries, inputs


# ---- the other classifiers ------------------------------------------------------------------------------------------


def alexnet(shapes: Mapping[str, Shape]) -> list[Entry]:
    """AlexNet: `models.cnn.AlexNet`."""
    entries, widths = [], (3, 64, 192, 384, 256, 256)
    for number, (place, window) in enumerate(((0, 11), (3, 5), (6, 3), (8, 3), (10, 3)), start=1):
        inputs, outputs = widths[number - 1 : number + 1]
        entries += convolution(f"features.{place}", (f"conv{number}",), inputs, outputs, window, bias=True)
    return entries + _dense_head(shapes, 256, (6, 6), ("classifier.1", "classifier.4", "classifier.6"))


def vgg(shapes: Mapping[str, Shape], depths: Sequence[int], *, normalized: bool) -> list[Entry]:
    """VGG: `models.cnn.VGG`."""
    entries, place, inputs = [], 0, 3
    for stage, depth in enumerate(depths, start=1):
        outputs = 64 * min(2 ** (stage - 1), 8)
        for index in range(1, depth + 1):
            entries += convolution(f"features.{place}", (f"conv{stage}_{index}",), inputs, outputs, bias=True)
            if normalized:
                entries += batch_norm(f"features.{place + 1}", (f"norm{stage}_{index}",), outputs)
            place, inputs = place + 2 + normalized, outputs  # and a relu
        place += 1  # pooling
    return entries + _dense_head(shapes, 512, (7, 7), ("classifier.0", "classifier.3", "classifier.6"))


def _dense_head(shapes: Mapping[str, Shape], inputs: int, pixels: tuple[int, int], names: tuple[str, str, str]) -> list[Entry]:
    fc6, fc7, head = names
    return [
        *dense(fc6, ("fc6",), inputs, 4096, pixels=pixels),
        *dense(fc7, ("fc7",), 4096, 4096),
        *dense(head, ("head",), 4096, classes(shapes, f"{head}.weight")),
    ]


def convnext(shapes: Mapping[str, Shape], depths: Sequence[int], widths: Sequence[int]) -> list[Entry]:
    """ConvNeXt: `models.convnext`."""
    entries = convolution("features.0.0", ("stem_conv",), 3, widths[0], 4, bias=True)
    entries += layer_norm("features.0.1", ("stem_norm",), widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        path = (f"stage{stage}",)
        if stage > 1:
            entries += layer_norm(f"features.{2 * stage - 2}.0", (*path, "down_norm"), widths[stage - 2])
            entries += convolution(f"features.{2 * stage - 2}.1", (*path, "down_conv"), widths[stage - 2], width, 2, bias=True)
        for index in range(depth):
            name, here = f"features.{2 * stage - 1}.{index}", (*path, f"block{index}")
            scale = ("params", *here, "scale")
            entries.append(Entry(f"{name}.layer_scale", scale, (width, 1, 1), (width,), (0,), (width,)))
            entries += convolution(f"{name}.block.0", (*here, "conv"), width, width, 7, groups=width, bias=True)
            entries += layer_norm(f"{name}.block.2", (*here, "norm"), width)
            entries += dense(f"{name}.block.3", (*here, "expand"), width, 4 * width)
            entries += dense(f"{name}.block.5", (*here, "project"), 4 * width, width)
    entries += layer_norm("classifier.0", ("norm",), widths[-1])
    return entries + dense("classifier.2", ("head",), widths[-1], classes(shapes, "classifier.2.weight"))


def mobilenet_v2(shapes: Mapping[str, Shape]) -> list[Entry]:
    """MobileNetV2 of width 1: `models.mobilenet`."""
    entries = [*convolution("features.0.0", ("stem_conv",), 3, 32), *batch_norm("features.0.1", ("stem_norm",), 32)]
    inputs, place = 32, 1
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for stage, (expansion, outputs, depth) in enumerate(stages, start=1):
        for index in range(depth):
            inner = inputs * expansion
            parts = [("expand", inputs, inner, 1, 1)] if expansion > 1 else []
            parts += [("depthwise", inner, inner, 3, inner), ("project", inner, outputs, 1, 1)]
            for number, (part, before, after, window, groups) in enumerate(parts):
                name, here = f"features.{place}.conv.{number}", f"stage{stage}_block{index}"
                # The last convolution and its normalization stand alone, the others in a Sequential.
                conv, norm = (name, f"features.{place}.conv.{number + 1}") if part == "project" else (f"{name}.0", f"{name}.1")
                entries += convolution(conv, (here, f"{part}_conv"), before, after, window, groups=groups)
                entries += batch_norm(norm, (here, f"{part}_norm"), after)
            inputs, place = outputs, place + 1
    entries += convolution(f"features.{place}.0", ("last_conv",), inputs, 1280, 1)
    entries += batch_norm(f"features.{place}.1", ("last_norm",), 1280)
    return entries + dense("classifier.1", ("head",), 1280, classes(shapes, "classifier.1.weight"))


DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

ARCHITECTURES: dict[str, Architecture] = {
    **{
        f"torchvision/resnet{depth}": functools.partial(resnet, depths=depths, bottleneck=depth >= 50)
        for depth, depths in DEPTHS.items()
    },
    "torchvision/resnext50_32x4d": functools.partial(resnet, depths=DEPTHS[50], groups=32, group_width=4),
    "torchvision/resnext101_32x8d": functools.partial(resnet, depths=DEPTHS[101], groups=32, group_width=8),
    "torchvision/resnext101_64x4d": functools.partial(resnet, depths=DEPTHS[101], groups=64, group_width=4),
    "torchvision/wide_resnet50_2": functools.partial(resnet, depths=DEPTHS[50], group_width=128),
    "torchvision/wide_resnet101_2": functools.partial(resnet, depths=DEPTHS[101], group_width=128),
    "torchvision/alexnet": alexnet,
    **{
        f"torchvision/vgg{depth}{'_bn' * normalized}": functools.partial(vgg, depths=depths, normalized=normalized)
        for depth, depths in VGG_DEPTHS.items()
        for normalized in (False, True)
    },
    "torchvision/convnext_tiny": functools.partial(convnext, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "torchvision/mobilenet_v2": mobilenet_v2,
}
