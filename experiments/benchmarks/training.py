"""Training speed against PyTorch on one CPU core: an MLP, ensembles of small MLPs, AdamW on 25 M parameters.

    python -m experiments.benchmarks.training [--torch-python PATH] [--repeats 15]

Found on the way (20 steps of the first case, one core of a shared machine, 25 repeats; medians scatter by 10 % between runs):
- guard as a select over the state: +6 to 15 % over the step without it; as a branch (`lax.cond`): within the noise.
- global norm as dot products instead of sums of squares: smaller minima, no smaller medians: no gain shown.
- dividing the gradients by the weight before the norm instead of in the optimizer: about 7 %, from one run of each.
- no gain: `scan(unroll=2)` or 20, optax's gathered cross entropy instead of the masked sum, parameters as plain arrays.

PyTorch is optional: `--torch-python` names an interpreter that has it (default: this one); without it our side runs alone.
"""

import argparse
import itertools
import sys

import numpy as np

from experiments.benchmarks import compare

STEPS, BATCH = 20, 128
WIDTHS = (784, 512, 512, 10)
SMALL_BATCH, SMALL_WIDTHS = 32, (64, 32, 32, 10)
ADAMW_SHAPES = [(1024, 1024), (1024,)] * 24


def classification(batch, features):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, batch, features)).astype(np.float32)
    return x, rng.integers(0, 10, size=(STEPS, batch)).astype(np.int32)


def jax_mlp(widths=WIDTHS, batch=BATCH, members=None):
    """Our training step with all its guards, an epoch per dispatch, the state donated."""
    import jax
    import optax

    from jaxnets import losses
    from jaxnets.data.batches import Dataset
    from jaxnets.models import mlp
    from jaxnets.training import ensemble, state, steps

    data = jax.device_put(Dataset(*classification(batch, widths[0])))
    model, optimizer = mlp.MLP(widths=widths[1:]), optax.adam(1e-3)
    step = steps.make_train_step(steps.supervised(model.apply, losses.softmax_cross_entropy), optimizer)

    def create(key):
        return state.create(model, optimizer, key, data.x[0])

    if members is None:
        train_state = create(jax.random.key(0))
    else:
        train_state, step = ensemble.init(create, jax.random.key(0), members), ensemble.step(step)
    epoch = jax.jit(lambda s, batches: jax.lax.scan(step, s, batches), donate_argnums=0)

    def run():
        nonlocal train_state
        train_state, metrics = epoch(train_state, data)
        jax.block_until_ready((train_state, metrics))

    return run


def jax_small_16():
    return jax_mlp(SMALL_WIDTHS, SMALL_BATCH, 16)


def jax_small_64():
    return jax_mlp(SMALL_WIDTHS, SMALL_BATCH, 64)


def jax_adamw():
    """`optax.adamw` and `apply_updates`, all buffers donated."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adamw(1e-3)
    params = [jnp.full(shape, 0.1) for shape in ADAMW_SHAPES]
    gradients = [jnp.full(shape, 0.01) for shape in ADAMW_SHAPES]
    optimizer_state = optimizer.init(params)

    def update(params, optimizer_state, gradients):
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    step = jax.jit(update, donate_argnums=(0, 1))

    def run():
        nonlocal params, optimizer_state
        params, optimizer_state = jax.block_until_ready(step(params, optimizer_state, gradients))

    return run


def torch_network(widths):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_loop(widths, batch, members):
    """The usual eager loop, one network after the other, `Adam(fused=True)`."""
    import torch

    x, y = (torch.from_numpy(a) for a in classification(batch, widths[0]))
    y = y.long()
    networks = [torch_network(widths) for _ in range(members)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3, fused=True) for network in networks]

    def run():
        for network, optimizer in zip(networks, optimizers, strict=True):
            for i in range(STEPS):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(x[i]), y[i]).backward()
                optimizer.step()

    return run


def torch_mlp():
    return torch_loop(WIDTHS, BATCH, 1)


def torch_loop_16():
    return torch_loop(SMALL_WIDTHS, SMALL_BATCH, 16)


def torch_loop_64():
    return torch_loop(SMALL_WIDTHS, SMALL_BATCH, 64)


def torch_vmap(members):
    """`torch.func.vmap` of the gradient over stacked parameters, fused Adam on the stacks."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    x, y = (torch.from_numpy(a) for a in classification(SMALL_BATCH, SMALL_WIDTHS[0]))
    y = y.long()
    networks = [torch_network(SMALL_WIDTHS) for _ in range(members)]
    params, _ = stack_module_state(networks)
    params = {name: value.detach() for name, value in params.items()}
    optimizer = torch.optim.Adam(list(params.values()), lr=1e-3, fused=True)

    def loss(params, x, y):
        return torch.nn.functional.cross_entropy(functional_call(networks[0], params, (x,)), y)

    gradient = vmap(grad(loss), in_dims=(0, None, None))

    def run():
        for i in range(STEPS):
            for name, value in gradient(params, x[i], y[i]).items():
                params[name].grad = value
            optimizer.step()

    return run


def torch_vmap_16():
    return torch_vmap(16)


def torch_vmap_64():
    return torch_vmap(64)


def torch_adamw(**options):
    import torch

    torch.set_num_threads(1)
    params = [torch.full(shape, 0.1, requires_grad=True) for shape in ADAMW_SHAPES]
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, **options).step


def torch_adamw_foreach():
    return torch_adamw(foreach=True)


def torch_adamw_fused():
    return torch_adamw(fused=True)


CASES = {
    "MLP 784-512-512-10, batch 128, 20 steps of Adam": ("jax_mlp", "torch_mlp"),
    "16 MLPs 64-32-32-10, batch 32, 20 steps of Adam": ("jax_small_16", "torch_loop_16", "torch_vmap_16"),
    "64 MLPs 64-32-32-10, batch 32, 20 steps of Adam": ("jax_small_64", "torch_loop_64", "torch_vmap_64"),
    "AdamW, 25 M parameters, one update": ("jax_adamw", "torch_adamw_foreach", "torch_adamw_fused"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    for title, cases in CASES.items():
        workers = {}
        for case in cases:
            python = options.torch_python if case.startswith("torch") else sys.executable
            workers[case] = compare.Worker("experiments.benchmarks.training", case, python)
        compare.report(title, compare.alternate(workers, options.repeats), ours=cases[0])
        missing = [case for case, worker in workers.items() if not worker.ready]
        if missing:
            print(f"  not timed, torch is missing: {', '.join(missing)}")
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
