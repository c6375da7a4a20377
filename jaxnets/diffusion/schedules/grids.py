"""Grids of sampling times: a function of the schedule, float64 on the host, decreasing and ending at 0, the data.

`schedules.karras(20)(schedule)` is an array of 21 times: 20 steps. A grid whose bounds lie outside of what the schedule reaches
begins or ends at the schedule's own: of a table at its first step, and its last one that leaves something of the data.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnets.diffusion.schedules.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Grid:
    """Times of a schedule by a rule; `grid(schedule)` checks them. `last` keeps only so many of the steps, the last ones."""

    rule: Callable[..., np.ndarray]  # (schedule, steps, *options) -> decreasing times, without the 0
    steps: int
    options: tuple[Any, ...] = ()
    last: int | None = None

    def __post_init__(self):
        if not isinstance(self.steps, int | np.integer) or self.steps < 1:
            raise ValueError(f"Grid: steps must be a whole number of at least 1, got {self.steps}.")
        if self.last is not None and not 1 <= self.last <= self.steps:
            raise ValueError(f"Grid: last must be in 1..{self.steps}, the steps, got {self.last}.")

    def __call__(self, schedule: Schedule) -> np.ndarray:
        times = np.append(self.rule(schedule, self.steps, *self.options), 0.0)
        decreasing = np.all(np.isfinite(times)) and np.all(np.diff(times) < 0)
        if not decreasing:
            raise ValueError(f"Grid: times must decrease to 0, got {_shown(times)}.")
        if times[0] > schedule.end * (1 + 1e-9):
            raise ValueError(f"Grid: times must lie in 0..{schedule.end:g}, those of the schedule, got {times[0]:g}.")
        times[0] = min(times[0], schedule.end)
        return times if self.last is None else times[-self.last - 1 :]


def explicit(times: Sequence[float] | np.ndarray) -> Grid:
    """The given times, decreasing; the final 0 may be left out."""
    values = tuple(float(t) for t in np.atleast_1d(np.asarray(times, np.float64)))
    values = values[:-1] if values and values[-1] == 0 else values
    return Grid(_explicit, len(values), values)


def uniform(steps: int) -> Grid:
    """`end (1 - i / steps)`."""
    return Grid(_power, steps, (1.0,))


def quadratic(steps: int) -> Grid:
    """`end (1 - i / steps)²`: finer towards the data. Source: Song, Meng & Ermon (2021), appendix D.2, arXiv:2010.02502."""
    return Grid(_power, steps, (2.0,))


def trailing(steps: int) -> Grid:
    """The uniform grid rounded to whole steps of a table: it begins at the last one. Source: Lin et al. (2024), table 2."""
    return Grid(_trailing, steps)


def leading(steps: int) -> Grid:
    """Every `N // steps`-th of a table's N steps from the first on, without the last ones; of DDPM and of DDIM's code."""
    return Grid(_leading, steps)


def karras(steps: int, *, rho: int | float = 7.0, smallest: int | float = 0.002, largest: int | float = 80.0) -> Grid:
    """σ / α falls from `largest` to `smallest` linearly in its `rho`-th root. Source: Karras et al. (2022), eq. 5."""
    _bounds("karras", smallest, largest)
    if not rho > 0:
        raise ValueError(f"karras: rho must be positive, got {rho}.")
    return Grid(_karras, steps, (rho, smallest, largest))


def exponential(steps: int, *, smallest: int | float = 0.002, largest: int | float = 80.0) -> Grid:
    """σ / α falls from `largest` to `smallest` geometrically: evenly in log-SNR."""
    _bounds("exponential", smallest, largest)
    return Grid(_exponential, steps, (smallest, largest))


def log_snr(steps: int, *, lowest: int | float = -8.8, highest: int | float = 12.4) -> Grid:
    """Evenly in log(α² / σ²) from `lowest` to `highest`: `exponential` by its other name, with the same bounds.

    Source: Lu et al. (2022), section 3.3, arXiv:2206.00927.
    """
    if not lowest < highest:
        raise ValueError(f"log_snr: lowest must be below highest, got {lowest} and {highest}.")
    return exponential(steps, smallest=math.exp(-highest / 2), largest=math.exp(-lowest / 2))


def _explicit(schedule, steps, *times):
    del schedule, steps
    return np.array(times)


def _power(schedule, steps, power):
    return schedule.end * (np.arange(steps, 0, -1) / steps) ** power


def _trailing(schedule, steps):
    whole = _whole(schedule, steps, "trailing")
    return np.round(np.arange(steps, 0, -1) * (whole / steps))


def _leading(schedule, steps):
    return np.arange(steps - 1, -1, -1) * float(_whole(schedule, steps, "leading") // steps) + 1


def _karras(schedule, steps, rho, smallest, largest):
    smallest, largest = reached(schedule, smallest, largest)
    roots = np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps)
    return schedule.time(roots**rho)


def _exponential(schedule, steps, smallest, largest):
    smallest, largest = reached(schedule, smallest, largest)
    return schedule.time(np.geomspace(largest, smallest, steps))


def reached(schedule: Schedule, smallest: int | float, largest: int | float) -> tuple[float, float]:
    """The bounds of the ratio, within the schedule's: of a table those of its first step and of its last that leaves data."""
    first, last = 0.0, float(schedule.ratio(schedule.end))
    if schedule.steps is not None:
        first, before = (float(schedule.ratio(t)) for t in (1, max(schedule.steps - 1, 1)))
        last = last if math.isfinite(last) else before
    low, high = max(float(smallest), first), min(float(largest), last)
    if low >= high:
        raise ValueError(f"Grid: no ratio of the schedule, {first:g} to {last:g}, is between {smallest:g} and {largest:g}.")
    return low, high


def _whole(schedule: Schedule, steps: int, name: str) -> int:
    if schedule.steps is None or schedule.steps < steps:
        raise ValueError(f"{name}: needs the schedule of a table with at least {steps} steps, got one of {schedule.steps}.")
    return schedule.steps


def _bounds(function: str, smallest: int | float, largest: int | float) -> None:
    if not 0 < smallest < largest:
        raise ValueError(f"{function}: expected 0 < smallest < largest, got {smallest} and {largest}.")


def _shown(times: np.ndarray) -> str:
    return np.array2string(times, precision=4, threshold=8)
