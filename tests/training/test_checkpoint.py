"""Checkpoints: bitwise round trips, damage, mismatches, asynchronous errors, a full disk, a killed process."""

import collections
import dataclasses
import errno
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxnets.training import checkpoint
from jaxnets.types import InputError

ROOT = pathlib.Path(__file__).parents[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: Any
    opt_state: Any
    key: Any
    step: Any
    ema: Any = None


def make_state(seed: int = 0) -> State:
    """Leaves whose bytes differ from seed to seed, of each kind that a training state may hold."""
    rng = np.random.default_rng(seed)
    params = {
        "Dense_0": {"kernel": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), "bias": jnp.full(5, -0.0)},
        "half": jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "special / key.with [signs]": jnp.asarray([jnp.nan, jnp.inf, -0.0, 1e-45, seed], jnp.float32),
    }
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), mask))
    ema = {
        "python": (seed, 0.1 + seed, True, 1j * seed, None),
        "numpy": [np.arange(4, dtype=np.int64) + seed, np.float16(seed), rng.integers(0, 2, 3).astype(bool)],
        "narrow": [rng.integers(-8, 8, 7).astype(ml_dtypes.int4), jnp.asarray(rng.normal(size=4), jnp.float8_e4m3fn)],
        "weak": [jnp.asarray(1.5 + seed), jnp.broadcast_to(jnp.asarray(3 + seed), 2)],
        "complex": jnp.asarray([1 + 2j * seed], jnp.complex64),
        "nothing": ((), {}, []),
        "keys": [jax.random.split(jax.random.key(seed), (2, 3)), jax.random.key(seed, impl="rbg")],
    }
    return State(params, optimizer.init(params), jax.random.key(seed), jnp.asarray(seed, jnp.int32), ema)


def assert_same(got, expected):
    """Equal structure, leaf types, dtypes, weak types, shapes and bytes."""
    got_leaves, expected_leaves = (jax.tree_util.tree_leaves_with_path(t, is_leaf=lambda x: x is None) for t in (got, expected))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), (_, b) in zip(got_leaves, expected_leaves, strict=True):
        assert type(a) is type(b), path
        if b is None:
            continue
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), path
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path


def small(seed: int) -> dict[str, Any]:
    return {"w": jnp.arange(300, dtype=jnp.float32) + seed, "key": jax.random.key(seed), "step": jnp.asarray(seed)}


def saver(directory, **options) -> checkpoint.Checkpointer:
    return checkpoint.Checkpointer(directory, **{"asynchronous": False, **options})


def saved(directory, *steps, **options) -> checkpoint.Checkpointer:
    """A checkpointer with `small(step)` saved at each step."""
    checkpointer = saver(directory, **options)
    for step in steps:
        checkpointer.save(step, small(step))
    return checkpointer


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


# What is restored


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_kind_of_leaf_comes_back_bitwise_equal(tmp_path, asynchronous):
    state = make_state(1)
    with saver(tmp_path, asynchronous=asynchronous) as checkpointer:
        checkpointer.save(7, state)
        step, restored = checkpointer.latest_good(make_state(0))
    assert step == 7
    assert_same(restored, state)
    assert_same(checkpointer.restore(7, make_state(2)), state)


def test_shape_structs_are_enough_to_restore(tmp_path):
    def init():
        return {**small(3), "keys": jax.random.split(jax.random.key(0), 2), "weak": jnp.asarray(2.0)}

    checkpointer = saver(tmp_path)
    checkpointer.save(0, init())
    assert_same(checkpointer.restore(0, jax.eval_shape(init)), init())


def test_a_state_without_data_is_saved(tmp_path):
    state = {"none": None, "empty": jnp.zeros((2, 0)), "no_keys": jax.random.split(jax.random.key(0), 3)[:0]}
    checkpointer = saver(tmp_path)
    checkpointer.save(0, state)
    assert_same(checkpointer.restore(0, state), state)


def test_restored_numpy_leaves_are_writable(tmp_path):
    checkpointer = saver(tmp_path)
    checkpointer.save(0, {"w": np.ones(3)})
    restored = checkpointer.restore(0, {"w": np.zeros(3)})
    restored["w"][0] = 5  # must not raise


def test_arrays_come_back_on_the_sharding_of_like(tmp_path):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {
        "split": jax.device_put(jnp.arange(8.0), split),
        "whole": jax.device_put(jnp.arange(3.0), whole),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 4), split),
        "second": jax.device_put(jnp.ones(2), jax.devices()[1]),
        "free": jnp.ones(2),
    }
    checkpointer = saver(tmp_path)
    checkpointer.save(0, state)
    restored = checkpointer.restore(0, state)
    assert_same(restored, state)
    for name, leaf in state.items():
        assert restored[name].sharding == leaf.sharding, name
        assert restored[name].committed == leaf.committed, name
    assert not restored["free"].committed  # free to meet sharded arrays in one program
    like = state | {"split": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=whole), "whole": jnp.zeros(3)}
    moved = checkpointer.restore(0, like)
    assert moved["split"].sharding == whole
    assert not moved["whole"].committed
    assert_same(moved, state)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    checkpointer = saver(tmp_path)
    checkpointer.save(0, make_state(1))
    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    assert_same(checkpointer.restore(0, make_state(0)), make_state(1))


# When and where it is written


@pytest.fixture
def gate(monkeypatch):
    """Holds every write back until it is set."""
    event, write = threading.Event(), checkpoint._write_arrays

    def held(*arguments):
        assert event.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write_arrays", held)
    yield event
    event.set()


def test_save_returns_before_the_disk_does_and_the_state_may_be_donated(tmp_path, gate):
    state = {"jax": jnp.arange(1000.0), "numpy": np.arange(1000), "key": jax.random.key(1)}
    expected = jax.tree.map(lambda leaf: leaf + 0 if leaf.dtype != state["key"].dtype else leaf, state)
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        assert checkpointer.steps() == []  # the write has not begun: what follows would reach it
        state["numpy"] += 1
        jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(state["jax"]))
        gate.set()
        checkpointer.wait()
        assert checkpointer.steps() == [1]
        assert_same(checkpointer.restore(1, expected), expected)


def test_the_newest_steps_are_kept_and_the_one_just_saved_always(tmp_path):
    checkpointer = saved(tmp_path, 2, 10, 9, 30, 11, keep=2)  # 9 and 11: a run that went back to an older step
    assert checkpointer.steps() == [10, 11, 30]
    assert checkpointer.latest_good(small(0))[0] == 30


def test_a_step_saved_again_replaces_the_first_copy(tmp_path):
    checkpointer = saved(tmp_path, 1, 2)
    for seed in (5, 6):
        checkpointer.save(2, small(seed))
        assert checkpointer.steps() == [1, 2]
        assert len(names(tmp_path)) == 2
        assert_same(checkpointer.latest_good(small(0)), (2, small(seed)))


def test_foreign_files_and_folders_are_neither_read_nor_touched(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "9").write_text("a file")
    (tmp_path / "11").mkdir()
    (tmp_path / "11" / "_METADATA").write_text("{}")
    (tmp_path / ".jaxnets-tmp-5").mkdir()  # half written by a process that was killed
    (tmp_path / ".jaxnets-tmp-5" / "jaxnets.json").write_text("{}")
    foreign = names(tmp_path) - {".jaxnets-tmp-5"}
    checkpointer = saver(tmp_path, keep=1)
    assert checkpointer.latest_good(small(0)) is None
    assert checkpointer.steps() == []
    for step in (1, 7, 20):
        checkpointer.save(step, small(step))
        assert_same(checkpointer.latest_good(small(0)), (step, small(step)))
    assert names(tmp_path) == foreign | {"20"}
    assert not any((tmp_path / "7").iterdir())


def test_a_folder_that_is_not_there_has_no_checkpoint_and_is_made_by_the_first_save(tmp_path):
    checkpointer = saver(tmp_path / "a" / "b")
    assert checkpointer.latest_good(small(0)) is None
    assert not (tmp_path / "a").exists()
    checkpointer.save(0, small(0))
    assert checkpointer.steps() == [0]


# Damage


def test_one_flipped_byte_anywhere_is_found_and_the_step_before_is_used(tmp_path):
    checkpointer = saved(tmp_path, 1, 2)
    files = sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file())
    assert any(len(path.read_bytes()) > 1000 for path in files)  # the array's own data
    for path in files:
        content = path.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[position] ^= 0b100
            path.write_bytes(changed)
            with pytest.warns(UserWarning, match=r"/2 is damaged"):
                step, restored = checkpointer.latest_good(small(0))
            assert step == 1, (path, position)
            assert_same(restored, small(1))
        path.write_bytes(content)
    assert_same(checkpointer.latest_good(small(0)), (2, small(2)))


def test_the_hash_of_each_leaf_is_checked_beside_those_of_the_files(tmp_path, monkeypatch):
    checkpointer = saved(tmp_path, 1)
    read = checkpoint._read_arrays

    def flip(*arguments):
        arrays = read(*arguments)
        arrays[2].reshape(-1).view(np.uint8)[-1] ^= 1
        return arrays

    monkeypatch.setattr(checkpoint, "_read_arrays", flip)
    with pytest.raises(InputError, match=r"leaf \['w'\] has another SHA-256"):
        checkpointer.restore(1, small(0))


@pytest.mark.parametrize("damage", ["missing file", "cut short", "no arrays", "renamed step", "empty manifest"])
def test_a_damaged_step_is_passed_over_with_a_warning(tmp_path, damage):
    checkpointer = saved(tmp_path, 1, 2)
    largest = max((tmp_path / "2" / "arrays").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    if damage == "missing file":
        largest.unlink()
    elif damage == "cut short":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "no arrays":
        shutil.rmtree(tmp_path / "2" / "arrays")
    elif damage == "renamed step":
        (tmp_path / "2").rename(tmp_path / "3")
    else:
        (tmp_path / "2" / checkpoint.MANIFEST).write_text("")
    newest = 3 if damage == "renamed step" else 2
    with pytest.warns(UserWarning, match=rf"/{newest} is damaged"):
        assert_same(checkpointer.latest_good(small(0)), (1, small(1)))
    with pytest.raises(InputError, match=rf"/{newest} is damaged"):
        checkpointer.restore(newest, small(0))
    checkpointer.save(newest, small(9))  # the run that fell back comes by again
    assert_same(checkpointer.latest_good(small(0)), (newest, small(9)))


def test_if_all_are_damaged_there_is_none_and_each_is_named(tmp_path):
    checkpointer = saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / checkpoint.MANIFEST).write_text("{}")
    with pytest.warns(UserWarning, match=r"/2 is damaged"), pytest.warns(UserWarning, match=r"/1 is damaged"):
        assert checkpointer.latest_good(small(0)) is None


# Sound checkpoints that are not the wanted ones


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.zeros(300, jnp.bfloat16)}, r"\['w'\]: saved float32\[300\], expected bfloat16\[300\]"),
        ({"w": np.zeros(300)}, r"\['w'\]: saved float32\[300\], expected float64\[300\]"),
        ({"w": jnp.zeros((300, 1))}, r"\['w'\]: saved float32\[300\], expected float32\[300, 1\]"),
        ({"w": None}, r"\['w'\]: saved float32\[300\], expected None"),
        ({"w": {"x": jnp.zeros(300)}}, r"\['w'\]\['x'\]: saved none, expected float32\[300\]"),
        ({"step": 3}, r"\['step'\]: saved int32\[\], expected Python int\[\]"),
        ({"key": jax.random.key(0, impl="rbg")}, r"\['key'\]: saved key<fry>\[\], expected key<rbg>\[\]"),
        ({"key": jax.random.key_data(jax.random.key(0))}, r"\['key'\]: saved key<fry>\[\], expected uint32\[2\]"),
        ({"more": jnp.zeros(())}, r"\['more'\]: saved none, expected float32\[\]"),
    ],
)
def test_another_dtype_shape_or_structure_is_an_error_and_no_damage(tmp_path, change, message):
    checkpointer = saver(tmp_path)
    checkpointer.save(1, small(1) | change)  # would fit: but the newest step decides
    checkpointer.save(2, small(2))
    with pytest.raises(InputError, match=message):
        checkpointer.latest_good(small(0) | change)


def test_a_leaf_too_many_in_the_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"\['w'\]: saved float32\[300\], expected none"):
        saved(tmp_path, 1).latest_good({name: leaf for name, leaf in small(0).items() if name != "w"})


def test_the_order_of_the_leaves_is_not_guessed(tmp_path):
    first, second = (collections.OrderedDict(dict.fromkeys(order, jnp.ones(2))) for order in ("ab", "ba"))
    checkpointer = saver(tmp_path)
    checkpointer.save(1, first)
    with pytest.raises(InputError, match="the same leaves in another order"):
        checkpointer.latest_good(second)


def test_64_bits_are_not_cut_to_32(tmp_path):
    checkpointer = saver(tmp_path)
    checkpointer.save(1, {"w": np.zeros(3)})
    with pytest.raises(InputError, match=r"\['w'\] is float64, which needs jax_enable_x64"):
        checkpointer.restore(1, {"w": jax.ShapeDtypeStruct((3,), np.float64)})


@dataclasses.dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (8, 8)
    lr: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    inner: Inner = Inner()
    data: pathlib.Path = pathlib.Path("here")
    name: str | None = None


def test_another_configuration_is_an_error_that_shows_the_difference_key_by_key(tmp_path):
    saved(tmp_path, 1, config=Config())
    assert saver(tmp_path, config=Config()).latest_good(small(0))[0] == 1
    assert saver(tmp_path).latest_good(small(0))[0] == 1  # none given: none compared
    with pytest.raises(InputError, match="another configuration") as caught:
        saver(tmp_path, config=Config(Inner((8, 16)), name="x")).latest_good(small(0))
    assert str(caught.value).splitlines()[1:] == [
        "  inner.widths: saved [8, 8], now [8, 16]",
        '  name: saved null, now "x"',
    ]
    with pytest.raises(InputError, match=r"depth: saved none, now 3"):
        saver(tmp_path, config={"depth": 3}).latest_good(small(0))
    saved(tmp_path, 2)  # without one
    with pytest.raises(InputError, match=r"configuration:\n  inner.widths: saved none, now \[8, 8\]\n"):
        saver(tmp_path, config=Config()).latest_good(small(0))


def test_a_step_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"no step 3 in .*, which has \[1, 2\]"):
        saved(tmp_path, 1, 2).restore(3, small(0))


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoint.Checkpointer(tmp_path, keep=0)
    with pytest.raises(ValueError, match="config must hold JSON values only"):
        checkpoint.Checkpointer(tmp_path, config={"f": jnp.sin})
    with pytest.raises(ValueError, match="config must be a dataclass or a dict, got 3"):
        checkpoint.Checkpointer(tmp_path, config=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder"):
        checkpoint.Checkpointer(tmp_path / "file")
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        saver(tmp_path).save(-1, small(0))
    with pytest.raises(ValueError, match=r"leaf \['a'\]\['b'\] must be .*, got 'text'"):
        saver(tmp_path).save(0, {"a": {"b": "text"}})


# Failures while saving


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("door", ["save", "wait", "close", "latest_good", "restore"])
def test_an_asynchronous_error_is_raised_once_by_the_next_call(tmp_path, monkeypatch, door):
    saved(tmp_path, 1)
    checkpointer = checkpoint.Checkpointer(tmp_path, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_arrays", fail)
        checkpointer.save(2, small(2))
        arguments = {"save": (3, small(3)), "latest_good": (small(0),), "restore": (1, small(0))}.get(door, ())
        with pytest.raises(OSError, match="No space left") as caught:
            getattr(checkpointer, door)(*arguments)
    assert "step 2" in caught.value.__notes__[0]
    assert names(tmp_path) == {"1"}  # the older step stays, the failed one leaves nothing
    if door != "close":
        checkpointer.save(4, small(4))
        assert_same(checkpointer.latest_good(small(0)), (4, small(4)))
        checkpointer.close()


def test_an_asynchronous_error_is_raised_on_leaving_the_context(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_write_arrays", fail)
    with pytest.raises(OSError, match="No space left"), checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, small(2))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("where", ["_write_arrays", "_file_digests", "_flush"])
def test_a_failed_save_deletes_only_its_own_folder(tmp_path, monkeypatch, where):
    saved(tmp_path, 1, 2)
    (tmp_path / "tmp-foreign").mkdir()
    monkeypatch.setattr(checkpoint, where, fail)
    with pytest.raises(OSError, match="No space left"):
        saver(tmp_path, keep=1).save(3, small(3))
    assert names(tmp_path) == {"1", "2", "tmp-foreign"}


def test_files_that_can_not_grow_cost_no_older_checkpoint(tmp_path):
    """RLIMIT_FSIZE makes the writes of orbax fail for real, without a disk to fill."""
    large = {"w": jnp.arange(200_000, dtype=jnp.float32)}
    checkpointer = saver(tmp_path, keep=1)
    checkpointer.save(1, large)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpointer.save(2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == {"1"}
    assert_same(checkpointer.latest_good(large), (1, large))


def run(code: str, directory, *, before: tuple[str, ...] = (), **options) -> subprocess.Popen:
    code = "import jax.numpy as jnp\nfrom jaxnets.training import checkpoint\n" + code
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


FILL = """
import os, sys
state = {"w": jnp.arange(100_000, dtype=jnp.float32)}
with checkpoint.Checkpointer(sys.argv[1], keep=1) as checkpointer:
    checkpointer.save(1, state)
    checkpointer.wait()
    open(sys.argv[1] + "/filler", "wb").write(bytes(os.statvfs(sys.argv[1]).f_bavail * 4096 - 200_000))
    checkpointer.save(2, state)
    try:
        checkpointer.wait()
        print("saved?")
    except OSError as error:
        print("No space left" in str(error), sorted(os.listdir(sys.argv[1])))
    print(checkpointer.latest_good(state)[0])
    os.remove(sys.argv[1] + "/filler")
    checkpointer.save(2, state)
    print(checkpointer.latest_good(state)[0], os.listdir(sys.argv[1]))
"""


def test_a_full_disk_costs_no_older_checkpoint(tmp_path):
    """A file system of 2 MB in a mount namespace of its own, gone with the process."""
    mount = ("unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=2m none {tmp_path} && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    process = run(FILL, tmp_path, before=mount)
    out, err = process.communicate(timeout=120)
    assert out.splitlines() == ["True ['1', 'filler']", "1", "2 ['2']"], err


KILLED = """
import itertools, sys
with checkpoint.Checkpointer(sys.argv[1], keep=2) as checkpointer:
    found = checkpointer.latest_good({"w": jnp.zeros(500_000)})
    for step in itertools.count(found[0] + 1 if found else 1):
        checkpointer.save(step, {"w": jnp.full(500_000, step, jnp.float32)})
        print(step - 1, flush=True)  # save waits for the save before
"""


def test_a_killed_process_leaves_the_older_steps_good(tmp_path):
    for round_number in range(3):
        process = run(KILLED, tmp_path)
        for line in process.stdout:
            if int(line) >= 3 * round_number + 3:
                break
        threading.Event().wait(0.013 * round_number)  # another moment of the save each time
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        reported = int((line + rest).split()[-1])
        with warnings.catch_warnings():  # nothing may be damaged: what is visible is complete
            warnings.simplefilter("error")
            step, state = saver(tmp_path).latest_good({"w": jnp.zeros(500_000)})
        assert step in (reported, reported + 1)
        np.testing.assert_array_equal(state["w"], step)
