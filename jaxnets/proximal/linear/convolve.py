"""Convolution with a wavelet along an axis: by matrix products or by FFT, whichever is faster at these sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.linear.operator import Bound, Operator, Structure
from jaxnets.types import Array, Inexact, PyTree


def convolution(
    wavelet: Inexact[Array, "... length"],
    structure: PyTree,
    *,
    mode: str = "same",
    origin: int | None = None,
    axis: int = -1,
) -> Operator:
    """`y[i] = sum_j wavelet[j] x[i + origin - j]` along an axis of `structure` (samples, or a shape); the adjoint correlates.

    "same" keeps the length, with time zero of the wavelet at `origin` (default: the center of an odd length); "full" gives
    `samples + length - 1` entries and "valid" `samples - length + 1`, as in numpy, where an origin means nothing.
    One wavelet for all traces, or one per trace: `wavelet[..., length]` with the other axes of `structure` in front.
    """
    structure = Structure.of(structure, wavelet.dtype)
    dimensions, length = len(structure.shape), wavelet.shape[-1]
    if not -dimensions <= axis < dimensions:
        raise ValueError(f"convolution: axis must be within the {dimensions} axes of {structure.shape}, got {axis}.")
    axis = axis % dimensions - dimensions
    samples = structure.shape[axis]
    traces = tuple(n for i, n in enumerate(structure.shape) if i != axis % dimensions)
    if wavelet.ndim > 1 and wavelet.shape[:-1] != traces:
        raise ValueError(f"convolution: expected one wavelet, or one for each of the traces {traces}, got {wavelet.shape}.")
    if mode == "same":
        if origin is None and length % 2 == 0:
            raise ValueError(f"convolution: a wavelet of even length ({length}) has no center; give its origin.")
        origin = length // 2 if origin is None else origin
        if not 0 <= origin < length:
            raise ValueError(f"convolution: origin must be within the wavelet of {length} samples, got {origin}.")
        first, count = origin, samples
    elif origin is not None:
        raise ValueError(f"convolution: origin goes with mode 'same', got mode {mode!r}.")
    elif mode == "full":
        first, count = 0, samples + length - 1
    elif mode == "valid":
        first, count = length - 1, samples - length + 1
        if count < 1:
            raise ValueError(f"convolution: mode 'valid' needs at least {length} samples, the wavelet's length, got {samples}.")
    else:
        raise ValueError(f"convolution: mode must be 'same', 'full' or 'valid', got {mode!r}.")
    return Operator(
        wavelet, structure, Bound(_convolve, (first, count, axis)), Bound(_correlate, (length - 1 - first, samples, axis))
    )


# One product of 512 traces x 1024 samples in a loop on CPU, jax 0.10 / 0.12 [ms], by matrix products, FFT and `lax.conv`:
# 9 taps 1.9 / 2.2, 2.8 / 3.5, 0.6 / 1.7; 81 taps 3.1 / 4.4, 3.8 / 3.9, 5.6 / 7.2. Outside a loop `lax.conv` takes 12-30 ms.
_LONGEST_FOR_PRODUCTS = 192
_BLOCK = 64


def _convolve(wavelet, x, first, count, axis):
    """Entries `first` to `first + count` of the full convolution."""
    x = jnp.moveaxis(x, axis, -1)
    by_products = wavelet.ndim == 1 and wavelet.size <= _LONGEST_FOR_PRODUCTS
    y = _by_products(wavelet, x, first, count) if by_products else _by_fft(wavelet, x, first, count)
    return jnp.moveaxis(y, -1, axis)


def _correlate(wavelet, y, first, count, axis):
    return _convolve(jnp.conj(wavelet[..., ::-1]), y, first, count, axis)


def _by_products(wavelet, x, first, count):
    """Blocks of `y` are the products of neighboring blocks of `x` with the bands of one Toeplitz matrix."""
    length, samples = wavelet.shape[0], x.shape[-1]
    before = length - 1 - first  # y[i] = sum_s x[s - before] wavelet[i + length - 1 - s], s = 0, 1, ...
    blocks, bands = -(-count // _BLOCK), -(-(_BLOCK + length - 1) // _BLOCK)
    after = (blocks + bands - 1) * _BLOCK - before - samples
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)])
    x = x.reshape(*x.shape[:-1], blocks + bands - 1, _BLOCK)
    tap = np.arange(_BLOCK) + length - 1 - np.arange(bands * _BLOCK)[:, None]
    toeplitz = jnp.where((tap >= 0) & (tap < length), wavelet[tap.clip(0, length - 1)], 0)
    parts = (
        jnp.matmul(x[..., i : i + blocks, :], toeplitz[i * _BLOCK : (i + 1) * _BLOCK], precision="highest")
        for i in range(bands)
    )
    y = functools.reduce(jnp.add, parts)
    return y.reshape(*y.shape[:-2], blocks * _BLOCK)[..., :count]


def _by_fft(wavelet, x, first, count):
    size = fast_length(x.shape[-1] + wavelet.shape[-1] - 1)
    if jnp.iscomplexobj(wavelet) or jnp.iscomplexobj(x):
        forward, inverse = jnp.fft.fft, jnp.fft.ifft
    else:
        forward, inverse = jnp.fft.rfft, jnp.fft.irfft
    spectrum = jnp.expand_dims(forward(wavelet, size), tuple(range(x.ndim - wavelet.ndim)))
    return inverse(spectrum * forward(x, size), size)[..., first : first + count]


def fast_length(n: int) -> int:
    """Smallest `2^a 3^b 5^c >= n`: lengths at which an FFT is fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
