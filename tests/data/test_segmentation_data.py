"""Segmentation folders: every layout is read as it is written, void is void, no bad file goes further than a named error."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnets.data import segmentation
from jaxnets.types import InputError

VOID = segmentation.VOID
HEIGHT, WIDTH = 4, 6
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
VOC_COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))  # as in the development kit's documentation


def save(path, pixels, mode=None):
    """Writes pixels as they are; with mode "P" as indices into VOC's palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        picture = Image.fromarray(np.asarray(pixels), "P")
        picture.putpalette(segmentation.colors(256).tobytes())
    picture.save(path)


def write(root, layout, masks, *, split="train", images=IMAGES, mode=None):
    """One image and mask per entry, named as the set's authors name them; pictures are PNG whatever their suffix."""
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        a, b = {
            "camvid": (f"{split}/{i}.png", f"{split}annot/{i}.png"),
            "voc": (f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png"),
            "cityscapes": (
                f"leftImg8bit/{split}/ulm/ulm_{i}_leftImg8bit.png",
                f"gtFine/{split}/ulm/ulm_{i}_gtFine_labelIds.png",
            ),
            "ade20k": (f"images/{split}ing/{i}.jpg", f"annotations/{split}ing/{i}.png"),
            "pairs": (f"images/{split}/{i}.png", f"masks/{split}/{i}.png"),
        }[layout]
        path = root / a
        save(path.with_suffix(".png"), image)
        path.with_suffix(".png").rename(path)
        save(root / b, mask, mode)
    if layout == "voc":
        index = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("".join(f"{i}\n" for i in range(len(masks))))
    return root


# What a mask stores, and the label that it means.
MEANING = {
    "camvid": {0: 0, 5: 5, 10: 10, 11: VOID, 255: VOID},
    "voc": {0: 0, 1: 1, 20: 20, 255: VOID},
    "cityscapes": {0: VOID, 6: VOID, 7: 0, 8: 1, 11: 2, 18: VOID, 19: 6, 26: 13, 30: VOID, 33: 18, 255: VOID},
    "ade20k": {0: VOID, 1: 0, 2: 1, 150: 149},
    "pairs": {0: 0, 2: 2, 255: VOID},
}
COUNT = {"camvid": 11, "voc": 21, "cityscapes": 19, "ade20k": 150, "pairs": 3}
UNKNOWN = {"camvid": 12, "voc": 21, "cityscapes": 34, "ade20k": 151, "pairs": 3}


def names(layout):
    return {"classes": ("a", "b", "c")} if layout == "pairs" else {}


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("layout", MEANING)
def test_images_and_the_labels_that_indices_mean_are_read(layout, mode, tmp_path):
    stored = RNG.choice(list(MEANING[layout]), (2, HEIGHT, WIDTH)).astype(np.uint8)
    dataset, classes = segmentation.read(write(tmp_path, layout, stored, mode=mode), layout=layout, **names(layout))
    np.testing.assert_array_equal(dataset.y, np.vectorize(MEANING[layout].get)(stored))
    np.testing.assert_allclose(dataset.x, IMAGES / np.float32(255), rtol=1e-6)
    assert (dataset.x.dtype, dataset.y.dtype) == (np.float32, np.int32)
    assert (len(classes.names), classes.palette.shape) == (COUNT[layout], (COUNT[layout], 3))
    assert len(set(classes.names)) == len({tuple(color) for color in classes.palette}) == COUNT[layout]


@pytest.mark.parametrize("layout", MEANING)
def test_an_index_that_the_set_does_not_have_is_named_with_its_place(layout, tmp_path):
    stored = np.full((2, HEIGHT, WIDTH), 1, np.uint8)
    stored[1, 2, 3] = UNKNOWN[layout]
    write(tmp_path, layout, stored)
    expected = rf"1[^/]*\.png: expected indices 0\.\.{UNKNOWN[layout] - 1} or 255 \(void\)"
    with pytest.raises(InputError, match=rf"{expected}, got {UNKNOWN[layout]} at row 2, column 3 \(1 wrong pixels\)"):
        segmentation.read(tmp_path, layout=layout, **names(layout))


def test_cityscapes_training_ids_are_taken_where_they_were_made(tmp_path):
    write(tmp_path, "cityscapes", np.full((2, HEIGHT, WIDTH), 7, np.uint8))
    for i in range(2):
        save(tmp_path / f"gtFine/train/ulm/ulm_{i}_gtFine_labelTrainIds.png", np.full((HEIGHT, WIDTH), 18 + 237 * i, np.uint8))
    labels = segmentation.read(tmp_path, layout="cityscapes")[0].y
    np.testing.assert_array_equal(labels[:, 0, 0], [18, VOID])


def test_splits_are_apart_and_named_as_the_sets_name_them(tmp_path):
    for layout, split in (("camvid", "val"), ("voc", "val"), ("cityscapes", "val"), ("pairs", "held out")):
        write(tmp_path / layout, layout, np.ones((1, HEIGHT, WIDTH), np.uint8), split=split, images=IMAGES[1:])
        dataset, _ = segmentation.read(tmp_path / layout, layout=layout, split=split, **names(layout))
        np.testing.assert_allclose(dataset.x[0] * 255, IMAGES[1], rtol=1e-5)
    write(tmp_path, "ade20k", np.ones((1, HEIGHT, WIDTH), np.uint8), images=IMAGES[1:], split="train")
    (tmp_path / "images" / "training").rename(tmp_path / "images" / "validation")
    (tmp_path / "annotations" / "training").rename(tmp_path / "annotations" / "validation")
    assert len(segmentation.read(tmp_path, layout="ade20k", split="val")[0]) == 1


def test_the_names_and_colors_are_the_published_ones():
    """A few of each that a shifted list would move."""
    sets = segmentation.CLASSES
    np.testing.assert_array_equal(sets["voc"].palette[:5], VOC_COLORS)
    np.testing.assert_array_equal(segmentation.colors(256)[VOID], (224, 224, 192))  # VOC's border color
    named = {layout: dict(zip(classes.names, classes.palette.tolist(), strict=True)) for layout, classes in sets.items()}
    assert (sets["voc"].names.index("person"), named["voc"]["person"]) == (15, [192, 128, 128])
    assert (sets["cityscapes"].names.index("car"), named["cityscapes"]["car"]) == (13, [0, 0, 142])
    assert (sets["camvid"].names.index("bicyclist"), named["camvid"]["bicyclist"]) == (10, [0, 128, 192])
    assert [sets["ade20k"].names.index(name) for name in ("wall", "door", "pool table", "sculpture", "flag")] == [
        0,
        14,
        56,
        132,
        149,
    ]


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_images_of_several_sizes_fit_into_one_with_their_proportions_kept(tmp_path):
    """A wide image is shrunk to a band in the middle, a small one enlarged; around them void in the mean color."""
    wide, small = np.zeros((4, 8, 3), np.uint8), np.full((2, 2, 3), 200, np.uint8)
    wide[:, :4] = 100
    masks = [np.repeat([[0, 1]], 4, axis=0).repeat(4, axis=1).astype(np.uint8), np.array([[0, 1], [2, 2]], np.uint8)]
    write(tmp_path, "pairs", masks, images=[wide, small])
    dataset, _ = segmentation.read(tmp_path, layout="pairs", classes="abc", size=(4, 4))
    np.testing.assert_array_equal(dataset.y[0], [[VOID] * 4, [0, 0, 1, 1], [0, 0, 1, 1], [VOID] * 4])
    np.testing.assert_allclose(dataset.x[0, [0, 3]], dataset.x[0, 1:3].mean() * np.ones((2, 4, 3)), rtol=1e-6)
    assert dataset.x[0, 1, 0, 0] > 0.35
    assert dataset.x[0, 1, 3, 0] < 0.05
    np.testing.assert_array_equal(dataset.y[1], np.kron(masks[1], np.ones((2, 2))))
    np.testing.assert_allclose(dataset.x[1], 200 / 255, rtol=1e-6)
    tall, _ = segmentation.read(tmp_path, layout="pairs", classes="abc", size=(9, 4))
    assert (tall.y[1] != VOID).sum() == 16


def test_a_size_that_is_the_images_own_changes_nothing(tmp_path):
    write(tmp_path, "pairs", np.ones((2, HEIGHT, WIDTH), np.uint8))
    plain, _ = segmentation.read(tmp_path, layout="pairs", classes="ab")
    sized, _ = segmentation.read(tmp_path, layout="pairs", classes="ab", size=(HEIGHT, WIDTH))
    np.testing.assert_array_equal(plain.x, sized.x)
    np.testing.assert_array_equal(plain.y, sized.y)


# --- colored masks -------------------------------------------------------------------------------------------------


def test_colored_masks_are_read_by_a_palette_whose_further_colors_are_void(tmp_path):
    palette = [(10, 20, 30), (30, 20, 10), (255, 255, 255), (0, 0, 0)]
    labels = RNG.integers(0, 4, (2, HEIGHT, WIDTH))
    write(tmp_path, "pairs", np.array(palette, np.uint8)[labels])
    dataset, _ = segmentation.read(tmp_path, layout="pairs", classes="ab", palette=np.array(palette))
    np.testing.assert_array_equal(dataset.y, np.where(labels < 2, labels, VOID))
    with pytest.raises(InputError, match=r"png: expected one of the palette's 3 colors, got \[0 0 0\] at row"):
        segmentation.read(tmp_path, layout="pairs", classes="ab", palette=palette[:3])
    with pytest.raises(InputError, match=r"palette must be .* for each of the 2 classes, got int64\[1, 3\]"):
        segmentation.read(tmp_path, layout="pairs", classes="ab", palette=palette[:1])


def test_colors_where_indices_are_expected_are_explained(tmp_path):
    write(tmp_path, "pairs", np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))
    message = r"masks/train/0.png: expected class indices \(a palette or gray PNG\), got colors \(mode RGB\); palette=\[\(red,"
    with pytest.raises(InputError, match=message):
        segmentation.read(tmp_path, layout="pairs", classes="ab")


def test_a_mask_of_two_colors_holds_the_classes_0_and_1(tmp_path):
    write(tmp_path, "pairs", IMAGES[..., 0] > 128)
    dataset, _ = segmentation.read(tmp_path, layout="pairs", classes="ab")
    np.testing.assert_array_equal(dataset.y, IMAGES[..., 0] > 128)


# --- bad input -----------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: cut(root / "masks/train/1.png"), "masks/train/1.png: not a readable picture .*"),
        (lambda root: cut(root / "images/train/1.png"), "images/train/1.png: not a readable picture .*"),
        (
            lambda root: (root / "masks/train/1.png").unlink(),
            "masks/train/1.png: no such file; expected the partner of .*images",
        ),
        (lambda root: save(root / "masks/train/1.png", np.zeros((3, 5), np.uint8)), "1.png: expected 4x6 .*1.png, got 3x5"),
        (lambda root: save(root / "masks/train/1.png", np.zeros((4, 6), np.uint16)), "mode I;16, where 8 bits per channel"),
        (lambda root: save(root / "images/train/2.png", np.zeros((1, 1, 3), np.uint8)), "masks/train/2.png: no such file"),
    ],
    ids=["truncated mask", "truncated image", "no mask", "other size", "16 bit", "extra image"],
)
def test_a_bad_pair_is_named(change, message, tmp_path):
    write(tmp_path, "pairs", np.zeros((2, HEIGHT, WIDTH), np.uint8))
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        segmentation.read(tmp_path, layout="pairs", classes="ab")


def test_images_of_other_sizes_need_a_size(tmp_path):
    images, masks = [np.zeros((n, 4, 3), np.uint8) for n in (2, 3)], [np.zeros((n, 4), np.uint8) for n in (2, 3)]
    write(tmp_path, "camvid", masks, images=images)
    with pytest.raises(InputError, match=r"train/1.png: expected 2x4 pixels as in 0.png, got 3x4; pass size="):
        segmentation.read(tmp_path, layout="camvid")


def test_more_than_the_memory_limit_is_refused_before_reading(tmp_path):
    write(tmp_path, "camvid", np.zeros((2, HEIGHT, WIDTH), np.uint8))
    (tmp_path / "train" / "1.png").write_bytes(b"not looked at")
    needed = 2 * HEIGHT * WIDTH * 16
    with pytest.raises(
        InputError, match=f"2 images of 4x6 and their labels are {needed} bytes, more than the limit of {needed - 1}"
    ):
        segmentation.read(tmp_path, layout="camvid", limit=needed - 1)
    with pytest.raises(InputError, match="more than the limit of 4294967296; pass a smaller size"):
        segmentation.read(tmp_path, layout="camvid", size=(100_000, 100_000))


@pytest.mark.parametrize("layout", MEANING)
def test_a_missing_folder_is_named(layout, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}.*No such file or directory"):
        segmentation.read(tmp_path, layout=layout, **names(layout))


def test_folders_and_lists_without_images_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: expected images \(.png, .*\), got none"):
        segmentation.read(tmp_path, layout="camvid")
    (tmp_path / "leftImg8bit" / "train" / "ulm").mkdir(parents=True)
    save(tmp_path / "leftImg8bit" / "train" / "ulm" / "other.png", IMAGES[0])
    with pytest.raises(InputError, match=r"leftImg8bit/train: expected images \*/\*_leftImg8bit.png, got none"):
        segmentation.read(tmp_path, layout="cityscapes")
    index = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    index.parent.mkdir(parents=True)
    for text, came in (("", "none"), ("a\n../b\n", r"a \.\./b")):
        index.write_text(text)
        with pytest.raises(InputError, match=f"train.txt: expected names of images, one a line, got {came}"):
            segmentation.read(tmp_path, layout="voc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "kitti"}, "layout must be one of camvid, voc, cityscapes, ade20k, pairs, got 'kitti'"),
        ({"layout": "pairs"}, "classes are needed for the layout 'pairs'"),
        ({"layout": "voc", "classes": ("a",)}, "classes are needed for the layout 'pairs' and only there"),
        ({"layout": "pairs", "classes": ()}, r"classes must be 1\.\.255 names, got 0"),
        ({"layout": "pairs", "classes": ["c"] * 256}, r"classes must be 1\.\.255 names, got 256"),
        ({"layout": "voc", "size": (0, 8)}, r"size must be \(height, width\), at least 1 each, got \(0, 8\)"),
    ],
)
def test_impossible_options_are_named(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        segmentation.read(tmp_path, **options)


# --- class weights -------------------------------------------------------------------------------------------------


def test_class_weights_balance_the_median_frequency():
    """By hand: frequencies 4 of 3 + 4 pixels, 1 of 4, 2 of 4; the median is 1/2. No pixel is of class 3."""
    labels = np.array([[[0, 0], [0, VOID]], [[0, 1], [2, 2]], [[VOID, VOID], [VOID, VOID]]])
    weights = segmentation.class_weights(labels, 4)
    np.testing.assert_allclose(weights, [0.5 / (4 / 7), 0.5 / 0.25, 1, 0], rtol=1e-6)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(segmentation.class_weights(jnp.asarray(labels), 4), weights)


def test_padding_an_image_with_void_changes_no_weight():
    labels = RNG.integers(0, 3, (4, HEIGHT, WIDTH))
    wide = np.pad(labels, ((0, 0), (1, 2), (3, 0)), constant_values=VOID)
    np.testing.assert_array_equal(segmentation.class_weights(labels, 3), segmentation.class_weights(wide, 3))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([[0, 3]], 3, r"expected labels 0\.\.2 or 255 \(void\), got 3"),
        ([[0, -1]], 3, "got -1"),
        ([[VOID]], 0, "class_weights: classes must be at least 1, got 0"),
        ([[VOID, VOID]], 3, "expected pixels of at least one class, got only void"),
    ],
)
def test_labels_without_weights_are_named(labels, classes, message):
    with pytest.raises(InputError, match=message):
        segmentation.class_weights(np.array(labels), classes)
