"""Checkpoints: bitwise round trips, damage, mismatches, asynchronous errors, a full disk, a killed process."""

import collections
import dataclasses
import pathlib
import pickle
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.training import checkpoint
from jaxnets.types import InputError
from tests.training.checkpoints import assert_same, make_state, names, saved, saver, small

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


@pytest.mark.parametrize("damage", ["missing file", "cut short", "no arrays", "renamed step", "no manifest", "other manifest"])
def test_a_damaged_step_is_passed_over_with_a_warning(tmp_path, damage):
    checkpointer = saved(tmp_path, 1, 2)
    manifest = tmp_path / "2" / checkpoint.MANIFEST
    largest = max((tmp_path / "2" / "arrays").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    if damage == "missing file":
        largest.unlink()
    elif damage == "cut short":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "no arrays":
        shutil.rmtree(tmp_path / "2" / "arrays")
    elif damage == "renamed step":
        (tmp_path / "2").rename(tmp_path / "3")
    elif damage == "no manifest":
        manifest.write_text("")
    else:  # would be another dtype, not damage, if the manifest's own hash were not checked
        manifest.write_text(manifest.read_text().replace('"float32"', '"float22"'))
    newest = 3 if damage == "renamed step" else 2
    with pytest.warns(UserWarning, match=rf"/{newest} is damaged"):
        assert_same(checkpointer.latest_good(small(0)), (1, small(1)))
    with pytest.raises(InputError, match=rf"/{newest} is damaged"):
        checkpointer.restore(newest, small(0))
    checkpointer.save(newest, small(9))  # the run that fell back comes by again
    assert_same(checkpointer.latest_good(small(0)), (newest, small(9)))


def test_if_all_are_damaged_each_is_named_and_nothing_starts_afresh(tmp_path):
    checkpointer = saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / checkpoint.MANIFEST).write_text("{}")
    with (
        pytest.warns(UserWarning, match=r"/2 is damaged"),
        pytest.warns(UserWarning, match=r"/1 is damaged"),
        pytest.raises(InputError, match=r"every checkpoint in .* is damaged"),
    ):
        checkpointer.latest_good(small(0))


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
