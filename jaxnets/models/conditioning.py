"""What a network that removes noise is told beside its input: the time, and each example's class or none.

All such networks here are called alike, `model.apply(variables, x, t, label=None, *, previous=None, train=False)`. `t` is a
scalar or one time for each example; give it by name, `t=t`, to `precision.mixed`, which rounds what it is given by place. A
label is an integer for all examples or one for each; -1 is the null class, which stands for no label, and is what all
examples have where no label is given. With `self_conditioning` the network sees beside its input a previous estimate of its
size, zeros where there is none.

Source: of the null class: Ho & Salimans (2022), arXiv:2207.12598; of the previous estimate: Chen et al. (2022),
  arXiv:2208.04202.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Initializer

from jaxnets.models.common import require
from jaxnets.types import Array, Float, Integer


def sinusoids(
    t: Float[Array, " batch"], width: int, *, period: int | float = 10_000.0, shift: int = 0, sine_first: bool = False
) -> Float[Array, "batch width"]:
    """`cos(t ω_i)` and then `sin(t ω_i)` with `ω_i = period^(-i / (n - shift))` for i below n = width // 2; odd ends with 0.

    `shift=1, sine_first=True` are those of DDPM. Source: Vaswani et al. (2017), section 3.5, arXiv:1706.03762.
    """
    half = width // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=t.dtype) * (-math.log(period) / max(half - shift, 1)))
    phases = t[:, None] * frequencies[None]
    waves = [jnp.sin(phases), jnp.cos(phases)] if sine_first else [jnp.cos(phases), jnp.sin(phases)]
    return jnp.concatenate([*waves, jnp.zeros((len(t), width % 2), t.dtype)], axis=1)


def times(who: Any, t: Any, x: Array) -> Float[Array, " batch"]:
    """One time for each example, in float32 at least: the time of a step has more digits than bfloat16.

    Raises:
      ValueError: another shape than a scalar or one time for each.
    """
    t = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    require(who, t.shape in ((), x.shape[:1]), f"t must be a scalar or one time for each of {x.shape[0]} examples", t.shape)
    return jnp.broadcast_to(t, x.shape[:1])


def with_previous(model: Any, x: Array, previous: Array | None) -> Array:
    """`x`, and for a self-conditioning model behind it, along the last axis, the previous estimate or zeros.

    Raises:
      ValueError: an estimate for a model that takes none, or of another shape than `x`.
    """
    if not model.self_conditioning:
        require(model, previous is None, "a previous estimate needs self_conditioning=True", "one without")
        return x
    previous = jnp.zeros_like(x) if previous is None else previous
    require(model, previous.shape == x.shape, f"previous must have the shape {x.shape} of the input", previous.shape)
    return jnp.concatenate([x, previous.astype(x.dtype)], axis=-1)


class Condition(nn.Module):
    """`silu(dense2 silu dense1 sinusoids(t) + embedding[label])`: what every block of a network is told."""

    features: int
    width: int  # of the sinusoids
    classes: int | None
    null: bool
    shift: int = 0
    sine_first: bool = False
    kernel_init: Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(
        self, t: Float[Array, " batch"], label: Integer[Array, " batch"] | None, dtype: Any
    ) -> Float[Array, "batch features"]:
        waves = sinusoids(t, self.width, shift=self.shift, sine_first=self.sine_first).astype(dtype)
        h = nn.Dense(self.features, kernel_init=self.kernel_init, name="dense1")(waves)
        h = nn.Dense(self.features, kernel_init=self.kernel_init, name="dense2")(nn.silu(h))
        if label is not None:
            h += LabelEmbedding(self.classes or 0, self.null, self.features, name="label")(label)
        return nn.silu(h)


class LabelEmbedding(nn.Module):
    """A vector for each class and, last, for the null class where there is one: `embedding [classes + null, features]`.

    NaN for a label out of range that is known only at run time.
    """

    classes: int
    null: bool
    features: int

    @nn.compact
    def __call__(self, label: Integer[Array, " batch"]) -> Float[Array, "batch features"]:
        rows = self.classes + self.null
        table = self.param("embedding", nn.initializers.normal(0.02), (rows, self.features))
        row = jnp.where(label == -1, self.classes, jnp.where((label < 0) | (label >= self.classes), rows, label))
        return jnp.take(table, row, axis=0, mode="fill", fill_value=jnp.nan)


def labels(model: Any, label: Any, batch: int) -> Integer[Array, " batch"] | None:
    """One label for each example by the model's `classes` and `null`; None where it has no classes.

    Raises:
      ValueError: a label without `classes`; none without a null class; one that is no integer, of another shape than a scalar
        or one for each example, or, where its value is known, out of range.
    """
    if model.classes is None:
        require(model, label is None, "a label needs a number of classes", f"label={label} with classes=None")
        return None
    if label is None:
        require(model, model.null, "a label is needed where there is no null class", "label=None with null=False")
        label = -1
    label = label if isinstance(label, jax.Array) else np.asarray(label)
    require(model, jnp.issubdtype(label.dtype, jnp.integer), "a label must be an integer", label.dtype)
    if not isinstance(label, jax.core.Tracer) and getattr(label, "is_fully_addressable", True):
        label = np.asarray(label)
        least, most = -1 if model.null else 0, model.classes - 1
        outside = label[(label < least) | (label > most)]
        meaning = ", where -1 is the null class" if model.null else ""
        require(model, not outside.size, f"a label must be from {least} to {most}{meaning}", outside[:1].sum())
    fits = label.shape in ((), (batch,))
    require(model, fits, f"label must be a scalar or one label for each of {batch} examples", label.shape)
    return jnp.broadcast_to(jnp.asarray(label).astype(jnp.int32), (batch,))


def require_fields(model: Any) -> None:
    """Raises for bad fields that such networks share."""
    classes = model.classes is None or model.classes >= 1
    require(model, classes, "classes must be None or at least 1", model.classes)
    require(model, model.outputs is None or model.outputs >= 1, "outputs must be None or at least 1", model.outputs)
    require(model, 0 <= model.dropout < 1, "dropout must be in [0, 1)", model.dropout)
