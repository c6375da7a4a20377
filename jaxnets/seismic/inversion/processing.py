"""Processing as sparse inversion: interpolation of missing traces, Radon demultiple, deblending of simultaneous sources."""

import jax.numpy as jnp
import numpy as np

from jaxnets.proximal import linear, prox
from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.seismic.inversion.problem import Problem, check_traces
from jaxnets.types import Array, Bool, Float


def patched_fk(
    shape: tuple[int, ...], *, size: tuple[int, int] = (24, 48), stride: tuple[int, int] | None = None
) -> linear.Operator:
    """Synthesis of sections `(..., trace, time)` from f-k spectra of overlapping windows: few events each, so few coefficients.

    A Parseval frame: `S(S.adjoint(x)) = x`. `stride` is half of `size` if not given.
    """
    size = min(size[0], shape[-2]), min(size[1], shape[-1])
    if stride is None:
        stride = max(1, size[0] // 2), max(1, size[1] // 2)
    cut = linear.patches(shape, size, stride, window="sine")
    return (linear.fk(cut.output) @ cut).H


def interpolation(
    section: Float[Array, "trace time"],
    live: Bool[Array, " trace"],
    *,
    synthesis: linear.Operator | None = None,
) -> Problem:
    """Missing traces (where `live` is false; their samples aren't read): `1/2 |M (S z - section)|^2 + weight |z|_1`.

    `synthesis` S is `patched_fk(section.shape)` unless given; the model is the whole section `S z`. Random gaps are far easier
    than regular ones, which alias.

    Raises:
      ValueError: no live trace, shapes that don't match.
      InputError: NaN in a live trace.
    Source: Abma & Kabir (2006), doi:10.1190/1.2356088; Herrmann & Hennenfent (2008), doi:10.1111/j.1365-246X.2007.03698.x.
    """
    if live.shape != section.shape[:1]:
        raise ValueError(f"interpolation: live must have one entry per trace, {section.shape[:1]}, got {live.shape}.")
    known = checks.known(live)
    if known is not None and not np.any(known):
        raise ValueError("interpolation: live must have at least one true entry, got none.")
    live = jnp.broadcast_to(live[:, None], section.shape)
    keep = linear.mask(live, linear.Structure.of(section))
    data = keep(section)
    check_traces(data, "interpolation")
    synthesis = patched_fk(section.shape) if synthesis is None else synthesis
    return Problem(data, keep, prox.l1(1.0), expand=synthesis, live=live)


def demultiple(
    gather: Float[Array, "offset time"],
    offsets: Float[Array, " offset"],
    curvature: Float[Array, " curvature"],
    interval: Scalar,
    *,
    cutoff: Scalar,
) -> Problem:
    """Multiples in a gather whose primaries NMO made flat, by sparse parabolic Radon: `1/2 |R z - gather|^2 + weight |z|_1`.

    `(R z)(x, t) = Σ_q z(q, t - q x²)`. The model is the gather less its multiples, the part of `R z` with a `curvature` above
    `cutoff` [s/m²]: what the transform doesn't explain stays. `interval` in s, `offsets` in m.

    Raises:
      ValueError: shapes that don't match, `interval <= 0`.
      InputError: NaN in the gather.
    Source: Hampson (1986), Inverse velocity stacking for multiple elimination; Sacchi & Ulrych (1995), doi:10.1190/1.1443845
    (sparse); Trad, Ulrych & Sacchi (2003), doi:10.1190/1.1543224.
    """
    check_traces(gather, "demultiple")
    checks.option("demultiple", "interval must be positive (s)", interval, interval > 0)
    if offsets.shape != gather.shape[:1]:
        raise ValueError(f"demultiple: offsets must have one entry per trace, {gather.shape[:1]}, got {offsets.shape}.")
    radon = linear.parabolic_radon(offsets, curvature, gather.shape[-1], interval)
    return Problem(gather, radon, prox.l1(1.0), context=curvature > cutoff, report=without_multiples)


def without_multiples(problem: Problem, panel: Float[Array, "curvature time"]) -> Float[Array, "offset time"]:
    """The data less what the panel has above the cutoff."""
    return problem.data - problem.forward(jnp.where(problem.context[:, None], panel, 0))


def deblending(
    blended: Float[Array, "trace time"],
    delays: Float[Array, "source trace"],
    interval: Scalar,
    *,
    synthesis: linear.Operator | None = None,
) -> Problem:
    """Simultaneous sources told apart: `1/2 |B S z - blended|^2 + weight |z|_1`, B `blending`; model `[source, trace, time]`.

    Source s of trace i fires at `delays[s, i]` seconds, different from trace to trace at random: in its own time a source's
    events are continuous and sparse in `synthesis` (default `patched_fk`), the other's are not. Starts from pseudo-deblending.

    Raises:
      ValueError: shapes that don't match, `interval <= 0`.
      InputError: NaN in the data.
    Source: Berkhout (2008), doi:10.1190/1.2907166; Mahdad, Doulgeris & Blacquière (2011), Geophysics 76(3) (f-k).
    """
    check_traces(blended, "deblending")
    blend = blending(delays, blended.shape[-1], interval)
    if blend.output.shape != blended.shape:
        raise ValueError(f"deblending: delays of {delays.shape[1]} traces don't fit data of shape {blended.shape}.")
    synthesis = patched_fk(blend.structure.shape) if synthesis is None else synthesis
    start = synthesis.adjoint(blend.adjoint(blended)) / delays.shape[0]
    return Problem(blended, blend, prox.l1(1.0), expand=synthesis, start=start)


def blending(delays: Float[Array, "source trace"], samples: int, interval: Scalar) -> linear.Operator:
    """`[source, trace, time]` to the record `d(i, t) = Σ_s u_s(i, t - delays[s, i])`; its adjoint is pseudo-deblending.

    Delays [s] between samples are exact for band-limited traces; what leaves the record at either end is lost.
    """
    checks.option("blending", "interval must be positive (s)", interval, interval > 0)
    shift = (delays / interval)[..., None]  # [samples]
    size = 2 * samples  # zeros, so that nothing wraps around
    cycles = jnp.asarray(np.arange(size // 2 + 1) / size, delays.dtype)[None, None]
    phase = jnp.where(jnp.abs(shift) < samples, jnp.exp(-2j * jnp.pi * shift * cycles), 0)
    structure = linear.Structure.of((*delays.shape, samples), delays.dtype)
    return linear.Operator(phase, structure, _blend, _unblend)


def _blend(phase, sources):
    samples = sources.shape[-1]
    return jnp.fft.irfft(jnp.sum(phase * jnp.fft.rfft(sources, 2 * samples), axis=0), 2 * samples)[..., :samples]


def _unblend(phase, record):
    samples = record.shape[-1]
    return jnp.fft.irfft(jnp.conj(phase) * jnp.fft.rfft(record, 2 * samples)[None], 2 * samples)[..., :samples]
