"""The table of elementwise activations: what each of them is, at its default parameters."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxnets.activations import elementwise as e
from jaxnets.activations import self_gated as g
from jaxnets.activations.slopes import widened
from jaxnets.types import Array, Float


@dataclasses.dataclass(frozen=True)
class Activation:
    """One activation function. `gain` and `zero_centered` speak of z ~ N(0, 1), the pre-activations of a well-kept network.

    The gain keeps the second moment, `E[(gain f(z))²] = 1`: weights of standard deviation `gain / sqrt(fan_in)` pass the
    variance of the pre-activations on from layer to layer. For the rectifiers this is He's convention (relu: √2), and torch's.
    Elsewhere torch's `calculate_gain` differs: 5/3 for tanh (here 1.59), 1 for sigmoid (1.85), 3/4 for selu (1, as its
    authors want it).
    """

    function: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    derivative: Callable[[Float[Array, "..."]], Float[Array, "..."]]  # analytic; at a kink, the slope of the left side
    range: tuple[float, float]  # infimum and supremum
    saturates: tuple[float, float]  # left of the first and right of the second the slope is below 1 %; ±inf: never
    dies: bool  # the slope is exactly 0 over an interval: a unit whose every input lies there learns nothing
    zero_centered: bool  # E f(z) = 0
    gain: float  # 1 / sqrt(E f(z)²)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.function(x)


def _steps(first, *edges):
    """Slope of a piecewise linear function: `first`, then from each edge on the slope given with it."""

    def slope(x):
        value = jnp.full_like(x, first)
        for edge, right in edges:
            value = jnp.where(x > edge, right, value)
        return value

    return slope


def _selu_slope(x):
    return e.elu_slope(x, e.SELU_ALPHA, e.SELU_SCALE)


INF = math.inf
SELU_FLOOR = -e.SELU_ALPHA * e.SELU_SCALE

# name: function, derivative, range, saturates, dies, zero-centered, gain. `swish` is `silu` here, and not listed.
_ROWS: dict[str, tuple[Any, ...]] = {
    "sigmoid": (e.sigmoid, e.sigmoid_slope, (0.0, 1.0), (-4.58486334, 4.58486334), False, False, 1.8462285453386054),
    "hard_sigmoid": (e.hard_sigmoid, _steps(0, (-3, 1 / 6), (3, 0)), (0.0, 1.0), (-3.0, 3.0), True, False, 1.897840424729559),
    "tanh": (e.tanh, e.tanh_slope, (-1.0, 1.0), (-2.99322285, 2.99322285), False, True, 1.5925374197228315),
    "hard_tanh": (e.hard_tanh, _steps(0, (-1.0, 1.0), (1, 0)), (-1.0, 1.0), (-1.0, 1.0), True, True, 1.3920361404483097),
    "soft_sign": (e.soft_sign, e.soft_sign_slope, (-1.0, 1.0), (-9.0, 9.0), False, True, 2.3375333631085398),
    "relu": (e.relu, _steps(0, (0, 1)), (0.0, INF), (0.0, INF), True, False, 1.4142135623730951),
    "relu6": (e.relu6, _steps(0, (0.0, 1.0), (6, 0)), (0.0, 6.0), (0.0, 6.0), True, False, 1.4142135650950736),
    "leaky_relu": (e.leaky_relu, _steps(0.01, (0, 1)), (-INF, INF), (-INF, INF), False, False, 1.4141428569978354),
    "prelu": (e.prelu, _steps(0.25, (0, 1)), (-INF, INF), (-INF, INF), False, False, 1.3719886811400708),
    "rrelu": (e.rrelu, _steps(11 / 48, (0, 1)), (-INF, INF), (-INF, INF), False, False, 1.378479664546057),
    "elu": (e.elu, e.elu_slope, (-1.0, INF), (-4.60517019, INF), False, False, 1.2451983007007066),
    "celu": (e.celu, e.elu_slope, (-1.0, INF), (-4.60517019, INF), False, False, 1.2451983007007066),
    "selu": (e.selu, _selu_slope, (SELU_FLOOR, INF), (-5.16940349, INF), False, True, 1.0),
    "softplus": (e.softplus, e.sigmoid, (0.0, INF), (-4.59511985, INF), False, False, 1.0418668355353018),
    "squareplus": (e.squareplus, e.squareplus_slope, (0.0, INF), (-9.84937059, INF), False, False, 0.816496580927726),
    "silu": (g.silu, g.silu_slope, (-0.2784645427610738, INF), (-6.26138885, INF), False, False, 1.676532470331091),
    "hard_silu": (e.hard_silu, e.hard_silu_slope, (-0.375, INF), (-3.0, INF), True, False, 1.7366572127665416),
    "gelu": (g.gelu, g.gelu_slope, (-0.16997120747990366, INF), (-3.0674272, INF), False, False, 1.5335304411955353),
    "gelu_tanh": (g.gelu_tanh, g.gelu_tanh_slope, (-0.17004075057125, INF), (-3.052855, INF), False, False, 1.533580521666147),
    "mish": (g.mish, g.mish_slope, (-0.30884341301725043, INF), (-6.26396879, INF), False, False, 1.486847581273208),
    "threshold": (e.threshold, _steps(0, (1, 1)), (0.0, INF), (1.0, INF), True, False, 1.5799030817610498),
    "hard_shrink": (e.hard_shrink, _steps(1, (-0.5, 0.0), (0.5, 1)), (-INF, INF), (-INF, INF), True, True, 1.015796354719734),
    "soft_shrink": (e.soft_shrink, _steps(1, (-0.5, 0.0), (0.5, 1)), (-INF, INF), (-INF, INF), True, True, 1.5443605282801334),
    "tanh_shrink": (e.tanh_shrink, e.tanh_shrink_slope, (-INF, INF), (-INF, INF), False, True, 2.3383675301021216),
    "snake": (e.snake, e.snake_slope, (-INF, INF), (-INF, INF), False, False, 0.8745809829313702),
}  # fmt: skip
ACTIVATIONS = {name: Activation(function, widened(slope), *facts) for name, (function, slope, *facts) in _ROWS.items()}
