"""The self-gated functions, x times a cumulative distribution: their left tails are right down to the last normal number.

Two things spoil such a tail. The distribution underflows before its product with x does, so it is kept as two factors, each
the size of its root. And exp turns the rounding of an argument near -88 into 50 ulp, so an argument that isn't x itself is
carried as an exact number and a rest.
"""

import math

import jax.numpy as jnp
from jax import lax

from jaxnets.activations.elementwise import relu, sech, sigmoid
from jaxnets.activations.slopes import Parameter, with_slopes
from jaxnets.types import Array, Float


def _head(x):
    """`x` to half its digits: a product of two heads is exact, so no fused multiply-add can change it."""
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2)


def _product(x, y):
    """`x y` as the sum of an exact number and a small rest (their derivatives add up as well)."""
    x_head, y_head = _head(x), _head(y)
    return x_head * y_head, x_head * (y - y_head) + (x - x_head) * y


def _exp(x, rest):
    """`exp(x + rest)` for a small rest; XLA would merge a product of two exps, and round the sum."""
    return jnp.exp(x) * (1 + jnp.expm1(rest))


# --- silu and its relatives ---


def _sigmoid_factors(z, rest=None):
    """`p, q` with `p q = σ(z + rest)`: neither underflows where the product is a normal number."""
    left = z < 0
    half = jnp.where(left, z, -z) / 2
    root = jnp.exp(half) if rest is None else _exp(half, jnp.where(left, rest, -rest) / 2)
    p = jnp.where(left, root, 1)
    return p, p / (1 + root * root)


def silu_slope(x):
    x = jnp.clip(x, -1e4, 1e4)  # the limits, in float64 too: no inf * 0
    p, q = _sigmoid_factors(x)
    return p * (q * (1 + x * sigmoid(-x)))


@with_slopes(silu_slope)
def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x σ(x)`: `swish` with β = 1. Source: Elfwing, Uchibe & Doya (2018), arXiv:1702.03118."""
    p, q = _sigmoid_factors(x)
    return jnp.maximum(x, -1e4) * p * q


def _swish_argument(x, beta):
    z, rest = _product(jnp.clip(x, -1e15, 1e15), beta)
    return z, jnp.clip(rest, -1, 1)  # larger only where σ(z) is 0 or 1


def swish_slope(x, beta):
    z, rest = _swish_argument(x, beta)
    p, q = _sigmoid_factors(z, rest)
    z = jnp.clip(z + rest, -1e4, 1e4)
    return p * (q * (1 + z * sigmoid(-z)))


def swish_beta_slope(x, beta):
    x = jnp.clip(x, -1e15, 1e15)
    return (x * sech(beta * x / 2) / 2) ** 2


@with_slopes(swish_slope, swish_beta_slope)
def swish(x: Float[Array, "*shape"], beta: Parameter = 1.0) -> Float[Array, "*shape"]:
    """`x σ(β x)`, β learnable: from `x / 2` (0) to `relu` (inf). Source: Ramachandran et al. (2017), arXiv:1710.05941."""
    p, q = _sigmoid_factors(*_swish_argument(x, beta))
    return jnp.where(p == 0, 0, x * p * q)


def _mish_excess(x):
    """`tanh(softplus(x)) / σ(x) - 1` and its slope; both vanish on either side."""
    x = jnp.clip(x, -40, 40)
    grow, decay = jnp.exp(x), jnp.exp(-x)
    excess = 1 / (grow + 2 + 2 * decay)
    return excess, (2 * decay - grow) * excess * excess


def mish_slope(x):
    excess, excess_slope = _mish_excess(x)
    return silu_slope(x) * (1 + excess) + silu(jnp.minimum(x, 40)) * excess_slope


@with_slopes(mish_slope)
def mish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x tanh(softplus(x))`. Source: Misra (2019), arXiv:1908.08681."""
    excess, _ = _mish_excess(x)
    return silu(x) * (1 + excess)


# --- gelu, exact ---

# Chebyshev coefficients of (t + 5) M(t) in (t - 5) / (t + 5), with Mills' ratio M(t) = Φ(-t) / φ(t) of the normal distribution.
# The series may be cut anywhere: 12 terms reach 2^-26, all 24 reach 2^-54. The test computes them again.
# The form is that of Shepherd & Laframboise (1981), Mathematics of Computation 36(153).
MILLS = (
    2.7196852387678243, -2.369067605650879, 0.8511076451912901, -0.252671010201899, 0.06101538640490704,
    -0.011475514073056178, 0.0014946108965619613, -7.528550840431418e-05, -1.7441640986188533e-05, 4.165069376460427e-06,
    -1.075491741115436e-07, -9.471226425550921e-08, 1.1672253441654395e-08, 1.8216467239028026e-09, -4.702612503635878e-10,
    -3.396099140347166e-11, 1.6931861387628094e-11, 7.116261233426692e-13, -6.192628267806253e-13, -2.267253181994824e-14,
    2.369054606339966e-14, 1.2094286091906465e-15, -9.388069136947026e-16, -7.955671520049973e-17,
)  # fmt: skip


def _mills(t):
    """`Φ(-t) / φ(t)` for `t >= 0`, by Clenshaw's recurrence."""
    u = (t - 5) / (t + 5)
    current = previous = jnp.zeros_like(t)
    for coefficient in reversed(MILLS[1 : 12 if jnp.finfo(t.dtype).bits == 32 else None]):
        current, previous = coefficient + 2 * u * current - previous, current
    return (MILLS[0] + u * current - previous) / (t + 5)


def _times_density(weight, x):
    """`weight φ(x)`, with the density `φ(x) = exp(-x² / 2) / sqrt(2 π)`."""
    square, rest = _product(x, x)
    root = _exp(-square / 4, -rest / 4)
    return weight * root * root / math.sqrt(2 * math.pi)


def _distance(x):
    return jnp.minimum(jnp.abs(x), 40)  # φ(40) = 0, in float64 too


@with_slopes(lambda x: (2 - x * x) * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi))
def gelu_slope(x):
    distance = _distance(x)
    gap = _times_density(_mills(distance) - distance, distance)  # Φ(x) + x φ(x) on the left; its distance from 1 on the right
    return jnp.where(x < 0, gap, 1 - gap)


@with_slopes(gelu_slope)
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x Φ(x)`, with the normal distribution function Φ. Source: Hendrycks & Gimpel (2016), arXiv:1606.08415."""
    distance = _distance(x)
    return relu(x) - _times_density(distance * _mills(distance), distance)


# --- gelu, with tanh: x σ(x (C + D x²)), C = sqrt(8 / π), D = 0.044715 C, each the sum of a short number and a rest ---

C, C_REST = 817 / 512, 6.599660573071176e-05
D, D_REST = 0.0714111328125, -5.631653989975122e-05


def _gelu_tanh_argument(x):
    square, square_rest = _product(x, x)
    cubic, cubic_rest = _product(square, jnp.full_like(x, D))
    factor = _head(C + cubic)
    factor_rest = (C - factor + cubic) + (cubic_rest + D * square_rest + D_REST * x * x + C_REST)
    z, rest = _product(x, factor)
    return z, rest + x * factor_rest


def gelu_tanh_slope(x):
    x = jnp.clip(x, -100, 100)
    z, rest = _gelu_tanh_argument(x)
    p, q = _sigmoid_factors(z, rest)
    return p * (q * (1 + x * (C + C_REST + 3 * (D + D_REST) * x * x) * sigmoid(-z - rest)))


@with_slopes(gelu_tanh_slope)
def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x (1 + tanh(sqrt(2 / π) (x + 0.044715 x³))) / 2`, an approximation of `gelu` from the same paper."""
    p, q = _sigmoid_factors(*_gelu_tanh_argument(jnp.clip(x, -100, 100)))
    return jnp.maximum(x, -100) * p * q
