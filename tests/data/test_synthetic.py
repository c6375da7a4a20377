"""Tasks with a known answer: what is drawn is the task of the paper, and knowing nothing costs what the docstring says."""

import math

import jax
import numpy as np
import pytest

from jaxnets.data import synthetic


@pytest.mark.parametrize("time", [3, 6])
def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum(jit, key, time):
    data = jit(synthetic.adding, static_argnums=(1, 2))(key, 64, time)
    numbers, marks = np.moveaxis(np.asarray(data.x), -1, 0)
    assert numbers.shape == (64, time)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert set(np.unique(marks)) <= {0, 1}
    for half in (marks[:, : time // 2], marks[:, time // 2 :]):
        np.testing.assert_array_equal(half.sum(axis=1), 1)
    assert len(np.unique(marks, axis=0)) == time // 2 * (time - time // 2)  # every pair of places is drawn
    np.testing.assert_allclose(data.y, (numbers * marks).sum(axis=1), rtol=1e-6)


def test_knowing_nothing_of_adding_costs_a_sixth(key):
    y = np.asarray(synthetic.adding(key, 20_000, 4).y)
    # Four standard errors: (y - 1)^2 has mean 1/6 and second moment 1/15, the fourth of the triangular distribution.
    assert abs(((y - 1) ** 2).mean() - 1 / 6) < 4 * math.sqrt((1 / 15 - 1 / 36) / 20_000)


def test_copying_asks_for_the_first_symbols_at_the_end(jit, key):
    data = jit(lambda key: synthetic.copying(key, 50, 4, symbols=5, length=3))(key)
    x, y = np.asarray(data.x), np.asarray(data.y)
    assert x.shape == y.shape == (50, 4 + 2 * 3)
    assert x.dtype == y.dtype == np.int32
    assert set(np.unique(x[:, :3])) == set(range(5))
    np.testing.assert_array_equal(x[:, 3:], np.tile([5, 5, 5, 6, 5, 5, 5], (50, 1)))  # the signal, then 3 answers
    np.testing.assert_array_equal(y[:, -3:], x[:, :3])
    assert (y[:, :-3] == 5).all()


def test_another_key_is_another_draw(key):
    for task in (lambda key: synthetic.adding(key, 4, 3).x, lambda key: synthetic.copying(key, 4, 3).x):
        assert not np.array_equal(task(key), task(jax.random.key(1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: synthetic.adding(key, 1, 1), "adding: time must be at least 2 and examples at least 1, got 1, 1"),
        (lambda key: synthetic.adding(key, 0, 2), "adding: .* got 2, 0"),
        (lambda key: synthetic.copying(key, 1, 0), "copying: .* must be at least 1, got 0, 8, 10, 1"),
        (lambda key: synthetic.copying(key, 1, 1, length=0), "copying: .* got 1, 8, 0, 1"),
    ],
)
def test_impossible_tasks_are_named(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
