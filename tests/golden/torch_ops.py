"""Writes torch_ops.npz: PyTorch's operations on images over a grid of sizes, in float64. Run: `python tests/golden/torch_ops.py`.

Made 2026-11-23 with torch 2.13.0 (CPU). tests/ops/test_against_torch.py reads the grid and the inputs from this file. Inputs are
of few distinct values, so that maxima tie; `gradient0` and `gradient1` are those of `Σ y cos(index)` for image and kernel.
"""

import pathlib

import numpy as np

CONVOLUTIONS = [  # image, window, stride, padding, dilation, groups
    ((6, 7), (3, 3), 1, 1, 1, 1),
    ((6, 7), (3, 2), 2, 1, 2, 1),
    ((6, 7), (1, 1), 2, 0, 1, 1),
    ((6, 7), (3, 3), 2, 1, 1, 4),
    ((6, 7), (5, 5), 1, 2, 1, 4),
    ((6, 7), (3, 3), 1, 1, 1, 2),
]
TRANSPOSED = [  # image, window, stride, padding, output padding, dilation
    ((3, 4), (4, 4), 2, 1, 0, 1),
    ((3, 4), (3, 3), 2, 1, 1, 1),
    ((3, 4), (2, 5), 3, 0, 2, 1),
    ((3, 4), (3, 2), 2, 0, 1, 2),
    ((3, 4), (3, 3), 1, 2, 0, 1),
    ((3, 4), (8, 8), 4, 2, 0, 1),
]
POOLS = [  # image, window, stride, padding, ceil
    ((6, 7), 2, 2, 0, False),
    ((6, 7), 3, 2, 1, False),
    ((6, 7), 3, 2, 1, True),
    ((6, 7), 2, 3, 1, True),
    ((6, 7), 5, 1, 2, False),
]
ADAPTIVE = [((6, 7), (1, 1)), ((6, 7), (3, 2)), ((6, 7), (4, 7)), ((6, 7), (8, 9))]
RESIZES = [((4, 5), (8, 10)), ((4, 5), (7, 3)), ((4, 5), (1, 1)), ((1, 3), (5, 6)), ((4, 5), (11, 13))]


def image(rows, columns, channels, levels=7):
    values = np.arange(2 * rows * columns * channels, dtype=float) * 37 % 101 % levels / levels
    return values.reshape(2, rows, columns, channels)


def kernel(rows, columns, inputs, outputs):
    return np.sin(1 + np.arange(rows * columns * inputs * outputs, dtype=float)).reshape(rows, columns, inputs, outputs)


def main():
    import torch  # here: the tests read the grid above without it
    import torch.nn.functional as F

    arrays = {}

    def case(name, operation, *inputs):
        """Operation of NCHW images and [outputs, inputs, rows, columns] kernels; saved back as NHWC and HWIO."""
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in inputs]
        y = operation(*tensors).permute(0, 2, 3, 1)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
        gradients = torch.autograd.grad((y * weights).sum(), tensors)
        arrays[name] = y.detach().numpy().astype(np.float32)
        for index, gradient in enumerate(gradients):
            arrays[f"{name}/gradient{index}"] = gradient.numpy().astype(np.float32)

    nchw = lambda x: x.permute(0, 3, 1, 2)
    for i, (size, window, stride, padding, dilation, groups) in enumerate(CONVOLUTIONS):
        f = lambda x, k: F.conv2d(nchw(x), k.permute(3, 2, 0, 1), None, stride, padding, dilation, groups)
        case(f"convolution{i}", f, image(*size, 4), kernel(*window, 4 // groups, 8))
    for i, (size, window, stride, padding, extra, dilation) in enumerate(TRANSPOSED):
        f = lambda x, k: F.conv_transpose2d(nchw(x), k.permute(2, 3, 0, 1), None, stride, padding, extra, 1, dilation)
        case(f"transposed{i}", f, image(*size, 3), kernel(*window, 3, 2))
    for i, (size, window, stride, padding, ceil) in enumerate(POOLS):
        case(f"max{i}", lambda x: F.max_pool2d(nchw(x), window, stride, padding, ceil_mode=ceil), image(*size, 2))
        for count in (True, False):
            f = lambda x: F.avg_pool2d(nchw(x), window, stride, padding, ceil, count)
            case(f"average{i}/{count}", f, image(*size, 2))
    for i, (size, bins) in enumerate(ADAPTIVE):
        case(f"adaptive_average{i}", lambda x: F.adaptive_avg_pool2d(nchw(x), bins), image(*size, 2))
        case(f"adaptive_max{i}", lambda x: F.adaptive_max_pool2d(nchw(x), bins), image(*size, 2, levels=101))
    for i, (size, to) in enumerate(RESIZES):
        for corners in (False, True):
            f = lambda x: F.interpolate(nchw(x), to, mode="bilinear", align_corners=corners)
            case(f"resize{i}/{corners}", f, image(*size, 2))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
