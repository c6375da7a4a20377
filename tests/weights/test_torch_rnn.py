"""Parity with torch.nn.RNN, LSTM and GRU from their weights: every kind, depth and direction, rows of every length.

Against tests/golden/torch_rnn.npz, and live, at other weights, where torch is importable.
"""

import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import rnn
from jaxnets.weights import recurrent

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
CELLS = {
    "tanh": rnn.Elman(4),
    "relu": rnn.Elman(4, activation=jax.nn.relu),
    "lstm": rnn.LSTM(4),
    "gru": rnn.GRU(4),
    "projection": rnn.LSTM(4, projection=2),
}
# Without jit, which costs the most, two layers in both directions stand for all.
LAYERS, DIRECTIONS = ((2,), ("both",)) if jax.config.jax_disable_jit else ((1, 2), ("one", "both"))
CASES = ["_".join(map(str, case)) for case in itertools.product(CELLS, LAYERS, DIRECTIONS)]


def layer_of(name):
    kind, layers, directions = name.split("_")
    return rnn.Recurrent(CELLS[kind], layers=int(layers), bidirectional=directions == "both")


def fields(record):
    return {name: np.array(record[name]) for name in record.dtype.names}


def state_of(layer, case, suffix):
    """PyTorch's `[layers * directions, batch, width]` as a state of ours."""
    leaves = [jnp.asarray(case[f"{name}_{suffix}"]) for name in ("h", "c") if f"{name}_{suffix}" in case.dtype.names]
    cells = [rnn.LSTMState(*each) if len(each) > 1 else each[0] for each in zip(*leaves, strict=True)]
    return tuple(zip(cells[::2], cells[1::2], strict=True)) if layer.bidirectional else tuple(cells)


def weights_gradient(layer, case, shapes):
    """PyTorch's two biases have the same gradient, that of our one, but for the candidate of a GRU."""
    gradients = fields(case["weights_gradient"])
    for name, gradient in gradients.items():
        if name.startswith("bias_hh"):
            gradient[: 8 if isinstance(layer.cell, rnn.GRU) else None] = 0
    return recurrent.load(gradients, shapes)["params"]


def assert_close(actual, expected, *, absolute=None, relative=None):
    """To `absolute`, or to `relative` of the largest element of each array."""

    def check(a, e):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=absolute or relative * np.abs(e).max())

    jax.tree.map(check, actual, expected)


def check(name, case, lengths):
    layer = layer_of(name)
    beyond = np.arange(case["x"].shape[1]) >= lengths[:, None]
    x = jnp.asarray(np.where(beyond[..., None], np.nan, case["x"]))  # NaN in the padding changes nothing
    lengths = jnp.asarray(lengths)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = jax.tree.map(jnp.asarray, recurrent.load(fields(case["weights"]), shapes))
    initial = state_of(layer, case, "initial")

    def functional(params, x, initial):
        outputs, final = layer.apply({"params": params}, x, lengths=lengths, initial=initial)
        pairs = zip(
            jax.tree.leaves((outputs, final)),
            jax.tree.leaves((case["outputs_cotangent"], state_of(layer, case, "final_cotangent"))),
            strict=True,
        )
        return sum(jnp.vdot(value, cotangent) for value, cotangent in pairs), (outputs, final)

    gradient = jax.jit(jax.grad(functional, argnums=(0, 1, 2), has_aux=True))
    gradients, (outputs, final) = gradient(variables["params"], x, initial)
    assert_close(outputs, case["outputs"], absolute=2e-6)
    assert not np.asarray(outputs)[beyond].any()
    assert_close(final, state_of(layer, case, "final"), absolute=2e-6)
    expected = weights_gradient(layer, case, shapes), jnp.asarray(case["x_gradient"]), state_of(layer, case, "initial_gradient")
    assert_close(gradients, expected, relative=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_outputs_states_and_gradients_are_those_of_torch(name):
    with np.load(GOLDEN / "torch_rnn.npz") as golden:
        check(name, golden[name], golden["lengths"])


@pytest.mark.parametrize("name", CASES)
def test_live_torch_agrees_at_other_weights(name):
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("torch_rnn", GOLDEN / "torch_rnn.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kind, layers, directions = name.split("_")
    check(name, script.case(kind, int(layers), directions == "both", seed=100), script.LENGTHS)
