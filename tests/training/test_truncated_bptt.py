"""Truncated back-propagation through time: what is carried, where the gradient ends, what a reset cuts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses
from jaxnets.data import text
from jaxnets.models import rnn
from jaxnets.training import loop, state, steps

MODEL = rnn.LanguageModel(vocabulary=5, cell=rnn.GRU(4))
LOSS = steps.truncated_bptt(MODEL.apply)
BATCH, TIME = 2, 3


@pytest.fixture(scope="module")
def data():
    """Two windows of two streams."""
    ids = np.random.default_rng(0).integers(0, 5, BATCH * TIME * 2 + 1)
    return jax.tree.map(jnp.asarray, text.streams(ids, BATCH, TIME))


@pytest.fixture(scope="module")
def params():
    drawn = MODEL.init(jax.random.key(1), jnp.zeros((1, 1), int))["params"]
    return jax.tree.map(lambda leaf: 2 * leaf, drawn)


def whole(data):
    """Each stream as one sequence `[batch, 2 time]`."""
    return tuple(jnp.concatenate([a[:BATCH], a[BATCH:]], axis=1) for a in (data.x, data.y))


def cross_entropy(params, x, y, **options):
    return losses.softmax_cross_entropy(MODEL.apply({"params": params}, x, **options)[0], y).sum()


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


def test_the_gradient_is_exact_where_the_window_covers_the_sequence(jit, data, params, key):
    x, y = whole(data)
    batch = text.Streams(x, y, reset=jnp.zeros(x.shape, bool))
    gradient = jit(jax.grad(lambda p: LOSS(p, MODEL.initial(BATCH), batch, key)[0]))
    close(gradient(params), jax.grad(cross_entropy)(params, x, y))


def test_losses_of_windows_add_up_to_that_of_the_sequence(data, params, key):
    carry, total = MODEL.initial(BATCH), 0.0
    for window in (data[:BATCH], data[BATCH:]):
        loss, (weight, _, carry) = LOSS(params, carry, window, key)
        total += loss
        assert weight == BATCH * TIME
    close(total, cross_entropy(params, *whole(data)))


def test_the_gradient_ends_where_the_window_begins(data, params, key):
    def both(params):
        first, (_, _, carry) = LOSS(params, MODEL.initial(BATCH), data[:BATCH], key)
        return first + LOSS(params, carry, data[BATCH:], key)[0]

    _, start = MODEL.apply({"params": params}, data.x[:BATCH])
    second = jax.grad(cross_entropy)(params, data.x[BATCH:], data.y[BATCH:], initial=start)
    first = jax.grad(cross_entropy)(params, data.x[:BATCH], data.y[:BATCH])
    truncated, exact = jax.grad(both)(params), jax.grad(cross_entropy)(params, *whole(data))
    close(truncated, jax.tree.map(jnp.add, first, second))
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), truncated, exact))) > 1e-3


def test_a_reset_row_starts_anew_and_the_others_go_on(data, params, key):
    carry = jax.tree.map(lambda leaf: leaf + 0.5, MODEL.initial(BATCH))
    batch = dataclasses.replace(data[BATCH:], reset=jnp.zeros((BATCH, TIME), bool).at[1, 0].set(True))
    _, (_, _, final) = LOSS(params, carry, batch, key)
    start = jax.tree.map(lambda leaf: leaf.at[1].set(0), carry)
    _, expected = MODEL.apply({"params": params}, batch.x, initial=start)
    close(final, expected)


def test_evaluation_starts_from_zero_and_leaves_the_carry(data, params):
    carry = jax.tree.map(lambda leaf: leaf + 0.5, MODEL.initial(7))  # of another batch, even
    loss, (_, _, after) = LOSS(params, carry, data[:BATCH], None)
    close(loss, cross_entropy(params, data.x[:BATCH], data.y[:BATCH]))
    assert after is carry


def test_a_skipped_step_keeps_the_state_that_came_before(data, params):
    optimizer = optax.sgd(0.1)
    before = state.from_params(params, optimizer, jax.random.key(0), carry=MODEL.initial(BATCH))
    bad = dataclasses.replace(data[:BATCH], weight=jnp.full((BATCH,), jnp.nan))
    step = steps.make_train_step(LOSS, optimizer)
    after, _ = step(before, bad)
    assert after.skipped == 1
    close(after.carry, before.carry, 0)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(step(before, data[:BATCH])[0].carry))


def test_fit_in_order_carries_the_state_through_the_stream(data):
    optimizer = optax.sgd(0.0)
    start = state.create(MODEL, optimizer, jax.random.key(0), data.x[:1], carry=MODEL.initial(BATCH))
    fitted = loop.fit(steps.make_train_step(LOSS, optimizer), start, data, batch=BATCH, epochs=1, shuffle=False)
    _, expected = MODEL.apply({"params": start.params}, whole(data)[0])
    close(fitted.state.carry, expected)


def test_members_of_an_ensemble_carry_their_own_states(data):
    with jax.disable_jit(False):
        optimizer = optax.sgd(0.1)
        create = functools.partial(state.create, MODEL, optimizer, x=data.x[:1], carry=MODEL.initial(BATCH))
        members = jax.vmap(create)(jax.random.split(jax.random.key(0), 2))
        members, _ = jax.jit(jax.vmap(steps.make_train_step(LOSS, optimizer), (0, None)))(members, data[:BATCH])
        states = members.carry[0]
        assert states.shape == (2, BATCH, 4)
        assert not np.allclose(states[0], states[1])


def test_a_carry_of_another_batch_is_named(data, params, key):
    with pytest.raises(ValueError, match="initial must be a state of shapes"):
        LOSS(params, MODEL.initial(BATCH + 1), data[:BATCH], key)
    with pytest.raises(ValueError, match="initial must be a state of shapes"):
        LOSS(params, {}, data[:BATCH], key)
