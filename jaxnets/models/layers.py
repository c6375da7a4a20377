"""Initializers that Flax and `jax.nn.initializers` lack (variance scaling and the orthogonal ones are there).

A kernel is `[*window, inputs, outputs]`, as in `nn.Dense` and `nn.Conv`: its fan-in is all but the last axis.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import Initializer

from jaxnets.types import Array, Float, Key, Params


def scaled_normal(gain: int | float) -> Initializer:
    """N(0, gain² / fan_in); the gain of an activation (`activations.ACTIVATIONS[name].gain`) keeps the variance.

    Raises:
      ValueError: `gain <= 0`.
    Source: He et al. (2015), eq. 10 (√2 for relu), arXiv:1502.01852.
    """
    if not gain > 0:
        raise ValueError(f"scaled_normal: gain must be positive, got {gain}.")
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def identity(scale: int | float = 1.0) -> Initializer:
    """`scale` times the identity (ones on the diagonal where not square), in the middle of a convolution's window.

    The recurrent kernel of the IRNN, with a zero bias and relu. Source: Le, Jaitly & Hinton (2015), arXiv:1504.00941.
    """

    def init(key: Key[Array, ""] | None, shape: tuple[int, ...], dtype: Any = float) -> Array:
        del key
        center = tuple(n // 2 for n in shape[:-2])
        return jnp.zeros(shape, dtype).at[center].set(scale * jnp.eye(*shape[-2:], dtype=dtype))

    return init


def sparse(connections: int = 15, scale: int | float = 1.0) -> Initializer:
    """N(0, scale²) on exactly `connections` random inputs of each unit, zero elsewhere; the bias is meant to be zero.

    Raises:
      ValueError: `connections < 1`, or more than the fan-in.
    Source: Martens (2010), section 5, icml.cc/Conferences/2010/papers/458.pdf.
    """
    if connections < 1:
        raise ValueError(f"sparse: connections must be at least 1, got {connections}.")

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
        fan_in = math.prod(shape[:-1])
        if connections > fan_in:
            raise ValueError(f"sparse: connections must be at most the fan-in {fan_in} of {shape}, got {connections}.")
        key_choice, key_weight = jax.random.split(key)
        order = jnp.argsort(jax.random.uniform(key_choice, (fan_in, shape[-1])), axis=0)  # a permutation per unit
        weights = scale * jax.random.normal(key_weight, shape, dtype)
        return jnp.where((order < connections).reshape(shape), weights, 0)

    return init


def torch_uniform(fan_in: int | None = None) -> Initializer:
    """U(-1/√fan_in, 1/√fan_in): PyTorch's default for a linear or convolution kernel and its bias.

    For the kernel PyTorch calls it `kaiming_uniform_(a=√5)`. A bias can't see its fan-in: give it, or use
    `torch_defaults`.
    """

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Array:
        bound = 1 / math.sqrt(fan_in or math.prod(shape[:-1]))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_defaults(key: Key[Array, ""], params: Params) -> Params:
    """Draws each `kernel`, and the `bias` beside it, as PyTorch does by default; all else stays."""
    drawn: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    fan_in = {path[:-1]: math.prod(kernel.shape[:-1]) for path, kernel in drawn.items() if path[-1] == "kernel"}
    for index, (path, leaf) in enumerate(sorted(drawn.items())):
        if path[-1] in ("kernel", "bias") and path[:-1] in fan_in:
            init = torch_uniform(fan_in[path[:-1]])
            drawn[path] = init(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
    return traverse_util.unflatten_dict(drawn)


def lsuv(model: nn.Module, variables: Any, x: Float[Array, "..."], **arguments) -> Any:
    """Layer-sequential unit variance: scales each kernel until its layer's output on the batch `x` has variance 1.

    Exact from zero biases, and meant to start from `nn.initializers.orthogonal()`. Each pass scales all kernels at
    once, and pass k settles the k-th, whatever their order. A layer whose output does not vary is left alone.
    `arguments` go to the model.

    Source: Mishkin & Matas (2016), algorithm 1, arXiv:1511.06422.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables["params"])
    kernels = [path for path in flat if path[-1] == "kernel"]
    for _ in kernels:
        scaled = {**variables, "params": traverse_util.unflatten_dict(flat)}
        _, captured = model.apply(scaled, x, capture_intermediates=True, mutable=["intermediates"], **arguments)
        outputs: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(captured["intermediates"])
        for path in kernels:
            deviation = jnp.std(outputs[(*path[:-1], "__call__")][0].astype(float))
            flat[path] = (flat[path] / jnp.where(deviation > 0, deviation, 1)).astype(flat[path].dtype)
    return {**variables, "params": traverse_util.unflatten_dict(flat)}
