"""Metrics against scikit-learn, and exactness: uneven batches, padding, devices, and the limits of float32 and int32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnets import metrics

CLASSES = 5
CONFUSION = metrics.confusion_matrix(CLASSES)


def examples(seed=0, size=96):
    """Logits that are often right; the last class is never true and never predicted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES - 1, size).astype("int32")
    logits = rng.normal(size=(size, CLASSES)).astype("float32") + 2 * np.eye(CLASSES, dtype="float32")[labels]
    logits[:, -1] = -20
    return logits, labels


# numpy for scikit-learn, and the same as JAX arrays
LOGITS, LABELS = examples()
PREDICTIONS = LOGITS.argmax(-1).astype("int32")
PROBABILITIES = np.asarray(jax.nn.softmax(LOGITS))
X, Y, P = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(PREDICTIONS)


@functools.partial(jax.jit, static_argnums=0)
def gather(metric, *batch, weight=None):
    return metric.update(metric.init(), *batch, weight=weight)


def measure(metric, *batch, weight=None):
    return metric.compute(gather(metric, *batch, weight=weight))


# ----------------------------------------------------------------------------------------------------- against scikit-learn


def test_accuracies_and_perplexity_equal_sklearn(jit):
    score = jit(lambda x, y: [measure(m, x, y) for m in (metrics.accuracy(), metrics.top_k(2), metrics.perplexity())])
    expected = [
        sklearn.metrics.accuracy_score(LABELS, PREDICTIONS),
        sklearn.metrics.top_k_accuracy_score(LABELS, LOGITS, k=2, labels=range(CLASSES)),
        np.exp(sklearn.metrics.log_loss(LABELS, PROBABILITIES, labels=range(CLASSES))),
    ]
    np.testing.assert_allclose(score(X, Y), expected, rtol=2e-6)


@pytest.mark.parametrize("weight", [None, jnp.arange(96) % 3, jnp.arange(96) % 4 / 2])
def test_confusion_matrix_equals_sklearn(jit, weight):
    matrix = jit(lambda *batch: measure(CONFUSION, *batch, weight=weight))(P, Y)
    expected = sklearn.metrics.confusion_matrix(
        LABELS, PREDICTIONS, labels=range(CLASSES), sample_weight=None if weight is None else np.asarray(weight)
    )
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("average", [None, "macro", "micro", "weighted"])
@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
def test_precision_recall_f1_and_iou_equal_sklearn(average, zero_division):
    matrix = measure(CONFUSION, P, Y)
    options = {"average": average, "zero_division": zero_division}
    scores = [score(matrix, **options) for score in (metrics.precision, metrics.recall, metrics.f1)]
    reference = sklearn.metrics.precision_recall_fscore_support(LABELS, PREDICTIONS, labels=range(CLASSES), **options)
    np.testing.assert_allclose(scores, reference[:3], rtol=1e-6)
    if zero_division == zero_division:  # scikit-learn's jaccard_score takes no NaN
        reference = sklearn.metrics.jaccard_score(LABELS, PREDICTIONS, labels=range(CLASSES), **options)
        np.testing.assert_allclose(metrics.iou(matrix, **options), reference, rtol=1e-6)


def test_segmentation_scores_equal_their_definitions_and_leave_absent_classes_out():
    matrix = jnp.array([[6.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(metrics.iou(matrix), [6 / 9, 3 / 6, np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_iou(matrix), (6 / 9 + 3 / 6) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics.frequency_weighted_iou(matrix), (8 * 6 / 9 + 4 * 3 / 6) / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics.pixel_accuracy(matrix), 9 / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_accuracy(matrix), (6 / 8 + 3 / 4) / 2, rtol=1e-6)
    ensemble = metrics.mean_iou(jnp.stack([matrix, jnp.eye(3)]))
    np.testing.assert_allclose(ensemble, [(6 / 9 + 3 / 6) / 2, 1], rtol=1e-6)


def test_calibration_equals_sklearn(jit):
    result = jit(lambda x, y: measure(metrics.calibration(bins=10), x, y))(X, Y)
    confidence, right = PROBABILITIES.max(-1), PREDICTIONS == LABELS
    accuracy, mean_confidence = sklearn.calibration.calibration_curve(right, confidence, n_bins=10)
    full = np.asarray(result.count) > 0
    np.testing.assert_allclose(result.accuracy[full], accuracy, rtol=1e-6)
    np.testing.assert_allclose(result.confidence[full], mean_confidence, rtol=1e-6)
    gap, share = np.abs(accuracy - mean_confidence), np.asarray(result.count)[full] / LABELS.size
    np.testing.assert_allclose(result.expected_error, (share * gap).sum(), rtol=1e-5)
    np.testing.assert_allclose(result.maximum_error, gap.max(), rtol=1e-5)
    brier = sklearn.metrics.brier_score_loss(LABELS, PROBABILITIES, labels=range(CLASSES), scale_by_half=False)
    np.testing.assert_allclose(result.brier, brier, rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- exactness


def confusion_of_logits(state, logits, labels, weight=None):
    return CONFUSION.update(state, logits.argmax(-1), labels, weight=weight)


METRICS = [
    metrics.accuracy(),
    metrics.top_k(2),
    metrics.perplexity(),
    metrics.calibration(bins=4),
    CONFUSION._replace(update=confusion_of_logits),
]


def assert_equal_trees(actual, expected, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), actual, expected)


def test_an_uneven_last_batch_with_padding_changes_nothing(jit):
    """Padding holds NaN and labels out of range: under weight 0 even these count for nothing."""
    size, batch = 83, 32
    padded = -size % batch
    logits = jnp.concatenate([X[:size], jnp.full((padded, CLASSES), jnp.nan)]).reshape(-1, batch, CLASSES)
    labels = jnp.concatenate([Y[:size], jnp.full(padded, -100)]).reshape(-1, batch)
    mask = (jnp.arange(size + padded) < size).reshape(-1, batch)
    for metric in METRICS:
        update = jit(metric.update)
        state = metric.init()
        for x, y, w in zip(logits, labels, mask, strict=True):
            state = update(state, x, y, weight=w)
        whole = measure(metric, X[:size], Y[:size])
        assert_equal_trees(metric.compute(state), whole, rtol=1e-6)


def test_states_of_two_halves_add_up_to_the_state_of_the_whole():
    for metric in METRICS:
        first, second = (gather(metric, X[i::2], Y[i::2]) for i in (0, 1))
        merged = jax.tree.map(jnp.add, first, second)
        assert_equal_trees(metric.compute(merged), measure(metric, X, Y), rtol=1e-6)


def test_two_devices_count_what_one_counts():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    data = PartitionSpec("data")
    batch = X, Y, jnp.arange(LABELS.size) < 75
    sharded = jax.device_put(batch, NamedSharding(mesh, data))
    for metric in METRICS:

        def count(logits, labels, weight, metric=metric):
            return metric.update(metric.init(), logits, labels, weight=weight)

        def count_and_merge(*batch, count=count):
            return jax.lax.psum(count(*batch), "data")

        with jax.disable_jit(False):  # a program over devices runs compiled; shard_map without jit takes a minute
            local, together = (jax.jit(count)(*placed) for placed in (batch, sharded))
            merged = jax.jit(jax.shard_map(count_and_merge, mesh=mesh, in_specs=data, out_specs=PartitionSpec()))(*sharded)
        assert_equal_trees(metric.compute(merged), metric.compute(local), rtol=1e-6)
        assert_equal_trees(metric.compute(together), metric.compute(local), rtol=1e-6)
    assert_equal_trees(merged, local)  # the confusion matrix, bit for bit
    assert_equal_trees(together, local)


def test_counting_goes_on_past_the_last_integers_of_float32_and_int32(jit):
    """Float32 stops at 2^24 (2^24 + 1 == 2^24) and int32 turns negative at 2^31; the closed form does neither."""
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)
    add = jit(lambda state, value: metrics.add(state, value))  # a fresh function: jit caches by function
    one = metrics.add(metrics.zero(), jnp.asarray(1.0))
    for big, times in ((2.0**24, 1), (2**30 + 1, 5), (2.0**24, 300)):
        state = metrics.zero()
        for _ in range(times):
            state = add(state, jnp.asarray(big))
        for _ in range(3):
            state = add(state, jnp.asarray(1.0))
        merged = jax.tree.map(jnp.add, state, one)  # another device has seen one
        assert 4096 * int(merged.high) + int(merged.low) + int(merged.lost) == big * times + 4


def test_a_confusion_matrix_keeps_single_counts_beside_large_ones():
    state = CONFUSION.init()
    big = metrics.add(state.matrix, jnp.full((CLASSES, CLASSES), 2**24))
    after = CONFUSION.update(state._replace(matrix=big), jnp.array([0]), jnp.array([0]))
    difference = jax.tree.map(jnp.subtract, after.matrix, big)
    np.testing.assert_array_equal(metrics.total(difference), np.eye(CLASSES) * (np.arange(CLASSES) == 0))


@pytest.mark.parametrize("value", [0.1, 1e-6, 300.7])
def test_a_mean_over_many_batches_does_not_drift(value):
    """A plain float32 sum of 20000 times 0.1 is off by 2e-4 relative."""
    values = jnp.full(20_000, value)
    metric = metrics.mean()
    with jax.disable_jit(False):  # 20000 steps
        state, _ = jax.lax.scan(lambda state, v: (metric.update(state, v), None), metric.init(), values)
    np.testing.assert_allclose(metric.compute(state), np.float32(value), rtol=2e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    """bfloat16 stops counting at 256."""
    logits, labels = jnp.zeros((1001, 2), dtype), jnp.zeros(1001, int)
    assert metrics.correct(logits, labels).dtype == "float32"
    assert measure(metrics.accuracy(), logits, labels) == 1
    assert measure(metrics.mean(), jnp.ones(1001, dtype), weight=jnp.full(1001, 0.5, dtype)) == 1
    assert measure(metrics.calibration(), logits, labels, weight=jnp.ones(1001, dtype)).count.sum() == 1001


# ---------------------------------------------------------------------------------------------------------------- edge cases


def test_correct_breaks_ties_like_argmax_and_counts_nan_and_foreign_labels_as_wrong():
    logits = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [np.nan, 0.0, 0.0], [0.0, np.nan, 3.0], [0.0, 0.0, 1.0]])
    labels = jnp.array([0, 1, 0, 2, -1])
    np.testing.assert_array_equal(metrics.correct(logits, labels), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(metrics.top_k_correct(logits, labels, k=2), [1, 1, 0, 1, 0])
    masked = jnp.array([[-jnp.inf, 0.0, 1.0]])
    np.testing.assert_array_equal(metrics.correct(masked, jnp.array([2])), [1])
    np.testing.assert_array_equal(metrics.correct(masked, jnp.array([0])), [0])


def test_infinities_and_nan_are_reported_not_hidden(jit):
    mean = jit(lambda v: measure(metrics.mean(), v))
    assert mean(jnp.array([1.0, jnp.inf])) == jnp.inf
    assert jnp.isnan(mean(jnp.array([1.0, jnp.nan])))
    assert jnp.isnan(metrics.mean().compute(metrics.mean().init()))
    logits = jnp.array([[0.0, -jnp.inf]])
    assert measure(metrics.perplexity(), logits, jnp.array([1])) == jnp.inf
    assert measure(metrics.perplexity(), logits, jnp.array([0])) == 1
    assert jnp.isnan(measure(metrics.perplexity(), logits, jnp.array([2])))


def test_perplexity_keeps_its_digits_under_a_common_offset_of_the_logits():
    logits, labels = jnp.array([[0.0, 1.0, 3.0], [2.0, 0.5, 1.0]]), jnp.array([0, 1])
    expected = measure(metrics.perplexity(), logits, labels)
    np.testing.assert_allclose(measure(metrics.perplexity(), logits + 2.0**20, labels), expected, rtol=1e-6)


def test_ignored_labels_leave_the_matrix_and_foreign_ones_turn_it_to_nan():
    labels = jnp.where(jnp.arange(LABELS.size) % 4 == 0, 255, Y).astype("uint8").reshape(8, 12)
    predictions = P.astype("uint8").reshape(8, 12)
    matrix = measure(metrics.confusion_matrix(CLASSES, ignore_index=255), predictions, labels)
    kept = np.arange(LABELS.size) % 4 != 0
    np.testing.assert_array_equal(
        matrix, sklearn.metrics.confusion_matrix(LABELS[kept], PREDICTIONS[kept], labels=range(CLASSES))
    )
    assert jnp.isnan(measure(CONFUSION, predictions, labels)).all()
    assert jnp.isnan(metrics.mean_iou(measure(CONFUSION, predictions, labels)))
    assert jnp.isnan(measure(CONFUSION, jnp.array([CLASSES]), jnp.array([0]))).all()


def test_top_k_of_no_class_is_an_error():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        metrics.top_k(0)


def test_many_classes_do_not_wrap_small_integer_labels():
    index = jnp.arange(200, dtype="uint8")
    np.testing.assert_array_equal(measure(metrics.confusion_matrix(200), index, index), np.eye(200))
    # As a uint8, -100 would be 156 and leave that class out.
    np.testing.assert_array_equal(measure(metrics.confusion_matrix(200, ignore_index=-100), index, index), np.eye(200))


def test_metrics_vmap_over_an_ensemble_and_scan_over_batches():
    members = jnp.stack([jnp.asarray(examples(seed)[0]) for seed in range(3)])
    for metric in METRICS:
        init = jax.vmap(lambda _, metric=metric: metric.init())(jnp.arange(3))
        state = jax.jit(jax.vmap(metric.update, (0, 0, None)))(init, members, Y)
        together = jax.vmap(metric.compute)(state)
        single = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[measure(metric, m, Y) for m in members])
        assert_equal_trees(together, single, rtol=1e-6)
        assert_equal_trees(metric.compute(state), single, rtol=1e-6)

        def step(state, batch, metric=metric):
            return metric.update(state, *batch), None

        batches = (X.reshape(3, 32, CLASSES), Y.reshape(3, 32))
        state, _ = jax.lax.scan(step, metric.init(), batches)
        assert_equal_trees(metric.compute(state), measure(metric, X, Y), rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"top_k_correct: k must be in \[1, classes\] = \[1, 5\], got 6"):
        metrics.top_k_correct(X, Y, k=6)
    with pytest.raises(ValueError, match="calibration: bins must be at least 1, got 0"):
        metrics.calibration(bins=0)
    with pytest.raises(ValueError, match="confusion_matrix: classes must be at least 1, got 0"):
        metrics.confusion_matrix(0)
    with pytest.raises(ValueError, match=r"class indices .* of shape \(96,\), got float32 of shape \(96, 5\)"):
        measure(CONFUSION, X, Y)
    with pytest.raises(ValueError, match=r"leading axes of \(96,\), got \(4,\)"):
        measure(metrics.accuracy(), X, Y, weight=jnp.ones(4))
