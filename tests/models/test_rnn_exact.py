"""Recurrent layers against the textbook, row by row: every length, NaN padding, chunks, resets, finite differences.

Each formula below is written from its paper, for one row in NumPy; `expected` takes a row's own steps, one after the other.
Where compiled functions are tested, JAX_DISABLE_JIT=1 tests the same without.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import backprop
from jaxnets.models import rnn

ROWS, TIME, FEATURES = 4, 4, 3
LENGTHS = np.array([3, 0, 4, 1])  # a row of no steps, one of one step, not in order
CELLS = {
    "tanh": rnn.Elman(5),
    "relu": rnn.Elman(5, activation=jax.nn.relu),
    "lstm": rnn.LSTM(5),
    "peephole": rnn.LSTM(5, peephole=True),
    "projection": rnn.LSTM(5, projection=2),
    "normalized": rnn.LSTM(5, normalize=True),
    "gru": rnn.GRU(5),
    "gru_paper": rnn.GRU(5, reset_after=False),
}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def elman(f):
    """Elman (1990): h' = f(W x + U h + b)."""
    return lambda p, h, x: f(x @ p["input"] + h @ p["recurrent"] + p["bias"])


def lstm(p, state, x):
    """Gers, Schmidhuber & Cummins (2000); projection: Sak, Senior & Beaufays (2014), eq. 1-6."""
    h, c = state
    i, f, g, o = np.split(x @ p["input"] + h @ p["recurrent"] + p["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    m = sigmoid(o) * np.tanh(c)
    return (m @ p["projection"] if "projection" in p else m), c


def peephole(p, state, x):
    """Gers & Schmidhuber (2000): input and forget gates see the old cell, the output gate the new one."""
    h, c = state
    i, f, g, o = np.split(x @ p["input"] + h @ p["recurrent"] + p["bias"], 4)
    new = sigmoid(f + p["peephole_f"] * c) * c + sigmoid(i + p["peephole_i"] * c) * np.tanh(g)
    return sigmoid(o + p["peephole_o"] * new) * np.tanh(new), new


def normalized(p, state, x):
    """Ba, Kiros & Hinton (2016), eq. 20-22; the two shifts of eq. 20 are one bias."""

    def norm(a, scale):
        return scale * (a - a.mean()) / np.sqrt(a.var() + 1e-5)

    h, c = state
    z = norm(h @ p["recurrent"], p["scale_recurrent"]) + norm(x @ p["input"], p["scale_input"]) + p["bias"]
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(norm(c, p["scale_cell"]) + p["bias_cell"]), c


def gru(p, h, x):
    """PyTorch's and cuDNN's variant: the reset gate multiplies U h + b'."""
    (w_r, w_z), (u_r, u_z) = np.split(p["input"], 2, axis=1), np.split(p["recurrent"], 2, axis=1)
    b_r, b_z = np.split(p["bias"], 2)
    r, z = sigmoid(x @ w_r + h @ u_r + b_r), sigmoid(x @ w_z + h @ u_z + b_z)
    of_state = h @ p["recurrent_candidate"] + p["recurrent_bias"]
    return (1 - z) * np.tanh(x @ p["input_candidate"] + p["bias_candidate"] + r * of_state) + z * h


def gru_paper(p, h, x):
    """Cho et al. (2014), eq. 5-8: the reset gate multiplies h."""
    (w_r, w_z), (u_r, u_z) = np.split(p["input"], 2, axis=1), np.split(p["recurrent"], 2, axis=1)
    b_r, b_z = np.split(p["bias"], 2)
    r, z = sigmoid(x @ w_r + h @ u_r + b_r), sigmoid(x @ w_z + h @ u_z + b_z)
    return z * h + (1 - z) * np.tanh(x @ p["input_candidate"] + (r * h) @ p["recurrent_candidate"] + p["bias_candidate"])


TEXTBOOK = {
    "tanh": elman(np.tanh),
    "relu": elman(lambda a: np.maximum(a, 0)),
    "lstm": lstm,
    "peephole": peephole,
    "projection": lstm,
    "normalized": normalized,
    "gru": gru,
    "gru_paper": gru_paper,
}


def step_of(name, p, state, x):
    """One step of one row, whose state is a tuple of leaves."""
    state = TEXTBOOK[name](p, state if len(state) > 1 else state[0], x)
    return state if isinstance(state, tuple) else (state,)


def expected(name, params, x, initial, documents):
    """(outputs, leaves of the final states) of a bidirectional layer, row by row and step by step.

    `documents` has for each row the (start, stop) of its parts; all but a direction's first start from zero.
    """
    p, x, initial = jax.tree.map(np.asarray, (params["layer_0"], x, initial[0]))
    outputs, finals = [], []
    for direction, start_states, order in zip(("forward", "backward"), initial, (1, -1), strict=True):
        leaves = jax.tree.leaves(start_states)
        out, ends = np.zeros((*x.shape[:2], leaves[0].shape[-1]), x.dtype), []
        for row, parts in enumerate(documents):
            state = tuple(leaf[row] for leaf in leaves)
            for number, part in enumerate(parts[::order]):
                state = tuple(0 * leaf for leaf in state) if number else state
                for time in range(*part)[::order]:
                    state = step_of(name, p[direction], state, x[row, time])
                    out[row, time] = state[0]
            ends.append(state)
        outputs.append(out)
        finals += [np.stack(leaf) for leaf in zip(*ends, strict=True)]
    return np.concatenate(outputs, axis=-1), finals


def problem(name, *, time=TIME, dtype=np.float32, **options):
    """A layer, its params (all random), x and an initial state."""
    rng = np.random.default_rng(0)
    cell = CELLS.get(name, rnn.LSTM(5, peephole=True, projection=2, normalize=True))
    layer = rnn.Recurrent(cell, **options)

    def draw(leaf):
        return jnp.asarray(rng.normal(scale=0.7, size=leaf.shape), dtype)

    x = draw(np.empty((ROWS, time, FEATURES)))
    params = jax.tree.map(draw, jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
    return layer, params, x, jax.tree.map(draw, layer.initial(ROWS))


def padded(x, lengths, value):
    return jnp.where(jnp.asarray(np.arange(x.shape[1]) < lengths[:, None])[..., None], x, value)


def assert_trees_close(actual, expected, tolerance):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CELLS)
def test_rows_of_every_length_follow_the_textbook(name):
    """Also each row alone, a batch of one, under vmap."""
    with jax.enable_x64(True):
        layer, params, x, initial = problem(name, dtype=np.float64, bidirectional=True)

        def apply(x, lengths, initial):
            return layer.apply({"params": params}, x, lengths=lengths, initial=initial)

        def alone(*row):
            return jax.tree.map(lambda a: a[0], apply(*jax.tree.map(lambda a: a[None], row)))

        arguments = padded(x, LENGTHS, jnp.nan), jnp.asarray(LENGTHS), initial
        truth = expected(name, params, x, initial, [[(0, length)] for length in LENGTHS])
        assert_trees_close(jax.jit(apply)(*arguments), truth, 1e-13)
        assert_trees_close(jax.jit(jax.vmap(alone))(*arguments), truth, 1e-13)


@pytest.mark.parametrize("name", CELLS)
def test_padding_touches_nothing(name):
    """Outputs, final states and all gradients are the same to the bit with NaN there; a row of no steps keeps its state."""
    layer, params, x, initial = problem(name)
    rng, lengths = np.random.default_rng(1), jnp.asarray(LENGTHS)
    shapes = jax.eval_shape(lambda x: layer.apply({"params": params}, x), x)
    cotangent = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)

    def functional(params, x, initial):
        result = layer.apply({"params": params}, x, lengths=lengths, initial=initial)
        return sum(map(jnp.vdot, jax.tree.leaves(result), jax.tree.leaves(cotangent))), result

    gradient = jax.jit(jax.grad(functional, argnums=(0, 1, 2), has_aux=True))
    clean, dirty = (gradient(params, padded(x, LENGTHS, value), initial) for value in (0.0, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (_, d_x, d_initial), (outputs, final) = dirty
    for array in (d_x, outputs):
        assert not np.asarray(array)[np.arange(TIME) >= LENGTHS[:, None]].any()
    none = np.flatnonzero(LENGTHS == 0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[none], b[none]), final, initial)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[none], b[none]), d_initial, cotangent[1])


@pytest.mark.parametrize("name", ["projection", "gru"])
def test_a_reset_in_the_middle_is_two_sequences(name):
    """In both directions, at another step in each row, at the first one too; a flag in the padding does nothing."""
    with jax.enable_x64(True):
        layer, params, x, initial = problem(name, dtype=np.float64, bidirectional=True)
        lengths, starts = np.array([4, 3, 3, 4]), [[2], [1, 2], [3], []]
        reset = jnp.asarray([[step in row for step in range(TIME)] for row in starts])
        documents = [[(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3)], [(0, 3)], [(0, 4)]]
        apply = jax.jit(
            lambda x: layer.apply({"params": params}, x, lengths=jnp.asarray(lengths), initial=initial, reset=reset)
        )
        assert_trees_close(apply(x), expected(name, params, x, initial, documents), 1e-13)


@pytest.mark.parametrize("name", ["projection", "gru"])
def test_chunks_equal_the_whole(name):
    """Two layers; a row may end within a chunk or before it, and its state waits."""
    layer, params, x, initial = problem(name, layers=2)
    apply = jax.jit(lambda x, lengths, initial: layer.apply({"params": params}, x, lengths=lengths, initial=initial))
    whole, end = apply(x, jnp.asarray(LENGTHS), initial)
    state, parts = initial, []
    for start in (0, 2):
        outputs, state = apply(x[:, start : start + 2], jnp.asarray(np.clip(LENGTHS - start, 0, 2)), state)
        parts.append(outputs)
    assert_trees_close((jnp.concatenate(parts, axis=1), state), (whole, end), 1e-6)


@pytest.mark.parametrize("name", ["tanh", "lstm", "everything", "gru", "gru_paper"])
def test_gradients_match_finite_differences(name):
    layer, params, x, initial = problem(name, time=3)
    rng, lengths = np.random.default_rng(1), jnp.asarray([3, 0, 2, 1])
    cotangent = jax.tree.map(
        lambda a: rng.normal(size=a.shape), jax.eval_shape(lambda x: layer.apply({"params": params}, x), x)
    )

    @jax.jit
    def loss(inputs):
        result = layer.apply({"params": inputs["params"]}, inputs["x"], lengths=lengths, initial=inputs["initial"])
        return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(cotangent), strict=True))

    with jax.disable_jit(False):  # some sixty calls
        inputs = {"params": params, "x": x, "initial": initial}
        report = backprop.check_gradients(loss, inputs, key=jax.random.key(0), directions=1)
    assert report.ok(1e-7), str(report)


def test_sequences_of_one_step():
    layer, params, x, initial = problem("lstm", time=1, bidirectional=True)
    result = jax.jit(lambda x: layer.apply({"params": params}, x, initial=initial))(x)
    assert_trees_close(result, expected("lstm", params, x, initial, [[(0, 1)]] * ROWS), 1e-6)
