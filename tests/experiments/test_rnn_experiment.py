"""The experiment `rnn`: text from a checkpoint, other texts and tasks, and what a user may get wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rnn
from experiments.harness import cli
from experiments.sequence import classify, common, gradients, language, memory
from jaxnets.data import sequences, text

TEXT = "%\nthe cat sat on the mat\n%\nthe dog ate the cat's hat\n" * 12
TINY = ["--width", "4", "--layers", "1", "--batch", "4", "--time", "8", "--epochs", "2", "--gradient-steps", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that learned a tiny text, and the command that trained it."""
    folder = tmp_path_factory.mktemp("rnn")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    command = ["rnn", *TINY, "--data", str(folder / "text.txt"), "--written", "9", "--out", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "CELLS", {gradients.UNSTABLE: gradients.CELLS[gradients.UNSTABLE]})
        patch.delitem(gradients.REMEDIES, "LSTM")
        assert cli.main(command) == 0
    return folder / "run", command


@pytest.fixture
def write(trained, capsys):
    """What `--sample` writes with the trained run, prompt and all."""

    def call(*options):
        assert cli.main(["rnn", "--out", str(trained[0]), *options]) == 0
        return capsys.readouterr().out

    return call


def last_sample(folder):
    return (folder / "samples.txt").read_text(encoding="utf-8").rsplit("===\n", 1)[1].removesuffix("\n\n")


@pytest.mark.slow
def test_a_trained_run_writes_text_without_its_options_and_a_longer_one_begins_the_same(trained, write):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in folder.glob("*.json*") if path.name != "env.json"}
    texts = []
    for count in ("20", "40"):
        out = write("--sample", count, "--prompt", "the cat")
        texts.append(last_sample(folder))
        assert texts[-1] in out
        assert len(texts[-1]) == len("the cat") + int(count)
    assert texts[1].startswith(texts[0])
    assert texts[0].startswith("the cat")
    write("--sample", "40", "--prompt", "the cat", "--sample-seed", "1")
    assert last_sample(folder) != texts[1]
    write("--sample", "20", "--temperature", "0")
    greedy = last_sample(folder)
    write("--sample", "20", "--top-k", "1")
    assert last_sample(folder) == greedy
    assert {path.name: path.read_bytes() for path in folder.glob("*.json*") if path.name != "env.json"} == before


@pytest.mark.slow
def test_unknown_symbols_of_a_prompt_are_named_and_none_is_ever_written(trained, write):
    out = write("--sample", "300", "--prompt", "the \N{SNOWMAN}", "--temperature", "100")
    assert "symbols of --prompt that the model does not know: '\N{SNOWMAN}'" in out
    written = last_sample(trained[0]).removeprefix("the \N{SNOWMAN}")
    assert set(written) == set(TEXT)  # nearly uniform: the unknown one would have come some 20 times


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_another_text_is_refused(trained, capsys):
    folder, command = trained
    rows = (folder / "metrics.jsonl").read_bytes()
    path = folder.parent / "text.txt"
    path.write_text(TEXT + "and more", encoding="utf-8")
    assert cli.main(command) == 2
    assert "that run learned from another text" in capsys.readouterr().err
    path.write_text(TEXT, encoding="utf-8")
    assert (folder / "metrics.jsonl").read_bytes() == rows


def test_held_out_text_is_scored_whole_in_windows_as_in_one_pass():
    """With documents that begin amid a window, and a last window that is not full."""
    config = rnn.Config(cell="lstm", width=3, layers=2, embedding=2, dropout=0.5, batch=2, lr=1e-3, weight_decay=0.0)
    vocabulary = text.vocabulary(TEXT)
    ids, starts = vocabulary.encode(TEXT[:50]), text.document_starts(TEXT[:50])
    model = language.make_model(config, vocabulary)
    current = language.create(config, model, 10, jax.random.key(0))
    whole = jax.tree.map(jnp.asarray, language.whole(ids, starts, window=4, rows=3))
    weight, sums = language.evaluate(model, 4, current, whole)
    assert weight == 49
    assert np.asarray(whole.y)[np.asarray(whole.weight) > 0].tolist() == ids[1:].tolist()
    loss = 0.0
    for x, y, keep, reset in zip(whole.x, whole.y, whole.weight, whole.reset, strict=True):
        logits, _ = model.apply({"params": current.params}, x[None], reset=reset[None])
        logits = np.asarray(logits[0], float)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= (log_p[np.arange(len(y)), y] * keep).sum()
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)


def test_standardized_channels_ignore_the_padding_and_leave_it_zero():
    rng = np.random.default_rng(0)
    x, lengths = sequences.pad([rng.normal(5, 3, (n, 2)).astype(np.float32) for n in (4, 9, 1)])
    train, test = classify.standardized(
        sequences.Sequences(x, None, lengths=lengths), sequences.Sequences(x + 1, None, lengths=lengths)
    )
    counts = np.arange(9) < lengths[:, None]
    np.testing.assert_allclose(train.x[counts].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.x[counts].std(0), 1, atol=1e-6)
    assert not train.x[~counts].any()
    assert (test.x[counts] > train.x[counts]).all()  # by the statistics of the first
    assert not test.x[~counts].any()


@pytest.mark.parametrize("lag", [1, 3, 6])
def test_symbols_to_copy_come_the_lag_before_they_are_asked_for(lag, key):
    data = memory.at_lag(key, 4, lag, longest=6)
    signal = np.argmax(np.asarray(data.x[0]) == memory.SYMBOLS + 1)
    first = signal + 1 - lag - memory.LENGTH
    np.testing.assert_array_equal(data.x[:, first : first + memory.LENGTH], data.y[:, -memory.LENGTH :])
    assert (np.asarray(data.x) < memory.SYMBOLS).sum() == 4 * memory.LENGTH
    assert np.asarray(data.reset).sum(1).tolist() == [1] * 4


@pytest.mark.slow
@pytest.mark.parametrize(("task", "cell"), [("adding", "elman"), ("copying", "gru")])
def test_memory_tasks_are_learned_and_drawn(task, cell, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CELLS", {cell: common.CELLS[cell]})
    options = ["--width", "3", "--batch", "2", "--time", "3", "--steps", "2"]
    assert cli.main(["rnn", "--task", task, *options, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary) == {cell, "guess"}
    assert (tmp_path / "run" / "figures" / f"{task}.png").stat().st_size > 1000


@pytest.mark.slow
def test_sequences_of_any_length_are_classified(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("TRAIN", "TEST"):
        lines = ["@equalLength false", "@dimensions 2", "@classLabel true a b", "@data"]
        for i in range(12):
            rows = rng.normal(3 * (i % 2), 1, (2, rng.integers(1, 6)))
            lines.append(":".join(",".join(f"{v:.3f}" for v in row) for row in rows) + ":" + "ab"[i % 2])
        (tmp_path / f"Toy_{part}.ts").write_text("\n".join(lines))
    options = ["--width", "4", "--epochs", "30", "--batch", "6", "--members", "2", "--lr", "0.05"]
    assert cli.main(["rnn", "--task", "classify", "--data", str(tmp_path), *options, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.8
    assert summary["members"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "speech"], "speech"),
        (["--task", "classify"], "--task classify needs --data"),
        (["--task", "classify", "--data", "nowhere"], "--data nowhere: expected a folder with NAME_TRAIN.ts"),
        (["--data", "nowhere.txt"], "--data nowhere.txt: no such file; expected a UTF-8 text"),
        (["--characters", "500", "--time", "1000"], "a window of each stream needs batch * time + 1 = 32 * 1000 + 1"),
        (["--sample", "5", "--temperature", "-1"], "--temperature must be in [0, inf), got -1.0"),
        (["--sample", "5", "--nucleus", "2"], "--nucleus must be at most 1, got 2.0"),
        (["--sample", "5"], "holds no language model; give the folder of a trained one as --out"),
        (["--prompt", "a"], "--prompt goes with --sample"),
        (["--task", "adding", "--data", "x"], "--data is not for --task adding"),
        (["--task", "adding", "--epochs", "3"], "--epochs is not for --task adding"),
        (["--steps", "3"], "--steps is not for --task language"),
        (["--dropout", "1"], "--dropout must be in [0, 1), got 1.0"),
        (["--separator", "%%%", "--characters", "500"], "expected lines '%%%' in the text, got none"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_leaves_no_folder(options, message, tmp_path, capsys):
    assert cli.main(["rnn", *options, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
