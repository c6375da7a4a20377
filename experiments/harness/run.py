"""A run's folder: what it was asked (`config.json`), where it ran (`env.json`), what it saw, reached and drew.

    results/NAME/TIME/{config.json, env.json, metrics.jsonl, summary.json, log.txt, figures/, checkpoints/}

Whole files are replaced in one step and rows are appended, so a kill at any moment costs at most the row being written.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from experiments.harness import figures, progress, report
from jaxnets.types import InputError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PLAIN_INTERVAL = 10.0  # s between progress lines where there is no terminal


def start(
    name: str,
    config: Any,
    *,
    preset: str = "default",
    argv: Sequence[str] = (),
    out: pathlib.Path | None = None,
    gallery: pathlib.Path | None = None,
) -> "Run":
    """Makes the folder of a run, or opens that of an earlier one to go on with it.

    Raises:
      InputError: `out` is not a folder, holds other files or another experiment's run, or was started with another config.
    """
    try:
        folder = _new_folder(pathlib.Path("results", name)) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        present = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"--out {out or 'results'}: can't be used as a run folder ({error.strerror})") from None
    resumed = "config.json" in present
    if resumed:
        _same_run(folder, name, config)
    elif present:
        raise InputError(f"--out {out}: holds {min(present)!r} but no run; choose a new folder")
    else:
        _write_json(folder / "config.json", identity(config))
    run = Run(folder.absolute(), name=name, gallery=gallery)
    run.record_environment({"experiment": name, "preset": preset, "argv": list(argv)})
    devices = jax.devices()
    run.note(f"$ python -m experiments {shlex.join(argv)}")
    run.print(f"{name} (preset {preset}) on {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    run.print(f"{'resuming' if resumed else 'writing to'} {shown(run.folder)}")
    return run


def identity(config: Any) -> dict[str, Any]:
    """What makes a run the same run: all fields but those of `dataclasses.field(metadata={"of_run": False})`.

    Such a field asks something of a finished run, such as a text; given on the command line, it makes the config of the run
    at --out the default of all others.
    """
    values = dataclasses.asdict(config)
    return {field.name: values[field.name] for field in dataclasses.fields(config) if field.metadata.get("of_run", True)}


def of_folder(folder: pathlib.Path, config: Any) -> Any:
    """`config` with the values of the run in `folder`; unchanged where there is none that can be used: `start` says why."""
    try:
        saved = report.read(folder / "config.json")
        known = {name: tuple(v) if isinstance(v := saved[name], list) else v for name in identity(config) if name in saved}
        return dataclasses.replace(config, **known)
    except (OSError, ValueError, TypeError):
        return config


class Run:
    """What `main(config, run)` gets: `folder`, `checkpoints`, and ways to log, print, show progress and draw."""

    def __init__(self, folder: pathlib.Path, *, name: str = "", gallery: pathlib.Path | None = None):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.name = name
        self.console = rich.console.Console(emoji=False)
        self._gallery = gallery
        self._metrics, self._summary = folder / "metrics.jsonl", folder / "summary.json"
        self._figures = folder / "figures"
        for path in (self.checkpoints, self._figures):
            path.mkdir(parents=True, exist_ok=True)
        self._last = self._keep_until(lambda row: False)  # also drops a line torn by a kill

    def log(self, row: Mapping[str, Any]):
        """Appends a row to metrics.jsonl; arrays become lists, NaN and infinities null.

        Rows with a `step` increase strictly in it, separately for each `kind` (a curve's name, optional). A run that resumes
        from a checkpoint sees some steps again: the first one seen again removes its earlier row and everything after it.
        """
        row = _plain(row)
        kind, step = row.get("kind"), _step(row)
        if step > -math.inf:
            if step <= self._last.get(kind, -math.inf):
                self._last = self._keep_until(lambda old: old.get("kind") == kind and _step(old) >= step)
                self.note(f"metrics.jsonl: from step {step} again")
            self._last[kind] = step
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the checkpoint of this step is on the disk only after its row

    def rows(self) -> list[dict[str, Any]]:
        """All rows logged so far, also those of the earlier part of a resumed run."""
        lines = self._metrics.read_bytes().splitlines() if self._metrics.exists() else []
        return [row for row in map(_row, lines) if row]

    def print(self, text: str):
        """Shows a line on the console, above any progress bar, and keeps it in log.txt."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.note(text)

    def note(self, text: str):
        """Keeps a line in log.txt only."""
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    @contextlib.contextmanager
    def progress(self, total: int, unit: str = "steps", description: str = "train") -> Iterator[Callable[[dict], None]]:
        """A callback for `loop.fit`: logs each row and shows how far, how fast, how long still, and its main numbers."""
        meter = progress.Meter(total, unit)
        bar = progress.bar(self.console)
        task = bar.add_task(description, total=total, text=f"0/{total} {unit}")
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        shown_at = -math.inf

        def callback(row: dict):
            nonlocal shown_at
            self.log(row)
            text = meter.read(row)
            if live:
                bar.update(task, completed=meter.done, text=text)
            elif time.monotonic() - shown_at >= PLAIN_INTERVAL or meter.done >= total:
                self.print(f"{description} {text}")
                shown_at = time.monotonic()

        with bar if live else contextlib.nullcontext():
            yield callback
        if live and meter.text:
            self.note(f"{description} {meter.text}")

    def figure(self, name: str, draw: Callable[[Any], object], size: tuple[float, float] = (8, 4.5), *, gallery: bool = False):
        """Saves what `draw(figure)` puts on a Matplotlib figure of `size` inches as figures/NAME.png.

        `gallery` marks a figure that README.md shows: with `--gallery` it also goes to experiments/gallery/EXPERIMENT_NAME.png.
        """
        png = figures.png(draw, size)
        write(self._figures / f"{name}.png", png)
        if gallery and self._gallery is not None:
            self._gallery.mkdir(exist_ok=True)
            write(self._gallery / f"{self.name}_{name}.png", png)

    def finish(self, summary: Mapping[str, Any], *, seconds: float):
        """Writes summary.json and shows the result."""
        _write_json(self._summary, summary)
        self.print(f"{self.name}: {report.numbers(_plain(summary))} ({progress.clock(seconds)})")
        self.print(f"results in {shown(self.folder)}")

    def discard_if_empty(self):
        """Removes the run where nothing was reached yet, so that the corrected command can use the folder."""
        if any(self.folder.glob("*/*")) or self._metrics.exists() or self._summary.exists():
            return
        for name in ("config.json", "env.json", "log.txt"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, self._figures, self.folder):
            with contextlib.suppress(OSError):  # the folder may hold hidden files of someone else
                folder.rmdir()

    def record_environment(self, facts: dict[str, Any]):
        """Writes env.json; a resumed run keeps its first start and adds the later ones under `resumed`."""
        path = self.folder / "env.json"
        environment = facts | {
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "backend": jax.default_backend(),
            "devices": [str(device) for device in jax.devices()],
            "jit": not jax.config.jax_disable_jit,  # pyrefly: ignore
        }
        if first := _environment(self.folder):
            environment = first | {"resumed": [*first.get("resumed", []), environment]}
        _write_json(path, environment)

    def _keep_until(self, stop: Callable[[dict], bool]) -> dict[Any, float]:
        """Cuts metrics.jsonl before the first row where `stop(row)`, or a torn last line; returns each kind's last step."""
        last, kept = {}, 0
        if not self._metrics.exists():
            return last
        with open(self._metrics, "rb") as file:
            for line in file:
                row = _row(line)
                if not line.endswith(b"\n") or stop(row):
                    break
                kept += len(line)
                if _step(row) > -math.inf:
                    last[row.get("kind")] = _step(row)
        os.truncate(self._metrics, kept)
        return last


def shown(path: pathlib.Path) -> str:
    """A path as a user would type it from here."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def write(path: pathlib.Path, content: bytes):
    """Replaces a file in one step: at any moment it is the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]):
    write(path, (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """JSON's own types: arrays become lists, paths strings, and numbers that aren't finite null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # damaged: kept in the file, counts for nothing
        row = None
    return row if isinstance(row, dict) else {}


def _step(row: Mapping[str, Any]) -> float:
    step = row.get("step")
    return -math.inf if step is None else step


def _new_folder(parent: pathlib.Path) -> pathlib.Path:
    """A folder named by the time; runs that start in the same second each get their own."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count(1):
        folder = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # for the type checker


def _same_run(folder: pathlib.Path, name: str, config: Any):
    try:
        before = report.read(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"--out {shown(folder)}: {error}") from None
    there = _environment(folder).get("experiment", name)
    if there != name:
        raise InputError(f"--out {shown(folder)}: holds a run of {there}, not of {name}")
    now = _plain(identity(config))
    changes = []
    for key in {**before, **now}:
        old, new = (repr(side[key]) if key in side else "absent" for side in (before, now))
        if old != new:
            changes.append(f"{key} {old} -> {new}")
    if changes:
        raise InputError(
            f"--out {shown(folder)}: that run has another config ({', '.join(changes)}); "
            "repeat its options to resume it, or choose another folder"
        )


def _environment(folder: pathlib.Path) -> dict[str, Any]:
    """env.json, empty where it is missing or damaged: no reason not to resume."""
    try:
        return report.read(folder / "env.json")
    except (OSError, ValueError):
        return {}


def _commit() -> str | None:
    """The source's git commit, marked `-dirty` where files differ from it; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
