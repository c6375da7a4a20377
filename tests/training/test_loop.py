"""The loop: order, rows, evaluation, resuming bit by bit, stopping on NaN."""

import dataclasses
import functools
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses, metrics
from jaxnets.data import batches
from jaxnets.data.batches import Dataset
from jaxnets.models import mlp
from jaxnets.training import checkpoint, ensemble, loop, sharding, state, steps
from jaxnets.types import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent
MODEL = mlp.MLP(widths=(8, 3), dropout=0.2)
LOSS = steps.supervised(MODEL.apply, losses.softmax_cross_entropy, accuracy=metrics.correct)
STEP, EVALUATE = steps.make_train_step(LOSS, optax.adam(1e-2)), steps.make_eval_step(LOSS)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return Dataset(rng.normal(size=(22, 4)).astype(np.float32), rng.integers(0, 3, 22).astype(np.int32))


def create(key):
    return state.create(MODEL, optax.adam(1e-2), key, np.zeros((1, 4), np.float32))


@pytest.fixture
def begin():
    return create(jax.random.key(0))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def close(a, b, **tolerances):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerances), a, b)


@pytest.mark.parametrize("scan", [False, True])
def test_fit_is_the_step_over_the_batches_of_seed_and_step(data, begin, scan):
    result = loop.fit(STEP, begin, data, batch=8, epochs=2, seed=5, scan=scan)
    expected = begin
    for positions in batches.indices(5, 0, 4, len(data), 8):
        expected, _ = jax.jit(STEP)(expected, data[positions])
    close(result.state.params, expected.params, rtol=1e-5, atol=1e-6)
    assert [row["step"] for row in result.history] == [2, 4]
    assert int(begin.step) == 0  # the caller's state stays valid


@pytest.mark.parametrize("scan", [False, True])
def test_without_shuffling_every_epoch_reads_the_data_in_order(data, begin, scan):
    def step(state, batch):  # the carry is the number that the digits read so far spell
        carry = 10 * state.carry + batch.y[0] // 4
        return dataclasses.replace(state, carry=carry, step=state.step + 1), {"loss": carry * 1.0}

    counter = dataclasses.replace(begin, carry=jnp.int32(0))
    numbered = dataclasses.replace(data, y=np.arange(22, dtype=np.int32))
    fitted = loop.fit(step, counter, numbered, batch=4, steps=8, seed=3, shuffle=False, scan=scan)
    assert int(fitted.state.carry) == 1234012  # batches 0..4, then 0..2


def test_rows_hold_means_over_their_interval_and_exact_test_figures(data, begin):
    rows = []
    fitted = loop.fit(
        STEP, begin, data, batch=8, steps=3, log_every=3, evaluate=EVALUATE, test=data, evaluate_every=2, callback=rows.append
    )
    assert rows == fitted.history
    assert [row["step"] for row in rows] == [2, 3]
    now, each = begin, []
    for positions in batches.indices(0, 0, 3, len(data), 8):
        now, row = jax.jit(STEP)(now, data[positions])
        each.append(float(row["loss"]))
    np.testing.assert_allclose([row["loss"] for row in rows], [np.mean(each[:2]), each[2]], rtol=1e-5)
    logits = MODEL.apply(
        {"params": fitted.state.params}, jnp.asarray(data.x)
    )  # 22 examples in batches of 8: the last is uneven
    np.testing.assert_allclose(rows[-1]["test_accuracy"], np.mean(np.argmax(logits, -1) == data.y), rtol=1e-6)
    exact = optax.softmax_cross_entropy_with_integer_labels(logits, data.y).mean()
    np.testing.assert_allclose(rows[-1]["test_loss"], exact, rtol=1e-5)
    np.testing.assert_allclose(loop.evaluate(EVALUATE, fitted.state, data, batch=5)["loss"], exact, rtol=1e-5)


def test_only_the_intervals_in_use_cut_the_run(data, begin):
    rows = loop.fit(STEP, begin, data, batch=8, steps=6, log_every=3, evaluate_every=1, checkpoint_every=1).history
    assert [row["step"] for row in rows] == [3, 6]


@pytest.mark.parametrize("scan", [False, True])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, data, begin, scan):
    options = {"batch": 8, "seed": 1, "scan": scan, "log_every": 3, "checkpoint_every": 2}
    with checkpoint.Checkpointer(tmp_path / "whole") as saved:
        whole = loop.fit(STEP, begin, data, steps=5, **options, checkpoint=saved)
    with checkpoint.Checkpointer(tmp_path / "cut") as saved:
        loop.fit(STEP, begin, data, steps=4, **options, checkpoint=saved)
    with checkpoint.Checkpointer(tmp_path / "cut") as saved:
        resumed = loop.fit(STEP, begin, data, steps=5, **options, checkpoint=saved)
    assert [row["step"] for row in resumed.history] == [5]
    assert same(resumed.state, whole.state)


def test_an_ensemble_fits_like_one_network(data):
    members = ensemble.init(create, jax.random.key(0), 2)
    evaluate = jax.vmap(EVALUATE, in_axes=(0, None))
    fitted = loop.fit(ensemble.step(STEP), members, data, batch=8, epochs=1, scan=True, evaluate=evaluate, test=data)
    alone = loop.fit(
        STEP, create(jax.random.split(jax.random.key(0))[1]), data, batch=8, epochs=1, evaluate=EVALUATE, test=data
    )
    assert fitted.history[0]["loss"].shape == (2,)
    np.testing.assert_allclose(fitted.history[0]["test_loss"][1], alone.history[0]["test_loss"], rtol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_a_mesh_of_two_devices_fits_like_one(data, begin, scan):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    options = {"batch": 8, "epochs": 1, "scan": scan, "evaluate": EVALUATE, "test": data}
    alone = loop.fit(STEP, begin, data, **options)
    shared = loop.fit(STEP, begin, data, **options, mesh=sharding.make_mesh())
    close(shared.state.params, alone.state.params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_skipped_steps_are_counted_and_left_out_of_the_means(data, begin, scan):
    spoiled = dataclasses.replace(data, x=data.x.copy())
    first = batches.indices(0, 0, 1, len(data), 8)[0]
    spoiled.x[first[0]] = np.nan
    row = loop.fit(STEP, begin, spoiled, batch=8, epochs=1, scan=scan).history[0]
    assert row["skipped"] == 1
    assert np.isfinite(row["loss"])


@pytest.mark.parametrize("scan", [False, True])
def test_too_many_bad_steps_in_a_row_stop_with_a_message(data, begin, scan):
    spoiled = dataclasses.replace(data, x=data.x * np.nan)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*non-finite loss or gradient"):
        loop.fit(STEP, begin, spoiled, batch=8, steps=3, log_every=3, scan=scan, max_skipped=3)


def test_a_step_of_ones_own_gives_rows_of_means(data, begin):
    def step(state, batch):
        return dataclasses.replace(state, step=state.step + 1), {"one": jnp.ones(())}

    assert loop.fit(step, begin, data, batch=8, steps=5, log_every=5).history[0]["one"] == 1


def test_evaluation_of_a_plain_loss_counts_every_example_once(data, begin):
    mean_square = steps.plain(lambda params, batch, key: jnp.mean(jnp.asarray(batch.x) ** 2))
    for batch in (8, 22, 30):
        value = loop.evaluate(steps.make_eval_step(mean_square), begin, data, batch=batch)["loss"]
        np.testing.assert_allclose(value, np.mean(data.x**2), rtol=1e-6)


def test_evaluation_of_nothing_but_weight_zero_is_zero(data, begin):
    nothing = dataclasses.replace(data, weight=np.zeros(22, np.float32))
    assert loop.evaluate(EVALUATE, begin, nothing, batch=22) == {"loss": 0, "accuracy": 0}


def overflowing(bad_from):
    """A step whose update overflows from step `bad_from` on, after which every loss is NaN."""
    optimizer = optax.sgd(lambda count: jnp.where(count >= bad_from, jnp.inf, 0.1))
    begin = state.create(MODEL, optimizer, jax.random.key(0), np.zeros((1, 4), np.float32))
    return steps.make_train_step(LOSS, optimizer), begin


def test_a_state_that_can_not_go_on_replaces_no_good_checkpoint(tmp_path, data):
    step, begin = overflowing(3)
    with checkpoint.Checkpointer(tmp_path, keep=3) as saved, pytest.raises(FloatingPointError, match="in a row"):
        loop.fit(step, begin, data, batch=8, steps=20, log_every=1, checkpoint_every=1, checkpoint=saved, max_skipped=8)
    with checkpoint.Checkpointer(tmp_path) as saved:
        assert min(saved.steps()) <= 3


def test_an_ensemble_goes_on_while_one_member_does(tmp_path, data):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    step = steps.make_train_step(LOSS, optimizer)
    create_one = functools.partial(state.create, MODEL, optimizer, x=np.zeros((1, 4), np.float32))
    members = ensemble.init(create_one, jax.random.key(0), 2, learning_rate=[np.inf, 0.1])
    options = {"batch": 8, "steps": 6, "log_every": 6, "checkpoint_every": 6, "max_skipped": 3, "scan": True}
    with checkpoint.Checkpointer(tmp_path) as saved:
        fitted = loop.fit(ensemble.step(step), members, data, **options, checkpoint=saved)
        assert saved.steps()[-1] == 6
    np.testing.assert_array_equal(fitted.state.skipped, [5, 0])  # the first update overflows, then every loss is NaN
    np.testing.assert_array_equal(fitted.history[0]["skipped"], [5, 0])
    alone = ensemble.init(create_one, jax.random.key(0), 2, learning_rate=[0.1, 0.1])
    good = loop.fit(ensemble.step(step), alone, data, **options)
    close(
        jax.tree.map(lambda leaf: leaf[1], fitted.state.params),
        jax.tree.map(lambda leaf: leaf[1], good.state.params),
        rtol=1e-5,
    )
    lost = ensemble.init(create_one, jax.random.key(0), 2, learning_rate=[np.inf, np.inf])
    with pytest.raises(FloatingPointError, match="in a row"):
        loop.fit(ensemble.step(step), lost, data, **options)


def test_a_checkpoint_beyond_the_request_and_uneven_fields_are_named(tmp_path, data, begin):
    with checkpoint.Checkpointer(tmp_path) as saved:
        loop.fit(STEP, begin, data, batch=8, steps=2, checkpoint=saved)
        with pytest.raises(InputError, match="at most the 1 steps asked for, got one of 2"):
            loop.fit(STEP, begin, data, batch=8, steps=1, checkpoint=saved)
    uneven = Dataset(data.x, data.y[:10])
    with pytest.raises(InputError, match=r"fields of data must be of one length, got \[10, 22\]"):
        loop.fit(STEP, begin, uneven, batch=8, steps=1, scan=True)
    with pytest.raises(InputError, match=r"fields of test must be of one length"):
        loop.fit(STEP, begin, data, batch=8, steps=1, evaluate=EVALUATE, test=uneven)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 23, "epochs": 1}, "batch"),
        ({"batch": 8}, "either epochs or steps"),
        ({"batch": 8, "epochs": 1, "steps": 1}, "either epochs or steps"),
        ({"batch": 8, "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch": 8, "steps": 1, "log_every": 0}, "log_every must be at least 1"),
        ({"batch": 8, "steps": 1, "evaluate": EVALUATE}, "evaluate and test go together"),
    ],
)
def test_bad_arguments_are_named(data, begin, options, message):
    with pytest.raises(ValueError, match=message):
        loop.fit(STEP, begin, data, **options)


def test_images_of_another_shape_than_the_model_are_named(data, begin):
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        loop.fit(STEP, begin, Dataset(np.zeros((22, 5), np.float32), data.y), batch=8, steps=1)


PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
import jax, numpy as np, optax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from jaxnets import losses
from jaxnets.data.batches import Dataset
from jaxnets.models import mlp
from jaxnets.training import checkpoint, loop, state, steps
rng = np.random.default_rng(0)
data = Dataset(rng.normal(size=(32, 4)).astype(np.float32), rng.integers(0, 3, 32).astype(np.int32))
model, optimizer = mlp.MLP(widths=(8, 3), dropout=0.2), optax.adam(1e-2)
step = steps.make_train_step(steps.supervised(model.apply, losses.softmax_cross_entropy), optimizer, ema=0.9)
begin = state.create(model, optimizer, jax.random.key(0), data.x[:1], ema=True)
def tell(row):
    print(row["step"], flush=True)
    time.sleep(float(sys.argv[2]))
with checkpoint.Checkpointer(sys.argv[1], config={{"seed": 0}}) as saved:
    options = {{"batch": 8, "steps": 80, "log_every": 2, "checkpoint_every": 2, "scan": sys.argv[3] == "scan"}}
    done = loop.fit(step, begin, data, **options, checkpoint=saved, callback=tell)
plain = jax.tree.map(lambda a: jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a, done.state)
bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]
import hashlib
print("final", hashlib.sha256(b"".join(bits)).hexdigest(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["scan", "steps"])
def test_a_run_killed_five_times_ends_bitwise_equal(tmp_path, dispatch):
    """SIGKILL at random moments, saves included: five kills, then the run that is left alone."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(cache=jax.config.jax_compilation_cache_dir, root=str(ROOT)))

    def launch(folder, pause):
        command = [sys.executable, str(program), str(folder), str(pause), dispatch]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def final(process):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return out.split()[-1]

    expected = final(launch(tmp_path / "whole", 0))
    rng = np.random.default_rng()
    reached = []
    for _ in range(5):
        process = launch(tmp_path / "killed", 0.05)
        for _ in range(int(rng.integers(1, 4))):  # some rows, then anywhere within the next two
            line = process.stdout.readline()
            if line.strip().isdigit():
                reached.append(int(line))
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert reached, "no run got as far as a row"
    assert final(launch(tmp_path / "killed", 0)) == expected
