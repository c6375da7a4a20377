"""Sequences of different lengths: the `.ts` format line by line, padding, and buckets that waste least."""

import itertools
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.data import batches, sequences
from jaxnets.types import InputError

VOWELS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "sequences"
HEADER = """# a comment
@problemName Two
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true b a
"""
CASES = """@data
1,2,3:4,5,6:a
# another comment

-1.5e1:+.5:b
"""


def write(tmp_path, *lines):
    path = tmp_path / "two.ts"
    path.write_text("".join(lines))
    return path


def changed(line):
    """The header with one line said otherwise."""
    name = line.split()[0]
    return "".join(f"{line}\n" if old.startswith(name) else old for old in HEADER.splitlines(keepends=True))


def test_a_file_becomes_padded_sequences_and_classes_in_the_order_of_the_header(tmp_path):
    data, classes = sequences.from_ts(write(tmp_path, HEADER, CASES))
    assert classes == ("b", "a")
    np.testing.assert_array_equal(data.x, [[[1, 4], [2, 5], [3, 6]], [[-15, 0.5], [0, 0], [0, 0]]])
    np.testing.assert_array_equal(data.lengths, [3, 1])
    np.testing.assert_array_equal(data.y, [1, 0])
    assert (data.x.dtype, data.y.dtype, data.lengths.dtype, data.weight) == (np.float32, np.int32, np.int32, None)


@pytest.mark.parametrize("header", ["@CLASSLABEL false\n@DATA\n", "@data\n"])
def test_a_header_may_say_less_and_names_are_of_any_case(tmp_path, header):
    data, classes = sequences.from_ts(write(tmp_path, header, "1,2:3,4\n5:6"))
    assert (data.x.shape, data.y, classes) == ((2, 2, 2), None, ())


def test_a_missing_value_is_nan_where_the_header_allows_it(tmp_path):
    data, _ = sequences.from_ts(write(tmp_path, changed("@missing true"), "@data\n1,?:NaN,4:a\n"))
    np.testing.assert_array_equal(data.x, [[[1, np.nan], [np.nan, 4]]])


@pytest.mark.parametrize(
    ("header", "cases", "message"),
    [
        (HEADER, CASES + "1,2:a\n", r"two\.ts, line 14: expected 2 dimensions, got 1"),
        (HEADER, CASES + "1:2:3:a\n", "line 14: expected 2 dimensions, got 3"),
        (HEADER, CASES + "1,2:3:a\n", r"line 14: expected dimensions of one length, got lengths \[2, 1\]"),
        (HEADER, CASES + "1:2:c\n", "line 14: expected a label of b, a at the end, got 'c'"),
        (HEADER, CASES + "1,2:3,4", "line 14: expected a label of b, a at the end, got '3,4'"),  # truncated
        (HEADER, CASES + "1,2:3,4:", "line 14: expected a label of b, a at the end, got ''"),
        (HEADER, CASES + "1,x:3,4:a\n", "line 14: expected numbers .*'x'"),
        (HEADER, CASES + "1,:3,4:a\n", "line 14: expected numbers"),
        (HEADER, CASES + "1,2:3,1e39:a\n", "line 14: expected finite numbers, got 1e.39"),
        (HEADER, CASES + "1,2:3,-inf:a\n", "line 14: expected finite numbers, got inf"),
        (HEADER, CASES + "1,?:3,4:a\n", "line 14: a value is missing, but the header does not say @missing true"),
        (HEADER, "", r"two\.ts: expected a line @data, got none"),
        (HEADER, "@data\n", r"two\.ts: expected sequences after @data, got none"),
        (HEADER, "1:2:a\n", "line 9: expected a line of the header or @data, got '1:2:a'"),
        (changed("@timeStamps true"), CASES, "line 3: @timestamps true is not supported"),
        (HEADER + "@targetLabel true\n", CASES, "line 9: @targetlabel true is not supported"),
        (changed("@dimensions two"), CASES, "line 6: expected @dimensions and a positive number, got '@dimensions two'"),
        (changed("@classLabel true a a"), CASES, "line 8: expected @classLabel true and different names"),
        (changed("@classLabel true"), CASES, "line 8: expected @classLabel true and different names"),
        (changed("@univariate true"), CASES, "line 10: expected 1 dimensions, got 2"),
        (changed("@equalLength true"), CASES, r"line 13: expected 3 values in each dimension .*, got 1"),
        (changed("@equalLength true") + "@seriesLength 2\n", CASES, "line 11: expected 2 values in each dimension"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, header, cases, message):
    with pytest.raises(InputError, match=message):
        sequences.from_ts(write(tmp_path, header, cases))


def test_padding_keeps_what_there_is_and_its_type():
    arrays = [np.ones((2, 3), np.float16), np.zeros((0, 3), np.float16), np.full((1, 3), np.nan, np.float16)]
    padded, lengths = sequences.pad(arrays, time=4)
    assert (padded.shape, padded.dtype, lengths.tolist()) == ((3, 4, 3), np.float16, [2, 0, 1])
    for row, array in zip(padded, arrays, strict=True):
        np.testing.assert_array_equal(row, np.concatenate([array, np.zeros((4 - len(array), 3))]))
    assert sequences.pad([[1, 2], [3]])[0].tolist() == [[1, 2], [3, 0]]


def test_sequences_are_a_pytree_that_can_be_cut(jit):
    data = sequences.Sequences(jnp.ones((3, 5, 2)), jnp.arange(3), lengths=jnp.array([1, 5, 2]))
    part = jit(lambda d, where: d[where].first(2))(data, jnp.array([2, 0]))
    assert isinstance(part, sequences.Sequences)
    assert (part.x.shape, part.y.tolist(), part.lengths.tolist()) == ((2, 2, 2), [2, 0], [2, 1])


@pytest.mark.parametrize("buckets", [1, 2, 3, 7, 20])
def test_boundaries_waste_the_least_of_all_choices(buckets):
    lengths = np.random.default_rng(buckets).choice([1, 2, 3, 5, 8, 13, 21], 40, p=[0.1, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1])
    ends = sequences.boundaries(lengths, buckets)
    distinct = np.unique(lengths)

    def steps(ends):
        return np.asarray(ends)[np.searchsorted(ends, lengths)].sum()

    choices = itertools.combinations(distinct[:-1], min(buckets, len(distinct)) - 1)
    assert steps(ends) == min(steps([*choice, distinct[-1]]) for choice in choices)
    assert len(ends) == min(buckets, len(distinct))


def test_boundaries_of_long_sequences_are_cheap_and_nearly_as_good():
    lengths = np.random.default_rng(0).integers(1, 100_000, 5000)
    ends = sequences.boundaries(lengths, 4)
    assert ends[-1] == lengths.max()
    padded = ends[np.searchsorted(ends, lengths)].sum()
    np.testing.assert_allclose(padded, lengths.mean() * len(lengths) * 1.25, rtol=0.03)  # of equal buckets: half a bucket
    assert sequences.boundaries(np.array([0, 0]), 2).tolist() == [1]


def test_batches_of_similar_lengths_hold_the_examples_of_their_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 103)
    positions, times = sequences.bucketed(3, 0, 20, lengths, 10, buckets=3)
    assert positions.shape == (20, 10)
    assert set(times) <= set(sequences.boundaries(lengths, 3))
    assert (lengths[positions].max(axis=1) <= times).all()
    same = batches.indices(3, 0, 20, 103, 10)
    for epoch in (slice(0, 10), slice(10, 20)):
        np.testing.assert_array_equal(np.sort(positions[epoch], axis=None), np.sort(same[epoch], axis=None))
        # All but the batches between two buckets are of one bucket: the least that batches of one size allow.
        ends = np.searchsorted(sequences.boundaries(lengths, 3), lengths[positions[epoch]])
        assert (ends.min(axis=1) < ends.max(axis=1)).sum() <= 2


def test_the_batches_of_every_epoch_come_in_another_order():
    _, times = sequences.bucketed(0, 0, 30, np.repeat([1, 2], 20), 4)
    epochs = times.reshape(3, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.repeat([1, 2], 5), (3, 1)))
    assert len(np.unique(epochs, axis=0)) == 3


def test_batches_do_not_depend_on_where_the_run_started():
    lengths = np.random.default_rng(1).integers(0, 9, 23)
    whole = sequences.bucketed(5, 0, 13, lengths, 4)
    pieces = [sequences.bucketed(5, a, b, lengths, 4) for a, b in [(0, 0), (0, 1), (1, 1), (1, 7), (7, 13)]]
    for part, expected in zip(zip(*pieces, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), expected)
    assert not np.array_equal(whole[0], sequences.bucketed(6, 0, 13, lengths, 4)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequences.pad([]), r"pad: expected arrays that differ only in their first axis, got \[\]"),
        (lambda: sequences.pad([np.zeros((2, 3)), np.zeros((2, 4))]), r"pad: .* got \[\(2, 3\), \(2, 4\)\]"),
        (lambda: sequences.pad([1.0]), r"pad: .* got \[\(\)\]"),
        (lambda: sequences.pad([np.zeros(3)], time=2), "pad: time must be at least the longest length 3, got 2"),
        (lambda: sequences.boundaries(np.array([3]), 0), r"in at least 1 bucket, got \[3\], 0"),
        (lambda: sequences.boundaries(np.array([3, -1]), 1), r"expected lengths of at least 0 .*got \[ 3 -1\], 1"),
        (lambda: sequences.boundaries(np.array([], int), 1), r"expected lengths of at least 0 .*got \[\], 1"),
        (lambda: sequences.bucketed(0, 0, 1, np.array([3]), 2), r"batch must be in 1\.\.1 .*got 2"),
        (lambda: sequences.bucketed(0, 2, 1, np.arange(9), 1), "expected 0 <= start <= stop, got 2, 1"),
    ],
)
def test_impossible_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not VOWELS.is_dir(), reason="no ../shared/data/sequences")
def test_japanese_vowels_are_as_the_archive_describes_them():
    """270 and 370 utterances of 7 to 29 frames by 9 speakers, 30 each in training (the description in the files' comments)."""
    (train, classes), (test, _) = (sequences.from_ts(VOWELS / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    assert (train.x.shape[::2], test.x.shape[::2]) == ((270, 12), (370, 12))
    assert classes == tuple("123456789")
    assert np.bincount(train.y).tolist() == [30] * 9
    assert (np.bincount(test.y).min(), np.bincount(test.y).max()) == (24, 88)
    assert (min(train.lengths.min(), test.lengths.min()), max(train.lengths.max(), test.lengths.max())) == (7, 29)
    beyond = np.arange(train.x.shape[1])[None] >= train.lengths[:, None]
    assert (train.x[beyond] == 0).all()
    assert train.x[~beyond].any(axis=-1).all()
    np.testing.assert_allclose(train.x[0, :2, :2], [[1.860936, -0.207383], [1.891651, -0.193249]])
