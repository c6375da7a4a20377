"""Recurrent layers against Flax and PyTorch on one CPU core: a training step, sampling, linear recurrences.

    python -m experiments.benchmarks.recurrent [--torch-python PATH] [--repeats 15] [--only training,sampling,linear]

A training step is the gradient of `sum(outputs * cotangent)` with respect to all weights and the input, batch-major as a user
has it. Seconds of compilation include tracing; lengths 100 and 512 of the same layer show whether they depend on the length.

Tried for the training step (2026-11-22, one core; times of single runs, medians scatter by 10 %; LSTM at hidden 128 / 512):
- one custom derivative with the weight gradient outside the backward scan, values of the products kept: 0.85 / 0.75 of Flax's
  cell. Weight gradients as a product of matrices, not an `einsum` over three axes: without it 1.3 / 1.0 of Flax.
- summing 16 steps at once instead of all: up to 15 % faster at length 512, where `dz` outgrows the cache; level at 100.
- input products hoisted into one product before the scan: 5 to 20 % slower than inside (what it writes is read again); as a
  `custom_jvp` whose tangent scan JAX transposes and rematerializes: 15 to 25 % slower, though it would give forward mode.
- `x` and `h` joined for one product: level. Activated gates kept instead of products' values: level. Feature-major states
  `[hidden, batch]`, with products up to 1.4 times faster: 20 to 60 % slower as a whole. `unroll=2`: 0 to 30 % slower.
- GRU with the gates' columns beside the candidate's in one matrix: 5 to 15 % slower than apart (the gates' sums are kept once);
  as one matrix with zero blocks: 15 to 30 % slower.

PyTorch is optional: `--torch-python` names an interpreter that has it (default: this one); without it the others run alone.
"""

import argparse
import sys
import time

import numpy as np

from experiments.benchmarks import compare

SHAPES = [(100, 32, 64, 128), (64, 64, 128, 256), (512, 32, 64, 128), (32, 32, 128, 512)]  # time, batch, features, hidden
CHARACTERS, ROWS, VOCABULARY, HIDDEN = 1000, 16, 65, 256


def arrays(shape):
    """Hidden units, the input and the cotangent of all outputs."""
    steps, batch, features, hidden = map(int, shape)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, steps, features), np.float32)
    return hidden, x, rng.standard_normal((batch, steps, hidden), np.float32)


# --- training step ---


def training_step(outputs, params, x, cotangent):
    """The compiled gradient of `sum(outputs(params, x) * cotangent)`, ready to be timed, and the seconds of compilation."""
    import jax
    import jax.numpy as jnp

    x, cotangent = jnp.asarray(x), jnp.asarray(cotangent)
    gradient = jax.jit(jax.grad(lambda params, x: jnp.vdot(outputs(params, x), cotangent), argnums=(0, 1)))
    start = time.perf_counter()
    step = gradient.lower(params, x).compile()
    return lambda: jax.block_until_ready(step(params, x)), {"compiled": time.perf_counter() - start}


def jaxnets_layer(cell, *shape):
    import jax

    from jaxnets.models import rnn

    hidden, x, cotangent = arrays(shape)
    layer = rnn.Recurrent(getattr(rnn, cell)(hidden))
    variables = layer.init(jax.random.key(0), jax.numpy.asarray(x))
    return training_step(lambda variables, x: layer.apply(variables, x)[0], variables, x, cotangent)


def flax_layer(cell, *shape):
    import jax
    from flax import linen as nn

    hidden, x, cotangent = arrays(shape)
    layer = nn.RNN({"LSTM": nn.OptimizedLSTMCell, "GRU": nn.GRUCell}[cell](hidden))
    return training_step(layer.apply, layer.init(jax.random.key(0), x), x, cotangent)


def torch_layer(cell, *shape):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, *data = arrays(shape)
    x, cotangent = map(torch.from_numpy, data)
    layer = getattr(torch.nn, cell)(x.shape[-1], hidden, batch_first=True)
    inputs = [*layer.parameters(), x.requires_grad_()]
    return lambda: torch.autograd.grad(layer(x)[0], inputs, cotangent)


# --- sampling ---


def jaxnets_sample():
    """All characters of all rows in one compiled call."""
    import jax
    import jax.numpy as jnp

    from jaxnets.models import rnn

    model, prompt = rnn.LanguageModel(VOCABULARY, rnn.LSTM(HIDDEN), layers=2), jnp.zeros(1, jnp.int32)
    variables = model.init(jax.random.key(0), prompt[None])
    keys = jax.random.split(jax.random.key(1), ROWS)

    @jax.jit
    def sample(variables, keys):
        return jax.vmap(lambda key: rnn.sample(model, variables, key, prompt, steps=CHARACTERS, temperature=0.8)[0])(keys)

    return lambda: sample(variables, keys).block_until_ready()


def torch_sample():
    """The usual loop, one character of every row at a time."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(VOCABULARY, HIDDEN), torch.nn.Linear(HIDDEN, VOCABULARY)
    layers = torch.nn.LSTM(HIDDEN, HIDDEN, num_layers=2, batch_first=True)

    @torch.inference_mode()
    def run():
        token, state, text = torch.zeros(ROWS, 1, dtype=torch.long), None, []
        for _ in range(CHARACTERS):
            outputs, state = layers(embedding(token), state)
            token = torch.multinomial((head(outputs[:, 0]) / 0.8).softmax(-1), 1)
            text.append(token)
        return torch.cat(text, dim=1)

    return run


# --- linear recurrences ---


def jaxnets_linear(cell, form, *shape):
    """The cell over a time-major sequence, in one of the two forms."""
    import jax

    from jaxnets.models import rnn

    hidden, x, cotangent = arrays(shape)
    cell = getattr(rnn, cell)(hidden)
    x = x.swapaxes(0, 1)
    params = rnn.Recurrent(cell).init(jax.random.key(0), jax.numpy.asarray(x))["params"]["layer_0"]

    def outputs(params, x):
        return cell.read(params, cell.scan(params, cell.initial(x.shape[1]), x, form=form)[1], x)

    return training_step(outputs, params, x, cotangent.swapaxes(0, 1))


def compared(title, cases, options):
    """Times `{name: (case, arguments)}` side by side and reports, the first as ours."""
    workers, facts = {}, {}
    for name, (case, arguments) in cases.items():
        python = options.torch_python if case.startswith("torch") else sys.executable
        worker = compare.Worker("experiments.benchmarks.recurrent", case, python, tuple(map(str, arguments)))
        workers[name], facts[name] = worker, worker.facts  # which waits: nobody compiles beside another
    timings = compare.alternate(workers, options.repeats)
    compare.report(title, timings, ours=next(iter(cases)))
    for name, fact in facts.items():
        if fact is None:
            print(f"  not timed, its package is missing: {name}")
        elif fact:
            print(f"  {name:<28} compiled in {fact['compiled']:.2f} s")
    for worker in workers.values():
        worker.close()
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="training,sampling,linear", help="which parts, with commas")
    options = parser.parse_args()
    parts = options.only.split(",")
    if "training" in parts:
        for cell in ("LSTM", "GRU"):
            for shape in SHAPES:
                cases = {name: (f"{name}_layer", (cell, *shape)) for name in ("jaxnets", "flax", "torch")}
                compared(f"{cell}, training step, (time, batch, features, hidden) = {shape}", cases, options)
    if "sampling" in parts:
        title = f"sampling {CHARACTERS} characters in {ROWS} rows, LSTM 2 x {HIDDEN}"
        timings = compared(title, {name: (f"{name}_sample", ()) for name in ("jaxnets", "torch")}, options)
        for name, timing in timings.items():
            each = CHARACTERS / timing.median
            print(f"  {name:<28} {each:.0f} characters/s in each row, {ROWS * each:.0f} in all")
    if "linear" in parts:
        for cell in ("MinGRU", "LRU"):
            cases = {form: ("jaxnets_linear", (cell, form, *SHAPES[2])) for form in ("scan", "associative")}
            compared(f"{cell}, training step, (time, batch, features, hidden) = {SHAPES[2]}", cases, options)


if __name__ == "__main__":
    main()
