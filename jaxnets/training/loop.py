"""The one training loop: it jits, draws batches, evaluates, checkpoints, resumes and calls back.

The run is cut at absolute step numbers (every log, evaluation and checkpoint), never by where it was started, and a batch is
a function of (seed, step): a run that was killed and resumed is bitwise the run that was not.
"""

import collections
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.data import batches
from jaxnets.training import sharding
from jaxnets.training.checkpoint import Checkpointer
from jaxnets.training.state import TrainState
from jaxnets.types import Any, InputError, Step


class Fit(NamedTuple):
    """What a run leaves: the last state and one row of numbers per logged interval."""

    state: TrainState
    history: list[dict[str, Any]]


def fit(
    step: Step,
    state: TrainState,
    data: Any,
    *,
    batch: int,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    scan: bool = False,
    evaluate: Callable | None = None,
    test: Any = None,
    log_every: int | None = None,
    evaluate_every: int | None = None,
    checkpoint: Checkpointer | None = None,
    checkpoint_every: int | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    max_skipped: int = 10,
    mesh: jax.sharding.Mesh | None = None,
) -> Fit:
    """Trains for `epochs` or for `steps`; `data` has `len()` and is indexed by an array of positions.

    Without `shuffle` every epoch reads positions 0, 1, ... in order, as windows of text must be for a carried state.

    The three intervals are in steps and default to an epoch; all end with the run. Each cut of the run gives a row of history:
    `step`, `epoch`, `seconds`, the step's metrics averaged over the applied steps since the last row, `skipped` (how many were
    not applied) and, where evaluated, the means over `test` as `test_loss`, ...; `callback` gets each row once it is known.
    `scan` runs each interval as one dispatch with the data on the device; otherwise each step is one, and its batch is
    gathered where the data lies. Either way numbers are read after the next dispatch is on its way. A state and a step
    vmapped over members work alike: their numbers are arrays. `mesh` splits every batch over its devices. The given state
    stays valid: it is copied before its buffers are donated.

    `checkpoint` resumes from its latest good step: put `batch` and `seed` into its config, the order of the data depends on
    them. A row is handed out before its step is saved, and nothing is saved amid skipped steps (of all members).

    Raises:
      ValueError: neither or both of `epochs` and `steps`, a count below 1, a batch larger than the data, `evaluate` without
        `test`.
      InputError: fields of `data` or `test` of different lengths; a checkpoint beyond the steps asked for.
      FloatingPointError: `max_skipped` steps in a row had a non-finite loss or gradient, in all members of an ensemble.
    """
    per_epoch = batches.steps_per_epoch(len(data), batch)
    if (epochs is None) == (steps is None):
        raise ValueError(f"fit: give either epochs or steps, got epochs={epochs}, steps={steps}.")
    total = steps or 0 if epochs is None else epochs * per_epoch
    intervals = {"log_every": log_every, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
    for name, value in {"epochs": epochs, "steps": steps, "max_skipped": max_skipped, **intervals}.items():
        if value is not None and value < 1:
            raise ValueError(f"fit: {name} must be at least 1, got {value}.")
    if (evaluate is None) != (test is None):
        raise ValueError("fit: evaluate and test go together, got only one of them.")
    _check_lengths("data", data)
    _check_lengths("test", test)
    log_every, evaluate_every, checkpoint_every = (value or per_epoch for value in intervals.values())
    cuts = [log_every] + [evaluate_every] * (evaluate is not None) + [checkpoint_every] * (checkpoint is not None)

    found = checkpoint.latest_good(state) if checkpoint else None
    state = jax.tree.map(jnp.copy, state if found is None else found[1])
    if mesh is not None:
        state = sharding.replicate(state, mesh)
    if scan:
        data = jax.device_put(data) if mesh is None else sharding.replicate(data, mesh)
    run = jax.jit(_scanned(step) if scan else step, donate_argnums=0)
    start, began = position(state), time.perf_counter()
    if start > total:
        raise InputError(f"fit: expected a state of at most the {total} steps asked for, got one of {start}.")
    history, interval, queue = [], [], collections.deque()

    def read(keep: int = 0):
        """Takes results off the queue until `keep` are left; a result that ends an interval makes a row."""
        while len(queue) > keep:
            metrics, end, tested = queue.popleft()
            interval.append(jax.device_get(metrics))
            if end is not None:
                row = {"step": end, "epoch": end / per_epoch, "seconds": time.perf_counter() - began}
                row |= _readable(_averaged(interval, max_skipped, end, scan))
                row |= {f"test_{name}": value for name, value in _means(tested).items()}
                interval.clear()
                history.append(row)
                if callback is not None:
                    callback(row)

    for low, high in itertools.pairwise(_cuts(start, total, cuts)):
        order = batches.indices(seed, low, high, len(data), batch, shuffle=shuffle)
        for index, positions in enumerate([order] if scan else order, start=1):
            if scan:
                positions = positions if mesh is None else sharding.shard(positions, mesh, axis=1)
                state, metrics = run(state, data, positions)
            else:
                examples = data[positions]
                state, metrics = run(state, examples if mesh is None else sharding.shard(examples, mesh))
            last = scan or index == len(order)
            queue.append((metrics, high if last else None, []))
            read(keep=1)
        if evaluate is not None and (high % evaluate_every == 0 or high == total):
            queue[-1][-1].extend(_sums(evaluate, state, test, batch))
        if checkpoint is not None and (high % checkpoint_every == 0 or high == total):
            read()
            if not np.all(state.skipped_in_row):  # a state that can't go on must not replace good ones
                checkpoint.save(high, state)
    read()
    if checkpoint is not None:
        checkpoint.wait()
    return Fit(state, history)


def evaluate(eval_step: Callable, state: TrainState, data: Any, *, batch: int) -> dict[str, Any]:
    """Weighted means of `make_eval_step`'s sums over a whole dataset; exact for an uneven last batch."""
    _check_lengths("data", data)
    return _means(_sums(eval_step, state, data, batch))


def position(state: TrainState) -> int:
    """Number of batches a state has seen, applied or skipped; members of an ensemble share it."""
    return int(np.max(state.step + state.skipped))


def _readable(metrics: dict[str, Any]) -> dict[str, Any]:
    """Numbers on the host: floats, or arrays over the members of an ensemble."""
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in jax.device_get(metrics).items()}


def _scanned(step):
    return lambda state, data, order: jax.lax.scan(lambda s, positions: step(s, data[positions]), state, order)


def _cuts(start, total, intervals):
    """`start`, then every multiple of an interval up to `total`: absolute numbers, the same for a resumed run."""
    stops = {stop for every in intervals for stop in range(every * (start // every + 1), total, every)}
    return sorted({start, *stops, total}) if start < total else []


def _sums(eval_step, state, data, batch):
    """Sums of each batch, still on the device; the last batch has its own size, so that no loss needs to know of padding."""
    return [jax.jit(eval_step)(state, data[low : low + batch]) for low in range(0, len(data), batch)]


def _means(sums):
    """Weighted means, 0 where nothing counts; added in float64, where float32 would be inexact above 2^24 elements."""
    if not sums:
        return {}
    weight, totals = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), axis=0), *jax.device_get(sums))
    return _readable({name: total / np.where(weight > 0, weight, 1) for name, total in totals.items()})


def _check_lengths(name, data):
    lengths = {len(leaf) for leaf in jax.tree.leaves(data) if hasattr(leaf, "shape")}
    if len(lengths) > 1:
        raise InputError(f"fit: the fields of {name} must be of one length, got {sorted(lengths)}.")


def _averaged(interval, max_skipped, end, scan):
    """Means over the applied steps of one interval, NaN where none was; raises where too many in a row were skipped."""
    join = np.concatenate if scan else np.stack
    metrics = jax.tree.map(lambda *values: join(values), *interval)
    in_row = metrics.pop("skipped_in_row", np.zeros(len(next(iter(metrics.values()))), int))
    longest = int(in_row.reshape(len(in_row), -1).min(axis=1).max())  # an ensemble goes on while one member does
    if longest >= max_skipped:
        raise FloatingPointError(
            f"fit: {longest} steps in a row, up to step {end} at the latest, had a non-finite loss or gradient and were not "
            "applied. Lower the learning rate, clip the gradient (make_train_step(clip=...)), or look for NaN in the data."
        )
    applied = in_row == 0
    count = applied.sum(0)
    means = {
        name: np.where(count > 0, np.where(applied, values, 0).sum(0) / np.maximum(count, 1), np.nan)
        for name, values in metrics.items()
    }
    return {**means, "skipped": (~applied).sum(0)}
