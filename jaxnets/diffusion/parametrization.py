"""What a network predicts, in terms of the data: with `x = α x_0 + σ ε`, every prediction gives every other.

| prediction | is | of the data |
|---|---|---|
| `x0` | the data | `x_0` |
| `epsilon` | the noise | `(x - α x_0) / σ` |
| `v` | `α ε - σ x_0` | `(α x - (α² + σ²) x_0) / σ` |
| `score` | `∇ log p_t(x)` | `(α x_0 - x) / σ²` |
| `velocity` | `ε - x_0`, dx/dt of a straight line | `(x - (α + σ) x_0) / σ` |
| `edm` | the residual F of x / α, preconditioned | `w / (σ s) (x_0 - α s² / w² x)` with `w = hypot(σ, α s)` |

All but the first are linear in the noise per data, so that at σ = 0 they hold nothing of the data: infinite or NaN there.
"""

import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.diffusion.schedules import Schedule
from jaxnets.types import Array, Float, PyTree

PREDICTIONS = ("x0", "epsilon", "v", "score", "velocity", "edm")
LARGEST = 10.0  # log(σ / α) / 4 that a network of EDM is shown
DATA_STD = 0.5  # s of EDM: the standard deviation of the data, Karras et al. (2022), table 1


def to_denoiser(
    network: Callable, schedule: Schedule, prediction: str, *, data_std: float = DATA_STD, time: Callable | None = None
) -> Callable:
    """`denoise(x, t, **conditions) -> x0` of a network that makes the `prediction` of `(x, t, **conditions)`.

    `time(t)` is what the network sees as its time: `lambda t: t - 1` where it was trained on the indices of a table. "edm"
    scales the network's input too and shows it `log(σ / α) / 4`. Arrays or pytrees of them; computed in the dtype of x.

    Raises:
      ValueError: an unknown prediction; one that says nothing of the data where the schedule leaves nothing of them (epsilon,
        score at zero terminal SNR: `x_0 = (x - σ ε) / α` would be 0 / 0, silently infinite elsewhere).
    Source: v: Salimans & Ho (2022), appendix D, arXiv:2202.00512; edm: Karras et al. (2022), eq. 7, arXiv:2206.00364.
    """
    check("to_denoiser", schedule, prediction)

    def denoise(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = as_time(t, x)
        shown, seen = inputs(x, t, schedule, prediction, data_std=data_std)
        output = network(shown, seen if time is None else time(seen), **conditions)
        return to_x0(output, x, t, schedule, prediction, data_std=data_std)

    return denoise


def with_variance(network: Callable, schedule: Schedule, prediction: str, *, time: Callable | None = None) -> Callable:
    """`(x0, v)` of a network of arrays with twice the channels, trained by `losses.hybrid`: for `samplers.ddpm("learned")`.

    For all else take `to_denoiser` of the first half. Raises as `to_denoiser`, and for "edm".
    """
    check("with_variance", schedule, prediction)
    if prediction == "edm":
        raise ValueError("with_variance: prediction must be one that scales no inputs, got 'edm'.")

    def denoise(x: Array, t: Any, **conditions: Any) -> tuple[Array, Array]:
        t = as_time(t, x)
        output, share = jnp.split(network(x, t if time is None else time(t), **conditions), 2, axis=-1)
        return to_x0(output, x, t, schedule, prediction), share

    return denoise


def from_denoiser(denoise: Callable, schedule: Schedule, prediction: str, *, data_std: int | float = DATA_STD) -> Callable:
    """The inverse of `to_denoiser`: `predict(x, t, **conditions)`, for instance the score of a denoiser."""
    check("from_denoiser", None, prediction)

    def predict(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = as_time(t, x)
        return from_x0(denoise(x, t, **conditions), x, t, schedule, prediction, data_std=data_std)

    return predict


def to_x0(
    output: PyTree, x: PyTree, t: Any, schedule: Schedule, prediction: str, *, data_std: int | float = DATA_STD
) -> PyTree:
    """The data that a prediction for the noisy `x` means."""
    check("to_x0", schedule, prediction)
    of_x, of_output = _coefficients(schedule, as_time(t, x), prediction, data_std)
    return combine(x, (of_x, x), (of_output, output))


def from_x0(x0: PyTree, x: PyTree, t: Any, schedule: Schedule, prediction: str, *, data_std: int | float = DATA_STD) -> PyTree:
    """The prediction that means the data `x0` of the noisy `x`: at σ = 0 there is none but `x0`."""
    check("from_x0", None, prediction)
    if prediction == "x0":
        return x0
    level = schedule(as_time(t, x))
    noise = combine(x, (1 / level.sigma, x), (-level.alpha / level.sigma, x0))
    return target(x0, noise, t, schedule, prediction, data_std=data_std)


def convert(
    output: PyTree, x: PyTree, t: Any, schedule: Schedule, *, source: str, target: str, data_std: int | float = DATA_STD
) -> PyTree:
    """The prediction `target` that says of the data what the prediction `source` does."""
    check("convert", schedule, source)
    x0 = to_x0(output, x, t, schedule, source, data_std=data_std)
    return from_x0(x0, x, t, schedule, target, data_std=data_std)


def noisy(x0: PyTree, noise: PyTree, t: Any, schedule: Schedule) -> PyTree:
    """`α(t) x_0 + σ(t) ε`."""
    level = schedule(as_time(t, x0))
    return combine(x0, (level.alpha, x0), (level.sigma, noise))


def target(
    x0: PyTree, noise: PyTree, t: Any, schedule: Schedule, prediction: str, *, data_std: int | float = DATA_STD
) -> PyTree:
    """The prediction that is right for `noisy(x0, noise, t, schedule)`; no digits cancel at either end."""
    check("target", None, prediction)
    level = schedule(as_time(t, x0))
    alpha, sigma = level.alpha, level.sigma
    zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
    # Of "edm": F = (x_0 - c_skip x / α) / c_out with c_out = ρ s / hypot(ρ, s).
    width = jnp.hypot(sigma, alpha * data_std)
    weights = {
        "x0": (one, zero),
        "epsilon": (zero, one),
        "v": (-sigma, alpha),
        "score": (zero, -1 / sigma),
        "velocity": (-one, one),
        "edm": (sigma / (data_std * width), -alpha * data_std / width),
    }
    of_x0, of_noise = weights[prediction]
    return combine(x0, (of_x0, x0), (of_noise, noise))


def inputs(
    x: PyTree, t: Array, schedule: Schedule, prediction: str, *, data_std: int | float = DATA_STD
) -> tuple[PyTree, Array]:
    """What the network is shown of `(x, t)`: both as they are, but for "edm" scaled to unit variance and `log(σ / α) / 4`."""
    if prediction != "edm":
        return x, t
    level = schedule(t)
    shown = jnp.clip(-level.log_snr / 8, -LARGEST, LARGEST)  # finite at the ends, where nothing is left of one or the other
    return combine(x, (1 / jnp.hypot(level.sigma, level.alpha * data_std), x)), shown


def x0_error(schedule: Schedule, t: Array, prediction: str, *, data_std: int | float = DATA_STD) -> Float[Array, "..."]:
    """`|x_0' - x_0|² / |prediction' - prediction|²`: what one error is in terms of the other, at each time."""
    _, of_output = _coefficients(schedule, t, prediction, data_std)
    return of_output**2


def as_time(t: Any, x: PyTree) -> Array:
    """`t` as an array of the dtype in which levels are computed: that of `x`, float32 at least.

    Raises:
      ValueError: an x that isn't real floating numbers, such as bytes: results would be rounded to whole ones.
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(x)]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"x: expected floating data, got {', '.join(map(str, dtypes))}.")
    return jnp.asarray(t, jnp.promote_types(jnp.result_type(*dtypes), jnp.float32))


def combine(like: PyTree, *terms: tuple[Array, PyTree]) -> PyTree:
    """`Σ w y` over pairs of weights (a scalar, or one per example) and trees, in the dtypes of `like`."""

    def leaf(like, *leaves):
        total: Any = sum(
            expand(weight, y) * y.astype(jnp.promote_types(y.dtype, weight.dtype))
            for (weight, _), y in zip(terms, leaves, strict=True)
        )
        return total.astype(like.dtype)

    return jax.tree.map(leaf, like, *(tree for _, tree in terms))


def expand(values: Array, like: Array) -> Array:
    """A scalar, or one value per example, with axes of length 1 for those of `like` that follow."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def check(function: str, schedule: Schedule | None, prediction: str) -> None:
    """Raises where `prediction` is unknown, or says nothing of the data at the end of a schedule; `function` is who asks."""
    if prediction not in PREDICTIONS:
        close = difflib.get_close_matches(prediction, PREDICTIONS, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"expected one of {', '.join(PREDICTIONS)}."
        raise ValueError(f"{function}: no prediction {prediction!r}; {hint}")
    if schedule is not None and prediction in ("epsilon", "score") and schedule.reaches_noise:
        raise ValueError(
            f"{function}: {prediction} says nothing of the data at the end of a schedule that leaves nothing of them (zero "
            "terminal SNR); predict v, x0 or velocity, or take a schedule such as linear() or cosine(1000)."
        )


def _coefficients(schedule: Schedule, t: Array, prediction: str, data_std: int | float) -> tuple[Array, Array]:
    """`(a, b)` with `x_0 = a x + b prediction`."""
    level = schedule(t)
    alpha, sigma = level.alpha, level.sigma
    if prediction == "x0":
        return jnp.zeros_like(alpha), jnp.ones_like(alpha)
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "score":
        return 1 / alpha, sigma * sigma / alpha
    if prediction == "v":
        square = alpha * alpha + sigma * sigma
        return alpha / square, -sigma / square
    if prediction == "velocity":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    width = jnp.hypot(sigma, alpha * data_std)
    return alpha * (data_std / width) ** 2, sigma * data_std / width
