"""Samplers that integrate the linear part of the probability flow exactly: DPM-Solver++ and UniPC.

In `λ = log(α / σ)` the flow is `x_s = σ_s / σ_t x_t + σ_s ∫ e^λ x_0(λ) dλ`: only the prediction is interpolated, by polynomials
over the steps seen. With `h = λ_s - λ_t`, a constant prediction weighs `α_s (1 - e^-h)`. A step to time 0 or from pure noise,
where h is infinite, is of first order: there it is exact.
"""

import math

import numpy as np

from jaxnets.diffusion.samplers.sample import Plan, Sampler, plan_of
from jaxnets.diffusion.samplers.steps import levels
from jaxnets.diffusion.schedules import Schedule

FEW = 15  # with fewer steps than this, the published samplers lower the order of the last ones


def dpmpp_2s(eta: int | float = 0.0) -> Sampler:
    """DPM-Solver++ (2S): each step evaluates at its beginning and in its middle (in λ), order 2.

    With `eta`, a step goes to less noise than asked for, and `eta` times the posterior's noise is added.

    Raises:
      ValueError: `eta` outside [0, 1].
    Source: Lu et al. (2022), algorithm 1, arXiv:2211.01095.
    """
    _share("dpmpp_2s", eta)

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        now, then = levels(schedule, times)
        ratios, rows = schedule.ratio(times), []
        for i in range(len(times) - 1):
            fresh = eta * then.alpha[i] * math.sqrt(max(ratios[i + 1] ** 2 * (1 - (ratios[i + 1] / ratios[i]) ** 2), 0.0))
            sigma = math.sqrt(max(then.sigma[i] ** 2 - fresh**2, 0.0))
            alpha = then.alpha[i]
            start, end = times[i], times[i + 1]
            if sigma == 0 or not math.isfinite(ratios[i] + ratios[i + 1]):
                kept = sigma / now.sigma[i]
                rows.append((start, end, [0, 1], [0, 1, 0], [0, kept, alpha - kept * now.alpha[i]], fresh, True))
                continue
            middle = _middle(schedule, ratios[i], sigma / alpha)
            half = schedule(middle)
            # Which of both rows it is can't be seen from its times: with eta = 1 the middle is the step's end.
            for last, t, to, level, sigma_to, noise in (
                (False, start, middle, half, half.sigma, 0.0),
                (True, middle, end, then, sigma, fresh),
            ):
                alpha_to = alpha if last else level.alpha
                kept = sigma_to / now.sigma[i]
                weights = [kept, 0, alpha_to - kept * now.alpha[i]]
                rows.append((t, to, [0, 1], [1, 0, 0] if last else [0, 1, 0], weights, noise, last))
        return plan_of(rows)

    return Sampler(plan)


def dpmpp_2m(*, lower_final: bool = True) -> Sampler:
    """DPM-Solver++ (2M): one evaluation per step, the prediction extrapolated from the step before; order 2.

    `lower_final`: the last step is of first order when there are fewer than 15.
    Source: Lu et al. (2022), algorithm 2, arXiv:2211.01095.
    """
    return dpmpp_2m_sde(0.0, lower_final=lower_final)


def dpmpp_2m_sde(eta: int | float = 1.0, *, lower_final: bool = True) -> Sampler:
    """`dpmpp_2m` for the reverse SDE: `eta` times its noise, integrated exactly over each step; 0 is `dpmpp_2m`.

    Raises:
      ValueError: `eta` negative.
    Source: Lu et al. (2022), section 4.3; `sample_dpmpp_2m_sde` of k-diffusion, whose `eta` scales the noise.
    """
    if not eta >= 0:
        raise ValueError(f"dpmpp_2m_sde: eta must be at least 0, got {eta}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        now, then, steps = *levels(schedule, times), _widths(schedule, times)
        rows = []
        for i, h in enumerate(steps):
            if math.isinf(h) and not eta:
                kept, gained = _first_order(now, then, i, h)
            else:  # the noise shrinks what is kept of x once more
                kept = then.sigma[i] / now.sigma[i] * math.exp(-eta * h)
                gained = -then.alpha[i] * math.expm1(-(1 + eta) * h)
            noise = then.sigma[i] * math.sqrt(-math.expm1(-2 * eta * h)) if eta else 0.0
            extrapolated = 0.0 if _order(steps, i, 2, lower_final and len(steps) < FEW) < 2 else gained * h / (2 * steps[i - 1])
            weights = [0, kept, gained + extrapolated, -extrapolated]
            rows.append((times[i], times[i + 1], [0, 1], [0, 1, 0, 0], weights, noise, True))
        return plan_of(rows)

    return Sampler(plan)


def dpmpp_3m(*, corrected: bool = False, start: str = "first", lower_final: bool = True) -> Sampler:
    """DPM-Solver++ (3M): the prediction as a parabola through the last three.

    As published its quadratic term has half the weight that integrates it, and the order is 2; `corrected` is the exact
    integral, of order 3. Below about 40 steps the published one is often the better. `start` is the order with which it
    begins: "first" as published, or "second", the first step with one more evaluation (2S): order 3 needs it.

    Raises:
      ValueError: another `start`.
    Source: Lu et al. (2022), appendix; diffusers' and k-diffusion's 3M, which agree.
    """
    if start not in ("first", "second"):
        raise ValueError(f"dpmpp_3m: start must be 'first' or 'second', got {start!r}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        ratios = schedule.ratio(times)
        halved = start == "second" and len(times) > 2 and math.isfinite(ratios[0])
        if halved:
            times = np.insert(times, 1, _middle(schedule, ratios[0], ratios[1]))
        now, then, steps = *levels(schedule, times), _widths(schedule, times)
        rows = []
        for i, h in enumerate(steps):
            order = _order(steps, i, 3, lower_final and len(times) - halved <= FEW)
            weights = np.zeros(5)
            weights[1], gained = _first_order(now, then, i, h)
            weights[2] = gained
            if order == 2:
                weights[2:4] += gained * h / (2 * steps[i - 1]) * np.array([1, -1])
            elif order == 3:
                near, far = steps[i - 1] / h, steps[i - 2] / h
                first = np.array([1, -1, 0]) / near, np.array([0, 1, -1]) / far
                slope = first[0] + near / (near + far) * (first[0] - first[1])
                curve = (first[0] - first[1]) / (near + far)
                linear, quadratic = _remainders(h)
                weights[2:] += then.alpha[i] * (linear * slope + (2 if corrected else 1) * quadratic * curve)
            rows.append((times[i], times[i + 1], [0, 1], [0, 1, 0, 0, 0], weights, 0.0, True))
        if halved:  # 2S: from the x before the first half, by the prediction in the middle
            whole = np.array([then.sigma[1] / now.sigma[0], 0, -then.alpha[1] * math.expm1(-steps[0] - steps[1]), 0, 0])
            rows[0] = (*rows[0][:-1], False)
            rows[1] = (*rows[1][:3], [1, 0, 0, 0, 0], whole, 0.0, True)
        return plan_of(rows)

    return Sampler(plan)


def unipc(order: int = 2, *, lower_final: bool = True) -> Sampler:
    """UniPC with B(h) = e^h - 1 (bh2) in data prediction: predict, evaluate, correct, go on from the corrected x.

    One evaluation per step; the corrector raises the predictor's `order` by one.

    Raises:
      ValueError: `order` outside 1..3.
    Source: Zhao et al. (2023), algorithms 7 and 8, arXiv:2302.04867.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"unipc: order must be in 1..3, got {order}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        now, then, steps = *levels(schedule, times), _widths(schedule, times)
        rows, depth = [], order + 1
        orders = [_order(steps, i, order, lower_final) for i in range(len(steps))]  # lowered however many steps there are
        for i in range(len(steps)):
            # First correct x at this time, from the base (the corrected x before) with the evaluation made here.
            base = np.zeros(2 + depth)
            if i == 0 or math.isinf(steps[i - 1]):
                base[1] = 1
            else:
                base[0], weights = _uni_weights(now, then, steps, i - 1, orders[i - 1], corrects=True)
                base[2 : 2 + len(weights)] = weights
            ahead = np.zeros(2 + depth)
            ahead[0], weights = _uni_weights(now, then, steps, i, orders[i], corrects=False)
            ahead[2 : 2 + len(weights)] = weights
            rows.append((times[i], times[i + 1], [0, 1], base, ahead, 0.0, True))
        return plan_of(rows)

    return Sampler(plan)


# ---- shared ---------------------------------------------------------------------------------------------------------


def _uni_weights(now, then, steps, i, order, *, corrects) -> tuple[float, np.ndarray]:
    """Weights of step i: of the x that it starts from, and of the predictions, the newest first.

    The predictor knows those at t_i, t_{i-1}, ...; the corrector also the one at t_{i+1}, which is then the newest.
    """
    h = steps[i]
    if math.isinf(h):
        kept, gained = _first_order(now, then, i, h)
        return kept, np.array([gained])
    # Places of the other predictions in units of h, relative to t_i, and the moments that the weights must match.
    places = [-sum(steps[i - k : i]) / h for k in range(1, order)] + [1.0] * corrects
    size, moments = -math.expm1(-h), _moments(-h, len(places))
    known = len(places)
    if known == 1 and (corrects or order == 2):
        shares = np.array([0.5])  # in place of the exact solution: as published, and of the same order
    elif known:
        shares = np.linalg.solve(np.array(places)[None] ** np.arange(known)[:, None], moments)
    else:
        shares = np.zeros(0)
    of_others = then.alpha[i] * size * shares / np.array(places)
    kept, of_base = then.sigma[i] / now.sigma[i], then.alpha[i] * size - of_others.sum()
    if corrects:  # newest first: at t_{i+1}, then at t_i, then those before
        return kept, np.concatenate([of_others[-1:], [of_base], of_others[:-1]])
    return kept, np.concatenate([[of_base], of_others])


def _moments(signed: int | float, count: int) -> np.ndarray:
    """`k! φ_{k+1}(-h) (-h) / (e^-h - 1)` for k = 1, 2, ...: b of the paper's equation for the weights."""
    values, phi, factorial = [], math.expm1(signed) / signed - 1, 1.0
    for k in range(1, count + 1):
        values.append(phi * factorial / math.expm1(signed))
        factorial *= k + 1
        phi = phi / signed - 1 / factorial
    return np.array(values)


def _remainders(h: int | float) -> tuple[float, float]:
    """`∫ e^(s - h) s / h ds` and half of `∫ e^(s - h) (s / h)² ds` over [0, h], by series where the digits would cancel."""
    if h < 0.1:
        return (
            sum((-1) ** k * h ** (k + 1) / math.factorial(k + 2) for k in range(12)),
            sum((-1) ** k * h ** (k + 1) / math.factorial(k + 3) for k in range(12)),
        )
    return math.expm1(-h) / h + 1, 0.5 - (math.expm1(-h) + h) / h**2


def _first_order(now, then, i: int, h: int | float) -> tuple[float, float]:
    """Weights of x and x_0 in a step of first order; in the second form exact where h is infinite."""
    kept = then.sigma[i] / now.sigma[i]
    return kept, -then.alpha[i] * math.expm1(-h) if math.isfinite(h) else then.alpha[i] - kept * now.alpha[i]


def _middle(schedule: Schedule, start: int | float, end: int | float) -> np.float64:
    """The time in the middle of two ratios, in λ; rounded, so that a denoiser sees the time of which the weights are made."""
    return np.float64(np.float32(schedule.time(math.sqrt(start * end))))


def _widths(schedule: Schedule, times: np.ndarray) -> list[float]:
    """`h` of each step: inf to time 0 and from pure noise."""
    with np.errstate(divide="ignore"):
        lambdas = -np.log(schedule.ratio(times))
    return [float(h) for h in np.diff(lambdas)]


def _order(steps: list[float], i: int, order: int, lower_final: bool) -> int:
    """The order of step i: what the evaluations so far allow; 1 where h is infinite; `lower_final` to 1 at the end."""
    if math.isinf(steps[i]):
        return 1
    finite = next((k for k, h in enumerate(steps[:i]) if math.isfinite(h)), i)
    known = i - finite + 1
    left = len(steps) - i if lower_final else order
    return min(order, known, left)


def _share(function: str, eta: int | float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{function}: eta must be in [0, 1], got {eta}.")
