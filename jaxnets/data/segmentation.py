"""Segmentation sets from folders: CamVid, PASCAL VOC, Cityscapes, ADE20K, or any images with masks of class indices.

    train, classes = segmentation.read("CamVid", layout="camvid")
    weights = segmentation.class_weights(train.y, len(classes.names))

Images are float32 [example, height, width, 3] in [0, 1], labels int32 with `VOID` where a pixel counts for nothing.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnets.data import batches, files, images
from jaxnets.types import Float, InputError, Integer

VOID = 255  # the label of pixels that belong to no class: `ignore_index` of losses and metrics
UNEXPECTED = -1  # in a table of the indices that masks hold: this one they don't

CAMVID_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor"),
)
CITYSCAPES_NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of those classes, in *_labelIds
ADE20K_NAMES = tuple(
    """wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,
plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,
bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,
grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,coffee table,toilet,
flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,arcade machine,hovel,bus,towel,
light,truck,tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,land,bannister,
escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,
barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,
dishwasher,screen,blanket,sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,
bulletin board,shower,radiator,glass,clock,flag""".replace("\n", "").split(",")
)
CAMVID_COLORS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
CITYSCAPES_COLORS = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30)),
    *((220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
    *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)


class Classes(NamedTuple):
    """What the labels 0, 1, ... of a set mean, and colors to draw them in: its authors', where they have some."""

    names: tuple[str, ...]
    palette: Integer[np.ndarray, "classes 3"]


def read(
    path: files.PathLike,
    *,
    layout: str,
    split: str = "train",
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    palette: Any = None,
    limit: int = files.LIMIT,
) -> tuple[batches.Dataset, Classes]:
    """Images and masks of one split, and their classes. The folder `path` is as the set's authors distribute it:

    - "camvid": `{split}/*.png`, `{split}annot/*.png` (of 11 classes, as SegNet's authors made it);
    - "voc": `ImageSets/Segmentation/{split}.txt`, `JPEGImages/*.jpg`, `SegmentationClass/*.png`;
    - "cityscapes": `leftImg8bit/{split}/*/*_leftImg8bit.png`, `gtFine/{split}/*/*_gtFine_label{TrainIds,Ids}.png`;
    - "ade20k": `images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png`; `split` is "train" or "val";
    - "pairs": `images/{split}/*`, `masks/{split}/*.png` of the same names, with indices into `classes` or 255 for void.

    Masks hold indices (palette or gray PNG); those that hold colors need `palette` [color, 3], the color of every class in
    order: further colors in it mean void. With `size` (height, width) every image is shrunk or enlarged to fit, its proportions
    kept, and the rest filled with its mean color and void; otherwise all must be of one size.

    Raises:
      InputError: a folder, list or partner is missing, an unreadable picture, masks without indices or with others than the
        set has, sizes that differ, more than `limit` bytes in all.
    Source: Badrinarayanan et al. (2017), arXiv:1511.00561 (CamVid); Everingham et al. (2010), doi:10.1007/s11263-009-0275-4;
      Cordts et al. (2016), arXiv:1604.01685; Zhou et al. (2017), arXiv:1608.05442.
    """
    if layout not in FINDERS:
        raise InputError(f"read: layout must be one of {', '.join(FINDERS)}, got {layout!r}.")
    if size is not None and min(size) < 1:
        raise InputError(f"read: size must be (height, width), at least 1 each, got {size}.")
    if (layout == "pairs") != (classes is not None):
        raise InputError(f"read: classes are needed for the layout 'pairs' and only there, got {classes} for {layout!r}.")
    if classes is not None and not 1 <= len(classes) <= VOID:
        raise InputError(f"read: classes must be 1..{VOID} names, got {len(classes)}.")
    meaning = CLASSES[layout] if classes is None else Classes(tuple(classes), colors(len(classes)))
    count = len(meaning.names)
    known = None if palette is None else _palette(palette, count)
    pairs, table = FINDERS[layout](pathlib.Path(path), split)
    table = _table(range(count)) if table is None else table
    for missing, partner in (*pairs, *((mask, image) for image, mask in pairs)):
        if not missing.is_file():
            raise InputError(f"{missing}: no such file; expected the partner of {partner}.")

    height, width = size or images.open_picture(pairs[0][0]).size[::-1]
    pixels = len(pairs) * height * width
    if 16 * pixels > limit:  # three float32 and one int32
        wanted = f"{len(pairs)} images of {height}x{width} and their labels are {16 * pixels} bytes"
        raise InputError(f"{path}: {wanted}, more than the limit of {limit}; pass a smaller size=(height, width).")
    x = np.empty((len(pairs), height, width, 3), np.float32)
    y = np.full(x.shape[:3], VOID, np.int32)
    for i, (image_file, mask_file) in enumerate(pairs):
        image, mask = images.open_picture(image_file, "RGB"), images.open_picture(mask_file)
        if mask.size != image.size:
            raise InputError(f"{mask_file}: expected {_size(image)} pixels as in {image_file}, got {_size(mask)}.")
        if size is None and image.size != (width, height):
            expected = f"expected {height}x{width} pixels as in {pairs[0][0].name}"
            raise InputError(f"{image_file}: {expected}, got {_size(image)}; pass size=(height, width) to fit all.")
        _fit(image, _labels(mask, table, known, count, mask_file), x[i], y[i])
    return batches.Dataset(x, y), meaning


def class_weights(labels: Any, classes: int) -> Float[np.ndarray, " classes"]:
    """Median-frequency balancing: `median(frequency) / frequency` of each class, 0 for a class that no pixel has.

    A class's frequency is its share of the pixels in the images that show it; the median is over the classes present. Void
    pixels count nowhere, so that padding changes nothing. `labels` are `[example, ...]`, NumPy's or JAX's.

    Raises:
      InputError: `classes` below 1, a label that is neither below `classes` nor `VOID`, nothing but void.
    Source: Eigen & Fergus (2015), section 6.3.2, arXiv:1411.4734.
    """
    labels = np.asarray(labels)
    if classes < 1:
        raise InputError(f"class_weights: classes must be at least 1, got {classes}.")
    wrong = labels[(labels < 0) | (labels >= classes) & (labels != VOID)]
    if wrong.size:
        raise InputError(f"class_weights: expected labels 0..{classes - 1} or {VOID} (void), got {wrong[0]}.")
    counts = np.stack([np.bincount(image[image != VOID], minlength=classes) for image in labels.reshape(len(labels), -1)])
    pixels, shown = counts.sum(axis=0), counts.sum(axis=1) @ (counts > 0)
    present = pixels > 0
    if not present.any():
        raise InputError("class_weights: expected pixels of at least one class, got only void.")
    frequency = pixels[present] / shown[present]
    weights = np.zeros(classes, np.float32)
    weights[present] = np.median(frequency) / frequency
    return weights


def colors(count: int) -> Integer[np.ndarray, "{count} 3"]:
    """VOC's color map, uint8: the bits of i dealt to red, green and blue in turn, the lowest as the highest; black first.

    Source: Everingham et al., The PASCAL VOC 2012 development kit, `VOClabelcolormap`.
    """
    bits = np.arange(count)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1
    return (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)


CLASSES = {
    "camvid": Classes(CAMVID_NAMES, np.array(CAMVID_COLORS, np.uint8)),
    "voc": Classes(VOC_NAMES, colors(len(VOC_NAMES))),
    "cityscapes": Classes(CITYSCAPES_NAMES, np.array(CITYSCAPES_COLORS, np.uint8)),
    "ade20k": Classes(ADE20K_NAMES, colors(len(ADE20K_NAMES) + 1)[1:]),
}

Files = tuple[list[tuple[pathlib.Path, pathlib.Path]], Integer[np.ndarray, "256"] | None]


def _camvid(path: pathlib.Path, split: str) -> Files:
    found = _listed(path / split)
    return [(image, path / f"{split}annot" / image.name) for image in found], _table(range(11), void=[11])


def _voc(path: pathlib.Path, split: str) -> Files:
    index = path / "ImageSets" / "Segmentation" / f"{split}.txt"
    with files.reading(index):
        names = index.read_text("utf-8", "replace").split()
    if not names or any(pathlib.PurePath(name).name != name for name in names):
        raise InputError(f"{index}: expected names of images, one a line, got {' '.join(names)[:80] or 'none'}.")
    return [(path / "JPEGImages" / f"{name}.jpg", path / "SegmentationClass" / f"{name}.png") for name in names], None


def _cityscapes(path: pathlib.Path, split: str) -> Files:
    folder, end = path / "leftImg8bit" / split, "_leftImg8bit"
    with files.reading(folder):
        cities = sorted(city for city in folder.iterdir() if city.is_dir())
    found = [image for city in cities for image in _listed(city) if image.stem.endswith(end)]
    if not found:
        raise InputError(f"{folder}: expected images */*{end}.png, got none.")
    masks = [path / "gtFine" / split / image.parent.name / image.stem.removesuffix(end) for image in found]
    if masks[0].with_name(f"{masks[0].name}_gtFine_labelTrainIds.png").is_file():
        kind, table = "labelTrainIds", None
    else:
        kind, table = "labelIds", _table(CITYSCAPES_IDS, void=range(34))
    return [(image, mask.with_name(f"{mask.name}_gtFine_{kind}.png")) for image, mask in zip(found, masks, strict=True)], table


def _ade20k(path: pathlib.Path, split: str) -> Files:
    folder = {"train": "training", "val": "validation"}.get(split, split)
    found = _listed(path / "images" / folder)
    return [(image, path / "annotations" / folder / f"{image.stem}.png") for image in found], _table(range(1, 151), void=[0])


def _pairs(path: pathlib.Path, split: str) -> Files:
    return [(image, path / "masks" / split / f"{image.stem}.png") for image in _listed(path / "images" / split)], None


FINDERS = {"camvid": _camvid, "voc": _voc, "cityscapes": _cityscapes, "ade20k": _ade20k, "pairs": _pairs}


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    found = images.picture_files(folder)
    if not found:
        raise InputError(f"{folder}: expected images ({', '.join(images.PICTURES)}), got none.")
    return found


def _table(indices: Sequence[int], void: Sequence[int] = ()) -> Integer[np.ndarray, "256"]:
    """The label of every index that a mask may hold: class i for `indices[i]`."""
    table = np.full(256, UNEXPECTED)
    table[[*void, VOID]] = VOID
    table[list(indices)] = np.arange(len(indices))
    return table


def _palette(palette: Any, classes: int) -> Integer[np.ndarray, "colors 3"]:
    known = np.asarray(palette)
    if known.ndim != 2 or known.shape[1] != 3 or len(known) < classes or known.dtype.kind not in "iu":
        came = f"{known.dtype}{list(known.shape)}"
        raise InputError(f"read: palette must be (red, green, blue) of 0..255 for each of the {classes} classes, got {came}.")
    return known


def _labels(
    mask: Any, table: np.ndarray, palette: np.ndarray | None, classes: int, path: pathlib.Path
) -> Integer[np.ndarray, "height width"]:
    """The labels of a mask: its indices looked up in the table, or its colors in the palette."""
    if mask.mode in ("P", "L", "1"):
        stored = np.asarray(mask).astype(np.uint8)
        labels, expected = table[stored], f"indices 0..{np.flatnonzero(table[:VOID] != UNEXPECTED)[-1]} or {VOID} (void)"
    elif palette is not None:
        stored = np.asarray(mask.convert("RGB"))
        labels, expected = np.full(stored.shape[:2], UNEXPECTED), f"one of the palette's {len(palette)} colors"
        for i, color in enumerate(palette):
            labels[(stored == color).all(axis=-1)] = i if i < classes else VOID
    else:
        came = f"colors (mode {mask.mode}); palette=[(red, green, blue), ...] says which color each class has"
        raise InputError(f"{path}: expected class indices (a palette or gray PNG), got {came}.")
    wrong = np.argwhere(labels == UNEXPECTED)
    if len(wrong):
        row, column = wrong[0]
        came = f"{stored[row, column]} at row {row}, column {column} ({len(wrong)} wrong pixels)"
        raise InputError(f"{path}: expected {expected}, got {came}.")
    return labels.astype(np.uint8)


def _fit(image: Any, labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Writes an image and its labels into the middle of x and y, scaled to fit."""
    pil = files.optional("PIL.Image", "pillow")
    scale = min(x.shape[0] / image.height, x.shape[1] / image.width)
    height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
    place = tuple(slice((have - want) // 2, (have + want) // 2) for have, want in zip(y.shape, (height, width), strict=True))
    pixels = images.unit(np.asarray(image.resize((width, height), pil.Resampling.BILINEAR)))
    x[:] = pixels.mean(axis=(0, 1))
    x[place] = pixels
    y[place] = pil.fromarray(labels).resize((width, height), pil.Resampling.NEAREST)


def _size(picture: Any) -> str:
    return f"{picture.height}x{picture.width}"
