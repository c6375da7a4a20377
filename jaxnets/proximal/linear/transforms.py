"""Orthonormal transforms: Fourier, f-k, cosine, wavelet. Each is an isometry, so its adjoint undoes it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.linear.operator import Bound, Operator, Structure, from_end
from jaxnets.types import PyTree


def fft(structure: PyTree, *, axes: tuple[int, ...] = (-1,)) -> Operator:
    """Unitary discrete Fourier transform along `axes`; the input is complex unless its structure names a real dtype."""
    structure = Structure.of(structure, jnp.result_type(complex))
    axes = from_end("fft", structure, axes)
    return Operator((), structure, Bound(_fft, (axes,)), Bound(_ifft, (axes,)))


def rfft(structure: PyTree, *, axis: int = -1) -> Operator:
    """Fourier transform of real traces, an isometry: frequencies 0 to Nyquist, those between scaled by sqrt(2) for their twins.

    `A.adjoint(A(x)) = x`. `A A.H` is a projection: the imaginary parts at 0 and Nyquist mean nothing and are dropped.
    """
    return _real_transform("rfft", structure, (axis,))


def fk(structure: PyTree, *, axes: tuple[int, int] = (-2, -1)) -> Operator:
    """f-k transform of real `(trace, time)`, an isometry: `rfft` along time, unitary `fft` along the traces.

    The result has `samples // 2 + 1` frequencies and wavenumbers in FFT order. Leading axes are a batch (of patches, say).
    """
    return _real_transform("fk", structure, axes)


def dct(structure: PyTree, *, axes: tuple[int, ...] = (-1,)) -> Operator:
    """Orthonormal type-II cosine transform along `axes`."""
    structure = Structure.of(structure)
    axes = from_end("dct", structure, axes)
    return Operator((), structure, Bound(_dct, (axes,)))


def wavelet_transform(
    structure: PyTree, wavelet: str = "db4", *, levels: int | None = None, axes: tuple[int, ...] = (-1,)
) -> Operator:
    """Orthogonal periodized wavelet transform along `axes` (Mallat's pyramid): "haar" or "dbN", N vanishing moments, 2N taps.

    Coarse to fine along each axis: the array that `pywt.coeffs_to_array` makes of `pywt.wavedecn(x, wavelet, "periodization")`.
    `levels` defaults to as many as the lengths allow. Raises ValueError unless 2^levels divides each length.
    Source: Mallat (1989), doi:10.1109/34.192463; Daubechies (1988), doi:10.1002/cpa.3160410705.
    """
    structure = Structure.of(structure)
    axes = from_end("wavelet_transform", structure, axes)
    order = 1 if wavelet == "haar" else int(wavelet[2:]) if wavelet[:2] == "db" and wavelet[2:].isdigit() else 0
    if not 1 <= order <= 12:
        raise ValueError(f"wavelet_transform: wavelet must be 'haar' or 'db1' to 'db12', got {wavelet!r}.")
    lengths = [structure.shape[axis] for axis in axes]
    if levels is None:
        halvings = (min((n & -n).bit_length() - 1, int(math.log2(max(n / (2 * order - 1), 2)))) for n in lengths)
        levels = max(1, min(halvings))
    if levels < 1 or any(n % 2**levels for n in lengths):
        raise ValueError(f"wavelet_transform: each length must be divisible by 2^{levels} (levels), got {structure.shape}.")
    return Operator((), structure, Bound(_analysis, (order, levels, axes)), Bound(_synthesis, (order, levels, axes)))


@functools.cache
def daubechies(order: int) -> tuple[float, ...]:
    """Orthonormal low-pass filter with `order` vanishing moments and minimal phase, of sum sqrt(2).

    Spectral factorization: the roots of `sum_k C(N - 1 + k, k) y^k`, `y = (2 - z - 1 / z) / 4`, inside the unit circle.
    Source: Daubechies (1988), section 4.
    """
    y = np.roots([math.comb(order - 1 + k, k) for k in reversed(range(order))])
    half = 1 - 2 * y
    root = np.sqrt(half**2 - 1 + 0j)
    inside = np.where(np.abs(half + root) < 1, half + root, half - root)
    filter = np.real(np.poly([*inside, *[-1.0] * order]))
    return tuple((filter * math.sqrt(2) / filter.sum()).tolist())


def _fft(_, x, axes):
    return jnp.fft.fftn(x, axes=axes, norm="ortho")


def _ifft(_, y, axes):
    return jnp.fft.ifftn(y, axes=axes, norm="ortho")


def _real_transform(name, structure, axes):
    structure = Structure.of(structure)
    if jnp.issubdtype(structure.dtype, jnp.complexfloating):
        raise ValueError(f"{name}: expected real input, got {structure.dtype}; `fft` takes complex numbers.")
    axes = from_end(name, structure, axes)
    return Operator((), structure, Bound(_rfft, (axes,)), Bound(_irfft, (axes, structure.shape[axes[-1]])))


def _rfft(_, x, axes):
    y = jnp.fft.rfft(x, axis=axes[-1], norm="ortho")
    y = y * _twins(x.shape[axes[-1]], y, axes[-1])
    return jnp.fft.fftn(y, axes=axes[:-1], norm="ortho") if axes[:-1] else y


def _irfft(_, y, axes, samples):
    y = jnp.fft.ifftn(y, axes=axes[:-1], norm="ortho") if axes[:-1] else y
    y = y / _twins(samples, y, axes[-1])
    return jnp.fft.irfft(y, samples, axis=axes[-1], norm="ortho")


def _twins(samples, y, axis):
    """sqrt(2) for the frequencies that stand for their negative twins too, 1 for 0 and Nyquist; of the rank of `y`."""
    weights = np.full(samples // 2 + 1, math.sqrt(2))
    weights[0] = 1
    if samples % 2 == 0:
        weights[-1] = 1
    return jnp.asarray(weights, y.real.dtype).reshape(*[-1 if i == axis % y.ndim else 1 for i in range(y.ndim)])


def _dct(_, x, axes):
    return jax.scipy.fft.dctn(x, axes=axes, norm="ortho")


def _analysis(_, x, order, levels, axes):
    """One level along each axis, then the same on the low-pass corner."""
    if levels == 0:
        return x
    y = x
    for axis in axes:
        y = _split(y, order, axis)
    corner = _corner(y, axes)
    return y.at[corner].set(_analysis(None, y[corner], order, levels - 1, axes))


def _synthesis(_, y, order, levels, axes):
    if levels == 0:
        return y
    corner = _corner(y, axes)
    x = y.at[corner].set(_synthesis(None, y[corner], order, levels - 1, axes))
    for axis in axes:
        x = _merge(x, order, axis)
    return x


def _corner(y, axes):
    axes = [axis % y.ndim for axis in axes]
    return tuple(slice(n // 2) if i in axes else slice(None) for i, n in enumerate(y.shape))


def _split(x, order, axis):
    """`low[k] = sum_i h[i] x[2k + i + 1 - N]`, periodic, and `high` alike with `g[i] = (-1)^i h[2N - 1 - i]`."""
    h, g = _filters(order)
    x = jnp.moveaxis(x, axis, -1)
    n = x.shape[-1]
    x = _wrap(x, order - 1, order - 1)
    low, high = (sum(tap * x[..., i : i + n - 1 : 2] for i, tap in enumerate(taps)) for taps in (h, g))
    return jnp.moveaxis(jnp.concatenate([low, high], axis=-1), -1, axis)


def _merge(y, order, axis):
    """Adjoint of `_split`: `x[2q + s + 1 - N] = sum_t h[s + 2t] low[q - t] + g[s + 2t] high[q - t]`, s = 0, 1."""
    # By hand because the transpose of strided slices is a sum of dilated pads: many times slower on CPU.
    h, g = _filters(order)
    low, high = jnp.split(jnp.moveaxis(y, axis, -1), 2, axis=-1)
    n = low.shape[-1]
    low, high = _wrap(low, order - 1, 0), _wrap(high, order - 1, 0)
    phases = [
        sum(
            h[s + 2 * t] * low[..., order - 1 - t : order - 1 - t + n]
            + g[s + 2 * t] * high[..., order - 1 - t : order - 1 - t + n]
            for t in range(order)
        )
        for s in (0, 1)
    ]
    x = jnp.stack(phases, axis=-1).reshape(*low.shape[:-1], 2 * n)
    return jnp.moveaxis(jnp.roll(x, 1 - order, axis=-1), -1, axis)


def _filters(order):
    h = daubechies(order)
    return h, [(-1) ** i * tap for i, tap in enumerate(reversed(h))]


def _wrap(x, before, after):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)], mode="wrap")
