"""Checkpoints that are verified before they are trusted; orbax writes and reads the arrays.

A step is a folder `STEP/` of two parts: `arrays/`, an ordinary orbax checkpoint whose entry `i` is the i-th leaf, and
`jaxnets.json`: the configuration, each leaf's path, dtype, shape and SHA-256, and each file's SHA-256. Alone, orbax restores
a flipped bit silently, casts silently, and takes an empty folder named `7` for step 7. Nothing is ever unpickled.
For local file systems, one writer per folder and one process: under `jax.distributed` let process 0 save what it addresses.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import operator
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxnets.types import InputError, PyTree

MANIFEST = "jaxnets.json"  # a folder without it is not ours: never read, never deleted
TEMPORARY = ".jaxnets-tmp-"  # prefix of folders being written or deleted; whatever bears it is ours to remove
STEP = re.compile(r"(\d+)(?:-(\d+))?")  # `30-1` holds step 30 saved a second time
PYTHON_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}


class Checkpointer:
    """Saves and restores pytrees of arrays, typed keys, numbers and None; the `keep` newest steps stay on disk.

    `save` returns once the state is copied to the host (donate it to the next step at once) and writes in a thread; an
    error there is raised by the next `save`, `wait`, `latest_good`, `restore` or `close`, hence on leaving `with`. A step
    becomes visible by one rename after all its bytes are on the disk, and only then are old steps deleted: a full disk or
    a killed process costs no older checkpoint. `config` (a dataclass or dict of JSON values, paths allowed) is saved with
    each step and must be equal on restoring; without it nothing is compared.

        with checkpoint.Checkpointer(folder, config=config) as checkpointer:
            step, state = checkpointer.latest_good(like=state) or (0, state)
            ...
            checkpointer.save(step, state)

    Measured 2026-11-22 on 2 busy CPU cores: a state of 30 small arrays holds `save` up for 1-2 ms and is on the disk 50-70 ms
    later; `latest_good` takes 30 ms. Memory while saving: the host copy and about as much again inside orbax.

    Raises:
      ValueError: `keep < 1`, a config that JSON can't hold.
      InputError: `directory` is a file.
    """

    def __init__(self, directory: str | os.PathLike, *, config: Any | None = None, keep: int = 3, asynchronous: bool = True):
        if keep < 1:
            raise ValueError(f"Checkpointer: keep must be at least 1, got {keep}.")
        self._directory = pathlib.Path(directory).absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise InputError(f"Checkpointer: expected a folder for checkpoints, got the file {self._directory}.")
        self._config, self._keep, self._asynchronous = _as_json(config), keep, asynchronous
        self._writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, state: PyTree) -> None:
        """Saves `state` as `step`, in place of an earlier copy if there is one.

        Raises:
          ValueError: a negative step; a leaf that is no array, key, number or None.
          OSError: it could not be written; asynchronous: the save before could not.
        """
        if (step := operator.index(step)) < 0:
            raise ValueError(f"Checkpointer.save: step must not be negative, got {step}.")
        self.wait()  # one host copy at a time, and no error is overwritten
        leaves = [(_record(path, leaf), _to_host(leaf, self._asynchronous)) for path, leaf in _flatten(state)[0]]
        if self._asynchronous:
            self._pending = self._writer.submit(self._write, step, leaves)
        else:
            self._write(step, leaves)

    def steps(self) -> list[int]:
        """The steps on disk in ascending order, none of them verified."""
        return sorted({step for step, _, _ in self._folders()})

    def latest_good(self, like: PyTree) -> tuple[int, PyTree] | None:
        """The newest step whose every hash agrees, and its state; None if nothing was saved. Warns about each damaged one.

        `like` (arrays or `jax.ShapeDtypeStruct`, so `jax.eval_shape(init, key)` will do) gives structure, dtypes, shapes
        and shardings; nothing is cast. Leaves come back bitwise equal, each as the kind of array that `like` has there.

        Raises:
          InputError: the newest undamaged step has other leaves, dtypes or shapes than `like`, or another configuration;
            or all steps are damaged: starting afresh over them is for the user to decide.
        """
        self.wait()
        folders = self._folders()
        for step, _, folder in reversed(folders):
            try:
                return step, _read(folder, step, like, self._config)
            except _DamagedError as error:
                warnings.warn(f"checkpoint {folder} is damaged and was passed over: {error}", stacklevel=2)
        if folders:
            raise InputError(f"every checkpoint in {self._directory} is damaged; move that folder away to start afresh.")
        return None

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state saved as `step`, verified as in `latest_good`.

        Raises:
          InputError: no such step, a damaged one, or one that `latest_good` would refuse.
        """
        self.wait()
        folders = [folder for found, _, folder in self._folders() if found == step]
        if not folders:
            raise InputError(f"Checkpointer.restore: no step {step} in {self._directory}, which has {self.steps()}.")
        try:
            return _read(folders[-1], step, like, self._config)
        except _DamagedError as error:
            raise InputError(f"Checkpointer.restore: {folders[-1]} is damaged: {error}") from error

    def wait(self) -> None:
        """Returns when the last save is on the disk; raises its error."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending])  # if interrupted here, the next call still raises the error
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits for the last save and ends the thread; raises the save's error."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _folders(self) -> list[tuple[int, int, pathlib.Path]]:
        """(step, repetition, folder) of our checkpoints, oldest first."""
        return [entry for entry in _numbered(self._directory) if (entry[2] / MANIFEST).is_file()]

    def _write(self, step: int, leaves: list[tuple[dict[str, Any], np.ndarray | None]]) -> None:
        temporary = self._directory / f"{TEMPORARY}saving-{step}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.glob(f"{TEMPORARY}*"):  # of a process that was killed
                shutil.rmtree(leftover)
            temporary.mkdir()
            records = [record if a is None else record | {"sha256": _digest(a)} for record, a in leaves]
            _write_arrays(temporary / "arrays", [a for _, a in leaves])
            content = {"step": step, "config": self._config, "leaves": records, "files": _file_digests(temporary)}
            manifest = {"sha256": _text_digest(content), "content": content}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            _flush(*temporary.rglob("*"), temporary)
            # Never over what is there, foreign or ours: a second copy of a step stands beside the first until it is complete.
            taken = [repetition for found, repetition, _ in _numbered(self._directory) if found == step]
            saved = self._directory / (f"{step}-{max(taken) + 1}" if taken else f"{step}")
            temporary.rename(saved)
            _flush(self._directory)
            self._delete_old(step, saved)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            error.add_note(f"While step {step} was saved to {self._directory}; what was there before is kept.")
            raise

    def _delete_old(self, step: int, saved: pathlib.Path) -> None:
        """Keeps `saved` and the `keep - 1` steps before it. Later ones, left by a run that went back, are not touched."""
        folders = self._folders()
        older = [folder for found, _, folder in folders if found < step]
        replaced = [folder for found, _, folder in folders if found == step and folder != saved]
        for folder in older[: max(0, len(older) - self._keep + 1)] + replaced:
            doomed = folder.rename(self._directory / f"{TEMPORARY}deleting-{folder.name}")  # never seen half deleted
            shutil.rmtree(doomed)


class _DamagedError(Exception):
    """The bytes are not those that were saved."""


def _numbered(directory: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
    """(step, repetition, path) of everything named like a checkpoint, in that order."""
    names = {path: STEP.fullmatch(path.name) for path in directory.glob("*")}
    return sorted((int(match[1]), int(match[2] or 0), path) for path, match in names.items() if match)


def _flatten(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    """Leaves with their paths as text; None is a leaf, so that None in an array's place is a difference."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves], treedef


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _record(path: str, leaf: Any) -> dict[str, Any]:
    """What is written about a leaf; `dtype` and `shape` must agree on restoring."""
    if leaf is None or type(leaf) in PYTHON_NUMBERS:
        return {"path": path, "dtype": "None" if leaf is None else f"Python {type(leaf).__name__}", "shape": []}
    if _is_key(leaf):
        record = {"dtype": str(leaf.dtype)}
        if isinstance(leaf, jax.Array):
            record["key_impl"] = str(jax.random.key_impl(leaf))
    elif hasattr(leaf, "shape") and (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.number)):
        record = {"dtype": np.dtype(leaf.dtype).name}
    else:
        raise ValueError(f"Checkpointer: leaf {path} must be an array, typed key, number or None, got {leaf!r}.")
    weak = {"weak_type": True} if getattr(leaf, "weak_type", False) else {}  # it decides dtypes in later promotions
    return {"path": path, **record, "shape": list(leaf.shape), **weak}


def _to_host(leaf: Any, copy: bool) -> np.ndarray | None:
    """The leaf's data in host memory; with `copy`, in memory of its own (on CPU a plain view would be donated away)."""
    if leaf is None:
        return None
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    array = np.asarray(data, dtype=PYTHON_NUMBERS.get(type(leaf)), order="C")
    return array.copy() if copy and (array is data or not array.flags.owndata) else array


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file: orbax never opens a damaged one, where it prints tracebacks or believes a wrong size."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _text_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _orbax() -> ocp.Checkpointer:
    # Compression would save 8 % of random weights and take twice as long.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=False))


def _storage(dtype: np.dtype) -> np.dtype:
    """NumPy's own dtypes as they are, those of ml_dtypes (orbax lacks uint4, float8_e4m3 and others) as unsigned integers."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _write_arrays(folder: pathlib.Path, arrays: list[np.ndarray | None]) -> None:
    """Leaf i under the name `i` (paths hold characters that file systems and zarr don't); orbax refuses empty ones."""
    stored = {str(i): a.view(_storage(a.dtype)) for i, a in enumerate(arrays) if a is not None and a.size}
    if stored:
        with contextlib.closing(_orbax()) as orbax:
            try:
                orbax.save(folder, args=ocp.args.PyTreeSave(stored))
            except ValueError as error:  # tensorstore's word for a failed write
                raise OSError(f"orbax could not write {folder}: {error}") from error


def _read_arrays(folder: pathlib.Path, wanted: list[jax.ShapeDtypeStruct | None]) -> list[np.ndarray | None]:
    names = [str(i) for i, want in enumerate(wanted) if want is not None and want.size]
    stored = {}
    if names:
        arguments = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
        with contextlib.closing(_orbax()) as orbax:
            stored = orbax.restore(folder, args=ocp.args.PyTreeRestore(restore_args=arguments))
    return [
        None if want is None else stored[str(i)].view(want.dtype) if want.size else np.empty(want.shape, want.dtype)
        for i, want in enumerate(wanted)
    ]


def _read(folder: pathlib.Path, step: int, like: PyTree, config: Any | None) -> PyTree:
    """The state in `folder`. Raises _DamagedError, or InputError where a sound checkpoint is not the wanted one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if manifest["sha256"] != _text_digest(content) or content["step"] != step:
            raise _DamagedError(f"{MANIFEST} is not the one written with step {step}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST} can't be read ({error})") from error
    records = content["leaves"]
    leaves, treedef = _flatten(like)
    if config is not None:
        _check_config(folder, content["config"], config)
    _check_leaves(folder, records, [_record(path, leaf) for path, leaf in leaves])
    try:
        damaged = content["files"].items() - _file_digests(folder).items()
    except OSError as error:
        raise _DamagedError(f"its files can't be read ({error})") from error
    if damaged:
        raise _DamagedError(f"changed or missing: {', '.join(sorted(name for name, _ in damaged))}")
    arrays = _read_arrays(folder / "arrays", [_data_struct(leaf) for _, leaf in leaves])
    for record, array in zip(records, arrays, strict=True):
        if array is not None and _digest(array) != record["sha256"]:
            raise _DamagedError(f"leaf {record['path']} has another SHA-256 than when it was saved")
    return treedef.unflatten(map(_place, records, arrays, (leaf for _, leaf in leaves)))


def _data_struct(leaf: Any) -> jax.ShapeDtypeStruct | None:
    """Shape and dtype of the leaf's data as NumPy holds it."""
    if leaf is None:
        return None
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(np.shape(leaf), PYTHON_NUMBERS.get(type(leaf)) or leaf.dtype)


def _place(record: dict[str, Any], array: np.ndarray | None, like: Any) -> Any:
    """`array` as the kind of leaf that `like` is, on its sharding."""
    if array is None:
        return None
    if type(like) in PYTHON_NUMBERS:
        return array.item()
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    value: Any = array
    if _is_key(like):
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=record["key_impl"])
    elif record.get("weak_type"):
        weak = jnp.broadcast_to(jnp.asarray(array.dtype.type(0).item()), array.shape)
        value = weak.at[...].set(array) if weak.dtype == array.dtype else array
    # Where `like` is uncommitted so is the result: committed to one device it would not mix with sharded batches.
    sharding = like.sharding if getattr(like, "committed", True) else None
    placed = jax.device_put(value, sharding)
    if placed.dtype != like.dtype:
        raise InputError(f"checkpoint: leaf {record['path']} is {like.dtype}, which needs jax_enable_x64.")
    return placed


def _check_leaves(folder: pathlib.Path, there: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    def text(record: dict[str, Any]) -> str:
        return record["dtype"] + str(record["shape"]) * (record["dtype"] != "None")

    saved, expected = ([(record["path"], text(record)) for record in records] for records in (there, wanted))
    if saved != expected:
        differences = _differences(dict(saved), dict(expected), "expected") or ["  the same leaves in another order"]
        raise InputError(f"checkpoint {folder} does not fit:\n" + "\n".join(differences))


def _check_config(folder: pathlib.Path, there: Any, wanted: Any) -> None:
    differences = _differences(dict(_flat_config(there or {})), dict(_flat_config(wanted)), "now")
    if differences:
        raise InputError(f"checkpoint {folder} is of another configuration:\n" + "\n".join(differences))


def _differences(saved: dict[str, str], wanted: dict[str, str], word: str, most: int = 20) -> list[str]:
    names = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
    lines = [f"  {name}: saved {saved.get(name, 'none')}, {word} {wanted.get(name, 'none')}" for name in names[:most]]
    return lines + [f"  and {len(names) - most} more"] * (len(names) > most)


def _flat_config(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat_config(item, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(item)


def _as_json(config: Any) -> dict[str, Any] | None:
    """The configuration as it will come back: tuples are lists, paths text."""
    plain = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    try:
        if plain is None or isinstance(plain, dict):
            return json.loads(json.dumps(plain, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Checkpointer: config must hold JSON values only, got {config!r} ({error}).") from error
    raise ValueError(f"Checkpointer: config must be a dataclass or a dict, got {config!r}.")


def _flush(*paths: pathlib.Path) -> None:
    """Files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
