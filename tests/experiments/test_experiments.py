"""Every experiment's smoke preset runs from the command line and leaves what a run should leave."""

import json
import math

import pytest

from experiments.harness import cli, run


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
    for kind in {row.get("kind") for row in rows}:
        order = [row["step"] for row in rows if row.get("kind") == kind]
        assert order == sorted(set(order))
    assert all(path.stat().st_size > 1000 for path in (out / "figures").glob("*.png"))
    assert len(list((out / "figures").glob("*.png"))) >= 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mlp", "--lr", "0"], "--lr must be positive, got 0"),
        (["mlp", "--widths", "0"], "--widths must be positive integers"),
        (["mlp", "--lr", "nan"], "--lr must be positive, got nan"),
        (["mlp", "--smoothing", "2"], "--smoothing must be in [0, 1), got 2.0"),
        (["mlp", "--weight-decay", "-1"], "--weight-decay must be in [0, inf), got -1.0"),
        (["mlp", "--normalization", "group"], "group"),
        (["mlp", "--lr", "1e38"], "had a non-finite loss or gradient"),
        (["activations", "--lr", "nan"], "--lr must be positive"),
        (["mlp", "--batch", "5000"], "batch must be in 1..1258 (the number of examples), got 5000"),
        (["mlp", "--data", "nowhere"], "nowhere"),
        (["activations", "--only", "rleu"], "--only: unknown rleu"),
        (["cnn", "--shift", "28"], "--shift must be less than the images' 28 pixels, got 28"),
        (["pspnet", "--color", "2"], "--color must be in [0, 1), got 2.0"),
        (["pspnet", "--beside", "nowhere"], "--beside nowhere: expected the folder of a finished run"),
        (["pspnet", "--output-stride", "3"], "output-stride"),
        (["fcn", "--data", "nowhere"], "nowhere"),
        (["diffusion", "--prediction", "epsilon"], "--prediction: epsilon says nothing of the data at the end of a schedule"),
        (["diffusion", "--unlabeled", "0", "--guidance", "2"], "--guidance needs --unlabeled above 0"),
        (["diffusion", "--network", "unet", "--levels", "5"], "--levels 5 needs images whose sides are multiples of 16"),
        (["diffusion", "--batch", "5000"], "batch must be in 1..1258"),
        (["losses", "--noise", "1.5"], "--noise must be shares in [0, 1)"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    assert cli.main([*argv, "--preset", "smoke", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("epochs", ["1", "50"])
def test_any_number_of_epochs_is_drawn(epochs, tmp_path):
    assert cli.main(["mlp", "--preset", "smoke", "--epochs", epochs, "--members", "1", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_an_interrupted_experiment_resumes_to_the_same_bits(tmp_path, monkeypatch):
    def hashes(out):
        newest = max((out / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
        leaves = json.loads((newest / "jaxnets.json").read_text())["content"]["leaves"]
        return newest.name, [leaf.get("sha256") for leaf in leaves]

    def command(out):
        return ["mlp", "--preset", "smoke", "--epochs", "3", "--out", str(tmp_path / out)]

    assert cli.main(command("whole")) == 0
    with monkeypatch.context() as patch:
        log = run.Run.log

        def interrupted(self, row):
            log(self, row)
            if row["step"] == 18:
                raise KeyboardInterrupt

        patch.setattr(run.Run, "log", interrupted)
        assert cli.main(command("cut")) == 130
    assert cli.main(command("cut")) == 0
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [9, 18, 27]
