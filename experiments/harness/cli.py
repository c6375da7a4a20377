"""The command line: lists experiments without importing them, turns a Config into options, and runs `main`.

Errors that the user caused end in one line on stderr and exit code 2; every other exception keeps its traceback.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import errno
import importlib
import importlib.util
import io
import os
import pathlib
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

COMMAND = "python -m experiments"
USAGE = f"""usage: {COMMAND}                          this list
       {COMMAND} NAME [options]           run one; options: {COMMAND} NAME --help
       {COMMAND} report [--results DIR]   table of the runs found in DIR (default: results)
"""
EXTRA = {"tyro", "rich", "matplotlib", "PIL", "sklearn", "skimage", "pooch"}  # what ".[experiments]" installs

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}  # disk full or not writable


class UsageError(Exception):
    """The command line can't be understood; the message says what to type instead."""


def main(argv: Sequence[str] | None = None, *, package: str = "experiments") -> int:
    """Runs one command and returns its exit code; `package` is where the experiments live."""
    try:
        return _command(list(sys.argv[1:] if argv is None else argv), package)
    except KeyboardInterrupt:  # before a run began, or after it ended
        return 130
    except Exception as error:
        message = _users_fault(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def listing(package: str = "experiments") -> dict[str, str]:
    """Name and first sentence of every module of `package` that defines PRESETS, read from the sources."""
    found = {}
    for path in sorted(_folder(package).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        assigned += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
        if any(isinstance(target, ast.Name) and target.id == "PRESETS" for target in assigned):
            sentence = re.split(r"(?<=[.!?])\s", ast.get_docstring(tree) or "", maxsplit=1)[0]
            found[path.stem] = " ".join(sentence.split())
    return found


def _command(argv: list[str], package: str) -> int:
    name, *options = argv or ["--help"]
    if name in ("-h", "--help"):
        experiments = listing(package)
        width = max(map(len, experiments), default=0)
        print(USAGE, *(f"  {name:{width}}  {line}" for name, line in experiments.items()), sep="\n")
        return 0
    if name == "report":
        return _report(options)
    experiments = listing(package)
    if name.startswith("-"):
        raise UsageError(f"the experiment's name comes first: {COMMAND} NAME [options] (list: {COMMAND})")
    if name not in experiments:
        raise UsageError(f"no experiment {name!r}{_did_you_mean(name, [*experiments, 'report'])} (list: {COMMAND})")
    return _run(name, options, package)


def _report(options: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{COMMAND} report", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("results"), help="where the run folders are")
    try:
        chosen, unknown = parser.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error.argument_name}: {error.message}") from None
    _refuse(unknown, ["--results"])
    from experiments.harness import report

    if not chosen.results.is_dir():
        raise UsageError(f"--results {chosen.results}: no such folder")
    table, notes = report.table(chosen.results)
    print(table)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _run(name: str, options: list[str], package: str) -> int:
    module = importlib.import_module(f"{package}.{name}")
    chosen = _parse(name, module, options)
    from experiments.harness import run

    current = run.start(
        name,
        chosen.config,
        preset=chosen.preset,
        argv=[name, *options],
        out=chosen.out,
        gallery=_folder(package) / "gallery" if chosen.gallery else None,
    )
    began = time.monotonic()
    try:
        with _terminable():
            summary = module.main(chosen.config, current)
        if summary is not None:  # else the run was only asked something
            current.finish(summary, seconds=time.monotonic() - began)
    except KeyboardInterrupt as stop:
        where = [] if chosen.out else ["--out", run.shown(current.folder)]
        told = f"stopped; to resume: {COMMAND} {shlex.join([name, *options, *where])}"
        print(told)  # not by rich, whose console keeps what comes after an interruption in the middle of its own printing
        current.note(told)
        return 143 if isinstance(stop, _Terminated) else 130
    except Exception as error:
        current.note(traceback.format_exc().rstrip())
        if _users_fault(error) is not None:
            current.discard_if_empty()
        raise
    return 0


def _parse(name: str, module: Any, options: list[str]) -> Any:
    """The options as an object with `config`, `preset`, `out`, `gallery`; unset ones come from the preset."""
    import tyro

    def option(kind, text):
        return Annotated[kind, tyro.conf.arg(help=text)]

    presets = module.PRESETS
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--preset", nargs="?")  # known before the rest: they set every default
    scan.add_argument("--out", nargs="?", type=pathlib.Path)
    known, others = scan.parse_known_args(options)
    preset = known.preset or "default"
    if preset not in presets:
        raise UsageError(f"--preset {preset}: no such preset{_did_you_mean(preset, presets)} ({', '.join(presets)})")
    defaults = presets[preset]
    asking = {field.name for field in dataclasses.fields(defaults) if not field.metadata.get("of_run", True)}
    if known.out and asking & {option.split("=")[0].lstrip("-").replace("-", "_") for option in others}:
        from experiments.harness import run

        defaults = run.of_folder(known.out, defaults)
    fields = [
        ("config", type(defaults), defaults),
        ("preset", option(str, f"start from the values of: {', '.join(presets)}"), preset),
        ("out", option(pathlib.Path | None, "run folder, resumed if it exists; None: results/NAME/TIME"), None),
        ("gallery", option(bool, "also write the README's figures to experiments/gallery"), False),
    ]
    kind = dataclasses.make_dataclass("Options", fields, frozen=True)
    with contextlib.nullcontext() if {"-h", "--help"} & set(options) else _one_line_errors():
        chosen, unknown = tyro.cli(
            kind,
            args=options,
            prog=f"{COMMAND} {name}",
            description=module.__doc__,
            config=(tyro.conf.OmitArgPrefixes,),
            return_unknown_args=True,
        )
    names = [field.name for field in (*dataclasses.fields(kind), *dataclasses.fields(chosen.config))]
    _refuse(unknown, [f"--{name.replace('_', '-')}" for name in names])
    return chosen


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Keeps the sentence in the box that tyro draws on stderr before it exits."""
    columns, box = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "9999"  # else the sentence is wrapped, and long paths are cut
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"\x1b\[[\d;]*m", "", box.getvalue())
        lines = [line.strip(" ─│╭╮╰╯") for line in text.splitlines()]
        _, message, *more = [line for line in lines if line.strip("-")] + ["see --help"] * 2  # the first is the title
        message = re.sub(r"^Error parsing (config: )?", "", message)
        expected = next((line for line in more if line.startswith("--")), None)
        raise UsageError(message + (f" (expected {expected})" if expected else "")) from None
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler's stop ends a run as Ctrl-C does."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_):
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _users_fault(error: Exception) -> str | None:
    """The message for an error that the user caused, None for a bug of ours."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRA:
        return f'{error.name} is not installed: pip install -e ".[experiments]"'
    types = sys.modules.get("jaxnets.types")  # not imported for a list: it brings jax
    mine = (UsageError, types.InputError) if types else UsageError
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.filename or 'writing'}: {error.strerror}"
    # FloatingPointError: the training diverged, and the message says what to change.
    return str(error) if isinstance(error, mine) or type(error) is FloatingPointError else None


def _refuse(unknown: Sequence[str], known: Sequence[str]):
    if unknown:
        first = unknown[0].split("=")[0]
        if not first.startswith("-"):
            raise UsageError(f"unexpected argument {first!r}")
        raise UsageError(f"unknown option {first}{_did_you_mean(first, known) or '; see --help'}")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return pathlib.Path(spec.submodule_search_locations[0])
