"""Which parameter of ours is which of PyTorch's: tables of segmentation networks, made as those of `names`."""

import functools
from collections.abc import Mapping, Sequence

from jaxnets.weights.names import DEPTHS, Architecture, Entry, Path, Shape, batch_norm, classes, convolution, resnet_stages


def fcn_resnet(shapes: Mapping[str, Shape], depths: Sequence[int]) -> list[Entry]:
    """FCN-ResNet of torchvision: `fcn.ResNetFCN(resnet.resnet50(output_stride=8), classes)`."""
    path = ("backbone", "entry")
    entries = [*convolution("backbone.conv1", (*path, "conv1"), 3, 64, 7), *batch_norm("backbone.bn1", (*path, "norm1"), 64)]
    body, channels = resnet_stages(depths, 64, prefix="backbone.", path=("backbone",))
    return [
        *entries,
        *body,
        *_head(shapes, "classifier", ("head",), channels, channels // 4),
        *_auxiliary(shapes, "aux_classifier", channels // 2, channels // 8),
    ]


def pspnet(shapes: Mapping[str, Shape], depths: Sequence[int]) -> list[Entry]:
    """PSPNet of semseg: `pspnet.PSPNet(resnet.resnet50(output_stride=8, stem="deep"), classes)`."""
    entries = []
    for number, (place, inputs, outputs) in enumerate(((0, 3, 64), (3, 64, 64), (6, 64, 128)), start=1):
        entries += convolution(f"layer0.{place}", ("backbone", "entry", f"conv{number}"), inputs, outputs)
        entries += batch_norm(f"layer0.{place + 1}", ("backbone", "entry", f"norm{number}"), outputs)
    body, channels = resnet_stages(depths, 128, path=("backbone",))
    entries += body
    for index in range(4):  # bins
        entries += convolution(f"ppm.features.{index}.1", ("pyramid", f"conv{index}"), channels, channels // 4, 1)
        entries += batch_norm(f"ppm.features.{index}.2", ("pyramid", f"norm{index}"), channels // 4)
    return [
        *entries,
        *_head(shapes, "cls", ("head",), 2 * channels, 512),
        *_auxiliary(shapes, "aux", channels // 2, 256),
    ]


def _auxiliary(shapes: Mapping[str, Shape], name: str, inputs: int, width: int) -> list[Entry]:
    """The auxiliary head, unless the state_dict has none."""
    there = not shapes or any(key.startswith(f"{name}.") for key in shapes)
    return _head(shapes, name, ("auxiliary_head",), inputs, width) if there else []


def _head(shapes: Mapping[str, Shape], name: str, path: Path, inputs: int, width: int) -> list[Entry]:
    return [
        *convolution(f"{name}.0", (*path, "conv"), inputs, width),
        *batch_norm(f"{name}.1", (*path, "norm"), width),
        *convolution(f"{name}.4", (*path, "score"), width, classes(shapes, f"{name}.4.weight", 21), 1, bias=True),
    ]


ARCHITECTURES: dict[str, Architecture] = {
    **{f"torchvision/fcn_resnet{depth}": functools.partial(fcn_resnet, depths=DEPTHS[depth]) for depth in (50, 101)},
    **{f"semseg/pspnet{depth}": functools.partial(pspnet, depths=DEPTHS[depth]) for depth in (50, 101)},
}
