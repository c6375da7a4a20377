"""Linear and parabolic Radon transforms, exact in the frequency domain."""

import jax.numpy as jnp

from jaxnets.proximal.linear.convolve import fast_length
from jaxnets.proximal.linear.operator import Bound, Operator, Structure
from jaxnets.types import Array, Float


def linear_radon(
    offsets: Float[Array, " offset"], slowness: Float[Array, " slowness"], samples: int, sampling: float | Array
) -> Operator:
    """`d(x, t) = sum_p m(p, t - p x)`: model `(slowness, tau)` to data `(offset, time)`.

    Offsets [m], slowness [s/m], `sampling` interval [s]. Delays between samples are exact phase shifts (band-limited); what
    leaves the record at either end is lost, it never wraps around. Gradients reach offsets, slowness and sampling.
    Keeps a complex `offset x slowness` matrix for each of about `samples` / 2 frequencies.
    Source: Thorson, Claerbout (1985), doi:10.1190/1.1441893.
    """
    return _radon("linear_radon", offsets, slowness, samples, sampling)


def parabolic_radon(
    offsets: Float[Array, " offset"], curvature: Float[Array, " curvature"], samples: int, sampling: float | Array
) -> Operator:
    """`d(x, t) = sum_q m(q, t - q x^2)`, as `linear_radon` with a curvature [s/m^2]: residual moveout after NMO.

    Source: Hampson (1986), Inverse velocity stacking for multiple elimination.
    """
    return _radon("parabolic_radon", offsets**2, curvature, samples, sampling)


def _radon(name, distance, slope, samples, sampling):
    if samples < 1:
        raise ValueError(f"{name}: samples must be at least 1, got {samples}.")
    delay = slope[None, :] * distance[:, None] / sampling  # [samples]
    size = fast_length(2 * samples)  # room for any delay: one of a whole record leaves nothing of it
    cycles = jnp.arange(size // 2 + 1, dtype=delay.dtype)[:, None, None] * delay[None] / size
    phase = jnp.where(jnp.abs(delay)[None] < samples, jnp.exp(-2j * jnp.pi * cycles), 0)
    structure = Structure.of((slope.shape[0], samples), delay.dtype)
    return Operator(phase, structure, Bound(_forward, (size,)), Bound(_backward, (size,)))


def _forward(phase, model, size):
    spectrum = jnp.fft.rfft(model, size)
    return jnp.fft.irfft(jnp.einsum("fxp,pf->xf", phase, spectrum, precision="highest"), size)[:, : model.shape[-1]]


def _backward(phase, data, size):
    spectrum = jnp.fft.rfft(data, size)
    # The spectrum is conjugated twice rather than the phases once: they are the large ones.
    return jnp.fft.irfft(jnp.conj(jnp.einsum("fxp,xf->pf", phase, jnp.conj(spectrum), precision="highest")), size)[
        :, : data.shape[-1]
    ]
