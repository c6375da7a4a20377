"""A mixture of isotropic Gaussians and all that is known of it in closed form: the oracle of the tests of diffusion."""

import jax
import jax.numpy as jnp
import numpy as np

MEANS = np.array([[1.0, 0.5], [-1.2, 0.3], [0.2, -1.0]])
STDS = np.array([0.4, 0.5, 0.3])
WEIGHTS = np.array([0.3, 0.5, 0.2])
CENTERED = MEANS - WEIGHTS @ MEANS  # of mean zero: its first moment is that of the noise at any time


def denoiser(schedule, means=MEANS, stds=STDS, weights=WEIGHTS):
    """`denoise(x, t) -> E[x_0 | x]` for `x [..., 2]` and `t` a number, or one per example; in the dtype of x."""

    def denoise(x, t):
        level = schedule(jnp.asarray(t))
        rows = x.reshape(-1, 1, x.shape[-1])  # [row, component, coordinate]; ranks are equal throughout
        alpha, sigma = (jnp.broadcast_to(jnp.asarray(part, x.dtype), x.shape[:-1]).reshape(-1, 1) for part in level[:2])
        centers, variances, logs = (jnp.asarray(a, x.dtype)[None] for a in (means, stds**2, np.log(weights)))
        variance = alpha**2 * variances + sigma**2
        away = rows - alpha[..., None] * centers
        shares = jax.nn.softmax(logs - 0.5 * (away**2).sum(-1) / variance - jnp.log(variance), -1)
        data = centers + (alpha * variances / variance)[..., None] * away
        return (shares[..., None] * data).sum(1).reshape(x.shape)

    return denoise


def posterior_mean(scaled, ratio, means=MEANS, stds=STDS, weights=WEIGHTS):
    """`E[x_0 | x_0 + ratio ε = scaled]` in NumPy, float64: what `denoiser` is compared with."""
    variance = stds**2 + ratio**2
    away = scaled[:, None] - means
    logits = np.log(weights) - 0.5 * (away**2).sum(-1) / variance - np.log(variance)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return (shares[..., None] * (means + (stds**2 / variance)[:, None] * away)).sum(-2)


def log_density(x, extra=0.0, means=MEANS, stds=STDS, weights=WEIGHTS):
    """`log p` of data with noise of the variance `extra`, float64."""
    x, variance = np.asarray(x, np.float64), stds**2 + extra
    terms = np.log(weights) - 0.5 * ((x[:, None] - means) ** 2).sum(-1) / variance - np.log(2 * np.pi * variance)
    return np.logaddexp.reduce(terms, -1)


def draw(seed, count, means=MEANS, stds=STDS, weights=WEIGHTS):
    """Examples, float64."""
    rng = np.random.default_rng(seed)
    which = rng.choice(len(weights), count, p=weights)
    return means[which] + stds[which, None] * rng.standard_normal((count, means.shape[1]))


def moments(x, means=MEANS, stds=STDS, weights=WEIGHTS):
    """Statistics of examples and their expectations: mean, covariance (about the true mean), probability of each component.

    Returns (per example `[n, 8]`, expected `[8]`); what an example says of the components are their posterior probabilities.
    """
    x, mean = np.asarray(x, np.float64), weights @ means
    logits = np.log(weights) - 0.5 * ((x[:, None] - means) ** 2).sum(-1) / stds**2 - 2 * np.log(stds)
    shares = np.exp(logits - np.logaddexp.reduce(logits, -1)[:, None])
    away, of_means = x - mean, means - mean
    covariance = (weights[:, None, None] * of_means[:, :, None] * of_means[:, None]).sum(0) + np.eye(2) * (weights @ stds**2)
    upper = np.triu_indices(2)
    products = (away[:, :, None] * away[:, None])[:, *upper]
    return np.concatenate([x, products, shares], 1), np.concatenate([mean, covariance[upper], weights])
