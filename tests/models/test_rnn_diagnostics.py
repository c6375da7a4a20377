"""Gradients against the lag: closed forms of linear and saturated cells, and `jax.jacrev` through all steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import rnn

BATCH, TIME, WIDTH = 2, 4, 3


def sequence(time=TIME):
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, time, 2)), jnp.float32)


def rotation(gain):
    """`gain` times a random orthogonal matrix."""
    return jnp.asarray(gain * np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0], jnp.float32)


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("gain", [0.5, 1.0, 1.7])
def test_a_linear_cell_of_gain_g_has_g_to_the_lag(gain, spectral):
    cell = rnn.Elman(WIDTH, activation=lambda a: a)
    params = {"input": jnp.ones((2, WIDTH)), "recurrent": rotation(gain), "bias": jnp.zeros(WIDTH)}
    step = functools.partial(cell.step, params)
    got = rnn.state_gradients(step, cell.initial(BATCH, jnp.float32), sequence(), spectral=spectral)
    np.testing.assert_allclose(got, [np.arange(TIME + 1) * np.log(gain)] * BATCH, atol=1e-5)


@pytest.mark.parametrize("gain", [0.01, 100.0])
def test_norms_beyond_the_range_of_floats_are_exact_as_logarithms(gain):
    cell = rnn.Elman(WIDTH, activation=lambda a: a)
    params = {"input": jnp.zeros((2, WIDTH)), "recurrent": rotation(gain), "bias": jnp.zeros(WIDTH)}
    with jax.disable_jit(False):
        gradients = jax.jit(lambda xs: rnn.state_gradients(functools.partial(cell.step, params), cell.initial(BATCH), xs))
        got = gradients(sequence(40))
    np.testing.assert_allclose(got[:, -1], 40 * np.log(gain), rtol=1e-5)  # e±184


def test_a_dead_unit_passes_nothing_on():
    """relu below zero: an exact zero, -inf as a logarithm, never NaN."""
    cell = rnn.Elman(WIDTH, activation=jax.nn.relu)
    params = {"input": jnp.zeros((2, WIDTH)), "recurrent": rotation(1), "bias": -9 * jnp.ones(WIDTH)}
    got = rnn.state_gradients(functools.partial(cell.step, params), cell.initial(BATCH, jnp.float32), sequence())
    np.testing.assert_array_equal(got, [[0] + [-np.inf] * TIME] * BATCH)


def test_the_cell_of_an_lstm_forgets_by_its_forget_gate():
    """All weights zero: ∂c_T/∂c_t = f^lag, and h only repeats c: of the pair (h, c), √(1 + (o tanh'(c))²) f^lag."""
    cell, bias = rnn.LSTM(WIDTH), np.repeat([-30.0, 2.0, 0.0, 30.0], WIDTH)  # i = 0, f = σ(2), o = 1: c stays 0
    params = {
        "input": jnp.zeros((2, 4 * WIDTH)),
        "recurrent": jnp.zeros((WIDTH, 4 * WIDTH)),
        "bias": jnp.asarray(bias, jnp.float32),
    }
    got = rnn.state_gradients(functools.partial(cell.step, params), cell.initial(BATCH, jnp.float32), sequence())
    f = 1 / (1 + np.exp(-2.0))
    expected = [0, *(np.log(np.sqrt(2)) + np.arange(1, TIME + 1) * np.log(f))]
    np.testing.assert_allclose(got, [expected] * BATCH, atol=1e-5)


@pytest.mark.parametrize("spectral", [True, False])
def test_a_complex_state_counts_as_pairs_of_reals(spectral):
    """|λ|^lag of the slowest state, or the root mean square of all |λ|^lag."""
    cell = rnn.LRU(WIDTH, state=4)
    with jax.disable_jit(False):
        params = cell.init(jax.random.key(0), 2, jnp.float32)
        step, start = functools.partial(cell.step, params), cell.initial(BATCH)
        got = jax.jit(lambda xs: rnn.state_gradients(step, start, xs, spectral=spectral))(sequence())
    powers = np.exp(-np.exp(np.asarray(params["nu_log"]))) ** np.arange(TIME + 1)[:, None]
    expected = powers.max(1) if spectral else np.sqrt((powers**2).mean(1))
    np.testing.assert_allclose(got, [np.log(expected)] * BATCH, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spectral", [True, False])
def test_a_stack_of_layers_agrees_with_the_jacobian_through_all_steps(spectral):
    layer, xs = rnn.Recurrent(rnn.GRU(WIDTH), layers=2, plain=True), sequence(3)
    with jax.disable_jit(False):
        variables = layer.init(jax.random.key(0), xs)
        start = jax.tree.map(lambda s: s + 0.3, layer.initial(BATCH))

        def step(state, x):
            return layer.apply(variables, x[:, None], initial=state)[1]

        got = jax.jit(lambda: rnn.state_gradients(step, start, xs, spectral=spectral))()
        whole = jax.jit(jax.jacfwd(lambda start: layer.apply(variables, xs, initial=start)[1]))(start)
    for row in range(BATCH):
        matrix = np.block([[np.asarray(block)[row, :, row] for block in of_output] for of_output in whole])
        norm = np.linalg.norm(matrix, 2) if spectral else np.linalg.norm(matrix) / np.sqrt(2 * WIDTH)
        np.testing.assert_allclose(got[row, -1], np.log(norm), rtol=1e-4)


def test_input_gradients_count_the_lag_from_a_rows_own_last_step():
    """Of a linear cell with an orthogonal matrix times g and input weights W: ‖W‖ g^lag for a loss that is a unit vector's."""
    cell, gain = rnn.Elman(WIDTH, activation=lambda a: a), 0.5
    layer, lengths = rnn.Recurrent(cell), jnp.array([TIME, 2])
    params = {"input": jnp.eye(WIDTH)[:2] * 3, "recurrent": gain * jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}

    def loss(x, lengths=None):
        _, (final,) = layer.apply({"params": {"layer_0": params}}, x, lengths=lengths)
        return final[:, 0].sum()

    expected = 3 * gain ** np.arange(TIME)
    np.testing.assert_allclose(rnn.input_gradients(loss, sequence()), [expected] * BATCH, rtol=1e-6)
    got = rnn.input_gradients(functools.partial(loss, lengths=lengths), sequence(), lengths)
    np.testing.assert_allclose(got, [expected, np.where(np.arange(TIME) < 2, expected, 0)], rtol=1e-6)
