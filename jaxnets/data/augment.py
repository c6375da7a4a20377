"""Random augmentations of a batch of images: pure functions `(key, images, ...) -> images` of the same shape and dtype.

Every image draws its own numbers; they depend on the key and the batch size alone, so the same key moves a segmentation
mask with its image. Usable under jit, vmap and scan; images are `[batch, height, width, channels]`. For segmentation,

    images, labels = augment.random_affine(geometry, images, labels, size=(160, 160), scale=(0.5, 2.0), rotation=10.0)
    images = augment.compose(augment.random_color, augment.random_blur)(tones, images)
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Bool, Float, Integer, Key, Shaped

Images = Shaped[Array, "batch height width channels"]


def compose(*augmentations: Callable[[Key[Array, ""], Images], Images]) -> Callable[[Key[Array, ""], Images], Images]:
    """One augmentation that applies the given ones in order, each with its own key.

    `compose(random_flip, functools.partial(random_crop, padding=2))`.
    """

    def composed(key: Key[Array, ""], images: Images) -> Images:
        for i, augmentation in enumerate(augmentations):
            images = augmentation(jax.random.fold_in(key, i), images)
        return images

    return composed


def random_flip(key: Key[Array, ""], images: Images, *, probability: float = 0.5) -> Images:
    """Mirrors each image left to right with `probability`."""
    flipped = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_crop(key: Key[Array, ""], images: Images, *, padding: int = 4, mode: str = "constant") -> Images:
    """Pads each side by `padding` (`mode` "constant" for zeros, or "reflect") and crops to the old size at random.

    Source: He et al. (2016), section 4.2, arXiv:1512.03385.
    """
    batch, *shape = images.shape
    if not 0 <= padding < min(shape[:2]):
        raise ValueError(f"random_crop: padding must be in 0..{min(shape[:2]) - 1} (the image), got {padding}.")
    if mode not in ("constant", "reflect"):
        raise ValueError(f"random_crop: mode must be 'constant' or 'reflect', got {mode!r}.")
    wide = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(wide, corners)


def random_erasing(
    key: Key[Array, ""],
    images: Images,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.33),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    value: float = 0.0,
) -> Images:
    """Sets a random rectangle of each image to `value` with `probability`.

    Its share of the image is uniform in `area`, height / width log-uniform in `aspect` (cut to fit the image).

    Source: Zhong et al. (2020), algorithm 1, arXiv:1708.04896; log-uniform aspect, so that both orientations are equal.
    """
    if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"random_erasing: area in (0, 1] and aspect > 0 must be (low, high), got {area}, {aspect}.")
    batch, height, width, _ = images.shape
    erase_key, area_key, aspect_key, corner_key = jax.random.split(key, 4)
    erased = jax.random.bernoulli(erase_key, probability, (batch,))
    pixels = height * width * jax.random.uniform(area_key, (batch,), minval=area[0], maxval=area[1])
    ratio = jnp.exp(jax.random.uniform(aspect_key, (batch,), minval=math.log(aspect[0]), maxval=math.log(aspect[1])))
    size = jnp.stack([jnp.sqrt(pixels * ratio), jnp.sqrt(pixels / ratio)], axis=1)
    size = jnp.clip(jnp.rint(size).astype(int), 1, jnp.array([height, width])[None])
    corner = jax.random.randint(corner_key, (batch, 2), 0, jnp.array([height, width])[None] - size + 1)
    inside = _rectangle(corner, corner + size, height, width) & erased[:, None, None]
    return jnp.where(inside[..., None], jnp.asarray(value, images.dtype), images)


def random_affine(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    labels: Integer[Array, "batch height width"],
    *,
    size: tuple[int, int] | None = None,
    scale: tuple[int | float, int | float] = (1, 1),
    rotation: int | float = 0,
    flip: int | float = 0.5,
    void: int = 255,
) -> tuple[Float[Array, "batch rows columns channels"], Integer[Array, "batch rows columns"]]:
    """Scales, rotates, mirrors and crops each image together with its labels, in one resampling.

    The magnification is log-uniform in `scale`, the angle uniform in +-`rotation` (degrees), `flip` the probability of a left
    to right mirror image. The crop of `size` (rows, columns; None: the image's) lies anywhere in the scaled image, or anywhere
    around it where that is smaller. Images are bilinear, labels nearest and never mixed; outside is `void`, in the image's
    mean color. Without scale and rotation the crop is a window of the pixels themselves.

    Raises:
      ValueError: labels of another size than the images; an option out of range.
    Source: Zhao et al. (2017), section 5.1, arXiv:1612.01105, with the crops of the authors' code.
    """
    batch, *shape, _ = images.shape
    if labels.shape != images.shape[:3]:
        raise ValueError(f"random_affine: labels must be {list(images.shape[:3])} as the images are, got {list(labels.shape)}.")
    rows, columns = shape if size is None else size
    if min(rows, columns) < 1:
        raise ValueError(f"random_affine: size must be (rows, columns), at least 1 each, got {size}.")
    if not 0 < scale[0] <= scale[1] < math.inf or rotation < 0 or not 0 <= flip <= 1:
        got = f"{scale}, {rotation}, {flip}"
        raise ValueError(f"random_affine: expected 0 < low <= high scale, rotation >= 0, flip in 0..1, got {got}.")
    scale_key, angle_key, flip_key, place_key = jax.random.split(key, 4)
    zoom = jnp.exp(jax.random.uniform(scale_key, (batch,), minval=math.log(scale[0]), maxval=math.log(scale[1])))
    angle = jnp.radians(rotation * jax.random.uniform(angle_key, (batch,), minval=-1.0))
    mirror = jnp.where(jax.random.bernoulli(flip_key, float(flip), (batch,)), -1, 1)
    cosine, sine = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    matrix = jnp.stack([cosine, sine, -sine * mirror, cosine * mirror], axis=1).reshape(batch, 2, 2)
    # Whole steps from one end of the room to the other: at scale 1 they end on pixels.
    room = jnp.floor(abs(jnp.array(shape)[None] - jnp.array([[rows, columns]]) / zoom[:, None]))
    shift = jnp.floor(jax.random.uniform(place_key, (batch, 2)) * (room + 1)) - room / 2
    return jax.vmap(functools.partial(_resampled, size=(rows, columns), void=void))(images, labels, matrix, shift)


def random_color(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    *,
    brightness: int | float = 0.25,
    contrast: int | float = 0.25,
    saturation: int | float = 0.25,
    hue: int | float = 10,
) -> Float[Array, "batch height width channels"]:
    """Changes the brightness, contrast, saturation and hue of each image in [0, 1] at random, and cuts to [0, 1].

    The first three are factors, uniform in 1 +- the given share: of the values, of their distance from the image's mean, and
    of that from gray, the mean of the channels. The color turns about the gray axis, uniform in +-`hue` (degrees).
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"random_color: images must have 1 or 3 channels, got {images.shape[-1]}.")
    if min(brightness, contrast, saturation, hue) < 0 or max(brightness, contrast, saturation) > 1:
        got = f"{brightness}, {contrast}, {saturation}, {hue}"
        raise ValueError(f"random_color: brightness, contrast and saturation must be in 0..1, hue at least 0, got {got}.")
    shares = jnp.array([brightness, contrast, saturation, math.radians(hue)], images.dtype)
    draws = shares[:, None, None, None, None] * jax.random.uniform(key, (4, len(images), 1, 1, 1), images.dtype, minval=-1)
    # Changes are added to the image, so that no change leaves every bit.
    images += draws[0] * images
    images += draws[1] * (images - images.mean(axis=(1, 2, 3), keepdims=True))
    unit = jnp.eye(images.shape[-1], dtype=images.dtype)
    across = (jnp.roll(unit, 1, axis=1) - jnp.roll(unit, -1, axis=1)) / math.sqrt(3)
    turned = (1 + draws[2]) * jnp.cos(draws[3]), (1 + draws[2]) * jnp.sin(draws[3])
    change = (turned[0] - 1) * (unit - unit.mean())[None, None] + turned[1] * across[None, None]  # Rodrigues, about (1, 1, 1)
    images += sum(images[..., i, None] * change[:, :, i, None] for i in range(len(unit)))
    return jnp.clip(images, 0, 1)


def random_blur(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    *,
    probability: int | float = 0.5,
    sigma: tuple[int | float, int | float] = (0.1, 1.5),
) -> Float[Array, "batch height width channels"]:
    """Blurs each image with `probability` by a Gaussian of standard deviation uniform in `sigma` (pixels).

    The kernel ends at three times the largest; beyond the border the nearest pixel goes on.
    """
    if not 0 < sigma[0] <= sigma[1]:
        raise ValueError(f"random_blur: sigma must be 0 < low <= high, got {sigma}.")
    blur_key, sigma_key = jax.random.split(key)
    radius = math.ceil(3 * sigma[1])
    width = jax.random.uniform(sigma_key, (1, len(images)), minval=sigma[0], maxval=sigma[1])
    taps = jax.nn.softmax(-((jnp.arange(-radius, radius + 1)[:, None] / width) ** 2) / 2, axis=0).astype(images.dtype)
    blurred = images
    for axis in (1, 2):
        wide = jnp.pad(blurred, [(radius * (i == axis),) * 2 for i in range(4)], mode="edge")
        shifted = (jax.lax.slice_in_dim(wide, i, i + images.shape[axis], axis=axis) for i in range(2 * radius + 1))
        blurred = sum(tap[:, None, None, None] * part for tap, part in zip(taps, shifted, strict=True))
    chosen = jax.random.bernoulli(blur_key, float(probability), (len(images), 1, 1, 1))
    return jnp.where(chosen, blurred, images)


def mixup(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    *,
    alpha: float = 0.2,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Mixes each image and its target distribution with its neighbor's: `lam a + (1 - lam) b`, `lam ~ Beta(alpha, alpha)`.

    The neighbor is the previous example of the batch: in a shuffled batch a random partner, at no cost. Targets are
    probabilities (`jax.nn.one_hot` of labels), for a cross entropy that takes distributions.

    Source: Zhang et al. (2018), eq. 1, arXiv:1710.09412; here one lam per example.
    """
    lam = _mixing(key, "mixup", alpha, images)
    return _mix(lam[:, None, None, None], images), _mix(lam[:, None], targets)


def cutmix(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    *,
    alpha: float = 1.0,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Pastes a rectangle of the neighbor into each image; targets mix by the pixels that each gave.

    The rectangle has the image's proportions and the area share `1 - lam`, `lam ~ Beta(alpha, alpha)`, around a uniform
    center, cut at the border. Neighbor and targets as in `mixup`.

    Source: Yun et al. (2019), eq. 1-2, arXiv:1905.04899; here one lam per example.
    """
    batch, height, width, _ = images.shape
    lam_key, center_key = jax.random.split(key)
    size = jnp.array([height, width])[None]
    half = jnp.sqrt(1 - _mixing(lam_key, "cutmix", alpha, images))[:, None] * size / 2
    center = jax.random.uniform(center_key, (batch, 2)) * size
    pasted = _rectangle(jnp.rint(center - half), jnp.rint(center + half), height, width)
    kept = 1 - jnp.mean(pasted, axis=(1, 2))
    return jnp.where(pasted[..., None], jnp.roll(images, 1, axis=0), images), _mix(kept[:, None], targets)


def _resampled(
    image: Float[Array, "height width channels"],
    labels: Integer[Array, "height width"],
    matrix: Float[Array, "2 2"],
    shift: Float[Array, "2"],
    *,
    size: tuple[int, int],
    void: int,
) -> tuple[Float[Array, "rows columns channels"], Integer[Array, "rows columns"]]:
    """The crop whose pixel at `p` from its center shows the image's point at `matrix p + shift` from the image's center."""
    height, width = labels.shape
    down, right = jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    # Row by row of the matrix: arrays of both coordinates would cost the CPU 1.5 times as much.
    y = matrix[0, 0] * down + matrix[0, 1] * right + shift[0] + (height - 1) / 2
    x = matrix[1, 0] * down + matrix[1, 1] * right + shift[1] + (width - 1) / 2
    row, column = jnp.floor(y + 0.5).astype(int), jnp.floor(x + 0.5).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    top, left = jnp.floor(y).astype(int), jnp.floor(x).astype(int)
    below, beside = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    lower, across = (y - top)[..., None], (x - left)[..., None]
    pixels = (image[top, left] * (1 - across) + image[top, beside] * across) * (1 - lower)
    pixels += (image[below, left] * (1 - across) + image[below, beside] * across) * lower
    fill = image.mean(axis=(0, 1))[None, None]
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    return jnp.where(inside[..., None], pixels.astype(image.dtype), fill), jnp.where(inside, labels[row, column], void)


def _mixing(key: Key[Array, ""], name: str, alpha: float, images: Array) -> Float[Array, " batch"]:
    """One draw of Beta(alpha, alpha) per image, in closed form; `jax.random.beta` rejects in a loop, draw by draw without jit.

    `(1 + T / sqrt(n + T^2)) / 2` of a Student variable T with n = 2 alpha degrees of freedom, itself by the polar method.

    Source: Bailey (1994), Math. Comp. 62(206); Devroye (1996), Random variate generation in one line of code.
    """
    if not alpha > 0:
        raise ValueError(f"{name}: alpha must be positive, got {alpha}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name}: images must be floating, got {images.dtype}.")
    uniform, turn = jax.random.uniform(key, (2, images.shape[0]))
    log_radius, cosine = jnp.log1p(-uniform) / alpha, jnp.cos(2 * jnp.pi * turn)
    share = -jnp.expm1(log_radius) * cosine**2
    return (1 + jnp.sign(cosine) * jnp.sqrt(share / (jnp.exp(log_radius) + share))) / 2


def _mix(lam: Float[Array, "batch ..."], values: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    lam = lam.astype(values.dtype)
    return lam * values + (1 - lam) * jnp.roll(values, 1, axis=0)


def _rectangle(
    start: Shaped[Array, "batch 2"], stop: Shaped[Array, "batch 2"], height: int, width: int
) -> Bool[Array, "batch {height} {width}"]:
    """True on rows start[:, 0]..stop[:, 0]-1 and columns start[:, 1]..stop[:, 1]-1."""
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    inside_rows = (rows >= start[:, :1]) & (rows < stop[:, :1])
    inside_columns = (columns >= start[:, 1:]) & (columns < stop[:, 1:])
    return inside_rows[:, :, None] & inside_columns[:, None, :]
