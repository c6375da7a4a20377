"""Losses of losses, alone and in a training step; FCN's unnormalized loss."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses, metrics, optimizers
from jaxnets.data.batches import Dataset
from jaxnets.training import state, steps

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4, 2)).astype("float32")
LABELS = RNG.integers(0, 3, (2, 3, 4)).astype("int32")
LABELS[:, 0] = 255
KERNELS = {name: jnp.asarray(RNG.normal(size=(2, 3)), "float32") for name in ("main", "auxiliary")}
CE = functools.partial(losses.softmax_cross_entropy, ignore_index=255)


def apply(variables, x, *, train, **_):
    """A network of two 1x1 convolutions beside each other; the second is for training only."""
    outputs = {name: x @ kernel for name, kernel in variables["params"].items()}
    result = outputs["main"], outputs["auxiliary"] if train else None
    return (result, {}) if train else result


def take(loss, optimizer, batch, **metrics):
    """One step from the kernels."""
    step = steps.make_train_step(steps.supervised(apply, loss, **metrics), optimizer)
    return jax.jit(step)(state.from_params(KERNELS, optimizer, jax.random.key(0)), batch)


def entropies(kernel):
    """Cross entropy of each pixel, 0 where ignored, by optax."""
    inside = jnp.where(LABELS == 255, 0, LABELS)
    return jnp.where(LABELS == 255, 0, optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(X) @ kernel, inside))


def accuracy(outputs, labels):
    return metrics.correct(outputs[0], labels)


def heavy(outputs, labels):
    return CE(outputs[0], labels).sum((1, 2))


def test_auxiliary_outputs_add_their_weighted_losses_and_none_adds_nothing():
    main, first, second = (jnp.asarray(RNG.normal(size=(4, 3)), "float32") for _ in range(3))
    labels = jnp.array([0, 2, 1, 255])
    loss = losses.with_auxiliary(CE, 0.3)
    expected = CE(main, labels) + 0.3 * (CE(first, labels) + CE(second, labels))
    np.testing.assert_allclose(loss((main, first, second), labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(loss((main, None), labels), CE(main, labels))
    np.testing.assert_array_equal(loss((main,), labels), CE(main, labels))
    np.testing.assert_allclose(losses.with_auxiliary(CE)((main, main), labels), 1.4 * CE(main, labels), rtol=1e-6)
    with pytest.raises(ValueError, match=r"outputs must be a tuple \(main, auxiliary, ...\), got"):
        loss(main, labels)


def test_a_step_trains_both_heads_and_its_metric_sees_the_main_one():
    weights = functools.partial(losses.target_weights, ignore_index=255)
    after, row = take(losses.with_auxiliary(CE), optax.sgd(0.5), Dataset(X, LABELS), weights=weights, accuracy=accuracy)
    counted = (LABELS != 255).sum()
    for name, factor in (("main", 1), ("auxiliary", 0.4)):
        slope = jax.grad(lambda kernel: entropies(kernel).sum())(KERNELS[name]) / counted
        np.testing.assert_allclose(after.params[name], KERNELS[name] - 0.5 * factor * slope, rtol=1e-5, atol=1e-6)
    hits = (np.asarray(X @ np.asarray(KERNELS["main"])).argmax(-1) == LABELS).sum()
    np.testing.assert_allclose(row["accuracy"], hits / counted, rtol=1e-6)

    evaluate = steps.make_eval_step(steps.supervised(apply, losses.with_auxiliary(CE), weights=weights, accuracy=accuracy))
    weight, sums = evaluate(state.from_params(KERNELS, optax.sgd(0.5), jax.random.key(0)), Dataset(X, LABELS))
    assert weight == counted
    np.testing.assert_allclose(sums["loss"], entropies(KERNELS["main"]).sum(), rtol=1e-5)


def test_hard_examples_are_the_mean_of_each_image_s_largest_losses():
    """Ignored pixels would be NaN: their label is no class."""
    logits = jnp.asarray(X) @ KERNELS["main"]
    rows = np.asarray(entropies(KERNELS["main"])).reshape(2, 12)
    for threshold, kept in ((1e9, 3), (1e9, 99), (float(np.median(rows[:, 4:])), 1)):
        loss = losses.with_ohem(losses.softmax_cross_entropy, threshold=threshold, min_kept=kept, ignore_index=255)
        expected = []
        for row in rows[:, 4:]:  # the first four of twelve pixels are ignored
            count = max((row > threshold).sum(), min(kept, 8))
            expected.append(np.sort(row)[::-1][:count].mean())
        np.testing.assert_allclose(loss(logits, jnp.asarray(LABELS)), expected, rtol=1e-5)
        # An image's own pixels decide: alone in its batch it has the same loss.
        np.testing.assert_allclose(loss(logits[1:], jnp.asarray(LABELS[1:])), expected[1:], rtol=1e-5)
    assert losses.with_ohem(CE, ignore_index=255)(logits, jnp.full((2, 3, 4), 255)).tolist() == [0, 0]
    everything = losses.with_ohem(losses.softmax_cross_entropy)(logits, jnp.zeros((2, 3, 4), int))
    hard = losses.softmax_cross_entropy(logits, jnp.zeros((2, 3, 4), int))
    np.testing.assert_allclose(everything[0], hard[0][hard[0] > -math.log(0.7)].mean(), rtol=1e-5)


def test_small_integer_labels_do_not_wrap_into_the_ignored_one():
    labels = jnp.array([[156, 1]], "uint8")  # 156 is -100 of uint8
    logits = jnp.zeros((1, 2, 200)).at[0, 0, 156].set(9.0)
    loss = losses.with_ohem(losses.softmax_cross_entropy, min_kept=2, ignore_index=-100)
    expected = (math.log(199 + math.exp(9)) - 9 + math.log(200)) / 2
    np.testing.assert_allclose(loss(logits, labels), [expected], rtol=1e-6)


def test_a_step_takes_hard_examples_with_an_auxiliary_head():
    hard = losses.with_ohem(losses.softmax_cross_entropy, min_kept=3, ignore_index=255)
    _, row = take(losses.with_auxiliary(hard), optax.sgd(0.5), Dataset(X, LABELS))
    outputs, _ = apply({"params": KERNELS}, jnp.asarray(X), train=True)
    values = [hard(output, jnp.asarray(LABELS)).mean() for output in outputs]
    np.testing.assert_allclose(row["loss"], values[0] + 0.4 * values[1], rtol=1e-5)


def test_heavy_learning_sums_over_the_pixels_of_an_image():
    """Batch 1, momentum 0.99, unnormalized loss, as written in `supervised`: two steps by hand."""
    sgd = optax.chain(optax.add_decayed_weights(5e-4, mask=optimizers.decay_mask()), optax.sgd(1e-2, momentum=0.99))
    optimizer = optax.chain(sgd, optimizers.groups({"main": 2}))
    step = jax.jit(steps.make_train_step(steps.supervised(apply, heavy), optimizer))
    trained = state.from_params(KERNELS, optimizer, jax.random.key(0))
    images = Dataset(X, LABELS)
    kernel, velocity = KERNELS["main"], 0
    for i in range(2):
        trained, row = step(trained, images[i : i + 1])
        loss, slope = jax.value_and_grad(lambda kernel, i=i: entropies(kernel)[i].sum())(kernel)
        np.testing.assert_allclose(row["loss"], loss, rtol=1e-5)  # a sum of 8 pixels, undivided
        velocity = 0.99 * velocity + slope + 5e-4 * kernel
        kernel = kernel - 2 * 1e-2 * velocity
    np.testing.assert_allclose(trained.params["main"], kernel, rtol=1e-5, atol=1e-6)
