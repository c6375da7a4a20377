"""Backpropagation in the open: passes written out by hand, a gradient check, and gradient-flow diagnostics.

- `dense_forward`, `dense_backward`, ...: each layer as `forward(*inputs) -> (output, residuals)` and
  `backward(residuals, cotangent) -> gradients`, a tuple with one gradient per array argument, where the cotangent is
  `∂loss/∂output`. This is the convention of `jax.custom_vjp`: `f.defvjp(dense_forward, dense_backward)` makes a pair
  differentiable, and reverse mode is nothing more than calling the pairs backwards (`two_layer_value_and_gradient`).
- `check_gradients`: are the gradients of a loss right, and if not, which leaf is wrong?
- `gradient_flow`, `activation_flow`: does the signal arrive at every layer, and is every unit alive?

Sources: Rumelhart, Hinton & Williams (1986), Learning representations by back-propagating errors, doi:10.1038/323533a0;
Werbos (1990), Backpropagation through time: what it does and how to do it, doi:10.1109/5.58337.
"""

from jaxnets.backprop.check import GradientReport, LeafCheck, check_gradients
from jaxnets.backprop.convolution import (
    average_pool_backward,
    average_pool_forward,
    convolution_backward,
    convolution_forward,
    max_pool_backward,
    max_pool_forward,
)
from jaxnets.backprop.flow import ActivationFlow, GradientFlow, activation_flow, gradient_flow
from jaxnets.backprop.passes import (
    Dense,
    activation_backward,
    activation_forward,
    dense_backward,
    dense_forward,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    two_layer_value_and_gradient,
)
from jaxnets.backprop.recurrent import (
    Elman,
    elman_backward,
    elman_forward,
    elman_step_backward,
    elman_step_forward,
)

__all__ = [
    "ActivationFlow",
    "Dense",
    "Elman",
    "GradientFlow",
    "GradientReport",
    "LeafCheck",
    "activation_backward",
    "activation_flow",
    "activation_forward",
    "average_pool_backward",
    "average_pool_forward",
    "check_gradients",
    "convolution_backward",
    "convolution_forward",
    "dense_backward",
    "dense_forward",
    "elman_backward",
    "elman_forward",
    "elman_step_backward",
    "elman_step_forward",
    "gradient_flow",
    "max_pool_backward",
    "max_pool_forward",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "two_layer_value_and_gradient",
]
