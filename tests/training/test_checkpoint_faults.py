"""Failing saves: asynchronous errors, a full disk, a killed process. No older checkpoint is lost."""

import errno
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.training import checkpoint
from tests.training.checkpoints import assert_same, names, saved, saver, small

ROOT = pathlib.Path(__file__).parents[2]


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
