"""Activation functions, right to the last digits in value and slope, and one table that says what each of them is.

The bar, in float32 against 50 digits: value and gradient within 8 units in the last place (ulp) wherever the exact one is a
normal number, and the limit, never NaN, at ±inf. `jax.nn` is reused where it meets this. Elsewhere a function carries its
analytic slope, written without cancellation and without early underflow: by autodiff, `1 - tanh²` loses every digit from
x = 9 on, and `x σ(x)` at x = -88. Measured 2026-11-22 on CPU, jax 0.10.2 and 0.12, with and without jit: at most 5 ulp in
value and 6 in gradient on the grid of the tests. Half precision is computed in float32 and returned in its own dtype.

>>> import jax
>>> ACTIVATIONS["tanh"].gain  # 1 / sqrt(E tanh(z)²), z ~ N(0, 1)
1.5925374197228315
>>> f"{jax.grad(tanh)(20.0):.4g}"  # 1 - tanh² would be 0
'1.699e-17'
"""

from jaxnets.activations.elementwise import (
    celu,
    elu,
    hard_shrink,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    prelu,
    relu,
    relu6,
    rrelu,
    selu,
    sigmoid,
    snake,
    soft_shrink,
    soft_sign,
    softplus,
    squareplus,
    tanh,
    tanh_shrink,
    threshold,
)
from jaxnets.activations.self_gated import gelu, gelu_tanh, mish, silu, swish
from jaxnets.activations.table import ACTIVATIONS, Activation
from jaxnets.activations.vectors import bilinear, geglu, glu, log_softmax, maxout, reglu, softmax, swiglu

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "bilinear",
    "celu",
    "elu",
    "geglu",
    "gelu",
    "gelu_tanh",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "log_softmax",
    "maxout",
    "mish",
    "prelu",
    "reglu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "snake",
    "soft_shrink",
    "soft_sign",
    "softmax",
    "softplus",
    "squareplus",
    "swiglu",
    "swish",
    "tanh",
    "tanh_shrink",
    "threshold",
]
