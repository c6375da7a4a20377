"""How far gradients reach back in time: small cells on the same text, before and after training; clipping beside gating."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.sequence import common, figures
from jaxnets.data import text
from jaxnets.models import layers, rnn
from jaxnets.training import state, steps
from jaxnets.types import Float, Int

WIDTH, BATCH, TIME, LAGS = 64, 32, 64, 100
UNSTABLE, CLIPPED = "Elman, relu from identity", "the same, clipped at 1"
CELLS: dict[str, rnn.Cell] = {
    "Elman": rnn.Elman(WIDTH),
    UNSTABLE: rnn.Elman(WIDTH, jax.nn.relu, layers.identity()),
    "GRU": rnn.GRU(WIDTH),
    "LSTM": rnn.LSTM(WIDTH),
}
REMEDIES = {UNSTABLE: "C1", CLIPPED: "C5", "LSTM": "C3"}  # what the last panel shows, in which color


class Found(NamedTuple):
    """By cell: log10 of the norm of d s_T / d s_(T - lag) at the start and after training, and each step's gradient norm."""

    start: dict[str, Float[np.ndarray, " lags"]]
    trained: dict[str, Float[np.ndarray, " lags"]]
    norms: dict[str, Float[np.ndarray, " steps"]]


def compare(ids: Int[np.ndarray, " symbol"], vocabulary: int, *, total: int, seed: int) -> Found:
    """Trains each cell for `total` steps of Adam, without clipping but for the one that it is there to help."""
    batch = min(BATCH, (len(ids) - 1) // TIME)
    train = jax.device_put(text.streams(ids, batch, TIME))
    order = np.arange(total * batch).reshape(total, batch) % len(train)
    shown = text.streams(ids, 4, min(LAGS, (len(ids) - 1) // 4)).x[:4]
    found = Found({}, {}, {})
    for name, cell in CELLS.items():
        model = rnn.LanguageModel(vocabulary, cell, embedding=32)
        optimizer = common.adam(3e-3, total)
        create = functools.partial(state.create, model, optimizer, x=train.x[:1], carry=model.initial(batch))
        start = jax.jit(create)(jax.random.key(seed))
        measure = jax.jit(functools.partial(reach, cell))
        for label, clip in ((name, None), (CLIPPED, common.CLIP))[: 1 + (name == UNSTABLE)]:
            step = steps.make_train_step(steps.truncated_bptt(model.apply), optimizer, clip=clip)
            run = jax.jit(lambda current, step=step: jax.lax.scan(lambda s, rows: step(s, train[rows]), current, order))
            end, metrics = run(start)
            found.norms[label] = np.asarray(metrics["grad_norm"])
            if label == name:
                for curves, params in ((found.start, start.params), (found.trained, end.params)):
                    curves[name] = np.asarray(measure(params, shown)) / np.log(10)
    return found


def reach(cell: rnn.Cell, params: Any, ids: Int[Any, "batch time"]) -> Float[Any, " lags"]:
    """Mean over rows of the logarithm of the norm, root mean square over directions, for each lag."""
    xs = params["embedding"]["embedding"][ids]
    step = functools.partial(cell.step, params["recurrent"]["layer_0"])
    return rnn.state_gradients(step, cell.initial(len(ids)), xs, spectral=False).mean(0)


def draw(found: Found, figure: Any) -> None:
    """Norms against the lag at the start and after training, and the loss's gradient over training."""
    start, trained, norms = figure.subplots(1, 3)
    for axes, curves, title in ((start, found.start, "at the start"), (trained, found.trained, "after training")):
        for name, curve in curves.items():
            axes.plot(curve, label=name)
        axes.axhline(0, color="k", linewidth=0.7, linestyle=":")
        axes.set(xlabel="lag (steps)", title=title, ylim=(-12, 5))
    start.set_ylabel(figures.REACH)
    start.legend(fontsize=7, loc="upper right", ncols=2)
    for name, color in REMEDIES.items():
        norms.plot(np.arange(1, len(found.norms[name]) + 1), found.norms[name], label=name, color=color, linewidth=0.9)
    norms.axhline(common.CLIP, color="k", linewidth=0.7, linestyle=":")
    norms.set(xlabel="training step", ylabel="norm of the loss's gradient", yscale="log", title="clipping and gating")
    norms.legend(fontsize=8)
