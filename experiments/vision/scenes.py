"""What the experiments `fcn` and `pspnet` share: data, training, measuring, and a baseline that sees one pixel at a time."""

import dataclasses
import functools
import io
import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import checks, figures, report
from experiments.harness.run import Run, identity, write
from experiments.vision import overlays
from jaxnets import inference, losses, metrics, optimizers
from jaxnets.data import augment, batches, mosaics, segmentation
from jaxnets.training import checkpoint, loop, state, steps
from jaxnets.types import InputError

SHOWN = 4  # test images in a figure


@dataclasses.dataclass(frozen=True)
class Config:
    data: str | None = None  # a folder in the given layout; None: mosaics of photographs that scikit-image ships
    layout: Literal["camvid", "voc", "cityscapes", "ade20k"] = "camvid"  # of the folder
    size: tuple[int, int] | None = None  # height and width to fit the images into; None: they are all alike
    images: int = 6400  # mosaics to train on
    width: int = 16  # channels of the backbone's first stage; a ResNet-18 has 64
    crop: int = 96  # pixels, height and width of a training image
    scale: tuple[float, float] = (1.0, 1.0)  # range of a training image's magnification
    rotation: float = 0.0  # degrees, at most
    color: float = 0.0  # strength of random brightness, contrast and saturation
    balance: float = 0.0  # power of the median-frequency weights of the classes: 0 all alike, 1 rare ones fully
    batch: int = 16  # images per step
    epochs: int = 4
    lr: float = 0.1  # at first, of SGD with momentum 0.9; polynomial decay with power 0.9
    weight_decay: float = 5e-4  # on kernels only
    scales: tuple[float, ...] = (1.0,)  # of the test images, whose probabilities are averaged
    mirror: bool = False  # averages test images with their mirror images too
    validate: bool = False  # measure on a part of the training data instead of the test data, to choose by
    seed: int = 0  # of the mosaics, the order, the initialization and the augmentation
    # The folder of a finished run on the same data, to draw beside this one.
    beside: str | None = dataclasses.field(default=None, metadata={"of_run": False})

    def __post_init__(self):
        checks.positive(self, "images", "width", "crop", "batch", "epochs", "lr")
        checks.within(self, 0, math.inf, "weight_decay", "balance", "rotation")
        checks.within(self, 0, 1, "color")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"--scale must be two positive numbers, the smaller first, got {self.scale}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"--scales must be positive numbers, at least one, got {self.scales}")


@dataclasses.dataclass(frozen=True)
class Task:
    """Images in [0, 1] with labels, to train on and to measure on."""

    train: batches.Dataset
    test: batches.Dataset
    classes: segmentation.Classes
    mean: np.ndarray  # of each channel of the training images
    deviation: np.ndarray


def load(config: Config) -> Task:
    if config.data is None:
        palette = np.array([list(bytes.fromhex(color[1:])) for color in figures.PALETTE])
        classes = segmentation.Classes(mosaics.CLASSES, palette[: len(mosaics.CLASSES)])
        train = mosaics.make(config.images, seed=config.seed, part="fit" if config.validate else "train")
        test = mosaics.make(max(SHOWN, config.images // 4), seed=config.seed, part="validation" if config.validate else "test")
    else:
        train, classes = segmentation.read(config.data, layout=config.layout, size=config.size)
        test, _ = segmentation.read(config.data, layout=config.layout, size=config.size, split="val")
        if config.validate:
            if len(train) < 2:
                raise InputError(f"--validate needs at least 2 training images, got {len(train)}")
            # Not drawn: neighbors in a folder are often frames of one film.
            last = min(round(0.85 * len(train)), len(train) - 1)
            train, test = train[:last], train[last:]
    return Task(train, test, classes, train.x.mean((0, 1, 2)), train.x.std((0, 1, 2)))


def augmentation(config: Config) -> Callable:
    tones = functools.partial(augment.random_color, brightness=config.color, contrast=config.color, saturation=config.color)

    def augmented(key, batch):
        place, tone = jax.random.split(key)
        size = (config.crop, config.crop)
        x, y = augment.random_affine(place, batch.x, batch.y, size=size, scale=config.scale, rotation=config.rotation)
        return dataclasses.replace(batch, x=tones(tone, x), y=y)

    return augmented


def learn(config: Config, run: Run, build: Callable[[int], Any], loss: Callable, *, logits: Callable) -> dict[str, float]:
    """Trains `build(classes)`, measures it beside the baselines, and draws; `logits(outputs)` are its final scores."""
    task = load(config)
    names, void = task.classes.names, segmentation.VOID
    shown = np.linspace(0, len(task.test) - 1, SHOWN).astype(int)
    others = beside(config, task.test.y[shown])  # before the training: a wrong folder must not cost it
    model = build(len(names))
    fitting(config, task)

    def apply(variables, x, **options):
        mean, deviation = (jnp.asarray(values, x.dtype)[None, None, None] for values in (task.mean, task.deviation))
        return model.apply(variables, (x - mean) / deviation, **options)

    rare = jnp.asarray(segmentation.class_weights(task.train.y, len(names)), jnp.float32)
    weigh = functools.partial(
        losses.target_weights, class_weights=rare**config.balance if config.balance else None, ignore_index=void
    )
    per_epoch = batches.steps_per_epoch(len(task.train), config.batch)
    total = config.epochs * per_epoch
    schedule = optimizers.poly(
        config.lr, epochs=config.epochs, steps_per_epoch=per_epoch, warmup_epochs=min(1, config.epochs / 20)
    )
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, optimizers.decay_mask()), optax.sgd(schedule, momentum=0.9)
    )
    loss_fn = steps.augmented(steps.supervised(apply, loss, weights=weigh), augmentation(config))
    create = functools.partial(state.create, model, optimizer)
    network = jax.jit(create)(jax.random.key(config.seed), jnp.asarray(task.train.x[:1, : config.crop, : config.crop]))
    count = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    run.print(f"{len(task.train)} training and {len(task.test)} test images, {len(names)} classes, {count:,} parameters")

    def measure(state, batch):
        """Sums over the pixels that count; the confusion matrix is one of them."""
        scores = logits(apply({"params": state.params, **state.carry}, batch.x, train=False))
        values = losses.softmax_cross_entropy(scores, batch.y, ignore_index=void)
        matrix = metrics.confusion(scores.argmax(-1), batch.y, classes=len(names), ignore_index=void)
        return matrix.sum(), {"loss": values.sum(), "confusion": matrix}

    saved = checkpoint.Checkpointer(run.checkpoints, config=identity(config))
    with saved, run.progress(total) as callback:
        fitted = loop.fit(
            steps.make_train_step(loss_fn, optimizer),
            network,
            task.train,
            batch=config.batch,
            steps=total,
            seed=config.seed,
            evaluate=measure,
            test=task.test,
            log_every=max(1, per_epoch // 2),
            evaluate_every=per_epoch * max(1, config.epochs // 20),
            checkpoint=saved,
            checkpoint_every=per_epoch * max(1, config.epochs // 20),
            callback=lambda row: callback(readable(row)),
        )
    variables = {"params": fitted.state.params, **fitted.state.carry}
    predict = jax.jit(lambda x: logits(apply(variables, x, train=False)))
    guesses = np.stack([predicted(config, predict, x) for x in task.test.x])
    scores = score(guesses, task.test.y, len(names))
    baselines = {
        "majority class": score(majority(task), task.test.y, len(names)),
        "logistic regression of a pixel": score(pixelwise(task, config.seed), task.test.y, len(names)),
    }
    for title, values in {**baselines, run.name: scores}.items():
        run.print(f"{title:<32} mean IoU {values.mean_iou:.3f}, pixel accuracy {values.pixel_accuracy:.3f}")
    for name, value in zip(names, scores.iou, strict=True):
        run.print(f"    {name:<16} IoU {value:.3f}")

    keep(run, guesses[shown].astype(np.uint8), task.test.y[shown])
    columns = {"truth": task.test.y[shown], run.name: guesses[shown]} | others
    size = (2.3 * (1 + len(columns)), 2.3 * SHOWN * task.test.y.shape[1] / task.test.y.shape[2] + 0.8)
    draw = functools.partial(overlays.draw, task.test.x[shown], columns, task.classes)
    run.figure("overlays", draw, size=size, gallery=True)
    draw = functools.partial(overlays.draw_iou, {**baselines, run.name: scores}, names)
    run.figure("classes", draw, size=(8, 4), gallery=True)
    run.figure("learning", functools.partial(overlays.draw_learning, run.rows()), size=(8, 3), gallery=True)
    return {
        "mean_iou": float(scores.mean_iou),
        "pixel_accuracy": float(scores.pixel_accuracy),
        "baseline_mean_iou": float(baselines["logistic regression of a pixel"].mean_iou),
        "parameters": count,
    }


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row of history with the scores of its confusion matrix instead of the matrix."""
    matrix = row.pop("test_confusion", None)
    if matrix is None:
        return row
    matrix = jnp.asarray(matrix)
    return row | {
        "test_mean_iou": float(metrics.mean_iou(matrix)),
        "test_pixel_accuracy": float(metrics.pixel_accuracy(matrix)),
    }


def fitting(config: Config, task: Task) -> None:
    """Raises, before any training, where batches or the windows of test images would take too much memory."""
    taken = 4 * config.batch * config.crop**2 * task.train.x.shape[3]
    if taken > inference.LIMIT:
        raise InputError(f"--crop {config.crop} and --batch {config.batch} make a batch of {taken / 2**30:.0f} GiB")
    if config.scales != (1.0,) or config.mirror:

        def pointwise(x):
            return jnp.zeros((*x.shape[:3], len(task.classes.names)))

        windows = functools.partial(inference.sliding_window, pointwise, crop=config.crop, scales=config.scales)
        try:
            jax.eval_shape(windows, jax.ShapeDtypeStruct(task.test.x.shape[1:], jnp.float32))
        except ValueError as error:
            raise InputError(f"--crop or --scales: {error}") from error


def predicted(config: Config, predict: Callable, x: np.ndarray) -> np.ndarray:
    """Labels of one image: at its own size where one scale is enough, else by windows of the training images' size."""
    if config.scales == (1.0,) and not config.mirror:
        return np.asarray(predict(x[None])[0].argmax(-1))
    options = {"crop": config.crop, "scales": config.scales, "flip": config.mirror, "fill": float(x.mean())}
    return np.asarray(inference.sliding_window(predict, jnp.asarray(x), **options))


def score(guesses: np.ndarray, truth: np.ndarray, classes: int) -> Any:
    matrix = metrics.confusion(jnp.asarray(guesses), jnp.asarray(truth), classes=classes, ignore_index=segmentation.VOID)
    return jax.device_get(metrics.segmentation(matrix))


def majority(task: Task) -> np.ndarray:
    """The training pixels' most frequent class everywhere."""
    labels = task.train.y[task.train.y != segmentation.VOID]
    return np.full(task.test.y.shape, np.bincount(labels).argmax(), np.int32)


def pixelwise(task: Task, seed: int, pixels: int = 20_000) -> np.ndarray:
    """Multinomial logistic regression from a pixel's color, its squares and products, and its place."""
    from sklearn.linear_model import LogisticRegression

    def features(x, chosen):
        image, row, column = np.unravel_index(chosen, x.shape[:3])
        place = np.stack([row / x.shape[1], column / x.shape[2]], axis=1)
        base = np.concatenate([(x[image, row, column] - task.mean) / task.deviation, 2 * place - 1], axis=1)
        return np.concatenate([base, *(base[:, : i + 1] * base[:, i : i + 1] for i in range(base.shape[1]))], axis=1)

    rng = np.random.default_rng(seed)
    labels = task.train.y.ravel()
    chosen = rng.choice(
        np.flatnonzero(labels != segmentation.VOID), min(pixels, (labels != segmentation.VOID).sum()), replace=False
    )
    if len(np.unique(labels[chosen])) == 1:
        return majority(task)
    model = LogisticRegression(max_iter=1000).fit(features(task.train.x, chosen), labels[chosen])
    everywhere = np.arange(task.test.y[0].size)
    return np.stack([model.predict(features(x[None], everywhere)).reshape(x.shape[:2]) for x in task.test.x])


def keep(run: Run, guesses: np.ndarray, truth: np.ndarray) -> None:
    """Writes what is drawn, for the figure of another run beside this one."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, guesses=guesses, truth=truth)
    write(run.folder / "shown.npz", buffer.getvalue())


def beside(config: Config, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The predictions that the run in `config.beside` drew, by its name; none without it."""
    if config.beside is None:
        return {}
    folder = pathlib.Path(config.beside)
    try:
        with np.load(folder / "shown.npz", allow_pickle=False) as file:
            guesses, same = file["guesses"], np.array_equal(file["truth"], truth)
        name = report.read(folder / "env.json")["experiment"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"--beside {config.beside}: expected the folder of a finished run of fcn or pspnet ({error})"
        ) from None
    if not same:
        raise InputError(f"--beside {config.beside}: expected a run on the same images (data, --images, --seed, --validate)")
    return {name: guesses}
