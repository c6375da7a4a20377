"""Schedules against their formulas in 40 digits, their inverses, tables, and what is said of wrong ones."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxnets.diffusion import schedules

TIMES = [1e-6, 1e-3, 0.1, 0.37, 0.5, 0.9, 0.999]


def linear(t, first=mp.mpf("1e-4"), last=mp.mpf("0.02")):
    kept = mp.exp(-1000 * (first * t + (last - first) * t**2 / 2))
    return mp.sqrt(kept), mp.sqrt(1 - kept)


def scaled_linear(t):
    low, high = mp.sqrt(mp.mpf("8.5e-4")), mp.sqrt(mp.mpf("0.012"))
    kept = mp.exp(-1000 * mp.quad(lambda u: (low + (high - low) * u) ** 2, [0, t]))
    return mp.sqrt(kept), mp.sqrt(1 - kept)


def cosine(t):
    def raw(u):
        return mp.cos((u + mp.mpf("0.008")) / mp.mpf("1.008") * mp.pi / 2)

    alpha = raw(t) / raw(mp.mpf(0))
    return alpha, mp.sqrt(1 - alpha**2)


def sigmoid(t, start=-3, end=3, temperature=1):
    def raw(u):
        return 1 / (1 + mp.exp(-mp.mpf(u) / temperature))

    kept = (raw(end) - raw(start + (end - start) * t)) / (raw(end) - raw(start))
    return mp.sqrt(kept), mp.sqrt(1 - kept)


def variance_exploding(t):
    low, high = mp.mpf("0.01"), mp.mpf(50)
    return mp.mpf(1), low * mp.sqrt((high / low) ** (2 * t) - 1)


def zero_terminal(t):
    last = linear(mp.mpf(1))[0]
    alpha = (linear(t)[0] - last) / (1 - last)
    return alpha, mp.sqrt(1 - alpha**2)


def shifted(t):
    """Of flow, by 3: Esser et al. (2024), eq. 23."""
    moved = 3 * t / (1 + 2 * t)
    return 1 - moved, moved


CLOSED = {
    "linear": (schedules.linear(), linear),
    "scaled_linear": (schedules.scaled_linear(), scaled_linear),
    "cosine": (schedules.cosine(), cosine),
    "sigmoid": (schedules.sigmoid(), sigmoid),
    "sigmoid_cold": (schedules.sigmoid(start=0.0, end=3.0, temperature=0.7), lambda t: sigmoid(t, 0, 3, mp.mpf(0.7))),
    "edm": (schedules.edm(1.0), lambda t: (mp.mpf(1), t)),
    "variance_exploding": (schedules.variance_exploding(), variance_exploding),
    "flow": (schedules.flow(), lambda t: (1 - t, t)),
    "shifted": (schedules.shifted(schedules.flow(), 3.0), shifted),
    "zero_terminal": (schedules.zero_terminal(schedules.linear()), zero_terminal),
}
TABLES = {
    "linear_table": schedules.linear(1000),
    "scaled_table": schedules.scaled_linear(200),
    "cosine_table": schedules.cosine(50),
    "sigmoid_table": schedules.sigmoid(50),
    "zero_table": schedules.zero_terminal(schedules.linear(1000)),
    "shifted_table": schedules.shifted(schedules.linear(100), 2.0),
}
EVERY = {**{name: pair[0] for name, pair in CLOSED.items()}, **TABLES}


@pytest.mark.parametrize("name", CLOSED)
def test_levels_are_those_of_the_formula_to_the_last_digits(name):
    """In 40 digits: on the host to 1e-13, in float32 to some of its last digits, near both ends."""
    schedule, formula = CLOSED[name]
    with mp.workdps(40):
        exact = [formula(mp.mpf(t)) for t in TIMES]
        expected = np.array([[float(a), float(s), float(2 * mp.log(a / s))] for a, s in exact]).T
    for got, value in zip(schedule(np.array(TIMES)), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-13, atol=1e-13)
    single = jnp.float32(np.array(TIMES))
    with mp.workdps(40):
        exact = [formula(mp.mpf(float(t))) for t in single]
        expected = np.array([[float(a), float(s), float(2 * mp.log(a / s))] for a, s in exact]).T
    for got, value in zip(schedule(single), expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, value, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("name", EVERY)
def test_time_is_the_inverse_of_ratio(name):
    schedule = EVERY[name]
    times = schedule.end * np.array([0.0, 1e-6, 1e-3, 0.01, 0.2, 0.5, 0.77, 0.99, 1.0])
    np.testing.assert_allclose(schedule.time(schedule.ratio(times)), times, rtol=1e-9, atol=1e-12)
    ratios = np.geomspace(1e-4, min(50.0, float(schedule.ratio(schedule.end)) * 0.9), 12)
    np.testing.assert_allclose(schedule.ratio(schedule.time(ratios)), ratios, rtol=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_the_ends_are_clean(name):
    """At 0 all is data, exactly; at the end nothing where the schedule says so; no NaN anywhere, also in float32."""
    schedule = EVERY[name]
    start, end = schedule(0.0), schedule(schedule.end)
    assert (start.alpha, start.sigma, start.log_snr) == (1, 0, np.inf)
    assert schedule.reaches_noise == (end.alpha == 0) == (end.log_snr == -np.inf)
    assert schedule.reaches_noise == (
        name in ("cosine", "sigmoid", "sigmoid_cold", "flow", "shifted", "zero_terminal", "zero_table")
    )
    times = np.linspace(0, schedule.end, 41)
    for t in (times, jnp.float32(times)):
        level = schedule(t)
        assert not any(np.isnan(part).any() for part in level)
        assert (np.diff(level.log_snr[1:]) < 0).all()
        assert (np.diff(np.asarray(schedule.ratio(t))) > 0).all()
    if schedule.family == "preserving":
        level = schedule(times)
        np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


@pytest.mark.parametrize("name", ["linear", "cosine", "zero_terminal", "cosine_table"])
def test_jit_and_gradient_go_through_and_schedules_are_static(name, jit):
    schedule = EVERY[name]
    t = jnp.float32(0.41 * schedule.end)  # between the whole steps of a table
    of_time = jit(lambda schedule, t: schedule(t), **({"static_argnums": 0} if jit is jax.jit else {}))
    for got, expected in zip(of_time(schedule, t), schedule(np.float64(t)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    slope = jit(jax.grad(lambda t: schedule(t).log_snr))(t)
    step = 1e-5 * schedule.end
    difference = (schedule(float(t) + step).log_snr - schedule(float(t) - step).log_snr) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-3)
    assert jax.tree.leaves(schedule) == []  # static: it may be an argument of a compiled function


def test_schedules_compare_by_value():
    assert schedules.linear(100) == schedules.linear(100) != schedules.linear(101)
    assert hash(schedules.cosine()) == hash(schedules.cosine())
    assert schedules.cosine() != schedules.cosine(offset=0.01)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_tables_are_cumulative_products():
    """Whole times are numbers of steps; 0 is the data. Betas for other numbers of steps are scaled by 1000 / N."""
    for schedule, betas in [
        (schedules.linear(1000), np.linspace(1e-4, 0.02, 1000)),
        (schedules.linear(200), np.linspace(1e-4, 0.02, 200) * 5),
        (schedules.scaled_linear(1000), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    ]:
        kept = np.cumprod(1 - betas)
        assert schedule.steps == schedule.end == len(betas)
        np.testing.assert_allclose(schedule(np.arange(1, len(betas) + 1)).alpha ** 2, kept, rtol=1e-12)
        np.testing.assert_allclose(schedule(np.arange(1, len(betas) + 1)).sigma ** 2, 1 - kept, rtol=1e-12)


def test_cosine_and_sigmoid_tables_bound_each_step():
    """betas_for_alpha_bar: `min(1 - ᾱ(i + 1) / ᾱ(i), 0.999)`; only the last one is cut."""

    def of_cosine(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = np.array([min(1 - of_cosine((i + 1) / 1000) / of_cosine(i / 1000), 0.999) for i in range(1000)])
    level = schedules.cosine(1000)(np.arange(1001))
    np.testing.assert_allclose(1 - level.alpha[1:] ** 2 / level.alpha[:-1] ** 2, betas, rtol=1e-9, atol=1e-13)
    assert betas[-1] == 0.999 > betas[-2]
    for schedule in (schedules.cosine(50), schedules.sigmoid(50)):
        level = schedule(np.arange(51))
        betas = 1 - (level.alpha[1:] / level.alpha[:-1]) ** 2
        assert betas[-1] == pytest.approx(0.999)
        assert (betas[:-1] < 0.9).all()
        assert not schedule.reaches_noise


def test_a_table_is_log_linear_between_its_steps():
    kept = np.array([0.9, 0.5, 0.1])
    schedule, ratios = schedules.table(kept), np.sqrt((1 - kept) / kept)
    np.testing.assert_allclose(schedule.ratio(np.array([1.0, 2.0, 3.0])), ratios, rtol=1e-14)
    np.testing.assert_allclose(schedule.ratio(2.25), ratios[1] ** 0.75 * ratios[2] ** 0.25, rtol=1e-14)
    np.testing.assert_allclose(schedule.ratio(0.5), ratios[0] / 2, rtol=1e-14)
    with_zero = schedules.table([0.9, 0.5, 0.0])
    assert with_zero.reaches_noise
    assert with_zero.time(np.inf) == 3
    assert with_zero.ratio(2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("last", [0.1, 0.0])
def test_the_derivative_at_a_step_of_a_table_is_that_of_the_stretch_that_begins_there(last):
    schedule = schedules.table([0.9, 0.7, 0.5, last])
    for step in (1, 2) if last == 0 else (1, 2, 3):
        slope = math.log(schedule.ratio(step + 1.0) / schedule.ratio(float(step)))  # of log(σ / α)
        np.testing.assert_allclose(jax.grad(lambda t: -schedule(t).log_snr / 2)(float(step)), slope, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda t: schedule(t).alpha)(3.0))  # before a stretch without end, too


def test_continuous_linear_is_the_limit_of_tables():
    apart = []
    for steps in (1000, 2000):
        t = np.arange(1, steps + 1)
        apart.append(np.abs(schedules.linear(steps)(t).alpha - schedules.linear()(t / steps).alpha).max())
    assert 1.9 < apart[0] / apart[1] < 2.1
    assert apart[0] < 3e-3


def test_zero_terminal_shifts_and_stretches_alpha():
    """Lin et al. (2024), algorithm 1: the first alpha stays, the last is 0, those between are an affine map."""
    before, after = schedules.linear(1000), schedules.zero_terminal(schedules.linear(1000))
    t = np.arange(1, 1001)
    old, new = before(t).alpha, after(t).alpha
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=1e-9, atol=1e-15)
    assert new[-1] == 0
    assert new[0] == pytest.approx(old[0], rel=1e-12)


def test_a_shift_multiplies_the_ratio_at_every_time():
    for schedule in (schedules.cosine(), schedules.linear(100), schedules.flow()):
        times = schedule.end * np.array([0.01, 0.3, 0.8])
        moved = schedules.shifted(schedule, 2.5)
        np.testing.assert_allclose(moved.ratio(times), 2.5 * schedule.ratio(times), rtol=1e-14)
        np.testing.assert_allclose(moved(times).log_snr, schedule(times).log_snr - 2 * math.log(2.5), rtol=1e-9, atol=1e-12)
        assert moved.family == schedule.family
        assert moved.end == schedule.end
        assert moved.steps == schedule.steps == schedules.shifted(moved, 2.0).steps


def test_what_is_wrong_is_said(unchecked):
    for call, words in [
        (lambda: schedules.linear(0), "linear: steps must be at least 1, got 0"),
        (lambda: schedules.linear(20), "linear: so few steps would add more noise than there is room for, got 20"),
        (lambda: schedules.linear(first=0.1, last=0.01), "linear: expected 0 < first < last, got 0.1 and 0.01"),
        (lambda: schedules.scaled_linear(first=-1.0), "scaled_linear: expected 0 < first < last"),
        (lambda: schedules.cosine(offset=1.0), r"cosine: offset must be in \[0, 1\), got 1.0"),
        (lambda: schedules.sigmoid(start=3.0, end=-3.0), "sigmoid: expected first < last"),
        (lambda: schedules.sigmoid(temperature=0.0), "sigmoid: temperature must be positive"),
        (lambda: schedules.edm(-1.0), "edm: expected"),
        (lambda: schedules.variance_exploding(2.0, 1.0), "variance_exploding: expected"),
        (lambda: schedules.shifted(schedules.flow(), 0.0), "shifted: factor must be positive"),
        (lambda: schedules.zero_terminal(schedules.flow()), "must be variance preserving, got one that is flow"),
        (lambda: schedules.table([0.5, 0.6]), "alpha_squared must decrease inside"),
        (lambda: schedules.table([1.0, 0.5]), "alpha_squared must decrease inside"),
        (lambda: schedules.table([0.5, 0.0, 0.0]), "alpha_squared must decrease inside"),
        (lambda: schedules.table([]), "alpha_squared must decrease inside"),
        (lambda: schedules.table([0.5, float("nan")]), "alpha_squared must decrease inside"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_the_time_of_a_small_ratio_keeps_its_digits_in_float32():
    steep = schedules.sigmoid(temperature=0.3)
    for schedule in (schedules.cosine(), schedules.cosine(offset=0.0), schedules.linear(), schedules.sigmoid(), steep):
        ratios = np.array([1e-4, 1e-3, 1e-2, 1.0, 30.0])
        np.testing.assert_allclose(schedule.ratio(schedule.time(ratios)), ratios, rtol=1e-7)
        np.testing.assert_allclose(schedule.time(jnp.float32(ratios)), schedule.time(ratios), rtol=2e-5)
