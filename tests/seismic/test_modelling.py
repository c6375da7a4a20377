"""Forward models: inverses of each other, NumPy, energy conservation, and approximations that approach the exact equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.proximal import linear
from jaxnets.seismic import metrics, modelling, wavelets

RNG = np.random.default_rng(0)
WAVELET = wavelets.ricker(wavelets.time_axis(21, 0.004), 30.0)
ANGLES = jnp.array([0.0, 12.0, 25.0, 38.0])
SHALE = modelling.Elastic(2300.0, 900.0, 2200.0)
SAND = modelling.Elastic(3000.0, 1600.0, 2300.0)


def test_reflectivity_and_impedance_are_inverses(jit):
    z = jnp.asarray(np.exp(RNG.normal(size=(3, 20))), jnp.float32)
    r = jit(modelling.reflectivity)(z)
    np.testing.assert_allclose(r[:, :-1], (z[:, 1:] - z[:, :-1]) / (z[:, 1:] + z[:, :-1]), rtol=1e-5, atol=1e-6)
    assert not r[:, -1].any()
    np.testing.assert_allclose(jit(modelling.impedance)(r, z[:, 0]), z, rtol=1e-4)
    np.testing.assert_allclose(modelling.impedance(r[0], 5000)[0], 5000)


def test_log_reflectivity_is_the_artanh_of_the_exact_one():
    """`ln(Z2 / Z1) / 2 = artanh r = r + r³/3 + ...`: at r = 0.05 they differ by 4e-5."""
    z = jnp.array([1.0, 1.105, 1.0, 2.0])
    operator = modelling.log_reflectivity(z.shape)
    np.testing.assert_allclose(operator(jnp.log(z)), np.arctanh(modelling.reflectivity(z)), atol=1e-6)
    assert abs(operator(jnp.log(z)) - modelling.reflectivity(z))[0] < 5e-5


def test_the_convolutional_model_is_numpys_convolution(jit):
    r = RNG.normal(size=(2, 40))
    expected = [np.convolve(x, WAVELET, mode="same") for x in r]
    np.testing.assert_allclose(jit(modelling.convolutional_model)(jnp.asarray(r, jnp.float32), WAVELET), expected, atol=1e-5)


def test_the_poststack_operator_models_small_contrasts():
    z = jnp.asarray(np.exp(0.05 * RNG.normal(size=(2, 40))), jnp.float32)
    operator = modelling.poststack_operator(WAVELET, z.shape)
    exact = modelling.convolutional_model(modelling.reflectivity(z), WAVELET)
    assert metrics.snr_db(operator(jnp.log(z)), exact) > 50
    assert linear.dot_test(operator, jax.random.key(0)) < 1e-5


def test_zoeppritz_at_normal_incidence_is_the_impedance_contrast():
    z1, z2 = SHALE.impedance, SAND.impedance
    waves = modelling.zoeppritz(SHALE, SAND, jnp.zeros(1))
    np.testing.assert_allclose(waves.pp, [(z2 - z1) / (z2 + z1)], rtol=1e-5)
    np.testing.assert_allclose(waves.transmitted_pp, [2 * z1 / (z1 + z2)], rtol=1e-5)
    np.testing.assert_allclose([*waves.ps, *waves.transmitted_ps], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        (SHALE, SAND),  # critical at 50 degrees
        (SAND, SHALE),
        (modelling.Elastic(1500.0, 0.0, 1030.0), modelling.Elastic(4000.0, 2200.0, 2500.0)),  # sea floor: two critical angles
        (modelling.Elastic(2000.0, 880.0, 2000.0), modelling.Elastic(1500.0, 0.0, 1000.0)),
    ],
    ids=["shale-sand", "sand-shale", "sea-floor", "solid-fluid"],
)
def test_zoeppritz_conserves_energy_beyond_critical_angles_too(upper, lower):
    """The vertical energy flux of the four waves is that of the incident one; evanescent waves carry none."""
    angles = jnp.array([0.0, 15.0, 35.0, 55.0, 85.0])
    waves = modelling.zoeppritz(upper, lower, angles)
    slowness = np.sin(np.deg2rad(np.asarray(angles, np.float64))) / upper.vp

    def flux(side, speed):
        return side.density * speed * np.sqrt((1 - (slowness * speed) ** 2).astype(complex)).real

    speeds = [(upper, upper.vp), (upper, upper.vs), (lower, lower.vp), (lower, lower.vs)]
    left = sum(np.abs(np.asarray(wave)) ** 2 * flux(*speed) for wave, speed in zip(waves, speeds, strict=True))
    np.testing.assert_allclose(left / flux(upper, upper.vp), 1, rtol=2e-4)


def test_zoeppritz_reflects_all_of_p_between_fluids_in_the_limit():
    """vs -> 0 below as above: Rayleigh's fluid formula, total reflection beyond the critical angle arcsin(1500/2500) = 36.9."""
    upper, lower = modelling.Elastic(1500.0, 1.0, 1000.0), modelling.Elastic(2500.0, 1.0, 2000.0)
    angles = np.array([10.0, 30.0, 45.0])
    cos1 = np.cos(np.deg2rad(angles))
    cos2 = np.sqrt(1 - (2500 / 1500) ** 2 * (1 - cos1**2) + 0j)
    z1, z2 = 1500 * 1000 / cos1, 2500 * 2000 / cos2
    got = modelling.zoeppritz_pp(upper, lower, jnp.asarray(angles, jnp.float32))
    np.testing.assert_allclose(np.abs(got), np.abs((z2 - z1) / (z2 + z1)), rtol=1e-3)
    assert abs(got[2]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("approximation", [modelling.aki_richards, modelling.fatti])
def test_linear_reflection_approaches_zoeppritz_quadratically(approximation, jit):
    """The error is of second order: with a contrast 4 times smaller, its ratio to the contrast is 4 times smaller."""
    errors = []
    for size in (0.08, 0.02):
        with jax.enable_x64(True):
            angles = jnp.asarray(np.asarray(ANGLES), jnp.float64)
            lower = modelling.Elastic(
                *(value * (1 + size * scale) for value, scale in zip(SHALE, (1.0, 1.5, 0.4), strict=True))
            )
            exact = modelling.zoeppritz_pp(SHALE, lower, angles).real
            errors.append(np.abs(jit(lambda a, b=lower: approximation(SHALE, b, a))(angles) - exact).max() / size)
    assert errors[0] < 0.03
    assert errors[1] < errors[0] / 3.5


def test_fatti_is_aki_richards_in_other_variables():
    """`d ln Ip = d ln Vp + d ln ρ`, `d ln Is = d ln Vs + d ln ρ`: the weights transform with the variables, term by term."""
    for ratio in (0.5, jnp.array([0.3, 0.6])):
        change = jnp.array([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]])
        expected = modelling.aki_richards_weights(ANGLES, ratio)
        np.testing.assert_allclose(modelling.fatti_weights(ANGLES, ratio) @ change, expected, atol=1e-6)


@pytest.mark.parametrize("background", ["number", "time", "trace"])
def test_the_avo_operator_gives_the_gathers_of_its_weights(background, jit):
    """Small contrasts: each angle is the reflection of the two samples' properties by `aki_richards`, convolved."""
    logs = np.log([2500, 1200, 2300.0])[:, None] + 0.01 * RNG.normal(size=(2, 3, 30))
    ratio = {"number": 0.48, "time": jnp.full(30, 0.48), "trace": jnp.full((2, 30), 0.48)}[background]
    operator = modelling.avo_operator(ANGLES, ratio, WAVELET, logs.shape)
    gathers = jit(lambda x: operator(x))(jnp.asarray(logs, jnp.float32))
    assert gathers.shape == (2, 4, 30)
    earth = jnp.asarray(np.exp(logs), jnp.float32)
    upper, lower = (modelling.Elastic(*jnp.moveaxis(x, 1, 0)) for x in (earth[..., :-1], earth[..., 1:]))
    r = jnp.pad(modelling.aki_richards(upper, lower, ANGLES), ((0, 0), (0, 1), (0, 0)))
    expected = modelling.convolutional_model(jnp.moveaxis(r, -1, 1), WAVELET)
    assert metrics.snr_db(gathers, expected) > 35
    assert linear.dot_test(operator, jax.random.key(1)) < 1e-5


def test_the_avo_operator_takes_a_wavelet_per_angle():
    logs = jnp.asarray(RNG.normal(size=(3, 30)), jnp.float32)
    per_angle = jnp.stack([WAVELET * scale for scale in (1.0, 2.0, 3.0, 4.0)])
    one, several = (modelling.avo_operator(ANGLES, 0.5, w, logs.shape)(logs) for w in (WAVELET, per_angle))
    np.testing.assert_allclose(several, one * np.arange(1, 5)[:, None], rtol=1e-4, atol=1e-5)


def test_time_and_depth_are_inverses():
    """A smooth velocity: to time and back again. A constant one: exact times and depths."""
    constant = jnp.full((2, 6), 2000.0)
    np.testing.assert_allclose(modelling.two_way_time(constant, 10)[1], np.arange(6) * 0.01, rtol=1e-6)
    np.testing.assert_allclose(modelling.depth(constant, 0.01)[1], np.arange(6) * 10.0, rtol=1e-6)
    steps = jnp.array([[1000.0, 2000.0, 4000.0, 9.0]])  # what lies below a sample doesn't count
    np.testing.assert_allclose(modelling.two_way_time(steps, 10)[0], [0, 0.02, 0.03, 0.035], rtol=1e-6)
    np.testing.assert_allclose(modelling.depth(steps, 0.01)[0], [0, 5, 15, 35], rtol=1e-6)
    z = np.arange(300) * 5.0
    velocity = jnp.asarray(np.stack([2000 + 0.8 * z, 2500 + 300 * np.sin(z / 200)]), jnp.float32)
    log = jnp.asarray(np.stack([np.sin(z / 90), np.cos(z / 120)]), jnp.float32)
    in_time = modelling.depth_to_time(log, velocity, 5, 0.002, 600)
    velocity_in_time = modelling.depth_to_time(velocity, velocity, 5, 0.002, 600)
    back = modelling.time_to_depth(in_time, velocity_in_time, 0.002, 5.0, 300)
    np.testing.assert_allclose(back[:, :280], log[:, :280], atol=0.02)


def test_nmo_flattens_a_hyperbola():
    interval, velocity = 0.004, 2000.0
    offsets = jnp.array([0.0, 200.0, 400.0])
    times = np.arange(150) * interval
    arrival = np.sqrt(0.3**2 + (np.asarray(offsets)[:, None] / velocity) ** 2)
    gather = np.exp(-(((times - arrival) / 0.02) ** 2))
    flat = np.asarray(modelling.nmo(jnp.asarray(gather, jnp.float32), offsets, velocity, interval))
    assert (flat.argmax(axis=1) == 75).all()
    np.testing.assert_allclose(flat[:, 75], 1, atol=0.02)
    assert not flat[2, times < 0.15].any()  # stretched by more than half: zeroed


def test_nmo_has_a_gradient_at_zero_offset():
    gather = jnp.asarray(RNG.normal(size=(2, 20)), jnp.float32)
    slope = jax.grad(lambda v: jnp.sum(modelling.nmo(gather, jnp.array([0.0, 30.0]), v, 0.004) ** 2))(2000.0)
    assert np.isfinite(slope)
    assert slope != 0


def test_layered_earth_is_blocky_and_reproducible(jit):
    make = jit(lambda key: modelling.layered_earth(key, traces=8, samples=200, interval=0.002, layers=12))
    earth = make(jax.random.key(3))
    assert all((log == earth_log).all() for log, earth_log in zip(make(jax.random.key(3)), earth, strict=True))
    vp, vs, density = (np.asarray(log) for log in earth)
    assert vp.shape == (8, 200)
    assert (vp == vp[0]).all()
    changes = np.flatnonzero(np.diff(vp[0]))
    assert len(changes) == 11
    assert np.array_equal(changes, np.flatnonzero(np.diff(density[0])))
    assert (vp >= 1500).all()
    assert ((vs > 0) & (vs < vp)).all()


def test_layers_dip_fault_and_pinch_out_as_told():
    """With dip alone, each trace is the first one shifted; nothing above the unconformity is."""
    options = {"traces": 9, "samples": 200, "interval": 0.002, "layers": 12, "dip": 0.08}
    vp = np.asarray(modelling.layered_earth(jax.random.key(3), **options).vp)
    for trace in range(1, 9):
        assert np.array_equal(vp[trace, 5 * trace + 1 :], vp[0, 1 : 200 - 5 * trace]) or (
            np.mean(vp[trace, 5 * trace :] != vp[0, : 200 - 5 * trace]) < 0.03  # an interface at a sample may round either way
        )
    cut = np.asarray(modelling.layered_earth(jax.random.key(3), **options, unconformity=0.2).vp)
    assert (cut[:, :100] == cut[0, :100]).all()
    assert np.array_equal(cut[:, 100:], vp[:, 100:])
    assert len(np.unique(cut[:, 100])) > 1  # several old layers end there
    faulted = np.asarray(modelling.layered_earth(jax.random.key(3), **{**options, "dip": 0.0}, throw=0.04).vp)
    assert (faulted[:4] == faulted[0]).all()
    assert np.mean(faulted[8, 20:] != faulted[0, :-20]) < 0.03


def test_coarse_spikes_are_where_decimated_data_have_them():
    """Data modelled finely and decimated against data of the coarse spikes: the smoother the wavelet, the closer."""
    fine = np.zeros(81)
    fine[[8, 31, 33, 50]] = [1.0, -2.0, 0.5, 3.0]
    coarse = np.asarray(modelling.coarsen_spikes(jnp.asarray(fine, jnp.float32), 4))
    expected = np.zeros(21)
    expected[[2, 8, 13]] = [1.0, -1.5, 3.0]  # 31 and 33 are both next to 32, 50 lies halfway: to the later
    np.testing.assert_array_equal(coarse, expected)
    np.testing.assert_array_equal(modelling.coarsen_spikes(jnp.asarray(fine, jnp.float32), 1), fine.astype(np.float32))
    assert modelling.coarsen_spikes(jnp.ones((2, 82)), 4).sum() == 2 * 82
    # 78 and 79 are nearest to 80, which is no sample: the last one, 76, has them.
    np.testing.assert_array_equal(modelling.coarsen_spikes(jnp.ones(80), 4), [2, *[4] * 18, 6])


@pytest.mark.parametrize("band", [None, (10.0, 30.0)])
def test_noise_has_the_level_and_the_band_asked_for(band, jit, key):
    data = jnp.asarray(RNG.normal(size=(4, 500)), jnp.float32)
    noisy = jit(lambda data: modelling.add_noise(key, data, 7, band=band, interval=0.004))(data)
    np.testing.assert_allclose(metrics.snr_db(noisy, data), 7, atol=1e-3)
    power = (np.abs(np.fft.rfft(noisy - data)) ** 2).mean(axis=0)
    frequency = np.fft.rfftfreq(500, 0.004)
    inside = power[(frequency > 10) & (frequency < 30)].mean() / power.mean()
    assert inside > 4 if band else 0.7 < inside < 1.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: modelling.aki_richards_weights(jnp.array([10.0, 95.0]), 0.5),
            r"angles must be in \[0, 90\) degrees, got \[95",
        ),
        (lambda: modelling.fatti_weights(ANGLES, 1.2), r"vs_vp must be in \[0, 1\), got 1\.2"),
        (lambda: modelling.zoeppritz(SHALE, SAND, jnp.array([-1.0])), "zoeppritz: angles must be"),
        (lambda: modelling.avo_operator(ANGLES, 0.5, WAVELET, (2, 30)), r"shape must be \(\.\.\., 3, time\)"),
        (lambda: modelling.two_way_time(jnp.ones(3), 0), "interval must be positive"),
        (lambda: modelling.depth_to_time(jnp.ones(3), jnp.ones(3), 5, -1, 10), "time_interval must be positive"),
        (lambda: modelling.add_noise(jax.random.key(0), jnp.ones(9), 10, band=(5, 10)), "a band needs the sampling interval"),
        (
            lambda: modelling.add_noise(jax.random.key(0), jnp.ones(9), 10, band=(9, 5), interval=1),
            "band must be positive and incr",
        ),
        (lambda: modelling.coarsen_spikes(jnp.ones(9), 0), "factor must be at least 1"),
        (
            lambda: modelling.layered_earth(jax.random.key(0), traces=0, samples=9, interval=1, layers=1),
            "layered_earth: traces must be at least 1, got 0",
        ),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
