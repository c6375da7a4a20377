"""How probable data are under a diffusion model: exactly by the probability flow, or from below by the variational bound."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.diffusion import losses, parametrization
from jaxnets.diffusion.samplers.sample import gaussian
from jaxnets.diffusion.schedules import Grid, Schedule, exponential
from jaxnets.types import Array, Float, Key


class Likelihood(NamedTuple):
    """`log p` of each example, in nats, and the standard error that random probes leave in it (0 where it is exact)."""

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
    x: Float[Array, "batch *shape"],
    key: Key[Array, ""] | None = None,
    *,
    grid: Grid | None = None,
    probes: int | None = None,
    prior_std: float | None = None,
    **conditions: Any,
) -> Likelihood:
    """`log p(x)` of each example: the density at the end of the probability flow, and the volume that it gained on the way.

    `d y / d log ρ = y - denoise` of `y = x / α`, by the classical Runge-Kutta method over the `grid` (default: 100 steps, even
    in log ρ from 1e-3 to 80); its 0 is left out: the density is that of data with noise of the grid's last ratio. The
    divergence is exact (as many derivatives as x has elements), or estimated by so many random `probes` of ±1 per example.
    At the first time x is taken for N(0, `prior_std`²): 1 if variance preserving, σ else.

    Raises:
      ValueError: `probes` below 1, or without a key; a grid of one step.
    Source: Song et al. (2021), section 4.3, arXiv:2011.13456; the probes: Grathwohl et al. (2019), arXiv:1810.01367.
    """
    if probes is not None and (probes < 1 or key is None):
        raise ValueError(f"log_likelihood: probes must be at least 1 and need a key, got {probes}.")
    times = (exponential(101, smallest=1e-3) if grid is None else grid)(schedule)[:-1][::-1]
    if len(times) < 2:
        raise ValueError(f"log_likelihood: grid must have at least 2 steps, got {len(times)}.")
    wide = parametrization.as_time(0.0, x).dtype
    logs = np.log(schedule.ratio(times))
    if not np.isfinite(logs[-1]):
        raise ValueError("log_likelihood: grid must begin where something is left of the data, as karras does.")
    stages = np.stack([logs[:-1], (logs[:-1] + logs[1:]) / 2, logs[1:]], 1)
    at = schedule.time(np.exp(stages))
    alphas = schedule(at).alpha
    dimensions = math.prod(x.shape[1:])
    directions = _directions(key, x, probes)

    def slope(y, t, alpha):
        def flow(y):
            return y - denoise((alpha * y).astype(x.dtype), t, **conditions).astype(wide)

        moved, back = jax.linearize(flow, y)
        if directions is None:
            # One derivative per element, of all examples at once: examples don't mix in a denoiser.
            units = jnp.eye(dimensions, dtype=wide).reshape(dimensions, 1, *x.shape[1:])

            def diagonal(unit):
                return (back(jnp.broadcast_to(unit, y.shape)) * unit).sum(tuple(range(1, y.ndim)))

            return moved, jax.lax.map(diagonal, units).sum(0)[None]
        return moved, jax.lax.map(lambda z: (back(z) * z).sum(tuple(range(1, y.ndim))), directions)

    def step(state, row):
        y, gained = state
        (early, middle, late), (a, b, c), h = row
        first, d1 = slope(y, early, a)
        second, d2 = slope(y + h / 2 * first, middle, b)
        third, d3 = slope(y + h / 2 * second, middle, b)
        fourth, d4 = slope(y + h * third, late, c)
        y = y + h / 6 * (first + 2 * second + 2 * third + fourth)
        return (y, gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    rows = jax.tree.map(lambda column: jnp.asarray(column, wide), (tuple(at.T), tuple(alphas.T), np.diff(logs)))
    begin = (x.astype(wide) / float(alphas[0, 0]), jnp.zeros((probes or 1, x.shape[0]), wide))
    (y, gained), _ = jax.lax.scan(step, begin, rows)
    end = schedule(times[-1])
    std = (1.0 if schedule.family == "preserving" else float(end.sigma)) if prior_std is None else prior_std
    std = std / float(end.alpha)
    squares = jnp.square(y / std).sum(tuple(range(1, y.ndim)))
    log_prior = -0.5 * squares - dimensions * (0.5 * math.log(2 * math.pi) + math.log(std))
    log_first = -dimensions * math.log(float(alphas[0, 0]))  # of x = α y at the grid's last time
    error = jnp.std(gained, axis=0, ddof=1) / math.sqrt(probes) if (probes or 1) > 1 else jnp.full(x.shape[:1], jnp.nan, wide)
    if directions is None:
        error = jnp.zeros(x.shape[:1], wide)
    return Likelihood(log_prior + log_first + gained.mean(0), error)


def variational_bound(
    denoise: Callable,
    schedule: Schedule,
    grid: Grid,
    x: Float[Array, "batch *shape"],
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


def bits_per_dimension(log_p: Float[Array, "*shape"], dimensions: int, *, bin_width: float = 2 / 256) -> Float[Array, "*shape"]:
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
