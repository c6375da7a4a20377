"""Samplers against diffusers' schedulers, step by step, on the same denoiser and noise: golden arrays, and live.

Whole runs are compared, so that a difference in one step would be seen in all that follow. diffusers computes its coefficients
in float32: where its rounding alone is above the tolerance, the same code with coefficients in float64 (`exact`) is within.

Not compared: churn (diffusers adds the noise to x after the network has seen x without it, ours before, as in Karras et al.),
Heun's churn (diffusers has none), and the last step of LMS (ours is the denoiser's data, diffusers' extrapolates four slopes).
"""

import pathlib
import runpy
import warnings

import jax
import numpy as np
import pytest

from jaxnets.diffusion import samplers, schedules
from tests.diffusion import mixture

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
SCRIPT = runpy.run_path(str(FOLDER / "diffusers_samplers.py"))
GOLDEN = dict(np.load(FOLDER / "diffusers_samplers.npz"))
OURS = {
    "ddpm_small": samplers.ddpm(),
    "ddpm_large": samplers.ddpm("large"),
    "ddim": samplers.ddim(),
    "ddim_zero_snr": samplers.ddim(),
    "ddim_eta": samplers.ddim(1.0),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_3m": samplers.dpmpp_3m(),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "heun": samplers.heun(),
    "euler": samplers.euler(),
    "euler_ancestral": samplers.euler_ancestral(),
    "unipc": samplers.unipc(),
    "unipc_1": samplers.unipc(1),
    "unipc_3": samplers.unipc(3),
    "lms": samplers.lms(),
    "lms_2": samplers.lms(2),
}
TOLERANCE = 2e-6  # of the largest |x| of a step
# diffusers' own rounding at 50 steps: 1 - β by a float32 difference close to the data; λ of the fine noisy end in float32.
ROUNDED = {("ddpm_small", 50): 1e-5, ("ddpm_large", 50): 1e-5, ("dpmpp_2m_sde_karras", 50): 5e-6}


def distance(x, expected):
    """Per step."""
    return np.abs(x - expected).max((1, 2)) / np.abs(expected).max((1, 2))


def ours(name, steps, ratios, seed, first):
    """Every x of our sampler over diffusers' noise levels, from the same start and with the same noise."""
    sampler = OURS[name.removesuffix("_karras")]
    table = schedules.table(np.float64(GOLDEN["alphas_cumprod_zero_snr" if name == "ddim_zero_snr" else "alphas_cumprod"]))
    grid = schedules.explicit(table.time(ratios))
    _, noise = SCRIPT["numbers"](seed, steps)
    given = noise if sampler.plan(table, grid(table)).noise.any() else None
    denoise = mixture.denoiser(table)

    def run(x, noise):
        return samplers.sample(sampler, denoise, table, grid, x=x, noise=noise, trajectory=True)[1].x

    with jax.disable_jit(False):  # a matter of numbers: test_samplers.py runs without jit
        return np.asarray(jax.jit(run)(first, given))


def compared(name, x, expected):
    return (x[:-1], expected[:-1]) if name.startswith("lms") else (x, expected)


@pytest.mark.parametrize("steps", SCRIPT["STEPS"])
@pytest.mark.parametrize("name", SCRIPT["CASES"])
def test_every_step_is_diffusers(name, steps):
    expected = GOLDEN[f"{name}/{steps}/x"]
    x = ours(name, steps, GOLDEN[f"{name}/{steps}/ratios"], 0, expected[0])
    assert x.shape == expected.shape == (steps + 1, 4, 2)
    assert distance(*compared(name, x, GOLDEN[f"{name}/{steps}/exact"])).max() <= TOLERANCE
    assert distance(*compared(name, x, expected)).max() <= ROUNDED.get((name, steps), TOLERANCE)


@pytest.mark.parametrize(("name", "steps"), ROUNDED)
def test_where_more_is_allowed_diffusers_own_rounding_is_above_the_tolerance(name, steps):
    assert distance(GOLDEN[f"{name}/{steps}/x"], GOLDEN[f"{name}/{steps}/exact"]).max() > TOLERANCE


@pytest.mark.parametrize("steps", SCRIPT["STEPS"])
@pytest.mark.parametrize("name", ["lms", "lms_2_karras"])
def test_the_last_step_of_lms_is_exact_where_diffusers_extrapolates(name, steps):
    """The denoiser's own data; diffusers' is 0.8e-4 to 2e-4 off them, and only in this step."""
    expected, ratios = GOLDEN[f"{name}/{steps}/x"], GOLDEN[f"{name}/{steps}/ratios"]
    x = ours(name, steps, ratios, 0, expected[0])
    data = mixture.posterior_mean(np.float64(x[-2]) * np.hypot(1, ratios[-1]), ratios[-1])
    np.testing.assert_allclose(x[-1], data, rtol=0, atol=1e-6)
    assert distance(expected, x)[-1] > 5e-5


@pytest.mark.parametrize("name", ["ddpm_small", "ddim_eta", "dpmpp_3m_karras", "unipc", "heun_karras", "lms"])
def test_every_step_is_diffusers_live(name):
    """With other starts and noise than the golden arrays."""
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        expected = SCRIPT["run"](name, 20, 1)
    x = ours(name, 20, expected["ratios"], 1, expected["x"][0])
    assert distance(*compared(name, x, expected["x"])).max() <= TOLERANCE


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_our_tables_are_diffusers_up_to_its_float32():
    """diffusers' cumulative products in float32 are 1.7e-4 off in the noise `1 - α²` of the first step; ours are exact."""
    theirs, mine = np.float64(GOLDEN["alphas_cumprod"]), schedules.linear(1000)
    level = mine(np.arange(1, 1001))
    np.testing.assert_allclose(level.alpha**2, theirs, rtol=2e-5)  # rounding of a thousand factors
    noise = (1 - theirs) / level.sigma**2 - 1
    assert 1e-4 < abs(noise[0]) < 3e-4
    np.testing.assert_allclose(noise, 0, atol=3e-4)
    exact = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # of exactly the same beta
    np.testing.assert_allclose(level.sigma**2, 1 - exact, rtol=1e-11)


def test_the_table_of_a_cosine_is_diffusers():
    kept = schedules.cosine(1000)(np.arange(1001)).alpha ** 2
    np.testing.assert_allclose(1 - kept[1:] / kept[:-1], GOLDEN["betas_cosine"], rtol=1e-6, atol=1e-9)


def test_a_table_rescaled_to_no_signal_is_diffusers():
    mine = schedules.zero_terminal(schedules.table(np.float64(GOLDEN["alphas_cumprod"])))
    level = mine(np.arange(1, 1001))
    np.testing.assert_allclose(level.alpha**2, GOLDEN["alphas_cumprod_zero_snr"], rtol=2e-4, atol=1e-6)
    assert level.alpha[-1] == GOLDEN["alphas_cumprod_zero_snr"][-1] == 0
