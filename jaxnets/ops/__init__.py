"""Operations on images, `batch height width channels`: one meaning each, the fastest formulation per platform."""

from jaxnets.ops.convolution import convolution
from jaxnets.ops.pooling import adaptive_average_pool, adaptive_max_pool, average_pool, max_pool
from jaxnets.ops.resize import resize
from jaxnets.ops.transposed import bilinear_kernel, bilinear_upsample, transposed_convolution

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "bilinear_kernel",
    "bilinear_upsample",
    "convolution",
    "max_pool",
    "resize",
    "transposed_convolution",
]
