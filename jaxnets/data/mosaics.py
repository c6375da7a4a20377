"""Mosaics of real textures with exact labels: a segmentation set that needs no download.

The textures are eight photographs inside the scikit-image wheel. An image is a random Voronoi partition; each region shows
a random window of one photograph, at a random scale, contrast and brightness, so that one pixel's color says little:
guessing the most frequent class of each of 4,096 colors, counted in `make(400)`, reaches an accuracy of 0.46 and a mean IoU
of 0.32 on `make(200, part="test")`.
"""

import functools
import pathlib

import numpy as np

from jaxnets.data import batches, files, images
from jaxnets.types import Float, InputError

FILES = {
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "page": "page.png",
    "text": "text.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "moon": "moon.png",
}
CLASSES = tuple(FILES)
# (rows, columns) of a photograph, as shares of its height and width; "fit" and "validation" divide "train".
PARTS = {
    "train": ((0, 1 / 2), (0, 1)),
    "fit": ((0, 1 / 2), (0, 3 / 4)),
    "validation": ((0, 1 / 2), (3 / 4, 1)),
    "test": ((1 / 2, 1), (0, 1)),
}
REGIONS = (3, 6)  # of an image, each of another class
SCALE = (0.8, 1.25)  # magnification, log-uniform
CONTRAST = (0.8, 1.2)  # about the middle gray, uniform
BRIGHTNESS = (-0.1, 0.1)  # added, uniform


def make(count: int, *, size: int = 96, seed: int = 0, part: str = "train") -> batches.Dataset:
    """`count` mosaics `x` [example, size, size, 3] in [0, 1] and the class of every pixel, `y` [example, size, size].

    A pure function of `seed` and `part`, its first examples the same for every count. `train` shows the upper halves of the
    photographs, `test` the lower ones; to choose by, `fit` shows the left 3/4 of the upper halves and `validation` the rest,
    which share no pixel either. Class i is `CLASSES[i]`.

    Raises:
      InputError: `count` or `size` below 1, another part, seed out of range, scikit-image or a photograph missing.
    """
    if count < 1 or size < 1:
        raise InputError(f"make: count and size must be at least 1, got {count}, {size}.")
    if part not in PARTS:
        raise InputError(f"make: part must be one of {', '.join(PARTS)}, got {part!r}.")
    if not 0 <= seed < 2**64:
        raise InputError(f"make: seed must be in 0..2**64-1, got {seed}.")
    photographs = [_photograph(name, part) for name in CLASSES]
    key = np.array([seed, list(PARTS).index(part)], np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key)).random((count, 9, len(CLASSES)))
    x, y = np.empty((count, size, size, 3), np.float32), np.empty((count, size, size), np.int32)
    for image, labels, draw in zip(x, y, draws, strict=True):
        _draw(image, labels, draw, photographs)
    return batches.Dataset(x, y)


def _draw(image: np.ndarray, labels: np.ndarray, draw: np.ndarray, photographs: list[np.ndarray]) -> None:
    """Fills one image and its labels from uniform numbers in [0, 1): nine of each class."""
    site_row, site_column, rank, scale, top, left, contrast, brightness, number = draw
    shown = np.argsort(rank)[: int(REGIONS[0] + number[0] * (REGIONS[1] - REGIONS[0] + 1))]
    rows, columns = np.indices(labels.shape)
    sites = len(labels) * np.stack([site_row, site_column])[:, shown, None, None]
    labels[:] = shown[np.argmin((rows - sites[0]) ** 2 + (columns - sites[1]) ** 2, axis=0)]
    for label in shown:
        photograph, region = photographs[label], labels == label
        if not region.any():
            continue
        zoom = SCALE[0] * (SCALE[1] / SCALE[0]) ** scale[label]
        down, right = ((axis[region] - axis[region].min()) / zoom for axis in (rows, columns))
        down += top[label] * max(photograph.shape[0] - 1 - down.max(), 0)
        right += left[label] * max(photograph.shape[1] - 1 - right.max(), 0)
        gain = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast[label]
        offset = 0.5 + BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * brightness[label]
        image[region] = np.clip((_bilinear(photograph, down, right) - 0.5) * gain + offset, 0, 1)


def _bilinear(photograph: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values between pixels, of a photograph that goes on as its mirror image beyond its border."""
    (top, below, down), (left, right, across) = map(_neighbors, (rows, columns), photograph.shape)
    upper = photograph[top, left] * (1 - across) + photograph[top, right] * across
    lower = photograph[below, left] * (1 - across) + photograph[below, right] * across
    return upper * (1 - down) + lower * down


def _neighbors(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    position = length - 1 - abs(position % (2 * length - 2) - (length - 1))
    below = np.minimum(position.astype(int), length - 2)
    return below, below + 1, (position - below)[:, None].astype(np.float32)


@functools.cache
def _photograph(name: str, part: str) -> Float[np.ndarray, "height width 3"]:
    # Read from the wheel's folder: `skimage.data` would download what a release has moved out of it.
    folder = pathlib.Path(files.optional("skimage", "scikit-image").__file__).parent / "data"
    pixels = images.unit(np.asarray(images.open_picture(folder / FILES[name], "RGB")))
    window = (
        slice(*(round(share * length) for share in shares)) for shares, length in zip(PARTS[part], pixels.shape, strict=False)
    )
    return pixels[tuple(window)]
