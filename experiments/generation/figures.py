"""Pictures of generation: sheets of samples, how they come about from noise, curves of samplers and of guidance."""

import numpy as np

from experiments.harness import figures


def tiled(images: np.ndarray, columns: int, *, gap: int = 1) -> np.ndarray:
    """Images `[image, height, width, channels]` in [-1, 1] as one picture, row by row with white gaps.

    Of one channel -1 is paper, white, and 1 is ink; of three channels 1 is light.
    """
    images = np.clip((np.asarray(images, np.float32) + 1) / 2, 0, 1)
    count, height, width, channels = images.shape
    images = 1 - images if channels == 1 else images
    rows = -(-count // columns)
    page = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.float32)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def show(axes, images, columns, title=""):
    page = tiled(images, columns)
    axes.imshow(page[..., 0] if page.shape[-1] == 1 else page, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.axis("off")


def draw_sheet(images, columns, titles, figure):
    """One sheet per title, side by side."""
    for axes, sheet, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], images, titles, strict=True):
        show(axes, sheet, columns, title)


def draw_trajectories(forward, reverse, guesses, forward_ratios, reverse_ratios, figure):
    """Rows of one image being noised, of samples on their way from noise, and of what the network takes them for then."""
    parts = figure.subfigures(3, 1, height_ratios=(1, 1, 1))
    kinds = (
        (forward, forward_ratios, "forward: noise is added"),
        (reverse, reverse_ratios, "reverse: noise is removed"),
        (guesses, reverse_ratios, "what the network expects the result to be"),
    )
    for part, (images, ratios, title) in zip(parts, kinds, strict=True):
        part.suptitle(title, fontsize=10, fontweight="bold")
        for axes, column, ratio in zip(part.subplots(1, len(ratios)), images, ratios, strict=True):
            scaled = np.asarray(column)
            show(axes, scaled, 1)
            axes.set_title(f"σ/α {ratio:.2g}", fontsize=7, fontweight="normal")


def draw_samplers(curves, floor, figure):
    """Fréchet distance against evaluations of the network, a line for each sampler."""
    axes = figure.subplots()
    for name, (evaluations, distances) in curves.items():
        axes.plot(evaluations, distances, marker="o", markersize=3.5, label=name)
    axes.axhline(floor, color="0.5", linestyle="--", linewidth=1)
    axes.annotate("real training images", (axes.get_xlim()[1], floor), ha="right", va="bottom", fontsize=8, color="0.4")
    axes.set(xlabel="evaluations of the network", ylabel="Fréchet distance", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        figures.plain_log(axis)
    axes.legend()


def draw_guidance(scales, rows, sheets, columns, figure):
    """Class accuracy and Fréchet distance against the scale of guidance, and samples at some of the scales."""
    above, below = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    left, right = above.subplots(1, 2)
    left.plot(scales, [100 * row["class_accuracy"] for row in rows], marker="o")
    left.set(xlabel="guidance scale", ylabel="class accuracy (%)")
    right.plot(scales, [row["frechet"] for row in rows], marker="o", label="Fréchet distance")
    right.set(xlabel="guidance scale", ylabel="Fréchet distance", yscale="log")
    figures.plain_log(right.yaxis)
    for axes, (scale, images) in zip(below.subplots(1, len(sheets)), sheets.items(), strict=True):
        show(axes, images, columns, f"scale {scale:g}")


def draw_rows(rows, figure):
    """Named rows of images under each other, the names at the left."""
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        show(axes, images, len(images))
        axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=8)


def draw_learning(rows, figure):
    """Training and held-out loss, and the quality of samples on the way."""
    left, right = figure.subplots(1, 2)
    for name, label in (("loss", "training"), ("test_loss", "held out, averaged weights")):
        points = [(row["epoch"], row[name]) for row in rows if name in row and "kind" not in row]
        left.plot(*np.array(points).T, label=label)
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    figures.plain_log(left.yaxis)
    left.legend()
    sheets = [row for row in rows if row.get("kind") == "samples"]
    right.plot([row["epoch"] for row in sheets], [row["frechet"] for row in sheets], marker="o", label="Fréchet distance")
    right.axhline(sheets[-1]["frechet_floor"], color="0.5", linestyle="--", linewidth=1, label="of real training images")
    right.set(xlabel="epoch", yscale="log")
    figures.plain_log(right.yaxis)
    right.legend()
