"""Sequences of different lengths and their classes: a bidirectional recurrent classifier, several seeds at once."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.harness.run import Run, identity
from experiments.sequence import common, figures
from jaxnets import losses, metrics
from jaxnets.data import batches, sequences
from jaxnets.models import rnn
from jaxnets.training import checkpoint, ensemble, loop, state, steps
from jaxnets.types import InputError


def main(config: Any, run: Run) -> dict[str, float]:
    train, test, classes = load(config.data)
    if config.validate:
        train, test = batches.split(train, 0.2, seed=config.seed)
    train, test = standardized(train, test)
    total = config.epochs * batches.steps_per_epoch(len(train), config.batch)
    model = rnn.Classifier(
        len(classes),
        common.CELLS[config.cell](config.width),
        config.layers,
        bidirectional=True,
        dropout=config.dropout,
        pooling=config.pooling,
    )
    loss_fn = steps.supervised(model.apply, losses.softmax_cross_entropy, inputs=("lengths",), accuracy=metrics.correct)
    optimizer = common.adam(config.lr, total, config.weight_decay)
    step = ensemble.step(steps.make_train_step(loss_fn, optimizer, clip=common.CLIP))
    measure = jax.vmap(steps.make_eval_step(loss_fn), in_axes=(0, None))
    create = functools.partial(state.create, model, optimizer, x=train.x[:1])
    # Not jitted: on a CPU the QR factors of many orthogonal matrices in one program can wait for each other's threads forever.
    members = ensemble.init(create, jax.random.key(config.seed), config.members)
    lengths = f"{train.lengths.min()} to {train.lengths.max()} steps, test {test.lengths.min()} to {test.lengths.max()}"
    run.print(f"{len(train)} sequences of {lengths} ({len(test)}); {train.x.shape[-1]} channels and {len(classes)} classes")

    saved = checkpoint.Checkpointer(run.checkpoints, config=identity(config))
    total, interval = common.cuts(total, 20)
    with saved, run.progress(total) as callback:
        fitted = loop.fit(
            step,
            members,
            train,
            batch=config.batch,
            steps=total,
            seed=config.seed,
            scan=jax.default_backend() == "cpu",
            evaluate=measure,
            test=test,
            log_every=interval,
            evaluate_every=interval,
            checkpoint=saved,
            checkpoint_every=4 * interval,
            callback=callback,
        )
    each = loop.evaluate(measure, fitted.state, test, batch=len(test))["accuracy"]
    run.print("test accuracy of each seed: " + ", ".join(f"{accuracy:.2%}" for accuracy in each))
    run.figure("accuracy", functools.partial(figures.draw_accuracy, run.rows()), size=(8, 3))
    return {"test_accuracy": float(each.mean()), "spread": float(each.std()), "worst": float(each.min()), "members": len(each)}


def load(data: str | None) -> tuple[sequences.Sequences, sequences.Sequences, tuple[str, ...]]:
    """Training and test sequences of `NAME_TRAIN.ts` and `NAME_TEST.ts`, given as the first file or as their folder."""
    expected = "expected a folder with NAME_TRAIN.ts and NAME_TEST.ts (such as JapaneseVowels), or the first file"
    if data is None:
        raise InputError(f"--task classify needs --data: {expected}")
    path = pathlib.Path(data)
    found = sorted(path.glob("*_TRAIN.ts")) if path.is_dir() else [path] * path.name.endswith("_TRAIN.ts")
    if len(found) != 1 or not found[0].is_file():
        raise InputError(f"--data {data}: {expected}, got {len(found)} of them")
    train, classes = sequences.from_ts(found[0])
    other = found[0].with_name(found[0].name.replace("_TRAIN.ts", "_TEST.ts"))
    test, of_test = sequences.from_ts(other)
    if not classes or classes != of_test or train.x.shape[-1] != test.x.shape[-1]:
        raise InputError(f"--data {data}: expected the same classes and channels in {found[0].name} and {other.name}")
    return train, test, classes


def standardized(*parts: Any) -> list[Any]:
    """Channels of mean 0 and variance 1 over the steps of the first part that count; zero, as before, beyond them."""
    counts = [(np.arange(part.x.shape[1]) < part.lengths[:, None])[..., None] for part in parts]
    steps_ = parts[0].x[counts[0][..., 0]]
    mean, deviation = steps_.mean(0), np.maximum(steps_.std(0), 1e-6)
    return [
        dataclasses.replace(part, x=np.where(count, (part.x - mean) / deviation, 0).astype(np.float32))
        for part, count in zip(parts, counts, strict=True)
    ]
