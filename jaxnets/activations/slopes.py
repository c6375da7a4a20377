"""Decorators of the activations: wider arithmetic inside, the analytic derivative, and early errors."""

import functools
import inspect

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Float

Parameter = float | int | Float[Array, "..."]  # a number, or a learnable array that broadcasts to the input


def floating(x):
    """`x` as an array; integers become floats, as in `jax.nn`."""
    return jnp.asarray(x, jnp.result_type(x, float))


def widened(function):
    """Decorator: half precision is computed in float32; the result has the dtype of the first argument.

    Positional parameters get the wider dtype and the shape of that argument; so their gradients, too, are summed in it.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wide(*inputs, **named):
        bound = signature.bind(*inputs, **named)
        bound.apply_defaults()
        x, *parameters = bound.args
        x = floating(x)
        dtype = jnp.promote_types(x.dtype, "float32")
        parameters = (jnp.broadcast_to(jnp.asarray(p, dtype), x.shape) for p in parameters)
        return function(x.astype(dtype), *parameters, **bound.kwargs).astype(x.dtype)

    return wide


def with_slopes(*slopes):
    """Decorator: `widened`, with one analytic derivative per argument; differentiating those gives the higher orders."""

    def chain_rule(slope, tangent, _, *inputs):
        return tangent * slope(*inputs)

    def decorate(function):
        smooth = jax.custom_jvp(function)
        smooth.defjvps(*(functools.partial(chain_rule, slope) for slope in slopes))
        return widened(smooth)

    return decorate


RULES = {"must be positive": lambda p: p > 0, "must not be negative": lambda p: p >= 0, "must not be 0": lambda p: p != 0}


def requires(**rules):
    """Decorator: a ValueError where a parameter breaks its rule. Only plain numbers are checked: an array may be traced."""

    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*inputs, **named):
            given = signature.bind(*inputs, **named).arguments
            for name, rule in rules.items():
                if isinstance(given.get(name), int | float) and not RULES[rule](given[name]):
                    raise ValueError(f"{function.__name__}: {name} {rule}, got {given[name]}.")
            return function(*inputs, **named)

        return checked

    return decorate
