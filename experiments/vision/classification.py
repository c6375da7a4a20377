"""Classifying images: the data, curves, mistakes, and what a network looks at."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import figures
from jaxnets import metrics
from jaxnets.data import batches, images


def load(config: Any):
    """Training data, the data to measure on, and the classes' names."""
    if config.data == "digits":
        (train, test), names = images.digits(seed=config.seed), tuple("0123456789")
    else:
        train, test = images.fashion_mnist(None if config.data == "fashion-mnist" else config.data)
        names = images.FASHION_MNIST_CLASSES if config.data == "fashion-mnist" else tuple("0123456789")
    if config.validate:
        train, test = batches.split(train, 0.1, seed=config.seed)
    return train, test, names


def log_probabilities(logits, x, *, mirror: bool = False):
    """Of each class; with `mirror`, of the mean of an image's probabilities and its mirror image's."""
    views = [x, x[:, :, ::-1]] if mirror else [x]
    each = jnp.stack([jax.nn.log_softmax(logits(view)) for view in views])
    return jax.nn.logsumexp(each, axis=0) - math.log(len(views))


def draw_learning(rows, figure):
    """Loss and error of every member against the epoch."""
    rows = [row for row in rows if "test_loss" in row]
    epochs = [row["epoch"] for row in rows]
    left, right = figure.subplots(1, 2)
    for name, style in (("loss", {"label": "training"}), ("test_loss", {"label": "test"})):
        curves = np.array([np.atleast_1d(row[name]) for row in rows], float)
        line = left.plot(epochs, curves.mean(1), **style)[0]
        left.fill_between(epochs, curves.min(1), curves.max(1), color=line.get_color(), alpha=0.2, linewidth=0)
        accuracy = np.array([np.atleast_1d(row[name.replace("loss", "accuracy")]) for row in rows], float)
        right.plot(epochs, 100 * (1 - accuracy), color=line.get_color(), linewidth=0.8, alpha=max(0.25, 1 / accuracy.shape[1]))
    titles = ("mean and range over members", "every member") if curves.shape[1] > 1 else ("", "")
    left.set(xlabel="epoch", ylabel="cross entropy", yscale="log", title=titles[0])
    left.legend()
    right.set(xlabel="epoch", ylabel="error (%)", yscale="log", title=titles[1])
    for axes in (left, right):
        figures.plain_log(axes.yaxis)


def draw_mistakes(test, log_probabilities, names, figure):
    """The confusion matrix, and the mistakes made with the greatest confidence."""
    predicted = log_probabilities.argmax(-1)
    metric = metrics.confusion_matrix(len(names))
    counts = np.asarray(metric.compute(metric.update(metric.init(), jnp.asarray(predicted), jnp.asarray(test.y))))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    axes.imshow(np.log1p(counts), cmap="Blues")
    for (true, guess), count in np.ndenumerate(counts):
        if count:
            axes.text(
                guess, true, int(count), ha="center", va="center", fontsize=6, color="white" if true == guess else "black"
            )
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    wrong = np.flatnonzero(predicted != test.y)
    worst = wrong[np.argsort(-log_probabilities.max(-1)[wrong])][:12]
    for axes, i in itertools.zip_longest(right.subplots(3, 4).flat, worst):
        axes.axis("off")
        if i is not None:
            axes.imshow(test.x[i, ..., 0], cmap="gray_r")
            axes.set_title(f"{names[predicted[i]]}\nis {names[test.y[i]]}", fontsize=7)


def draw_filters(kernel, figure):
    """First-layer filters `[rows, columns, channels, filters]`, each scaled to its own largest weight; gray is zero."""
    kernel = np.asarray(kernel)
    filters = kernel / np.abs(kernel).max((0, 1, 2), keepdims=True) / 2 + 0.5
    columns = min(8, filters.shape[-1])
    for axes, index in itertools.zip_longest(
        figure.subplots(-(-filters.shape[-1] // columns), columns).flat, range(filters.shape[-1])
    ):
        axes.axis("off")
        if index is not None:
            axes.imshow(filters[:, :, 0, index] if filters.shape[2] == 1 else filters[..., index], cmap="gray", vmin=0, vmax=1)


def saliency(predict, x, key, *, draws: int = 25, noise: float = 0.1):
    """`|d score of the predicted class / d x|`, averaged over noisy copies of `x` and summed over channels.

    Source: Simonyan et al. (2014), arXiv:1312.6034; the noise: Smilkov et al. (2017), arXiv:1706.03825.
    """
    guess = predict(x).argmax(-1)
    slope = jax.grad(lambda x: jnp.take_along_axis(predict(x), guess[:, None], 1).sum())
    noisy = x[None] + noise * jax.random.normal(key, (draws, *x.shape), x.dtype)
    return jnp.abs(jax.lax.map(slope, noisy)).mean(0).sum(-1), guess


def draw_saliency(x, maps, labels, guesses, names, figure):
    """Images above what the network's score for its answer depends on."""
    rows = figure.subplots(2, len(x))
    for top, bottom, image, strength, label, guess in zip(*rows, x, maps, labels, guesses, strict=True):
        gray = image[..., 0] if image.shape[-1] == 1 else image
        top.imshow(gray, cmap="gray_r")
        top.set_title(names[label] if label == guess else f"{names[guess]}\nis {names[label]}", fontsize=7)
        bottom.imshow(strength, cmap="magma", vmax=np.quantile(strength, 0.995))
        for axes in (top, bottom):
            axes.axis("off")
