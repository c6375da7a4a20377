"""Wavelets in closed form or estimated from data, their phase and their spectra. Units s, Hz, degrees; time zero in the middle.

time = wavelets.time_axis(101, 0.004)
wavelet = wavelets.rotate_phase(wavelets.ricker(time, 25), 30)
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Float, InputError


def time_axis(samples: int, interval: Scalar) -> Float[Array, " time"]:
    """`samples` times in s, `interval` apart, the middle one 0.

    Raises:
      ValueError: `samples` even or not positive, `interval <= 0`.
    """
    if samples < 1 or samples % 2 == 0:
        raise ValueError(f"time_axis: samples must be odd and positive, so that time 0 is in the middle, got {samples}.")
    checks.option("time_axis", "interval must be positive (s)", interval, interval > 0)
    return (jnp.arange(samples, dtype=float) - samples // 2) * interval


def check_interval(time: Float[Array, " time"], interval: float) -> None:
    """Raises ValueError when `time`, of a wavelet, isn't sampled at the `interval` of the data, to 0.1 %."""
    step = _interval(time)
    if step is not None and abs(step - interval) > 1e-3 * interval:
        raise ValueError(
            f"check_interval: the wavelet is sampled every {step:g} s, the data every {interval:g} s; "
            "make the wavelet on `time_axis(samples, interval)` of the data."
        )


def ricker(time: Float[Array, " time"], peak_frequency: Scalar) -> Float[Array, " time"]:
    """Ricker (Mexican hat) wavelet, peak 1 at t = 0: `(1 - 2a) exp(-a)` with `a = (π f t)²`.

    Its amplitude spectrum `2 ν² exp(-ν²/f²) / (√π f³)` is largest at `peak_frequency`. Sample at `dt < 1 / (6 f)`.

    Raises:
      ValueError: `peak_frequency` not positive, or above the Nyquist frequency of `time`.
    Source: Ricker (1953), Geophysics 18(1), doi:10.1190/1.1437843.
    """
    _check_frequencies("ricker", time, peak_frequency)
    a = (jnp.pi * peak_frequency * time) ** 2
    return (1 - 2 * a) * jnp.exp(-a)


def ormsby(time: Float[Array, " time"], corners: tuple[Scalar, Scalar, Scalar, Scalar]) -> Float[Array, " time"]:
    """Ormsby wavelet, peak 1 at t = 0: a trapezoid spectrum, 0 outside the outer corners, flat between the inner two.

    `[f4² sinc²(f4 t) - f3² sinc²(f3 t)] / (f4 - f3) - [f2² sinc²(f2 t) - f1² sinc²(f1 t)] / (f2 - f1)`, normalized.

    Raises:
      ValueError: corners that are not positive, don't increase, or lie above the Nyquist frequency of `time`.
    Source: Ryan (1994), Ricker, Ormsby, Klauder, Butterworth: a choice of wavelets, CSEG Recorder 19(7).
    """
    _check_frequencies("ormsby", time, *corners)

    def ramp(low, high):
        return (high**2 * jnp.sinc(high * time) ** 2 - low**2 * jnp.sinc(low * time) ** 2) / (high - low)

    f1, f2, f3, f4 = corners
    return (ramp(f3, f4) - ramp(f1, f2)) / (f4 + f3 - f2 - f1)


def klauder(time: Float[Array, " time"], f0: Scalar, f1: Scalar, duration: Scalar) -> Float[Array, " time"]:
    """Klauder wavelet, peak 1 at t = 0: the autocorrelation of a linear sweep from `f0` to `f1` Hz in `duration` s.

    `(1 - |t|/T) sinc(k t (T - |t|)) cos(π (f0 + f1) t)` with `k = (f1 - f0) / T`, and 0 for `|t| > T`.

    Raises:
      ValueError: frequencies that are not positive, don't increase, or lie above Nyquist; `duration <= 0`.
    Source: Klauder, Price, Darlington & Albersheim (1960), doi:10.1002/j.1538-7305.1960.tb03942.x; Ryan (1994).
    """
    _check_frequencies("klauder", time, f0, f1)
    checks.option("klauder", "duration must be positive (s)", duration, duration > 0)
    rest = jnp.maximum(duration - jnp.abs(time), 0)
    return rest / duration * jnp.sinc((f1 - f0) / duration * time * rest) * jnp.cos(jnp.pi * (f0 + f1) * time)


def butterworth(time: Float[Array, " time"], low: Scalar, high: Scalar, order: int = 4) -> Float[Array, " time"]:
    """Zero-phase Butterworth wavelet, peak 1 at t = 0: amplitude `(1 + (low/f)^2n)^-1/2 (1 + (f/high)^2n)^-1/2`.

    `-3 dB` at the corners `low` and `high` in Hz. `time` is equidistant with 0 in the middle (`time_axis`).

    Raises:
      ValueError: frequencies that are not positive, don't increase, or lie above Nyquist; `order < 1`.
    Source: Butterworth (1930), Wireless Engineer 7; Ryan (1994).
    """
    _check_frequencies("butterworth", time, low, high)
    checks.option("butterworth", "order must be at least 1", order, order >= 1)
    size = 8 * time.size  # the response rings: a short transform would fold it back
    frequency = jnp.fft.rfftfreq(size).astype(time.dtype) / (time[1] - time[0])
    wavelet = centered(jnp.fft.irfft(butterworth_amplitude(frequency, low, high, order), size), time.size)
    return wavelet / wavelet[time.size // 2]


def butterworth_amplitude(
    frequency: Float[Array, " frequency"], low: Scalar, high: Scalar, order: int = 4
) -> Float[Array, " frequency"]:
    """Amplitude of a Butterworth band-pass, a high-pass times a low-pass of `order`: -3 dB at the corners, 0 at 0 Hz."""
    positive = frequency > 0
    octave = jnp.log(jnp.where(positive, frequency, 1))
    # logaddexp(0, 2n log x) = log(1 + x^2n), which neither overflows nor loses its gradient.
    high_pass = jnp.logaddexp(0, 2 * order * (jnp.log(low) - octave))
    low_pass = jnp.logaddexp(0, 2 * order * (octave - jnp.log(high)))
    return jnp.where(positive, jnp.exp(-(high_pass + low_pass) / 2), 0)


def rotate_phase(wavelet: Float[Array, "*batch time"], degrees: Scalar) -> Float[Array, "*batch time"]:
    """`w cos φ - H[w] sin φ`, the real part of `exp(iφ)` times the analytic signal: every frequency's phase advances by φ.

    By FFT, so circular: the wavelet should be small at its ends. 180 degrees reverse polarity, -90 are the Hilbert transform.
    """
    spectrum = jnp.fft.rfft(wavelet)
    # irfft ignores the imaginary part at 0 Hz and Nyquist, which leaves the cos φ of the analytic signal there.
    return jnp.fft.irfft(spectrum * jnp.exp(1j * jnp.deg2rad(degrees)), wavelet.shape[-1])


def phase(wavelet: Float[Array, " time"]) -> Float[Array, ""]:
    """Constant phase in degrees (-180, 180] that fits best about the middle sample: of the sum of `|W| W` over frequencies."""
    spectrum = jnp.fft.rfft(jnp.fft.ifftshift(wavelet))
    return jnp.rad2deg(jnp.angle(jnp.sum(jnp.abs(spectrum) * spectrum)))


class Spectrum(NamedTuple):
    """Amplitude against frequency."""

    frequency: Float[Array, "..."]  # Hz
    decibels: Float[Array, "..."]  # re its largest value


def spectrum(traces: Float[Array, "*trace time"], interval: Scalar, *, samples: int | None = None) -> Spectrum:
    """Amplitude spectrum in dB re its peak; the root mean square over traces; at least -200 dB.

    `samples` pads (or cuts) the traces, for a finer (or coarser) frequency axis.
    """
    checks.option("spectrum", "interval must be positive (s)", interval, interval > 0)
    samples = samples or traces.shape[-1]
    power = jnp.abs(jnp.fft.rfft(traces, samples)) ** 2
    power = power.reshape(-1, power.shape[-1]).mean(axis=0)
    frequency = jnp.fft.rfftfreq(samples).astype(traces.dtype) / interval
    peak = power.max()
    return Spectrum(frequency, 10 * jnp.log10(jnp.maximum(power / jnp.where(peak > 0, peak, 1), 1e-20)))


def dominant_frequency(spectrum: Spectrum) -> Float[Array, ""]:
    """Frequency in Hz of the largest amplitude."""
    return spectrum.frequency[jnp.argmax(spectrum.decibels)]


def bandwidth(spectrum: Spectrum, level: Scalar = -6.0) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Lowest and highest frequency in Hz whose amplitude is at least `level` dB re the peak. A gap between them counts as band.

    NaN for a spectrum without any, that of zeros.

    Raises:
      ValueError: `level >= 0`.
    """
    checks.option("bandwidth", "level must be below the peak's 0 dB", level, level < 0)
    inside = spectrum.decibels >= level
    low = spectrum.frequency[jnp.argmax(inside)]
    high = spectrum.frequency[inside.size - 1 - jnp.argmax(inside[::-1])]
    return jnp.where(inside.any(), low, jnp.nan), jnp.where(inside.any(), high, jnp.nan)


def estimate_least_squares(
    traces: Float[Array, "*trace time"], reflectivity: Float[Array, "*trace time"], samples: int, *, damping: Scalar = 1e-3
) -> Float[Array, " samples"]:
    """One wavelet for all traces, from a well tie: least `Σ |d - w * r|² + damping ρ |w|²`, `ρ = Σ r²`.

    Time zero of the wavelet is its middle sample. Phase and spectrum are free: errors of the tie go into it.
    Memory grows as `samples` copies of the traces: take those near the well.

    Raises:
      ValueError: `samples` even, or longer than the traces; `damping < 0`.
    Source: White (1980), Partial coherence matching of synthetic seismograms, Geophysical Prospecting 28(3).
    """
    _check_samples("estimate_least_squares", samples, traces.shape[-1])
    checks.option("estimate_least_squares", "damping must not be negative", damping, damping >= 0)
    half, time = samples // 2, traces.shape[-1]
    padded = jnp.pad(reflectivity.reshape(-1, time), ((0, 0), (half, half)))
    # Column j of the convolution matrix is the reflectivity delayed by j - half.
    columns = padded[:, (jnp.arange(samples)[::-1, None] + jnp.arange(time)[None])]
    gram = jnp.einsum("rit,rjt->ij", columns, columns)
    weight = damping * jnp.mean(jnp.diagonal(gram))
    correlation = jnp.einsum("rit,rt->i", columns, traces.reshape(-1, time))
    return jnp.linalg.solve(gram + weight * jnp.eye(samples, dtype=gram.dtype), correlation)


def estimate_statistical(
    traces: Float[Array, "*trace time"], samples: int, *, phase: Scalar = 0.0, lags: int | None = None
) -> Float[Array, " samples"]:
    """Wavelet with the traces' amplitude spectrum and a constant `phase` (degrees, see `constant_phase`), peak 1 at 0°.

    Assumes white reflectivity: then the mean autocorrelation of the traces is that of the wavelet. It is tapered to zero
    (Parzen) at `lags` (default: `samples`), which smooths the spectrum: fewer lags, less variance and less resolution.

    Raises:
      ValueError: `samples` even, or longer than the traces; `lags` not in `[2, time]`.
      InputError: traces of zeros only.
    Source: Robinson & Treitel (1980), Geophysical Signal Analysis, ch. 6; Parzen (1961), Technometrics 3(2) (window).
    """
    time = traces.shape[-1]
    _check_samples("estimate_statistical", samples, time)
    lags = samples if lags is None else lags
    _check_signal("estimate_statistical", traces)
    checks.option("estimate_statistical", f"lags must be between 2 and the {time} samples of a trace", lags, 2 <= lags <= time)
    power = jnp.abs(jnp.fft.rfft(traces.reshape(-1, time), 2 * time)) ** 2
    autocorrelation = jnp.fft.irfft(power.mean(axis=0), 2 * time)
    x = jnp.minimum(jnp.minimum(jnp.arange(2 * time), 2 * time - jnp.arange(2 * time)) / lags, 1).astype(traces.dtype)
    parzen = jnp.where(x < 0.5, 1 - 6 * x**2 * (1 - x), 2 * (1 - x) ** 3)
    # Parzen's window has no negative side lobe, so the smoothed power is a power (up to rounding).
    amplitude = jnp.sqrt(jnp.maximum(jnp.fft.rfft(parzen * autocorrelation).real, 0))
    wavelet = jnp.fft.irfft(amplitude, 2 * time)
    return centered(rotate_phase(wavelet / wavelet[0], phase), samples)


def constant_phase(traces: Float[Array, "*trace time"], *, step: float = 1.0) -> Float[Array, ""]:
    """Phase of the traces' wavelet in degrees [-90, 90): the traces turned back by it have the largest kurtosis.

    Scans `E x⁴ / (E x²)²` every `step` degrees. Assumes sparse (super-Gaussian) reflectivity: traces are spikiest under a
    zero-phase wavelet. Polarity stays unknown: a phase and the same +180 degrees have one kurtosis.

    Raises:
      ValueError: `step` not in (0, 90].
      InputError: traces of zeros only.
    Source: Levy & Oldenburg (1987), Geophysics 52(1); van der Baan (2008), doi:10.1190/1.2831936.
    """
    checks.option("constant_phase", "step must be in (0, 90] degrees", step, 0 < step <= 90)
    _check_signal("constant_phase", traces)
    angles = jnp.arange(-90, 90, step, dtype=traces.dtype)
    cosine, sine = jnp.cos(jnp.deg2rad(angles)), jnp.sin(jnp.deg2rad(angles))
    traces = traces / jnp.sqrt(jnp.mean(traces**2))  # fourth powers of raw amplitudes could overflow
    quadrature = rotate_phase(traces, -90)

    def moment(order):
        """`E (x cos φ + H[x] sin φ)^order` at all angles, by the binomial theorem: no pass over the traces for each."""
        return sum(
            math.comb(order, k) * jnp.mean(traces ** (order - k) * quadrature**k) * cosine ** (order - k) * sine**k
            for k in range(order + 1)
        )

    return angles[jnp.argmax(moment(4) / moment(2) ** 2)]


def centered(circular: Float[Array, "*batch time"], samples: int) -> Float[Array, "*batch samples"]:
    """`samples` entries of a circular signal about its entry 0, which moves to the middle."""
    return jnp.roll(circular, samples // 2, axis=-1)[..., :samples]


def _interval(time: Float[Array, " time"]) -> float | None:
    """The sampling interval, where it is known before the program runs."""
    times = checks.known(time)
    return None if times is None or times.size < 2 else float(times[-1] - times[0]) / (times.size - 1)


def _check_frequencies(function: str, time: Float[Array, " time"], *frequencies: Scalar) -> None:
    if not all(isinstance(frequency, int | float) for frequency in frequencies):
        return
    checks.option(function, "frequencies must be positive (Hz)", frequencies[0], frequencies[0] > 0)
    increase = all(low < high for low, high in itertools.pairwise(frequencies))
    checks.option(function, "frequencies must increase", frequencies, increase)
    interval = _interval(time)
    if interval is not None:
        rule = f"frequencies must not exceed {0.5 / interval:g} Hz, the Nyquist frequency of a time axis every {interval:g} s"
        checks.option(function, rule, frequencies[-1], 2 * interval * frequencies[-1] <= 1 + 1e-6)


def _check_signal(function: str, traces: Float[Array, "..."]) -> None:
    known = checks.known(traces)
    if known is not None and not known.any():
        raise InputError(f"{function}: traces must hold a signal, got zeros only.")


def _check_samples(function: str, samples: int, time: int) -> None:
    rule = f"samples must be odd and at most the {time} samples of a trace"
    checks.option(function, rule, samples, 0 < samples <= time and samples % 2 == 1)
