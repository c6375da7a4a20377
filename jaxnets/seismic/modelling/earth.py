"""A synthetic layered earth, and noise for the data modelled from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.seismic import checks, wavelets
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Float, Key


class Elastic(NamedTuple):
    """Properties of rock: arrays of one shape (logs are `[*trace, time]`), or numbers for a half-space."""

    vp: Any  # m/s, of P waves
    vs: Any  # m/s, of S waves; 0 in a fluid
    density: Any  # kg/m³

    @property
    def impedance(self) -> Any:
        """Acoustic impedance `ρ Vp` in kg/(m² s)."""
        return self.vp * self.density


def layered_earth(
    key: Key[Array, ""],
    *,
    traces: int,
    samples: int,
    interval: Scalar,
    layers: int,
    contrast: Scalar = 0.1,
    dip: Scalar = 0.0,
    fold: Scalar = 0.0,
    throw: Scalar = 0.0,
    unconformity: Scalar = 0.0,
) -> Elastic:
    """Blocky logs `[trace, time]` of about `layers` layers in two-way time, sampled every `interval` s.

    Layers dip by `dip` s across the section, are folded by ± `fold` s, and fall by `throw` s beyond a fault. Above the time
    `unconformity` they are younger: flat and unfaulted, and the older ones end against them (pinch out). Vp grows downwards
    from 2000 to 4000 m/s with a relative scatter of `contrast`; Vs follows Castagna's mudrock line, density Gardner's
    relation, with half that scatter. No inverse crime: make it on a finer grid than the data, and invert with another wavelet.

    Raises:
      ValueError: fewer than 1 trace, 2 samples or 1 layer; a negative `contrast`; `interval <= 0`.
    Source: Gardner, Gardner & Gregory (1974), doi:10.1190/1.1440465; Castagna, Batzle & Eastwood (1985), doi:10.1190/1.1441933.
    """
    name = "layered_earth"
    checks.option(name, "traces must be at least 1", traces, traces >= 1)
    checks.option(name, "samples must be at least 2", samples, samples >= 2)
    checks.option(name, "layers must be at least 1", layers, layers >= 1)
    checks.option(name, "interval must be positive (s)", interval, interval > 0)
    checks.option(name, "contrast must not be negative", contrast, contrast >= 0)
    time, duration = jnp.arange(samples, dtype=float)[None] * interval, samples * interval
    x = jnp.linspace(-0.5, 0.5, traces, dtype=time.dtype)[:, None]
    # The fault plane leans from the middle at the top of the section to a quarter of the way from its end.
    beyond = x > 0.25 * time / duration
    shift = dip * x + fold * jnp.sin(2 * jnp.pi * x) + throw * beyond
    margin = jnp.abs(dip) / 2 + jnp.abs(fold) + jnp.abs(throw)  # the shift's largest size
    old, young = (
        _pile(key, layers, jnp.asarray(length, time.dtype), contrast)
        for key, length in zip(jax.random.split(key), (duration + 2 * margin, duration), strict=True)
    )
    old, young = _rocks(old, time + margin - shift), _rocks(young, jnp.broadcast_to(time, shift.shape))
    return jax.tree.map(lambda young, old: jnp.where(time < unconformity, young, old), young, old)


def coarsen_spikes(reflectivity: Float[Array, "*trace fine"], factor: int) -> Float[Array, "*trace time"]:
    """Reflectivity on a grid `factor` times coarser: each spike goes to the nearest coarse sample, where several add up.

    Coarse sample `i` lies at the fine sample `factor i`, so it fits data decimated by `[..., ::factor]`.

    Raises:
      ValueError: `factor < 1`.
    """
    checks.option("coarsen_spikes", "factor must be at least 1", factor, factor >= 1)
    fine = reflectivity.shape[-1]
    coarse = -(-fine // factor)
    nearest = jnp.minimum((jnp.arange(fine) + factor // 2) // factor, coarse - 1)
    return jnp.zeros((*reflectivity.shape[:-1], coarse), reflectivity.dtype).at[..., nearest].add(reflectivity)


def add_noise(
    key: Key[Array, ""],
    data: Float[Array, "*trace time"],
    snr_db: Scalar,
    *,
    band: tuple[Scalar, Scalar] | None = None,
    interval: Scalar | None = None,
) -> Float[Array, "*trace time"]:
    """`data` plus Gaussian noise of the same level on all traces, `10 log10(Σ data² / Σ noise²) = snr_db` exactly.

    White, or with `band = (low, high)` Hz and the sampling `interval` in s shaped by a Butterworth amplitude of order 4.

    Raises:
      ValueError: a `band` without `interval`, or one that isn't positive and increasing.
    """
    noise = jax.random.normal(key, data.shape, data.dtype)
    if band is not None:
        if interval is None:
            raise ValueError("add_noise: a band needs the sampling interval of the data (s), got None.")
        if all(isinstance(frequency, int | float) for frequency in band):
            checks.option("add_noise", "band must be positive and increase (Hz)", band, 0 < band[0] < band[1])
        frequency = jnp.fft.rfftfreq(data.shape[-1]).astype(data.dtype) / interval
        amplitude = wavelets.butterworth_amplitude(frequency, *band)
        noise = jnp.fft.irfft(
            jnp.fft.rfft(noise) * jnp.broadcast_to(amplitude, (*data.shape[:-1], amplitude.size)), data.shape[-1]
        )
    level = jnp.sqrt(jnp.sum(data**2) / jnp.sum(noise**2)) * 10 ** (-jnp.asarray(snr_db, data.dtype) / 20)
    return data + level * noise


def _pile(key, layers, length, contrast) -> tuple[Array, Elastic]:
    """Bases of `layers` layers in a pile of `length` s, and their rocks."""
    thickness, scatter = jax.random.split(key)
    thickness = 0.3 + 0.7 * jax.random.exponential(thickness, (layers,), length.dtype)  # none vanishingly thin
    share = jnp.cumsum(thickness) / jnp.sum(thickness)
    vp, vs, density = jax.random.normal(scatter, (3, layers), share.dtype) * contrast
    vp = jnp.maximum(2000 * (1 + share) * jnp.exp(vp), 1500)  # at least that of water
    return share * length, Elastic(vp, (vp - 1360) / 1.16 * jnp.exp(vs / 2), 310 * vp**0.25 * jnp.exp(density / 2))


def _rocks(pile, place: Float[Array, "trace time"]) -> Elastic:
    bases, rocks = pile
    layer = jnp.minimum(jnp.searchsorted(bases, place, side="right"), bases.size - 1)
    return jax.tree.map(lambda x: x[layer], rocks)
