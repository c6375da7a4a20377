"""What the diffusion experiment says of samples, where it can be wrong without a crash."""

import json

import numpy as np
import pytest

from experiments import diffusion
from experiments.generation import figures, judge
from experiments.harness import cli
from experiments.harness.run import Run
from jaxnets.data import batches


@pytest.fixture(scope="module")
def jury():
    """A classifier of images that are bright at the left or at the right, and such images: to train on and held out."""
    rng = np.random.default_rng(0)
    y = np.arange(96, dtype=np.int32) % 2
    x = 0.1 * rng.standard_normal((96, 8, 8, 1)).astype(np.float32)
    x[y == 0, :, :4] += 0.8
    x[y == 1, :, 4:] += 0.8
    train, held_out = batches.Dataset(x[:64], y[:64]), batches.Dataset(x[64:], y[64:])
    return judge.train(train, held_out, 2, steps_at_least=20, seed=0), train, held_out


@pytest.mark.slow
def test_copies_of_the_training_data_are_called_copies_and_new_images_are_not(jury):
    judged, train, held_out = jury
    assert judged.accuracy == 1
    copied = judge.scores(judged, train.x, train.y, train, held_out)
    assert copied["copies"] == len(train)
    assert copied["nearest_ratio"] == 0
    assert copied["class_accuracy"] == 1
    np.testing.assert_allclose(copied["frechet_ratio"], 1, rtol=1e-4)
    swapped = judge.scores(judged, held_out.x, 1 - held_out.y, train, held_out)
    assert swapped["class_accuracy"] == 0
    assert swapped["copies"] == swapped["held_out_copies"] == 0
    np.testing.assert_allclose(swapped["nearest_ratio"], 1, rtol=1e-6)
    np.testing.assert_allclose(swapped["frechet"], 0, atol=1e-4)


def test_a_sheet_has_its_images_row_by_row_with_white_gaps_and_ink_on_paper():
    images = np.stack([np.full((2, 2, 1), value) for value in (-1.0, 0.0, 1.0)])
    page = figures.tiled(images, 2)
    assert page.shape == (5, 5, 1)
    np.testing.assert_allclose(page[:2, :2], 1)
    np.testing.assert_allclose(page[:2, 3:], 0.5)
    np.testing.assert_allclose(page[3:, :2], 0)
    np.testing.assert_allclose(page[2], 1)
    np.testing.assert_allclose(figures.tiled(np.ones((1, 2, 2, 3)), 1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"ema": 1.0}, "--ema"),
        ({"unlabeled": 1.5}, "--unlabeled"),
        ({"samples": 5}, "--samples must be at least 6"),
        ({"guidance": 3.0, "unlabeled": 0.0}, "--guidance needs --unlabeled"),
        ({"schedule": "flow", "prediction": "score"}, "--prediction: score"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        diffusion.Config(**options)


def test_images_outside_of_the_range_are_warned_of(monkeypatch, tmp_path, capsys):
    x = np.linspace(0, 1.5, 4 * 64, dtype=np.float32).reshape(4, 8, 8, 1)
    wide = batches.Dataset(x, np.arange(4, dtype=np.int32))
    run = Run(tmp_path, name="diffusion")
    for data, warned in ((wide, True), (batches.Dataset(x / 1.5, wide.y), False)):
        monkeypatch.setattr(diffusion.images, "digits", lambda seed, data=data: (data, data))
        train, _, _, _ = diffusion.load(diffusion.Config(), run)
        np.testing.assert_allclose(train.x, 2 * data.x - 1)
        assert ("images should lie in [-1, 1], these lie in [-1, 2]" in capsys.readouterr().out) == warned


@pytest.mark.slow
def test_a_finished_run_of_several_sheets_is_shown_again_and_not_trained_again(tmp_path):
    command = ["diffusion", "--preset", "smoke", "--sheets", "2", "--no-comparisons", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == pytest.approx(before, rel=1e-4)
