"""Training steps: exact sums, exact accumulation, an untouched state on NaN, mixed precision, ensembles, shards."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses, metrics
from jaxnets.data.batches import Dataset
from jaxnets.models import mlp
from jaxnets.training import ensemble, precision, sharding, state, steps

MODEL = mlp.MLP(widths=(8, 3), normalization="batch")
LOSS = steps.supervised(MODEL.apply, losses.softmax_cross_entropy, accuracy=metrics.correct)
PLAIN = mlp.MLP(widths=(8, 3))
PLAIN_LOSS = steps.supervised(PLAIN.apply, losses.softmax_cross_entropy, accuracy=metrics.correct)
ADAM = optax.adam(1e-2)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return Dataset(rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32))


@functools.cache
def variables(model):
    return dict(model.init(jax.random.key(1), jnp.zeros((1, 4))))


def start(model=PLAIN, optimizer=ADAM, *, ema=False):
    carry = dict(variables(model))
    return state.from_params(carry.pop("params"), optimizer, jax.random.key(1), carry=carry, ema=ema)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def test_sgd_step_equals_the_update_written_out(jit, batch):
    before = start(optimizer=optax.sgd(0.1))
    after, row = jit(steps.make_train_step(PLAIN_LOSS, optax.sgd(0.1)))(before, batch)

    def mean_loss(params):
        logits = PLAIN.apply({"params": params}, jnp.asarray(batch.x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()

    loss, gradient = jax.value_and_grad(mean_loss)(before.params)
    close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradient))
    np.testing.assert_allclose(row["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(row["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert int(after.step) == 1


def test_the_optimizer_is_traced_once_for_all_platforms(batch):
    traced = []
    counted = optax.GradientTransformation(ADAM.init, lambda *arguments: traced.append(None) or ADAM.update(*arguments))
    with jax.disable_jit(False):
        jax.make_jaxpr(steps.make_train_step(PLAIN_LOSS, counted))(start(), batch)
    assert len(traced) == 1


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_exact_when_microbatches_carry_different_weights(jit, batch, accumulate):
    weighted = dataclasses.replace(batch, weight=jnp.array([1.0, 0, 0, 0.5, 1, 1, 1, 1]))
    whole, row = jit(steps.make_train_step(PLAIN_LOSS, optax.sgd(0.1)))(start(optimizer=optax.sgd(0.1)), weighted)
    parts, row_parts = jit(steps.make_train_step(PLAIN_LOSS, optax.sgd(0.1), accumulate=accumulate))(
        start(optimizer=optax.sgd(0.1)), weighted
    )
    close(parts.params, whole.params)
    close(row_parts, row)


def test_examples_of_weight_zero_change_nothing(jit, batch):
    step = jit(steps.make_train_step(PLAIN_LOSS, optax.sgd(0.1)))
    short, row = step(start(optimizer=optax.sgd(0.1)), batch[:6])
    junk = Dataset(np.concatenate([batch.x[:6], np.full((2, 4), 1e3, np.float32)]), batch.y, jnp.array([1.0] * 6 + [0.0] * 2))
    masked, masked_row = step(start(optimizer=optax.sgd(0.1)), junk)
    close(masked.params, short.params)
    close(masked_row, row)


def test_a_batch_needs_no_weight_field(batch):
    pair = collections.namedtuple("Pair", ["x", "y"])(batch.x, batch.y)
    _, row = steps.make_train_step(PLAIN_LOSS, ADAM)(start(), pair)
    _, expected = steps.make_train_step(PLAIN_LOSS, ADAM)(start(), batch)
    close(row, expected)


def test_a_model_is_given_the_fields_that_inputs_names(batch):
    """`scale` reaches the model in training and in evaluation; a field that the batch lacks is an error."""
    scaled = collections.namedtuple("Scaled", ["x", "y", "scale"])(batch.x, batch.y, np.float32(3))

    def apply(variables, x, scale, **options):
        return PLAIN.apply(variables, x * scale, **options)

    loss = steps.supervised(apply, losses.softmax_cross_entropy, inputs=("scale",))
    tripled = dataclasses.replace(batch, x=3 * batch.x)
    for key in (jax.random.key(0), None):
        close(loss(start().params, {}, scaled, key)[0], PLAIN_LOSS(start().params, {}, tripled, key)[0])
    with pytest.raises(AttributeError, match="scale"):
        loss(start().params, {}, batch, None)


def test_an_empty_batch_has_zero_loss_and_gradient(batch):
    empty = dataclasses.replace(batch, weight=jnp.zeros(8))
    after, row = steps.make_train_step(PLAIN_LOSS, optax.sgd(0.1))(start(optimizer=optax.sgd(0.1)), empty)
    assert float(row["loss"]) == 0
    assert same(after.params, start().params)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_leaves_the_whole_state_untouched(jit, batch, bad):
    step = jit(steps.make_train_step(LOSS, ADAM, ema=0.9, clip=1.0))
    before, _ = step(start(MODEL, ema=True), batch)
    after, row = step(before, dataclasses.replace(batch, x=batch.x.copy() * bad))
    counts = {"skipped", "skipped_in_row"}
    for field in dataclasses.fields(state.TrainState):
        if field.name not in counts:
            assert same(getattr(after, field.name), getattr(before, field.name)), field.name
    assert (int(after.skipped), int(after.skipped_in_row)) == (1, 1)
    assert not np.isfinite(row["grad_norm"])
    recovered, _ = step(after, batch)
    assert (int(recovered.step), int(recovered.skipped), int(recovered.skipped_in_row)) == (2, 1, 0)


def test_a_step_changes_params_statistics_and_average(batch):
    before = start(MODEL, ema=True)
    after, _ = steps.make_train_step(LOSS, ADAM, ema=0.9)(before, batch)
    assert not same(after.carry, before.carry)
    close(after.ema, jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before.ema, after.params))


def test_ema_with_warmup_follows_its_recurrence(batch):
    step, now = steps.make_train_step(PLAIN_LOSS, ADAM, ema=steps.ema_warmup(0.15)), start(ema=True)
    average = now.ema
    for decay in (0.1, 0.15):  # (1 + 0) / (10 + 0), then min(0.15, 2 / 11)
        now, _ = step(now, batch)
        average = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, average, now.params)
    close(now.ema, average)


def test_the_average_of_bfloat16_parameters_keeps_its_dtype(jit):
    loss = steps.plain(lambda params, batch, key: jnp.mean((batch @ params["w"]) ** 2))
    before = state.from_params({"w": jnp.ones(4, jnp.bfloat16)}, optax.sgd(0.1), jax.random.key(0), ema=True)
    step = jit(steps.make_train_step(loss, optax.sgd(0.1), ema=steps.ema_warmup(0.9)))
    after, _ = step(before, jnp.ones((2, 4), jnp.bfloat16))
    assert after.ema["w"].dtype == after.params["w"].dtype == jnp.bfloat16


def test_the_state_can_be_donated_with_an_average(batch):
    step = jax.jit(steps.make_train_step(PLAIN_LOSS, ADAM, ema=0.9), donate_argnums=0)
    after, _ = step(jax.tree.map(jnp.copy, start(ema=True)), batch)
    assert int(after.step) == 1


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_clipping_bounds_the_global_norm_as_optax_does(batch, clip):
    ours, row = steps.make_train_step(PLAIN_LOSS, optax.sgd(1.0), clip=clip)(start(optimizer=optax.sgd(1.0)), batch)
    chained = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(1.0))
    theirs, _ = steps.make_train_step(PLAIN_LOSS, chained)(start(optimizer=chained), batch)
    close(ours.params, theirs.params)
    assert float(row["grad_norm"]) > 1e-2  # before clipping


def test_keys_differ_between_steps_and_not_between_runs(batch):
    model = mlp.MLP(widths=(8, 3), dropout=0.5)
    step = jax.jit(steps.make_train_step(steps.supervised(model.apply, losses.softmax_cross_entropy), optax.sgd(0.0)))
    one, first = step(start(model, optax.sgd(0.0)), batch)
    _, second = step(one, batch)
    _, again = step(start(model, optax.sgd(0.0)), batch)
    assert float(first["loss"]) != float(second["loss"])  # learning rate 0: only the dropout mask changed
    assert float(first["loss"]) == float(again["loss"])


def test_mixed_precision_keeps_float32_parameters_and_follows_the_float32_gradient(jit, batch):
    mixed = steps.supervised(precision.mixed(MODEL.apply), losses.softmax_cross_entropy)
    before = start(MODEL, optax.sgd(0.1))
    after, row = jit(steps.make_train_step(mixed, optax.sgd(0.1)))(before, batch)
    exact, exact_row = jit(steps.make_train_step(LOSS, optax.sgd(0.1)))(before, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.carry)))
    close(after.params, exact.params, rtol=0, atol=0.1 * 0.02)  # 8 bits of mantissa in the gradient
    close(row["loss"], exact_row["loss"], rtol=0.02)
    assert not same(after.params, exact.params)


def test_mixed_precision_computes_in_bfloat16_and_returns_float32():
    seen = []

    def apply(variables, x):
        seen.extend([variables["params"]["w"].dtype, variables["batch_stats"].dtype, x.dtype])
        return x * variables["params"]["w"]

    out = precision.mixed(apply)({"params": {"w": jnp.ones(4)}, "batch_stats": jnp.ones(4)}, jnp.ones(4))
    assert seen == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
    assert out.dtype == jnp.float32


def test_plain_and_augmented_losses_compose(batch):
    optimizer, key = optax.sgd(0.1), jax.random.key(0)
    loss = steps.plain(lambda params, batch, key: jnp.mean((batch.x @ params["w"] - 1) ** 2))
    shifted = steps.augmented(loss, lambda key, batch: dataclasses.replace(batch, x=batch.x + 1))
    before = state.from_params({"w": jnp.ones(4)}, optimizer, key)
    after, _ = steps.make_train_step(loss, optimizer, accumulate=2)(before, batch)
    gradient = 2 * batch.x.T @ (batch.x @ np.ones(4, np.float32) - 1) / 8
    np.testing.assert_allclose(after.params["w"], 1 - 0.1 * gradient, rtol=1e-5)
    _, row = steps.make_train_step(shifted, optimizer)(before, batch)
    np.testing.assert_allclose(row["loss"], np.mean(((batch.x + 1).sum(1) - 1) ** 2), rtol=1e-5)
    weight, sums = steps.make_eval_step(shifted)(before, batch)
    np.testing.assert_allclose(sums["loss"] / weight, np.mean((batch.x.sum(1) - 1) ** 2), rtol=1e-5)


def test_evaluation_can_use_the_average(batch):
    model_state = start(ema=True)
    averaged = dataclasses.replace(model_state, ema=jax.tree.map(jnp.zeros_like, model_state.params))
    weight, sums = steps.make_eval_step(PLAIN_LOSS, ema=True)(averaged, batch)
    np.testing.assert_allclose(sums["loss"] / weight, np.log(3), rtol=1e-6)  # zero weights: uniform over three classes


def test_each_member_of_an_ensemble_trains_as_it_would_alone(jit, batch):
    create, step = alone_with, steps.make_train_step(PLAIN_LOSS, ADAM)
    members, rows = jit(ensemble.step(step))(ensemble.init(create, jax.random.key(3), 2), batch)
    for m, key in enumerate(jax.random.split(jax.random.key(3), 2)):
        alone, row = jit(step)(create(key), batch)
        close(jax.tree.map(lambda leaf, m=m: leaf[m], members.params), alone.params)
        np.testing.assert_allclose(rows["loss"][m], row["loss"], rtol=1e-5)


def alone_with(key, optimizer=ADAM):
    return state.create(PLAIN, optimizer, key, np.zeros((1, 4), np.float32))


def test_members_train_with_their_own_hyperparameters(batch):
    optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1, weight_decay=0.0)
    create = functools.partial(alone_with, optimizer=optimizer)
    members = ensemble.init(create, jax.random.key(0), 2, learning_rate=[0.0, 0.1], weight_decay=[0.0, 0.5])
    after, _ = ensemble.step(steps.make_train_step(PLAIN_LOSS, optimizer))(members, batch)
    moved = [float(optax.tree.norm(jax.tree.map(lambda a, b, m=m: a[m] - b[m], after.params, members.params))) for m in (0, 1)]
    assert moved[0] == 0
    assert moved[1] > 0.1
    fixed = optax.adamw(0.1, weight_decay=0.5)
    alone, _ = steps.make_train_step(PLAIN_LOSS, fixed)(alone_with(jax.random.split(jax.random.key(0))[1], fixed), batch)
    close(jax.tree.map(lambda leaf: leaf[1], after.params), alone.params)


def test_an_ensemble_predicts_the_mean_probability(batch):
    members = ensemble.init(alone_with, jax.random.key(0), 3)
    each = [
        PLAIN.apply({"params": jax.tree.map(lambda leaf, m=m: leaf[m], members.params)}, jnp.asarray(batch.x)) for m in range(3)
    ]
    expected = np.mean([jax.nn.softmax(logits) for logits in each], axis=0)
    np.testing.assert_allclose(np.exp(ensemble.predict(PLAIN.apply, members, batch.x)), expected, rtol=1e-5)
    averaged = dataclasses.replace(members, ema=jax.tree.map(jnp.zeros_like, members.params))
    np.testing.assert_allclose(np.exp(ensemble.predict(PLAIN.apply, averaged, batch.x, ema=True)), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "loss", "accumulate"), [(MODEL, LOSS, 1), (PLAIN, PLAIN_LOSS, 2)], ids=["batch norm", "accumulated"]
)
def test_two_devices_take_the_step_of_one(batch, model, loss, accumulate):
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    sgd = optax.sgd(0.1)  # Adam would blow up the rounding of gradients that are zero
    mesh, step = sharding.make_mesh(), steps.make_train_step(loss, sgd, accumulate=accumulate)
    weighted = dataclasses.replace(batch, weight=jnp.array([1.0, 0, 0, 1, 1, 1, 1, 1]))
    alone, row = jax.jit(step)(start(model, sgd), weighted)
    shared, shared_row = jax.jit(step)(sharding.replicate(start(model, sgd), mesh), sharding.shard(weighted, mesh))
    close(shared.params, alone.params, rtol=1e-4)
    close(shared.carry, alone.carry)
    close(shared_row, row)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip": 1.0, "ema": 0.9}], ids=["bare", "all options"])
def test_one_program_lowers_for_every_platform(batch, options):
    apply = precision.mixed(MODEL.apply) if options else MODEL.apply
    step = steps.make_train_step(steps.supervised(apply, losses.softmax_cross_entropy), ADAM, **options)
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(start(MODEL, ema=bool(options)), batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"ema": 1.0}, "ema must be"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        steps.make_train_step(PLAIN_LOSS, ADAM, **options)


def test_bad_calls_are_named(batch):
    with pytest.raises(ValueError, match="accumulate=3 must divide the batch, got 8"):
        steps.make_train_step(PLAIN_LOSS, ADAM, accumulate=3)(start(), batch)
    for ema, held in ((0.9, False), (None, True)):
        with pytest.raises(ValueError, match="an average needs"):
            steps.make_train_step(PLAIN_LOSS, ADAM, ema=ema)(start(ema=held), batch)
    with pytest.raises(ValueError, match="ema=True needs a state created with ema=True"):
        steps.make_eval_step(PLAIN_LOSS, ema=True)(start(), batch)
    scheduled = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.0, 5))
    with pytest.raises(ValueError, match="learning_rate of the optimizer must be one injected number, got a schedule"):
        ensemble.init(functools.partial(alone_with, optimizer=scheduled), jax.random.key(0), 2, learning_rate=[1.0, 2.0])
    with pytest.raises(ValueError, match="members must be at least 1"):
        ensemble.init(alone_with, jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"learning_rate needs one value per member"):
        ensemble.init(alone_with, jax.random.key(0), 2, learning_rate=[1.0])
    with pytest.raises(ValueError, match="injects no learning_rate"):
        ensemble.init(alone_with, jax.random.key(0), 2, learning_rate=[1.0, 2.0])
    with pytest.raises(ValueError, match="must divide the batch, got 7"):
        sharding.shard(batch[:7], sharding.make_mesh())
