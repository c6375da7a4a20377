"""Every experiment's smoke preset runs from the command line and leaves what a run should leave."""

import json
import math

import pytest

from experiments.harness import cli


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.listing())
def test_smoke_preset_leaves_metrics_summary_and_figures(name, tmp_path):
    out = tmp_path / name
    assert cli.main([name, "--preset", "smoke", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    numbers = [value for value in summary.values() if isinstance(value, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert all(path.stat().st_size > 1000 for path in (out / "figures").glob("*.png"))
    assert len(list((out / "figures").glob("*.png"))) >= 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mlp", "--lr", "0"], "--lr must be positive, got 0"),
        (["mlp", "--widths", "0"], "widths must be positive integers"),
        (["mlp", "--batch", "5000"], "batch must be in 1..1258 (the number of examples), got 5000"),
        (["mlp", "--data", "nowhere"], "nowhere"),
        (["activations", "--only", "rleu"], "--only: unknown rleu"),
        (["losses", "--noise", "1.5"], "--noise must be shares in [0, 1)"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    assert cli.main([*argv, "--preset", "smoke", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
