"""One look for every figure: readable at the size README.md shows it, colors that everyone can tell apart, small files."""

import io
from collections.abc import Callable
from typing import Any

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")  # Okabe & Ito (2008)
STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(PALETTE)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": "0.9",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "font.size": 10,
    "savefig.dpi": 110,
}
MAX_BYTES = 150_000  # above it a picture is reduced to 256 colors


def png(draw: Callable[[Any], object], size: tuple[float, float] = (8, 4.5)) -> bytes:
    """The PNG file of what `draw(figure)` puts on a figure of `size` inches; the same drawing gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")  # no pyplot: no window, no global list of figures
        figure.set_layout_engine("constrained", h_pad=0.1)  # inches; the default cuts bold titles
        draw(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return buffer.getvalue() if buffer.tell() <= MAX_BYTES else _reduced(buffer)


def plain_log(axis: Any) -> None:
    """A logarithmic axis labeled 1, 2, 5, 10, ... instead of powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def _reduced(buffer: io.BytesIO) -> bytes:
    from PIL import Image

    reduced = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    # by what the colors cover: the usual median cut gives a legend's few pixels the colors of the picture
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(reduced, format="png", optimize=True)
    return reduced.getvalue()
