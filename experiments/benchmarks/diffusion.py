"""A U-Net of diffusion models, 3.7 million parameters, 16 images of 32x32: forward, training step and compilation.

Run: `python -m experiments.benchmarks.diffusion --torch-python PATH` (an interpreter with torch and diffusers). Against the
`UNet2DModel` of diffusers, of the same structure, in PyTorch's default layout and with channels last, on the same cores. A
training step is that of `make_train_step` with Adam on the mean squared error of a v-prediction, its guard and metrics
included; PyTorch's has `torch.optim.Adam`, `foreach`.
"""

import argparse
import sys

import numpy as np

from experiments.benchmarks import compare

BATCH, SIZE = 16, 32
WIDTHS, ATTENTION, DEPTH, HEAD_WIDTH, GROUPS = (48, 96, 128), (2,), 1, 64, 16
# name: the kind of run, which `jaxnets_case` and `torch_case` know
CASES = {"U-Net, forward": "forward", "U-Net, training step": "training"}


def arrays():
    """Images, noise, and times in [0, 1]."""
    rng = np.random.default_rng(0)
    images, noise = rng.standard_normal((2, BATCH, SIZE, SIZE, 3), np.float32)
    return images, noise, rng.uniform(size=BATCH).astype(np.float32)


# --- ours ---


def jaxnets_case(kind, cores):
    import time

    import jax
    import jax.numpy as jnp
    import optax

    from jaxnets.models import unet
    from jaxnets.training import state, steps

    del cores  # the affinity of the process
    model = unet.UNet(WIDTHS, DEPTH, ATTENTION, HEAD_WIDTH, groups=GROUPS)
    images, noise, t = map(jnp.asarray, arrays())
    optimizer = optax.adam(1e-4)
    params = jax.jit(model.init)(jax.random.key(0), images[:1], t[:1])["params"]
    trained = state.from_params(params, optimizer, jax.random.key(1))
    facts = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params))}
    began = time.perf_counter()
    if kind == "forward":
        variables = {"params": trained.params}
        forward = jax.jit(model.apply).lower(variables, images, t).compile()
        return lambda: forward(variables, images, t).block_until_ready(), facts | {"compiled": time.perf_counter() - began}

    def loss_fn(params, batch, key):
        del key
        images, noise, t = batch
        alpha, sigma = (f(t * jnp.pi / 2)[:, None, None, None] for f in (jnp.cos, jnp.sin))
        v = model.apply({"params": params}, alpha * images + sigma * noise, t, train=True)
        return ((v - (alpha * noise - sigma * images)) ** 2).mean()

    batch = (images, noise, t)
    step = jax.jit(steps.make_train_step(steps.plain(loss_fn), optimizer), donate_argnums=0)
    step = step.lower(trained, batch).compile()

    def run():
        nonlocal trained
        trained, _ = step(trained, batch)
        jax.block_until_ready(trained)

    return run, facts | {"compiled": time.perf_counter() - began}


# --- diffusers ---


def torch_case(kind, cores, layout):
    import torch

    torch.set_num_threads(int(cores))
    torch.manual_seed(0)
    memory = getattr(torch, layout)
    model = torch_model().to(memory_format=memory)
    images, noise, t = (torch.from_numpy(array) for array in arrays())
    images, noise = (array.permute(0, 3, 1, 2).contiguous(memory_format=memory) for array in (images, noise))
    facts = {"parameters": sum(each.numel() for each in model.parameters())}
    if kind == "forward":
        model.eval()

        @torch.inference_mode()
        def forward():
            return model(images, 1000 * t).sample

        return forward, facts

    optimizer = torch.optim.Adam(model.parameters(), 1e-4, foreach=True)

    def run():
        optimizer.zero_grad()
        alpha, sigma = (f(t * torch.pi / 2)[:, None, None, None] for f in (torch.cos, torch.sin))
        v = model(alpha * images + sigma * noise, 1000 * t).sample
        ((v - (alpha * noise - sigma * images)) ** 2).mean().backward()
        optimizer.step()

    return run, facts


def torch_model():
    import importlib

    import torch

    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass
    except RuntimeError:  # its wheel's operators need the torch it was built with; diffusers needs only their names
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from diffusers import UNet2DModel

    levels = range(len(WIDTHS))
    down = tuple("AttnDownBlock2D" if level in ATTENTION else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level in ATTENTION else "UpBlock2D" for level in reversed(levels))
    return UNet2DModel(
        block_out_channels=WIDTHS,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=DEPTH,
        attention_head_dim=HEAD_WIDTH,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
        resnet_time_scale_shift="scale_shift",
    )


def main() -> None:
    for facts in compete("experiments.benchmarks.diffusion", __doc__, CASES):
        print(f"  {facts['parameters']:,} parameters, compiled in {facts['compiled']:.1f} s")


def compete(module: str, doc: str, cases: dict[str, str]):
    """Times each of a benchmark's cases beside diffusers in both layouts; yields what ours says of itself."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch and diffusers")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cores", type=int, default=2, help="for each side")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    options = parser.parse_args()
    for title, kind in cases.items():
        if options.only not in title:
            continue
        plan = {
            "jaxnets": (sys.executable, "jaxnets_case", ()),
            "diffusers": (options.torch_python, "torch_case", ("contiguous_format",)),
            "diffusers, channels last": (options.torch_python, "torch_case", ("channels_last",)),
        }
        workers = {}
        for name, (python, case, more) in plan.items():
            workers[name] = compare.Worker(module, case, python, (kind, str(options.cores), *more), options.cores)
            assert workers[name].ready or name != "jaxnets"  # which waits: nobody compiles beside another
        compare.report(title, compare.alternate(workers, options.repeats), ours="jaxnets")
        facts = [worker.facts for worker in workers.values() if worker.facts is not None]
        assert len({str(each.get("parameters")) for each in facts}) == 1
        yield facts[0]
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
