"""Forward passes and training steps of whole convolutional networks, against PyTorch with channels last, its faster layout.

Run: `python -m experiments.benchmarks.vision --torch-python PATH` (an interpreter with torch and torchvision); both cores for
each side. A training step is that of `make_train_step` with SGD and momentum, its guard and metrics included; PyTorch's has
`torch.optim.SGD` with momentum, `foreach`.
"""

import argparse
import sys

import numpy as np

from experiments.benchmarks import compare

CORES = 2
# name: network, "forward" or "training", shape of the images
CASES = {
    "ResNet-18, forward": ("resnet18", "forward", (8, 224, 224, 3)),
    "ResNet-50, forward": ("resnet50", "forward", (8, 224, 224, 3)),
    "PSPNet-50, forward, 193": ("pspnet50", "forward", (1, 193, 193, 3)),
    "PSPNet-50, forward, 473": ("pspnet50", "forward", (1, 473, 473, 3)),
    "ResNet-18, training": ("resnet18", "training", (8, 224, 224, 3)),
    "ResNet-50, training": ("resnet50", "training", (8, 224, 224, 3)),
    "PSPNet-50 with auxiliary head, training, 121": ("pspnet50", "training", (2, 121, 121, 3)),
    "LeNet, training, batch 64": ("lenet", "training", (64, 28, 28, 1)),
    "LeNet, training, batch 256": ("lenet", "training", (256, 28, 28, 1)),
}
STEPS = {"lenet": 20}  # in a row, where one is too short to time
CLASSES = {"pspnet50": 21, "lenet": 10}
AUXILIARY = 0.4


def arrays(network, shape):
    rng = np.random.default_rng(0)
    classes = CLASSES.get(network, 1000)
    labels = rng.integers(0, classes, shape[:3] if network == "pspnet50" else shape[:1])
    return classes, rng.standard_normal(shape, np.float32), labels


# --- ours ---


def jaxnets_case(network, kind, *shape):
    import time

    import jax
    import jax.numpy as jnp
    import optax

    from jaxnets import losses
    from jaxnets.data import batches
    from jaxnets.models import cnn, pspnet, resnet
    from jaxnets.training import state, steps

    classes, x, labels = arrays(network, tuple(map(int, shape)))
    if network == "pspnet50":
        model = pspnet.PSPNet(resnet.resnet50(output_stride=8), classes)
        loss = losses.with_auxiliary(losses.softmax_cross_entropy, AUXILIARY)
    else:
        model = cnn.LeNet(classes) if network == "lenet" else getattr(resnet, network)(classes=classes)
        loss = losses.softmax_cross_entropy
    x, optimizer = jnp.asarray(x), optax.sgd(1e-4, momentum=0.9)
    trained = state.create(model, optimizer, jax.random.key(0), x[:1])
    began = time.perf_counter()
    if kind == "forward":
        main = (lambda outputs: outputs[0]) if network == "pspnet50" else (lambda outputs: outputs)
        variables = {"params": trained.params, **trained.carry}
        forward = jax.jit(lambda variables, x: main(model.apply(variables, x, train=False))).lower(variables, x).compile()
        return lambda: forward(variables, x).block_until_ready(), {"compiled": time.perf_counter() - began}

    step = jax.jit(steps.make_train_step(steps.supervised(model.apply, loss), optimizer), donate_argnums=0)
    batch = batches.Dataset(x, jnp.asarray(labels, jnp.int32))
    step = step.lower(trained, batch).compile()

    def run():
        nonlocal trained
        for _ in range(STEPS.get(network, 1)):
            trained, _ = step(trained, batch)
        jax.block_until_ready(trained)

    return run, {"compiled": time.perf_counter() - began}


# --- PyTorch ---


def torch_case(network, kind, *shape):
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    classes, x, labels = arrays(network, tuple(map(int, shape)))
    if network == "lenet":
        model = nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
        )
    else:
        model = torch_pspnet(classes) if network == "pspnet50" else getattr(torchvision_models(), network)()
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels)
    if kind == "forward":
        model.eval()

        @torch.inference_mode()
        def forward():
            return model(x)

        return forward

    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, foreach=True)

    def run():
        for _ in range(STEPS.get(network, 1)):
            optimizer.zero_grad()
            outputs = model(x)
            if network == "pspnet50":
                loss = functional.cross_entropy(outputs[0], labels) + AUXILIARY * functional.cross_entropy(outputs[1], labels)
            else:
                loss = functional.cross_entropy(outputs, labels)
            loss.backward()
            optimizer.step()

    return run


def torchvision_models():
    import torch

    for name in ("nms", "qnms"):  # the wheel's own operators need the torch it was built with; models need only their names
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.models

    return torchvision.models


def torch_pspnet(classes):
    """Pyramid pooling and an auxiliary head on torchvision's ResNet-50; the auxiliary scores only while training, as semseg."""
    import torch
    from torch import nn
    from torch.nn import functional

    backbone = torchvision_models().resnet50(replace_stride_with_dilation=(False, True, True))

    def unit(inputs, outputs, window):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, window, padding=window // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def head(inputs, width):
        return nn.Sequential(unit(inputs, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))

    def resized(x, size):
        return functional.interpolate(x, size, mode="bilinear", align_corners=True)

    class PSPNet(nn.Module):
        def __init__(self):
            super().__init__()
            b = backbone
            self.early = nn.Sequential(b.conv1, b.bn1, b.relu, b.maxpool, b.layer1, b.layer2, b.layer3)
            self.late = b.layer4
            self.pyramid = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), unit(2048, 512, 1)) for n in (1, 2, 3, 6))
            self.head, self.auxiliary = head(4096, 512), head(1024, 256)

        def forward(self, image):
            before = self.early(image)
            x = self.late(before)
            x = torch.cat([x, *(resized(branch(x), x.shape[2:]) for branch in self.pyramid)], 1)
            logits = resized(self.head(x), image.shape[2:])
            return (logits, resized(self.auxiliary(before), image.shape[2:])) if self.training else logits

    return PSPNet()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch and torchvision")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    options = parser.parse_args()
    for title, (network, kind, shape) in CASES.items():
        if options.only not in title:
            continue
        arguments = (network, kind, *map(str, shape))
        workers = {}
        for name, python in (("jaxnets", sys.executable), ("torch", options.torch_python)):
            workers[name] = compare.Worker("experiments.benchmarks.vision", f"{name}_case", python, arguments, CORES)
            assert workers[name].ready or name == "torch"  # which waits: nobody compiles beside another
        compare.report(f"{title}, {shape}", compare.alternate(workers, options.repeats), ours="jaxnets")
        print(f"  compiled in {(workers['jaxnets'].facts or {})['compiled']:.1f} s")
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
