"""MLP on handwritten digits or Fashion-MNIST; with --members, an ensemble over seeds in one compiled program.

Measured 2026-11-22, 2 CPU cores, jax 0.10.2: digits (30 % held out) 98.2 % ± 0.3 over 5 seeds and splits, 11 to 19 s each;
Fashion-MNIST test, 25 epochs, 90.7 % in 81 s; `--preset ensemble`: members 89.94 % ± 0.13, ensemble 90.80 %, 9 minutes beside
other work. With the default's dropout and widths the ensemble gains only 0.4 points (90.4 to 90.8 %, 16 members).
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import numpy as np
import optax

from experiments.harness import checks
from experiments.harness.run import Run
from experiments.vision import classification
from jaxnets import losses, metrics, optimizers
from jaxnets.data import batches
from jaxnets.models import mlp
from jaxnets.training import checkpoint, ensemble, loop, state, steps


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"  # digits, fashion-mnist, or a folder with four IDX files
    members: int = 1  # networks trained at once, each from its own seed
    epochs: int | None = None  # default: 60 on digits, 25 elsewhere
    batch: int = 128  # examples per step
    lr: float = 1e-3  # peak learning rate of AdamW, after one epoch of warm-up, cosine to 0
    weight_decay: float = 0.05  # decoupled, on kernels only
    widths: tuple[int, ...] = (512, 512)  # hidden layers
    dropout: float = 0.2  # probability that a hidden unit is zeroed
    smoothing: float = 0.0  # label smoothing
    normalization: Literal["none", "layer", "batch"] = "none"  # before each activation
    validate: bool = False  # measure on a tenth of the training data instead of the test data, to choose by
    seed: int = 0  # of the data's split and order, the initialization and the dropout

    def __post_init__(self):
        checks.positive(self, "members", "epochs", "batch", "lr")
        checks.within(self, 0, 1, "dropout", "smoothing")
        checks.within(self, 0, math.inf, "weight_decay")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"--widths must be positive integers, at least one, got {self.widths}")


PRESETS = {
    "default": Config(),
    # Members gain most from each other where each overfits in its own way: no dropout, small and fast.
    "ensemble": Config(data="fashion-mnist", members=16, epochs=40, widths=(128, 128), dropout=0.0, lr=3e-3),
    "smoke": Config(members=2, epochs=2, widths=(16,)),
}


def main(config: Config, run: Run) -> dict[str, float]:
    train, test, names = classification.load(config)
    epochs = config.epochs or (60 if config.data == "digits" else 25)
    per_epoch = batches.steps_per_epoch(len(train), config.batch)
    normalization = None if config.normalization == "none" else config.normalization
    model = mlp.MLP((*config.widths, len(names)), dropout=config.dropout, normalization=normalization)
    schedule = optimizers.warmup_cosine(config.lr, epochs=epochs, steps_per_epoch=per_epoch, warmup_epochs=min(1, epochs / 10))
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay, mask=optimizers.decay_mask())
    smoothed = functools.partial(losses.softmax_cross_entropy, label_smoothing=config.smoothing)
    step = steps.make_train_step(steps.supervised(model.apply, smoothed, accuracy=metrics.correct), optimizer)
    measure = steps.make_eval_step(steps.supervised(model.apply, losses.softmax_cross_entropy, accuracy=metrics.correct))

    # One network is an ensemble of one: the same program, with a member axis on every number.
    create = functools.partial(state.create, model, optimizer, x=train.x[:1])
    members = jax.jit(functools.partial(ensemble.init, create, members=config.members))(jax.random.key(config.seed))
    run.print(f"{len(train):,} training and {len(test):,} test images, {config.members} x {size(members):,} parameters")
    total, saved = epochs * per_epoch, checkpoint.Checkpointer(run.checkpoints, config=config)
    with saved, run.progress(total) as callback:
        fitted = loop.fit(
            ensemble.step(step),
            members,
            train,
            batch=config.batch,
            steps=total,
            seed=config.seed,
            scan=True,
            evaluate=jax.vmap(measure, in_axes=(0, None)),
            test=test,
            checkpoint=saved,
            checkpoint_every=per_epoch * max(1, epochs // 20),
            callback=callback,
        )

    predict = jax.jit(functools.partial(ensemble.predict, model.apply))
    log_probabilities = np.concatenate([predict(fitted.state, x) for x in np.array_split(test.x, -(-len(test) // 1000))])
    each = loop.evaluate(jax.vmap(measure, in_axes=(0, None)), fitted.state, test, batch=config.batch)["accuracy"]
    run.figure("learning", functools.partial(classification.draw_learning, run.rows()), size=(8, 3), gallery=True)
    run.figure(
        "mistakes", functools.partial(classification.draw_mistakes, test, log_probabilities, names), size=(8, 4.2), gallery=True
    )
    summary = {"test_accuracy": float(each.mean()), "spread": float(each.std()), "members": config.members}
    if config.members > 1:
        summary["ensemble_accuracy"] = float(np.mean(log_probabilities.argmax(-1) == test.y))
    return summary


def size(members: state.TrainState) -> int:
    return sum(leaf[0].size for leaf in jax.tree.leaves(members.params))
