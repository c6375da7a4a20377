"""Augmentations: same shape and dtype, only what the name says changes, and each image draws its own numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxnets.data import augment

# One shape for every test: with jit disabled, each further one costs a compilation of every primitive.
BATCH, HEIGHT, WIDTH = 400, 12, 10
SHAPE = (BATCH, HEIGHT, WIDTH, 2)
IMAGES = np.arange(1, np.prod(SHAPE) + 1, dtype=np.float32).reshape(SHAPE)  # no zero, all pixels differ
TARGETS = np.eye(BATCH, dtype=np.float32)  # one class per image: targets say who was mixed
KEEP_SHAPE = {
    "flip": augment.random_flip,
    "crop": functools.partial(augment.random_crop, padding=2),
    "reflect": functools.partial(augment.random_crop, padding=2, mode="reflect"),
    "erasing": augment.random_erasing,
    "composed": augment.compose(augment.random_flip, augment.random_erasing),
}
MIXES = {"mixup": augment.mixup, "cutmix": augment.cutmix}


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
@pytest.mark.parametrize("name", KEEP_SHAPE)
def test_shape_and_dtype_follow_the_images(name, dtype, key):
    out = jax.eval_shape(KEEP_SHAPE[name], key, jax.ShapeDtypeStruct(SHAPE, dtype))
    assert (out.shape, out.dtype) == (SHAPE, dtype)


@pytest.mark.parametrize("name", KEEP_SHAPE)
def test_one_key_gives_one_answer_compiled_or_not_and_another_key_another(name, key):
    run = jax.jit(KEEP_SHAPE[name])
    out = run(key, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(out, KEEP_SHAPE[name](key, jnp.asarray(IMAGES)))
    assert not np.array_equal(out, run(jax.random.key(1), jnp.asarray(IMAGES)))


@pytest.mark.parametrize("name", KEEP_SHAPE)
def test_the_same_key_moves_a_mask_with_its_image(name, key):
    """The numbers drawn depend on the key and the batch size alone: a mask may have another dtype."""
    moved = KEEP_SHAPE[name](key, jnp.asarray(IMAGES))
    mask = KEEP_SHAPE[name](key, jnp.asarray(IMAGES.astype(np.int32)))
    np.testing.assert_array_equal(moved, mask)


def test_augmentations_run_in_scan_and_vmap(key):
    keys, stacked = jax.random.split(key, 2), jnp.asarray(np.stack([IMAGES, IMAGES + 1]))
    run = KEEP_SHAPE["composed"]
    _, scanned = jax.lax.scan(lambda carry, step: (carry, run(*step)), 0, (keys, stacked))
    np.testing.assert_array_equal(scanned, jax.jit(jax.vmap(run))(keys, stacked))
    np.testing.assert_array_equal(scanned[1], run(keys[1], stacked[1]))


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_flip_mirrors_the_share_of_images_asked_for(probability, key):
    out = np.asarray(augment.random_flip(key, jnp.asarray(IMAGES), probability=probability))
    mirrored = (out == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (out == IMAGES).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    # Five standard deviations; none at 0 and 1.
    assert abs(mirrored.mean() - probability) <= 5 * np.sqrt(probability * (1 - probability) / BATCH)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_a_crop_is_a_window_of_the_padded_image_and_every_window_comes(mode, key):
    out = np.asarray(augment.random_crop(key, jnp.asarray(IMAGES), padding=1, mode=mode))
    wide = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    windows = [wide[:, i : i + HEIGHT, j : j + WIDTH] for i in range(3) for j in range(3)]
    same = np.stack([(out == window).all(axis=(1, 2, 3)) for window in windows], axis=1)
    assert (same.sum(axis=1) == 1).all()
    # Chi-square, 8 degrees of freedom, 99.99 % quantile 32.
    assert ((same.sum(axis=0) - BATCH / 9) ** 2 / (BATCH / 9)).sum() < 32


def test_no_padding_is_the_identity(key):
    np.testing.assert_array_equal(augment.random_crop(key, jnp.asarray(IMAGES), padding=0), IMAGES)


def erased_boxes(out, value):
    """Where `value` was set, and the height and width of that place; it must be a full rectangle in every image."""
    hit = (np.asarray(out) == value).all(axis=-1)
    height, width = hit.any(axis=2).sum(axis=1), hit.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hit.sum(axis=(1, 2)), height * width)
    return hit, height, width


def test_erasing_sets_one_rectangle_with_the_area_and_aspect_asked_for(key):
    options = {"probability": 1.0, "area": (0.2, 0.5), "aspect": (0.6, 1.5), "value": -7.0}
    out = augment.random_erasing(key, jnp.asarray(IMAGES), **options)
    hit, height, width = erased_boxes(out, -7.0)
    np.testing.assert_array_equal(np.asarray(out)[~hit], IMAGES[~hit])
    share, aspect = height * width / (HEIGHT * WIDTH), height / width
    assert ((share > 0.2 * 0.75) & (share < 0.5 * 1.3)).all()  # each side is rounded to whole pixels
    assert ((aspect > 0.6 * 0.75) & (aspect < 1.5 * 1.3)).all()
    assert abs(share.mean() - 0.35) < 0.02
    assert share.std() == pytest.approx(0.3 / np.sqrt(12), abs=0.01)
    assert abs(np.log(aspect).mean() - np.log(0.6 * 1.5) / 2) < 0.06
    assert hit.any(axis=0).all()  # it reaches every place, the corners included


def test_erasing_cuts_extreme_rectangles_to_fit_and_respects_the_probability(key):
    out = augment.random_erasing(key, jnp.asarray(IMAGES), probability=0.25, area=(1.0, 1.0), aspect=(30.0, 30.0))
    _, height, width = erased_boxes(out, 0.0)
    assert set(zip(height.tolist(), width.tolist(), strict=True)) == {(0, 0), (HEIGHT, 2)}
    assert abs((height > 0).mean() - 0.25) < 5 * np.sqrt(0.1875 / BATCH)


@pytest.mark.parametrize("name", MIXES)
def test_mixed_targets_are_distributions_over_an_image_and_its_neighbor(name, key, jit):
    images, targets = jit(MIXES[name])(key, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
    assert images.shape == SHAPE
    lam = np.diag(targets)
    np.testing.assert_allclose(targets, lam[:, None] * TARGETS + (1 - lam)[:, None] * np.roll(TARGETS, 1, 0), atol=1e-6)
    assert ((lam >= 0) & (lam <= 1)).all()
    assert len(np.unique(lam)) > 20


def test_mixup_mixes_images_as_it_mixes_targets(key):
    images, targets = augment.mixup(key, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
    lam = np.diag(targets)[:, None, None, None]
    np.testing.assert_allclose(images, lam * IMAGES + (1 - lam) * np.roll(IMAGES, 1, axis=0), rtol=1e-4)


def test_cutmix_counts_the_pixels_that_each_image_gave(key):
    images, targets = augment.cutmix(key, jnp.asarray(IMAGES), jnp.asarray(TARGETS))
    own = (np.asarray(images) == IMAGES).all(axis=-1)
    pasted = (np.asarray(images) == np.roll(IMAGES, 1, axis=0)).all(axis=-1)
    assert (own ^ pasted).all()
    np.testing.assert_allclose(np.diag(targets), own.mean(axis=(1, 2)), atol=1e-6)
    rows, columns = pasted.any(axis=2).sum(axis=1), pasted.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(pasted.sum(axis=(1, 2)), rows * columns)
    assert pasted.any(axis=0).all()


@pytest.mark.parametrize("alpha", [0.02, 0.4, 1.0, 30.0])
def test_mixing_weights_follow_the_beta_distribution(alpha, key):
    """Kolmogorov-Smirnov against scipy. At alpha 0.02 half of the mass is within 1e-16 of 0 or 1, one step of float32."""
    _, targets = augment.mixup(key, jnp.asarray(IMAGES), jnp.asarray(TARGETS), alpha=alpha)
    lam = np.sort(np.diag(targets).astype(np.float64))
    reference = scipy.stats.beta(alpha, alpha).cdf
    inner = lam[(lam > 1e-6) & (lam < 1 - 1e-6)]
    below = np.searchsorted(lam, inner) / BATCH
    assert len(inner) > 5
    assert np.abs(below - reference(inner)).max() < 1.95 / np.sqrt(BATCH)  # 99.9 %


@pytest.mark.parametrize("name", MIXES)
def test_mixing_follows_the_dtype(name, key):
    like = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16), jax.ShapeDtypeStruct(TARGETS.shape, jnp.float32)
    images, targets = jax.eval_shape(MIXES[name], key, *like)
    assert (images.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key, x: augment.random_crop(key, x, padding=10), r"random_crop: padding must be in 0\.\.9 .*got 10"),
        (lambda key, x: augment.random_crop(key, x, padding=-1), "padding must be .*got -1"),
        (lambda key, x: augment.random_crop(key, x, mode="wrap"), "mode must be 'constant' or 'reflect', got 'wrap'"),
        (lambda key, x: augment.random_erasing(key, x, area=(0.5, 0.1)), r"area in .*got \(0.5, 0.1\)"),
        (lambda key, x: augment.random_erasing(key, x, aspect=(0.0, 1.0)), r"aspect > 0 .*\(0.0, 1.0\)"),
        (lambda key, x: augment.mixup(key, x, jnp.asarray(TARGETS), alpha=0.0), "mixup: alpha must be positive, got 0.0"),
    ],
)
def test_impossible_options_are_named(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key, jnp.asarray(IMAGES))
