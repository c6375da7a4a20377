"""What is done to a survey: each task makes an inversion problem of it, and says what its result is compared with."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.seismic.survey import Survey
from jaxnets.proximal import fista
from jaxnets.seismic import inversion, metrics, modelling, wavelets
from jaxnets.types import Array

SPIKE = 0.01  # reflection coefficient from which it counts as a spike
ASSUMED_REFLECTIVITY = 0.05  # root mean square in field data without wells, for relative impedance
TREND_SECONDS = 0.3
KEPT = 0.6  # share of the traces that `interpolate` sees
LARGEST_DELAY = 0.2  # s, of the second source of `deblend`


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem, what to show before and beside its result, and how good the result is."""

    problem: inversion.Problem
    before: Array  # [trace, time]
    truth: Array | None
    score: Callable[[Array], dict[str, Any]]  # of a result
    weight: float  # default, of the largest one
    label: str  # what the result is
    unit: str = ""
    scale: float = 1.0  # of a result in figures, which `unit` is of
    same_unit: bool = True  # as what was before
    pick: Callable[[Any], Array] = lambda model: model  # the section [trace, time] of a model
    spectral: Callable[[Array], Array] = lambda section: section  # what of a result has a spectrum like the data's


@dataclasses.dataclass(frozen=True)
class Options:
    """How a task is done, where there is a choice."""

    regularize: str = "l1"
    seed: int = 0


def deconvolve(survey: Survey, wavelet: Array, options: Options) -> Task:
    """Sparse spikes: where the reflectors are, and how strong."""
    del options
    problem = inversion.spikes(survey.traces, wavelet)

    def score(result):
        if survey.reflectivity is None:
            return {}
        estimate, truth = (x[survey.judged] for x in (result, survey.reflectivity))
        return {
            "snr_db": metrics.snr_db(estimate, truth),
            "correlation": metrics.correlation(estimate, truth),
            "f1": metrics.support_f1(estimate, truth, threshold=SPIKE),
            "bias": metrics.amplitude_bias(estimate, truth, threshold=SPIKE),
        }

    return Task(problem, survey.traces, survey.reflectivity, score, 0.05, "reflectivity")


def impedance(survey: Survey, wavelet: Array, options: Options) -> Task:
    """Acoustic impedance; of field data, which come without wells, relative to a constant."""
    background = _background(survey)
    if survey.impedance is None:
        wavelet = wavelet / ASSUMED_REFLECTIVITY / jnp.linalg.norm(wavelet)
    samples = 2 * round(TREND_SECONDS / survey.interval / 2) + 1
    held = {"trend_samples": min(samples, 2 * (survey.traces.shape[-1] // 2) - 1)}
    regularize, weight = {
        "l1": (functools.partial(inversion.sparse_steps, **held), 0.05),
        "l2": (inversion.damped, 1e-4),
        "tv": (functools.partial(inversion.blocky, **held), 0.05),
    }[options.regularize]
    problem = inversion.poststack(survey.traces, wavelet, background, regularize=regularize)

    def score(result):
        if survey.impedance is None:
            return {}
        # Above the background, which is given: 0 dB is the background itself.
        estimate, truth = (jnp.log(x / background)[survey.judged] for x in (result, survey.impedance))
        return {"snr_db": metrics.snr_db(estimate, truth), "correlation": metrics.correlation(estimate, truth)}

    shown: dict[str, Any] = {"unit": "relative"} if survey.impedance is None else {"unit": "10⁶ kg/(m² s)", "scale": 1e-6}
    shown |= {"same_unit": False, "spectral": modelling.reflectivity}
    return Task(problem, survey.traces, survey.impedance, score, weight, "impedance", **shown)


def interpolate(survey: Survey, wavelet: Array, options: Options) -> Task:
    """Traces taken out at random, and put back: what was there is known, in field data too."""
    del wavelet
    count = len(survey.traces)
    live = np.zeros(count, bool)
    live[np.random.default_rng(options.seed).permutation(count)[: max(1, round(KEPT * count))]] = True
    gaps = ~live
    before = jnp.where(live[:, None], survey.traces, 0)

    def score(result):
        return {"snr_db": metrics.snr_db(result[gaps], survey.traces[gaps])} if gaps.any() else {}

    problem = inversion.interpolation(survey.traces, jnp.asarray(live))
    return Task(problem, before, survey.traces, score, 0.01, "interpolated")


def deblend(survey: Survey, wavelet: Array, options: Options) -> Task:
    """The section and the same from the other end, recorded at once with random delays, and told apart."""
    del wavelet
    sources = jnp.stack([survey.traces, survey.traces[::-1]])
    longest = min(LARGEST_DELAY, survey.traces.shape[-1] * survey.interval / 4)
    second = np.random.default_rng(options.seed).uniform(0, longest, len(survey.traces))
    delays = jnp.asarray(np.stack([0 * second, second]), survey.traces.dtype)
    blended = inversion.blending(delays, survey.traces.shape[-1], survey.interval)(sources)

    def score(result):
        found, came = (metrics.snr_db(x, survey.traces) for x in (result, blended))
        return {"snr_db": found, "gain_db": found - came}

    problem = inversion.deblending(blended, delays, survey.interval)
    return Task(problem, blended, survey.traces, score, 0.01, "first source", pick=lambda model: model[0])


TASKS = {"deconvolve": deconvolve, "impedance": impedance, "interpolate": interpolate, "deblend": deblend}
WITH_WAVELET = ("deconvolve", "impedance")

METHODS = {
    "ISTA": (fista.ista(), fista.never()),
    "FISTA": (fista.nesterov(), fista.never()),
    "FISTA, gradient restart": (fista.nesterov(), fista.gradient()),
    "greedy FISTA": (fista.greedy(), fista.gradient()),
}


def convergence(problem: inversion.Problem, weight: Array, steps: int) -> dict[str, np.ndarray]:
    """The objective of each method at every iteration, relative to the smallest that any of them found.

    At a tenth of the weight: a harder problem, where FISTA overshoots and a restart matters.
    """
    smooth, term = problem.smooth(), problem.term.scaled(weight / 10)

    def run(momentum, restart):
        options = {"momentum": momentum, "restart": restart, "stop": None, "max_steps": steps, "history": True}
        return jax.jit(lambda smooth, term, x0: fista.fista(smooth, term, x0, **options).history)

    curves = {
        name: np.asarray(run(*method)(smooth, term, problem.initial).objective, float) for name, method in METHODS.items()
    }
    least = min(np.nanmin(curve) for curve in curves.values())
    return {name: (curve - least) / least for name, curve in curves.items()}


def band(section: Array, interval: float) -> dict[str, float]:
    """Lowest and highest frequency (Hz) at -6 and -10 dB of a section's amplitude spectrum, smoothed over 5 Hz."""
    found = smoothed_spectrum(section, interval)
    edges = {level: wavelets.bandwidth(found, -float(level)) for level in (6, 10)}
    return {
        f"{side}_{level}db": float(edge)
        for level, pair in edges.items()
        for side, edge in zip(("low", "high"), pair, strict=True)
    }


def smoothed_spectrum(section: Array, interval: float) -> wavelets.Spectrum:
    """Amplitude spectrum of a section in dB re its peak, padded, its power averaged (Hann) over about 5 Hz."""
    samples = max(256, section.shape[-1])
    raw = wavelets.spectrum(section, interval, samples=samples)
    width = max(1, round(10 * samples * interval))
    kernel = np.hanning(width + 2)[1:-1]
    power = np.pad(10 ** (np.asarray(raw.decibels, float) / 10), width // 2, mode="reflect")
    power = np.convolve(power, kernel / kernel.sum(), mode="same")[width // 2 :][: raw.frequency.size]
    return wavelets.Spectrum(raw.frequency, jnp.asarray(10 * np.log10(power / power.max()), section.dtype))


def _background(survey: Survey) -> Array:
    """Smoothed logs of the wells, interpolated between them; 1 without wells."""
    if survey.impedance is None:
        return jnp.ones_like(survey.traces)
    half = round(TREND_SECONDS / survey.interval / 2)
    kernel = np.hanning(2 * half + 3)[1:-1]
    logs = np.pad(np.log(np.asarray(survey.impedance)[list(survey.wells)]), ((0, 0), (half, half)), mode="edge")
    smooth = np.stack([np.convolve(log, kernel / kernel.sum(), mode="valid") for log in logs])
    trace = np.arange(len(survey.traces))
    between = np.stack([np.interp(trace, survey.wells, column) for column in smooth.T], axis=1)
    return jnp.asarray(np.exp(between), survey.traces.dtype)
