"""Backpropagation by hand checked against jax.grad; then losses compared under label noise: who forgives wrong labels?

Measured 2026-11-22, 2 CPU cores, jax 0.10.2, 3 minutes: every pass by hand within 1e-7 of jax.vjp. Digits, mean of 5 seeds,
test accuracy (%) at 0 / 20 / 40 / 60 % wrong training labels: cross entropy 98.3 / 87.7 / 70.3 / 50.3, smoothing 0.1
99.0 / 89.7 / 71.8 / 50.0, smoothing 0.5 99.0 / 91.8 / 73.8 / 50.3, focal 98.0 / 86.5 / 69.6 / 50.4, squared error
99.2 / 92.2 / 73.7 / 49.8. At 60 % all of them memorize: stopping after 100 steps would have given 80 to 87.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import checks
from experiments.harness.run import Run
from jaxnets import backprop, losses, metrics
from jaxnets.activations import ACTIVATIONS
from jaxnets.data import images
from jaxnets.data.batches import Dataset
from jaxnets.models import mlp
from jaxnets.training import ensemble, loop, state, steps


def squared_error(logits, labels):
    """Sum over the classes of the squared distance between the outputs and the one-hot label."""
    return losses.squared(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)).sum(-1)


LOSSES = {
    "cross entropy": losses.softmax_cross_entropy,
    "smoothing 0.1": functools.partial(losses.softmax_cross_entropy, label_smoothing=0.1),
    "smoothing 0.5": functools.partial(losses.softmax_cross_entropy, label_smoothing=0.5),
    "focal": losses.softmax_focal,
    "squared error": squared_error,
}


@dataclasses.dataclass(frozen=True)
class Config:
    noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)  # shares of training labels replaced by another class
    members: int = 5  # networks per noise level, each from its own seed
    width: int = 256  # hidden units
    steps: int = 1000  # optimizer steps
    batch: int = 128  # examples per step
    lr: float = 1e-3  # Adam's learning rate
    seed: int = 0

    def __post_init__(self):
        checks.positive(self, "members", "width", "steps", "batch", "lr")
        if not self.noise or not all(0 <= share < 1 for share in self.noise):
            raise ValueError(f"--noise must be shares in [0, 1), got {self.noise}")


PRESETS = {"default": Config(), "smoke": Config(noise=(0.0, 0.4), members=2, width=16, steps=3)}


def main(config: Config, run: Run) -> dict[str, float | str]:
    worst = check_passes(run, config.seed)
    train, test = images.digits(seed=config.seed)
    noisy = Dataset(train.x, corrupted(np.asarray(train.y), config))
    done = {row["name"]: row for row in run.rows()}  # of a run that was stopped
    with run.progress(len(LOSSES), unit="losses") as callback:
        for index, name in enumerate(LOSSES, start=1):
            if name not in done:
                done[name] = {"step": index, "name": name, **measure(config, LOSSES[name], noisy, test)}
                callback(done[name])
    rows = [done[name] for name in LOSSES]
    run.figure("noise", functools.partial(draw_noise, config, rows), size=(8, 3.4), gallery=True)
    level = len(config.noise) // 2
    final = {row["name"]: float(np.mean(row["test_accuracy"][level])) for row in rows}
    return {"passes_worst_difference": worst, "noise": config.noise[level], **final}


def check_passes(run: Run, seed: int) -> float:
    """Prints every handwritten pass's largest difference from `jax.vjp`, relative to the gradient's norm; returns the worst."""
    rng = np.random.default_rng(seed)

    def draw(*shape):  # numpy: jax.random would compile a program for each shape
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    tanh = ACTIVATIONS["tanh"]
    elman = backprop.Elman(draw(3, 4), draw(4, 4), draw(4))
    distributions = jnp.asarray(rng.dirichlet(np.ones(4), size=5), jnp.float32)
    passes: dict[str, tuple[Callable, Callable, tuple]] = {
        "dense": (backprop.dense_forward, backprop.dense_backward, (draw(5, 3), draw(3, 4), draw(4))),
        "activation": (
            functools.partial(backprop.activation_forward, function=tanh.function, derivative=tanh.derivative),
            backprop.activation_backward,
            (draw(5, 4),),
        ),
        "convolution": (
            functools.partial(backprop.convolution_forward, stride=2),
            backprop.convolution_backward,
            (draw(2, 7, 7, 3), draw(3, 3, 3, 4), draw(4)),
        ),
        "max pooling": (backprop.max_pool_forward, backprop.max_pool_backward, (draw(2, 6, 6, 3),)),
        "average pooling": (backprop.average_pool_forward, backprop.average_pool_backward, (draw(2, 6, 6, 3),)),
        "cross entropy": (
            backprop.softmax_cross_entropy_forward,
            backprop.softmax_cross_entropy_backward,
            (draw(5, 4), distributions),
        ),
        "Elman step": (backprop.elman_step_forward, backprop.elman_step_backward, (elman, draw(5, 3), draw(5, 4))),
        "Elman, 9 steps": (backprop.elman_forward, backprop.elman_backward, (elman, draw(5, 9, 3), draw(5, 4))),
    }
    worst = 0.0
    for name, (forward, backward, inputs) in passes.items():
        output, residuals = forward(*inputs)
        cotangent = draw(*output.shape)
        _, vjp = jax.vjp(lambda *inputs, forward=forward: forward(*inputs)[0], *inputs)
        by_hand, automatic = backward(residuals, cotangent), vjp(cotangent)
        difference = float(optax.tree.norm(optax.tree.sub(by_hand, automatic)) / optax.tree.norm(automatic))
        run.print(f"  {name:<16} by hand against jax.vjp: {difference:.1e}")
        worst = max(worst, difference)

    def planted(params):  # the gradient of its bias is wrong
        return jnp.sum(jnp.tanh(params["kernel"])) + jnp.sum(jax.lax.stop_gradient(params["bias"]) * params["bias"])

    report = backprop.check_gradients(planted, {"kernel": draw(3, 4), "bias": draw(4)}, key=jax.random.key(seed))
    run.print(f"a mistake planted in the gradient of 'bias' is found in {report.worst.name}:")
    run.print(str(report))
    return worst


def corrupted(labels: np.ndarray, config: Config) -> np.ndarray:
    """Labels `[example, noise level x member]`: the given share of each column moved to another class, uniformly."""
    rng = np.random.default_rng(config.seed)
    columns = []
    for share in np.repeat(config.noise, config.members):
        wrong = rng.permutation(len(labels)) < round(share * len(labels))
        columns.append(np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels))
    return np.stack(columns, axis=1).astype(np.int32)


def measure(config: Config, loss, noisy: Dataset, test: Dataset) -> dict:
    """Trains a network per noise level and seed, all in one program; accuracies on clean test data, [level][member]."""
    model, optimizer = mlp.MLP((config.width, config.width, 10)), optax.adam(config.lr)
    step = steps.make_train_step(steps.supervised(model.apply, loss, accuracy=metrics.correct), optimizer)
    evaluate = steps.make_eval_step(steps.supervised(model.apply, loss, accuracy=metrics.correct))
    create = functools.partial(state.create, model, optimizer, x=noisy.x[:1])
    fitted = loop.fit(
        jax.vmap(step, in_axes=(0, Dataset(None, 1, None))),  # same images, labels of one's own
        ensemble.init(create, jax.random.key(config.seed), len(config.noise) * config.members),
        noisy,
        batch=config.batch,
        steps=config.steps,
        log_every=max(1, config.steps // 20),
        evaluate_every=max(1, config.steps // 20),
        seed=config.seed,
        scan=True,
        evaluate=jax.vmap(evaluate, in_axes=(0, None)),
        test=test,
    )

    def by_level(name):
        return np.array([row[name] for row in fitted.history]).reshape(-1, len(config.noise), config.members)

    return {
        "test_accuracy": by_level("test_accuracy")[-1],
        "steps": [row["step"] for row in fitted.history],
        "curve": by_level("test_accuracy").mean(-1).T,
    }


def draw_noise(config, rows, figure):
    """Accuracy on clean test data: at the end against the noise, and during training at the highest noise."""
    left, right = figure.subplots(1, 2, sharey=True)
    for row in rows:
        values = 100 * np.array(row["test_accuracy"])
        line = left.plot(100 * np.array(config.noise), values.mean(1), "o-", markersize=4, label=row["name"])[0]
        left.fill_between(
            100 * np.array(config.noise), values.min(1), values.max(1), color=line.get_color(), alpha=0.15, linewidth=0
        )
        right.plot(row["steps"], 100 * np.array(row["curve"])[-1])
    left.set(xlabel="wrong training labels (%)", ylabel="test accuracy (%)", title="after training (mean and range)")
    right.set(xlabel="step", title=f"during training, {100 * config.noise[-1]:.0f} % wrong")
    left.legend(fontsize=8)
