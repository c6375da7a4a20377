"""Matrix-free linear operators as plain data: `A(x)`, `A.adjoint(y)`, `A @ B`, `A + B`, `2 * A`."""

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
