"""Matrix-free linear operators as plain data: `A(x)`, `A.adjoint(y)`, `A @ B`, `A + B`, `2 * A`.

A structure says what an operator takes: a length, a shape, an array, a `jax.ShapeDtypeStruct` (for complex numbers), or any
pytree of the last two.

>>> import jax
>>> import jax.numpy as jnp
>>> from jaxnets.proximal import linear
>>> A = linear.convolution(jnp.array([-0.5, 1.0, -0.5]), (2, 6)) @ linear.cumulative_sum((2, 6))
>>> A(jnp.ones((2, 6))).shape
(2, 6)
>>> linear.check_adjoint(A, jax.random.key(0))
>>> linear.fk((4, 6)).output.shapes()
(4, 4)
"""

from jaxnets.proximal.linear.analysis import check_adjoint, dense, dot_test, largest_singular_value, power_iteration
from jaxnets.proximal.linear.arrays import (
    cumulative_sum,
    diagonal,
    difference,
    gradient,
    identity,
    interpolation,
    mask,
    matrix,
    resample,
    restriction,
)
from jaxnets.proximal.linear.blocks import batch, block_diagonal, block_row, stack
from jaxnets.proximal.linear.convolve import convolution
from jaxnets.proximal.linear.operator import Operator, Structure, operator
from jaxnets.proximal.linear.radon import linear_radon, parabolic_radon
from jaxnets.proximal.linear.transforms import dct, fft, fk, rfft, wavelet_transform
from jaxnets.proximal.linear.windows import patches

__all__ = [
    "Operator",
    "Structure",
    "batch",
    "block_diagonal",
    "block_row",
    "check_adjoint",
    "convolution",
    "cumulative_sum",
    "dct",
    "dense",
    "diagonal",
    "difference",
    "dot_test",
    "fft",
    "fk",
    "gradient",
    "identity",
    "interpolation",
    "largest_singular_value",
    "linear_radon",
    "mask",
    "matrix",
    "operator",
    "parabolic_radon",
    "patches",
    "power_iteration",
    "resample",
    "restriction",
    "rfft",
    "stack",
    "wavelet_transform",
]
