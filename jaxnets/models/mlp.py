"""The perceptron and the multilayer perceptron."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from jaxnets.models.common import require
from jaxnets.types import Array, Float


class Perceptron(nn.Module):
    """One layer of linear units; with `fire`, threshold units: 1 where the linear output is positive, else 0.

    Parameters: `Dense_0/kernel [in, units]`, `Dense_0/bias [units]`, the layer `optimizers.perceptron_update` takes.
    A threshold has no gradient: learn by the perceptron rule, or by gradients of the logits (`fire=False`).
    Inputs as for `MLP`.

    Source: Rosenblatt (1958), doi:10.1037/h0042519.
    """

    units: int = 1
    fire: bool = False
    feature_axes: int | None = None

    def __post_init__(self):
        require("Perceptron", self.units >= 1, "units must be at least 1", self.units)
        _require_feature_axes("Perceptron", self.feature_axes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        del train  # taken so that training calls every model alike
        logits = nn.Dense(self.units)(_flatten(self, x))
        return (logits > 0).astype(logits.dtype) if self.fire else logits


class MLP(nn.Module):
    """Dense layers, each but the last followed by normalization, activation and dropout; the last is linear.

    An example is everything after the first axis: `[batch, 8, 8, 1]` is `batch` examples of 64 features; a vector is
    one example. `feature_axes` says otherwise: so many last axes are an example and all before them are batch (1:
    `[*batch, features]`; 3: images, also a single one inside `vmap`). The output is `[*batch, widths[-1]]`.

    Parameters: `Dense_i/kernel [in, widths[i]]`, `Dense_i/bias [widths[i]]`; `LayerNorm_i` or `BatchNorm_i`, whose
    running statistics are in `batch_stats` (`mutable=["batch_stats"]` when `train`). Dropout needs
    `rngs={"dropout": key}` when `train`. `capture_intermediates=True` gives what each `Dense_i` returns, and `hidden_i`
    after its activation. A gated activation, which halves its input, makes the next layer's input half as wide.

    Raises:
      ValueError: a bad field, at construction; an input without the number of features of the variables.
    """

    widths: Sequence[int]  # hidden widths, then number of outputs
    activation: Callable[[Any], Any] = nn.relu
    dropout: int | float = 0.0  # probability that a hidden unit is zeroed when `train`
    normalization: str | None = None  # "layer" or "batch", before the activation
    residual: bool = False  # adds a hidden layer's input to its output where the widths agree
    feature_axes: int | None = None
    kernel_init: Initializer = nn.initializers.he_normal()  # of the hidden layers; fits relu
    output_init: Initializer = nn.initializers.lecun_normal()  # of the last, linear layer
    bias_init: Initializer = nn.initializers.zeros
    use_bias: bool = True
    dtype: Any = None  # of the computation; None: what inputs and parameters promote to
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        positive = bool(self.widths) and all(isinstance(width, int) and width > 0 for width in self.widths)
        require("MLP", positive, "widths must be positive integers, at least one", self.widths)
        require("MLP", 0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)
        known = self.normalization in (None, "layer", "batch")
        require("MLP", known, "normalization must be None, 'layer' or 'batch'", self.normalization)
        _require_feature_axes("MLP", self.feature_axes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"use_bias": self.use_bias, "bias_init": self.bias_init, **dtypes}
        x = _flatten(self, x)
        for index, width in enumerate(self.widths[:-1]):
            h = nn.Dense(width, kernel_init=self.kernel_init, **dense)(x)
            if self.normalization == "layer":
                h = nn.LayerNorm(**dtypes)(h)
            elif self.normalization == "batch":  # Flax's momentum 0.99 still holds 13 % of its start after 200 steps
                h = nn.BatchNorm(use_running_average=not train, momentum=0.9, **dtypes)(h)
            h = self.activation(h)
            self.sow("intermediates", f"hidden_{index}", h)
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
            x = x + h if self.residual and x.shape == h.shape else h
        return nn.Dense(self.widths[-1], kernel_init=self.output_init, **dense)(x)


def _require_feature_axes(name: str, axes: int | None) -> None:
    require(name, axes is None or axes >= 1, "feature_axes must be None or at least 1", axes)


def _flatten(model: Perceptron | MLP, x: Array) -> Array:
    """`x` as `[*batch, features]`, as many features as the first layer's kernel takes, where there is one already."""
    name, axes = type(model).__name__, model.feature_axes
    batch_axes = min(1, x.ndim - 1) if axes is None else x.ndim - axes
    require(name, batch_axes >= 0, f"an input needs at least {axes or 1} axes", x.shape)
    features = math.prod(x.shape[batch_axes:])
    if layer := model.get_variable("params", "Dense_0"):  # flax's own message names neither the model nor the input
        expected = nn.unbox(layer["kernel"]).shape[0]
        rule = f"the variables expect {expected} features per example"
        require(name, features == expected, rule, f"{features} from an input of shape {x.shape}")
    return x.reshape(*x.shape[:batch_axes], features)
