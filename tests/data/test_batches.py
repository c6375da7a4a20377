"""Order, batches and splits: what is promised about which example comes when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data import batches
from jaxnets.types import InputError


def numbered(size, **fields):
    x = np.arange(2 * size, dtype=np.float32).reshape(size, 2)
    return batches.Dataset(x, np.arange(size, dtype=np.int32), **fields)


@pytest.mark.parametrize("index", [slice(1, 4), np.array([3, 0]), np.array([[3, 0], [1, 1]]), 2], ids=str)
@pytest.mark.parametrize("host", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_an_index_selects_in_every_field(index, host):
    data = jax.tree.map(host, numbered(5, weight=np.arange(5.0, dtype=np.float32)))
    part = data[index]
    assert isinstance(part, batches.Dataset)
    for field in ("x", "y", "weight"):
        np.testing.assert_array_equal(getattr(part, field), np.asarray(getattr(data, field))[index])


@pytest.mark.parametrize("host", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_iteration_ends_and_nested_fields_and_no_weight_are_fine(host):
    data = batches.Dataset({"a": host(np.arange(3)), "b": host(np.ones((3, 2)))}, host(np.arange(3)))
    assert len(data) == 3
    assert [int(example.y) for example in data] == [0, 1, 2]
    assert data[:2].weight is None
    assert data[:2].x["b"].shape == (2, 2)


def test_a_dataset_is_a_pytree_inside_jit_and_scan(jit):
    data = jax.tree.map(jnp.asarray, numbered(6))
    rows = jnp.array([[0, 5], [3, 2]])
    _, sums = jit(lambda d: jax.lax.scan(lambda c, row: (c, d[row].y.sum()), 0, rows))(data)
    np.testing.assert_array_equal(sums, [5, 5])


def test_the_order_is_the_recorded_one_on_every_version():
    """Recorded 2026-11-22 with NumPy 2.4.6 from Philox(key=(seed, epoch)).random_raw, whose stream NumPy keeps."""
    assert batches.epoch_order(0, 0, 10).tolist() == GOLDEN[0]
    assert batches.epoch_order(7, 3, 10).tolist() == GOLDEN[1]


def test_every_epoch_is_another_permutation():
    orders = np.stack([batches.epoch_order(seed, epoch, 101) for seed in range(3) for epoch in range(4)])
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(101), (12, 1)))
    assert len(np.unique(orders, axis=0)) == 12


def test_every_position_is_equally_likely():
    """Chi-square over 8x8 cells, 4000 epochs: 49 degrees of freedom (doubly constrained), 99.99 % quantile 97."""
    orders = np.stack([batches.epoch_order(1, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])
    assert ((counts - 500) ** 2 / 500).sum() * 7 / 8 < 97


def test_indices_of_a_step_do_not_depend_on_where_the_run_started():
    whole = batches.indices(5, 0, 13, 23, 4)
    assert whole.shape == (13, 4)
    assert whole.dtype == np.int32
    pieces = [batches.indices(5, a, b, 23, 4) for a, b in [(0, 1), (1, 1), (1, 7), (7, 13)]]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(whole[5:10].ravel(), batches.epoch_order(5, 1, 23)[:20])


def test_an_epoch_visits_no_example_twice():
    rows = batches.indices(0, 0, batches.steps_per_epoch(23, 4), 23, 4)
    assert len(np.unique(rows)) == rows.size == 20


def test_without_shuffling_every_epoch_is_in_order():
    rows = batches.indices(5, 0, 13, 23, 4, shuffle=False)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows.ravel(), np.arange(13 * 4) % 20)
    np.testing.assert_array_equal(batches.indices(0, 7, 9, 23, 4, shuffle=False), rows[7:9])
    parts = [batches.indices(0, 0, 13, 23, 4, shuffle=False, host=host, hosts=2) for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), rows)  # a host keeps its streams


def test_hosts_share_every_batch_of_the_single_host_run():
    parts = [batches.indices(2, 3, 9, 30, 6, host=host, hosts=3) for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches.indices(2, 3, 9, 30, 6))


@pytest.mark.parametrize("host", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_split_is_a_partition_that_keeps_the_classes_shares(host):
    y = np.repeat(np.arange(4), [10, 50, 33, 7]).astype(np.int32)
    data = batches.Dataset(host(np.arange(100)), host(y))
    rest, held = batches.split(data, 0.3, seed=1)
    assert len(held) == 30
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.x, held.x])), np.arange(100))
    assert np.abs(np.bincount(held.y) - 0.3 * np.bincount(y)).max() < 1
    np.testing.assert_array_equal(y[np.asarray(held.x)], held.y)
    assert not np.array_equal(held.x, batches.split(data, 0.3, seed=2)[1].x)
    np.testing.assert_array_equal(held.x, batches.split(data, 0.3, seed=1)[1].x)


def test_targets_that_are_no_classes_are_split_at_random():
    data = batches.Dataset(np.arange(50), np.linspace(0, 1, 50))
    rest, held = batches.split(data, 0.5)
    assert len(rest) == len(held) == 25
    assert 5 < (held.x < 25).sum() < 20
    assert len(batches.split(batches.Dataset(np.arange(10), None), 0.2)[1]) == 2


def test_labels_become_int32():
    data = batches.labeled(np.zeros((3, 2)), np.array([0, 2, 1], np.uint8), classes=3)
    assert data.y.dtype == np.int32
    np.testing.assert_array_equal(data.y, [0, 2, 1])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 3, 1], r"here: expected labels 0\.\.2, got 3 at example 1 \(1 wrong\)"),
        ([0, -1, -1], r"here: expected labels 0\.\.2, got -1 at example 1 \(2 wrong\)"),
        ([0, 1], "here: expected as many labels as inputs, at least 1, got 3 inputs, 2 labels"),
        ([0.0, 1.0, 2.0], r"here: expected one integer label per example, got float64\[3\]"),
        ([[0], [1], [2]], r"here: expected one integer label per example, got int64\[3, 1\]"),
    ],
)
def test_bad_labels_are_named(y, message):
    with pytest.raises(InputError, match=message):
        batches.labeled(np.zeros((3, 2)), np.array(y), classes=3, source="here")


def test_an_empty_set_of_labels_is_named():
    with pytest.raises(InputError, match="at least 1, got 0 inputs, 0 labels"):
        batches.labeled(np.zeros((0, 2)), np.zeros(0, int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batches.steps_per_epoch(10, 11), r"batch must be in 1\.\.10 \(the number of examples\), got 11"),
        (lambda: batches.indices(0, 0, 1, 10, 0), r"batch must be in 1\.\.10 .*got 0"),
        (lambda: batches.indices(0, 0, 1, 10, 5, hosts=2), "batch must be a multiple of the 2 hosts, got 5"),
        (lambda: batches.indices(0, 2, 1, 10, 5), "expected 0 <= start <= stop, got 2, 1"),
        (lambda: batches.indices(0, 0, 1, 10, 5, host=1), r"host must be in 0\.\.0, got 1"),
        (lambda: batches.epoch_order(-1, 0, 5), "seed must be in .* got -1"),
        (lambda: batches.epoch_order(0, -1, 5), "epoch must be at least 0, got -1"),
        (lambda: batches.split(numbered(3), 1.0), r"fraction must be in \(0, 1\).*got 1.0 of 3"),
        (lambda: batches.split(numbered(3), 2.5 / 3), "leave examples on both sides"),
        (lambda: batches.split(numbered(3), 0.1), r"leave examples on both sides, got 0.1 of 3"),
    ],
)
def test_impossible_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


GOLDEN = [[0, 2, 9, 1, 8, 5, 4, 3, 6, 7], [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]]
