"""Diffusion models of digits or Fashion-MNIST: samples, samplers compared, guidance, inpainting, and how good it all is.

Measured 2026-11-23, jax 0.12, one CPU core beside other work, seeds 0 to 2: samples of the 8x8 digits are of the class asked
for in 99.5, 99.3 and 99.4 % (without guidance, by classifiers that are right about 99.3, 98.7 and 98.9 % of real ones), their
Fréchet distance to the held-out images is 2.0, 3.3 and 2.4 times that of the training images, they are 0.90, 0.92 and 0.91
times as far from the nearest training image as held-out ones are, no copies; 20 steps of 2M 0.32, 0.38 and 0.45, 200 of DDPM
0.37, 0.45 and 0.39; 2.74, 2.90 and 2.74 bits per dimension by the flow, the bound 2.55, 2.72 and 2.66. Seed 0 takes 7.0 minutes
on two quiet cores of an AMD EPYC (its samples are the same but for rounding: 1.97 times the floor). Settings were chosen
on a fifth of the training data of seed 1: 480 epochs have 2.1 times the floor there and 0.95 times the distance, 320 had 2.7
and 1.00 (and 0.2 bits less), 480 with a dropout of 0.1 had 2.7 and 0.98. A U-Net (`--network unet --width 48 --levels 2 --depth
1`) learns three times as much in a step (its loss after 192 is 0.37; with the dropout, 0.35 after 576), but makes 3 of them a
second on one core where this network makes 23.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.generation import figures, judge
from experiments.harness import checks
from experiments.harness.run import Run
from jaxnets import metrics, optimizers
from jaxnets.data import batches, images
from jaxnets.diffusion import guidance, likelihood, losses, parametrization, samplers, schedules
from jaxnets.models import denoiser, unet
from jaxnets.proximal import linear
from jaxnets.training import checkpoint, loop, state, steps
from jaxnets.types import InputError

SCHEDULES = {
    "cosine": schedules.cosine,
    "linear": schedules.linear,
    "sigmoid": schedules.sigmoid,
    "edm": schedules.edm,
    "flow": schedules.flow,
}
TIMES = {"even": losses.low_discrepancy, "log-normal": losses.log_normal, "logit-normal": losses.logit_normal}
CHUNK = 500  # images sampled at once


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"  # digits (8x8), fashion-mnist, or a folder with four IDX files
    network: Literal["mlp", "unet"] = "mlp"  # residual blocks of dense layers, or a U-Net with attention at its coarsest level
    width: int = 512  # units of the MLP, or channels of the U-Net's finest level, doubled at each coarser one
    levels: int = 3  # of the U-Net, each of half the size
    depth: int = 4  # blocks, of the U-Net at each level
    dropout: float = 0.0
    schedule: Literal["cosine", "linear", "sigmoid", "edm", "flow"] = "cosine"
    prediction: Literal["x0", "epsilon", "v", "score", "velocity", "edm"] = "v"
    times: Literal["even", "log-normal", "logit-normal"] = "even"  # how times are drawn in training
    unlabeled: float = 0.1  # share of the training images that are shown without their class, for guidance
    epochs: int = 480
    batch: int = 64
    lr: float = 1e-3  # peak learning rate of AdamW: warm-up, then cosine to 0
    weight_decay: float = 0.0  # decoupled, on matrices only
    ema: float = 0.999  # decay of the averaged weights, with which everything is sampled
    steps: int = 20  # of the sampler of sheets and scores, DPM-Solver++ (2M) on the grid of Karras et al.
    guidance: float = 1.0  # scale in the sheets and scores; 1: none
    sheets: int = 5  # times that samples are drawn and scored during training
    samples: int = 2000  # images that are generated for each score, at most as many as training images
    comparisons: bool = True  # compare samplers and scales of guidance
    measured: int = 100  # held-out images of which bits per dimension are measured
    brief: bool = False  # everything once and too short to mean anything: for trying out the experiment
    validate: bool = False  # measure on a fifth of the training data instead of the test data, to choose by
    seed: int = 0  # of the data's split and order, the initialization and all noise

    def __post_init__(self):
        checks.positive(self, "width", "levels", "depth", "epochs", "batch", "lr", "steps", "sheets", "samples", "measured")
        checks.within(self, 0, 1, "dropout", "ema")
        checks.within(self, 0, math.inf, "weight_decay", "guidance")
        if self.samples < 6:
            raise ValueError(f"--samples must be at least 6, each has 5 neighbors in the scores, got {self.samples}")
        if not 0 <= self.unlabeled <= 1:
            raise ValueError(f"--unlabeled must be in [0, 1], got {self.unlabeled}")
        if self.guidance != 1 and not self.unlabeled:
            raise ValueError("--guidance needs --unlabeled above 0: the network never learns what images look like of no class")
        schedule = SCHEDULES[self.schedule]()
        parametrization.check("--prediction", schedule, self.prediction)


PRESETS = {
    "default": Config(),
    "fashion": Config(
        data="fashion-mnist", network="unet", width=16, depth=1, epochs=2, sheets=3, samples=1000, comparisons=False, measured=8
    ),
    "smoke": Config(width=8, depth=1, epochs=1, steps=2, sheets=1, samples=20, measured=2, brief=True),
}


def main(config: Config, run: Run) -> dict[str, float]:
    train, test, names, levels = load(config, run)
    gallery = config.data == "digits"  # README shows of other data only the sheet
    schedule, shape = SCHEDULES[config.schedule](), train.x.shape[1:]
    model = network(config, len(names))
    per_epoch = batches.steps_per_epoch(len(train), config.batch)
    total = config.epochs * per_epoch
    rate = optimizers.warmup_cosine(
        config.lr, epochs=config.epochs, steps_per_epoch=per_epoch, warmup_epochs=config.epochs / 20
    )
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay, mask=optimizers.decay_mask())
    loss = losses.denoising(
        model.apply,
        schedule,
        config.prediction,
        times=TIMES[config.times](),
        inputs={"label": "y"},
        unlabeled=config.unlabeled,
    )
    step = steps.make_train_step(loss, optimizer, clip=1.0, ema=steps.ema_warmup(config.ema))

    def create(key, x):
        for_weights, for_training = jax.random.split(key)
        variables = model.init(for_weights, x, jnp.ones(()), jnp.zeros(len(x), jnp.int32))
        return state.from_params(variables["params"], optimizer, for_training, ema=True)

    trained = jax.jit(create)(jax.random.key(config.seed), jnp.asarray(train.x[:1]))
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    run.print(f"{len(train):,} training and {len(test):,} test images, {count:,} parameters")
    jury = judge.train(train, test, len(names), steps_at_least=min(600, 10 * total), seed=config.seed)
    run.print(f"the classifier that judges is right about {100 * jury.accuracy:.1f} % of the test images")

    def denoise(params, x, t, label=None):
        apply = functools.partial(model.apply, {"params": params})
        return parametrization.to_denoiser(apply, schedule, config.prediction)(x, t, label=label)

    labels = np.random.default_rng(config.seed).permutation(train.y)[: config.samples]
    sample = Generator(denoise, schedule, shape, config.seed)
    best = samplers.dpmpp_2m(), schedules.karras(config.steps)
    sheet_labels = np.repeat(np.arange(len(names)), 8)

    def show(params, row):
        """A sheet of samples and their scores, at one moment of training."""
        made = sample(params, *best, labels, scale=config.guidance)
        scores = judge.scores(jury, made, labels, train, test)
        run.log({"kind": "samples", **row, **scores})
        sheet = sample(params, *best, sheet_labels, scale=config.guidance)
        shown = [sheet[np.arange(len(sheet)).reshape(len(names), 8).T.ravel()]]
        title = f"epoch {row['epoch']:.3g}: Fréchet distance {scores['frechet']:.2f}"
        drawn = functools.partial(figures.draw_sheet, shown, len(names), [title])
        run.figure("samples" if gallery else f"samples_{config.network}", drawn, size=(6, 5.2), gallery=True)
        return scores, sheet

    saved = checkpoint.Checkpointer(run.checkpoints, config=config)
    scores, sheet = {}, np.zeros((0, *shape))
    with saved, run.progress(total) as callback:
        found = saved.latest_good(trained)
        ends = [max(1, total * (part + 1) // config.sheets) for part in range(config.sheets)]
        for end in (end for end in ends if found is None or end >= found[0]):
            fitted = loop.fit(
                step,
                trained,
                train,
                batch=config.batch,
                steps=end,
                seed=config.seed,
                evaluate=steps.make_eval_step(loss, ema=True),
                test=test,
                log_every=max(1, total // 50),
                evaluate_every=max(1, total // 10),
                checkpoint=saved,
                checkpoint_every=max(1, total // 10),
                callback=callback,
            )
            trained, done = fitted.state, loop.position(fitted.state)
            scores, sheet = show(trained.ema, {"step": done, "epoch": done / per_epoch})
    params = trained.ema
    run.figure("learning", functools.partial(figures.draw_learning, run.rows()), size=(8, 3), gallery=gallery)
    draw_trajectories(run, sample, params, test, schedule, gallery)
    summary = {**scores, "judge_accuracy": jury.accuracy, "parameters": count}
    distance = functools.partial(quality, jury, jury.features(test.x))
    if config.comparisons:
        summary |= compare_samplers(config, run, functools.partial(sample, params), distance, labels, scores["frechet_floor"])
    if config.comparisons and config.unlabeled:
        sweep_guidance(config, run, functools.partial(sample, params, *best), distance, labels, sheet_labels)
    inpaint(run, sample, params, test, config)
    draw_nearest(run, sheet, train)
    summary |= bits(sample, params, test, levels, config)
    return summary


def load(config: Config, run: Run) -> tuple[batches.Dataset, batches.Dataset, tuple[str, ...], int]:
    """Images in [-1, 1]: to train on, to measure on, their classes, and how many gray levels they have."""
    if config.data == "digits":
        (train, test), names, levels = images.digits(seed=config.seed), tuple("0123456789"), 17
    else:
        train, test = images.fashion_mnist(None if config.data == "fashion-mnist" else config.data)
        names = images.FASHION_MNIST_CLASSES if config.data == "fashion-mnist" else tuple("0123456789")
        levels = 256
    if config.validate:
        train, test = batches.split(train, 0.2, seed=config.seed)
    train, test = (dataclasses.replace(part, x=2 * np.asarray(part.x) - 1) for part in (train, test))
    low, high = float(train.x.min()), float(train.x.max())
    if low < -1 or high > 1:
        run.print(f"warning: images should lie in [-1, 1], these lie in [{low:g}, {high:g}]")
    multiple = 2 ** (config.levels - 1)
    if config.network == "unet" and any(side % multiple for side in train.x.shape[1:3]):
        raise InputError(
            f"--levels {config.levels} needs images whose sides are multiples of {multiple}, got {train.x.shape[1:3]}"
        )
    return train, test, names, levels


def network(config: Config, classes: int) -> Any:
    if config.network == "mlp":
        return denoiser.MLPDenoiser(config.width, config.depth, classes=classes, dropout=config.dropout)
    widths = tuple(config.width * 2**level for level in range(config.levels))
    return unet.UNet(widths, depth=config.depth, attention_levels=(config.levels - 1,), classes=classes, dropout=config.dropout)


class Generator:
    """`sample(params, sampler, grid, labels, scale=)`: images in [-1, 1], drawn in chunks from noise of the seed."""

    def __init__(self, denoise: Any, schedule: schedules.Schedule, shape: tuple[int, ...], seed: int):
        self.denoise, self.schedule, self.shape = denoise, schedule, shape
        self.key = jax.random.key(seed + 1)
        self.compiled = {}  # a sheet after each part of the training is the same program

    def guided(self, params: Any, scale: float) -> Any:
        denoise = functools.partial(self.denoise, params)
        return denoise if scale == 1 else guidance.classifier_free(denoise, scale)

    def __call__(self, params: Any, sampler: Any, grid: Any, labels: Any, *, scale: float = 1.0) -> np.ndarray:
        def draw(params, key, label):
            return samplers.sample(
                sampler, self.guided(params, scale), self.schedule, grid, key, (len(label), *self.shape), label=label
            )

        draw, made = self.compiled.setdefault((sampler, grid, scale), jax.jit(draw)), []
        for index, low in enumerate(range(0, len(labels), CHUNK)):
            some = jnp.asarray(labels[low : low + CHUNK])
            made.append(np.asarray(draw(params, jax.random.fold_in(self.key, index), some)))
        return np.clip(np.concatenate(made), -1, 1)


def draw_trajectories(
    run: Run, sample: Generator, params: Any, test: batches.Dataset, schedule: schedules.Schedule, gallery: bool
) -> None:
    grid = schedules.karras(10, smallest=0.05, largest=20)
    times = grid(schedule)
    x = jnp.asarray(test.x[:4])
    noise = jax.random.normal(sample.key, x.shape)
    forward = [np.asarray(parametrization.noisy(x, noise, t, schedule)) for t in times[::-1][:-1]]

    def path(params, label):
        denoise = sample.guided(params, 1.0)
        options = {"trajectory": True, "label": label}
        return samplers.sample(samplers.dpmpp_2m(), denoise, schedule, grid, sample.key, x.shape, **options)[1]

    seen = jax.jit(lambda params, label: path(params, label)[1:])(params, jnp.asarray(test.y[:4]))
    reverse, guesses = (np.asarray(part) for part in seen)
    ratios = schedule.ratio(times)
    draw = functools.partial(
        figures.draw_trajectories, forward, list(reverse[:-1]), list(guesses), ratios[::-1][:-1], ratios[:-1]
    )
    run.figure("trajectories", draw, size=(9, 8), gallery=gallery)


def quality(jury: judge.Judge, features: Any, made: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Fréchet distance to the held-out images, and the share of samples of the class that was asked for."""
    distance = metrics.frechet(jury.features(made), features)
    return {"frechet": float(distance), "class_accuracy": float(np.mean(jury.labels(made) == labels))}


def compare_samplers(
    config: Config, run: Run, sample: Any, distance: Any, labels: np.ndarray, floor: float
) -> dict[str, float]:
    """Fréchet distance of every sampler at 5 to 50 evaluations of the network, and of 200 steps of DDPM."""
    kinds = {
        "DDPM": (samplers.ddpm(), 1),
        "DPM-Solver++ (2M)": (samplers.dpmpp_2m(), 1),
        "DDIM": (samplers.ddim(), 1),
        "Heun": (samplers.heun(), 2),
        "DPM-Solver++ (3M)": (samplers.dpmpp_3m(), 1),
        "SDE (2M)": (samplers.dpmpp_2m_sde(), 1),
        "UniPC": (samplers.unipc(), 1),
    }
    kinds = dict(list(kinds.items())[:1]) if config.brief else kinds
    evaluations = (5,) if config.brief else (5, 10, 20, 50)
    curves = {}
    for name, (sampler, cost) in kinds.items():
        # The step to the data needs one evaluation only: n steps of Heun make 2 n - 1.
        distances = [
            distance(sample(sampler, schedules.karras(-(-count // cost)), labels), labels)["frechet"] for count in evaluations
        ]
        curves[name] = (evaluations, distances)
        for count, value in zip(evaluations, distances, strict=True):
            run.log({"kind": f"{name} by evaluations", "step": count, "frechet": value})
    run.figure(
        "samplers", functools.partial(figures.draw_samplers, curves, floor), size=(7, 4.2), gallery=config.data == "digits"
    )
    if config.brief:
        return {}
    many = distance(sample(samplers.ddpm(), schedules.karras(200), labels), labels)["frechet"]
    return {"frechet_2m_20": curves["DPM-Solver++ (2M)"][1][2], "frechet_ddpm_200": many}


def sweep_guidance(config: Config, run: Run, sample: Any, distance: Any, labels: np.ndarray, sheet_labels: np.ndarray) -> None:
    scales = (1.0, 2.0) if config.brief else (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    rows = [distance(sample(labels, scale=scale), labels) for scale in scales]
    for index, (scale, row) in enumerate(zip(scales, rows, strict=True)):
        run.log({"kind": "guidance", "step": index, "scale": scale, **row})
    shown = {scale: sample(sheet_labels[::2], scale=scale) for scale in scales if scale in (0.0, 1.0, 2.0, 5.0)}
    run.figure(
        "guidance",
        functools.partial(figures.draw_guidance, scales, rows, shown, 8),
        size=(9, 4.8),
        gallery=config.data == "digits",
    )


def inpaint(run: Run, sample: Generator, params: Any, test: batches.Dataset, config: Config) -> None:
    """The lower halves of test images, hidden and drawn anew by several methods."""
    x = jnp.asarray(test.x[:10])
    label = jnp.asarray(test.y[:10])
    known = jnp.broadcast_to(jnp.arange(x.shape[1])[:, None, None] < x.shape[1] // 2, x.shape[1:])
    schedule, grid = sample.schedule, schedules.karras(config.steps)
    observed = linear.mask(known)

    def draw(sampler, correct, params, grid=grid):
        denoise = correct(sample.guided(params, 1.0))
        return samplers.sample(sampler, denoise, schedule, grid, sample.key, x.shape, label=label)

    def plain(denoise):
        return denoise

    def posterior(denoise):
        return guidance.pigdm(denoise, schedule, observed, jax.vmap(observed)(x), noise=0.02, data_std=0.8)

    methods: dict[str, Any] = {
        "replacement": (guidance.replacement(samplers.ddim(1.0), known, x), plain),
        "RePaint": (guidance.repaint(samplers.ddim(1.0), known, x, jump_length=min(10, config.steps)), plain),
        "ΠGDM": (samplers.heun(), posterior),
    }
    methods = dict(list(methods.items())[:1]) if config.brief else methods
    rows = {"image": np.asarray(x), "known": np.where(known, x, 0.0)}
    for name, (sampler, correct) in methods.items():
        rows[name] = np.clip(np.asarray(jax.jit(functools.partial(draw, sampler, correct))(params)), -1, 1)
    run.figure("inpainting", functools.partial(figures.draw_rows, rows), size=(8, 4.4), gallery=config.data == "digits")


def draw_nearest(run: Run, sheet: np.ndarray, train: batches.Dataset) -> None:
    """Samples above the training images that are nearest to them."""
    some = sheet[:: max(1, len(sheet) // 12)][:12]
    flat = [jnp.asarray(part.reshape(len(part), -1)) for part in (some, train.x)]
    index = np.asarray(metrics.nearest(*flat).index[:, 0])
    rows = {"sample": some, "nearest in\ntraining": train.x[index]}
    run.figure("nearest", functools.partial(figures.draw_rows, rows), size=(8, 1.9))


def bits(sample: Generator, params: Any, test: batches.Dataset, levels: int, config: Config) -> dict[str, float]:
    """Bits per dimension of held-out images: by the flow, of images with noise over their levels, and the bound."""
    some = test[: config.measured]
    x, label, dimensions = jnp.asarray(some.x), jnp.asarray(some.y), math.prod(some.x.shape[1:])
    for_flow, for_bound, for_levels = jax.random.split(sample.key, 3)
    spread = x + jax.random.uniform(for_levels, x.shape, minval=-1.0, maxval=1.0) / (levels - 1)
    grid = likelihood.flow_grid(2 if config.brief else 100)
    # Down to noise of a quarter of a bin: below it the bound would ask for digits that the data don't have.
    chain = schedules.karras(2 if config.brief else 200, smallest=0.5 / (levels - 1))

    @jax.jit
    def measured(params):
        denoise = sample.guided(params, 1.0)
        flow = likelihood.log_likelihood(denoise, sample.schedule, spread, for_flow, grid=grid, probes=4, label=label)
        bound = likelihood.variational_bound(denoise, sample.schedule, chain, x, for_bound, levels=levels, label=label)
        # Of the mean over the images: what they differ by, random probes included.
        return flow.log_p.mean(), flow.log_p.std() / math.sqrt(len(x)), bound.total.mean()

    log_p, error, bound = measured(params)
    return {
        "bits_per_dimension": float(likelihood.bits_per_dimension(log_p, dimensions, bin_width=2 / (levels - 1))),
        "bits_standard_error": float(error / dimensions / math.log(2)),
        "bound_bits_per_dimension": float(likelihood.bits_per_dimension(-bound, dimensions, bin_width=1)),
    }
