"""Sigmoids, rectifiers and shrinkage: elementwise functions, each below its slope."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.activations.slopes import Parameter, floating, requires, widened, with_slopes
from jaxnets.types import Array, Float, Key

# --- Sigmoids ---

hard_sigmoid, hard_tanh = jax.nn.hard_sigmoid, jax.nn.hard_tanh  # `clip((x + 3) / 6, 0, 1)`, `clip(x, -1, 1)`


def sigmoid_slope(x):
    return sigmoid(x) * sigmoid(-x)  # 1 - σ(x) would cancel


@with_slopes(sigmoid_slope)
def sigmoid(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logistic function `σ(x) = 1 / (1 + exp(-x))`."""
    return lax.logistic(x)


@with_slopes(lambda x: -sech(x) * tanh(x))
def sech(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`1 / cosh(x)`."""
    decay = jnp.exp(-jnp.abs(x))
    return 2 * decay / (1 + decay * decay)


def tanh_slope(x):
    return sech(x) ** 2  # 1 - tanh² would cancel


@with_slopes(tanh_slope)
def tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Hyperbolic tangent."""
    return jnp.tanh(x)


def soft_sign_slope(x):
    return (1 / (1 + jnp.abs(x))) ** 2


@with_slopes(soft_sign_slope)
def soft_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x / (1 + |x|)`: it saturates polynomially. Source: Glorot & Bengio (2010), AISTATS, section 3."""
    largest = jnp.finfo(x.dtype).max
    x = jnp.clip(x, -largest, largest)  # no inf / inf
    return x / (1 + jnp.abs(x))


# --- Rectifiers ---

relu, relu6 = jax.nn.relu, jax.nn.relu6  # `max(x, 0)`, `clip(x, 0, 6)`


@widened
def leaky_relu(x: Float[Array, "*shape"], slope: Parameter = 0.01) -> Float[Array, "*shape"]:
    """`x` right of 0, `slope x` left of it. Source: Maas, Hannun & Ng (2013), ICML workshop."""
    return jnp.where(x > 0, x, slope * jnp.where(x > 0, 0, x))  # the inner choice keeps the slope's gradient 0 at x = inf


@widened
def prelu(x: Float[Array, "*shape"], slope: Parameter = 0.25) -> Float[Array, "*shape"]:
    """`leaky_relu` with a learned slope, often one per channel. Source: He et al. (2015), arXiv:1502.01852, eq. 1."""
    return leaky_relu(x, slope)


def rrelu(
    x: Float[Array, "*shape"], lower: Parameter = 1 / 8, upper: Parameter = 1 / 3, *, key: Key[Array, ""] | None = None
) -> Float[Array, "*shape"]:
    """`leaky_relu` with a slope drawn from `[lower, upper)` for each element; without a key, the mean slope.

    Raises:
      ValueError: the numbers `lower > upper`.
    Source: Xu et al. (2015), arXiv:1505.00853, section 2.4.
    """
    if isinstance(lower, int | float) and isinstance(upper, int | float) and lower > upper:
        raise ValueError(f"rrelu: lower must be at most upper, got {lower} and {upper}.")
    x = floating(x)
    return leaky_relu(x, (lower + upper) / 2 if key is None else jax.random.uniform(key, x.shape, x.dtype, lower, upper))


@with_slopes(jnp.exp)  # autodiff's `expm1(x) + 1` cancels
def expm1(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`exp(x) - 1`."""
    return jnp.expm1(x)


def elu_slope(x, alpha=1.0, scale=1.0):
    return jnp.where(x > 0, scale, scale * alpha * jnp.exp(jnp.where(x > 0, 0, x)))


@widened
def elu(x: Float[Array, "*shape"], alpha: Parameter = 1.0) -> Float[Array, "*shape"]:
    """`x` right of 0, `α (exp(x) - 1)` left of it. Source: Clevert, Unterthiner & Hochreiter (2016), arXiv:1511.07289."""
    return jnp.where(x > 0, x, alpha * expm1(jnp.where(x > 0, 0, x)))


@requires(alpha="must not be 0")
@widened
def celu(x: Float[Array, "*shape"], alpha: Parameter = 1.0) -> Float[Array, "*shape"]:
    """`x` right of 0, `α (exp(x / α) - 1)` left of it: smooth at 0 for every α.

    Raises:
      ValueError: α is the number 0.
    Source: Barron (2017), arXiv:1704.07483.
    """
    return jnp.where(x > 0, x, alpha * expm1(jnp.where(x > 0, 0, x) / alpha))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934


@widened
def selu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`elu` scaled so that N(0, 1) keeps its mean and variance. Source: Klambauer et al. (2017), arXiv:1706.02515, eq. 2."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


@with_slopes(sigmoid)
def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`log(1 + exp(x))`, the integral of `sigmoid`."""
    return jax.nn.softplus(x)


def squareplus_slope(x, b=4.0):
    # Its distance from 0 (left) or 1 (right), b / (2 s (s + |x|)), as a product of ratios that can't be inf / inf.
    distance, s = jnp.where(x > 0, x, -x), jnp.sqrt(x * x + b)
    gap = (jnp.sqrt(b) / s) * (jnp.sqrt(b) / (s + distance)) / 2
    return jnp.where(x > 0, 1 - gap, gap)


@requires(b="must be positive")
@with_slopes(squareplus_slope, lambda x, b: 1 / (4 * jnp.sqrt(x * x + b)))
def squareplus(x: Float[Array, "*shape"], b: Parameter = 4.0) -> Float[Array, "*shape"]:
    """`(x + sqrt(x² + b)) / 2`, `b > 0`: smooth without exponentials.

    Raises:
      ValueError: b is a number, and not positive.
    Source: Barron (2021), arXiv:2112.11687, eq. 1.
    """
    return relu(x) + b / 2 / (jnp.abs(x) + jnp.hypot(x, jnp.sqrt(b)))


def hard_silu_slope(x):
    return jnp.where(x > 3, 1, jnp.where(x > -3, (2 * x + 3) / 6, 0))


@with_slopes(hard_silu_slope)
def hard_silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x hard_sigmoid(x)`, also called hard swish. Source: Howard et al. (2019), arXiv:1905.02244, section 5.2."""
    return jnp.maximum(x, -3) * hard_sigmoid(x)  # no -inf * 0


def snake_slope(x):
    x = jnp.where(jnp.isfinite(x), x, 0)
    return 1 + 2 * jnp.sin(x) * jnp.cos(x)


@requires(a="must not be 0")
@widened
def snake(x: Float[Array, "*shape"], a: Parameter = 1.0) -> Float[Array, "*shape"]:
    """`x + sin²(a x) / a`, `a` not 0: periodic and unbounded. Its slope has no limit at ±inf; there it is given as 1.

    Raises:
      ValueError: a is the number 0.
    Source: Ziyin, Hartwig & Ueda (2020), arXiv:2006.08195.
    """
    return x + jnp.sin(a * jnp.where(jnp.isfinite(x), x, 0)) ** 2 / a


# --- Shrinkage ---


@requires(threshold="must not be negative")
@widened
def hard_shrink(x: Float[Array, "*shape"], threshold: Parameter = 0.5) -> Float[Array, "*shape"]:
    """`x` where `|x| > threshold`, else 0: the proximal operator of a count of non-zeros.

    Raises:
      ValueError: the threshold is a negative number.
    """
    return jnp.where(jnp.abs(x) <= threshold, 0, x)  # NaN passes


@requires(threshold="must not be negative")
@widened
def soft_shrink(x: Float[Array, "*shape"], threshold: Parameter = 0.5) -> Float[Array, "*shape"]:
    """`sign(x) max(|x| - threshold, 0)`: the proximal operator of the l1 norm.

    Raises:
      ValueError: the threshold is a negative number.
    """
    return jnp.where(jnp.abs(x) <= threshold, 0, x - jnp.sign(x) * threshold)


def tanh_shrink_slope(x):
    return jnp.where(jnp.abs(x) > 1, 1 - sech(x) ** 2, tanh(x) ** 2)


@with_slopes(tanh_shrink_slope)
def tanh_shrink(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x - tanh(x)`; near 0, where that cancels, by Lambert's continued fraction `tanh(x) = x / (1 + x² / (3 + x² / ...))`."""
    near = jnp.clip(x, -1.5, 1.5)
    square = near * near
    fraction = 23.0  # deep enough for float64
    for odd in range(21, 1, -2):
        fraction = odd + square / fraction
    return jnp.where(near == x, near * (square / (fraction + square)), x - jnp.tanh(x))


@widened
def threshold(x: Float[Array, "*shape"], threshold: Parameter = 1.0, value: Parameter = 0.0) -> Float[Array, "*shape"]:
    """`x` right of the threshold, else `value`. Source: Konda, Memisevic & Krueger (2015), arXiv:1402.3337."""
    return jnp.where(x <= threshold, value, x)
