"""How probable data are under a diffusion model: exactly by the probability flow, or from below by the variational bound."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.diffusion import losses, parametrization
from jaxnets.diffusion.samplers.sample import gaussian
from jaxnets.diffusion.schedules import Grid, Schedule
from jaxnets.diffusion.schedules.grids import reached
from jaxnets.types import Array, Float, Key


class Likelihood(NamedTuple):
    """`log p` of each example, in nats, and the standard error of random probes in it (0 if exact, NaN of one)."""

    log_p: Float[Array, "..."]
    standard_error: Float[Array, "..."]


class Bound(NamedTuple):
    """Terms of the variational bound, nats per example: `-log p(x) <= prior + diffusion.sum(0) + reconstruction`."""

    prior: Float[Array, "..."]
    diffusion: Float[Array, "..."]  # [steps - 1, example], the noisiest step first
    reconstruction: Float[Array, "..."]

    @property
    def total(self) -> Float[Array, "..."]:
        return self.prior + self.diffusion.sum(0) + self.reconstruction


def log_likelihood(
    denoise: Callable,
    schedule: Schedule,
    x: Float[Array, "batch ..."],
    key: Key[Array, ""] | None = None,
    *,
    grid: Grid | None = None,
    probes: int | None = None,
    prior_std: float | None = None,
    **conditions: Any,
) -> Likelihood:
    """`log p(x)` of each example: the density at the end of the probability flow, and the volume that it gained on the way.

    `d z / d log ρ = c² z - c denoise` of `z = c x / α` with `c = 1 / sqrt(1 + ρ²)`, in which little moves at either end, by the
    classical Runge-Kutta method over the `grid` (default: `flow_grid()`). Its 0 is left out: the density is that of data with
    noise of the grid's last ratio. The divergence is exact, by as many derivatives as x has elements: give `probes` for images,
    and it is estimated by so many random signs per example. At the first time x is taken for N(0, `prior_std`²): 1 if
    variance preserving, σ else.

    Raises:
      ValueError: `probes` below 1, or without a key; a grid of one step.
    Source: Song et al. (2021), section 4.3, arXiv:2011.13456; the probes: Grathwohl et al. (2019), arXiv:1810.01367.
    """
    if probes is not None and (probes < 1 or key is None):
        raise ValueError(f"log_likelihood: probes must be at least 1 and need a key, got {probes}.")
    times = (flow_grid() if grid is None else grid)(schedule)[:-1][::-1]
    if not np.isfinite(schedule.ratio(times[-1])):
        raise ValueError("log_likelihood: grid must begin where something is left of the data, as karras does.")
    wide = parametrization.as_time(0.0, x).dtype
    # As the denoiser will see them: near a schedule's end times may coincide, or come to the end, which is left out.
    times = np.unique(np.asarray(times, wide)).astype(np.float64)
    times = times[np.isfinite(schedule.ratio(times))]
    if len(times) < 2:
        raise ValueError(f"log_likelihood: grid must have at least 2 steps apart in {wide}, got {len(times)}.")
    ratios = schedule.ratio(times)
    middle = np.asarray(schedule.time(np.sqrt(ratios[:-1] * ratios[1:])), wide).astype(np.float64)
    at = np.stack([times[:-1], middle, times[1:]], 1)
    ratios = schedule.ratio(at)
    scales, widths = 1 / np.hypot(1, ratios), np.diff(np.log(ratios[:, ::2]))[:, 0]
    dimensions = math.prod(x.shape[1:])
    directions = _directions(key, x, probes)

    def slope(z, t, alpha, scale):
        def flow(z):
            return scale**2 * z - scale * denoise((alpha / scale * z).astype(x.dtype), t, **conditions).astype(wide)

        moved, linear = jax.linearize(flow, z)

        def projected(direction):
            return (linear(direction) * direction).sum(tuple(range(1, z.ndim)))

        if directions is not None:
            return moved, jax.lax.map(projected, directions)
        # One derivative per element, of all examples at once: in a denoiser they don't mix.
        units = jnp.eye(dimensions, dtype=wide).reshape(dimensions, 1, *x.shape[1:])
        return moved, jax.lax.map(lambda unit: projected(jnp.broadcast_to(unit, z.shape)), units).sum(0)[None]

    def step(state, row):
        z, gained = state
        early, middle, late, h = row
        first, d1 = slope(z, *early)
        second, d2 = slope(z + h / 2 * first, *middle)
        third, d3 = slope(z + h / 2 * second, *middle)
        fourth, d4 = slope(z + h * third, *late)
        z = z + h / 6 * (first + 2 * second + 2 * third + fourth)
        return (z, gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    columns = ((at[:, k], schedule(at[:, k]).alpha, scales[:, k]) for k in range(3))
    rows = jax.tree.map(lambda column: jnp.asarray(column, wide), (*columns, widths))
    begin = (float(scales[0, 0]) * x.astype(wide), jnp.zeros((probes or 1, x.shape[0]), wide))
    (z, gained), _ = jax.lax.scan(step, begin, rows)
    end = schedule(times[-1])
    std = (1.0 if schedule.family == "preserving" else float(end.sigma)) if prior_std is None else prior_std
    std *= float(scales[-1, 2] / end.alpha)
    squares = jnp.square(z / std).sum(tuple(range(1, z.ndim)))
    log_prior = -0.5 * squares - dimensions * (0.5 * math.log(2 * math.pi) + math.log(std / float(scales[0, 0])))
    if probes is None:
        error = jnp.zeros(x.shape[:1], wide)
    else:
        error = jnp.std(gained, axis=0, ddof=1) / math.sqrt(probes) if probes > 1 else jnp.full(x.shape[:1], jnp.nan, wide)
    return Likelihood(log_prior + gained.mean(0), error)


def flow_grid(steps: int = 100, *, smallest: int | float = 1e-3, largest: int | float = 1e4, center: int | float = 0.5) -> Grid:
    """Ratios from `largest` to `smallest`, even in `asinh(log(ρ / center) / 2)`: dense where data and noise are of one size.

    For `log_likelihood`: of a mixture of Gaussians 20 times as exact as a grid even in log ρ, by the same number of steps.

    Raises:
      ValueError: not `0 < smallest < center < largest`; fewer than 1 step.
    """
    if steps < 1:
        raise ValueError(f"flow_grid: steps must be at least 1, got {steps}.")
    if not 0 < smallest < center < largest:
        raise ValueError(f"flow_grid: expected 0 < smallest < center < largest, got {smallest}, {center} and {largest}.")
    return Grid(_spread, steps + 1, (smallest, largest, center))


def _spread(schedule: Schedule, points: int, smallest: int | float, largest: int | float, center: int | float) -> np.ndarray:
    smallest, largest = reached(schedule, smallest, largest)
    low, high = (math.asinh(math.log(bound / center) / 2) for bound in (smallest, largest))
    return schedule.time(center * np.exp(2 * np.sinh(np.linspace(high, low, points))))


def variational_bound(
    denoise: Callable,
    schedule: Schedule,
    grid: Grid,
    x: Float[Array, "batch ..."],
    key: Key[Array, ""],
    *,
    levels: int | None = 256,
    **conditions: Any,
) -> Bound:
    """Terms of the variational bound of the ancestral sampler over `grid`, with one draw of noise in each.

    - prior: `KL(q(x_T | x_0) | N(0, s²))`, with s² = 1 if variance preserving, σ_T² else;
    - diffusion: `(SNR_s - SNR_t) / 2 |x_0 - denoise(x_t)|²` of each step but the last;
    - reconstruction: `-log p(x_0 | x_t)` of the last step under N(denoise, σ_t²), of a bin where data in [-1, 1] have so many
      `levels`, and of the density where they are continuous (None).

    Source: Ho et al. (2020), eq. 5; in this form: Kingma et al. (2021), eq. 11 to 14, arXiv:2107.00630.
    """
    times = grid(schedule)
    wide = parametrization.as_time(0.0, x).dtype
    level, dimensions = schedule(times), math.prod(x.shape[1:])
    log_std = math.log(1.0 if schedule.family == "preserving" else level.sigma[0])
    log_ratio = 2 * (math.log(level.sigma[0]) - log_std)
    square = jnp.square(x.astype(wide)).sum(tuple(range(1, x.ndim))) * float(level.alpha[0] / math.exp(log_std)) ** 2
    prior = 0.5 * (dimensions * (math.expm1(log_ratio) - log_ratio) + square)
    half_snr = np.exp(level.log_snr[:-1]) / 2
    rows = jax.tree.map(lambda column: jnp.asarray(column, wide), (times[:-1], np.append(np.diff(half_snr), 0.0)))

    def term(row):
        index, (t, gain) = row
        noisy = parametrization.noisy(x, gaussian(jax.random.fold_in(key, index), x), t, schedule)
        guess = denoise(noisy, t, **conditions)
        return gain * jnp.square((x - guess).astype(wide)).sum(tuple(range(1, x.ndim))), guess

    count = len(times) - 1
    diffusion = jax.lax.map(lambda row: term(row)[0], (jnp.arange(count - 1), jax.tree.map(lambda r: r[:-1], rows)))
    _, guess = term((count - 1, jax.tree.map(lambda r: r[-1], rows)))
    log_sigma = jnp.full(x.shape, math.log(level.sigma[-2]), wide)
    if levels is None:
        away = (x - guess).astype(wide) * jnp.exp(-log_sigma)
        nll = 0.5 * jnp.square(away) + log_sigma + 0.5 * math.log(2 * math.pi)
    else:
        nll = losses.discretized_gaussian_nll(x.astype(wide), guess.astype(wide), log_sigma, levels=levels)
    return Bound(prior, diffusion, nll.sum(tuple(range(1, x.ndim))))


def bits_per_dimension(
    log_p: Float[Array, "*shape"], dimensions: int, *, bin_width: int | float = 2 / 256
) -> Float[Array, "*shape"]:
    """`-log2` of the probability of a bin, per dimension, from the log-density in nats of data with noise over the bins.

    For a probability, such as `-Bound.total` with levels, `bin_width=1`.

    Raises:
      ValueError: `dimensions` or `bin_width` not positive.
    Source: Theis, van den Oord & Bethge (2016), section 3.1, arXiv:1511.01844.
    """
    if dimensions < 1 or not bin_width > 0:
        raise ValueError(f"bits_per_dimension: dimensions and bin_width must be positive, got {dimensions} and {bin_width}.")
    return -(log_p / dimensions + math.log(bin_width)) / math.log(2)


def _directions(key: Any, x: Array, probes: int | None) -> Array | None:
    """Independent signs for every probe and example; None where the divergence is exact."""
    if probes is None:
        return None
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.random.rademacher(key, (probes, *x.shape), dtype)
