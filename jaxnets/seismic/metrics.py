"""How good an inversion is: signal to noise, correlation, the support of spikes, the bias of their amplitudes.

Each takes `(estimate, truth)` and gives one number for all traces together; `jax.vmap` gives one per trace.
"""

import jax
import jax.numpy as jnp

from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Bool, Float


def snr_db(estimate: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Signal to noise ratio in dB, `10 log10(Σ truth² / Σ (estimate - truth)²)`: 0 for an estimate of 0, inf when perfect."""
    return 10 * (jnp.log10(jnp.sum(truth**2)) - jnp.log10(jnp.sum((estimate - truth) ** 2)))


def correlation(estimate: Float[Array, "*shape"], truth: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Pearson's correlation coefficient in [-1, 1], whatever the scale and mean of the two; 0 where one of them is constant."""
    estimate, truth = estimate - estimate.mean(), truth - truth.mean()
    # Normalized before the product, where the product of two small energies could underflow.
    sizes = jnp.sqrt(jnp.sum(estimate**2)), jnp.sqrt(jnp.sum(truth**2))
    estimate, truth = (x / jnp.where(size > 0, size, 1) for x, size in zip((estimate, truth), sizes, strict=True))
    return jnp.clip(jnp.sum(estimate * truth), -1, 1)


def support_f1(
    estimate: Float[Array, "*trace time"], truth: Float[Array, "*trace time"], *, tolerance: int = 1, threshold: Scalar = 0.0
) -> Float[Array, ""]:
    """F1 of the spikes, `2 hits / (spikes of the estimate + spikes of the truth)`; 1 where neither has any.

    A spike is a sample with `|x| > threshold`, whatever its sign. Hits are the largest one-to-one matching of spikes at most
    `tolerance` samples apart, counted over all traces: a number that depends on no rule for ties. A true spike split into two
    is one hit and one false alarm.

    Raises:
      ValueError: `tolerance` or `threshold` negative.
    """
    found, true = _spikes("support_f1", estimate, truth, tolerance, threshold)
    hits, spikes = _largest_matching(found, true, tolerance), jnp.sum(found) + jnp.sum(true)
    return jnp.where(spikes > 0, 2 * hits / jnp.maximum(spikes, 1), 1).astype(estimate.dtype)


def amplitude_bias(
    estimate: Float[Array, "*trace time"], truth: Float[Array, "*trace time"], *, tolerance: int = 1, threshold: Scalar = 0.0
) -> Float[Array, ""]:
    """Relative error of the spikes' size, `Σ (sign(a) â - |a|) / Σ |a|` over matched spikes: -0.2 is a fifth too small.

    Matched one-to-one, the nearest first: true spikes take the estimate's spike at their own sample, the rest one sample
    earlier, then one later, and so on up to `tolerance`. NaN where nothing matches.

    Raises:
      ValueError: `tolerance` or `threshold` negative.
    """
    found, true = _spikes("amplitude_bias", estimate, truth, tolerance, threshold)
    size = error = jnp.zeros((), estimate.dtype)
    for offset in sorted(range(-tolerance, tolerance + 1), key=lambda offset: (abs(offset), offset)):
        matched = true & _at(found, offset)
        size = size + jnp.sum(jnp.where(matched, jnp.abs(truth), 0))
        error = error + jnp.sum(jnp.where(matched, jnp.sign(truth) * _at(estimate, offset) - jnp.abs(truth), 0))
        # One shift pairs each spike with one other, so what was matched is used up on both sides.
        true, found = true & ~matched, found & ~_at(matched, -offset)
    return error / size


def _spikes(function, estimate, truth, tolerance, threshold) -> tuple[Bool[Array, "*trace time"], Bool[Array, "*trace time"]]:
    checks.option(function, "tolerance must not be negative", tolerance, tolerance >= 0)
    checks.option(function, "threshold must not be negative", threshold, threshold >= 0)
    return jnp.abs(estimate) > threshold, jnp.abs(truth) > threshold


def _largest_matching(found: Bool[Array, "*trace time"], true: Bool[Array, "*trace time"], tolerance: int):
    """Size of the largest matching: from left to right, each true spike takes the earliest free one in reach.

    That greedy rule is optimal because all windows have one width, so they open and close in the same order.
    """
    windows = jnp.stack([_at(found, offset) for offset in range(-tolerance, tolerance + 1)])  # [offset, *trace, time]

    def visit(taken, now):
        window, true = now
        free = window & ~taken
        first = free & (jnp.cumsum(free, axis=0) == 1) & true[None]
        # The next window starts one sample later.
        taken = jnp.concatenate([(taken | first)[1:], jnp.zeros_like(taken[:1])])
        return taken, jnp.sum(first)

    start = jnp.zeros(windows.shape[:-1], bool)
    _, hits = jax.lax.scan(visit, start, (jnp.moveaxis(windows, -1, 0), jnp.moveaxis(true, -1, 0)))
    return jnp.sum(hits)


def _at(x: Array, offset: int) -> Array:
    """`x[..., i + offset]`, with zeros beyond the ends."""
    time = x.shape[-1]
    before, after = max(-offset, 0), max(offset, 0)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    return padded[..., after : after + time]
