"""Figures of sequence models: learning curves, a page of text."""

import functools
import math
from typing import Any

import numpy as np

from experiments.harness import figures

NAMES = {"lstm": "LSTM", "gru": "GRU", "elman": "Elman"}
REACH = r"$\log_{10} \| \partial s_T / \partial s_{T-lag} \|$"
COLUMNS, NARROW = 84, 47  # characters in a line of the page: of the held-out text, of the samples
PAGE_FONTS = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "WenQuanYi Zen Hei Mono", "Unifont")


def draw_learning(rows: list[dict[str, Any]], beat: dict[str, float], figure: Any) -> None:
    """Loss of the training and the held-out text against the epoch, with what is to be beaten."""
    axes = figure.subplots()
    epochs = np.array([row["epoch"] for row in rows])
    axes.plot(epochs, [row["loss"] for row in rows], label="training", color="C0", linewidth=1)
    tested = [row for row in rows if "test_loss" in row]
    axes.plot([row["epoch"] for row in tested], [row["test_loss"] for row in tested], ".-", color="C3")
    axes.lines[-1].set_label(f"held out {tested[-1]['test_loss']:.3f}")
    for (name, nats), color in zip(beat.items(), ("C4", "C1", "C2", "C5"), strict=True):
        axes.axhline(nats, color=color, linewidth=1.1, linestyle="--", label=f"{name} {nats:.3f}")
    axes.set(xlabel="epoch", ylabel="nats per character", xlim=(0, None))
    bits = axes.secondary_yaxis("right", functions=(lambda nats: nats / math.log(2), lambda bits: bits * math.log(2)))
    bits.set_ylabel("bits per character")
    axes.legend()


def draw_accuracy(rows: list[dict[str, Any]], figure: Any) -> None:
    """Loss and error of every member on the training and on the test sequences."""
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for prefix, label in (("", "training"), ("test_", "test")):
        loss, accuracy = (np.array([row[prefix + name] for row in rows]) for name in ("loss", "accuracy"))
        line = left.plot(epochs, loss.mean(1), label=label)[0]
        left.fill_between(epochs, loss.min(1), loss.max(1), color=line.get_color(), alpha=0.2, linewidth=0)
        right.plot(epochs, 100 * (1 - accuracy), color=line.get_color(), linewidth=0.9, alpha=0.6)
    left.set(xlabel="epoch", ylabel="cross entropy", yscale="log", title="mean and range over seeds")
    right.set(xlabel="epoch", ylabel="error (%)", title="every seed", ylim=(-0.5, 30))
    left.legend()
    figures.plain_log(left.yaxis)


def draw_adding(rows: dict[str, Any], reach: dict[str, Any], guess: float, figure: Any) -> None:
    """Error against the step, and how far gradients reach after training."""
    left, right = figure.subplots(1, 2)
    for name, curve in rows.items():
        left.plot([row["step"] for row in curve], [row["test_loss"] for row in curve], label=NAMES[name])
        right.plot(reach[name], label=NAMES[name])
    left.axhline(guess, color="k", linewidth=0.9, linestyle=":", label="always 1")
    left.set(xlabel="step", ylabel="mean squared error", yscale="log", title="adding two numbers of a sequence")
    left.legend(fontsize=8)
    right.axhline(0, color="k", linewidth=0.7, linestyle=":")
    right.set(xlabel="lag (steps)", ylabel=REACH, title="how far gradients reach, after training")


def draw_copying(rows: dict[str, Any], lags: Any, curves: dict[str, Any], guess: float, figure: Any) -> None:
    """Symbols remembered against the step, and against the lag after training."""
    left, right = figure.subplots(1, 2)
    for name, curve in rows.items():
        left.plot([row["step"] for row in curve], [100 * row["test_accuracy"] for row in curve], label=NAMES[name])
        right.plot(lags, 100 * np.array(curves[name]), ".-", label=NAMES[name])
    for axes in (left, right):
        axes.axhline(100 * guess, color="k", linewidth=0.9, linestyle=":", label="guessing")
        axes.set(ylabel="symbols remembered (%)", ylim=(0, 103))
    left.set(xlabel="step", title="while learning, any lag")
    left.legend(fontsize=8)
    right.set(xlabel="lag (steps)", title="forgetting curve")


def draw_page(held_out: str, log_p: Any, samples: dict[float, str], figure: Any) -> None:
    """Held-out text, each character on the color of its probability, and samples of some temperatures."""
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    font = _font(held_out)
    _draw_probabilities(held_out, np.exp(log_p), font, above)
    for axes, (temperature, written) in zip(below.subplots(1, len(samples)), samples.items(), strict=True):
        axes.axis("off")
        lines = _lines(written, NARROW)[:28]
        content = "\n".join(_visible("".join(written[i] for i in line), font) for line in lines)
        axes.set_title(f"written at temperature {temperature:g}", loc="left")
        axes.text(0, 1, content, va="top", fontfamily=font, fontsize=7, parse_math=False, linespacing=1.25)


def _draw_probabilities(held_out: str, p: Any, font: str, figure: Any, rows: int = 13) -> None:
    start = held_out.find("\n", 1000) + 1 if len(held_out) > 4000 else 0  # the state has warmed up
    lines = [[start + i for i in line] for line in _lines(held_out[start : start + rows * COLUMNS], COLUMNS)[:rows]]
    shade = np.full((len(lines), max(map(len, lines))), np.nan)
    axes = figure.subplots()
    for row, line in enumerate(lines):
        for column, i in enumerate(line):
            shade[row, column] = p[i - 1] if 0 < i <= len(p) else np.nan
            character = _visible(held_out[i], font)
            axes.text(column, row, character, ha="center", va="center", fontfamily=font, fontsize=8, parse_math=False)
    image = axes.imshow(shade, cmap="RdYlGn", vmin=0, vmax=1, alpha=0.6, aspect="auto")
    axes.axis("off")
    lacking = sum(map(len, lines)) < 2 * sum(_visible(held_out[i], font) == "□" for line in lines for i in line)
    note = " (no installed font shows this script)" if lacking else ""
    axes.set_title(f"held-out text: the probability of each character before it was seen{note}", loc="left")
    figure.colorbar(image, ax=axes, pad=0.01, aspect=15)


def _lines(content: str, width: int) -> list[list[int]]:
    """Positions of the characters of each line: cut after line ends, and where a line is full after its last space."""
    lines: list[list[int]] = [[]]
    for i, character in enumerate(content):
        if len(lines[-1]) == width and character != "\n":
            kept = max((k + 1 for k, at in enumerate(lines[-1]) if content[at] == " "), default=width)
            lines.append(lines[-1][kept:])
            del lines[-2][kept:]
        lines[-1].append(i)
        if character == "\n":
            lines.append([])
    return lines if lines[-1] else lines[:-1]


def _font(content: str) -> str:
    """The installed font that shows most of a text."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return max([name for name in PAGE_FONTS if name in installed], key=lambda name: len(set(content) & _covered(name)))


@functools.cache
def _covered(name: str) -> set[str]:
    from matplotlib import font_manager

    return {chr(code) for code in font_manager.get_font(font_manager.findfont(name)).get_charmap()}


def _visible(content: str, font: str) -> str:
    """What can be drawn of a text: line ends as nothing, what the font lacks as a box."""
    covered = _covered(font)
    return "".join("" if c == "\n" else " " if c == "\t" else c if c in covered else "□" for c in content)
