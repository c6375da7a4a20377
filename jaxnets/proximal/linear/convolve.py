"""Convolution with a wavelet along an axis: by matrix products or by FFT, whichever is faster at these sizes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.linear.operator import Bound, Operator, Structure, from_end, inexact
from jaxnets.types import Array, Num, PyTree


def convolution(
    wavelet: Num[Array, "... length"],
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
    wavelet = inexact(wavelet)
    structure = Structure.of(structure, wavelet.dtype)
    (axis,) = from_end("convolution", structure, (axis,))
    samples, length = structure.shape[axis], wavelet.shape[-1]
    traces = tuple(np.delete(structure.shape, axis).tolist())
    if wavelet.ndim > 1 and wavelet.shape[:-1] != traces:
        raise ValueError(f"convolution: expected one wavelet, or one for each of the traces {traces}, got {wavelet.shape}.")
    spans = {"same": (origin, samples), "full": (0, samples + length - 1), "valid": (length - 1, samples - length + 1)}
    if mode not in spans:
        raise ValueError(f"convolution: mode must be 'same', 'full' or 'valid', got {mode!r}.")
    if mode != "same" and origin is not None:
        raise ValueError(f"convolution: origin goes with mode 'same', got mode {mode!r}.")
    first, count = spans[mode]
    if first is None:
        if length % 2 == 0:
            raise ValueError(f"convolution: a wavelet of even length ({length}) has no center; give its origin.")
        first = length // 2
    if not 0 <= first < length:
        raise ValueError(f"convolution: origin must be within the wavelet of {length} samples, got {origin}.")
    if count < 1:
        raise ValueError(f"convolution: mode 'valid' needs at least {length} samples, the wavelet's length, got {samples}.")
    return Operator(
        wavelet, structure, Bound(_convolve, (first, count, axis)), Bound(_correlate, (length - 1 - first, samples, axis))
    )


# The wavelet's length alone decides: an `A^H A` in a loop by matrix products took 0.2-0.5 of the time by FFT at 41 taps,
# 0.4-1.0 at 129, 0.8-2.7 at 257, for 1 x 256, 1 x 4096, 128 x 256 and 64 x 2048 (traces x samples). One wavelet per trace goes
# by FFT: products took 0.5-1.2 of it at 11 taps, 0.6-1.1 at 41, 1.8-7 at 129, with a matrix per trace to keep.
# (Measured 2026-11-22, one core of a busy CPU, float32, jax 0.10.2, best of 7 in turn; not measured on accelerators.)
_LONGEST_FOR_PRODUCTS = 128


def _convolve(wavelet, x, first, count, axis):
    """Entries `first` to `first + count` of the full convolution."""
    x = jnp.moveaxis(x, axis, -1)
    by_products = wavelet.ndim == 1 and wavelet.size <= _LONGEST_FOR_PRODUCTS
    y = _by_products(wavelet, x, first, count) if by_products else _by_fft(wavelet, x, first, count)
    return jnp.moveaxis(y, -1, axis)


def _correlate(wavelet, y, first, count, axis):
    return _convolve(jnp.conj(wavelet[..., ::-1]), y, first, count, axis)


def _by_products(wavelet, x, first, count):
    """Each block of `y` comes from two neighbors of `x`: one product with both halves of the Toeplitz matrix, then a sum."""
    length, samples = wavelet.shape[0], x.shape[-1]
    block = max(length - 1, 32)  # below 32 the product is no faster
    before = length - 1 - first  # y[i] = sum_s x[s - before] wavelet[i + length - 1 - s], s = 0, 1, ...
    blocks = -(-count // block)
    after = (blocks + 1) * block - before - samples
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(before, after, 0)])
    x = x.reshape(*x.shape[:-1], blocks + 1, block)
    tap = np.arange(block) + length - 1 - np.arange(2 * block)[:, None]
    tap = np.hstack(np.vsplit(tap, 2))
    toeplitz = jnp.where((tap >= 0) & (tap < length), wavelet[tap.clip(0, length - 1)], 0)
    both = jnp.matmul(x, toeplitz, precision="highest")
    y = both[..., :-1, :block] + both[..., 1:, block:]
    return y.reshape(*y.shape[:-2], blocks * block)[..., :count]


def _by_fft(wavelet, x, first, count):
    dtype = jnp.result_type(wavelet, x)
    wavelet, x = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (wavelet, x))  # there is no FFT of 16 bits
    size = fast_length(x.shape[-1] + wavelet.shape[-1] - 1)
    if jnp.iscomplexobj(wavelet) or jnp.iscomplexobj(x):
        forward, inverse = jnp.fft.fft, jnp.fft.ifft
    else:
        forward, inverse = jnp.fft.rfft, jnp.fft.irfft
    spectrum = jnp.expand_dims(forward(wavelet, size), tuple(range(x.ndim - wavelet.ndim)))
    return inverse(spectrum * forward(x, size), size)[..., first : first + count].astype(dtype)


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
