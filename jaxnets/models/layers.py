"""Layers and initializers that Flax and `jax.nn.initializers` lack, or have otherwise than PyTorch's weights need them.

A kernel is `[*window, inputs, outputs]`, as in `nn.Dense` and `nn.Conv`: its fan-in is all but the last axis.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.typing import Initializer

from jaxnets import ops
from jaxnets.models.common import require
from jaxnets.types import Array, Float, Key, Params

Kind: TypeAlias = str | Callable[..., Any] | None  # of normalization: "batch", "group", or what makes a module

# N(0, 2 / fan_out), with which torchvision begins its convolutions. Source: He et al. (2015), eq. 14.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Convolution(nn.Module):
    """`ops.convolution` with the parameters `kernel [rows, columns, inputs / groups, features]` and `bias [features]`.

    `nn.Conv` computes the same in one formulation for all shapes, which is slow on a CPU for 1x1, grouped and depthwise windows
    and for many gradients. Without a `padding` there is torch's habitual `dilation (window - 1) / 2` on every side.
    """

    features: int
    window: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: Any = None
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_fan_out
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns features"]:
        window = (self.window, self.window) if isinstance(self.window, int) else tuple(self.window)
        centered = (self.dilation * (window[0] - 1) // 2, self.dilation * (window[1] - 1) // 2)
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1] // self.groups, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        padding = centered if self.padding is None else self.padding
        y = ops.convolution(x, kernel, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,)).astype(y.dtype)[None, None, None]
        return y


class BatchNorm(nn.Module):
    """`(x - m) / sqrt(v + ε) scale + bias` with mean and variance of the batch when `train`, else the running ones.

    Each training step moves the running statistics by the share `momentum` towards the batch's, as in PyTorch: 0.1 is
    what Flax calls 0.9. The running variance is unbiased, `n / (n - 1) v`, as PyTorch's is and Flax's isn't. Sums run over
    all axes but the last and, where it is named, over the mapped axis `axis_name` (`vmap`, `shard_map`); under jit the
    statistics of an array split over devices are those of the whole.

    One value per channel (a batch of one image after 1x1 pooling) has no variance: the running statistics are used
    and left as they are, where PyTorch raises.

    Parameters: `scale`, `bias`; in `batch_stats`: `mean`, `var`. Source: Ioffe & Szegedy (2015), arXiv:1502.03167.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"], *, train: bool = False) -> Float[Array, "*batch channels"]:
        shape = x.shape[-1:]
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale, bias, mean, var = map(jnp.asarray, (scale, bias, running_mean.value, running_var.value))  # of loaded weights
        axis_name = None if self.is_initializing() else self.axis_name  # which isn't there yet
        count = math.prod(x.shape[:-1]) * (1 if axis_name is None or not train else jax.lax.axis_size(axis_name))
        if train and count > 1:
            mean, var = _moments(x, mean, axis_name)
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                    running.value += self.momentum * (value - running.value).astype(running.value.dtype)
        # In the dtype of the statistics, then in the input's: x - mean would lose the digits of bfloat16.
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        wide = x.astype(slope.dtype)
        y = (wide - _last(mean, x)) * _last(slope, x) + _last(bias, x)
        return y.astype(jnp.promote_types(x.dtype, scale.dtype))


class GroupNorm(nn.Module):
    """`(x - m) / sqrt(v + ε) scale + bias`, mean and biased variance of a group of channels in one image, as in PyTorch.

    The variance is of differences from the mean: no digits cancel. Sums run over pixels, then over a group's channels; Flax's
    run over both at once, which takes about 1.6 times as long, its gradients twice (16 images of 32x32x96, one core, jax 0.10
    and 0.12, 2026-11-23).

    Parameters: `scale`, `bias`. Raises: ValueError: groups that don't divide the channels.
    Source: Wu & He (2018), arXiv:1803.08494.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"], *, train: bool = False) -> Float[Array, "*batch channels"]:
        del train
        channels, groups = x.shape[-1], self.num_groups
        require(self, groups >= 1 and channels % groups == 0, f"groups must divide the {channels} channels", groups)
        scale = jnp.asarray(self.param("scale", self.scale_init, (channels,)))
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (channels,)))

        def of_group(values: Array) -> Array:
            """The mean over pixels and a group, for each of its channels."""
            means = values.mean(tuple(range(1, x.ndim - 1))).reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(means, channels // groups, axis=1).reshape(-1, *(1,) * (x.ndim - 2), channels)

        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        apart = wide - of_group(wide)
        slope = jax.lax.rsqrt(of_group(apart * apart) + self.epsilon) * _last(scale, x)
        return (apart * slope + _last(bias, x)).astype(jnp.promote_types(x.dtype, scale.dtype))


def normalization(kind: Kind, channels: int, *, name: str | None = None, scale_init: Initializer = nn.initializers.ones) -> Any:
    """`normalize(x, train=train)`: "batch", "group" (32 groups, or what divides the channels), or None for none.

    Or what makes such a module of a `name` and a `scale_init`, as for batch statistics over the devices of a `shard_map`:
    `ResNet(..., normalization=functools.partial(layers.BatchNorm, axis_name="data"))`.

    Raises:
      ValueError: another kind.
    Source: of the groups: Wu & He (2018), arXiv:1803.08494.
    """
    require_kind("normalization", kind)
    if kind == "batch":
        return BatchNorm(scale_init=scale_init, name=name)
    if kind == "group":
        return GroupNorm(math.gcd(32, channels), scale_init=scale_init, name=name)
    return kind(scale_init=scale_init, name=name) if callable(kind) else _unchanged


def require_kind(who: Any, kind: Any) -> None:
    """Raises unless `normalization` takes this kind, for `who` as in `common.require`: for the checks of a model's fields."""
    known = kind in ("batch", "group", None) or callable(kind)
    require(who, known, "normalization must be 'batch', 'group', None or a callable that makes a module", kind)


def _unchanged(x: Array, *, train: bool = False) -> Array:
    del train
    return x


def _moments(x: Array, near: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance in one pass, in float32 at least, of differences from `near`, so that few digits cancel."""
    near = jax.lax.stop_gradient(near).astype(jnp.promote_types(x.dtype, jnp.float32))
    apart = x.astype(near.dtype) - _last(near, x)
    axes = tuple(range(x.ndim - 1))
    first, second = apart.mean(axes), (apart * apart).mean(axes)
    if axis_name is not None:
        first, second = jax.lax.pmean((first, second), axis_name)
    return near + first, jnp.maximum(second - first * first, 0)


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def attend(
    query: Float[Array, "batch tokens heads width"],
    key: Float[Array, "batch tokens heads width"],
    value: Float[Array, "batch tokens heads width"],
) -> Float[Array, "batch tokens heads width"]:
    """`softmax(q k^T / √width) v` for each head, the softmax in float32 at least.

    That of `jax.nn.dot_product_attention` is in float32 at most. Source: Vaswani et al. (2017), eq. 1, arXiv:1706.03762.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bihw,bjhw->bhij", query, key, preferred_element_type=dtype)
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("bhij,bjhw->bihw", weights.astype(value.dtype), value)


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
