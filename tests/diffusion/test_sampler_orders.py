"""Order of convergence of every sampler against the exact probability flow, in float64.

The flow of a mixture of Gaussians is integrated by SciPy's DOP853 at a tolerance of 1e-12. What is compared is x at the grid's
last ratio before 0: the step to 0 is the denoiser's own and has no order. Compiled, also under JAX_DISABLE_JIT=1: the
subject is numbers, and that samplers run without jit, test_samplers.py says.
"""

import functools

import jax
import numpy as np
import pytest
from scipy import integrate

from jaxnets.diffusion import samplers, schedules
from tests.diffusion import mixture

SMALLEST, LARGEST = 0.05, 10.0
GRIDS = {"karras": schedules.karras, "log_snr": schedules.exponential}
START = np.random.default_rng(0).normal(size=(16, 2))
SECOND = {"corrected": True, "start": "second"}
ORDERS = {  # sampler, order, how far from it a measurement may be
    "euler": (samplers.euler(), 1, 0.1),
    "ddim": (samplers.ddim(), 1, 0.1),
    "heun": (samplers.heun(), 2, 0.1),
    "dpmpp_2s": (samplers.dpmpp_2s(), 2, 0.1),
    "dpmpp_2m": (samplers.dpmpp_2m(), 2, 0.1),
    "unipc_1": (samplers.unipc(1), 2, 0.1),
    "unipc_2": (samplers.unipc(2), 3, 0.15),
    "dpmpp_3m_corrected": (samplers.dpmpp_3m(**SECOND), 3, 0.15),
    "lms_2": (samplers.lms(2), 2, 0.1),
}


@functools.cache
def exact():
    """x / α at the ratio `SMALLEST` by the flow `d(x / α) / d log ρ = x / α - x_0`, from `START` at `LARGEST`."""

    def slope(log_ratio, scaled):
        scaled = scaled.reshape(-1, 2)
        return (scaled - mixture.posterior_mean(scaled, np.exp(log_ratio))).ravel()

    bounds = (np.log(LARGEST), np.log(SMALLEST))
    solution = integrate.solve_ivp(slope, bounds, LARGEST * START.ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
    return solution.y[:, -1].reshape(-1, 2)


def ends(sampler, grid, steps, schedule=None):
    """x / α at `SMALLEST` by so many steps, where one more goes to 0."""
    schedule = schedules.edm() if schedule is None else schedule
    rule = GRIDS[grid](steps + 1, smallest=SMALLEST, largest=LARGEST)
    start, end = schedule(schedule.time(LARGEST)), schedule(schedule.time(SMALLEST))
    denoise = mixture.denoiser(schedule)
    with jax.disable_jit(False), jax.enable_x64(True):
        run = jax.jit(lambda x: samplers.sample(sampler, denoise, schedule, rule, x=x, trajectory=True)[1].x[-2])
        return np.asarray(run(START * float(start.sigma))) / float(end.alpha)


def error(*arguments):
    return np.sqrt(np.mean((ends(*arguments) - exact()) ** 2))


def order(sampler, grid, steps):
    return np.log2(error(sampler, grid, steps) / error(sampler, grid, 2 * steps))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_by_the_order_of_the_sampler(name, grid):
    sampler, expected, margin = ORDERS[name]
    assert abs(order(sampler, grid, 80) - expected) <= margin


@pytest.mark.parametrize("grid", GRIDS)
def test_the_third_order_needs_a_start_of_second_order(grid):
    """Measured 2.60 and 2.16: one step of DDIM is of local order 2, which no later step repairs."""
    assert order(samplers.dpmpp_3m(corrected=True), grid, 160) < 2.75


@pytest.mark.parametrize("grid", GRIDS)
def test_3m_as_published_is_of_order_2(grid):
    assert abs(order(samplers.dpmpp_3m(start="second"), grid, 160) - 2) <= 0.1


def test_a_low_start_bounds_the_order_of_lms_and_unipc_but_not_the_error():
    """Adams-Bashforth begins with Euler: order 2 in the end. UniPC-3 begins with its first order corrected: order 3."""
    assert order(samplers.lms(4), "log_snr", 160) < 2.75
    assert error(samplers.lms(4), "log_snr", 80) < error(samplers.lms(2), "log_snr", 80) / 10
    assert abs(order(samplers.unipc(3), "log_snr", 160) - 3) <= 0.25
    assert error(samplers.unipc(3), "log_snr", 80) < error(samplers.unipc(2), "log_snr", 80) / 10


@pytest.mark.parametrize("name", ["heun", "dpmpp_2s", "unipc_2", "dpmpp_3m_corrected", "lms_2"])
def test_schedules_of_the_same_ratios_give_the_same_data(name):
    """Variance preserving, exploding and flow differ by a scale of x that every step carries exactly.

    Times in the middle of a step are rounded to float32, each schedule's at another place.
    """
    sampler, expected = ORDERS[name][0], ends(ORDERS[name][0], "karras", 20)
    tolerance = 1e-6 if name in ("dpmpp_2s", "dpmpp_3m_corrected") else 1e-10
    for schedule in (schedules.cosine(), schedules.flow()):
        np.testing.assert_allclose(ends(sampler, "karras", 20, schedule), expected, rtol=0, atol=tolerance)
