"""The data: a synthetic survey with its truth, or field data; the wavelet, and files for the results."""

import dataclasses
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import run
from jaxnets.seismic import modelling, segy, wavelets
from jaxnets.types import Array, InputError

INTERVAL = 0.004  # s, unless the data say otherwise
FINER = 8  # samples of the earth per sample of the data
TRUE_CORNERS, TRUE_PHASE = (4.0, 10.0, 45.0, 70.0), 20.0  # Hz and degrees of the wavelet that makes the synthetic data
WAVELET_SECONDS = 0.2
SEGY = (".sgy", ".segy")


@dataclasses.dataclass(frozen=True)
class Survey:
    """Traces, and of a synthetic survey the truth on the data's grid; `wells` are the traces whose truth may be used."""

    traces: Array  # [trace, time], balanced
    interval: float  # s
    delay: float = 0.0  # s, of the first sample
    gain: Array | np.ndarray | float = 1.0  # the recorded traces are gain * traces
    path: pathlib.Path | None = None
    reflectivity: Array | None = None
    impedance: Array | None = None
    wavelet: Array | None = None
    wells: tuple[int, ...] = ()
    shown: tuple[int, int] | None = None  # first and last (exclusive) trace of figures, None: all

    @property
    def synthetic(self) -> bool:
        return self.path is None

    @property
    def judged(self) -> np.ndarray:
        """The traces that scores are of: not the wells, which the inversion has seen."""
        return np.setdiff1d(np.arange(len(self.traces)), self.wells)


def synthetic(*, traces: int, samples: int, snr: float, seed: int) -> Survey:
    """A folded, faulted, layered earth: reflections between the data's samples, a wavelet that the inversion isn't told."""

    def make(seed):
        earth_key, noise_key = jax.random.split(jax.random.key(seed))
        duration = samples * INTERVAL
        shape = {"dip": 0.06 * duration, "fold": 0.02 * duration, "throw": 0.03 * duration, "unconformity": 0.3 * duration}
        return modelled(earth(earth_key, traces, samples, **shape), noise_key, snr)

    return Survey(interval=INTERVAL, wells=tuple(traces * i // 6 for i in (1, 3, 5)), **jax.jit(make)(seed))


def earth(key: Array, traces: int, samples: int, **shape: float) -> Array:
    """Impedance on the fine grid, some 40 layers per second; `shape` (dip, ...) as `modelling.layered_earth` takes it."""
    size = {"traces": traces, "samples": samples * FINER, "interval": INTERVAL / FINER}
    return modelling.layered_earth(key, **size, layers=max(2, round(40 * samples * INTERVAL)), **shape).impedance


def modelled(impedance: Array, noise_key: Array, snr: float) -> dict[str, Array]:
    """Noisy traces over an earth given on the fine grid, the truth on that of the traces, and the wavelet."""
    reflectivity = modelling.reflectivity(impedance)
    length = 2 * round(WAVELET_SECONDS * FINER / INTERVAL / 2) + 1
    wavelet = wavelets.ormsby(wavelets.time_axis(length, INTERVAL / FINER), TRUE_CORNERS)
    wavelet = wavelets.rotate_phase(wavelet, TRUE_PHASE)
    data = modelling.convolutional_model(reflectivity, wavelet)[:, ::FINER]
    # A spike goes to the nearest sample; the layer that ends there is the one above it.
    upper = np.maximum(np.arange(0, impedance.shape[-1], FINER) - FINER // 2, 0)
    return {
        "traces": modelling.add_noise(noise_key, data, snr),
        "reflectivity": modelling.coarsen_spikes(reflectivity, FINER),
        "impedance": impedance[:, upper],
        "wavelet": wavelet[length // 2 % FINER :: FINER],
    }


def field(path: str, *, interval: float | None, balance: float | None) -> tuple[Survey, tuple[str, ...]]:
    """Field data from a SEG-Y or .npy file, and what is odd in its headers.

    Raises:
      InputError: not such a file, damaged, a dead survey, or an `interval` that the file contradicts.
    """
    file = pathlib.Path(path)
    if file.suffix.lower() in SEGY:
        try:
            found = segy.read(file)
        except InputError:
            if interval is None:
                raise
            found = segy.read(file, interval=interval)  # where the headers say nothing, or contradict each other
        if interval is not None and abs(found.interval - interval) > 1e-3 * interval:
            raise InputError(f"--interval {interval:g}: {path} is sampled every {found.interval:g} s")
    elif file.suffix.lower() == ".npy":
        found = segy.load_npy(file, interval=interval or INTERVAL)
    else:
        raise InputError(f"--data {path}: expected synthetic, or a file ending in .sgy, .segy or .npy")
    traces = found.traces
    if traces.shape[-1] < 16 or not traces.any():
        what = f"{traces.shape[-1]} samples" if traces.any() else "zeros only"
        raise InputError(f"--data {path}: expected traces of at least 16 samples that are not all zero, got {what}")
    sizes = np.abs(traces).astype(float)  # squares of null values such as 1e30 overflow in single precision
    for trace in np.flatnonzero(sizes.max(axis=1) > 1e6 * np.median(sizes[sizes > 0]))[:1]:
        size = sizes[trace].max()
        raise InputError(f"--data {path}: trace {trace} reaches {size:g}, a million times the median sample: null values?")
    if balance and not 5 * found.interval <= balance <= traces.shape[-1] * found.interval:
        longest = traces.shape[-1] * found.interval
        raise InputError(f"--balance {balance:g}: expected a window from {5 * found.interval:g} to {longest:g} s")
    gain = amplitude(sizes, round(balance / found.interval)) if balance else float(np.sqrt(np.mean(sizes**2)))
    scaled = jnp.asarray(traces / gain, np.float32)
    lines = getattr(found, "grid", None)
    if lines is None or 1 in lines[:2]:
        return Survey(scaled, found.interval, found.delay, gain, file), found.notes
    per_line = len(traces) // lines[0 if found.sorting == "inline" else 1]
    middle = len(traces) // per_line // 2 * per_line
    note = f"{len(traces) // per_line} lines of {per_line} traces, taken one after the other; figures show the middle line"
    return Survey(scaled, found.interval, found.delay, gain, file, shown=(middle, middle + per_line)), (*found.notes, note)


def amplitude(traces: np.ndarray, window: int) -> np.ndarray:
    """Root mean square over a window (Hann) of each trace, never below 3 % of the whole section's."""
    kernel = np.hanning(min(max(window, 1), traces.shape[-1]) + 2)[1:-1]

    def smooth(trace):
        return np.convolve(trace, kernel, mode="same")

    energy = np.stack([smooth(trace**2) for trace in traces]) / smooth(np.ones(traces.shape[-1]))
    return np.sqrt(np.maximum(energy, 1e-3 * np.mean(traces**2)))


def choose_wavelet(survey: Survey, how: str | float, phase: float) -> Array:
    """The wavelet of the inversion: a Ricker of `how` Hz, by least squares at the "wells", or "statistical".

    Where there are wells, they scale it.

    Raises:
      InputError: wells of field data, a frequency beyond Nyquist.
    """
    traces, interval, wells = survey.traces, survey.interval, np.array(survey.wells, int)
    half = min(round(WAVELET_SECONDS / interval / 2), (traces.shape[-1] - 1) // 2)
    samples = 2 * half + 1
    if how == "wells":
        if survey.reflectivity is None:
            raise InputError(
                "--wavelet wells: field data come without wells; use statistical, or the frequency of a Ricker in Hz"
            )
        if phase:
            raise InputError(f"--phase {phase:g}: not with --wavelet wells, whose phase comes from the wells")
        return wavelets.estimate_least_squares(traces[wells], survey.reflectivity[wells], samples, damping=0.01)
    if isinstance(how, str):
        wavelet = wavelets.estimate_statistical(traces, samples, phase=phase)
    else:
        if 2 * how * interval > 1:
            raise InputError(
                f"--wavelet {how:g}: above {0.5 / interval:g} Hz, the Nyquist frequency of data every {interval:g} s"
            )
        wavelet = wavelets.rotate_phase(wavelets.ricker(wavelets.time_axis(samples, interval), how), phase)
    if survey.reflectivity is not None:
        model = modelling.convolutional_model(survey.reflectivity[wells], wavelet)
        wavelet = wavelet * jnp.vdot(model, traces[wells]) / jnp.vdot(model, model)
    return wavelet


def save(survey: Survey, result: Array, folder: pathlib.Path, name: str) -> tuple[pathlib.Path, float]:
    """Writes a result as the data came, SEG-Y with the same headers or .npy; returns its path and the factor on its samples."""
    if survey.path is not None and survey.path.suffix.lower() in SEGY:
        path = folder / f"{name}.sgy"
        return path, segy.write(path, np.asarray(result), template=survey.path)
    path = folder / f"{name}.npy"
    content = io.BytesIO()
    np.save(content, np.asarray(result))
    run.write(path, content.getvalue())
    return path, 1.0
