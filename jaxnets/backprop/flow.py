"""Does the gradient reach every layer, and is every unit alive? Statistics per layer, of plain trees of arrays.

    params = variables["params"]
    grads = jax.grad(loss)(params)
    backprop.gradient_flow(params, grads)["Dense_0"].ratio

    _, state = model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    backprop.activation_flow(state, activation=jax.nn.relu)["Dense_0"].dead

Nothing here knows Flax: a layer is the path of a leaf. Over an ensemble: `jax.vmap(gradient_flow)(params, grads)`.
"""

import collections
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Float, Params, PyTree


class GradientFlow(NamedTuple):
    """Euclidean norms over the leaves of one layer."""

    weight: Float[Array, "..."]
    gradient: Float[Array, "..."]
    ratio: Float[Array, "..."]  # gradient / weight; inf where the weights are zero, NaN where both are


class ActivationFlow(NamedTuple):
    """One layer's output over a batch; the units are its last axis."""

    mean: Float[Array, "..."]
    std: Float[Array, "..."]
    dead: Float[Array, "..."]  # share of units that are zero for every example (and position)
    saturated: Float[Array, "..."]  # share of values within `margin` of a bound


def gradient_flow(params: Params, grads: Params) -> collections.OrderedDict[str, GradientFlow]:
    """Norms of weights and gradients per layer and their ratio, in the order of the names (`Dense_2` before `Dense_10`).

    A norm that shrinks from the last layer to the first is a vanishing gradient. With the optimizer's updates for `grads`
    the ratio is the relative size of a step: about 1e-3 is usual.

    >>> flow = gradient_flow({"Dense_0": {"kernel": jnp.array([3.0, 4.0])}}, {"Dense_0": {"kernel": jnp.array([0.0, 1.0])}})
    >>> {name: float(layer.ratio) for name, layer in flow.items()}
    {'Dense_0': 0.20000000298023224}

    Raises:
      ValueError: trees of different structure.
    """
    if jax.tree.structure(params) != jax.tree.structure(grads):
        raise ValueError(
            "gradient_flow: params and grads must have the same structure, "
            f"got {jax.tree.structure(params)} and {jax.tree.structure(grads)}."
        )
    gradients = _norm_per_layer(grads)
    return _in_order(
        {name: GradientFlow(w, gradients[name], gradients[name] / w) for name, w in _norm_per_layer(params).items()}
    )


def activation_flow(
    intermediates: PyTree,
    *,
    activation: Callable[[Array], Array] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    margin: float = 0.01,
) -> collections.OrderedDict[str, ActivationFlow]:
    """Mean, spread, dead units and saturation of every floating array `[*batch, units]` in a tree of layer outputs.

    Flax captures what modules return, so `activation` (relu after a Dense) is applied here before anything is measured;
    what `Module.sow` collected is taken as it is. `bounds` is the activation's range, `(-1, 1)` for tanh. The tree is any
    nest of dicts, lists and tuples; `intermediates`, `__call__` and the index of a first call are left out of the names.

    >>> outputs = {"intermediates": {"Dense_0": {"__call__": (jnp.array([[-1.0, 2.0], [-3.0, -1.0]]),)}}}
    >>> float(activation_flow(outputs, activation=jax.nn.relu)["Dense_0"].dead)
    0.5

    Raises:
      ValueError: no floating array in the tree; empty bounds or a negative margin.
    """
    low, high = bounds
    if not low < high or margin < 0:
        raise ValueError(f"activation_flow: bounds must rise and margin be >= 0, got {bounds} and {margin}.")
    layers = {}
    for path, x in jax.tree.leaves_with_path(intermediates):
        if jnp.issubdtype(jnp.result_type(x), jnp.floating):
            x = x if activation is None else activation(x)
            layers[_output_name(path)] = ActivationFlow(
                mean=jnp.mean(x.astype(_accumulator(x))),
                std=jnp.std(x.astype(_accumulator(x))),
                dead=jnp.mean(jnp.all(x == 0, axis=range(x.ndim - 1))),
                saturated=jnp.mean((x <= low + margin) | (x >= high - margin)),
            )
    if not layers:
        raise ValueError("activation_flow: no floating array found; was the model applied with capture_intermediates=True?")
    return _in_order(layers)


def _norm_per_layer(tree):
    squares = collections.defaultdict(list)
    for path, leaf in jax.tree.leaves_with_path(tree):
        squares[_name(path[:-1])].append(jnp.sum(jnp.abs(leaf).astype(_accumulator(leaf)) ** 2))
    return {name: jnp.sqrt(sum(terms)) for name, terms in squares.items()}


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/") or "/"


def _output_name(path):
    """`intermediates/Dense_0/__call__/0` is `Dense_0`; the second call of the same module is `Dense_0/1`."""
    call = next((at for at, key in enumerate(path) if isinstance(key, jax.tree_util.SequenceKey)), 0)
    if call > 0 and path[call].idx == 0:
        path = path[:call] + path[call + 1 :]
    hidden = ("intermediates", "__call__")
    return _name(tuple(key for key in path if getattr(key, "key", None) not in hidden))


def _in_order(layers):
    """An OrderedDict, which keeps its order through jit and vmap, where a dict is sorted as text."""

    def natural(item):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item[0])]

    return collections.OrderedDict(sorted(layers.items(), key=natural))


def _accumulator(x):
    return jnp.promote_types(jnp.real(x).dtype, "float32")
