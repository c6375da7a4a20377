"""What the experiments with images say about data: baselines, scores and figures that can be wrong without a crash."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fcn, pspnet
from experiments.harness.run import Run
from experiments.vision import classification, overlays, scenes
from jaxnets import metrics
from jaxnets.data import batches, segmentation
from jaxnets.types import InputError

NAMES = ("left", "right")


@pytest.fixture
def task():
    """Class by the sign of the red channel, class 1 the rarer, and one pixel of void in each image."""
    x = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
    y = (x[..., 0] > 0.6).astype(np.int32)
    y[:, 0, 0] = segmentation.VOID
    half = (batches.Dataset(x[:4], y[:4]), batches.Dataset(x[4:], y[4:]))
    return scenes.Task(*half, segmentation.Classes(NAMES, segmentation.colors(2)), x.mean((0, 1, 2)), x.std((0, 1, 2)))


def test_the_majority_baseline_has_the_accuracy_of_the_most_frequent_class(task):
    scores = scenes.score(scenes.majority(task), task.test.y, 2)
    known = task.test.y != segmentation.VOID
    np.testing.assert_allclose(scores.pixel_accuracy, (task.test.y[known] == 0).mean(), rtol=1e-6)


def test_the_pixelwise_baseline_learns_a_class_that_is_a_threshold_of_a_color(task):
    scores = scenes.score(scenes.pixelwise(task, seed=0), task.test.y, 2)
    assert scores.mean_iou > 0.9 > scenes.score(scenes.majority(task), task.test.y, 2).mean_iou


def test_a_normalized_confusion_matrix_has_the_scores_of_its_counts():
    counts = np.array([[5, 1], [2, 8]])
    row = scenes.readable({"step": 1, "test_confusion": counts / counts.sum()})
    np.testing.assert_allclose(row["test_mean_iou"], metrics.mean_iou(jnp.asarray(counts, float)), rtol=1e-6)
    assert "test_confusion" not in row
    assert row["step"] == 1


def test_training_images_and_their_labels_are_moved_alike(task):
    config = scenes.Config(crop=6, color=0.0)
    labels = (255 * task.train.x[..., 0]).astype(np.int32)  # labels that are the image itself
    batch = batches.Dataset(jnp.asarray(labels[..., None].repeat(3, -1) / 255, jnp.float32), jnp.asarray(labels))
    config = dataclasses.replace(config, scale=(1.0, 1.0))
    moved = scenes.augmentation(config)(jax.random.key(0), batch)
    assert moved.x.shape == (4, 6, 6, 3)
    np.testing.assert_allclose(moved.x[..., 0] * 255, moved.y, atol=1e-3)


def test_another_run_is_drawn_beside_only_if_it_saw_the_same_images(tmp_path):
    run = Run(tmp_path, name="fcn")
    truth = np.arange(4 * 8 * 8).reshape(4, 8, 8)
    scenes.keep(run, np.ones((4, 8, 8), np.uint8), truth)
    config = scenes.Config(beside=str(tmp_path))
    with pytest.raises(InputError, match="finished run"):
        scenes.beside(config, truth)
    run.record_environment({"experiment": "fcn"})
    np.testing.assert_array_equal(scenes.beside(config, truth)["fcn"], 1)
    for other in (truth + 1, truth[:, 1:]):
        with pytest.raises(InputError, match="expected a run on the same images"):
            scenes.beside(config, other)
    with pytest.raises(InputError, match="nowhere"):
        scenes.beside(scenes.Config(beside="nowhere"), truth)


def test_void_keeps_the_gray_image_under_the_overlay():
    picture = np.random.default_rng(0).random((2, 2, 3))
    labels = np.array([[0, segmentation.VOID], [1, 0]])
    drawn = overlays.overlaid(picture, labels, segmentation.colors(2))
    np.testing.assert_allclose(drawn[0, 1], picture[0, 1].mean())
    assert not np.allclose(drawn[0, 0], picture[0, 0].mean())


def test_an_image_and_its_mirror_image_get_the_mean_of_their_probabilities():
    rng = np.random.default_rng(0)
    weights, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 1, 4), (5, 2, 3, 1)))
    one, both = (
        functools.partial(classification.log_probabilities, lambda x: jnp.einsum("bhwc,hwck->bk", x, weights), mirror=mirror)
        for mirror in (False, True)
    )
    mirrored = x[:, :, ::-1]
    np.testing.assert_allclose(np.exp(one(x)).sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(both(x)), (np.exp(one(x)) + np.exp(one(mirrored))) / 2, rtol=1e-5)
    np.testing.assert_array_equal(both(x), both(mirrored))


def test_saliency_of_a_linear_score_is_the_size_of_its_weights(key):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 1, 3)), jnp.float32)
    maps, guess = classification.saliency(
        lambda x: jnp.einsum("bhwc,hwck->bk", x, weights), jnp.ones((1, 2, 2, 1)), key, draws=2
    )
    np.testing.assert_allclose(maps[0], abs(weights[:, :, 0, guess[0]]), rtol=1e-6)


@pytest.mark.parametrize("config", [fcn.Config, pspnet.Config])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "--crop"),
        ({"scale": (2.0, 1.0)}, "--scale"),
        ({"scales": ()}, "--scales"),
        ({"scales": (0.0,)}, "--scales"),
        ({"scales": (float("nan"),)}, "--scales"),
        ({"scale": (1.0, float("inf"))}, "--scale"),
        ({"color": -1.0}, "--color"),
    ],
)
def test_options_out_of_range_are_named(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (3000.0,), "crop": 32}, r"--crop or --scales: sliding_window: windows .* must fit into limit"),
        ({"crop": 20_000, "batch": 2}, "--crop 20000 and --batch 2 make a batch of 9 GiB"),
    ],
)
def test_what_does_not_fit_into_memory_is_said_before_training(task, options, message):
    with pytest.raises(InputError, match=message):
        scenes.fitting(scenes.Config(**options), task)


def test_of_one_class_the_pixelwise_baseline_is_the_majority(task):
    same = dataclasses.replace(task.train, y=np.where(task.train.y == segmentation.VOID, segmentation.VOID, 1))
    np.testing.assert_array_equal(scenes.pixelwise(dataclasses.replace(task, train=same), seed=0), 1)


def test_a_part_of_few_images_is_measured_on_too(monkeypatch, task):
    few = dataclasses.replace(task.train, x=task.train.x[:3], y=task.train.y[:3])
    monkeypatch.setattr(segmentation, "read", lambda *_, **__: (few, task.classes))
    parts = scenes.load(scenes.Config(data="some", validate=True))
    assert (len(parts.train), len(parts.test)) == (2, 1)
    monkeypatch.setattr(
        segmentation, "read", lambda *_, **__: (dataclasses.replace(few, x=few.x[:1], y=few.y[:1]), task.classes)
    )
    with pytest.raises(InputError, match="--validate needs at least 2 training images, got 1"):
        scenes.load(scenes.Config(data="some", validate=True))


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(InputError, match="nowhere"):
        scenes.load(scenes.Config(data="nowhere"))
