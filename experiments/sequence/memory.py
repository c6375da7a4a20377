"""Adding and copying: what cells remember over many steps, with the same data and the same budget for each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.run import Run, identity
from experiments.sequence import common, figures
from jaxnets import metrics
from jaxnets.data import batches, synthetic, text
from jaxnets.models import rnn
from jaxnets.training import checkpoint, loop, state, steps
from jaxnets.types import Array, LossFn

SYMBOLS, LENGTH = 8, 5  # of copying: how many different ones there are, and how many to remember
TESTED = 512  # sequences


class Task(NamedTuple):
    """How to draw sequences, what learns them, and how that is scored."""

    draw: Callable[[Array, int], batches.Dataset]  # (key, examples)
    model: Callable[[rnn.Cell], Any]
    carry: Callable[[Any, int], Any]  # (model, batch): what a training state carries
    loss: Callable[[Any], LossFn]  # of a model
    score: str
    guess: float  # score of a model that remembers nothing


def adding(time: int) -> Task:
    """The sum of two marked numbers among `time`, scored by its mean squared error."""
    return Task(
        draw=lambda key, examples: synthetic.adding(key, examples, time),
        model=functools.partial(rnn.Classifier, 1),
        carry=lambda model, batch: None,
        loss=lambda model: steps.supervised(model.apply, lambda outputs, y: (outputs[:, 0] - y) ** 2),
        score="loss",
        guess=1 / 6,
    )


def copying(longest: int) -> Task:
    """Symbols to say again after 1 to `longest` steps, drawn for each batch, scored by the share of right ones."""

    def draw(key, examples):
        key, key_lag = jax.random.split(key)
        return at_lag(key, examples, jax.random.randint(key_lag, (), 1, longest + 1), longest)

    def remembered(y):  # to be silent is not what this is about
        return (y < SYMBOLS).astype(jnp.float32)

    def loss(model):
        return steps.truncated_bptt(model.apply, weights=remembered, accuracy=metrics.correct)

    model = functools.partial(rnn.LanguageModel, SYMBOLS + 2)
    return Task(draw, model, lambda model, batch: model.initial(batch), loss, "accuracy", 1 / SYMBOLS)


def at_lag(key: Array, examples: int, lag: Any, longest: int) -> text.Streams:
    """Sequences of one shape, whatever the lag: blanks first, and the symbols `lag` steps before they are asked for."""
    data = synthetic.copying(key, examples, longest, symbols=SYMBOLS, length=LENGTH)
    shown = jnp.roll(data.x[:, : longest + LENGTH - 1], longest - lag, axis=1)  # all before the signal
    x = jnp.concatenate([shown, data.x[:, longest + LENGTH - 1 :]], axis=1)
    return text.Streams(x, data.y, reset=jnp.zeros(x.shape, bool).at[:, 0].set(True))


def main(config: Any, run: Run) -> dict[str, float]:
    task = {"adding": adding, "copying": copying}[config.task](config.time)
    total, interval = common.cuts(config.steps, 50)
    test = task.draw(jax.random.key(config.seed + 1_000_000), TESTED)
    fits = {}
    for name, cell in common.CELLS.items():
        fits[name] = fit(task, cell(config.width), config, run, name, total, interval, test)
    rows = {name: [row for row in run.rows() if row["kind"] == name] for name in fits}
    scores = {name: curve[-1][f"test_{task.score}"] for name, curve in rows.items()}
    for name, score in scores.items():
        run.print(f"{name:<6} {task.score} {score:.4f} (remembering nothing {task.guess:.4f})")
    if config.task == "adding":
        reach = {name: gradient_reach(current, config.width, name, test) for name, current in fits.items()}
        run.figure("adding", functools.partial(figures.draw_adding, rows, reach, task.guess), size=(10, 3.6), gallery=True)
    else:
        lags = np.unique(np.geomspace(1, config.time, 12).round().astype(int))
        curves = {name: forgetting(task, common.CELLS[name](config.width), fits[name], config, lags) for name in fits}
        draw = functools.partial(figures.draw_copying, rows, lags, curves, task.guess)
        run.figure("copying", draw, size=(10, 3.6), gallery=True)
    return scores | {"guess": task.guess}


def fit(
    task: Task, cell: rnn.Cell, config: Any, run: Run, name: str, total: int, interval: int, test: batches.Dataset
) -> state.TrainState:
    """Trains one cell; each step draws its sequences from (seed, step), the same for all cells."""
    model = task.model(cell)
    loss_fn, optimizer = task.loss(model), common.adam(config.lr, total, config.weight_decay)
    drawn = steps.augmented(loss_fn, lambda key, batch: task.draw(key, config.batch))
    create = functools.partial(state.create, model, optimizer, x=test.x[:1], carry=task.carry(model, config.batch))
    saved = checkpoint.Checkpointer(run.checkpoints / name, config=identity(config))
    with saved, run.progress(total, description=f"{name:<6}") as callback:
        fitted = loop.fit(
            steps.make_train_step(drawn, optimizer, clip=common.CLIP),
            jax.jit(create)(jax.random.key(config.seed)),
            batches.Dataset(np.zeros(config.batch), None),  # what is drawn takes its place
            batch=config.batch,
            steps=total,
            scan=jax.default_backend() == "cpu",
            evaluate=steps.make_eval_step(loss_fn),
            test=test,
            log_every=interval,
            evaluate_every=interval,
            checkpoint=saved,
            checkpoint_every=5 * interval,
            callback=lambda row: callback(row | {"kind": name}),
        )
    return fitted.state


def gradient_reach(current: state.TrainState, width: int, name: str, test: batches.Dataset) -> np.ndarray:
    """log10 of the norm of d s_T / d s_(T - lag), mean over some sequences."""
    cell, params = common.CELLS[name](width), current.params["recurrent"]["layer_0"]
    step = functools.partial(cell.step, params)
    measure = jax.jit(lambda x: rnn.state_gradients(step, cell.initial(len(x)), x, spectral=False).mean(0))
    return np.asarray(measure(test.x[:4])) / np.log(10)


def forgetting(task: Task, cell: rnn.Cell, current: state.TrainState, config: Any, lags: Any) -> list[float]:
    """Share of symbols remembered after each lag."""
    measure = steps.make_eval_step(task.loss(task.model(cell)))
    key = jax.random.key(config.seed + 2_000_000)

    @jax.jit
    def accuracy(lag):
        weight, sums = measure(current, at_lag(key, TESTED, lag, config.time))
        return sums["accuracy"] / weight

    return [float(accuracy(lag)) for lag in lags]
