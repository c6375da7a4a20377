"""Kullback-Leibler divergences between distributions over the last axis, and of a Gaussian code from its prior."""

import jax.numpy as jnp

from jaxnets.losses import common
from jaxnets.types import Array, Float


def kl_divergence(
    log_prediction: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """`KL(p || q) = Σ p (log p - log q)`: covers all of the target `p`; `log_prediction = log q`, e.g. a log-softmax.

    A class with `p = 0` adds 0, its gradient too (that of `optax.losses.kl_divergence` is NaN there, as is its value when
    `log q = -inf`). `p > 0 = q` gives inf.

    Source: Kullback & Leibler (1951), doi:10.1214/aoms/1177729694.
    """
    log_q, p, log_p = _parts("kl_divergence", log_prediction, target)
    terms = jnp.where(p == 0, 0, p * (log_p - jnp.where(p == 0, 0, log_q)))
    return terms.sum(axis=-1).astype(log_prediction.dtype)


def reverse_kl_divergence(
    log_prediction: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """`KL(q || p) = Σ q (log q - log p)`: seeks one mode of the target `p`; `log_prediction = log q`.

    A class with `q = 0` adds 0. `q > 0 = p` gives inf, with gradient 0 from that class.
    """
    log_q, p, log_p = _parts("reverse_kl_divergence", log_prediction, target)
    q = jnp.exp(log_q)
    terms = jnp.where(p == 0, jnp.where(q == 0, 0, jnp.inf), q * (jnp.where(q == 0, 0, log_q) - log_p))
    return terms.sum(axis=-1).astype(log_prediction.dtype)


def gaussian_kl(mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`KL(N(mean, σ²) || N(0, 1)) = (mean² + σ² - 1 - log σ²) / 2` per element: sum it over a VAE's code axis.

    Source: Kingma & Welling (2014), arXiv:1312.6114, appendix B.
    """
    common.check_same_shape("gaussian_kl", mean=mean, log_variance=log_variance)
    dtype, mean, log_variance = mean.dtype, common.wide(mean), common.wide(log_variance)
    return ((mean**2 + jnp.expm1(log_variance) - log_variance) / 2).astype(dtype)


def _parts(function: str, log_prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]):
    """Wide `log q`, `p`, and `log p` (0 instead of -inf; NaN tells of a missing target)."""
    common.check_same_shape(function, log_prediction=log_prediction, target=target)
    p = common.wide(target)
    return common.observed_rows(common.wide(log_prediction), p), p, jnp.log(jnp.where(p == 0, 1, p))
