"""Judging generated images by a classifier that is trained here: its features, its opinion of their classes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets import losses, metrics, optimizers
from jaxnets.data import batches
from jaxnets.models import resnet
from jaxnets.training import loop, state, steps

BATCH = 500  # images at once
LIMIT = 2000  # samples of each set in neighbor searches and figures of curves


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier: `features(x)` of each image, `[image, feature]`, and `labels(x)`."""

    model: Any
    variables: Any
    accuracy: float  # on held-out images

    def features(self, x: Any) -> jax.Array:
        return _chunked(functools.partial(_features, self.model), self.variables, x)

    def labels(self, x: Any) -> np.ndarray:
        return np.asarray(_chunked(functools.partial(_labels, self.model), self.variables, x))


def train(images: batches.Dataset, held_out: batches.Dataset, classes: int, *, steps_at_least: int, seed: int) -> Judge:
    """A residual network of 8 layers trained on the same images that the diffusion model sees."""
    model = resnet.cifar_resnet(8, width=16, classes=classes)
    batch = min(128, len(images))
    per_epoch = batches.steps_per_epoch(len(images), batch)
    epochs = max(1, -(-steps_at_least // per_epoch))
    optimizer = optax.chain(
        optax.add_decayed_weights(5e-4, optimizers.decay_mask()),
        optax.sgd(
            optimizers.warmup_cosine(0.1, epochs=epochs, steps_per_epoch=per_epoch, warmup_epochs=epochs / 5), momentum=0.9
        ),
    )
    loss = steps.supervised(model.apply, losses.softmax_cross_entropy, accuracy=metrics.correct)
    network = jax.jit(functools.partial(state.create, model, optimizer))(jax.random.key(seed), images.x[:1])
    fitted = loop.fit(steps.make_train_step(loss, optimizer), network, images, batch=batch, epochs=epochs, seed=seed)
    measured = loop.evaluate(steps.make_eval_step(loss), fitted.state, held_out, batch=BATCH)
    return Judge(model, {"params": fitted.state.params, **fitted.state.carry}, float(measured["accuracy"]))


def scores(judge: Judge, samples: Any, labels: Any, training: batches.Dataset, held_out: batches.Dataset) -> dict[str, float]:
    """Everything that is measured of conditional samples, as many as there are labels."""
    made, real, new = (judge.features(x) for x in (samples, training.x, held_out.x))
    # Copies are looked for in all training images.
    near = metrics.memorization(*(jnp.asarray(_flat(x)) for x in (samples[:LIMIT], training.x, held_out.x[:LIMIT])))
    manifold = metrics.manifold_scores(new[:LIMIT], made[:LIMIT])
    floor = metrics.frechet(real[: len(made)], new)
    distance = metrics.frechet(made, new)
    values = {
        "frechet": distance,
        "frechet_floor": floor,
        "frechet_ratio": distance / floor,
        "class_accuracy": np.mean(judge.labels(samples) == np.asarray(labels)),
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": manifold.density,
        "coverage": manifold.coverage,
        "nearest_ratio": near.ratio,
        "copies": near.copies,
        "held_out_copies": near.held_out_copies,
    }
    return {name: float(value) for name, value in values.items()}


def _features(model, variables, x):
    return model.apply(variables, x, method="features")[f"stage{len(model.depths)}"].mean((1, 2))


def _labels(model, variables, x):
    return model.apply(variables, x).argmax(-1)


def _flat(x):
    return np.asarray(x).reshape(len(x), -1)


def _chunked(function, variables, x):
    function = jax.jit(function)
    return jnp.concatenate([function(variables, jnp.asarray(part)) for part in np.array_split(x, -(-len(x) // BATCH))])
