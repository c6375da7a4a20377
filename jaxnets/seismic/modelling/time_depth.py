"""Between depth and two-way time, by the velocity of each sample; normal moveout."""

import jax
import jax.numpy as jnp

from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Float


def two_way_time(velocity: Float[Array, "*trace depth"], interval: Scalar) -> Float[Array, "*trace depth"]:
    """Two-way time in s to the top of each sample of `interval` m, `2 dz Σ_{j<i} 1 / v[j]`; the first is 0."""
    checks.option("two_way_time", "interval must be positive (m)", interval, interval > 0)
    return _above(2 * interval / velocity)


def depth(velocity: Float[Array, "*trace time"], interval: Scalar) -> Float[Array, "*trace time"]:
    """Depth in m of the top of each sample of `interval` s two-way time, `dt/2 Σ_{j<i} v[j]`; the first is 0."""
    checks.option("depth", "interval must be positive (s)", interval, interval > 0)
    return _above(interval / 2 * velocity)


def depth_to_time(
    property: Float[Array, "*trace depth"],
    velocity: Float[Array, "*trace depth"],
    depth_interval: Scalar,
    time_interval: Scalar,
    samples: int,
) -> Float[Array, "*trace {samples}"]:
    """A property sampled in depth (m) at `samples` two-way times `0, time_interval, ...` s, by linear interpolation.

    Below the last depth its value continues. Sample depth finely: features thinner than a time sample alias.
    """
    checks.option("depth_to_time", "time_interval must be positive (s)", time_interval, time_interval > 0)
    times = two_way_time(velocity, depth_interval)
    return _interpolate(jnp.arange(samples) * time_interval, times, property)


def time_to_depth(
    property: Float[Array, "*trace time"],
    velocity: Float[Array, "*trace time"],
    time_interval: Scalar,
    depth_interval: Scalar,
    samples: int,
) -> Float[Array, "*trace {samples}"]:
    """A property sampled in two-way time (s) at `samples` depths `0, depth_interval, ...` m; so is `velocity`."""
    checks.option("time_to_depth", "depth_interval must be positive (m)", depth_interval, depth_interval > 0)
    depths = depth(velocity, time_interval)
    return _interpolate(jnp.arange(samples) * depth_interval, depths, property)


def nmo(
    gather: Float[Array, "offset time"],
    offsets: Float[Array, " offset"],
    velocity: Scalar | Float[Array, " time"],
    interval: Scalar,
    *,
    stretch: Scalar = 0.5,
) -> Float[Array, "offset time"]:
    """Normal moveout correction: the sample at `t0` comes from `sqrt(t0² + (offset / velocity)²)`.

    Zero where it is stretched by more than `stretch` (`t / t0 - 1`) or comes from below the gather. Offsets in m, stacking
    velocity in m/s, `interval` in s.

    Source: Dix (1955), Geophysics 20(1), doi:10.1190/1.1438126; Yilmaz (2001), Seismic Data Analysis, section 3.1.
    """
    checks.option("nmo", "interval must be positive (s)", interval, interval > 0)
    zero_offset = jnp.arange(gather.shape[-1]) * interval

    def correct(trace, offset):
        squared = zero_offset**2 + (offset / velocity) ** 2
        # The square root has no gradient at 0, which the first sample of zero offset is.
        times = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
        kept = times <= (1 + stretch) * zero_offset
        return jnp.where(kept, jnp.interp(times, zero_offset, trace, right=0), 0)

    return jax.vmap(correct)(gather, offsets)


def _above(thickness: Float[Array, "*trace sample"]) -> Float[Array, "*trace sample"]:
    """Sum over the samples above each."""
    total = jnp.cumsum(thickness[..., :-1], axis=-1)
    return jnp.concatenate([jnp.zeros_like(thickness[..., :1]), total], axis=-1)


def _interpolate(x, known, values):
    flat = jax.vmap(lambda known, values: jnp.interp(x, known, values))
    return flat(*(a.reshape(-1, a.shape[-1]) for a in (known, values))).reshape(*values.shape[:-1], x.size)
