"""Bilinear resizing of images `batch height width channels`, as two matrix products."""

import numpy as np

from jaxnets.ops import common
from jaxnets.ops.common import Images, Pair
from jaxnets.types import Array, Float


def resize(x: Images, size: Pair, *, align_corners: bool = False) -> Float[Array, "batch rows columns channels"]:
    """Bilinear interpolation at torch's positions: `(i + 1/2) n / m - 1/2`, or `i (n - 1) / (m - 1)` with `align_corners`.

    No smoothing before shrinking. Positions outside take the border's pixel.

    Raises:
      ValueError: an input that is no batch of floating images, or without pixels; a size below 1.
    """
    common.check_images("resize", x)
    if 0 in x.shape[1:3]:
        raise ValueError(f"resize: an image needs pixels, got {list(x.shape)}.")
    sizes = common.pair("resize", "size", size)
    rows, columns = (_weights(n, m, align_corners) for n, m in zip(x.shape[1:3], sizes, strict=True))
    return x if tuple(sizes) == x.shape[1:3] else common.interpolate(x, rows, columns)


def _weights(length: int, count: int, align_corners: bool) -> np.ndarray:
    """`[count, length]`, each row the two weights of one output."""
    if align_corners:
        place = np.arange(count) * ((length - 1) / max(count - 1, 1))
    else:
        place = np.clip((np.arange(count) + 0.5) * (length / count) - 0.5, 0, None)
    low = np.minimum(np.floor(place).astype(int), length - 1)
    part = place - low
    weights = np.zeros((count, length))
    np.add.at(weights, (np.arange(count), low), 1 - part)
    np.add.at(weights, (np.arange(count), np.minimum(low + 1, length - 1)), part)
    return weights
