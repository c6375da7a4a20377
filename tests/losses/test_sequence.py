"""CTC against the sum over every path, written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses

TIME, CLASSES = 4, 3
LOGITS = np.random.default_rng(0).normal(size=(TIME, CLASSES))
CASES = {  # name: (labels padded with -1, frames)
    "one": ([1, -1, -1], 4),
    "two": ([1, 2, -1], 4),
    "repeated": ([1, 1, -1], 4),
    "exact fit": ([2, 1, 2], 3),
    "repeated, exact fit": ([2, 2, -1], 3),
    "short": ([2, -1, -1], 2),
    "empty": ([-1, -1, -1], 4),
    "neither labels nor frames": ([-1, -1, -1], 0),
    "too long": ([1, 2, 1], 2),
    "repeated without room": ([1, 1, -1], 2),
    "labels without frames": ([1, -1, -1], 0),
}
LABELS = jnp.array([labels for labels, _ in CASES.values()])
FRAMES = jnp.array([frames for _, frames in CASES.values()])
BATCH = jnp.asarray(np.broadcast_to(LOGITS, (len(CASES), TIME, CLASSES)), jnp.float32)


def spelled(path, blank):
    """What a path spells: repeats merged, then blanks dropped."""
    return [int(c) for c, _ in itertools.groupby(path) if c != blank]


def every_path(logits, labels, blank=0):
    """`-log Σ p(path)` over the paths that spell `labels`, and its gradient `p - E[one-hot path | labels]`."""
    time, classes = logits.shape
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total, occupancy = 0.0, np.zeros((time, classes))
    for path in itertools.product(range(classes), repeat=time):
        if spelled(path, blank) == labels:
            one_hot = np.eye(classes)[list(path)].reshape(time, classes)
            weight = np.prod((p * one_hot).sum(-1))
            total, occupancy = total + weight, occupancy + weight * one_hot
    return (-np.log(total), p - occupancy / total) if total else (np.inf, np.zeros_like(p))


EXPECTED = [every_path(LOGITS[:frames], [c for c in labels if c >= 0]) for labels, frames in CASES.values()]
VALUES = np.array([value for value, _ in EXPECTED])
POSSIBLE = np.isfinite(VALUES)
SLOPES = np.array([np.pad(slope, ((0, TIME - len(slope)), (0, 0))) for _, slope in EXPECTED])


def value_and_gradient(logits, labels=LABELS, **options):
    """All tests share the shape of `BATCH`: without jit each new shape is a new program per primitive."""

    def total(logits, options):
        values = losses.ctc(logits, labels, **options, **static)
        return jnp.where(jnp.isnan(values), 0, values).sum(), values

    static = {name: options.pop(name) for name in ("blank", "zero_infinity") if name in options}
    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits, options)
    return values, gradient


def test_value_and_gradient_are_those_of_the_sum_over_all_paths():
    values, gradient = value_and_gradient(BATCH, logit_lengths=FRAMES)
    np.testing.assert_allclose(values, VALUES, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, SLOPES, atol=2e-6)


def test_the_padding_reaches_neither_value_nor_gradient():
    padded = jnp.where(jnp.arange(TIME)[None, :, None] < FRAMES[:, None, None], BATCH, jnp.nan)
    lengths = {"logit_lengths": FRAMES, "label_lengths": (LABELS >= 0).sum(1)}
    values, gradient = value_and_gradient(padded, jnp.where(LABELS < 0, 77, LABELS), zero_infinity=True, **lengths)
    np.testing.assert_allclose(values, np.where(POSSIBLE, VALUES, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, SLOPES, atol=2e-6)


def test_labels_end_at_the_first_negative_one():
    values, _ = value_and_gradient(BATCH, jnp.tile(jnp.array([[1, -1, 2]]), (len(BATCH), 1)))
    np.testing.assert_allclose(values, every_path(LOGITS, [1])[0], rtol=1e-5)


def test_any_class_may_be_the_blank():
    values, _ = value_and_gradient(BATCH, jnp.tile(jnp.array([[0, 1, -1]]), (len(BATCH), 1)), blank=2)
    np.testing.assert_allclose(values, every_path(LOGITS, [0, 1], blank=2)[0], rtol=1e-5)


def test_it_is_optax_on_an_ordinary_batch():
    rng = np.random.default_rng(1)
    logits, labels = jnp.asarray(rng.normal(size=(3, 12, 6)), jnp.float32), jnp.asarray(rng.integers(1, 6, (3, 4)))
    frames, length = jnp.array([12, 10, 9]), jnp.array([4, 2, 3])
    late, beyond = jnp.arange(12)[None] >= frames[:, None], jnp.arange(4)[None] >= length[:, None]
    with jax.disable_jit(False):
        expected = jax.jit(optax.losses.ctc_loss)(logits, late.astype(float), labels, beyond.astype(float))
        values = jax.jit(losses.ctc)(logits, labels, logit_lengths=frames, label_lengths=length)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_it_is_never_negative():
    """Where nearly every path spells the label, rounding decides the sign: 1 % of these were at -1e-7 before it was cut off."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, TIME, CLASSES)) * rng.choice([1, 5, 10, 20], (4000, 1, 1))
    logits[:, :2, 1], logits[:, 2:, 0], logits[:, :, 2] = logits[:, :2, 1] + 15, logits[:, 2:, 0] + 8, -np.inf
    with jax.disable_jit(False):
        values = jax.jit(losses.ctc)(jnp.asarray(logits, jnp.float32), jnp.ones((4000, 1), int))
    assert values.min() == 0


def test_it_is_finite_at_extreme_logits():
    size = jnp.array([1.0, 5.0, 10.0, 15.0, 18.0, 20.0, 50.0, 1e4, 1e10, 1e30, 1e38])
    logits = size[:, None, None] * jax.nn.one_hot(jnp.array([1, 0, 2, 2]), CLASSES)[None]
    values, gradient = value_and_gradient(logits, jnp.tile(jnp.array([[1, 2, -1]]), (len(BATCH), 1)))
    wrong, wrong_gradient = value_and_gradient(logits, jnp.tile(jnp.array([[2, 1, -1]]), (len(BATCH), 1)))
    np.testing.assert_allclose(values[5:], 0, atol=1e-7)
    np.testing.assert_allclose(wrong[6:], 2 * size[6:], rtol=1e-5)  # at least two of the four frames are wrong
    assert np.isfinite(gradient).all()
    assert np.isfinite(wrong_gradient).all()


def test_a_class_removed_by_minus_infinity_takes_its_paths_along():
    logits = BATCH.at[:, 1, 0].set(-jnp.inf)  # no blank in the second frame
    values, gradient = value_and_gradient(logits)
    expected = [every_path(np.asarray(logits[0], float), [c for c in labels if c >= 0])[0] for labels, _ in CASES.values()]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.isinf(values).any()
    assert np.isfinite(gradient).all()


def test_a_label_that_is_the_blank_or_no_class_gives_nan_without_a_gradient():
    labels = LABELS.at[:3, :2].set(jnp.array([[1, 0], [1, 3], [-5, 1]]))
    values, gradient = value_and_gradient(BATCH, labels, label_lengths=jnp.full(len(BATCH), 1).at[:3].set(2))
    np.testing.assert_array_equal(np.isnan(values[:4]), [True, True, True, False])
    np.testing.assert_array_equal(gradient[:3], 0)
    assert np.isfinite(gradient).all()


def test_there_may_be_no_labels_at_all():
    values, _ = value_and_gradient(BATCH, jnp.zeros((len(BATCH), 0), int))
    np.testing.assert_allclose(values, every_path(LOGITS, [])[0], rtol=1e-5)


def test_options_and_shapes_are_checked(unchecked):
    x, y = BATCH[:2], LABELS[:2]
    for call, message in [
        (
            lambda: losses.ctc(x[0], y),
            r"ctc: logits must be \[batch, time, classes\] and labels \[batch, length\], got \(4, 3\)",
        ),
        (lambda: losses.ctc(x, y[:1]), r"ctc: logits must be"),
        (lambda: losses.ctc(x, y, logit_lengths=FRAMES), r"ctc: logit_lengths must have shape \(2,\), got \(11,\)\."),
        (lambda: losses.ctc(x, y, label_lengths=FRAMES), r"ctc: label_lengths must have shape \(2,\), got \(11,\)\."),
        (lambda: losses.ctc(x, y, blank=3), r"ctc: blank must be one of the 3 classes, got 3\."),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
