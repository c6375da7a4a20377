"""Augmentations for segmentation: image and labels move as one, labels are never mixed, outside is void."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.ndimage

from jaxnets.data import augment

# One shape for every test: with jit disabled, each further one costs a compilation of every primitive.
BATCH, HEIGHT, WIDTH = 200, 12, 10
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(0.3, 0.7, (BATCH, HEIGHT, WIDTH, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 7, (BATCH, HEIGHT, WIDTH)), jnp.int32)
ROWS, COLUMNS = np.indices((HEIGHT, WIDTH)).astype(np.float32)
# Bilinear interpolation of a linear ramp is exact: these images say which point every pixel shows.
PLACES = jnp.asarray(np.tile(np.stack([ROWS, COLUMNS, 0 * ROWS], axis=-1), (BATCH, 1, 1, 1)))
UNCHANGED = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
ANY = functools.partial(augment.random_affine, scale=(0.5, 2.0), rotation=30.0)


def affine(key, images=IMAGES, labels=LABELS, **options):
    """Compiled in every mode; where a test takes the fixture `jit`, the same runs operation by operation."""
    with jax.disable_jit(False):
        out = jax.jit(functools.partial(augment.random_affine, **options))(key, jnp.asarray(images), jnp.asarray(labels))
    return tuple(np.asarray(part) for part in out)


def shown(key, **options):
    """Row and column of the point that every pixel shows, where it lies between the centers of pixels, else NaN."""
    places, labels = affine(key, PLACES, **options)
    row, column = places[..., 0], places[..., 1]
    between = (labels != 255) & (row > 0) & (row < HEIGHT - 1) & (column > 0) & (column < WIDTH - 1)
    return np.where(between, row, np.nan), np.where(between, column, np.nan)


# --- affine --------------------------------------------------------------------------------------------------------


def test_nothing_asked_for_is_the_identity_bit_for_bit(key, jit):
    images, labels = jit(functools.partial(augment.random_affine, flip=0))(key, IMAGES, LABELS)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_flip_is_the_mirror_image_and_its_own_inverse(key):
    once = affine(key, flip=1)
    np.testing.assert_array_equal(once[0], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(once[1], LABELS[:, :, ::-1])
    np.testing.assert_array_equal(affine(key, *once, flip=1)[0], IMAGES)
    flipped = (affine(key)[1] == LABELS[:, :, ::-1]).all(axis=(1, 2))
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(BATCH)


def test_labels_move_with_their_image_and_are_never_mixed(key, jit):
    """The label of every pixel is that of the pixel nearest to the point which the image shows there."""
    places, labels = map(np.asarray, jit(ANY)(key, PLACES, LABELS))
    row, column = places[..., 0], places[..., 1]
    inside = labels != 255
    clear = inside & (abs(row % 1 - 0.5) > 1e-3) & (abs(column % 1 - 0.5) > 1e-3)  # no tie between two pixels
    example = np.indices(labels.shape)[0]
    nearest = np.asarray(LABELS)[example[clear], np.rint(row[clear]).astype(int), np.rint(column[clear]).astype(int)]
    np.testing.assert_array_equal(labels[clear], nearest)
    assert clear.sum() > 0.4 * labels.size
    # Outside is the mean of each image: here of its rows and columns.
    np.testing.assert_allclose(
        places[~inside], np.tile([(HEIGHT - 1) / 2, (WIDTH - 1) / 2, 0], ((~inside).sum(), 1)), rtol=1e-6
    )
    assert (~inside).mean() > 0.1


def test_scale_rotation_and_flip_are_one_similarity_with_the_ranges_asked_for(key):
    row, column = shown(key, scale=(1.25, 2.5), rotation=40)
    jacobian = np.array(
        [[np.nanmean(np.diff(place, axis=axis), axis=(1, 2)) for axis in (1, 2)] for place in (row, column)]
    ).transpose(2, 0, 1)
    steps = np.diff(row, axis=1)
    assert np.nanmax(np.nanmax(steps, axis=(1, 2)) - np.nanmin(steps, axis=(1, 2))) < 1e-5  # the same at every pixel
    zoom = np.abs(np.linalg.det(jacobian)) ** -0.5
    np.testing.assert_allclose(jacobian @ jacobian.mT, np.eye(2) / zoom[:, None, None] ** 2, atol=1e-5)
    assert 1.25 - 1e-4 < zoom.min() < 1.28
    assert 2.4 < zoom.max() < 2.5 + 1e-4
    assert abs(np.log(zoom).mean() - np.log(1.25 * 2.5) / 2) < 0.025  # log-uniform; uniform would give 0.040
    angle = np.degrees(np.arctan2(jacobian[:, 0, 1], jacobian[:, 0, 0]))
    assert -40 < angle.min() < -37
    assert 37 < angle.max() < 40
    assert abs((np.linalg.det(jacobian) < 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(BATCH)
    assert abs(np.corrcoef(angle, zoom)[0, 1]) < 0.25


def test_magnification_is_the_usual_bilinear_resize(key):
    size = (2 * HEIGHT, 2 * WIDTH)
    images, labels = affine(key, size=size, scale=(2, 2), flip=0)
    np.testing.assert_allclose(images, jax.image.resize(IMAGES, (BATCH, *size, 3), "bilinear"), atol=1e-5)
    np.testing.assert_array_equal(labels, np.asarray(LABELS).repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("size", [(HEIGHT - 2, WIDTH - 2), (HEIGHT + 2, WIDTH + 2), (HEIGHT - 2, WIDTH + 2)])
def test_a_crop_is_a_window_of_the_pixels_and_every_window_comes(size, key):
    images, labels = affine(key, size=size, flip=0)
    wide = np.pad(LABELS, ((0, 0), (2, 2), (2, 2)), constant_values=255)
    rows, columns = (range(2, 5) if crop < side else range(3) for crop, side in zip(size, (HEIGHT, WIDTH), strict=True))
    windows = [(slice(i, i + size[0]), slice(j, j + size[1])) for i in rows for j in columns]
    same = np.stack([(labels == wide[:, *window]).all(axis=(1, 2)) for window in windows], axis=1)
    assert (same.sum(axis=1) == 1).all()
    # Chi-square, 8 degrees of freedom, 99.99 % quantile 32.
    assert ((same.sum(axis=0) - BATCH / 9) ** 2 / (BATCH / 9)).sum() < 32
    fill = np.asarray(IMAGES.mean(axis=(1, 2)))
    filled = np.broadcast_to(fill[:, None, None], (BATCH, HEIGHT + 4, WIDTH + 4, 3)).copy()
    filled[:, 2:-2, 2:-2] = IMAGES
    expected = np.stack([filled[i][windows[chosen]] for i, chosen in enumerate(same.argmax(axis=1))])
    np.testing.assert_allclose(images, expected, rtol=1e-6)
    np.testing.assert_array_equal(images[labels != 255], expected[labels != 255])


def test_a_crop_that_fits_into_the_scaled_image_shows_nothing_else(key):
    _, labels = affine(key, size=(9, 7), scale=(0.75, 2.0))
    assert (labels != 255).all()
    _, labels = affine(key, scale=(0.4, 0.9), void=9)
    inside = (labels != 9).sum(axis=(1, 2))
    assert (labels != 255).all()
    assert (inside < HEIGHT * WIDTH * 0.92).all()
    assert (inside > HEIGHT * WIDTH * 0.4**2 * 0.6).all()


# --- tones ---------------------------------------------------------------------------------------------------------


def test_unchanged_tones_leave_every_bit(key, jit):
    np.testing.assert_array_equal(jit(functools.partial(augment.random_color, **UNCHANGED))(key, IMAGES), IMAGES)
    np.testing.assert_array_equal(jit(functools.partial(augment.random_blur, probability=0))(key, IMAGES), IMAGES)


def color(key, **change):
    return np.asarray(jax.jit(functools.partial(augment.random_color, **UNCHANGED | change))(key, IMAGES), np.float64)


def uniform(values, low, high):
    """Within the bounds, near both, and centered: 200 draws of a uniform distribution."""
    span = high - low
    assert low - 1e-3 * span < values.min() < low + 0.05 * span
    assert high - 0.05 * span < values.max() < high + 1e-3 * span
    assert abs(values.mean() - (low + high) / 2) < 0.1 * span


def test_brightness_scales_the_values(key):
    ratio = color(key, brightness=0.4) / np.asarray(IMAGES, np.float64)
    assert np.ptp(ratio, axis=(1, 2, 3)).max() < 1e-5
    uniform(ratio[:, 0, 0, 0], 0.6, 1.4)


def test_contrast_scales_the_distance_from_the_mean(key):
    out, images = color(key, contrast=0.4), np.asarray(IMAGES, np.float64)
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), atol=1e-6)
    share = out.std(axis=(1, 2, 3)) / images.std(axis=(1, 2, 3))
    center = images.mean(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(out - center, share[:, None, None, None] * (images - center), atol=1e-6)
    uniform(share, 0.6, 1.4)


def chroma(images):
    """Gray, and the color around it as a complex number in the plane across (1, 1, 1)."""
    turn = np.exp(2j * np.pi * np.arange(3) / 3)
    return images.mean(axis=-1), images @ turn


def test_saturation_scales_and_hue_turns_the_color_around_its_gray(key):
    gray, before = chroma(np.asarray(IMAGES, np.float64))
    for change, ratio_of in (({"saturation": 0.4}, np.abs), ({"hue": 60}, np.angle)):
        gray_after, after = chroma(color(key, **change))
        np.testing.assert_allclose(gray_after, gray, atol=1e-6)
        ratio = (after * before.conj()).sum(axis=(1, 2)) / (abs(before) ** 2).sum(axis=(1, 2))
        np.testing.assert_allclose(after, ratio[:, None, None] * before, atol=1e-6)
        if ratio_of is np.abs:
            np.testing.assert_allclose(ratio.imag, 0, atol=1e-6)
            uniform(ratio.real, 0.6, 1.4)
        else:
            np.testing.assert_allclose(abs(ratio), 1, atol=1e-6)
            uniform(np.degrees(np.angle(ratio)), -60, 60)


def test_gray_images_have_neither_saturation_nor_hue_and_nothing_leaves_the_unit_interval(key):
    change = {"saturation": 1, "hue": 180}
    gray = IMAGES[..., :1]
    run = jax.jit(functools.partial(augment.random_color, **UNCHANGED | change))
    np.testing.assert_array_equal(run(key, gray), gray)
    strong = jax.jit(functools.partial(augment.random_color, **UNCHANGED | {"contrast": 1}))(key, 2.5 * (IMAGES - 0.3))
    assert strong.min() == 0
    assert strong.max() == 1


def test_a_blur_of_known_width_is_scipys(key, jit):
    out = jit(functools.partial(augment.random_blur, probability=1, sigma=(0.8, 0.8)))(key, IMAGES)
    expected = scipy.ndimage.gaussian_filter(np.asarray(IMAGES), (0, 0.8, 0.8, 0), mode="nearest", radius=(0, 3, 3, 0))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_each_image_draws_its_own_width_and_whether_to_blur(key):
    """The variance of a blurred spot is the square of the width, less than 1 % of it between and beyond the pixels."""
    spot = jnp.zeros((BATCH, HEIGHT, WIDTH, 3)).at[:, 6, 5].set(1)
    out = np.asarray(jax.jit(functools.partial(augment.random_blur, sigma=(0.6, 1.0)))(key, spot))[..., 0]
    np.testing.assert_allclose(out.sum(axis=(1, 2)), 1, rtol=1e-5)
    variance = (out * (ROWS - 6) ** 2).sum(axis=(1, 2))
    blurred = variance > 0
    assert abs(blurred.mean() - 0.5) < 5 * 0.5 / np.sqrt(BATCH)
    width = np.sqrt(variance[blurred])
    assert 0.594 < width.min() < 0.62
    assert 0.98 < width.max() < 1.0
    assert abs(width.mean() - 0.8) < 0.05


# --- all -----------------------------------------------------------------------------------------------------------


def run_all(key, images, labels):
    images, labels = ANY(key, images, labels)
    return augment.compose(augment.random_color, functools.partial(augment.random_blur, sigma=(0.1, 0.6)))(key, images), labels


def test_they_compose_under_vmap_and_scan(key):
    keys, images, labels = (
        jax.random.split(key, 2),
        IMAGES[:8].reshape(2, 4, *IMAGES.shape[1:]),
        LABELS[:8].reshape(2, 4, 12, 10),
    )
    with jax.disable_jit(False):
        _, scanned = jax.lax.scan(lambda carry, step: (carry, run_all(*step)), 0, (keys, images, labels))
        mapped = jax.jit(jax.vmap(run_all))(keys, images, labels)
    for a, b in zip(scanned, mapped, strict=True):
        # A last bit of a coordinate may move a label that lies between two pixels.
        assert np.isclose(a, b, atol=1e-5).mean() > 0.99


@pytest.mark.parametrize(("images", "labels"), [("bfloat16", "uint8"), ("float16", "int32")])
def test_shapes_and_dtypes_follow_the_input(images, labels, key):
    like = jax.ShapeDtypeStruct(IMAGES.shape, images), jax.ShapeDtypeStruct(LABELS.shape, labels)
    out = jax.eval_shape(run_all, key, *like)
    assert [(part.shape, part.dtype) for part in out] == [(part.shape, part.dtype) for part in like]
    with jax.enable_x64(True):
        assert [part.dtype for part in jax.eval_shape(run_all, key, *like)] == [part.dtype for part in like]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: ANY(key, IMAGES, LABELS, size=(0, 4)), r"random_affine: size must be .*got \(0, 4\)"),
        (lambda key: ANY(key, IMAGES, LABELS, scale=(2, 1)), r"0 < low <= high scale.*got \(2, 1\), 30.0, 0.5"),
        (lambda key: ANY(key, IMAGES, LABELS, rotation=-1), r"rotation >= 0.*got \(0.5, 2.0\), -1"),
        (lambda key: ANY(key, IMAGES, LABELS, flip=2), r"flip in 0\.\.1, got .* 2"),
        (lambda key: augment.random_color(key, IMAGES, contrast=1.5), r"must be in 0\.\.1, .*got 0.25, 1.5, 0.25, 10"),
        (lambda key: augment.random_color(key, IMAGES, hue=-1), r"hue at least 0, got .*-1"),
        (lambda key: augment.random_color(key, IMAGES[..., :2]), "images must have 1 or 3 channels, got 2"),
        (lambda key: augment.random_blur(key, IMAGES, sigma=(0, 1)), r"random_blur: sigma must be .*got \(0, 1\)"),
    ],
)
def test_impossible_options_are_named(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(key)


def test_an_image_and_a_mask_of_different_size_are_refused(key):
    jaxtyping.config.update("jaxtyping_disable", True)  # as users have it: the library's own error is to be seen
    try:
        with pytest.raises(ValueError, match=r"labels must be .* as the images are, got"):
            augment.random_affine(key, IMAGES, LABELS[:, 1:])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
