"""Makes torchvision_models.npz: logits and one map of torchvision's classifiers, and two training steps of its ResNet-18.

Run by hand where torch and torchvision are: `python tests/golden/torchvision_models.py` (recorded with 2.13 and 0.29). The
weights, the statistics and the images are `drawn` from their names and shapes, here and in tests/weights/test_torchvision.py,
in float32, and computed with in float64.
"""

import pathlib
import zlib

import numpy as np

CLASSES = 7
# The map of each architecture and its name in ours, and the smallest image.
MODELS = {
    "resnet18": ("layer2", "stage2", (40, 33)),
    "resnet50": ("layer2", "stage2", (40, 33)),
    "resnext50_32x4d": ("layer2", "stage2", (40, 33)),
    "wide_resnet50_2": ("layer2", "stage2", (40, 33)),
    "alexnet": ("features.5", "pool2", (72, 65)),
    "vgg11_bn": ("features.14", "pool3", (40, 33)),
    "vgg16": ("features.16", "pool3", (40, 33)),
    "convnext_tiny": ("features.3", "stage2", (40, 33)),
    "mobilenet_v2": ("features.6", "stage3", (40, 33)),
}
OTHERS = ("resnet34", "resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2")
OTHERS += ("vgg11", "vgg13", "vgg19", "vgg13_bn", "vgg16_bn", "vgg19_bn")  # of which only names and shapes are recorded
STEP_IMAGES = (4, 64, 48, 3)
LEARNING_RATE, MOMENTUM = 0.05, 0.9


def drawn(name, shape):
    """A parameter, a statistic or a batch of images, such that activations neither vanish nor explode."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return np.abs(normal) + 0.5
    if name.endswith("weight"):
        return normal * np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32) if len(shape) > 1 else 1 + 0.2 * normal
    return normal if name == "images" else 0.2 * normal


def probe(name, array):
    """A few numbers that stand for a large array: its norm, and its products with two drawn directions."""
    directions = np.random.default_rng(zlib.crc32(name.encode())).standard_normal((2, array.size))
    return [np.linalg.norm(array), *(directions @ np.asarray(array, np.float64).ravel())]


def digest(shapes):
    """A number for the names and shapes of a state_dict."""
    return zlib.crc32(repr(sorted((name, tuple(shape)) for name, shape in shapes.items())).encode())


def state_digest(name):
    import torch

    with torch.device("meta"):
        state = getattr(torchvision().models, name)(num_classes=CLASSES).state_dict()
    return digest({key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")})


def torchvision():
    """The package, which on a CPU imports once two operators of its C++ part are declared."""
    import importlib

    import torch

    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


def module(name):
    """The module in float64, in evaluation mode, with drawn weights and statistics."""
    import torch

    with torch.device("meta"):
        model = getattr(torchvision().models, name)(num_classes=CLASSES)
    arrays = {key: drawn(key, tuple(value.shape)) for key, value in model.state_dict().items() if value.is_floating_point()}
    state = {key: torch.from_numpy(array).double() for key, array in arrays.items()}
    model.load_state_dict(state, assign=True)
    for each in model.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.num_batches_tracked = torch.tensor(0)
    return model.eval()


def images(shape):
    import torch

    return torch.from_numpy(drawn("images", shape).astype(np.float64).transpose(0, 3, 1, 2))


def outputs(name):
    """Logits of two images, and each eighth channel of the map of the first."""
    import torch

    model, maps = module(name), []
    model.get_submodule(MODELS[name][0]).register_forward_hook(lambda *call: maps.append(call[2].detach().numpy().copy()))
    with torch.no_grad():
        logits = model(images((2, *MODELS[name][2], 3))).numpy()
    return {f"{name}/logits": logits, f"{name}/map": maps[0][0, ::8].transpose(1, 2, 0)}


def steps():
    """Two steps of gradient descent with momentum: losses, the first gradients, and weights and statistics after each step."""
    import torch

    model, labels = module("resnet18").train(), torch.arange(STEP_IMAGES[0])
    for parameter in model.parameters():
        parameter.requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    results = {"losses": []}
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images(STEP_IMAGES)), labels)
        loss.backward()
        results["losses"].append(loss.item())
        results.setdefault("gradients", [probe(key, each.grad.numpy()) for key, each in model.named_parameters()])
        optimizer.step()
        end = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
        results.setdefault("once", [probe(key, value.numpy()) for key, value in end.items()])
    results["names"] = list(end)
    results["twice"] = [probe(key, value.numpy()) for key, value in end.items()]
    for key in ("conv1.weight", "fc.bias", "layer4.1.bn2.weight", "layer4.1.bn2.running_mean", "layer4.1.bn2.running_var"):
        results[key] = end[key].numpy()[:: 4 if key == "conv1.weight" else 1]
    return {f"steps/{key}": np.asarray(value) for key, value in results.items()}


if __name__ == "__main__":
    arrays = {key: array for name in MODELS for key, array in outputs(name).items()} | steps()
    arrays |= {f"{name}/state_dict": np.array(state_digest(name)) for name in (*MODELS, *OTHERS)}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
