"""Writes torch_segmentation.npz: segmentation networks of PyTorch with drawn weights, their outputs and a training step.

    python tests/golden/torch_segmentation.py        # needs torch and torchvision, on a CPU

Made 2026-11-23 with torch 2.13 and torchvision 0.29. The networks are semseg's PSPNet, written from the paper and with semseg's
names, torchvision's own fcn_resnet50, and FCN-32s, 16s, 8s with the paddings and crops of their authors' Caffe networks.
Weights are drawn by name (`draw`), so the file has only names, shapes and outputs; all in float64.
"""

import contextlib
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent
CLASSES = 3
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight by its name in PyTorch, float32: kernels keep the variance through relu, variances and scales are positive."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.normal(0, 0.1, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def probe(name: str, array: np.ndarray) -> np.ndarray:
    """A few numbers that stand for a large array: its norm, and its products with two drawn directions."""
    directions = np.random.default_rng(zlib.crc32(name.encode())).standard_normal((2, array.size))
    return np.asarray([np.linalg.norm(array), *(directions @ array.ravel())])


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def main() -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_default_dtype(torch.float64)

    def conv_bn(inputs, outputs, window=3, **options):
        convolution = nn.Conv2d(inputs, outputs, window, padding=options.pop("padding", window // 2), bias=False, **options)
        return convolution, nn.BatchNorm2d(outputs)

    class Bottleneck(nn.Module):
        def __init__(self, inputs, planes, stride, rate):
            super().__init__()
            self.conv1, self.bn1 = conv_bn(inputs, planes, 1)
            self.conv2, self.bn2 = conv_bn(planes, planes, 3, stride=stride, dilation=rate, padding=rate)
            self.conv3, self.bn3 = conv_bn(planes, 4 * planes, 1)
            self.downsample = None
            if stride > 1 or inputs != 4 * planes:
                self.downsample = nn.Sequential(*conv_bn(inputs, 4 * planes, 1, stride=stride))

        def forward(self, x):
            y = functional.relu(self.bn1(self.conv1(x)))
            y = functional.relu(self.bn2(self.conv2(y)))
            return functional.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))

    class Pyramid(nn.Module):
        def __init__(self, channels, bins=(1, 2, 3, 6)):
            super().__init__()
            self.features = nn.ModuleList(
                nn.Sequential(nn.AdaptiveAvgPool2d(n), *conv_bn(channels, channels // len(bins), 1), nn.ReLU()) for n in bins
            )

        def forward(self, x):
            return torch.cat([x, *(resized(branch(x), x.shape[2:]) for branch in self.features)], 1)

    def resized(x, size):
        return functional.interpolate(x, size, mode="bilinear", align_corners=True)

    class PSPNet(nn.Module):
        def __init__(self, depths, width, head, auxiliary):
            super().__init__()
            stem = [*conv_bn(3, width, stride=2), nn.ReLU(), *conv_bn(width, width), nn.ReLU(), *conv_bn(width, 2 * width)]
            self.layer0, inputs = nn.Sequential(*stem, nn.ReLU(), nn.MaxPool2d(3, 2, 1)), 2 * width
            for stage, (depth, stride, rate) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=1):
                planes, blocks = width * 2 ** (stage - 1), []
                for index in range(depth):
                    blocks.append(Bottleneck(inputs, planes, stride if index == 0 else 1, rate))
                    inputs = 4 * planes
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            self.ppm = Pyramid(inputs)
            self.cls = self.scores(2 * inputs, head)
            self.aux = self.scores(inputs // 2, auxiliary)

        @staticmethod
        def scores(inputs, width):
            return nn.Sequential(*conv_bn(inputs, width), nn.ReLU(), nn.Dropout2d(0), nn.Conv2d(width, CLASSES, 1))

        def forward(self, x):
            size = x.shape[2:]
            x = self.layer3(self.layer2(self.layer1(self.layer0(x))))
            return resized(self.cls(self.ppm(self.layer4(x))), size), resized(self.aux(x), size)

    class FCN(nn.Module):
        """The authors' networks, as small as one likes; `upsample(x, name, factor)` is fixed or has weights."""

        def __init__(self, depths, width, hidden):
            super().__init__()
            inputs, self.stages = 3, []
            for stage, depth in enumerate(depths, start=1):
                outputs, names = width * min(2 ** (stage - 1), 8), []
                for index in range(1, depth + 1):
                    names.append(f"conv{stage}_{index}")
                    setattr(self, names[-1], nn.Conv2d(inputs, outputs, 3, padding=100 if names == ["conv1_1"] else 1))
                    inputs = outputs
                self.stages.append(names)
            self.fc6, self.fc7 = nn.Conv2d(inputs, hidden, 7), nn.Conv2d(hidden, hidden, 1)
            self.score_fr = nn.Conv2d(hidden, CLASSES, 1)
            self.score_pool4, self.score_pool3 = nn.Conv2d(8 * width, CLASSES, 1), nn.Conv2d(4 * width, CLASSES, 1)
            for name, factor in (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8), ("upscore16", 16), ("upscore32", 32)):
                setattr(self, name, nn.ConvTranspose2d(CLASSES, CLASSES, 2 * factor, factor, bias=False))

        def forward(self, x, variant, *, learned=False, scales=(1, 1)):
            def upsample(x, name, factor):
                line = 1 - abs(torch.arange(2 * factor) - (factor - 0.5)) / factor
                bilinear = line[:, None] * line * torch.eye(CLASSES)[:, :, None, None]
                return functional.conv_transpose2d(x, getattr(self, name).weight if learned else bilinear, stride=factor)

            def crop(x, offset, size):
                return x[:, :, offset : offset + size[0], offset : offset + size[1]]

            size, pools = x.shape[2:], []
            for names in self.stages:
                for name in names:
                    x = functional.relu(getattr(self, name)(x))
                x = functional.max_pool2d(x, 2, ceil_mode=True)
                pools.append(x)
            x = self.score_fr(functional.relu(self.fc7(functional.relu(self.fc6(x)))))
            if variant == "32s":
                return crop(upsample(x, "upscore32", 32), 19, size)
            x = upsample(x, "upscore2", 2)
            x = x + crop(self.score_pool4(pools[3] * scales[0]), 5, x.shape[2:])
            if variant == "16s":
                return crop(upsample(x, "upscore16", 16), 27, size)
            x = upsample(x, "upscore_pool4", 2)
            x = x + crop(self.score_pool3(pools[2] * scales[1]), 9, x.shape[2:])
            return crop(upsample(x, "upscore8", 8), 31, size)

    def filled(network):
        weights = {k: torch.from_numpy(draw(k, tuple(v.shape))) for k, v in network.state_dict().items() if v.ndim}
        network.load_state_dict(weights, strict=False)
        return network.double()

    def names(network):
        return np.asarray([f"{k} {' '.join(map(str, v.shape))}" for k, v in network.state_dict().items() if v.ndim])

    def outputs(values):  # every second pixel, channels last
        return [value.detach().numpy().transpose(0, 2, 3, 1)[:, ::2, ::2] for value in values]

    saved = {}

    small = filled(PSPNet((1, 1, 1, 2), 4, 12, 8))
    saved["pspnet_small/names"], x = names(small), torch.from_numpy(image(0, 2, 3, 25, 33))
    saved["pspnet_small/main"], saved["pspnet_small/auxiliary"] = outputs(small.eval()(x))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, CLASSES, (2, 25, 33)))
    labels[:, :4] = 255
    optimizer = torch.optim.SGD(small.parameters(), **SGD)
    main_loss, auxiliary_loss = (functional.cross_entropy(y, labels, ignore_index=255) for y in small.train()(x))
    (main_loss + 0.4 * auxiliary_loss).backward()
    saved["step/loss"] = (main_loss + 0.4 * auxiliary_loss).detach().numpy()
    saved["step/gradients"] = np.stack([probe(k, p.grad.numpy()) for k, p in small.named_parameters()])
    optimizer.step()
    saved["step/updated"] = np.stack([probe(k, v.numpy()) for k, v in small.state_dict().items() if v.ndim])

    fcn = filled(FCN((2, 1, 1, 1, 1), 2, 6))
    saved["fcn/names"], x = names(fcn), torch.from_numpy(image(2, 1, 3, 20, 27))
    for variant in ("32s", "16s", "8s"):
        for learned in (False, True):
            (saved[f"fcn/{variant}/{'learned' if learned else 'fixed'}"],) = outputs([fcn(x, variant, learned=learned)])
    (saved["fcn/8s/at_once"],) = outputs([fcn(x, "8s", scales=(0.01, 0.0001))])

    large = filled(PSPNet((3, 4, 6, 3), 64, 512, 256)).eval()
    saved["pspnet50/names"], x = names(large), torch.from_numpy(image(3, 1, 3, 33, 41))
    saved["pspnet50/main"], saved["pspnet50/auxiliary"] = outputs(large(x))

    for name in ("nms", "qnms"):  # torchvision's wheel on a CPU's torch lacks them
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision.models import segmentation

    large = filled(segmentation.fcn_resnet50(num_classes=CLASSES, aux_loss=True, weights_backbone=None)).eval()
    saved["fcn_resnet50/names"], x = names(large), torch.from_numpy(image(4, 1, 3, 30, 43))
    found = large(x)
    saved["fcn_resnet50/main"], saved["fcn_resnet50/auxiliary"] = outputs([found["out"], found["aux"]])
    np.savez_compressed(HERE / "torch_segmentation.npz", **saved)


if __name__ == "__main__":
    main()
