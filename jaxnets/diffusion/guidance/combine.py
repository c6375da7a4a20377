"""Denoisers of denoisers: conditional and unconditional, with a classifier, with a worse one, thresholded."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.diffusion import parametrization
from jaxnets.diffusion.schedules import Schedule
from jaxnets.types import Array, PyTree

Interval = tuple[int | float, int | float]


def classifier_free(
    denoise: Callable,
    scale: Any = 2.0,
    interval: Interval | None = None,
    *,
    rescale: int | float = 0.0,
    null: Mapping[str, Any] | None = None,
) -> Callable:
    """`x_0 = u + scale (c - u)` of the conditional c and the unconditional u: 0 is u, 1 is c, more follows the condition.

    u is the denoiser where the conditions of `null` have its values, `{"label": None}` if not given. Outside of the `interval`
    of times (in those of the schedule, ends included) it is c, and u isn't computed if all examples share the time.
    `rescale` is the share of the result whose standard deviation is made that of c, for each example.

    Raises:
      ValueError: an interval that isn't increasing; `rescale` outside [0, 1]; when called without one of the conditions.
    Source: Ho & Salimans (2022), eq. 6, arXiv:2207.12598; interval: Kynkäänniemi et al. (2024), arXiv:2404.07724;
      rescale: Lin et al. (2024), eq. 14-16, of x_0 instead of v, arXiv:2305.08891.
    """
    _check_interval("classifier_free", interval)
    if not 0 <= rescale <= 1:
        raise ValueError(f"classifier_free: rescale must be in [0, 1], got {rescale}.")
    absent = {"label": None} if null is None else dict(null)

    def guided(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        missing = [name for name in absent if conditions.get(name) is None]
        if missing:
            raise ValueError(f"classifier_free: guidance needs the condition {', '.join(missing)}; got none.")
        best = denoise(x, t, **conditions)
        if _is(scale, 1):
            return best

        def push(best):
            pushed = _extrapolate(best, denoise(x, t, **{**conditions, **absent}), scale)
            return _rescale(pushed, best, rescale) if rescale else pushed

        return _inside(t, interval, push, best)

    return guided


def autoguidance(denoise: Callable, weak: Callable, scale: Any = 2.0, interval: Interval | None = None) -> Callable:
    """`x_0 = w + scale (d - w)` of the denoiser d and a worse one w: smaller, or trained less, for the same conditions.

    Raises:
      ValueError: an interval that isn't increasing.
    Source: Karras et al. (2024), section 4, arXiv:2406.02507; interval as in `classifier_free`.
    """
    _check_interval("autoguidance", interval)

    def guided(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        best = denoise(x, t, **conditions)
        if _is(scale, 1):
            return best

        def push(best):
            return _extrapolate(best, weak(x, t, **conditions), scale)

        return _inside(t, interval, push, best)

    return guided


def classifier(denoise: Callable, schedule: Schedule, log_prob: Callable, scale: Any = 1.0) -> Callable:
    """`x_0 + scale σ² / α ∇_x log p(c | x)` with `log_prob(x, t, **conditions)`, one number per example; exact at scale 1.

    Denoiser and classifier get the same conditions. Where nothing is left of the data (α = 0) it is the denoiser.

    Raises:
      ValueError: when called, if `log_prob` isn't a number or one per example.
    Source: Dhariwal & Nichol (2021), section 4.2, arXiv:2105.05233.
    """

    def guided(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = parametrization.as_time(t, x)

        def total(x):
            values = log_prob(x, t, **conditions)
            if jnp.shape(values) not in ((), jax.tree.leaves(x)[0].shape[:1]):
                raise ValueError(f"classifier: log_prob must be a number or one for each example, got {jnp.shape(values)}.")
            return jnp.sum(values)

        x0 = denoise(x, t, **conditions)
        return add(x0, parametrization.as_time(scale, x) * from_score(schedule, t), jax.grad(total)(x))

    return guided


def dynamic_thresholding(denoise: Callable, percentile: int | float = 0.995, *, least: int | float = 1.0) -> Callable:
    """`clip(x_0, -s, s) least / s` with s the `percentile` of `|x_0|` of each example, but at least `least`.

    An array of a single axis is one example; otherwise the first axis is that of the batch.

    Raises:
      ValueError: `percentile` outside (0, 1]; `least` not positive.
    Source: Saharia et al. (2022), section 2.3, arXiv:2205.11487.
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"dynamic_thresholding: percentile must be in (0, 1], got {percentile}.")
    if not least > 0:
        raise ValueError(f"dynamic_thresholding: least must be positive, got {least}.")

    def threshold(x0):
        wide = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
        bound = jnp.maximum(jnp.quantile(jnp.abs(wide), percentile, axis=_within(x0), keepdims=True), least)
        return (jnp.clip(wide, -bound, bound) * (least / bound)).astype(x0.dtype)

    def thresholded(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        return jax.tree.map(threshold, denoise(x, t, **conditions))

    return thresholded


def clip(denoise: Callable, low: int | float = -1.0, high: int | float = 1.0) -> Callable:
    """The denoiser with its data clipped to `low..high`. Raises ValueError unless `low < high`."""
    if not low < high:
        raise ValueError(f"clip: low must be below high, got {low} and {high}.")

    def clipped(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        return jax.tree.map(functools.partial(jnp.clip, min=low, max=high), denoise(x, t, **conditions))

    return clipped


# ---- shared ---------------------------------------------------------------------------------------------------------


def from_score(schedule: Schedule, t: Array) -> Array:
    """`σ² / α`, by which x_0 grows per unit of the score; 0 where nothing is left of the data."""
    level = schedule(t)
    left = level.alpha > 0
    return jnp.where(left, level.sigma**2 / jnp.where(left, level.alpha, 1), 0)


def add(x0: PyTree, weight: Array, change: PyTree) -> PyTree:
    """`x_0 + weight change`, in the dtypes of x_0."""
    return parametrization.combine(x0, (jnp.ones_like(weight), x0), (weight, change))


def _extrapolate(best: PyTree, weak: PyTree, scale: Any) -> PyTree:
    scale = parametrization.as_time(scale, best)
    return parametrization.combine(best, (scale, best), (1 - scale, weak))  # exact at 0 and at 1


def _rescale(pushed: PyTree, best: PyTree, share: float) -> PyTree:
    def leaf(pushed, best):
        wide = jnp.promote_types(best.dtype, jnp.float32)
        deviation, wanted = (jnp.std(a.astype(wide), axis=_within(a), keepdims=True) for a in (pushed, best))
        factor = jnp.where(deviation > 0, wanted / jnp.where(deviation > 0, deviation, 1), 1)
        return (pushed * (share * factor + (1 - share))).astype(best.dtype)

    return jax.tree.map(leaf, pushed, best)


def _within(leaf: Array) -> tuple[int, ...]:
    """The axes of one example."""
    return tuple(range(1 if leaf.ndim > 1 else 0, leaf.ndim))


def _inside(t: Any, interval: Interval | None, push: Callable, best: PyTree) -> PyTree:
    """`push(best)` at times inside the interval, `best` outside."""
    if interval is None:
        return push(best)
    low, high = interval
    inside = operator.and_(t >= low, t <= high)
    if np.ndim(inside) == 0:
        return lax.cond(inside, push, _same, best)
    inside = jnp.asarray(inside)
    return jax.tree.map(lambda a, b: jnp.where(parametrization.expand(inside, a), a, b), push(best), best)


def _same(x: PyTree) -> PyTree:
    return x


def _is(scale: Any, value: int) -> bool:
    """Whether a scale that is no array has the value."""
    return isinstance(scale, int | float) and scale == value


def _check_interval(function: str, interval: Interval | None) -> None:
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"{function}: interval must be (low, high) with low < high, got {interval}.")
