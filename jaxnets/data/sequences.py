"""Sequences of different lengths: the `.ts` format of the UEA and UCR archives, padding, batches of similar length.

Few different lengths of batches are few programs to compile:

    train, classes = sequences.from_ts("JapaneseVowels_TRAIN.ts")
    for positions, time in zip(*sequences.bucketed(seed, start, stop, train.lengths, batch=32)):
        batch = train[positions].first(time)
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnets.data import batches, files, text
from jaxnets.types import Float, InputError, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences(batches.Dataset):
    """Sequences `x` [example, time, channels], zero from step `lengths` [example] on; `y` one label for each."""

    lengths: Any = None  # int32 [example]

    def first(self, time: int) -> "Sequences":
        """Only the first `time` steps of each."""
        return dataclasses.replace(self, x=self.x[:, :time])


def from_ts(path: files.PathLike, *, limit: int = files.LIMIT) -> tuple[Sequences, tuple[str, ...]]:
    """Sequences of a `.ts` file and the names of its classes: x float32, y int32 positions in the header's list of classes.

    A missing value, `?`, is NaN, and allowed only where the header says `@missing true`. Without classes y is None.

    Raises:
      InputError: names the file, the line and what was expected; time stamps and numeric targets are not supported.
    Source: Löning et al. (2019), sktime, arXiv:1909.07872.
    """
    lines = ((i, line.strip()) for i, line in enumerate(text.read(path, limit=limit).split("\n"), start=1))
    lines = ((f"{path}, line {i}", line) for i, line in lines if line and not line.startswith("#"))
    header = _header(path, lines)
    cases, labels, length = [], [], header.length
    for where, line in lines:
        case, label = _case(where, line, header)
        length = length or len(case)
        if header.equal and len(case) != length:
            raise InputError(f"{where}: expected {length} values in each dimension (@equalLength true), got {len(case)}.")
        cases.append(case)
        labels.append(label)
    if not cases:
        raise InputError(f"{path}: expected sequences after @data, got none.")
    x, lengths = pad(cases)
    return Sequences(x, np.array(labels, np.int32) if header.classes else None, lengths=lengths), header.classes


def pad(arrays: Sequence[Any], *, time: int | None = None) -> tuple[np.ndarray, Int[np.ndarray, " example"]]:
    """Arrays [length, ...] of different lengths as one [example, time, ...], zero beyond each, and the lengths as int32.

    `time` is the longest length unless it is given.

    Raises:
      InputError: no array, arrays that differ beyond their first axis, one longer than `time`.
    """
    arrays = [np.asarray(array) for array in arrays]
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) != 1 or any(array.ndim == 0 for array in arrays):
        raise InputError(f"pad: expected arrays that differ only in their first axis, got {[a.shape for a in arrays]!s:.80}.")
    lengths = np.array([len(array) for array in arrays], np.int32)
    time = int(lengths.max()) if time is None else time
    if time < lengths.max():
        raise InputError(f"pad: time must be at least the longest length {lengths.max()}, got {time}.")
    padded = np.zeros((len(arrays), time, *shapes.pop()), np.result_type(*arrays))
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded, lengths


def boundaries(lengths: Any, buckets: int) -> Int[np.ndarray, " bucket"]:
    """The `buckets` lengths, ascending, to the next of which each sequence is padded for the fewest steps in total.

    The optimum, by dynamic programming; above 1024 steps in units of 1/1024 of the longest. Fewer where fewer lengths differ.

    Raises:
      InputError: `buckets` below 1, no lengths or negative ones.
    """
    lengths = np.asarray(lengths)
    if buckets < 1 or lengths.ndim != 1 or not len(lengths) or lengths.min() < 0:
        raise InputError(f"boundaries: expected lengths of at least 0 in at least 1 bucket, got {lengths!s:.80}, {buckets}.")
    longest = max(lengths.max(), 1)
    unit = -(-longest // 1024)
    distinct, counts = np.unique(np.clip(-(-lengths // unit) * unit, 1, longest), return_counts=True)
    ends, seen = np.append(0, distinct), np.append(0, np.cumsum(counts))
    # fewest[j]: steps of all sequences up to the length ends[j] in the buckets so far, the last of which ends there.
    fewest, splits = np.where(ends > 0, np.inf, 0.0), []
    for _ in range(min(buckets, len(distinct))):
        steps = fewest[:, None] + (seen[None] - seen[:, None]) * ends[None]  # [end of the bucket before, end of this one]
        steps[np.tril_indices(len(ends))] = np.inf
        splits.append(steps.argmin(axis=0))
        fewest = steps.min(axis=0)
    chosen = [len(distinct)]
    for split in splits[:0:-1]:
        chosen.append(split[chosen[-1]])
    return ends[chosen[::-1]]


def bucketed(
    seed: int, start: int, stop: int, lengths: Any, batch: int, *, buckets: int = 4
) -> tuple[Int[np.ndarray, "steps batch"], Int[np.ndarray, " steps"]]:
    """Which examples steps start..stop-1 take, each batch of similar lengths, and how many time steps hold each batch.

    Epoch by epoch the examples are those of `batches.indices`, sorted into `buckets` by length; the batches then come in
    random order. The time steps are of `boundaries`: at most `buckets` different ones.

    >>> lengths = np.random.default_rng(0).geometric(0.05, 1000)
    >>> positions, times = bucketed(0, 0, 31, lengths, batch=32)
    >>> data = lengths[positions].sum()
    >>> print(f"data: {data / (positions.size * lengths.max()):.0%} of all steps, in buckets {data / (32 * times.sum()):.0%}")
    data: 13% of all steps, in buckets 60%

    Raises:
      InputError: `batch` is not in 1..number of lengths; as for `boundaries`.
    """
    lengths, ends = np.asarray(lengths), boundaries(lengths, buckets)
    steps = batches.steps_per_epoch(len(lengths), batch)
    if not 0 <= start <= stop:
        raise ValueError(f"bucketed: expected 0 <= start <= stop, got {start}, {stop}.")
    bucket, positions = np.searchsorted(ends, lengths), [np.empty((0, batch), np.int32)]
    for epoch in range(start // steps, -(-stop // steps)):
        order = batches.epoch_order(seed, epoch, len(lengths))[: steps * batch]
        order = order[bucket[order].argsort(kind="stable")].reshape(steps, batch)
        # The batches take the order of an epoch that never comes: independent of that of the examples.
        positions.append(order[batches.epoch_order(seed, 2**63 - 1 - epoch, steps)])
    skipped = start // steps * steps
    rows = np.concatenate(positions)[start - skipped : stop - skipped]
    return rows, ends[bucket[rows].max(axis=1)]


class _Header(NamedTuple):
    classes: tuple[str, ...]
    dimensions: int | None  # None: not said
    missing: bool
    equal: bool
    length: int | None  # None: not said


def _header(path: files.PathLike, lines: Iterator[tuple[str, str]]) -> _Header:
    """Takes the header off `lines` (place, text), up to and with @data."""
    fields: dict[str, list[str]] = {}
    for where, line in lines:
        name, *values = line.split()
        name = name.lower()
        if name == "@data":
            break
        if not name.startswith("@"):
            raise InputError(f"{where}: expected a line of the header or @data, got {line!r:.40}.")
        if name in ("@timestamps", "@targetlabel") and values[:1] == ["true"]:
            raise InputError(f"{where}: {name} true is not supported.")
        if name in ("@dimensions", "@serieslength") and not (len(values) == 1 and values[0].isdecimal() and int(values[0]) > 0):
            raise InputError(f"{where}: expected {name} and a positive number, got {line!r:.40}.")
        if name == "@classlabel" and values[:1] == ["true"] and not 1 < len(values) == len(set(values)):
            raise InputError(f"{where}: expected @classLabel true and different names, got {line!r:.40}.")
        fields[name] = values
    else:
        raise InputError(f"{path}: expected a line @data, got none.")
    says = {name for name, values in fields.items() if values[:1] == ["true"]}
    numbers = {name: int(fields[name][0]) for name in ("@dimensions", "@serieslength") if name in fields}
    classes = tuple(fields["@classlabel"][1:]) if "@classlabel" in says else ()
    dimensions = 1 if "@univariate" in says else numbers.get("@dimensions")
    return _Header(classes, dimensions, "@missing" in says, "@equallength" in says, numbers.get("@serieslength"))


def _case(where: str, line: str, header: _Header) -> tuple[Float[np.ndarray, "time channels"], int]:
    """One line of data, `1,2,3:4,5,6:label`, and the position of its label (0 where there are no classes)."""
    channels, label = line.split(":"), 0
    if header.classes:
        name = channels.pop().strip()
        if name not in header.classes:
            raise InputError(f"{where}: expected a label of {', '.join(header.classes)} at the end, got {name!r:.40}.")
        label = header.classes.index(name)
    if len(channels) != (header.dimensions or len(channels)):
        raise InputError(f"{where}: expected {header.dimensions} dimensions, got {len(channels)}.")
    cells = [channel.split(",") for channel in channels]
    if len({len(row) for row in cells}) != 1:
        raise InputError(f"{where}: expected dimensions of one length, got lengths {[len(row) for row in cells]!s:.80}.")
    try:
        values = np.array([[math.nan if cell.strip() == "?" else float(cell) for cell in row] for row in cells])
    except ValueError as error:
        raise InputError(f"{where}: expected numbers ({error}).") from error
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise InputError(f"{where}: expected finite numbers, got {np.nanmax(np.abs(values))}.")
    if np.isnan(values).any() and not header.missing:
        raise InputError(f"{where}: a value is missing, but the header does not say @missing true.")
    return values.T.astype(np.float32), label
