"""Exact reflection and transmission of plane waves at an interface: what the linear approximations approach."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxnets.seismic import checks
from jaxnets.seismic.modelling.earth import Elastic
from jaxnets.types import Array, Float, Inexact


class Scattering(NamedTuple):
    """Displacement amplitudes of the four waves that a P wave of amplitude 1 leaves; complex beyond a critical angle."""

    pp: Inexact[Array, "..."]  # reflected P
    ps: Inexact[Array, "..."]  # reflected S
    transmitted_pp: Inexact[Array, "..."]
    transmitted_ps: Inexact[Array, "..."]


def zoeppritz(upper: Elastic, lower: Elastic, angles: Float[Array, " angle"]) -> Scattering:
    """Reflection and transmission of a P wave from above, `[*shape, angle]`; `angles` of incidence in degrees.

    Solves the 4x4 system of continuous displacement and traction, so at least one side must be solid (`vs > 0`).

    Raises:
      ValueError: angles outside [0, 90).
    Source: Zoeppritz (1919); Aki & Richards (2002), Quantitative Seismology, eq. 5.38-5.40.
    """
    check_angles("zoeppritz", angles)
    vp1, vs1, density1, vp2, vs2, density2 = (jnp.asarray(x, angles.dtype)[..., None] for x in (*upper, *lower))
    sine = jnp.broadcast_to(jnp.sin(jnp.deg2rad(angles)), (*vp1.shape[:-1], angles.size))
    p1, s1, p2, s2 = (sine / vp1 * v for v in (vp1, vs1, vp2, vs2))  # sines of the four waves, by Snell's law
    cos_p1, cos_s1, cos_p2, cos_s2 = (jnp.sqrt((1 - x**2).astype(jnp.result_type(x, 1j))) for x in (p1, s1, p2, s2))
    # Traction in units of density1 * vp1: all rows are then of one order, which pivoting needs.
    unit = density1 * vp1
    shear1, shear2, normal2 = density1 * vs1 / unit, density2 * vs2 / unit, density2 * vp2 / unit
    system = [
        [-p1, -cos_s1, p2, cos_s2],
        [cos_p1, -s1, cos_p2, -s2],
        [2 * shear1 * s1 * cos_p1, shear1 * (1 - 2 * s1**2), 2 * shear2 * s2 * cos_p2, shear2 * (1 - 2 * s2**2)],
        [2 * s1**2 - 1, 2 * shear1 * s1 * cos_s1, normal2 * (1 - 2 * s2**2), -2 * shear2 * s2 * cos_s2],
    ]
    incident = [p1, cos_p1, 2 * shear1 * s1 * cos_p1, 1 - 2 * s1**2]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in system], axis=-2)
    waves = jnp.linalg.solve(matrix, jnp.stack(incident, axis=-1)[..., None])[..., 0]
    return Scattering(*jnp.moveaxis(waves, -1, 0))


def zoeppritz_pp(upper: Elastic, lower: Elastic, angles: Float[Array, " angle"]) -> Inexact[Array, "*shape angle"]:
    """Exact P-P reflection coefficient `[*shape, angle]`, complex (imaginary part 0 before the first critical angle)."""
    return zoeppritz(upper, lower, angles).pp


def check_angles(function: str, angles: Float[Array, " angle"]) -> None:
    """Raises ValueError for known angles outside [0, 90) degrees."""
    values = checks.known(angles)
    if values is not None:
        bad = values[~((values >= 0) & (values < 90))]
        checks.option(function, "angles must be in [0, 90) degrees", bad, not bad.size)
