"""Makes torch_ops.npz: PyTorch's operations on images over a grid of sizes. Run: `python tests/golden/torch_ops.py`.

Made 2026-11-23 with torch 2.13.0 (CPU). tests/ops/test_against_torch.py reads the grid and the inputs from this file. Inputs
are of few distinct values, so that maxima tie; `gradient0` and `gradient1` are those of `Σ y cos(index)` for image and kernel.
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

    def case(name, operation, *inputs, options):
        """The operation of an image, there `batch channels height width`, and a kernel; its values and gradients."""
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in inputs]
        y = operation(tensors[0].permute(0, 3, 1, 2), *tensors[1:], *options).permute(0, 2, 3, 1)
        weights = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
        gradients = torch.autograd.grad((y * weights).sum(), tensors)
        arrays[name] = y.detach().numpy().astype(np.float32)
        for index, gradient in enumerate(gradients):
            arrays[f"{name}/gradient{index}"] = gradient.numpy().astype(np.float32)

    def convolution(x, k, *options):
        return F.conv2d(x, k.permute(3, 2, 0, 1), None, *options)

    def transposed(x, k, *options):
        stride, padding, extra, dilation = options
        return F.conv_transpose2d(x, k.permute(2, 3, 0, 1), None, stride, padding, extra, 1, dilation)

    for i, (size, window, *options) in enumerate(CONVOLUTIONS):
        inputs = image(*size, 4), kernel(*window, 4 // options[-1], 8)
        case(f"convolution{i}", convolution, *inputs, options=options)
    for i, (size, window, *options) in enumerate(TRANSPOSED):
        case(f"transposed{i}", transposed, image(*size, 3), kernel(*window, 3, 2), options=options)
    for i, (size, window, stride, padding, ceil) in enumerate(POOLS):
        case(f"max{i}", F.max_pool2d, image(*size, 2), options=(window, stride, padding, 1, ceil))
        for count in (True, False):
            case(f"average{i}/{count}", F.avg_pool2d, image(*size, 2), options=(window, stride, padding, ceil, count))
    for i, (size, bins) in enumerate(ADAPTIVE):
        case(f"adaptive_average{i}", F.adaptive_avg_pool2d, image(*size, 2), options=(bins,))
        case(f"adaptive_max{i}", F.adaptive_max_pool2d, image(*size, 2, levels=101), options=(bins,))
    for i, (size, to) in enumerate(RESIZES):
        for corners in (False, True):
            case(f"resize{i}/{corners}", F.interpolate, image(*size, 2), options=(to, None, "bilinear", corners))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
