"""Random augmentations of a batch of images: pure functions `(key, images, ...) -> images` of the same shape and dtype.

Every image draws its own numbers; they depend on the key and the batch size alone, so the same key moves a segmentation
mask with its image. Usable under jit, vmap and scan; images are `[batch, height, width, channels]`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnets.types import Array, Bool, Float, Key, Shaped

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
