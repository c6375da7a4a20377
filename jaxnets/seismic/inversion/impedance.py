"""Impedance from stacked traces; P velocity, S velocity and density from angle gathers: one problem, linear in logarithms.

A forward operator `F` maps logs `m [..., time]` (of impedance, or of three parameters) to data. What lies below the seismic
band comes from a background `m0`. `damped`, `sparse_steps` and `blocky` are three ways to regularize, each
`(F, data, m0, **options) -> Problem`: `poststack` and `prestack` take any of them, or a function of yours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal import linear, prox, tree
from jaxnets.seismic import checks, modelling
from jaxnets.seismic.checks import Scalar
from jaxnets.seismic.inversion.problem import Prior, Problem, affine, check_traces
from jaxnets.types import Array, Float, InputError


def damped(forward: linear.Operator, data: Array, background: Array, **fields: Any) -> Problem:
    """Tikhonov: `1/2 |F m - d|^2 + weight/2 |m - m0|^2`. The background fills what the data don't hold."""
    ceiling = 100 * _size(forward, data) ** 2  # where the answer is within a percent of m0
    return Problem(data, forward, prox.squared_l2(1.0), base=background, ceiling=ceiling, selects=False, **fields)


def sparse_steps(
    forward: linear.Operator,
    data: Array,
    background: Array,
    *,
    term: prox.Term | None = None,
    trend: Scalar = 0.03,
    trend_samples: int = 65,
    **fields: Any,
) -> Problem:
    """Few reflections: `weight |z|_1` of the steps `z = D m`, twice the reflectivities, `m = m0[first] + cumsum z`.

    The trend is held by `1/2 (trend |F|)^2 |S (m - m0)|^2` with `S` a Hann average over `trend_samples`: periods longer than
    about half of that. `term` replaces `|z|_1`: `prox.group_l21(1.0, axis=-2)` makes traces (or parameters) step together.
    Summation converges slowly (hundreds of steps); `blocky` finds the same answer in fewer, each of them dearer.
    """
    summed = linear.cumulative_sum(background)
    first = jnp.broadcast_to(background[..., :1], background.shape)
    prior = _trend("sparse_steps", forward, data, background, trend, trend_samples)
    return Problem(data, forward, prox.l1(1.0) if term is None else term, expand=summed, base=first, prior=prior, **fields)


def blocky(
    forward: linear.Operator,
    data: Array,
    background: Array,
    *,
    term: prox.Term | None = None,
    trend: Scalar = 0.03,
    trend_samples: int = 65,
    **fields: Any,
) -> Problem:
    """Few layers: `weight TV(m)` along time, with the trend held as in `sparse_steps`.

    Trace by trace the same minimum as `sparse_steps` (but for the first sample), reached in another variable; with
    `term=prox.total_variation_2d(1.0)` a section's layers are also continuous from trace to trace.
    """
    prior = _trend("blocky", forward, data, background, trend, trend_samples)
    # At the background, the steps' lambda_max.
    pull = forward.adjoint(data - forward(background))
    ceiling = jnp.max(jnp.abs(linear.cumulative_sum(background).adjoint(pull)))
    term = prox.total_variation(1.0) if term is None else term
    return Problem(data, forward, term, start=background, prior=prior, ceiling=ceiling, selects=False, **fields)


def poststack(
    traces: Float[Array, "*trace time"],
    wavelet: Float[Array, "... samples"],
    background: Float[Array, "*trace time"],
    *,
    regularize: Callable[..., Problem] = damped,
) -> Problem:
    """Acoustic impedance [kg/(m² s)] from stacked traces and a smooth `background` impedance: `d = w * (D ln Z / 2)`.

    `regularize` is `damped`, `sparse_steps`, `blocky`, or one of these with options (`functools.partial`). Amplitudes must be
    true: the traces' unit is that of the wavelet.

    Raises:
      ValueError: shapes that don't match.
      InputError: NaN in the traces, a background that is not positive.
    Source: Oldenburg, Scheuer & Levy (1983), doi:10.1190/1.1441413.
    """
    check_traces(traces, "poststack")
    _check_background("poststack", background, traces.shape)
    return regularize(modelling.poststack_operator(wavelet, traces.shape), traces, jnp.log(background), report=exponential)


def prestack(
    gather: Float[Array, "*trace angle time"],
    wavelet: Float[Array, "... samples"],
    background: modelling.Elastic,
    angles: Float[Array, " angle"],
    *,
    covariance: Float[Array, "3 3"] | None = None,
    regularize: Callable[..., Problem] = damped,
) -> Problem:
    """Vp, Vs [m/s] and density [kg/m³] (`modelling.Elastic`) from an angle gather, for weak contrasts (Aki & Richards).

    `d(θ) = w(θ) * Σ_p a_p(θ, t) D m_p`, `m = ln (Vp, Vs, ρ)`, `a` at the background's Vs/Vp, `angles` in degrees. `covariance`
    of the logs about their trend (from wells) makes what is regularized uncorrelated and equally large: density needs that.
    `regularize` as in `poststack`; its `term=prox.group_l21(1.0, axis=-2)` makes the three step at the same times.

    Raises:
      ValueError: shapes that don't match.
      InputError: NaN in the gather, a background that is not positive.
    Source: Aki & Richards (2002), eq. 5.46; Buland & Omre (2003), doi:10.1190/1.1543206 (logarithms, covariance).
    """
    check_traces(gather, "prestack")
    *traces, _, time = gather.shape
    rocks = jnp.stack(background, axis=-2)
    _check_background("prestack", rocks, (*traces, 3, time))
    forward = modelling.avo_operator(angles, background.vs / background.vp, wavelet, rocks.shape)
    # The unknown is u with m = R u and R R' the covariance: independent, of unit variance.
    root = jnp.eye(3, dtype=gather.dtype) if covariance is None else jnp.linalg.cholesky(covariance)
    mixing = linear.matrix(root, rocks.shape, axis=-2)
    independent = linear.matrix(jnp.linalg.inv(root), rocks.shape, axis=-2)(jnp.log(rocks))
    return regularize(forward @ mixing, gather, independent, report=elastic, context=mixing)


def exponential(problem: Problem, unknown: Array) -> Array:
    """The model of a problem in logarithms."""
    return jnp.exp(affine(problem, unknown))


def elastic(problem: Problem, unknown: Array) -> modelling.Elastic:
    """Vp, Vs and density of `prestack`."""
    return modelling.Elastic(*jnp.moveaxis(jnp.exp(problem.context(affine(problem, unknown))), -2, 0))


def _size(forward, data):
    """`|F|`, the Rayleigh quotient at `F' d`: within a factor for any data."""
    pull = forward.adjoint(data)
    norm = tree.norm(pull)
    return jax.lax.stop_gradient(tree.norm(forward(pull)) / jnp.where(norm == 0, 1, norm))


def _trend(function, forward, data, background, trend, samples):
    checks.option(function, "trend must not be negative", trend, trend >= 0)
    checks.option(function, "trend_samples must be odd and positive", samples, samples >= 1 and samples % 2 == 1)
    window = np.hanning(samples + 2)[1:-1]
    window = jnp.asarray(window / window.sum(), background.dtype)
    smoothing = (trend * _size(forward, data)) * linear.convolution(window, background)
    return Prior(smoothing, smoothing(background))


def _check_background(function, background, shape):
    if background.shape != shape:
        raise ValueError(f"{function}: background must have the shape {shape}, got {background.shape}.")
    known = checks.known(background)
    if known is not None and not np.all(known > 0):
        raise InputError(f"{function}: background must be positive, got {known.min():g} at its lowest.")
