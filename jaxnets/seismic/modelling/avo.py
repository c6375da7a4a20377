"""Reflection against angle, linear in small contrasts: Aki and Richards, Fatti, and the operator from logs to angle gathers."""

from collections.abc import Callable

import jax.numpy as jnp

from jaxnets.proximal import linear
from jaxnets.proximal.linear.operator import Bound
from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.seismic.modelling.earth import Elastic
from jaxnets.seismic.modelling.zoeppritz import check_angles
from jaxnets.types import Array, Float


def aki_richards_weights(
    angles: Float[Array, " angle"], vs_vp: Scalar | Float[Array, "*shape"]
) -> Float[Array, "*shape angle 3"]:
    """Weights of `ΔVp/Vp, ΔVs/Vs, Δρ/ρ`: `(1 + tan²θ)/2, -4γ² sin²θ, (1 - 4γ² sin²θ)/2` with `γ = vs_vp = Vs/Vp`.

    `angles` θ in degrees: the mean of incidence and transmission; at small contrasts that of incidence.

    Raises:
      ValueError: angles outside [0, 90); a number `vs_vp` outside [0, 1).
    Source: Aki & Richards (2002), Quantitative Seismology, 2nd edition, eq. 5.46.
    """
    tangent, shear = _angle_terms("aki_richards_weights", angles, vs_vp)
    return jnp.stack([(1 + tangent) / 2, -4 * shear, (1 - 4 * shear) / 2], axis=-1)


def fatti_weights(angles: Float[Array, " angle"], vs_vp: Scalar | Float[Array, "*shape"]) -> Float[Array, "*shape angle 3"]:
    """Weights of `ΔIp/Ip, ΔIs/Is, Δρ/ρ`, `Ip = ρVp`, `Is = ρVs`: `(1 + tan²θ)/2, -4γ² sin²θ, 2γ² sin²θ - tan²θ/2`.

    Aki and Richards' reflection in variables that are better determined, because density's own weight is small.

    Raises:
      ValueError: angles outside [0, 90); a number `vs_vp` outside [0, 1).
    Source: Fatti, Smith, Vail, Strauss & Levitt (1994), Geophysics 59(9), doi:10.1190/1.1443695.
    """
    tangent, shear = _angle_terms("fatti_weights", angles, vs_vp)
    return jnp.stack([(1 + tangent) / 2, -4 * shear, 2 * shear - tangent / 2], axis=-1)


def aki_richards(upper: Elastic, lower: Elastic, angles: Float[Array, " angle"]) -> Float[Array, "*shape angle"]:
    """P-P reflection coefficients `[*shape, angle]` from contrasts `Δx / mean(x)`; `angles` of incidence in degrees."""
    return _reflection(aki_richards_weights, upper, lower, (upper, lower), angles)


def fatti(upper: Elastic, lower: Elastic, angles: Float[Array, " angle"]) -> Float[Array, "*shape angle"]:
    """P-P reflection coefficients `[*shape, angle]` from contrasts of impedances and density; incidence in degrees."""
    impedances = [(side.vp * side.density, side.vs * side.density, side.density) for side in (upper, lower)]
    return _reflection(fatti_weights, upper, lower, impedances, angles)


def avo_operator(
    angles: Float[Array, " angle"],
    vs_vp: Scalar | Float[Array, "*shape"],
    wavelet: Float[Array, "*wavelet samples"],
    shape: tuple[int, ...],
    *,
    weights: Callable = aki_richards_weights,
) -> linear.Operator:
    """The operator from logs `[*trace, 3, time]` of `ln Vp, ln Vs, ln ρ` to angle gathers `[*trace, angle, time]`.

    Derivative in time, then the weights of each angle, then the wavelet: one, or one per angle `[angle, samples]`. `shape` is
    that of the logs; `vs_vp` the background's: a number, `[time]`, or `[*trace, time]`. `weights=fatti_weights` takes
    `ln Ip, ln Is, ln ρ`.

    Raises:
      ValueError: a shape that isn't `[..., 3, time]`, and those of the weights.
    Source: Buland & Omre (2003), Bayesian linearized AVO inversion, Geophysics 68(1), doi:10.1190/1.1543206, eq. 4-9.
    """
    checks.option(
        "avo_operator", "shape must be (..., 3, time), that of the three logs", shape, len(shape) > 1 and shape[-2] == 3
    )
    *traces, _, time = shape
    table = weights(angles, vs_vp)  # [angle, 3], [time, angle, 3] or [*trace, time, angle, 3]
    axes = ("", "t", "...t")[min(table.ndim - 2, 2)] + "ap"
    weigh = linear.Operator(
        table,
        linear.Structure.of(tuple(shape)),
        Bound(_contract, (f"{axes},...pt->...at",)),
        Bound(_contract, (f"{axes},...at->...pt",)),
    )
    gathers = (*traces, angles.size, time)
    if wavelet.ndim > 1:
        wavelet = jnp.broadcast_to(wavelet, (*gathers[:-1], wavelet.shape[-1]))
    return linear.convolution(wavelet, gathers) @ weigh @ linear.difference(tuple(shape))


def _contract(table, x, subscripts):
    return jnp.einsum(subscripts, table, x)


def _reflection(weights, upper, lower, variables, angles):
    contrasts = jnp.stack([2 * (b - a) / (jnp.asarray(a) + b) for a, b in zip(*variables, strict=True)], axis=-1)
    return jnp.einsum("...ap,...p->...a", weights(angles, (upper.vs + lower.vs) / (upper.vp + lower.vp)), contrasts)


def _angle_terms(function, angles, vs_vp):
    """`tan²θ` and `γ² sin²θ`, both `[*shape, angle]`."""
    check_angles(function, angles)
    if isinstance(vs_vp, int | float):
        checks.option(function, "vs_vp must be in [0, 1)", vs_vp, 0 <= vs_vp < 1)
    ratio, radians = jnp.asarray(vs_vp, angles.dtype)[..., None], jnp.deg2rad(angles)
    shape = (*ratio.shape[:-1], angles.size)
    tangent, sine = (jnp.broadcast_to(f(radians), shape) for f in (jnp.tan, jnp.sin))
    return tangent**2, (ratio * sine) ** 2
