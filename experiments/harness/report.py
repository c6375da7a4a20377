"""The results table of all runs found, as Markdown: read in a terminal, pasted into a README."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

COLUMNS = ("experiment", "started", "preset", "result", "folder")


def table(results: pathlib.Path) -> tuple[str, list[str]]:
    """The table, and one note for each run folder that can't be read; runs lie in `results` or up to two levels below."""
    rows, notes = [], []
    for pattern in ("config.json", "*/config.json", "*/*/config.json"):
        for path in sorted(results.glob(pattern)):
            try:
                rows.append(_row(path.parent))
            except (OSError, ValueError) as error:
                notes.append(f"skipped {path.parent}: {error}")
    lines = [COLUMNS, *sorted(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    text = "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
    return (text if rows else f"no runs in {results}"), notes


def numbers(row: Mapping[str, Any], *, limit: int | None = None) -> str:
    """`loss 0.1234, accuracy 0.98`: the entries of a row that fit on a line, the first `limit` of them."""
    known = [(name, value) for name, value in row.items() if value is None or isinstance(value, (str, int, float))]
    text = ", ".join(f"{name} {_short(value)}" for name, value in known[:limit])
    return text + (", ..." if len(known) > len(known[:limit]) else "")


def read(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
      ValueError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is damaged: not a JSON object")
    return content


def _row(folder: pathlib.Path) -> tuple[str, ...]:
    read(folder / "config.json")
    environment = read(folder / "env.json")
    summary = folder / "summary.json"
    result = numbers(read(summary), limit=6) if summary.exists() else "not finished"
    facts = (environment.get(name) or "?" for name in ("experiment", "started", "preset"))
    return (*map(str, facts), result, str(folder))


def _short(value: Any) -> str:
    if value is None:
        return "not finite"  # JSON has no word for it
    return f"{value:.4g}" if isinstance(value, float) else str(value)
