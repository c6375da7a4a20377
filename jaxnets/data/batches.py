"""Datasets and the order of their examples: which example comes at which step is a pure function of (seed, step).

A resumed run, or one on another number of hosts, therefore sees the examples of the run that was never stopped:

    for step in range(start, stop):  # or: lax.scan over the rows
        batch = train[batches.indices(seed, step, step + 1, len(train), 128)[0]]
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnets.types import InputError, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples along the first axis of every field; `train[:128]`, `train[indices]` are batches of the same type.

    Fields are arrays (NumPy's or JAX's) or pytrees of them; a dataset inside jit, vmap or scan is an ordinary pytree.
    """

    x: Any  # inputs [example, ...]
    y: Any  # targets [example, ...]; None where there are none
    weight: Any = None  # [example, ...] how much each target counts; None: all equally

    def __len__(self) -> int:
        return jax.tree.leaves(self)[0].shape[0]

    def __getitem__(self, index: Any) -> "Dataset":
        return jax.tree.map(lambda field: field[index], self)

    def __iter__(self) -> Iterator["Dataset"]:
        # Without it Python would index until IndexError, which JAX arrays never raise.
        return (self[i] for i in range(len(self)))


def labeled(x: Any, y: Any, *, classes: int | None = None, source: str = "labeled") -> Dataset:
    """Dataset of inputs and class labels 0..classes-1 as int32, checked; errors begin with `source`.

    Raises:
      InputError: no example, other counts of inputs and labels, labels that are not one integer each or out of range.
    """
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(f"{source}: expected one integer label per example, got {y.dtype}{list(y.shape)}.")
    if len(x) != len(y) or len(y) == 0:
        raise InputError(f"{source}: expected as many labels as inputs, at least 1, got {len(x)} inputs, {len(y)} labels.")
    wrong = np.flatnonzero((y < 0) | (y >= (2**31 if classes is None else classes)))
    if len(wrong):
        expected = "labels of at least 0" if classes is None else f"labels 0..{classes - 1}"
        raise InputError(f"{source}: expected {expected}, got {y[wrong[0]]} at example {wrong[0]} ({len(wrong)} wrong).")
    return Dataset(x, y.astype(np.int32))


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Splits off `fraction` of the examples (rounded), drawn by `seed`: (rest, split off), each in its original order.

    Stratified where `y` holds one integer per example: every class gives its share to within one example.

    Raises:
      InputError: `fraction` outside (0, 1), or one part would be empty.
    """
    size = len(dataset)
    # Systematic sampling along the classes: a position is taken where the running share passes the next integer.
    taken = np.diff(np.floor(np.arange(size + 1) * fraction + 0.5)) > 0
    if not 0 < fraction < 1 or taken.all() or not taken.any():
        raise InputError(f"split: fraction must be in (0, 1) and leave examples on both sides, got {fraction} of {size}.")
    order = _permutation(seed, 2**64 - 1, size)  # an epoch that never comes: independent of every epoch's order
    if getattr(dataset.y, "ndim", 0) == 1 and dataset.y.dtype.kind in "iu":
        order = order[np.argsort(np.asarray(dataset.y)[order], kind="stable")]
    return dataset[np.sort(order[~taken])], dataset[np.sort(order[taken])]


def steps_per_epoch(size: int, batch: int) -> int:
    """Number of full batches in `size` examples; the rest of an epoch's order is dropped.

    Raises:
      InputError: `batch` is not in 1..size.
    """
    if not 1 <= batch <= size:
        raise InputError(f"batch must be in 1..{size} (the number of examples), got {batch}.")
    return size // batch


def epoch_order(seed: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    """Permutation of `range(size)`, a pure function of (seed, epoch): the same on every host, platform and version.

    The raw stream of the counter-based generator Philox with key (seed, epoch), sorted: NumPy promises that stream for
    good, which it doesn't for its `permutation`.

    Source: Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3.
    """
    if not 0 <= epoch < 2**63:
        raise ValueError(f"epoch_order: epoch must be at least 0, got {epoch}.")
    return _permutation(seed, epoch, size)


def indices(
    seed: int, start: int, stop: int, size: int, batch: int, *, shuffle: bool = True, host: int = 0, hosts: int = 1
) -> Int[np.ndarray, "steps host_batch"]:
    """Which examples steps start..stop-1 take: row i is the batch of step start + i, whatever ran before.

    Each epoch visits `steps_per_epoch(size, batch) * batch` examples in a new order, without `shuffle` the first ones in
    the order 0, 1, ... With several hosts, each gets its equal slice of every batch.

    Raises:
      InputError: `batch` is not in 1..size, or not a multiple of `hosts`.
    """
    steps = steps_per_epoch(size, batch)
    if not 0 <= start <= stop:
        raise ValueError(f"indices: expected 0 <= start <= stop, got {start}, {stop}.")
    if not 0 <= host < hosts:
        raise ValueError(f"indices: host must be in 0..{hosts - 1}, got {host}.")
    if batch % hosts:
        raise InputError(f"batch must be a multiple of the {hosts} hosts, got {batch}.")
    first, last = start // steps, -(-stop // steps)
    in_order = np.arange(size, dtype=np.int32)
    orders = [(epoch_order(seed, epoch, size) if shuffle else in_order)[: steps * batch] for epoch in range(first, last)]
    rows = np.concatenate([np.empty(0, np.int32), *orders]).reshape(-1, hosts, batch // hosts)
    return rows[start - first * steps : stop - first * steps, host]


def _permutation(seed: int, stream: int, size: int) -> np.ndarray:
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be in 0..2**64-1, got {seed}.")
    raw = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int32)
