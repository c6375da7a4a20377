"""Normal incidence: impedance to reflection coefficients and back, and their convolution with a wavelet."""

import jax.numpy as jnp

from jaxnets.proximal import linear
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Float


def reflectivity(impedance: Float[Array, "*trace time"]) -> Float[Array, "*trace time"]:
    """Reflection coefficients `(Z[i+1] - Z[i]) / (Z[i+1] + Z[i])`, exact; the last one is 0."""
    below = jnp.concatenate([impedance[..., 1:], impedance[..., -1:]], axis=-1)
    return (below - impedance) / (below + impedance)


def impedance(reflectivity: Float[Array, "*trace time"], first: Scalar | Float[Array, "*trace"]) -> Float[Array, "*trace time"]:
    """The inverse of `reflectivity`, exact: `Z[i] = first Π_{j<i} (1 + r[j]) / (1 - r[j])` for `|r| < 1`.

    Errors accumulate downwards: of band-limited reflectivity, trust only variations within the band.
    """
    ratios = ((1 + reflectivity) / (1 - reflectivity))[..., :-1]
    top = jnp.broadcast_to(jnp.asarray(first, ratios.dtype)[..., None], (*ratios.shape[:-1], 1))
    return jnp.cumprod(jnp.concatenate([top, ratios], axis=-1), axis=-1)


def log_reflectivity(shape: tuple[int, ...]) -> linear.Operator:
    """The operator `r = D ln Z / 2`: reflectivity for small contrasts, `r³ / 3` too large as `D ln Z / 2 = artanh r`."""
    return 0.5 * linear.difference(shape)


def convolutional_model(
    reflectivity: Float[Array, "*trace time"], wavelet: Float[Array, "*wavelet samples"]
) -> Float[Array, "*trace time"]:
    """Traces `wavelet * reflectivity`, time zero of the wavelet in its middle; one wavelet for all, or one per trace."""
    return linear.convolution(wavelet, reflectivity.shape)(reflectivity)


def poststack_operator(wavelet: Float[Array, "*wavelet samples"], shape: tuple[int, ...]) -> linear.Operator:
    """The operator from log impedance `ln Z [*trace, time]` to traces, `wavelet * (D ln Z / 2)`."""
    return linear.convolution(wavelet, shape) @ log_reflectivity(shape)
