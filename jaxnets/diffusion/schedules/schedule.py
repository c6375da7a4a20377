"""Noise schedules: `x_t = α(t) x_0 + σ(t) ε`, described by the ratio `ρ = σ / α` and what α and σ are of it.

The ratio determines everything that matters: the three families (variance preserving, `α² + σ² = 1`; exploding, `α = 1`; flow,
`α + σ = 1`) differ in a scale of x. Each formula is written so that no digits cancel at either end: of NumPy's numbers it
is exact to float64, inside jit it has the dtype of the time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Time = Any  # a number or a NumPy array (computed on the host in float64), or a JAX array


class Level(NamedTuple):
    """What is left of the data, what there is of noise, and the logarithm of their squared ratio, at a time."""

    alpha: Any
    sigma: Any
    log_snr: Any  # log(α² / σ²): inf at time 0, -inf where nothing is left of the data


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Schedule:
    """`schedule(t)` is the `Level` at a time from 0, the data, to `schedule.end`; compares by value and is static under jit.

    Times are what the network sees: 0 to 1, the number of noising steps 0 to N of a table of N steps, σ itself of `edm`.
    """

    of_time: Callable[..., Any]  # (t, numpy or jax.numpy, *options) -> σ / α
    of_ratio: Callable[..., Any]  # its inverse
    options: tuple[Any, ...]
    family: str  # "preserving", "exploding" or "flow"
    end: float = 1.0

    def __call__(self, t: Time) -> Level:
        ratio = self.ratio(t)
        xp = _module(ratio)
        with np.errstate(divide="ignore", over="ignore"):
            alpha, sigma = _FAMILIES[self.family](ratio, xp)
            return Level(alpha, sigma, -2 * xp.log(ratio))

    def ratio(self, t: Time) -> Any:
        """`σ / α`: the noise relative to the data, the σ of Karras et al. (2022)."""
        xp, t = _number(t)
        with np.errstate(divide="ignore"):
            return self.of_time(t, xp, *self.options)

    def time(self, ratio: Time) -> Any:
        """The time of a ratio: the inverse of `ratio`."""
        xp, ratio = _number(ratio)
        with np.errstate(divide="ignore", over="ignore"):
            return self.of_ratio(ratio, xp, *self.options)

    @property
    def steps(self) -> int | None:
        """How many steps of noise a table has; None in continuous time."""
        if self.of_time is _shifted:
            return self.options[0].steps
        return int(self.end) if self.of_time is _table else None

    @property
    def reaches_noise(self) -> bool:
        """Whether nothing is left of the data at the end (zero terminal SNR)."""
        return math.isinf(self.ratio(self.end))


def _number(value: Time) -> tuple[Any, Any]:
    if isinstance(value, jax.Array):
        return jnp, value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return np, np.asarray(value, np.float64)


def _module(value: Any) -> Any:
    return jnp if isinstance(value, jax.Array) else np


def _preserving(ratio, xp):
    # The second form is 1 where the ratio is infinite, and has its digits where the square of a small ratio is lost in 1 + ρ².
    return 1 / xp.sqrt(1 + ratio * ratio), 1 / xp.sqrt(1 + (1 / ratio) ** 2)


def _exploding(ratio, xp):
    return xp.ones_like(ratio), ratio


def _flow(ratio, xp):
    del xp
    return 1 / (1 + ratio), 1 / (1 + 1 / ratio)


_FAMILIES = {"preserving": _preserving, "exploding": _exploding, "flow": _flow}


# ---- continuous time ------------------------------------------------------------------------------------------------


def linear(steps: int | None = None, *, first: int | float = 1e-4, last: int | float = 0.02) -> Schedule:
    """The variance added per step grows linearly from `first` to `last` over 1,000 steps: a table if `steps`, else continuous.

    Other numbers of steps add as much in all. Continuous: `α² = exp(-∫β)` with `β(t) = 1000 (first + (last - first) t)`.
    Source: Ho et al. (2020), section 4, arXiv:2006.11239; continuous: Song et al. (2021), eq. 32, arXiv:2011.13456.
    """
    _increasing("linear", first, last)
    if steps is not None:
        return _of_betas("linear", np.linspace(first, last, _count("linear", steps)) * 1000 / steps)
    return Schedule(_linear, _linear_time, (1000 * first, 1000 * last), "preserving")


def scaled_linear(steps: int | None = None, *, first: int | float = 8.5e-4, last: int | float = 0.012) -> Schedule:
    """As `linear`, but the added variance's root grows linearly. Source: Rombach et al. (2022), arXiv:2112.10752."""
    _increasing("scaled_linear", first, last)
    if steps is not None:
        betas = np.linspace(math.sqrt(first), math.sqrt(last), _count("scaled_linear", steps)) ** 2
        return _of_betas("scaled_linear", betas * 1000 / steps)
    return Schedule(_scaled, _scaled_time, (math.sqrt(1000 * first), math.sqrt(1000 * last)), "preserving")


def cosine(steps: int | None = None, *, offset: int | float = 0.008) -> Schedule:
    """`α = cos((t + s) / (1 + s) π / 2)` divided by its value at 0, with the offset s; nothing is left of the data at the end.

    With `steps`, a table in which no step adds more than the variance 0.999, so that a little is left.
    Source: Nichol & Dhariwal (2021), eq. 17, arXiv:2102.09672.
    """
    if not 0 <= offset < 1:
        raise ValueError(f"cosine: offset must be in [0, 1), got {offset}.")
    schedule = Schedule(_cosine, _cosine_time, (offset,), "preserving")
    return schedule if steps is None else _discretized(schedule, _count("cosine", steps))


def sigmoid(
    steps: int | None = None, *, start: int | float = -3.0, end: int | float = 3.0, temperature: int | float = 1.0
) -> Schedule:
    """`α²` falls as a sigmoid of `(start + (end - start) t) / temperature`, stretched to go from 1 to 0.

    With `steps`, a table as that of `cosine`. Source: Jabri et al. (2023), algorithm 1 of the appendix, arXiv:2212.11972.
    """
    _increasing("sigmoid", start, end, positive=False)
    if not temperature > 0:
        raise ValueError(f"sigmoid: temperature must be positive, got {temperature}.")
    schedule = Schedule(_sigmoid, _sigmoid_time, (start / temperature, end / temperature), "preserving")
    return schedule if steps is None else _discretized(schedule, _count("sigmoid", steps))


def edm(largest: int | float = 80.0) -> Schedule:
    """`α = 1`, `σ = t`: the time is the noise itself, up to `largest`. Source: Karras et al. (2022), arXiv:2206.00364."""
    _increasing("edm", 0.0, largest, positive=False)
    return Schedule(_same, _same, (), "exploding", float(largest))


def variance_exploding(smallest: int | float = 0.01, largest: int | float = 50.0) -> Schedule:
    """`α = 1`, `σ² = smallest² ((largest / smallest)^(2 t) - 1)`. Source: Song et al. (2021), eq. 29, arXiv:2011.13456."""
    _increasing("variance_exploding", smallest, largest)
    return Schedule(_exploding_ratio, _exploding_time, (smallest, math.log(largest / smallest)), "exploding")


def flow() -> Schedule:
    """`α = 1 - t`, `σ = t`: straight lines from data to noise. Source: Liu et al. (2023), eq. 1, arXiv:2209.03003."""
    return Schedule(_flow_ratio, _flow_time, (), "flow")


def shifted(schedule: Schedule, factor: int | float) -> Schedule:
    """The schedule with `factor` times the noise in relation to the data, at every time but the ends.

    Images of k times the side need about k times the ratio for the same loss of their large structures.
    Source: Hoogeboom et al. (2023), section 3.1, arXiv:2301.11093; of flow: Esser et al. (2024), eq. 23, arXiv:2403.03206.
    """
    if not factor > 0:
        raise ValueError(f"shifted: factor must be positive, got {factor}.")
    return Schedule(_shifted, _shifted_time, (schedule, float(factor)), schedule.family, schedule.end)


def zero_terminal(schedule: Schedule) -> Schedule:
    """The schedule with α shifted and stretched so that nothing is left of the data at its end; its start stays.

    Raises:
      ValueError: the schedule isn't variance preserving.
    Source: Lin et al. (2024), algorithm 1, arXiv:2305.08891.
    """
    if schedule.family != "preserving":
        raise ValueError(f"zero_terminal: schedule must be variance preserving, got one that is {schedule.family}.")
    if schedule.steps:
        alpha = schedule(np.arange(1, schedule.steps + 1)).alpha
        return table(((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2)
    options = (schedule, float(schedule(schedule.end).alpha))
    return Schedule(_stretched, _stretched_time, options, schedule.family, schedule.end)


def _linear(t, xp, first, last):
    return xp.sqrt(xp.expm1(t * (first + t * ((last - first) / 2))))


def _linear_time(ratio, xp, first, last):
    total = _log1p_square(ratio, xp)
    return 2 * total / (first + xp.sqrt(first * first + 2 * (last - first) * total))


def _scaled(t, xp, first, last):
    slope = last - first
    return xp.sqrt(xp.expm1(t * (first * first + t * slope * (first + t * (slope / 3)))))


def _scaled_time(ratio, xp, first, last):
    # (first + slope t)³ = first³ + 3 slope ∫β; the difference of cubes divided so that no digits cancel.
    total = 3 * _log1p_square(ratio, xp)
    root = xp.cbrt(first**3 + (last - first) * total)
    return total / (root * root + root * first + first * first)


def _cosine(t, xp, offset):
    quarter = math.pi / 2 / (1 + offset)
    return xp.sqrt(xp.sin(quarter * t) * xp.sin(quarter * (t + 2 * offset))) / xp.sin(quarter * (1 - t))


def _cosine_time(ratio, xp, offset):
    quarter = math.pi / 2 / (1 + offset)
    low, left = math.sin(quarter * offset), math.cos(quarter * offset)
    # tan(θ) = hypot(ρ, low) / left of the angle θ at time t; its difference from the angle at 0 by the tangents' theorem
    finite = xp.minimum(ratio, 1e15)
    width = xp.hypot(finite, low)
    above = finite * (finite / xp.where(width + low > 0, width + low, 1)) / left
    return xp.where(xp.isinf(ratio), 1.0, xp.arctan2(above, 1 + width * (low / left**2)) / quarter)


def _sigmoid(t, xp, start, end):
    span = (end - start) / 2
    shape = math.cosh(end / 2) / math.cosh(start / 2)
    return xp.sqrt(shape * xp.sinh(span * t) / xp.sinh(span * (1 - t)))


def _sigmoid_time(ratio, xp, start, end):
    span = (end - start) / 2
    shape = math.cosh(end / 2) / math.cosh(start / 2)
    # sinh(span (1 - t)) by the addition theorem, solved for exp(2 span t) - 1
    return xp.log1p(2 * math.sinh(span) / (shape / (ratio * ratio) + math.exp(-span))) / (2 * span)


def _same(value, xp):
    del xp
    return value


def _exploding_ratio(t, xp, smallest, growth):
    return smallest * xp.sqrt(xp.expm1(2 * growth * t))


def _exploding_time(ratio, xp, smallest, growth):
    return _log1p_square(ratio / smallest, xp) / (2 * growth)


def _flow_ratio(t, xp):
    del xp
    return t / (1 - t)


def _flow_time(ratio, xp):
    del xp
    return 1 / (1 + 1 / ratio)


def _shifted(t, xp, schedule, factor):
    return schedule.of_time(t, xp, *schedule.options) * factor


def _shifted_time(ratio, xp, schedule, factor):
    return schedule.of_ratio(ratio / factor, xp, *schedule.options)


def _stretched(t, xp, schedule, last):
    ratio = schedule.of_time(t, xp, *schedule.options)
    alpha, sigma = _preserving(ratio, xp)
    missing = sigma * sigma / (1 + alpha) / (1 - last)  # 1 minus the new alpha
    alpha = (alpha - last) / (1 - last)
    return xp.sqrt(missing * (1 + alpha)) / xp.where(t == schedule.end, 0, alpha)


def _stretched_time(ratio, xp, schedule, last):
    alpha, sigma = _preserving(ratio, xp)
    missing = sigma * sigma / (1 + alpha) * (1 - last)
    old = 1 - missing
    return schedule.of_ratio(xp.sqrt(missing * (1 + old)) / old, xp, *schedule.options)


def _log1p_square(ratio, xp):
    return xp.log1p(ratio * ratio)


# ---- tables ---------------------------------------------------------------------------------------------------------


def table(alpha_squared: Any) -> Schedule:
    """The schedule of a published table: `α²` (alphas_cumprod) after 1, 2, ... N steps of noise, decreasing inside (0, 1).

    Times are numbers of steps, 0 to N; a network that was trained on indices 0 to N - 1 wants `t - 1` (`time=`
    of `to_denoiser`). Between whole steps log(σ / α) is linear, as σ / α is before the first. The last value may be 0.

    Raises:
      ValueError: not a decreasing list of such numbers.
    """
    values = np.asarray(alpha_squared, np.float64)
    inside = values.ndim == 1 and values.size > 0 and np.all(values < 1) and np.all(values[:-1] > 0) and values[-1] >= 0
    if not (inside and np.all(np.diff(values) < 0)):
        raise ValueError("table: alpha_squared must decrease inside (0, 1), with 0 at its end at the earliest.")
    with np.errstate(divide="ignore"):
        ratios = np.sqrt((1 - values) / values)
    return Schedule(_table, _table_time, (ratios.tobytes(),), "preserving", float(len(values)))


@functools.lru_cache(maxsize=64)
def _ratios(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.float64)


def _table(t, xp, content):
    ratios = _ratios(content)
    below = xp.clip(xp.floor(t), 1, len(ratios)).astype(int)
    part = xp.where(t < 1, 0, t - below)
    above = xp.minimum(below + 1, len(ratios))
    low, high = (xp.asarray(ratios, t.dtype)[i - 1] for i in (below, above))  # rounded once
    inside = (part > 0) | xp.isfinite(high)  # not inf / inf at the end
    growth = xp.where(inside, high, 1) / xp.where(inside, low, 1)
    between = low * growth**part
    return xp.where(t < 1, t * low, between)


def _table_time(ratio, xp, content):
    ratios = _ratios(content)
    finite = ratios[np.isfinite(ratios)]
    logs = xp.asarray(np.log(finite), ratio.dtype)
    first = float(finite[0])
    between = xp.interp(xp.log(xp.maximum(ratio, first)), logs, xp.arange(1, len(finite) + 1, dtype=ratio.dtype))
    between = xp.where(xp.isinf(ratio), len(ratios), between)
    return xp.where(ratio < first, ratio / first, between)


def _of_betas(function: str, betas: np.ndarray) -> Schedule:
    if betas.max() >= 1:
        raise ValueError(f"{function}: so few steps would add more noise than there is room for, got {len(betas)}.")
    return table(np.cumprod(1 - betas))


def _discretized(schedule: Schedule, steps: int, largest: int | float = 0.999) -> Schedule:
    alpha = schedule(np.arange(steps + 1) / steps).alpha ** 2
    return table(np.cumprod(1 - np.minimum(1 - alpha[1:] / alpha[:-1], largest)))


# ---- checks ---------------------------------------------------------------------------------------------------------


def _increasing(function: str, low: int | float, high: int | float, *, positive: bool = True) -> None:
    if not low < high or (positive and low <= 0):
        raise ValueError(f"{function}: expected {'0 < ' if positive else ''}first < last, got {low} and {high}.")


def _count(function: str, steps: int) -> int:
    if steps < 1:
        raise ValueError(f"{function}: steps must be at least 1, got {steps}.")
    return steps
