"""Pictures of segmentations: classes over the image, scores of each class, learning curves."""

import numpy as np

from experiments.harness import figures
from jaxnets.data import segmentation

OPACITY = 0.6


def draw(pictures, columns, classes, figure):
    """Each image, and over it in color the labels of each column, with what the colors mean; void stays gray."""
    from matplotlib.patches import Patch

    grid = figure.subplots(len(pictures), 1 + len(columns), squeeze=False)
    for row, (axes, picture) in enumerate(zip(grid, pictures, strict=True)):
        shown = {"image": picture} | {
            title: overlaid(picture, labels[row], classes.palette) for title, labels in columns.items()
        }
        for place, (title, image) in zip(axes, shown.items(), strict=True):
            place.imshow(image)
            place.axis("off")
            if row == 0:
                place.set_title(title)
    present = np.unique(np.stack(list(columns.values())))
    patches = [Patch(color=classes.palette[i] / 255, label=name) for i, name in enumerate(classes.names) if i in present]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(int(figure.get_figwidth() / 1.5), len(patches)))


def overlaid(picture, labels, palette):
    """`palette` is [class, 3] of bytes."""
    gray = np.repeat(picture.mean(-1, keepdims=True), 3, -1)
    colors = np.asarray(palette)[np.minimum(labels, len(palette) - 1)] / 255
    known = (labels != segmentation.VOID)[..., None]
    return np.where(known, OPACITY * colors + (1 - OPACITY) * gray, gray)


def draw_iou(scores, names, figure):
    """Bars of every class's IoU for each method; lines at the means."""
    axes = figure.subplots()
    height = 0.8 / len(scores)
    for index, (title, values) in enumerate(scores.items()):
        place = np.arange(len(names)) + (index - (len(scores) - 1) / 2) * height
        bars = axes.barh(place, np.nan_to_num(values.iou), height, label=f"{title}: mean {values.mean_iou:.2f}")
        axes.axvline(values.mean_iou, color=bars[0].get_facecolor(), linewidth=1, linestyle="--")
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="intersection over union", xlim=(0, 1))
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(scores), fontsize=8)


def draw_learning(rows, figure):
    """Loss while training and on the test images; scores on the test images."""
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], label="training")
    tested = [row for row in rows if "test_loss" in row]
    epochs = [row["epoch"] for row in tested]
    left.plot(epochs, [row["test_loss"] for row in tested], label="test (alone and unweighted)")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    figures.plain_log(left.yaxis)
    left.legend(fontsize=8, loc="upper right")
    for name, title in (("test_pixel_accuracy", "pixel accuracy"), ("test_mean_iou", "mean IoU")):
        right.plot(epochs, [row[name] for row in tested], label=title)
    right.set(xlabel="epoch", ylim=(0, 1), title="test images")
    right.legend(fontsize=8)
