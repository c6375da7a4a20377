"""Sliding windows: exact for networks of one pixel, one program of the network for all sizes, bounded memory, clear errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import inference, ops

RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.normal(size=(3, 4)), "float32")
IMAGE = jnp.asarray(RNG.normal(size=(7, 11, 3)), "float32")


def pointwise(x):
    return x @ KERNEL


def lopsided(x):
    """Logits that know where in the window a pixel is, and which one is to the left of it."""
    place = jnp.linspace(-1, 1, x.shape[2] * 4).reshape(1, 1, -1, 4)
    return pointwise(jnp.roll(x, 1, axis=2)) + place.astype(x.dtype)


def by_hand(predict, image, crop, stride, flip=False):
    """Mean probabilities at scale 1 of an image no smaller than a window, a window after the other."""
    height, width, _ = image.shape
    total, count = np.zeros((height, width, 4)), np.zeros((height, width, 1))
    for top in {min(i * stride, height - crop) for i in range(height)}:
        for left in {min(i * stride, width - crop) for i in range(width)}:
            window = image[None, top : top + crop, left : left + crop]
            p = jax.nn.softmax(predict(window))
            if flip:
                p = (p + jax.nn.softmax(predict(window[:, :, ::-1]))[:, :, ::-1]) / 2
            total[top : top + crop, left : left + crop] += p[0]
            count[top : top + crop, left : left + crop] += 1
    assert (count > 0).all()
    return total / count


@pytest.mark.parametrize(
    ("shape", "crop", "overlap", "batch"),
    [
        ((7, 11, 3), 4, 1 / 3, 1),
        ((7, 11, 3), 5, 0, 4),
        ((2, 7, 11, 3), 4, 0.9, 7),
        ((3, 9, 3), 5, 0.5, 2),
        ((1, 1, 3), 4, 0, 1),
    ],
)
def test_a_network_of_single_pixels_gives_what_it_gives_directly(shape, crop, overlap, batch):
    """Whatever the size, smaller than a window in one direction or both, the overlap, and the mirror image."""
    image = jnp.asarray(RNG.normal(size=shape), "float32")
    options = {"crop": crop, "overlap": overlap, "batch": batch, "flip": batch > 1}
    p = inference.sliding_window(jax.jit(pointwise), image, probabilities=True, **options)
    np.testing.assert_allclose(p, jax.nn.softmax(pointwise(image)), rtol=1e-5)
    labels = inference.sliding_window(jax.jit(pointwise), image, **options)
    np.testing.assert_array_equal(labels, pointwise(image).argmax(-1))
    assert labels.dtype == "int32"


@pytest.mark.parametrize(("crop", "overlap", "stride", "flip"), [(6, 1 / 3, 4, False), (6, 0.5, 3, True), (7, 0, 7, True)])
def test_probabilities_are_the_mean_over_windows_and_mirror_images(crop, overlap, stride, flip):
    """Windows of 6 that overlap by a third start every 4 pixels; the last ends with the image."""
    p = inference.sliding_window(lopsided, IMAGE, crop=crop, overlap=overlap, flip=flip, batch=3, probabilities=True)
    np.testing.assert_allclose(p, by_hand(lopsided, IMAGE, crop, stride, flip), rtol=1e-5)


def test_scales_are_averaged_each_resized_there_and_back():
    crop, scales = 6, (1, 1.5, 2)
    p = inference.sliding_window(lopsided, IMAGE, crop=crop, overlap=0.5, scales=scales, probabilities=True)
    expected = [by_hand(lopsided, IMAGE, crop, 3)]
    for size in ((10, 16), (14, 22)):  # 1.5 times 7 and 11, rounded to even, and twice
        scaled = by_hand(lopsided, ops.resize(IMAGE[None], size)[0], crop, 3)
        expected.append(ops.resize(jnp.asarray(scaled[None], "float32"), (7, 11))[0])
    np.testing.assert_allclose(p, np.mean(expected, axis=0), rtol=1e-5)


def test_a_mirrored_image_has_the_mirrored_labels_where_flips_are_averaged():
    options = {"crop": 11, "flip": True, "scales": (0.6, 1)}
    p = inference.sliding_window(lopsided, IMAGE, probabilities=True, **options)
    mirrored = inference.sliding_window(lopsided, IMAGE[:, ::-1], probabilities=True, **options)
    np.testing.assert_allclose(mirrored[:, ::-1], p, rtol=1e-5)
    assert np.abs(inference.sliding_window(lopsided, IMAGE, crop=11, probabilities=True) - p).max() > 0.01


def test_a_constant_network_is_constant_over_all_scales():
    def constant(x):
        return jnp.ones((*x.shape[:3], 3)) * jnp.array([0.3, -1.0, 2.0]).reshape(1, 1, 1, 3)

    p = inference.sliding_window(constant, IMAGE, crop=5, scales=(0.1, 0.5, 1.75), flip=True, probabilities=True)
    np.testing.assert_allclose(p, jax.nn.softmax(constant(IMAGE[None])[0]), rtol=1e-5)


def test_an_image_smaller_than_a_window_is_in_its_middle_amid_the_fill():
    windows = []

    def watch(x):
        jax.debug.callback(windows.append, x)
        return pointwise(x)

    inference.sliding_window(watch, IMAGE[:3, :4], crop=6, fill=0.5)
    jax.effects_barrier()
    expected = np.full((1, 6, 6, 3), 0.5, "float32")
    expected[0, 1:4, 1:5] = IMAGE[:3, :4]  # of an odd rest, one pixel more after than before
    np.testing.assert_array_equal(windows, [expected])


def test_the_network_is_traced_once_for_all_sizes_of_image_and_all_scales():
    shapes, calls = [], []

    def predict(x):
        shapes.append(x.shape)
        jax.debug.callback(lambda: calls.append(1))
        return pointwise(x)

    with jax.disable_jit(False):
        compiled = jax.jit(predict)
        for size, scales in (((7, 11), (1,)), ((9, 5), (0.5, 1.25)), ((2, 7, 6), (1,))):
            image = jnp.ones((*size, 3))
            inference.sliding_window(compiled, image, crop=4, batch=2, scales=scales, flip=True).block_until_ready()
        assert shapes == [(2, 4, 4, 3)]  # and never more than `batch` windows at once
        jax.effects_barrier()
        # Pairs of windows, and of their mirror images: of 2 x 4; of 1 and of 4 x 2 in 11 x 6 pixels; of 2 images' 2 x 2.
        assert len(calls) == 2 * (4 + 1 + 4 + 4)


def test_inside_of_jit_the_windows_are_a_scan_and_jit_and_vmap_change_no_label():
    images = jnp.asarray(RNG.normal(size=(2, 7, 11, 3)), "float32")
    traces = []

    def predict(x):
        traces.append(x.shape)
        return lopsided(x)

    def labels(image):
        return inference.sliding_window(predict, image, crop=5, scales=(0.5, 1), flip=True, batch=2)

    with jax.disable_jit(False):
        expected = labels(images)
        assert len(traces) == 1 + 2 * (2 + 6)  # a check of the shape, then pairs of windows and of their mirror images
        traces.clear()
        np.testing.assert_array_equal(jax.jit(labels)(images), expected)
        assert len(traces) <= 1 + 2 * 2  # for each scale the body of a scan
        np.testing.assert_array_equal(jax.vmap(labels)(images), expected)
        inside = jax.jit(lambda kernel: inference.sliding_window(lambda x: x @ kernel, images, crop=5, batch=2))
        assert inside.lower(KERNEL).as_text().count("while") >= 1
        np.testing.assert_array_equal(inside(KERNEL), pointwise(images).argmax(-1))


def test_bfloat16_is_summed_in_float32_and_float64_stays():
    def network(x):
        return x @ KERNEL.astype(x.dtype)

    p = inference.sliding_window(network, IMAGE.astype("bfloat16"), crop=4, scales=(1, 1.5), probabilities=True)
    assert p.dtype == "float32"
    np.testing.assert_allclose(p.sum(-1), np.ones((7, 11)), rtol=1e-5)
    with jax.enable_x64(True):
        image = np.asarray(IMAGE, "float64")
        kernel = np.asarray(KERNEL, "float64")
        p = inference.sliding_window(lambda x: x @ kernel, image, crop=4, probabilities=True)
        assert p.dtype == "float64"
        np.testing.assert_allclose(p, jax.nn.softmax(image @ kernel), rtol=1e-12)


def test_one_program_lowers_for_every_platform():
    with jax.disable_jit(False):
        program = jax.jit(lambda image: inference.sliding_window(lopsided, image, crop=4, scales=(0.5, 1), flip=True))
        exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(IMAGE)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_bad_options_are_named(unchecked):
    def call(predict=pointwise, image=IMAGE, crop=4, **options):
        inference.sliding_window(predict, image, crop=crop, **options)

    for options, message in [
        ({"crop": 0}, r"sliding_window: crop must be a whole number, at least 1, got 0\."),
        ({"crop": 9.0}, r"crop must be a whole number, at least 1, got 9\.0\."),
        ({"batch": 0}, r"batch must be a whole number, at least 1, got 0\."),
        ({"overlap": 1}, r"overlap must be in \[0, 1\), got 1\."),
        ({"overlap": -0.1}, r"overlap must be in \[0, 1\), got -0\.1\."),
        ({"scales": ()}, r"scales must be positive, at least one, got \(\)\."),
        ({"scales": (1, math.inf)}, r"scales must be positive, at least one, got \(1, inf\)\."),
        ({"scales": (1, 0)}, r"scales must be positive, at least one, got \(1, 0\)\."),
        ({"image": IMAGE[0]}, r"image must be \[height, width, channels\] or a batch, got \(11, 3\)\."),
        ({"image": IMAGE[:0]}, r"image must be .*, got \(0, 11, 3\)\."),
        ({"image": np.zeros((5, 5, 3), "uint8")}, r"image must be floating-point, scaled as in training, got uint8\."),
        ({"predict": lambda x: x[:, ::2]}, r"must return logits \(1, 4, 4\) \+ \(classes,\).*, got \(1, 2, 4, 3\)\."),
        ({"predict": lambda x: x[..., :0]}, r"at least one class, got \(1, 4, 4, 0\)\."),
        ({"predict": lambda x: (x, None)}, r"must return logits .*, got \(\(1, 4, 4, 3\), None\)\."),
        ({"limit": 5000}, r"windows \(1, 4, 4, 3\) with 4 classes must fit into limit=5000 bytes, got 6080"),
        ({"limit": 6079}, r"must fit into limit=6079 bytes, got 6080 bytes for an image of shape \(7, 11, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**options)


def test_windows_larger_than_memory_are_refused_before_the_network_sees_them():
    """Traced, it may already make matrices of that size."""

    def predict(x):
        raise AssertionError("must not be called")

    message = r"windows \(1, 100000, 100000, 3\) must fit into limit=4294967296 bytes, got at least 200000000000"
    with pytest.raises(ValueError, match=message):
        inference.sliding_window(predict, IMAGE, crop=100_000)
