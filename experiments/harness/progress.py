"""What a progress line says, and the bar that shows it on a terminal."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress
from rich.table import Column

from experiments.harness import report

SCORES = ("loss", "accuracy")  # shown first, and as means where they hold one number per member


class Meter:
    """Turns rows into a line: how far, how fast since the first row (so without compiling), how long still, numbers."""

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.done, self.text = total, unit, 0, ""
        self._first: tuple[float, float] | None = None  # time and step of the first row, not 0 in a resumed run
        self._numbers: dict[str, float] = {}  # the newest value of each: not every row is evaluated

    def read(self, row: Mapping[str, Any]) -> str:
        if "step" in row:
            self.done = int(row["step"])
        began, start = self._first = self._first or (time.monotonic(), self.done)
        parts = [f"{self.done}/{self.total} {self.unit}"]
        if self.done > start:
            rate = (self.done - start) / max(time.monotonic() - began, 1e-9)
            parts.append(f"{rate:.3g} {self.unit}/s" if rate < 100 else f"{rate:,.0f} {self.unit}/s")
            parts += [f"{clock((self.total - self.done) / rate)} left"] if self.done < self.total else []
        self._numbers |= {name: float(np.mean(value)) for name, value in row.items() if _telling(name, value)}
        first = sorted(self._numbers, key=lambda name: not name.endswith(SCORES))[:4]
        self.text = ", ".join([*parts, report.numbers({name: self._numbers[name] for name in first})])
        return self.text


def bar(console: rich.console.Console) -> rich.progress.Progress:
    """A bar whose tasks carry their line in the field `text`."""
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=12),
        rich.progress.TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
    )


def clock(seconds: float) -> str:
    """`12.3 s`, from a minute on `0:02:05`."""
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))


def _telling(name: str, value: Any) -> bool:
    """Whether a row's entry says how the training goes; `skipped` does once it isn't 0."""
    if name in ("step", "epoch", "seconds") or isinstance(value, (str, bool)) or value is None:
        return False
    return name.endswith(SCORES) or (np.ndim(value) == 0 and (name != "skipped" or value > 0))
