"""Losses of a denoising network, in the contract of `training.steps`: `loss_fn(params, carry, batch, key) -> sums`.

    loss = losses.denoising(model.apply, schedule, "v", weight=losses.min_snr(5.0), inputs={"label": "y"}, unlabeled=0.1)
    step = steps.make_train_step(loss, optimizer)

A weight is a function of log(α² / σ²) that multiplies the squared error of the *data*, whatever the network predicts: one
weight means one loss. Without one, the loss is the plain error of the prediction ("simple" where that is epsilon).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from jaxnets import losses
from jaxnets.diffusion import parametrization
from jaxnets.diffusion.samplers.sample import gaussian
from jaxnets.diffusion.schedules import Schedule, flow
from jaxnets.types import Array, Float, Key, LossFn, PyTree

Weight = Callable[[Float[Array, "..."]], Float[Array, "..."]]
Times = Callable[[Key[Array, ""], Schedule, int], Float[Array, "..."]]


# ---- times ----------------------------------------------------------------------------------------------------------


def uniform() -> Times:
    """Evenly over the schedule's times, without 0; over the whole steps of a table."""
    return _uniform


def low_discrepancy() -> Times:
    """As `uniform`, but one draw shifts an even grid over the batch: less variance of its mean.

    Source: Kingma et al. (2021), appendix I.1, arXiv:2107.00630.
    """
    return _low_discrepancy


def log_normal(mean: int | float = -1.2, std: int | float = 1.2) -> Times:
    """`log(σ / α) ~ N(mean, std²)`, at most the schedule's largest. Source: Karras et al. (2022), table 1, arXiv:2206.00364."""
    _positive("log_normal", "std", std)

    def draw(key: Key[Array, ""], schedule: Schedule, count: int) -> Array:
        largest = min(float(schedule.ratio(schedule.end)), 1e15)
        ratio = jnp.minimum(jnp.exp(mean + std * jax.random.normal(key, (count,))), largest)
        return _whole(jnp.clip(schedule.time(ratio), 0, schedule.end), schedule)

    return draw


def logit_normal(mean: int | float = 0.0, std: int | float = 1.0) -> Times:
    """`logit(t / end) ~ N(mean, std²)`: few at the ends, where a flow is easy. Source: Esser et al. (2024), eq. 19."""
    _positive("logit_normal", "std", std)

    def draw(key: Key[Array, ""], schedule: Schedule, count: int) -> Array:
        return _whole(jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,))) * schedule.end, schedule)

    return draw


def _uniform(key: Key[Array, ""], schedule: Schedule, count: int) -> Array:
    return _whole((1 - jax.random.uniform(key, (count,))) * schedule.end, schedule)


def _low_discrepancy(key: Key[Array, ""], schedule: Schedule, count: int) -> Array:
    shares = (jax.random.uniform(key) + jnp.arange(count) / count) % 1
    return _whole((1 - shares) * schedule.end, schedule)


def _whole(t: Array, schedule: Schedule) -> Array:
    return t if schedule.steps is None else jnp.clip(jnp.ceil(t), 1, schedule.steps)


# ---- weights --------------------------------------------------------------------------------------------------------


def snr() -> Weight:
    """`α² / σ²`: the plain error of epsilon, by whatever is predicted."""
    return jnp.exp


def truncated_snr() -> Weight:
    """`max(α² / σ², 1)`. Source: Salimans & Ho (2022), eq. 8, arXiv:2202.00512."""

    def weight(log_snr):
        return jnp.exp(jnp.maximum(log_snr, 0))

    return weight


def min_snr(gamma: int | float = 5.0) -> Weight:
    """`min(α² / σ², γ)`. Source: Hang et al. (2023), eq. 8, arXiv:2303.09556."""
    _positive("min_snr", "gamma", gamma)

    def weight(log_snr):
        return jnp.exp(jnp.minimum(log_snr, math.log(gamma)))

    return weight


def p2(k: int | float = 1.0, gamma: int | float = 1.0) -> Weight:
    """`r / (k + r)^γ` with `r = α² / σ²`: the error of epsilon, less where there is little noise.

    Source: Choi et al. (2022), eq. 8, arXiv:2204.00227.
    """
    _positive("p2", "k", k)

    def weight(log_snr):
        return jnp.exp(log_snr - gamma * jnp.logaddexp(log_snr, math.log(k)))

    return weight


def edm(data_std: int | float = parametrization.DATA_STD) -> Weight:
    """`α² / σ² + 1 / s²`: the plain error of EDM's preconditioned network. Source: Karras et al. (2022), table 1."""
    _positive("edm", "data_std", data_std)

    def weight(log_snr):
        return jnp.exp(log_snr) + 1 / data_std**2

    return weight


def sigmoid(bias: int | float = -3.0) -> Weight:
    """The error of epsilon times `sigmoid(b - log(α² / σ²))`.

    Source: Kingma & Gao (2023), arXiv:2303.00848; b = -3: Hoogeboom et al. (2024), arXiv:2410.19324.
    """

    def weight(log_snr):
        return math.exp(bias) * jax.nn.sigmoid(log_snr - bias)

    return weight


# ---- losses ---------------------------------------------------------------------------------------------------------


def denoising(
    apply: Callable,
    schedule: Schedule,
    prediction: str,
    *,
    weight: Weight | None = None,
    times: Times = _uniform,
    inputs: Mapping[str, str] = {},
    unlabeled: int | float = 0.0,
    self_conditioning: int | float = 0.0,
    data_std: int | float = parametrization.DATA_STD,
) -> LossFn:
    """Mean squared error of a network's prediction for noisy data, `batch.x`, at drawn times.

    `apply(variables, x, t, train=, rngs=, **inputs)`; `inputs` names a field of the batch for each condition, {"label": "y"}.
    The share `unlabeled` of labels becomes -1, the null class, for guidance: the network must have one. The share
    `self_conditioning` of batches shows the network its own prediction, made without a gradient, as `previous`. Evaluation
    (no key) draws the same times and noise each time. A table's times are whole.

    Raises:
      ValueError: as `parametrization.to_denoiser`; shares outside [0, 1]; `unlabeled` without a condition `label`.
    Source: Ho et al. (2020), eq. 14; self-conditioning: Chen, Zhang & Hinton (2023), arXiv:2208.04202.
    """
    parametrization.check("denoising", schedule, prediction)
    _shares(unlabeled=unlabeled, self_conditioning=self_conditioning)
    if unlabeled and "label" not in inputs:
        raise ValueError("denoising: unlabeled needs a condition 'label' in inputs.")

    def loss_fn(params, carry, batch, key):
        x0, noise, t, conditions, call, carry_out = _prepared(
            apply, params, carry, batch, key, schedule, times, inputs, unlabeled
        )
        x = parametrization.noisy(x0, noise, t, schedule)
        shown, seen = parametrization.inputs(x, t, schedule, prediction, data_std=data_std)
        if self_conditioning and key is not None:
            first, _ = call(shown, seen, **conditions)
            use = jax.random.uniform(jax.random.fold_in(key, 5)) < self_conditioning
            guess = jax.lax.stop_gradient(parametrization.to_x0(first, x, t, schedule, prediction, data_std=data_std))
            conditions["previous"] = jnp.where(use, guess, 0)
        output, carry_out = call(shown, seen, **conditions)
        aim = parametrization.target(x0, noise, t, schedule, prediction, data_std=data_std)
        if output.shape != aim.shape:
            raise ValueError(f"denoising: the network must give the shape of its input {aim.shape}, got {output.shape}.")
        error = _per_example(jnp.square(_wide(output) - _wide(aim)))
        if weight is not None:
            scale = parametrization.x0_error(schedule, t, prediction, data_std=data_std)
            error = error * weight(schedule(t).log_snr) * scale
        return _sums(error, batch, carry_out)

    return loss_fn


def flow_matching(apply: Callable, *, times: Times | None = None, **options: Any) -> LossFn:
    """Conditional flow matching along straight lines, `|u(x_t, t) - (ε - x_0)|²`: `denoising` of a flow's velocity.

    Source: Lipman et al. (2023), eq. 23, arXiv:2210.02747; Liu et al. (2023), eq. 1, arXiv:2209.03003.
    """
    return denoising(apply, flow(), "velocity", times=_uniform if times is None else times, **options)


def hybrid(
    apply: Callable,
    schedule: Schedule,
    prediction: str,
    *,
    steps: int | None = None,
    bound: int | float = 0.001,
    levels: int = 256,
    times: Times = _uniform,
    inputs: Mapping[str, str] = {},
    unlabeled: int | float = 0.0,
) -> LossFn:
    """The plain loss, and `bound` times the variational bound, which teaches only the variance of each of the `steps`.

    The network has twice the channels: the prediction, and v for the variance, `log = (1 + v) / 2 log large + (1 - v) / 2 log
    small` between those of `samplers.ddpm`; `samplers.ddpm("learned")` reads it. Data in [-1, 1] of so many `levels`.
    `steps` defaults to a table's own. The bound is in bits per dimension of the whole chain.

    Raises:
      ValueError: as `denoising`; continuous time without `steps`.
    Source: Nichol & Dhariwal (2021), eq. 15 and 16, arXiv:2102.09672.
    """
    parametrization.check("hybrid", schedule, prediction)
    if prediction == "edm":
        raise ValueError("hybrid: prediction must be one that scales no inputs, got 'edm'.")
    _shares(unlabeled=unlabeled)
    count = schedule.steps if steps is None else steps
    if count is None:
        raise ValueError("hybrid: give steps, the schedule is continuous.")

    def loss_fn(params, carry, batch, key):
        x0, noise, t, conditions, call, _ = _prepared(apply, params, carry, batch, key, schedule, times, inputs, unlabeled)
        # Whole steps in float32: a product that should be whole may lie above by its rounding.
        index = jnp.clip(jnp.ceil(t * (count / schedule.end) - 1e-3), 1, count)
        t, s = index * (schedule.end / count), jnp.where(index > 1, (index - 1) * (schedule.end / count), 0)
        x = parametrization.noisy(x0, noise, t, schedule)
        output, carry_out = call(x, t, **conditions)
        if output.shape[-1] != 2 * x0.shape[-1]:
            raise ValueError(f"hybrid: the network must give {2 * x0.shape[-1]} channels, got {output.shape[-1]}.")
        mean, share = jnp.split(output, 2, axis=-1)
        aim = parametrization.target(x0, noise, t, schedule, prediction)
        simple = _per_example(jnp.square(_wide(mean) - _wide(aim)))
        guess = parametrization.to_x0(jax.lax.stop_gradient(mean), x, t, schedule, prediction)
        term = _per_example(_bound_term(x0, guess, share, x, t, s, schedule, levels))
        return _sums(simple + bound * count / math.log(2) * term, batch, carry_out)

    return loss_fn


def discretized_gaussian_nll(
    x: Float[Array, "*shape"], mean: Float[Array, "*shape"], log_std: Float[Array, "*shape"], *, levels: int = 256
) -> Float[Array, "*shape"]:
    """`-log P` of the bin around x, of width `2 / (levels - 1)`, under N(mean, std²); the bins at -1 and 1 reach to infinity.

    The difference of the distribution function is taken on the side where both values are small: no digits cancel in the tails.

    Raises:
      ValueError: fewer than 2 levels.
    Source: Ho et al. (2020), eq. 13, arXiv:2006.11239.
    """
    if levels < 2:
        raise ValueError(f"discretized_gaussian_nll: levels must be at least 2, got {levels}.")
    half = 1 / (levels - 1)
    away, scale = _wide(x) - mean, jnp.exp(-log_std)
    sign = jnp.where(away > 0, -1.0, 1.0)  # Φ(b) - Φ(a) = Φ(-a) - Φ(-b)
    upper, lower = scale * (sign * away + half), scale * (sign * away - half)
    top, bottom = jnp.where(sign > 0, x > 1 - half, x < -1 + half), jnp.where(sign > 0, x < -1 + half, x > 1 - half)
    log_upper = jnp.where(top, 0.0, log_ndtr(jnp.where(top, 0.0, upper)))
    gap = log_ndtr(lower) - log_upper
    # log(1 - e^gap); a bin so narrow that nothing is left of the difference has its density times its width
    density = -0.5 * jnp.square(scale * away) - 0.5 * math.log(2 * math.pi) - log_std + math.log(2 * half)
    inside = log_upper + jnp.where(gap > -math.log(2), jnp.log(-jnp.expm1(jnp.minimum(gap, -1e-30))), jnp.log1p(-jnp.exp(gap)))
    narrow = ~top & ~bottom & (scale * half < 1e-3)
    value = jnp.where(bottom, log_upper, jnp.where(narrow, density, inside))
    return -value.astype(x.dtype)


def log_variances(t: Array, s: Array, schedule: Schedule) -> tuple[Array, Array]:
    """Logarithms of the small and the large variance of a step from t to s of `samplers.ddpm`; at s = 0 both the large one."""
    now, then = schedule(t), schedule(s)
    left = -jnp.expm1(jnp.minimum(now.log_snr - then.log_snr, 0.0))  # 1 - SNR_t / SNR_s
    large = now.sigma**2 * left
    small = jnp.where(then.sigma > 0, then.sigma**2 * left, large)
    return jnp.log(small), jnp.log(large)


def _bound_term(x0, guess, share, x, t, s, schedule, levels):
    """Of the variational bound, in nats per element: the KL divergence of a step, the likelihood of the step to the data."""
    now, then = schedule(t), schedule(s)
    log_small, log_large = (parametrization.expand(value, x) for value in log_variances(t, s, schedule))
    learned = (1 + _wide(share)) / 2 * log_large + (1 - _wide(share)) / 2 * log_small
    kept = jnp.where(then.sigma > 0, now.alpha * then.sigma**2 / (jnp.where(then.alpha > 0, then.alpha, 1) * now.sigma**2), 0)
    gained = then.alpha - kept * now.alpha
    true_mean, mean = (parametrization.combine(x, (kept, x), (gained, data)) for data in (x0, guess))
    apart = log_small - learned
    kl = 0.5 * (jnp.expm1(apart) - apart + jnp.square(_wide(true_mean) - _wide(mean)) * jnp.exp(-learned))
    nll = discretized_gaussian_nll(x0, mean, learned / 2, levels=levels)
    return jnp.where(parametrization.expand(s, x) > 0, kl, nll)


def _prepared(apply, params, carry, batch, key, schedule, times, inputs, unlabeled):
    """What a loss needs of a batch: data, noise, times, conditions and the network."""
    batch = jax.tree.map(jnp.asarray, batch)
    x0, count = batch.x, batch.x.shape[0]
    for_times, for_noise, for_labels, for_dropout = jax.random.split(jax.random.key(0) if key is None else key, 4)
    t = parametrization.as_time(times(for_times, schedule, count), x0)
    conditions = {name: getattr(batch, field) for name, field in inputs.items()}
    if unlabeled and key is not None:
        hidden = jax.random.bernoulli(for_labels, unlabeled, (count,))
        conditions["label"] = jnp.where(hidden, -1, conditions["label"].astype(jnp.int32))

    def call(x, t, **conditions):
        if key is None:
            return apply({"params": params, **carry}, x, t, **conditions, train=False), carry
        options = {"train": True, "rngs": {"dropout": for_dropout}, "mutable": list(carry)}
        return apply({"params": params, **carry}, x, t, **conditions, **options)

    return x0, gaussian(for_noise, x0), t, conditions, call, carry


def _sums(values, batch, carry):
    weight = jnp.ones(values.shape, jnp.float32) if (given := getattr(batch, "weight", None)) is None else jnp.asarray(given)
    return losses.reduce(values, "sum", weights=weight), (weight.sum(), {}, carry)


def _per_example(values):
    return values.mean(tuple(range(1, values.ndim)))


def _wide(x: PyTree) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _positive(function: str, name: str, value: int | float) -> None:
    if not value > 0:
        raise ValueError(f"{function}: {name} must be positive, got {value}.")


def _shares(**shares: int | float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"denoising: {name} must be in [0, 1], got {share}.")
