"""The harness with a toy experiment in a package of its own: options and their errors, run folders, resuming, reports."""

import io
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import rich.console

from experiments.harness import cli, figures, progress, report, run
from jaxnets.types import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent
TOY = '''
"""Counts to a number,
and saves every fifth. Measured never.

More about it.
"""
import dataclasses, os, pathlib, time
from typing import Literal
from experiments.harness.run import Run
from jaxnets.types import InputError

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 12  # how far to count
    lr: float = 3e-3  # unused, but a float
    data: Literal["digits", "letters"] = "digits"  # a choice
    folder: pathlib.Path | None = None  # must exist
    weight_decay: float = 0.0  # a name of two words
    end: str = ""  # how the run ends at step 8: interrupt, bug, input
    show: int = dataclasses.field(default=0, metadata={"of_run": False})  # a row of a finished run

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")

PRESETS = {"default": Config(), "smoke": Config(steps=3)}

def main(config, run):
    if config.show:
        return run.print(f"lr {config.lr}: {run.rows()[config.show - 1]}")
    if config.folder and not config.folder.is_dir():
        raise InputError(f"--folder {config.folder}: no such folder")
    saved = run.checkpoints / "step"
    start = int(saved.read_text()) if saved.exists() else 0
    with run.progress(config.steps, description="count") as callback:
        for step in range(start + 1, config.steps + 1):
            callback({"step": step, "epoch": step / 4, "loss": 1 / step})
            while step == int(os.environ.get("HOLD", 0)):
                time.sleep(0.01)  # until a signal comes
            if step == 8 and not run.folder.joinpath("ended").exists():
                run.folder.joinpath("ended").touch()
                if config.end == "interrupt":
                    raise KeyboardInterrupt
                if config.end == "bug":
                    raise ValueError("a bug")
                if config.end == "input":
                    raise InputError("the file is damaged")
            if step % 5 == 0:
                saved.write_text(str(step))
    run.figure("curve", lambda figure: figure.subplots().plot([1, 2]), size=(3, 2), gallery=True)
    run.figure("other", lambda figure: figure.subplots(), size=(3, 2))
    return {"loss": 1 / config.steps, "bound": float("inf"), "best": "none"}
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path") / "toy_experiments"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text('"""No experiment: defines no presets."""')
    (folder / "count.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.parent))
        yield folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(package, capsys):
    """Runs one command line of the toy package; returns exit code, stdout, stderr."""

    def call(line=""):
        code = cli.main(line.split(), package=package.name)
        return code, *capsys.readouterr()

    return call


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# The command line


def test_the_list_shows_each_experiment_with_its_first_sentence(command):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert "  count  Counts to a number, and saves every fifth.\n" in out
    assert "helper" not in out
    assert command("-h") == (0, out, "")


def test_the_list_imports_nothing_heavy():
    code = (
        "import sys; from experiments.harness import cli; assert cli.main([]) == 0;"
        "print(sorted({'jax', 'numpy', 'tyro', 'matplotlib', 'rich', 'jaxnets'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cout", "no experiment 'cout'; did you mean count? (list: python -m experiments)"),
        ("helper", "no experiment 'helper' (list: python -m experiments)"),
        ("--steps 3", "the experiment's name comes first: python -m experiments NAME [options] (list: python -m experiments)"),
        ("count --setps 3", "unknown option --setps; did you mean --steps?"),
        ("count --steps=3 --weigth-decay=1", "unknown option --weigth-decay; did you mean --weight-decay?"),
        ("count --galery", "unknown option --galery; did you mean --gallery?"),
        ("count --zzz", "unknown option --zzz; see --help"),
        ("count 3", "unexpected argument '3'"),
        ("count --steps 0", "--steps must be at least 1, got 0"),
        ("count --steps x", "--steps: invalid literal for int() with base 10: 'x' (expected --steps INT)"),
        ("count --steps", "Missing value for argument '--steps'. Expected 1 values."),
        ("count --data words", "invalid choice 'words' for argument '--data'. Expected one of ('digits', 'letters')."),
        ("count --preset smok", "--preset smok: no such preset; did you mean smoke? (default, smoke)"),
        ("count --folder nowhere", "--folder nowhere: no such folder"),
        ("report --reslts x", "unknown option --reslts; did you mean --results?"),
        ("report --results nowhere", "--results nowhere: no such folder"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(command, line, message, here):
    code, _, err = command(line)
    assert (code, err) == (2, f"error: {message}\n")
    assert not list(here.rglob("config.json"))


def test_a_long_message_is_neither_wrapped_nor_boxed(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "x" * 100
    assert command(f"count --data {name}")[2].count("\n") == 1
    assert name in command(f"count --data {name}")[2]
    assert os.environ["COLUMNS"] == "40"


def test_help_shows_every_option_with_its_comment_and_the_presets_value(package, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["count", "--preset", "smoke", "--help"], package=package.name)
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for text in ("how far to count (default: 3)", "a name of two words", "--out", "--preset", "--gallery", "More about it."):
        assert text in out


@pytest.mark.parametrize("name", ["tyro", "matplotlib"])
def test_a_missing_extra_says_how_to_install_it(command, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    code, _, err = command("count")
    assert (code, err) == (2, f'error: {name} is not installed: pip install -e ".[experiments]"\n')


def test_a_bug_keeps_its_traceback_and_its_folder(command):
    with pytest.raises(ValueError, match="a bug"):
        command("count --end bug --out r")
    assert "ValueError: a bug" in pathlib.Path("r/log.txt").read_text()
    assert len(rows(pathlib.Path("r"))) == 8


# The run folder


def test_a_run_leaves_every_file(command, package):
    code, out, err = command("count --preset smoke --lr 0.5 --gallery")
    assert (code, err) == (0, "")
    (folder,) = pathlib.Path("results/count").iterdir()
    first, second, *_, result, last = out.splitlines()
    assert first.startswith("count (preset smoke) on ")
    assert second == f"writing to {folder}"
    assert result.startswith("count: loss 0.3333, bound not finite, best none (")
    assert last == f"results in {folder}"
    names = {"config.json", "env.json", "metrics.jsonl", "summary.json", "log.txt", "figures", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == names
    config, environment = report.read(folder / "config.json"), report.read(folder / "env.json")
    assert (config["steps"], config["lr"], config["folder"]) == (3, 0.5, None)
    assert environment["argv"] == ["count", "--preset", "smoke", "--lr", "0.5", "--gallery"]
    assert environment["preset"] == "smoke"
    assert {"versions", "platform", "devices", "commit", "started"} <= environment.keys()
    assert report.read(folder / "summary.json") == {"loss": 1 / 3, "bound": None, "best": "none"}
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["curve.png", "other.png"]
    assert [path.name for path in (package / "gallery").iterdir()] == ["count_curve.png"]
    for line in out.splitlines():
        assert line in (folder / "log.txt").read_text()


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(monkeypatch):
    monkeypatch.setattr(run.time, "strftime", lambda *_: "now")
    assert [run._new_folder(pathlib.Path("r")).name for _ in range(3)] == ["now", "now_2", "now_3"]


def test_a_stopped_run_says_how_to_resume_and_the_resumed_one_has_the_same_rows(command):
    code, out, _ = command("count --end interrupt")
    (folder,) = pathlib.Path("results/count").iterdir()
    resume = f"count --end interrupt --out {folder}"
    assert code == 130
    assert out.splitlines()[-1] == f"stopped; to resume: python -m experiments {resume}"
    assert [row["step"] for row in rows(folder)] == list(range(1, 9))
    assert not (folder / "summary.json").exists()

    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # as a kill would leave it
    code, out, _ = command(resume)
    assert code == 0
    assert f"resuming {folder}" in out
    command("count --out straight")
    assert rows(folder) == rows(pathlib.Path("straight"))
    environment = report.read(folder / "env.json")
    assert environment["argv"] == ["count", "--end", "interrupt"]
    assert [later["argv"] for later in environment["resumed"]] == [resume.split()]


def test_a_finished_run_can_be_run_again_and_keeps_its_files(command):
    command("count --out r")
    before = {path: path.read_bytes() for path in pathlib.Path("r").rglob("*") if path.suffix in (".json", ".jsonl", ".png")}
    assert command("count --out r")[0] == 0
    after = {path: path.read_bytes() for path in before}
    assert {path.name for path in before if before[path] != after[path]} == {"env.json"}


def test_another_config_is_refused_key_by_key(command):
    command("count --out r")
    code, out, err = command("count --out r --steps 5 --folder .")
    assert (code, out) == (2, "")
    assert err.startswith("error: --out r: that run has another config (steps 12 -> 5, folder None -> '.'); ")
    config = report.read(pathlib.Path("r/config.json"))
    pathlib.Path("r/config.json").write_text(json.dumps({**config, "lr": 1.0, "old": 3, "end": None}))
    assert "(lr 1.0 -> 0.003, end None -> '', old 3 -> absent)" in command("count --out r")[2]


def test_a_finished_run_is_asked_without_its_options_and_keeps_its_config_and_summary(command):
    command("count --steps 3 --lr 0.5 --out r")
    files = [pathlib.Path("r", name) for name in ("config.json", "summary.json", "metrics.jsonl")]
    before = [path.read_bytes() for path in files]
    for line in ("count --show 2 --out r", "count --out=r --show=2", "count --steps 3 --lr 0.5 --show 2 --out r"):
        code, out, _ = command(line)
        assert code == 0
        assert "lr 0.5: {'step': 2," in out
    assert command("count --show 2 --steps 5 --out r")[2].startswith(
        "error: --out r: that run has another config (steps 3 -> 5)"
    )
    assert command("count --show 2 --preset smoke --out r")[0] == 0  # the run's own options go before a preset's
    assert [path.read_bytes() for path in files] == before
    assert "show" not in json.loads(before[0])


def test_a_folder_that_is_no_run_of_this_experiment_is_refused_and_untouched(command, package, here):
    pathlib.Path("file").write_text("mine")
    pathlib.Path("full").mkdir()
    pathlib.Path("full/notes").write_text("mine")
    assert command("count --out file")[2] == "error: --out file: can't be used as a run folder (File exists)\n"
    assert command("count --out full")[2] == "error: --out full: holds 'notes' but no run; choose a new folder\n"
    assert [path.name for path in pathlib.Path("full").iterdir()] == ["notes"]

    command("count --out r")
    shutil.copy(package / "count.py", package / "other.py")
    try:
        assert command("other --out r")[2] == "error: --out r: holds a run of count, not of other\n"
    finally:
        (package / "other.py").unlink()
    pathlib.Path("r/config.json").write_text("{")
    assert command("count --out r")[2] == "error: --out r: config.json is damaged: not a JSON object\n"


def test_a_users_error_keeps_what_was_reached_and_removes_what_is_empty(command):
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/.hidden").touch()
    assert command("count --folder nowhere --out mine")[0] == 2
    assert [path.name for path in pathlib.Path("mine").iterdir()] == [".hidden"]
    assert command("count --out mine")[0] == 0

    assert command("count --end input --out r")[::2] == (2, "error: the file is damaged\n")
    assert len(rows(pathlib.Path("r"))) == 8


def test_a_damaged_environment_does_not_stop_a_resume(command):
    command("count --out r")
    pathlib.Path("r/env.json").write_text("")
    assert command("count --out r")[0] == 0
    assert report.read(pathlib.Path("r/env.json"))["experiment"] == "count"


def test_a_killed_run_resumes_and_sigterm_says_how(package, command):
    """SIGKILL at step 7, SIGTERM to the resumed run at step 12, then the rest: the same rows as without."""
    code = f"import sys; from experiments.harness import cli; sys.exit(cli.main(sys.argv[1:], package={package.name!r}))"
    path = os.pathsep.join([str(ROOT), str(package.parent)])
    metrics = pathlib.Path("r/metrics.jsonl")

    def stopped(step, by):
        child = subprocess.Popen(
            [sys.executable, "-c", code, "count", "--out", "r"],
            env={**os.environ, "PYTHONPATH": path, "HOLD": str(step)},
            stdout=subprocess.PIPE,
            text=True,
        )
        while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(by)
        return child.communicate(timeout=60)[0], child.returncode

    assert stopped(7, by=signal.SIGKILL)[1] == -signal.SIGKILL
    out, returned = stopped(12, by=signal.SIGTERM)
    assert returned == 143
    assert out.splitlines()[-1] == "stopped; to resume: python -m experiments count --out r"
    assert command("count --out r")[0] == 0
    assert [row["step"] for row in rows(pathlib.Path("r"))] == list(range(1, 13))


# Rows


@pytest.fixture
def bare(here):
    return run.Run(here)


def test_rows_are_json_whatever_the_numbers(bare, here):
    values = {
        "float": np.float32(0.5),
        "jax": jnp.arange(2),
        "half": jnp.asarray(1.5, jnp.bfloat16),
        "nan": math.nan,
        "infinite": [np.inf, -math.inf, jnp.ones(())],
        "flag": np.bool_(True),
        "where": here,
        "none": None,
    }
    bare.log(values)
    (row,) = rows(here)
    expected = {"float": 0.5, "jax": [0, 1], "half": 1.5, "nan": None, "infinite": [None, None, 1.0], "flag": True}
    assert row == {**expected, "where": str(here), "none": None}
    assert bare.rows() == [row]


def test_a_step_seen_again_replaces_its_row_and_all_after_it(bare, here):
    for step in (1, 2, 3, 4):
        bare.log({"step": step, "loss": step})
    bare.log({"note": "without a step"})
    again = run.Run(here)
    again.log({"step": 3, "loss": 30})
    again.log({"step": 4, "loss": 40})
    assert [(row["step"], row["loss"]) for row in rows(here)] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_kinds_count_their_steps_separately(bare, here):
    """Training and evaluation rows share steps; curves drawn one after the other start at 1 each."""
    order = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for kind, step in order:
        bare.log({"kind": kind, "step": step})
    run.Run(here).log({"kind": "b", "step": 2})
    assert [(row["kind"], row["step"]) for row in rows(here)] == order[:4]


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 3, "loss": 1}', b"\0\0\0"])
def test_a_torn_last_line_is_dropped(bare, here, torn):
    bare.log({"step": 1})
    bare.log({"step": 2})
    with open(here / "metrics.jsonl", "ab") as file:
        file.write(torn)
    again = run.Run(here)
    assert [row["step"] for row in again.rows()] == [1, 2]
    again.log({"step": 3})
    assert [row["step"] for row in rows(here)] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_costs_only_itself(bare, here):
    (here / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff{]\n[1]\n{"step": 3}\n')
    assert [row["step"] for row in run.Run(here).rows()] == [1, 3]


def test_a_file_is_replaced_whole_or_not_at_all(here, monkeypatch):
    target = here / "summary.json"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            run.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in here.iterdir()] == ["summary.json"]
    run.write(target, b"new")
    assert target.read_bytes() == b"new"


# What is shown


def test_the_meter_excludes_the_time_before_the_first_row_and_the_steps_before_a_resume(monkeypatch):
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    meter = progress.Meter(400, "steps")
    assert meter.read({"step": 200, "loss": 2.0}) == "200/400 steps, loss 2"
    row = {
        "step": 300,
        "epoch": 3.0,
        "seconds": 9.0,
        "grad_norm": 1.0,
        "loss": np.array([1.0, 2.0]),
        "skipped": 0,
        "curve": [1, 2],
    }
    assert meter.read(row) == "300/400 steps, 10 steps/s, 10.0 s left, loss 1.5, grad_norm 1"


def test_the_newest_of_each_score_stays_shown():
    meter = progress.Meter(10, "steps")
    meter.read({"step": 1, "grad_norm": 5.0, "test_accuracy": 0.75})
    assert meter.read({"step": 1, "loss": 2.0}) == "1/10 steps, test_accuracy 0.75, loss 2, grad_norm 5"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(bare, here, terminal):
    screen = io.StringIO()
    bare.console = rich.console.Console(file=screen, force_terminal=terminal, width=80)
    with bare.progress(200, description="learn") as callback:
        for step in range(1, 201):
            callback({"step": step, "loss": 1.0})
        bare.print("[kept as typed]")
    shown = screen.getvalue()
    assert "200/200 steps" in shown
    assert "[kept as typed]" in shown
    assert "learn 200/200 steps" in (here / "log.txt").read_text()
    assert len(rows(here)) == 200
    if terminal:
        assert "\x1b[" in shown
    else:
        assert "\x1b[" not in shown
        assert len(shown.splitlines()) == 3  # the first, the last, and the printed line


def test_figures_are_readable_small_and_reproducible(bare, here):
    def noise(figure):
        figure.subplots().imshow(np.random.default_rng(0).random((400, 400, 3)))

    bare.figure("noise", noise, size=(6, 4))
    assert matplotlib.image.imread(here / "figures/noise.png").shape[:2] == (440, 660)
    assert figures.png(noise, (6, 4)) == (here / "figures/noise.png").read_bytes()
    lines = figures.png(lambda figure: [figure.subplots().plot(np.arange(9) * i) for i in range(8)])
    assert len(lines) < figures.MAX_BYTES


def test_the_report_shows_every_run_and_skips_damaged_folders(command):
    command("count --out results/count/a --preset smoke")
    with pytest.raises(ValueError, match="a bug"):
        command("count --out results/b --end bug")
    command("count --out results/count/c")
    pathlib.Path("results/count/c/summary.json").write_text('{"loss": 0.')
    code, out, err = command("report")
    header, rule, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in out.splitlines()]
    assert code == 0
    assert header == list(report.COLUMNS)
    assert set("".join(rule)) == {"-"}
    assert sorted([line[0], *line[2:]] for line in lines) == [
        ["count", "default", "not finished", "results/b"],
        ["count", "smoke", "loss 0.3333, bound not finite, best none", "results/count/a"],
    ]
    assert err == "note: skipped results/count/c: summary.json is damaged: not a JSON object\n"
    assert command("report --results results/count/a")[1].count("\n") == 3
    pathlib.Path("empty").mkdir()
    assert command("report --results empty") == (0, "no runs in empty\n", "")


def test_numbers_keep_the_first_and_say_that_there_are_more():
    assert report.numbers({"a": 1, "b": [2], "c": 0.123456, "d": "x"}, limit=2) == "a 1, c 0.1235, ..."


def test_start_reports_a_folder_that_cannot_be_made(here):
    (here / "file").touch()
    with pytest.raises(InputError, match="can't be used as a run folder"):
        run.start("count", object(), out=here / "file" / "below")
