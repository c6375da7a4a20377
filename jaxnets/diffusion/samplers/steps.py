"""Samplers of one step or of slopes: DDPM, DDIM, Euler, Heun, linear multistep."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnets.diffusion.samplers.sample import Plan, Sampler, State, plan_of
from jaxnets.diffusion.schedules import Level, Schedule
from jaxnets.types import Array


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling: the mean of the posterior `q(x_s | x_t, x_0)` of the predicted data, and noise.

    Its variance is "small", the posterior's `σ_s² (1 - ρ_s² / ρ_t²)`; "large", `σ_t² - (α_t / α_s)² σ_s²`; or "learned", of the
    denoisers of `parametrization.with_variance` alone: between both in the logarithm.

    Raises:
      ValueError: another variance.
    Source: Ho et al. (2020), algorithm 2 and section 3.2, arXiv:2006.11239; learned: Nichol & Dhariwal (2021), eq. 15.
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"ddpm: variance must be 'small', 'large' or 'learned', got {variance!r}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Any:
        now, then = levels(schedule, times)
        small = posterior_deviation(schedule, times)
        with np.errstate(divide="ignore", invalid="ignore"):
            large = np.sqrt(np.maximum(now.sigma**2 - (now.alpha / then.alpha) ** 2 * then.sigma**2, 0))
        noise = np.where(then.sigma > 0, large, 0) if variance == "large" else small
        simple = one_step(times, *_towards_data(now, then, small), noise)
        if variance != "learned":
            return simple
        with np.errstate(divide="ignore"):
            growth = np.where(small > 0, np.log(large) - np.log(small), 0.0)
        return LearnedPlan(simple.t, simple.t_next, simple.next, small, growth, simple.whole)

    return Sampler(plan, _learned_init, _learned_step) if variance == "learned" else Sampler(plan)


def ddim(eta: int | float = 0.0) -> Sampler:
    """`x_s = α_s x_0 + sqrt(σ_s² - d²) ε + d z`, with `d` the share `eta` of the posterior's deviation; 1 is `ddpm()`.

    Raises:
      ValueError: `eta` outside [0, 1].
    Source: Song, Meng & Ermon (2021), eq. 12, arXiv:2010.02502.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta must be in [0, 1], got {eta}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        noise = eta * posterior_deviation(schedule, times) if eta else np.zeros(len(times) - 1)
        return one_step(times, *_towards_data(*levels(schedule, times), noise), noise)

    return Sampler(plan)


def euler_ancestral(eta: int | float = 1.0) -> Sampler:
    """An Euler step in `x / α` over ρ to less noise than asked for, then fresh noise: the same as `ddim(eta)`.

    k-diffusion's `sample_euler_ancestral`: its step down to `ρ_s² - d²` is DDIM's formula.
    """
    return ddim(eta)


def euler(
    churn: int | float = 0.0, *, between: tuple[int | float, int | float] = (0.0, math.inf), noise: int | float = 1.0
) -> Sampler:
    """Euler steps of the probability flow `d(x / α) / dρ = ε`: without churn DDIM.

    `churn` adds noise before each step where ρ lies in `between`: ρ grows by `min(churn / steps, √2 - 1)` of itself, but not
    beyond the schedule's end, by `noise` times the deviation that this needs.

    Source: Karras et al. (2022), algorithm 2, arXiv:2206.00364.
    """
    return _stochastic("euler", churn, between, noise, second_order=False)


def heun(
    churn: int | float = 0.0, *, between: tuple[int | float, int | float] = (0.0, math.inf), noise: int | float = 1.0
) -> Sampler:
    """Heun's steps of the probability flow: the mean of the slopes at both ends of a step; churn as in `euler`.

    Steps to time 0, and from where nothing is left of the data (ρ infinite), are Euler's.
    Source: Karras et al. (2022), algorithms 1 and 2, arXiv:2206.00364.
    """
    return _stochastic("heun", churn, between, noise, second_order=True)


def lms(order: int = 4) -> Sampler:
    """Linear multistep (Adams-Bashforth over the uneven grid of ρ) of the probability flow; the last step is exact.

    Raises:
      ValueError: `order` outside 1..4.
    Source: Hairer, Nørsett & Wanner (1993), III.5; k-diffusion's `sample_lms`.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"lms: order must be in 1..4, got {order}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        now, then = levels(schedule, times)
        steps = len(times) - 1
        ratios = schedule.ratio(times)
        weights, memory = np.zeros((steps, 2 + order)), _slopes(now)
        for i in range(steps):
            known = min(i + 1, order)
            nodes = ratios[i::-1][:known]
            nodes = nodes[np.isfinite(nodes)]
            if len(nodes) == 0 or then.sigma[i] == 0 or not np.isfinite(ratios[i + 1]):
                weights[i], memory[i] = _first_order(now, then, i, order)
                continue
            weights[i, 1] = then.alpha[i] / now.alpha[i]
            weights[i, 2 : 2 + len(nodes)] = then.alpha[i] * _integrals(nodes, ratios[i + 1])
        return Plan(times[:-1], times[1:], memory, _pass_on(weights.shape), weights, np.zeros(steps), np.ones(steps, bool))

    return Sampler(plan)


class LearnedPlan(NamedTuple):
    """As `Plan`, for deviations that the denoiser chooses: `noise exp(growth (1 + v) / 2)`, from the small to the large one."""

    t: np.ndarray
    t_next: np.ndarray
    next: np.ndarray
    noise: np.ndarray
    growth: np.ndarray
    whole: np.ndarray
    first: tuple[float, float] = (1.0, 0.0)


def _learned_init(plan, x) -> State:
    del plan
    return State(x, None, ())


def _learned_step(plan, denoise, state: State, row, noise: Callable, **conditions: Any) -> tuple[State, Array]:
    answer = denoise(state.x, row.t, **conditions)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise ValueError("ddpm: variance 'learned' needs the denoiser of parametrization.with_variance, which returns a pair.")
    x0, share = answer
    deviation = row.noise * jnp.exp(row.growth * (1 + share) / 2)
    x = row.next[1] * state.x + row.next[2] * x0 + deviation * noise(state.x)
    return State(x.astype(state.x.dtype), None, ()), x0


# ---- shared ---------------------------------------------------------------------------------------------------------


def levels(schedule: Schedule, times: np.ndarray) -> tuple[Level, Level]:
    """The levels at the beginning and at the end of each step."""
    level = schedule(times)
    return Level(*(part[:-1] for part in level)), Level(*(part[1:] for part in level))


def posterior_deviation(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """`σ_s sqrt(1 - ρ_s² / ρ_t²)`: of x at the end of a step, given its beginning and the data."""
    ratio = schedule.ratio(times)
    sigma = schedule(times[1:]).sigma
    return sigma * np.sqrt(np.maximum(1 - (ratio[1:] / ratio[:-1]) ** 2, 0))


def one_step(times: np.ndarray, of_x: np.ndarray, of_x0: np.ndarray, noise: np.ndarray) -> Plan:
    """The plan of `x ← of_x x + of_x0 x_0 + noise z`."""
    steps = len(times) - 1
    weights = np.stack([np.zeros(steps), of_x, of_x0], 1)
    memory = np.tile([0.0, 1.0], (steps, 1))
    return Plan(times[:-1], times[1:], memory, _pass_on(weights.shape), weights, noise, np.ones(steps, bool))


def _towards_data(now: Level, then: Level, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of x and x_0 in `α_s x_0 + sqrt(σ_s² - d²) (x - α_t x_0) / σ_t`."""
    kept = np.sqrt(np.maximum(then.sigma**2 - deviation**2, 0)) / now.sigma
    return kept, then.alpha - kept * now.alpha


def _pass_on(shape: tuple[int, int]) -> np.ndarray:
    """The base is x itself."""
    return np.tile(np.eye(shape[1])[1], (shape[0], 1))


def _slopes(now: Level) -> np.ndarray:
    """What is remembered is `ε = (x - α x_0) / σ`."""
    return np.stack([1 / now.sigma, -now.alpha / now.sigma], 1)


def _first_order(now: Level, then: Level, i: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and memory of an Euler step that needs no ratio: `x_s = σ_s / σ_t x + (α_s - σ_s α_t / σ_t) x_0`, in m = ε."""
    weights = np.zeros(2 + depth)
    if then.sigma[i] == 0:  # exactly the data: remembered in place of the slope, nobody reads it any more
        weights[2] = then.alpha[i]
        return weights, np.array([0.0, 1.0])
    kept = then.sigma[i] / now.sigma[i]
    # From pure noise (α = 0): m = ε = x / σ says nothing of x_0, so this row remembers x_0, and the next must not read it.
    weights[1], weights[2] = kept, then.alpha[i] - kept * now.alpha[i]
    return weights, np.array([0.0, 1.0])


def _integrals(nodes: np.ndarray, end: int | float) -> np.ndarray:
    """`∫ L_j` from nodes[0] to `end`, of the Lagrange polynomials over the nodes."""
    origin, scale = nodes[0], end - nodes[0]
    places = (nodes - origin) / scale
    powers = np.arange(len(nodes))
    return np.linalg.solve(places[None] ** powers[:, None], scale / (powers + 1))


def _stochastic(
    name: str, churn: int | float, between: tuple[float, float], noise: int | float, *, second_order: bool
) -> Sampler:
    if not (churn >= 0 and noise >= 0):
        raise ValueError(f"{name}: churn and noise must be at least 0, got {churn} and {noise}.")
    if not between[0] <= between[1]:
        raise ValueError(f"{name}: between must be two ratios, the smaller first, got {between}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        steps = len(times) - 1
        ratios = schedule.ratio(times)
        low, high = between
        gains = np.where((ratios[:-1] >= low) & (ratios[:-1] <= high), min(churn / steps, math.sqrt(2) - 1), 0.0)
        gains[~np.isfinite(ratios[:-1])] = 0
        # A churned time must stay in the schedule; where nothing is added, a time is left to the last digit as it is.
        churned = np.minimum(schedule.time(np.where(gains > 0, ratios[:-1] * (1 + gains), 1.0)), schedule.end)
        churned = churned.astype(np.float32).astype(np.float64)  # as a denoiser will see it
        starts = np.where(gains > 0, np.maximum(churned, times[:-1]), times[:-1])
        before, now, then = schedule(times[:-1]), schedule(starts), schedule(times[1:])
        raised = schedule.ratio(starts)
        added = np.zeros(steps)
        moved = starts > times[:-1]
        added[moved] = noise * now.alpha[moved] * np.sqrt(np.maximum(raised[moved] ** 2 - ratios[:-1][moved] ** 2, 0))
        scales = np.ones(steps)
        scales[moved] = now.alpha[moved] / before.alpha[moved]

        rows = []
        for i in range(steps):
            scale, deviation = (scales[i + 1], added[i + 1]) if i + 1 < steps else (1.0, 0.0)
            start, end = starts[i], times[i + 1]
            whole = starts[i + 1] if i + 1 < steps else end
            if not second_order or then.sigma[i] == 0 or not np.isfinite(raised[i] + ratios[i + 1]):
                weights, memory = _first_order(now, then, i, 2)
                rows.append((start, whole, memory, [0, 1, 0, 0], scale * weights, deviation, True))
                continue
            slope = np.array([1 / now.sigma[i], -now.alpha[i] / now.sigma[i]])
            growth = then.alpha[i] / now.alpha[i]
            step = then.alpha[i] * (ratios[i + 1] - raised[i])
            rows.append((start, end, slope, [0, 1, 0, 0], [growth, 0, step, 0], 0.0, False))
            slope = np.array([1 / then.sigma[i], -then.alpha[i] / then.sigma[i]])
            weights = scale * np.array([growth, 0, step / 2, step / 2])
            rows.append((end, whole, slope, [1, 0, 0, 0], weights, deviation, True))
        return plan_of(rows, first=(float(scales[0]), float(added[0])))

    return Sampler(plan)
