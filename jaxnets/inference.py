"""Dense prediction on images of any size, by a network that sees windows of one size: overlapping windows, scales, flips."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets import ops
from jaxnets.types import Array, Float, Int

LIMIT = 2**32  # bytes that the windows and the sums of their probabilities may take, unless the caller says otherwise: 4 GiB


def sliding_window(
    predict: Callable[[Array], Array],
    image: Float[Array | np.ndarray, "*images height width channels"],
    *,
    crop: int,
    overlap: int | float = 1 / 3,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
    batch: int = 1,
    fill: int | float = 0.0,
    probabilities: bool = False,
    limit: int = LIMIT,
) -> Int[Array, "*images height width"] | Float[Array, "*images height width classes"]:
    """The most probable class of each pixel; with `probabilities`, the probability of each class.

    The mean over `scales` (each: the image resized, its probabilities resized back) of the mean over all windows on a pixel of
    `softmax(predict(windows))`; with `flip`, of half that and half the mirror image's. Windows `crop` pixels wide start every
    `crop - floor(overlap crop)` pixels, the last where the image ends. An image smaller than a window is in the middle of one
    that is `fill` elsewhere: the mean color, which is 0 where the images are normalized.

        labels = sliding_window(jax.jit(predict), image, crop=473, scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75), flip=True)

    `predict: [batch, crop, crop, channels] -> [batch, crop, crop, classes]` (logits) is called on that one shape whatever the
    image and the scales, so `jax.jit(predict)` compiles once for each crop. Inside another `jit` the windows are a `lax.scan`:
    one network in the program for each scale, and a program for each image size. Besides the network's own memory there are
    `batch` windows with their probabilities, and the sums of these at one scale and at the image's own size.

    Raises:
      ValueError: an option out of range; an image that isn't floating-point, or is empty; `predict` returning anything but
        logits of the windows' size; more than `limit` bytes needed.
    Source: Zhao et al. (2017), PSPNet, section 5.1, arXiv:1612.01105; windows as in its code.
    """
    image = jnp.asarray(image)
    for name, number in (("crop", crop), ("batch", batch)):
        _require(isinstance(number, int | np.integer) and number >= 1, f"{name} must be a whole number, at least 1", number)
    _require(0 <= overlap < 1, "overlap must be in [0, 1)", overlap)
    _require(len(scales) > 0 and all(0 < s < math.inf for s in scales), "scales must be positive, at least one", tuple(scales))
    _require(image.ndim in (3, 4) and image.size > 0, "image must be [height, width, channels] or a batch", image.shape)
    _require(jnp.issubdtype(image.dtype, jnp.floating), "image must be floating-point, scaled as in training", image.dtype)
    images = image if image.ndim == 4 else image[None]
    count, height, width, channels = images.shape
    sizes = [(max(1, round(scale * height)), max(1, round(scale * width))) for scale in scales]

    windows = jax.ShapeDtypeStruct((batch, crop, crop, channels), image.dtype)
    # Before the network is traced, which may already take memory for its matrices: with one class, in four bytes each.
    least, rule = 4 * batch * crop**2 * (channels + 2), f"windows {windows.shape} must fit into limit={limit} bytes"
    _require(least <= limit, rule, f"at least {least}")
    logits = jax.eval_shape(predict, windows)
    shape = jax.tree.map(jnp.shape, logits)
    fits = isinstance(logits, jax.ShapeDtypeStruct) and shape[:-1] == windows.shape[:-1] and shape[-1] > 0
    _require(fits, f"predict must return logits {windows.shape[:-1]} + (classes,), at least one class", shape)
    classes, dtype = shape[-1], jnp.promote_types(logits.dtype, "float32")
    rooms = [math.prod(_windows(max(crop, n), crop, overlap)[1] for n in size) for size in sizes]
    # Windows, logits, probabilities; a sum and the next one, both at one scale and at the image's own size.
    numbers = batch * crop**2 * (channels + 2 * classes) + 2 * count * (height * width + max(rooms)) * classes
    rule = f"windows {windows.shape} with {classes} classes must fit into limit={limit} bytes"
    needed = numbers * dtype.itemsize
    _require(needed <= limit, rule, f"{needed} bytes for an image of shape {image.shape}, scales {tuple(scales)}")

    def probability(windows):
        p = jax.nn.softmax(predict(windows).astype(dtype))
        return (p + jax.nn.softmax(predict(windows[:, :, ::-1]).astype(dtype))[:, :, ::-1]) / 2 if flip else p

    total = jnp.zeros((count, height, width, classes), dtype)
    for size in sizes:
        p = _of_windows(probability, ops.resize(images, size), total, crop, overlap, batch, fill)
        total = total + ops.resize(p, (height, width))
    result = total / len(sizes) if probabilities else total.argmax(-1).astype("int32")
    return result if image.ndim == 4 else result[0]


def _of_windows(probability, x, like, crop, overlap, batch, fill):
    """The mean probabilities for `x` of all windows on a pixel."""
    count, *size, channels = x.shape
    length = [max(crop, n) for n in size]
    before = [(n - m) // 2 for n, m in zip(length, size, strict=True)]
    (rows, columns), room = zip(*[_windows(n, crop, overlap) for n in length], strict=True)
    pads = [(n, m - n - k, 0) for n, m, k in zip(before, room, size, strict=True)]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    corners = np.array(list(itertools.product(range(count), rows, columns, [0])), "int32")
    steps = math.ceil(len(corners) / batch)
    real = (np.arange(steps * batch) < len(corners)).reshape(steps, batch)
    corners = np.resize(corners, (steps, batch, 4))  # the last batch is filled up with windows that don't count

    def add(total, corners_and_real):
        items = list(zip(*corners_and_real, strict=True))
        windows = [lax.dynamic_slice(x, corner, (1, crop, crop, channels)) for corner, _ in items]
        for (corner, counts), p in zip(items, jnp.split(probability(jnp.concatenate(windows)), batch), strict=True):
            sum_ = lax.dynamic_slice(total, corner, p.shape) + jnp.where(counts, p, 0)
            total = lax.dynamic_update_slice(total, sum_, corner)
        return total, None

    total = jnp.zeros((count, *room, like.shape[-1]), like.dtype)
    if isinstance(total, jax.core.Tracer):  # as all that is computed inside of `jit`
        total, _ = lax.scan(add, total, (corners, real))
    else:  # a scan would compile `predict` again, inside of it, for each size of image
        for item in zip(corners, real, strict=True):
            total, _ = add(total, item)
    cover = np.outer(_cover(rows, room[0], crop), _cover(columns, room[1], crop)).clip(1)
    mean = total / jnp.asarray(cover[None, :, :, None], total.dtype)
    return lax.dynamic_slice(mean, (0, *before, 0), (count, *size, like.shape[-1]))


def _windows(length: int, crop: int, overlap: int | float) -> tuple[list[int], int]:
    """Where the windows on a line start, and the room for as many in steps of one size.

    Images of nearly one size have the same room, and share the small programs that a call outside of `jit` is made of.
    """
    stride = crop - int(overlap * crop)
    starts = [min(start, length - crop) for start in range(0, length - crop + stride, stride)]
    return starts, crop + (len(starts) - 1) * stride


def _cover(starts: list[int], length: int, crop: int) -> np.ndarray:
    """How many windows lie on each pixel of a line."""
    distance = np.arange(length) - np.asarray(starts)[:, None]
    return ((distance >= 0) & (distance < crop)).sum(0)


def _require(condition: bool, rule: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"sliding_window: {rule}, got {value}.")
