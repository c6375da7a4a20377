"""Mosaics: exact labels, parts that share no pixel, and textures that a color doesn't give away."""

import sys

import numpy as np
import pytest
from PIL import Image

from jaxnets.data import images, mosaics
from jaxnets.types import InputError


@pytest.fixture
def photographs(monkeypatch):
    """Replaces the photographs by `picture(class index)`, uint8 [256, 256, 3], shown in their own tones."""

    def replace(picture):
        def opened(path, mode):
            return Image.fromarray(picture(list(mosaics.FILES.values()).index(path.name)).astype(np.uint8), mode)

        monkeypatch.setattr(images, "open_picture", opened)
        monkeypatch.setattr(mosaics, "CONTRAST", (1, 1))
        monkeypatch.setattr(mosaics, "BRIGHTNESS", (0, 0))
        mosaics._photograph.cache_clear()

    yield replace
    mosaics._photograph.cache_clear()


def test_mosaics_are_a_function_of_seed_and_part_and_begin_alike_for_every_count():
    x, y = (lambda d: (d.x, d.y))(mosaics.make(6, size=40))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((6, 40, 40, 3), np.float32, (6, 40, 40), np.int32)
    again = mosaics.make(2, size=40)
    np.testing.assert_array_equal(again.x, x[:2])
    np.testing.assert_array_equal(again.y, y[:2])
    for other in (mosaics.make(2, size=40, seed=1), mosaics.make(2, size=40, part="validation")):
        assert not np.array_equal(other.y, y[:2])


def test_values_fill_the_unit_interval_and_every_class_is_shown_as_often():
    dataset = mosaics.make(200, size=24)
    assert dataset.x.min() == 0
    assert dataset.x.max() == 1
    assert np.isfinite(dataset.x).all()
    share = np.bincount(dataset.y.ravel(), minlength=8) / dataset.y.size
    assert np.abs(share - 1 / 8).max() < 0.03
    counts = [len(np.unique(labels)) for labels in dataset.y]
    assert set(counts) == {3, 4, 5, 6}


def test_regions_are_convex_and_one_of_each_class():
    """A Voronoi cell is convex: it holds the middle of any two of its pixels."""
    rng = np.random.default_rng(0)
    for labels in mosaics.make(5, size=48).y:
        for label in np.unique(labels):
            pixels = np.argwhere(labels == label)
            pairs = pixels[rng.integers(len(pixels), size=(200, 2))]
            pairs = pairs[(pairs.sum(axis=1) % 2 == 0).all(axis=1)]
            middle = pairs.sum(axis=1) // 2
            assert (labels[middle[:, 0], middle[:, 1]] == label).all()


@pytest.mark.parametrize("part", mosaics.PARTS)
def test_the_label_of_a_pixel_is_the_photograph_it_comes_from(part, photographs):
    photographs(lambda index: np.full((256, 256, 3), 30 * index))
    dataset = mosaics.make(5, size=40, part=part)
    np.testing.assert_allclose(dataset.x, np.repeat(dataset.y[..., None] * 30 / 255, 3, axis=-1), atol=1e-6)


@pytest.mark.parametrize(
    ("part", "shown"),
    [("train", (0, 0)), ("train", (0, 1)), ("fit", (0, 0)), ("validation", (0, 1)), ("test", (1, 0)), ("test", (1, 1))],
)
def test_training_and_test_share_no_pixel_nor_do_the_parts_to_choose_by(part, shown, photographs):
    """Red marks the lower half, green the right quarter; between pixels no neighbor shines through."""

    def marked(index):
        picture = np.zeros((256, 256, 3))
        picture[128:, :, 0] = picture[:, 192:, 1] = 255
        return picture

    photographs(marked)
    values = mosaics.make(20, size=40, part=part).x
    assert shown in {tuple(value) for value in values.reshape(-1, 3)[:, :2]}
    assert set(np.unique(values[..., 0])) == {float(part == "test")}
    if part in ("fit", "validation"):
        assert set(np.unique(values[..., 1])) == {float(part == "validation")}


def test_every_region_has_one_magnification_within_the_bounds(photographs):
    """Red counts rows and green columns: their slope is the inverse of the magnification, the same along both."""
    rows, columns = np.indices((256, 256))
    photographs(lambda index: np.stack([rows, columns, 0 * rows], axis=-1))
    zooms = []
    dataset = mosaics.make(600, size=16)
    for x, y in zip(dataset.x * 255, dataset.y, strict=True):
        for label in np.unique(y):
            down, right = (y[:-1] == label) & (y[1:] == label), (y[:, :-1] == label) & (y[:, 1:] == label)
            slopes = np.concatenate([np.diff(x[..., 0], axis=0)[down], np.diff(x[..., 1], axis=1)[right]])
            if len(slopes):
                assert np.ptp(slopes) < 1e-3
                zooms.append(1 / slopes.mean())
    assert mosaics.SCALE[0] - 1e-3 < min(zooms) < 0.82
    assert 1.22 < max(zooms) < mosaics.SCALE[1] + 1e-3
    assert abs(np.log(zooms).mean()) < 0.0095  # log-uniform, to 3.5 deviations; uniform would give 0.017


def test_a_region_larger_than_its_photograph_goes_on_as_the_mirror_image(photographs, monkeypatch):
    monkeypatch.setattr(mosaics, "SCALE", (1, 1))
    rows, columns = np.indices((256, 256))
    photographs(lambda index: np.stack([rows, columns, 100 + 50 * (columns % 2)], axis=-1))
    dataset = mosaics.make(3, size=300, part="validation")  # 128 rows, 64 columns of it
    for x, y in zip(dataset.x * 255, dataset.y, strict=True):
        right = y[:, :-1] == y[:, 1:]
        np.testing.assert_allclose(np.abs(np.diff(x[..., 1], axis=1))[right], 1, atol=1e-3)
        assert (np.diff(x[..., 1], axis=1)[right] < 0).any()
        assert 192 - 1e-3 <= x[..., 1].min() <= x[..., 1].max() <= 255 + 1e-3
        assert x[..., 0].max() <= 127 + 1e-3
        assert 100 - 1e-3 <= x[..., 2].min() <= x[..., 2].max() <= 150 + 1e-3  # between neighbors, never beyond


def test_the_color_of_a_pixel_says_little():
    """The most frequent class of each of 4,096 colors; random tones are what keeps it low (0.55 without them)."""

    def color(x):
        return (x * 15.999).astype(int) @ np.array([256, 16, 1])

    train, test = mosaics.make(100, size=48), mosaics.make(100, size=48, part="test")
    seen = np.zeros((4096, 8))
    np.add.at(seen, (color(train.x), train.y), 1)
    assert 0.25 < (seen.argmax(axis=1)[color(test.x)] == test.y).mean() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "make: count and size must be at least 1, got 0, 96"),
        ({"count": 1, "size": 0}, "at least 1, got 1, 0"),
        ({"count": 1, "part": "val"}, "part must be one of train, fit, validation, test, got 'val'"),
        ({"count": 1, "seed": -1}, r"seed must be in 0\.\.2\*\*64-1, got -1"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        mosaics.make(**options)


def test_a_missing_photograph_and_a_missing_package_are_named(monkeypatch):
    mosaics._photograph.cache_clear()
    monkeypatch.setitem(mosaics.FILES, "brick", "nowhere.png")
    with pytest.raises(InputError, match=r"nowhere\.png: not a readable picture"):
        mosaics.make(1)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError, match=r"scikit-image is needed here: pip install 'jaxnets\[experiments\]'"):
        mosaics.make(1)
    mosaics._photograph.cache_clear()


def test_one_pixel_is_a_mosaic():
    assert mosaics.make(3, size=1).y.shape == (3, 1, 1)
