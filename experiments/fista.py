"""Seismic inversion by FISTA: from gradient descent to sparse reflectivity, on a synthetic survey or on field data.

Measured 2026-11-22, 2 CPU cores beside a test run, jax 0.10.2, 1.9 to 2.3 minutes, mean and range of seeds 3 to 5 (settings
were chosen on 0 to 2), noise at 10 dB, on traces that are no wells: reflectivity SNR 5.5 dB (5.1 to 6.2), correlation 0.85
(0.83 to 0.87), support F1 0.70 (0.68 to 0.73), amplitudes 31 % too small. With the wavelet turned by 90 degrees: SNR -2.1 dB,
correlation 0.00, F1 0.48. LISTA with 16 layers over 16 steps of FISTA at its best weight, 256 held-out traces with noise at
20 / 15 / 10 / 5 dB: +3.4 (3.2 to 3.6) / 2.2 / 1.2 / 0.6 dB. Iterations to 1e-5 of the objective at a tenth of the weight:
ISTA over 500, FISTA with or without restart 104 to 131, greedy 102 to 119. `--task impedance` (seed 0): SNR 4.2 dB above the
background, with the turned wavelet -3.2. `--data` with a crop of the F3 survey: -6 dB band 5 to 63 Hz before, 4 to 125 Hz
(Nyquist: the spikes' doing, not the data's) after, at a residual of 24 %; a turned wavelet fits as well there (23 %).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from experiments.harness import checks
from experiments.harness.report import numbers
from experiments.harness.run import Run
from experiments.seismic import figures, lesson, noise, survey, tasks
from jaxnets.proximal import fista, tree
from jaxnets.seismic import inversion, wavelets
from jaxnets.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "synthetic"  # synthetic, or a file of field data: FILE.sgy, or FILE.npy with [trace, time]
    task: Literal["deconvolve", "impedance", "interpolate", "deblend"] = "deconvolve"  # what to make of it
    # Peak frequency of a Ricker (Hz), or how to estimate one; None: at the wells of the synthetic survey, else statistical.
    wavelet: float | Literal["wells", "statistical"] | None = None
    phase: float = 0.0  # degrees, of a wavelet that is not from wells
    # Of the penalty: a share of the largest useful weight, or by how much noise there is (--snr); None: the task's own.
    weight: float | Literal["discrepancy"] | None = None
    regularize: Literal["l1", "l2", "tv"] = "l1"  # of impedance: few reflections, damping, few layers
    snr: float = 10.0  # dB, signal to noise: what the synthetic survey gets, what `--weight discrepancy` reckons with
    debias: int = 0  # steps of least squares on the support, against shrunk amplitudes
    interval: float | None = None  # s between samples, of .npy files (default 0.004); must agree with a SEG-Y file's
    balance: float | None = None  # s, window over which field data are brought to equal amplitude before the inversion
    traces: int = 60  # of the synthetic survey
    samples: int = 256  # of the synthetic survey, every 4 ms
    iterations: int = 500  # at most, of the solver
    layers: int = 16  # of LISTA
    examples: int = 4096  # traces that LISTA learns from
    training_steps: int = 800  # of LISTA; 0 leaves the comparison out
    batch: int = 64  # traces per training step
    lr: float = 1e-2  # LISTA's peak learning rate
    seed: int = 0  # of the earth, the noise and the training

    def __post_init__(self):
        checks.positive(self, "interval", "balance", "samples", "iterations", "layers", "examples", "batch", "lr")
        checks.within(self, 0, math.inf, "debias", "training_steps")
        checks.within(self, -100, 100, "snr")
        checks.within(self, -180, 360, "phase")
        for name in ("wavelet", "weight"):
            if not isinstance(getattr(self, name), str):
                checks.positive(self, name)
        if self.traces < 4 or self.samples < 32:
            raise ValueError(f"--traces must be at least 4 and --samples 32, got {self.traces} and {self.samples}")
        if not isinstance(self.weight, str) and self.weight is not None and self.weight >= 1:
            raise ValueError(f"--weight must be below 1, the share from which the answer is 0, got {self.weight:g}")
        if self.batch > self.examples:
            raise ValueError(f"--batch must be at most --examples ({self.examples}), got {self.batch}")
        # What would do nothing, or harm, is refused.
        if self.data == "synthetic" and (self.interval or self.balance):
            raise ValueError("--interval and --balance are for field data (--data FILE)")
        if self.task not in tasks.WITH_WAVELET and (self.wavelet or self.phase):
            raise ValueError(f"--wavelet and --phase are not for --task {self.task}, which needs no wavelet")
        if self.task != "impedance" and self.regularize != "l1":
            raise ValueError(f"--regularize {self.regularize} is for --task impedance")
        if self.debias and (self.task not in tasks.WITH_WAVELET or self.regularize != "l1"):
            raise ValueError("--debias is for sparse reflections: --task deconvolve, or impedance with --regularize l1")


PRESETS = {
    "default": Config(),
    "smoke": Config(traces=4, samples=32, iterations=3, layers=2, examples=4, training_steps=2, batch=2),
}


REACHED = 1e-5  # of the objective, relative: a method has arrived


def main(config: Config, run: Run) -> dict[str, float | str]:
    data = load(config, run)
    how = config.wavelet or ("wells" if data.synthetic else "statistical")
    wavelet = survey.choose_wavelet(data, how, config.phase)
    teach(run)

    make = functools.partial(tasks.TASKS[config.task], data, options=tasks.Options(config.regularize, config.seed))
    solve = make_solver(config)
    gallery = data.synthetic and config.task == "deconvolve"  # README shows this one
    learning = gallery and config.training_steps > 0

    task = make(wavelet)
    solved = solve(task)
    section = task.pick(solved.model)
    scores = judge(task, solved, section)
    summary: dict[str, float | str] = {"task": config.task, **scores, **describe(run, data, task, solved, section, gallery)}
    run.print(f"{config.task}: {numbers(scores)}")
    run.log({"step": 1, "name": config.task} | scores)
    run.figure("wavelet", functools.partial(figures.draw_wavelet, data, wavelet, task, section), size=(8, 3.2))
    if config.task in tasks.WITH_WAVELET:
        wrong = make(wavelets.rotate_phase(wavelet, 90))
        control = solve(wrong)
        scores = judge(wrong, control, control.model)
        run.print(f"negative control, the wavelet turned by 90 degrees: {numbers(scores)}")
        if not data.synthetic:
            run.print("  it explains the data as well: without a well nothing here tells which phase is right")
        run.log({"step": 2, "name": "wrong wavelet"} | scores)
        summary |= {f"wrong_wavelet_{name}": value for name, value in scores.items()}

    curves = tasks.convergence(task.problem, solved.weight, config.iterations)
    run.log({"step": 3, "name": "convergence"} | reached(run, curves))
    run.figure("convergence", functools.partial(figures.draw_convergence, curves), size=(6.5, 4), gallery=gallery)
    if learning:
        with run.progress(3 + config.training_steps, description="LISTA") as report:
            summary |= learn(config, run, wavelet, lambda row: report(row | {"step": row["step"] + 3}))
    return summary


def teach(run: Run) -> None:
    """The lesson that the method starts from."""
    lessons = lesson.runs()
    run.print("gradient descent on a function with two valleys:")
    for name, (size, visited, status) in lessons.items():
        run.print(f"  {name:<10} step {size:<5g} from {visited[0]:4g} ends at {visited[-1]:6.3f}: {status}")
    run.figure("lesson", functools.partial(lesson.draw, lessons), size=(10, 2.8), gallery=True)


def load(config: Config, run: Run) -> survey.Survey:
    if config.data == "synthetic":
        data, notes = survey.synthetic(traces=config.traces, samples=config.samples, snr=config.snr, seed=config.seed), ()
    else:
        data, notes = survey.field(config.data, interval=config.interval, balance=config.balance)
    traces, samples = data.traces.shape
    run.print(f"{config.data}: {traces} traces of {samples} samples, every {1000 * data.interval:g} ms")
    for note in notes:
        run.print(f"note: {note}")
    return data


def make_solver(config: Config) -> Callable[[tasks.Task], inversion.Result]:
    """Solves a task's problem at the weight asked for; problems of one kind share one program."""
    run = jax.jit(functools.partial(inversion.solve, debias=config.debias, max_steps=config.iterations))

    def solve(task):
        if config.weight == "discrepancy":
            noise_norm = tree.norm(task.problem.data) / np.sqrt(1 + 10 ** (config.snr / 10))
            return run(task.problem, inversion.discrepancy(noise_norm=noise_norm))
        return run(task.problem, inversion.relative(config.weight or task.weight))

    return solve


def judge(task: tasks.Task, solved: inversion.Result, section) -> dict[str, float]:
    """Scores against the truth where it is known, and the misfit `|Ax - y| / |y|`."""
    scores = task.score(section) | {"misfit": tree.norm(solved.residual) / tree.norm(task.problem.data)}
    return {name: float(value) for name, value in scores.items()}


def describe(
    run: Run, data: survey.Survey, task: tasks.Task, solved: inversion.Result, section, gallery: bool
) -> dict[str, float]:
    """Prints, writes and draws a result; returns the frequency bands before and after."""
    share = float(solved.weight / task.problem.largest_weight())
    before, after = (tasks.band(x, data.interval) for x in (task.before, task.spectral(section)))
    path, scale = survey.save(
        data, section * data.gain if task.same_unit else section, run.folder, task.label.replace(" ", "_")
    )
    run.print(f"{int(solved.solution.steps)} steps at {share:.3g} of the largest weight: {fista.describe(solved.solution)}")
    for level in (6, 10):
        bands = [f"{edges[f'low_{level}db']:.0f} to {edges[f'high_{level}db']:.0f} Hz" for edges in (before, after)]
        run.print(f"band at -{level} dB: {' before, '.join(bands)} after")
    run.print(f"wrote {path.name}" + ("" if scale == 1 else f", samples times {scale:g}"))
    run.figure("section", functools.partial(figures.draw_section, data, task, section), size=(10, 3.6), gallery=gallery)
    run.figure("traces", functools.partial(figures.draw_traces, data, task, section, solved.predicted), size=(10, 4))
    spectra = {f"{when}_{name}": edge for when, edges in (("before", before), ("after", after)) for name, edge in edges.items()}
    return spectra | {"factor_of_file": scale}


def reached(run: Run, curves: dict[str, np.ndarray]) -> dict[str, float]:
    """Iterations until the objective stays within `REACHED` of the best; all of them where it doesn't."""
    counts = {name: int(np.max(np.flatnonzero(~(curve < REACHED)), initial=-1)) + 1 for name, curve in curves.items()}
    for name, count in counts.items():
        more = "more than " if count == len(curves[name]) else ""
        run.print(f"  {name:<24} {more}{min(count, len(curves[name]) - 1)} iterations to {REACHED:g} of the best objective")
    return {f"{name} iterations": count for name, count in counts.items()}


def learn(config: Config, run: Run, wavelet: Array, callback: Callable) -> dict[str, float]:
    """Compares solvers and LISTA against noise, prints and draws it; returns what LISTA gains over as many steps of FISTA."""
    train, test = (
        noise.traces(count=count, samples=min(config.samples, 128), seed=seed)
        for count, seed in ((config.examples, config.seed + 1000), (max(2, min(config.examples // 4, 256)), config.seed + 2000))
    )
    found = noise.compare(
        wavelet,
        train,
        test,
        layers=config.layers,
        training_steps=config.training_steps,
        batch=config.batch,
        lr=config.lr,
        seed=config.seed,
        callback=callback,
    )
    run.print(
        f"SNR (dB) of the reflectivity of {len(test)} held-out traces that have {', '.join(f'{x:g}' for x in noise.LEVELS)} dB:"
    )
    for name, values in found.items():
        run.print(f"  {name:<20} {', '.join(f'{value:.1f}' for value in values)}")
    run.figure("noise", functools.partial(figures.draw_noise, noise.LEVELS, found), size=(6.5, 4), gallery=True)
    *_, steps, learned = found.values()
    return {f"lista_gain_db_at_{level:g}": float(gain) for level, gain in zip(noise.LEVELS, learned - steps, strict=True)}
