"""Two decorators of the elementwise functions: the analytic derivative, and half precision."""

import functools

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Float

Parameter = float | Float[Array, "..."]  # a number, or a learnable array that broadcasts to the input


def widened(function):
    """Decorator: half precision is computed in float32; the result has the dtype of the first argument."""

    @functools.wraps(function)
    def wide(x, *parameters):
        dtype = jnp.promote_types(x.dtype, "float32")
        parameters = (jnp.broadcast_to(jnp.asarray(p, dtype), x.shape) for p in parameters)
        return function(x.astype(dtype), *parameters).astype(x.dtype)

    return wide


def with_slopes(*slopes):
    """Decorator: one analytic derivative per argument; differentiating those gives the higher orders."""

    def chain_rule(slope, tangent, _, *inputs):
        value = widened(slope)(*inputs)
        return jnp.broadcast_to(tangent, value.shape).astype(value.dtype) * value

    def decorate(function):
        smooth = jax.custom_jvp(widened(function))
        smooth.defjvps(*(functools.partial(chain_rule, slope) for slope in slopes))
        return smooth

    return decorate
