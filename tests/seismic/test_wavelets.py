"""Wavelets against closed forms, SciPy and their spectra; estimates against the wavelet that made the traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.signal

from jaxnets.seismic import metrics, wavelets
from jaxnets.types import InputError

DT = 0.004
TIME = wavelets.time_axis(101, DT)
RICKER = wavelets.ricker(TIME, 25.0)


def test_time_axis_is_odd_and_centered():
    np.testing.assert_allclose(wavelets.time_axis(5, 0.002), [-0.004, -0.002, 0, 0.002, 0.004], rtol=1e-6)


def amplitude(wavelet, interval):
    """Continuous Fourier amplitude and its frequencies."""
    size = 4096
    return np.abs(np.fft.rfft(np.asarray(wavelet, np.float64), size)) * interval, np.fft.rfftfreq(size, interval)


def test_ricker_has_its_closed_form_spectrum():
    got, f = amplitude(wavelets.ricker(TIME, 25), DT)
    expected = 2 * f**2 * np.exp(-((f / 25) ** 2)) / (np.sqrt(np.pi) * 25**3)
    np.testing.assert_allclose(got, expected, atol=1e-6 * expected.max())


def test_ormsby_has_a_trapezoid_spectrum():
    """The ends of 4 s ripple: the trapezoid is met to 1 % of its height, away from the corners to 0.1 %."""
    got, f = amplitude(wavelets.ormsby(wavelets.time_axis(1001, DT), (5.0, 15.0, 40.0, 60.0)), DT)
    expected = np.interp(f, [5, 15, 40, 60], [0, 1, 1, 0])
    got /= got[np.argmin(abs(f - 25))]
    np.testing.assert_allclose(got, expected, atol=0.01)
    flat = (abs(f[:, None] - np.array([5, 15, 40, 60])) > 2).all(axis=1)
    np.testing.assert_allclose(got[flat], expected[flat], atol=1e-3)


def test_klauder_is_the_autocorrelation_of_its_sweep():
    f0, f1, duration, dt = 8.0, 60.0, 2.0, 0.0005
    t = np.arange(0, duration, dt)
    sweep = np.exp(2j * np.pi * (f0 * t + (f1 - f0) / duration * t**2 / 2))
    expected = np.correlate(sweep, sweep, "full").real[len(t) - 1 - 400 : len(t) + 400] / len(t)
    got = wavelets.klauder(wavelets.time_axis(801, dt), f0, f1, duration)
    np.testing.assert_allclose(got, expected, atol=2e-3)
    beyond = np.abs(np.arange(-50, 51)) >= 25
    assert not np.asarray(wavelets.klauder(TIME, 10, 60, 0.1))[beyond].any()


@pytest.mark.parametrize("order", [2, 6])
def test_butterworth_has_the_amplitude_of_scipys_analog_filters(order):
    got, f = amplitude(wavelets.butterworth(wavelets.time_axis(1001, DT), 10, 40.0, order), DT)
    radians = 2 * np.pi * np.maximum(f, 1e-9)
    expected = 1.0
    for corner, kind in ((10, "highpass"), (40, "lowpass")):
        filtered = scipy.signal.butter(order, 2 * np.pi * corner, kind, analog=True)
        expected = expected * np.abs(scipy.signal.freqs(*filtered, worN=radians)[1])
    scale = got[np.argmin(abs(f - 20))] / expected[np.argmin(abs(f - 20))]
    np.testing.assert_allclose(got / scale, expected, atol=2e-3)


@pytest.mark.parametrize(
    "wavelet",
    [
        lambda time: wavelets.ricker(time, 25),
        lambda time: wavelets.ormsby(time, (5, 10, 40, 60)),
        lambda time: wavelets.klauder(time, 10, 60, 4),
        lambda time: wavelets.butterworth(time, 10, 40),
    ],
    ids=["ricker", "ormsby", "klauder", "butterworth"],
)
def test_wavelets_are_even_and_peak_at_one_in_the_dtype_of_time(wavelet, jit):
    w = np.asarray(jit(wavelet)(TIME))
    np.testing.assert_allclose(w, w[::-1], atol=1e-6)
    assert w.argmax() == 50
    np.testing.assert_allclose(w[50], 1, rtol=1e-6)
    assert w.dtype == np.float32
    with jax.enable_x64(True):
        exact = wavelet(jnp.asarray(np.asarray(TIME), jnp.float64))
        assert exact.dtype == jnp.float64
        np.testing.assert_allclose(w, exact, atol=3e-6)


def test_frequencies_have_gradients():
    slope = jax.grad(lambda f: wavelets.butterworth(TIME, f, 40.0)[45])(10.0)
    difference = (wavelets.butterworth(TIME, 10.2, 40.0)[45] - wavelets.butterworth(TIME, 9.8, 40.0)[45]) / 0.4
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


@pytest.mark.parametrize("samples", [100, 101])
def test_phase_rotation_is_that_of_scipys_analytic_signal(samples, jit):
    w = np.random.default_rng(0).normal(size=(2, samples))
    got = jit(wavelets.rotate_phase)(jnp.asarray(w, jnp.float32), 33.0)
    expected = (scipy.signal.hilbert(w) * np.exp(1j * np.deg2rad(33))).real
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("degrees", [-150, -30.0, 0, 90.0, 170.0])
def test_phase_is_that_of_the_rotation(degrees):
    np.testing.assert_allclose(wavelets.phase(wavelets.rotate_phase(RICKER, degrees)), degrees, atol=1e-3)


def test_spectrum_finds_peak_and_band():
    """Ricker: the peak is its frequency. Ormsby: -6.02 dB is halfway up each ramp."""
    spectrum = wavelets.spectrum(jnp.stack([RICKER, -2 * RICKER]), DT, samples=2000)
    assert abs(wavelets.dominant_frequency(spectrum) - 25) <= 0.125
    expected = 20 * np.log10((20 / 25) ** 2 * np.exp(1 - (20 / 25) ** 2))
    np.testing.assert_allclose(np.interp(20, *spectrum), expected, atol=0.01)
    ormsby = wavelets.ormsby(wavelets.time_axis(1001, DT), (5, 15, 40, 60))
    low, high = wavelets.bandwidth(wavelets.spectrum(ormsby, DT, samples=4000), -6.0206)
    np.testing.assert_allclose([low, high], [10, 50], atol=0.3)


def test_zeros_have_no_band_phase_or_wavelet():
    zeros = jnp.zeros((2, 60))
    spectrum = wavelets.spectrum(zeros, DT)
    np.testing.assert_array_equal(spectrum.decibels, -200)
    assert np.isnan(wavelets.bandwidth(spectrum)).all()
    for estimate in (wavelets.constant_phase, lambda x: wavelets.estimate_statistical(x, 21)):
        with pytest.raises(InputError, match="traces must hold a signal, got zeros only"):
            estimate(zeros)


def spikes(traces=40, samples=300, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(traces, samples)) * (rng.random((traces, samples)) < density)


def convolve(reflectivity, wavelet, noise=0.0):
    traces = np.stack([np.convolve(r, wavelet, mode="same") for r in reflectivity])
    return traces + noise * traces.std() * np.random.default_rng(9).normal(size=traces.shape)


MIXED = np.asarray(wavelets.rotate_phase(RICKER, 40.0))[25:76].astype(np.float64)


def test_least_squares_recovers_the_wavelet_of_a_well_tie(jit):
    reflectivity = spikes(4)
    estimate = jit(lambda d, r: wavelets.estimate_least_squares(d, r, 51, damping=0))
    clean = estimate(jnp.asarray(convolve(reflectivity, MIXED), jnp.float32), jnp.asarray(reflectivity, jnp.float32))
    np.testing.assert_allclose(clean, MIXED, atol=1e-5)
    noisy = estimate(jnp.asarray(convolve(reflectivity, MIXED, 0.3), jnp.float32), jnp.asarray(reflectivity, jnp.float32))
    assert metrics.correlation(noisy, jnp.asarray(MIXED, jnp.float32)) > 0.97


def test_damping_is_that_of_the_normal_equations():
    r, damping = spikes(1, 80)[0], 0.1
    d = convolve(r[None], MIXED)[0]
    columns = np.stack([np.convolve(r, one, mode="same") for one in np.eye(51)], axis=1)
    gram = columns.T @ columns
    expected = np.linalg.solve(gram + damping * np.trace(gram) / 51 * np.eye(51), columns.T @ d)
    got = wavelets.estimate_least_squares(jnp.asarray(d, jnp.float32), jnp.asarray(r, jnp.float32), 51, damping=damping)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_statistical_estimate_recovers_amplitude_spectrum_and_phase():
    """White reflectivity: the spectrum from the traces alone; sparse besides: the phase from their kurtosis."""
    traces = jnp.asarray(convolve(spikes(density=0.05), MIXED), jnp.float32)
    phase = wavelets.constant_phase(traces)
    assert abs(phase - 40) <= 5
    estimate = wavelets.estimate_statistical(traces, 51, phase=phase)
    assert metrics.correlation(estimate, jnp.asarray(MIXED, jnp.float32)) > 0.99
    zero_phase = wavelets.estimate_statistical(traces, 51)
    assert zero_phase.argmax() == 25
    np.testing.assert_allclose(zero_phase[25], 1, rtol=1e-5)
    np.testing.assert_allclose(zero_phase, zero_phase[::-1], atol=1e-5)


def test_statistical_estimate_tapers_the_autocorrelation_by_parzens_window():
    """Parzen's window is the cubic B-spline, scaled to 1 in the middle and to 0 at `lags`."""
    traces, lags = convolve(spikes(), MIXED), 30
    autocorrelation = sum(np.correlate(trace, trace, "full") for trace in traces)
    window = scipy.interpolate.BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)(2 * np.arange(-299, 300) / lags)
    circular = np.fft.ifftshift(np.pad(1.5 * np.nan_to_num(window) * autocorrelation, (1, 0)))
    expected = np.fft.fftshift(np.fft.irfft(np.sqrt(np.abs(np.fft.rfft(circular))), 600))[300 - 25 : 300 + 26]
    got = wavelets.estimate_statistical(jnp.asarray(traces, jnp.float32), 51, lags=lags)
    np.testing.assert_allclose(got, expected / expected[25], atol=1e-3)


def test_a_wavelet_for_another_sample_interval_is_refused():
    wavelets.check_interval(TIME, DT)
    with pytest.raises(ValueError, match=r"sampled every 0\.004 s, the data every 0\.002 s"):
        wavelets.check_interval(TIME, 0.002)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wavelets.time_axis(4, DT), "time_axis: samples must be odd"),
        (lambda: wavelets.time_axis(5, 0.0), "interval must be positive"),
        (lambda: wavelets.ricker(TIME, 0), "ricker: frequencies must be positive"),
        (lambda: wavelets.ricker(TIME, 126.0), "must not exceed 125 Hz"),
        (lambda: wavelets.ormsby(TIME, (5, 20, 15, 60)), "ormsby: frequencies must increase"),
        (lambda: wavelets.klauder(TIME, 60, 10, 4), "klauder: frequencies must increase"),
        (lambda: wavelets.klauder(TIME, 10, 60, 0), "duration must be positive"),
        (lambda: wavelets.butterworth(TIME, 10, 200), "butterworth: frequencies must not exceed 125 Hz"),
        (lambda: wavelets.butterworth(TIME, 10, 40, 0), "order must be at least 1"),
        (lambda: wavelets.bandwidth(wavelets.Spectrum(TIME, TIME), 3.0), "level must be below"),
        (lambda: wavelets.spectrum(RICKER, -1), "interval must be positive"),
        (lambda: wavelets.estimate_least_squares(RICKER, RICKER, 50), "samples must be odd and at most the 101"),
        (lambda: wavelets.estimate_least_squares(RICKER, RICKER, 51, damping=-1), "damping must not be negative"),
        (lambda: wavelets.estimate_statistical(RICKER, 103), "samples must be odd and at most the 101"),
        (lambda: wavelets.estimate_statistical(RICKER, 51, lags=1), "lags must be between 2 and"),
        (lambda: wavelets.constant_phase(RICKER, step=0.0), "step must be in"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
