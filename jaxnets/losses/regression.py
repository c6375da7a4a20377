"""Losses between real numbers, one value per element. A NaN target gives a NaN value and no gradient: mask it in `reduce`."""

import math

import jax
import jax.numpy as jnp
import optax

from jaxnets.losses import common
from jaxnets.types import Array, Float, Num


def squared(prediction: Float[Array, "*shape"], target: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Squared error `e²` with `e = prediction - target` (no factor 1/2)."""
    return optax.losses.squared_error(_error("squared", prediction, target)).astype(prediction.dtype)


def absolute(prediction: Float[Array, "*shape"], target: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Absolute error `|e|`; gradient 0 at `e = 0`."""
    error = _error("absolute", prediction, target)
    size = jnp.maximum(error, -error)  # at 0 jnp.abs has slope 1, a tie of jnp.maximum the mean of both slopes
    return size.astype(prediction.dtype)


def huber(
    prediction: Float[Array, "*shape"], target: Num[Array, "*shape"], *, delta: common.Scalar = 1.0
) -> Float[Array, "*shape"]:
    """`e²/2` for `|e| <= delta`, else `delta (|e| - delta/2)`: least squares whose gradient is clipped at ±delta.

    Raises:
      ValueError: `delta <= 0`.
    Source: Huber (1964), Annals of Mathematical Statistics 35(1), doi:10.1214/aoms/1177703732.
    """
    common.check_option("huber", "delta", delta, delta > 0, "be positive")
    return optax.losses.huber_loss(_error("huber", prediction, target), delta=delta).astype(prediction.dtype)


def smooth_l1(
    prediction: Float[Array, "*shape"], target: Num[Array, "*shape"], *, beta: common.Scalar = 1.0
) -> Float[Array, "*shape"]:
    """Huber's loss divided by its width: `e²/(2 beta)` for `|e| <= beta`, else `|e| - beta/2`; slope ±1 far out.

    Raises:
      ValueError: `beta <= 0`.
    Source: Girshick (2015), Fast R-CNN, arXiv:1504.08083, eq. 3.
    """
    common.check_option("smooth_l1", "beta", beta, beta > 0, "be positive")
    size = jnp.abs(_error("smooth_l1", prediction, target))
    near = jnp.minimum(size, beta)
    return (near * (near / (2 * beta)) + (size - near)).astype(prediction.dtype)


def log_cosh(prediction: Float[Array, "*shape"], target: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`log cosh e`: `e²/2` near 0, `|e| - log 2` far out, smooth throughout.

    To full relative accuracy near 0, where optax loses it: its value at `e = 1e-3` is 7 % off in float32, at 1e-5 it is 0.
    """
    error = _error("log_cosh", prediction, target)
    size = jnp.abs(error)
    small = size < 1
    near = jnp.log1p(2 * jnp.sinh(jnp.where(small, error, 0) / 2) ** 2)
    far = jnp.where(small, 1, size)
    return jnp.where(small, near, far + jnp.log1p(jnp.exp(-2 * far)) - math.log(2)).astype(prediction.dtype)


def quantile(
    prediction: Float[Array, "*shape"], target: Num[Array, "*shape"], *, level: common.Scalar = 0.5
) -> Float[Array, "*shape"]:
    """Pinball loss `max(level·r, (level - 1)·r)`, `r = target - prediction`; its mean is least at that quantile.

    Raises:
      ValueError: `level` outside (0, 1).
    Source: Koenker & Bassett (1978), Econometrica 46(1), doi:10.2307/1913643.
    """
    common.check_option("quantile", "level", level, (level > 0) & (level < 1), "be inside (0, 1)")
    residual = -_error("quantile", prediction, target)
    return jnp.maximum(level * residual, (level - 1) * residual).astype(prediction.dtype)


def gaussian_nll(
    prediction: tuple[Float[Array, "*shape"], Float[Array, "*shape"]], target: Num[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`-log N(target; mean, σ²) = (log σ² + e²/σ² + log 2π) / 2` for `prediction = (mean, log σ²)`.

    Source: Nix & Weigend (1994), doi:10.1109/ICNN.1994.374138, eq. 2.
    """
    mean, log_variance = prediction
    common.check_same_shape("gaussian_nll", mean=mean, log_variance=log_variance, target=target)
    log_variance = common.observed(common.wide(log_variance), target)
    standardized = _error("gaussian_nll", mean, target) * jnp.exp(-log_variance / 2)  # exp(-log σ²) overflows sooner
    return ((log_variance + standardized**2 + math.log(2 * math.pi)) / 2).astype(mean.dtype)


def poisson_nll(log_rate: Float[Array, "*shape"], target: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`-log Poisson(target; rate) = rate - target·log rate + log target!` from `log rate`; `target >= 0`."""
    common.check_same_shape("poisson_nll", log_rate=log_rate, target=target)
    x, target = common.observed(common.wide(log_rate), target), common.wide(target)
    return (jnp.exp(x) - target * x + jax.scipy.special.gammaln(target + 1)).astype(log_rate.dtype)


def _error(function: str, prediction: Float[Array, "*shape"], target: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`prediction - target`, wide: the losses round to the dtype of the prediction once, at their end."""
    common.check_same_shape(function, prediction=prediction, target=target)
    prediction = common.wide(prediction)
    return (common.observed(prediction, target) - common.wide(target)).astype(prediction.dtype)
