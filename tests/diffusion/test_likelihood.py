"""Likelihood by the probability flow against closed forms of a mixture of Gaussians; the variational bound's terms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.diffusion import likelihood, schedules
from tests.diffusion import mixture

MEANS = mixture.CENTERED
X = mixture.draw(1, 20, MEANS)
GRID = likelihood.flow_grid(100)
SCHEDULES = {"edm": schedules.edm(1e5), "cosine": schedules.cosine(), "flow": schedules.flow()}


def log_p(schedule, x=X, grid=GRID, **options):
    """In one compiled program, float64: test_no_jit_is_needed runs without."""
    with jax.disable_jit(False), jax.enable_x64(True):
        denoise = mixture.denoiser(schedule, MEANS)
        run = jax.jit(lambda x, key: likelihood.log_likelihood(denoise, schedule, x, key, grid=grid, **options))
        return jax.tree.map(np.asarray, run(np.asarray(x, np.float64), jax.random.key(0)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_hundred_steps_are_within_a_millionth(name):
    """Of the density of the data with the noise of the grid's last ratio, 0.001; without that noise it is 2e-5 off."""
    result = log_p(SCHEDULES[name])
    ratio = float(SCHEDULES[name].ratio(GRID(SCHEDULES[name])[-2]))
    assert ratio == pytest.approx(1e-3)
    np.testing.assert_allclose(result.log_p, mixture.log_density(X, ratio**2, MEANS), rtol=0, atol=1e-6)
    np.testing.assert_allclose(result.log_p, mixture.log_density(X, 0.0, MEANS), rtol=0, atol=3e-5)
    assert not result.standard_error.any()


def test_the_error_falls_by_fourth_order():
    schedule = SCHEDULES["edm"]
    errors = []
    for steps in (25, 50, 100):
        result = log_p(schedule, grid=likelihood.flow_grid(steps, largest=1e5))
        errors.append(np.abs(result.log_p - mixture.log_density(X, 1e-6, MEANS)).max())
    assert np.log2(errors[0] / errors[1]) > 3.5
    assert errors[2] < errors[1] / 8


def test_random_probes_are_within_four_of_their_standard_errors():
    exact, probed = log_p(SCHEDULES["flow"]), log_p(SCHEDULES["flow"], probes=64)
    assert probed.standard_error.shape == (20,)
    assert (np.abs(probed.log_p - exact.log_p) <= 4 * probed.standard_error).all()
    ratios = (probed.log_p - exact.log_p) / probed.standard_error
    assert 0.5 < np.sqrt(np.mean(ratios**2)) < 1.6  # neither is the error too large, nor is it pretended
    assert np.isnan(log_p(SCHEDULES["flow"], probes=1).standard_error).all()


def test_the_prior_is_as_wide_as_it_is_said():
    """Of data N(0, 0.5²) at the noise 2: with the right width the flow is exact, by default σ is taken for all of it."""
    schedule, std, x = schedules.edm(2.0), 0.5, np.array([[0.3], [-0.8], [0.0]])

    def denoise(x, t):
        return x * std**2 / (std**2 + t**2)

    def value(**options):
        with jax.enable_x64(True):
            return np.asarray(likelihood.log_likelihood(denoise, schedule, jnp.asarray(x), grid=GRID, **options).log_p)

    variance = std**2 + 1e-6
    expected = -0.5 * (x**2 / variance + math.log(2 * math.pi * variance))[:, 0]
    with jax.disable_jit(False):
        np.testing.assert_allclose(value(prior_std=math.hypot(std, 2.0)), expected, rtol=0, atol=1e-6)
        # z = x / std is carried exactly: the prior at σ = 2 of hypot(σ, std) z, plus the logarithm of the growth.
        ends, growth = (
            x[:, 0] * math.hypot(2.0, std) / math.sqrt(variance),
            math.log(math.hypot(2.0, std) / math.sqrt(variance)),
        )
        of_prior = -0.5 * (ends / 2) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(2.0)
        np.testing.assert_allclose(value(), of_prior + growth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
def test_the_density_integrates_to_one_in_float32(name):
    """On a plane of points; in float32, the dtype of the data."""
    schedule = SCHEDULES[name]
    side = np.linspace(-4, 4, 33)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    with jax.disable_jit(False):
        denoise = mixture.denoiser(schedule, MEANS)
        run = jax.jit(lambda x: likelihood.log_likelihood(denoise, schedule, x, grid=likelihood.flow_grid(30)).log_p)
        values = run(points)
    assert values.dtype == jnp.float32
    assert float(jnp.exp(values).sum()) * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), schedules.sigmoid()], ids=[*SCHEDULES, "sigmoid"])
def test_float32_near_the_end_of_the_schedule_costs_no_digits(schedule):
    """By the default grid, whose times come as close to the end as float32 can tell, and coincide there; of N(0, 1)."""

    def denoise(x, t):
        alpha, sigma, _ = schedule(t)
        return alpha / (alpha**2 + sigma**2) * x

    x = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    with jax.disable_jit(False):
        found = jax.jit(lambda x: likelihood.log_likelihood(denoise, schedule, x).log_p)(x)
    np.testing.assert_allclose(found, -jnp.square(x).sum(1) / 2 - math.log(2 * math.pi), rtol=0, atol=1e-5)


def test_a_table_that_leaves_nothing_of_the_data_has_a_likelihood():
    """By the default grid, from its last step but one to its first, whose noise the data then have; of N(0, 1)."""
    schedule = schedules.zero_terminal(schedules.cosine(50))
    variance = 1 + float(schedule.ratio(1)) ** 2

    def denoise(x, t):
        alpha, sigma, _ = schedule(t)
        return alpha / (alpha**2 + sigma**2) * x

    x = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    with jax.disable_jit(False):
        found = jax.jit(lambda x: likelihood.log_likelihood(denoise, schedule, x).log_p)(x)
    expected = -jnp.square(x).sum(1) / (2 * variance) - math.log(2 * math.pi * variance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_no_jit_is_needed(jit):
    schedule, grid = SCHEDULES["flow"], likelihood.flow_grid(4)
    x, denoise = jnp.asarray(X[:3], jnp.float32), mixture.denoiser(SCHEDULES["flow"], MEANS)
    run = jit(lambda x, key: likelihood.log_likelihood(denoise, schedule, x, key, grid=grid, probes=2))
    with jax.disable_jit(False):
        expected = jax.jit(lambda x, key: likelihood.log_likelihood(denoise, schedule, x, key, grid=grid, probes=2))
        expected = expected(x, jax.random.key(1))
    result = run(x, jax.random.key(1))
    np.testing.assert_allclose(result.log_p, expected.log_p, rtol=0, atol=1e-4)


def test_flow_grid_is_dense_where_data_and_noise_are_of_one_size():
    times = likelihood.flow_grid(100)(schedules.edm(1e5))
    assert len(times) == 102  # 100 steps of the flow, and the one to 0 that it leaves out
    np.testing.assert_allclose(times[[0, -2]], [1e4, 1e-3])
    places = np.arcsinh(np.log(times[:-1] / 0.5) / 2)
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0], rtol=1e-9)
    assert likelihood.flow_grid(10)(schedules.edm())[0] == pytest.approx(80)


def test_bits_per_dimension_are_of_a_bin():
    """A density of log p = d log(1 / 2) on [-1, 1]^d: 8 bits for each of 256 bins."""
    assert float(likelihood.bits_per_dimension(jnp.float32(-12 * math.log(2)), 12)) == pytest.approx(8)
    value = likelihood.bits_per_dimension(jnp.float32([-7.0, -14.0]), 2, bin_width=1.0)
    np.testing.assert_allclose(value, np.array([3.5, 7.0]) / math.log(2), rtol=1e-6)


def test_what_is_wrong_is_said(unchecked):
    schedule, x = schedules.flow(), jnp.zeros((2, 2))
    denoise = mixture.denoiser(schedule)
    for options, words in [
        ({"probes": 0, "key": jax.random.key(0)}, "probes must be at least 1"),
        ({"probes": 2}, "need a key"),
        ({"grid": schedules.explicit([0.5])}, "at least 2 steps apart in float32, got 1"),
        ({"grid": schedules.uniform(3)}, "something is left of the data"),
    ]:
        with pytest.raises(ValueError, match=words):
            likelihood.log_likelihood(denoise, schedule, x, **options)
    for dimensions, width in ((0, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="must be positive"):
            likelihood.bits_per_dimension(jnp.zeros(()), dimensions, bin_width=width)
    with pytest.raises(ValueError, match="smallest < center < largest"):
        likelihood.flow_grid(3, smallest=1.0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        likelihood.flow_grid(0)(schedule)


# ---- the variational bound ------------------------------------------------------------------------------------------


STD = 0.6  # of Gaussian data


def gaussian_bound(schedule, grid, count, levels=None, key=0):
    """Terms for data N(0, STD²) by their closed denoiser; `(x, bound)`."""
    level = schedule

    def denoise(x, t):
        alpha, sigma, _ = level(t)
        return x * alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)

    x = STD * jax.random.normal(jax.random.key(key + 10), (count, 1), jnp.float32)
    with jax.disable_jit(False):
        run = jax.jit(lambda x, key: likelihood.variational_bound(denoise, schedule, grid, x, key, levels=levels))
        return np.asarray(x, np.float64), run(x, jax.random.key(key))


@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.edm()], ids=["linear", "edm"])
def test_the_terms_of_the_bound_are_those_of_gaussian_data(schedule):
    """Prior: a KL divergence, exactly. Diffusion: `(SNR_s - SNR_t) / 2` times the posterior variance, in expectation."""
    grid, count = schedules.karras(8, smallest=0.02), 20000
    x, bound = gaussian_bound(schedule, grid, count)
    times = grid(schedule)
    alpha, sigma, log_snr = schedule(times[:-1])
    width = 1.0 if schedule.family == "preserving" else sigma[0]
    mean, std = alpha[0] * x[:, 0] / width, sigma[0] / width
    np.testing.assert_allclose(bound.prior, 0.5 * (std**2 + mean**2 - 1) - math.log(std), rtol=1e-4, atol=1e-7)
    assert bound.diffusion.shape == (7, count)
    variance = 1 / (1 / STD**2 + np.exp(log_snr))  # of the data given x_t
    terms = np.asarray(bound.diffusion, np.float64)
    expected = np.diff(np.exp(log_snr)) / 2 * variance[:-1]
    assert (np.abs(terms.mean(1) - expected) <= 4 * terms.std(1) / math.sqrt(count)).all()
    # Reconstruction: -log N(x; denoise(x_t), σ²), of which the squared distance is the posterior variance.
    reconstruction = np.asarray(bound.reconstruction, np.float64)
    expected = 0.5 * math.log(2 * math.pi * sigma[-1] ** 2) + 0.5 * variance[-1] / sigma[-1] ** 2
    assert abs(reconstruction.mean() - expected) <= 4 * reconstruction.std() / math.sqrt(count)
    np.testing.assert_allclose(bound.total, bound.prior + terms.sum(0) + reconstruction, rtol=1e-4, atol=1e-4)


def test_more_steps_tighten_the_bound_towards_the_entropy():
    """The expected bound less the entropy of the data: positive, halved by twice the steps. Measured 1.21, 0.52, 0.25."""
    gaps, errors = [], []
    for steps in (40, 80, 160):
        x, bound = gaussian_bound(schedules.linear(), schedules.karras(steps, smallest=0.02), 20000)
        # the data's own -log p as a control: its mean is the entropy
        control = 0.5 * (x[:, 0] / STD) ** 2 + 0.5 * math.log(2 * math.pi * STD**2)
        gap = np.asarray(bound.total, np.float64) - control
        gaps.append(gap.mean())
        errors.append(gap.std() / math.sqrt(len(gap)))
    assert gaps[2] > 4 * errors[2]
    assert 1.7 < gaps[1] / gaps[2] < 2.5
    assert 1.7 < gaps[0] / gaps[1] < 2.7


def test_a_bin_costs_its_width_less_than_the_density():
    """The levels' reconstruction is the density's less `log(2 / (levels - 1))` where bins are narrow; of the same noise."""
    x = 0.3 * jax.random.normal(jax.random.key(0), (50, 3))
    schedule, grid = schedules.linear(), schedules.karras(4, smallest=0.3)

    def bound(levels):
        return likelihood.variational_bound(lambda x, t: 0.5 * x, schedule, grid, x, jax.random.key(1), levels=levels)

    with jax.disable_jit(False):
        binned, plain = bound(4096), bound(None)
    assert (binned.diffusion == plain.diffusion).all()
    np.testing.assert_allclose(binned.reconstruction, plain.reconstruction - 3 * math.log(2 / 4095), rtol=1e-5)


def test_the_bound_is_below_the_log_likelihood_of_a_mixture():
    """By 0.55 nats at 200 steps, 24 standard errors of the mean."""
    schedule, grid = schedules.cosine(), schedules.karras(200, smallest=0.01)
    x = jnp.asarray(mixture.draw(3, 2000, MEANS), jnp.float32)
    denoise = mixture.denoiser(schedule, MEANS)
    run = jax.jit(lambda x, key: likelihood.variational_bound(denoise, schedule, grid, x, key, levels=None))
    with jax.disable_jit(False):
        gap = np.asarray(run(x, jax.random.key(0)).total, np.float64) + mixture.log_density(x, 0.0, MEANS)
    error = gap.std() / math.sqrt(len(gap))
    assert 4 * error < gap.mean() < 1
