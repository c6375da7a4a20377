"""Operations on images against PyTorch, forward and gradient, each side with the same threads.

    python -m experiments.benchmarks.vision_ops [--torch-python PATH] [--cores 2] [--repeats 15] [--only max,1x1] [--plain]

A gradient is that of image and kernel together, from a given cotangent. PyTorch is timed in both of its layouts; the ratio to
read is that to the faster one. `--plain` also times XLA's own formulation, as on a GPU.

Tried for the choices of `jaxnets/ops/convolution.py` (2026-11-23, two cores, jax 0.12.0; milliseconds of single operations
on a quiet machine, batch 8 unless given):
- 1x1 as a product of matrices: forward 1.0 to 2.2 times faster, gradient of the kernel 1.1 (256 -> 64 channels at 56x56) to
  5.7 times (256 -> 512, stride 2), of the image 1.1 to 2.5 times.
- 3x3 with all that the window sees in one matrix: wins forward and backward where that matrix fits the cache: 512 channels at
  7x7 forward 9.4 against 21.3, 256 at 14x14 10.2 against 11.5; loses at 128 channels, 28x28 (15.1 against 10.1).
- 3x3 by minimal filtering (forward, gradient of the kernel, of the image; XLA's own in brackets): 128 channels at 28x28 7.1,
  14.5, 7.3 (9.1, 27.8, 12.0); 256 at 14x14 6.1, 9.1, 7.5 (12.6, 19.9, 13.6); 512 at 24x24, batch 1, dilation 4, 11, 11, 11
  (21, 27, 25); 16 of 256 at 12x12, dilation 4, a third of whose blocks lies outside, 16, 42, 15 (40, 57, 28);
  32 images of 512 at 7x7 41, 53, 41 (72, 96, 81), 8 of them no faster than the matrix of windows (odd sizes waste a quarter).
  Loses below 96 channels: 64 at 56x56 9.3, 55, 8.1 (7.9, 26, 10.3), 32 at 28x28 several times slower. The kernel's transform as
  sums of slices instead of one product: its gradient 55 instead of 10 (512 channels). Without barriers between rows and
  columns forward up to 1.6 times slower. jax 0.10.2: 128 at 28x28 5.4, 9.7, 8.3 (9.9, 32, 10.1).
- gradient of the kernel as shifted products: 128 channels at 28x28 24.7 against 30.9, 64 -> 128 with stride 2 14.0 against
  18.5, dilated 256 at 60x60, batch 1, 40 against 110; loses at 64 -> 64 channels (64 against 26) and in the stem (50, 10).
- Gradient of the kernel at 64 channels, 56x56 (27 by XLA), as one product of three shifted copies of the flattened image with
  three of the cotangent: 38; at 32 channels, 28x28, batch 128, 75 against 33: a product that sums over 10^5 rows is slow. It is
  what ResNet-18's training step waits for (140 of 840 ms at 64 channels, 35 in the stem).
- Gradient of the kernel as shifted products of a few images at a time, 4,096 positions together, that the shifted copies stay
  in the cache (2026-11-23, batch 16; XLA's own in brackets): 48 channels at 32x32 8.5 (18), 144 -> 48 24 (50), 96 at 16x16 5.3
  (10), 64 -> 128 with stride 2 at 56x56, batch 8, 11 (18); level at 64 channels, 56x56, and at 32 channels, 28x28. Only with
  the loop's body recomputed (else the copies of all images are made before the loop: 40 at 48 channels) and with the positions
  in one axis (three: 13). 1,024 positions together 22.
  On an AMD EPYC with AVX-512 (all lines above: an Intel Xeon) XLA's own is mostly as fast or faster, alone (64 at 56x56, of 8,
  11.6 against 17.5; 96 at 16x16 4.9, 4.8; but 64 -> 128 with stride 2 7.7, 6.9) and in training steps: U-Net 500 and, in a
  second run, 541 against 543 and 574, ResNet-50 1616 against 1691, ResNet-18 576 against 592 (medians of 7 to 9 alternating
  steps; jax 0.10.2, of 5: U-Net 621 against 664, ResNet-18 760 against 745), and the U-Net's step compiles in 9.4 s both times
  instead of 11.0 and 12.3. So it went; no training step was timed with and without it on the Xeon.
- On that EPYC minimal filtering wins from 64 channels forward and in the image's gradient: 64 at 56x56 7.9, 8.0 (11.5, 10.1),
  at 32x32, batch 16, 4.4, 4.9 (7.3, 6.5); not in the kernel's, 29.3 (11.6), 7.9 (8.2). Of whole networks from 64 channels on,
  forward: ResNet-18 146 against 155, ResNet-50 385 against 395, PSPNet at 193 368 against 361; ResNet-18's training step 566
  against 568: left to XLA, whose own is the faster forward on the Xeon. There a large product runs at 200 GFLOP/s, and
  ResNet-50 forward is at 170.
- The stem on that EPYC, 12.3 forward and 26.4 for the kernel's gradient by XLA: as 4x4 of 12 channels 16.8, 25.5; its columns
  gathered first 17.8, 81.7.
- A U-Net's 3x3 of 96 to 256 channels at 16x16 and 8x8, batch 16, by minimal filtering: its gradient 580 ms and 19 s to compile,
  700 ms and 10 s without (521, 22, 584 and 10 in another run; medians, a slow hour): it begins at 8e8 multiplications, those of
  ResNet-18 at 8 images, for the compilation's sake. On the EPYC, from 3e8 on, 460 ms and 14.5 s, from 4e8 502
  and 12.4 (from 8e8 541 and 9.4); in another run, from 2e8 on, 454 and 17.0 (500 and 9.4).
- A fast form fused into its readers is computed anew by each of them: LeNet's gradient (batch 256) 46 ms, with barriers around
  the forms 14 ms. Timings of single operations don't show it.
  jax 0.10 drops the barriers before it fuses: in LeNet's step (batch 256, beside other work) the gradient of the second
  convolution's image, a sum of 25 parts, is computed anew for every place of the pool's windows before it, 75 of 130 ms. That
  gradient by XLA's own form: step 52 ms (batch 64: 13.1, not 19.5), and on jax 0.12 46.5 for 49.7 (17.3 for
  16.8 on a quiet machine), but 8.7 for 7.1 at batch 64 (minima of 6): so by its own only where images are many.
- Sum over all but the channels, as depthwise convolution's kernel gradient needs: 40 to 75 ms as a reduction, a product, or in
  two stages (3x3, 144 channels, 56x56); adding up in an array of one row inside a loop over rows 6 ms.
- Grouped 3x3 (32 groups of 4 at 56x56, batch 2, beside other work) as dense blocks of 64 channels, mostly zeros: forward 8,
  gradient 29; blocks of 128 17 and 103; a product for each group 212 and 165; XLA's own forward 60.
- Maximum along rows, then along columns: forward 18 ms, at once 3.5 (3x3, stride 2, 64 channels, 112x112).
- Gradient of the maximum: shared by ties (`jnp.maximum`) 15.1, to the first as in PyTorch 20.2 (same shape), XLA's own 135.
"""

import argparse
import functools
import sys

import numpy as np

from experiments.benchmarks import compare

# name: (operation, image [batch, height, width, channels], kernel [rows, columns, inputs, outputs] or None, options)
CASES = {
    "1x1": ("convolution", (2, 56, 56, 256), (1, 1, 256, 64), {}),
    "3x3 64": ("convolution", (8, 56, 56, 64), (3, 3, 64, 64), {"padding": 1}),
    "3x3 128": ("convolution", (8, 28, 28, 128), (3, 3, 128, 128), {"padding": 1}),
    "3x3 512": ("convolution", (8, 7, 7, 512), (3, 3, 512, 512), {"padding": 1}),
    "dilated 3x3": ("convolution", (1, 60, 60, 256), (3, 3, 256, 256), {"padding": 2, "dilation": 2}),
    "stem 7x7": ("convolution", (2, 224, 224, 3), (7, 7, 3, 64), {"stride": 2, "padding": 3}),
    "depthwise 3x3": ("convolution", (2, 56, 56, 144), (3, 3, 1, 144), {"padding": 1, "groups": 144}),
    "depthwise 3x3 s2": ("convolution", (2, 56, 56, 144), (3, 3, 1, 144), {"padding": 1, "stride": 2, "groups": 144}),
    "depthwise 7x7": ("convolution", (2, 56, 56, 96), (7, 7, 1, 96), {"padding": 3, "groups": 96}),
    "grouped 3x3": ("convolution", (2, 56, 56, 128), (3, 3, 4, 128), {"padding": 1, "groups": 32}),
    "transposed k16 s8": ("transposed", (1, 30, 30, 21), (16, 16, 21, 21), {"stride": 8}),
    "transposed k32 s16": ("transposed", (1, 16, 16, 21), (32, 32, 21, 21), {"stride": 16}),
    "bilinear x8": ("bilinear", (1, 60, 60, 21), None, {"factor": 8}),
    "max 3x3 s2": ("max", (8, 112, 112, 64), None, {"window": 3, "stride": 2, "padding": 1}),
    "max 2x2": ("max", (8, 56, 56, 64), None, {"window": 2}),
    "average 2x2": ("average", (8, 56, 56, 64), None, {"window": 2}),
    "adaptive average 6": ("adaptive", (1, 60, 60, 2048), None, {"size": 6}),
    "resize": ("resize", (1, 60, 60, 21), None, {"size": 473, "align_corners": True}),
}


def inputs(name):
    """The operation, its options, the image, and the kernel if it takes one."""
    operation, image, kernel, options = CASES[name]
    rng = np.random.default_rng(0)
    return operation, options, [rng.standard_normal(shape, np.float32) for shape in (image, kernel) if shape]


def jax_operation(name, direction, form):
    import jax

    if form == "plain":  # before the library is imported: what any other platform gets
        choose = jax.lax.platform_dependent
        jax.lax.platform_dependent = lambda *arguments, default, **_: choose(*arguments, default=default)
    from jaxnets import ops

    functions = {
        "convolution": ops.convolution,
        "transposed": ops.transposed_convolution,
        "bilinear": ops.bilinear_upsample,
        "max": ops.max_pool,
        "average": ops.average_pool,
        "adaptive": ops.adaptive_average_pool,
        "resize": ops.resize,
    }
    operation, options, arrays = inputs(name)
    f = functools.partial(functions[operation], **options)
    arrays = [jax.numpy.asarray(a) for a in arrays]
    if direction == "forward":
        run = jax.jit(f).lower(*arrays).compile()
        return lambda: jax.block_until_ready(run(*arrays))
    cotangent = jax.numpy.ones_like(jax.eval_shape(f, *arrays))
    run = jax.jit(lambda cotangent, *arrays: jax.vjp(f, *arrays)[1](cotangent)).lower(cotangent, *arrays).compile()
    return lambda: jax.block_until_ready(run(cotangent, *arrays))


def torch_operation(name, direction, layout, cores):
    """Its gradient is timed without the forward pass, which ours needs for nothing either."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(int(cores))
    operation, options, arrays = inputs(name)
    x, *kernel = (torch.from_numpy(a) for a in arrays)
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=getattr(torch, layout)).requires_grad_()
    if operation in ("convolution", "transposed"):
        order = (3, 2, 0, 1) if operation == "convolution" else (2, 3, 0, 1)
        kernel = [kernel[0].permute(order).contiguous().requires_grad_()]
        f = functools.partial(F.conv2d if operation == "convolution" else F.conv_transpose2d, **options)
    elif operation == "bilinear":  # as FCN does it: a transposed convolution of each channel
        factor, channels = options["factor"], x.shape[1]
        line = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
        weight = (line[:, None] * line).expand(channels, 1, -1, -1).contiguous()
        f = functools.partial(F.conv_transpose2d, weight=weight, stride=factor, groups=channels)
    elif operation == "resize":
        f = functools.partial(F.interpolate, mode="bilinear", **options)
    elif operation == "adaptive":
        f = functools.partial(F.adaptive_avg_pool2d, output_size=options["size"])
    else:
        options = {"kernel_size": options["window"], **{key: value for key, value in options.items() if key != "window"}}
        f = functools.partial(F.max_pool2d if operation == "max" else F.avg_pool2d, **options)
    if direction == "forward":
        return torch.no_grad()(lambda: f(x, *kernel))
    y = f(x, *kernel)
    cotangent = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, [x, *kernel], cotangent, retain_graph=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="operations whose name contains one of these, with commas")
    parser.add_argument("--plain", action="store_true", help="also XLA's own formulation")
    options = parser.parse_args()
    module = "experiments.benchmarks.vision_ops"
    for name in CASES:
        if not any(part in name for part in options.only.split(",")):
            continue
        for direction in ("forward", "gradient"):
            ours = {"jaxnets": ("jax_operation", sys.executable, ("fast",))}
            if options.plain:
                ours["plain"] = ("jax_operation", sys.executable, ("plain",))
            layouts = {"torch": "contiguous_format", "torch, channels last": "channels_last"}
            peers = {
                key: ("torch_operation", options.torch_python, (layout, str(options.cores))) for key, layout in layouts.items()
            }
            workers = {
                key: compare.Worker(module, case, python, (name, direction, *arguments), cores=options.cores)
                for key, (case, python, arguments) in {**ours, **peers}.items()
            }
            compare.report(f"{name}, {direction}", compare.alternate(workers, options.repeats), ours="jaxnets")
            for worker in workers.values():
                worker.close()


if __name__ == "__main__":
    main()
