"""torch.nn.RNN, LSTM and GRU as variables of `rnn.Recurrent`, and back.

Gates stand in the same order on both sides (LSTM i, f, g, o; GRU r, z, n) and kernels are transposed. PyTorch keeps two
biases where only their sum counts: `bias = bias_ih + bias_hh`. The candidate n of a GRU, its last third, has parameters of
its own here, and the reset gate between the biases: `bias_candidate = bias_ih` and `recurrent_bias = bias_hh`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnets.weights import torch

PLAIN = ("input", "recurrent", "bias")
CANDIDATE = tuple(f"{name}_candidate" for name in PLAIN)
KERNELS = {"input": "weight_ih", "recurrent": "weight_hh", "projection": "weight_hr"}


def load(source: torch.StateDict | torch.PathLike, variables: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """`variables` with the weights of a torch.nn.RNN, LSTM or GRU as NumPy arrays, cast to the dtypes they had.

    `source` is what `torch.read` takes. `variables` are those of a `Recurrent` with the same cell, layers and directions, or
    their shapes alone. `prefix` picks the names of one module ("encoder.rnn."); others are left alone. A module without
    biases gives biases of zero. The weights of an Elman network don't say whether it was tanh or relu: the cell does.

        shapes = jax.eval_shape(rnn.Recurrent(rnn.LSTM(256)).init, key, x)
        variables = recurrent.load(lstm.state_dict(), shapes)

    Raises:
      InputError: as `torch.read`; names missing, unused or of another shape, all of them in one message.
      ValueError: as `export`.
    """
    weights = {name: array for name, array in torch.read(source).items() if name.startswith(prefix)}
    expected = export(variables, prefix=prefix)
    if not any(name.startswith(f"{prefix}bias_") for name in weights):
        weights |= {name: np.zeros_like(array) for name, array in expected.items() if name.startswith(f"{prefix}bias_")}
    torch.match(weights, {name: array.shape for name, array in expected.items()}, name="load")

    def loaded(cell, suffix):
        arrays = {name: weights[f"{prefix}{name}{suffix}"] for name in _to_torch(cell)}
        return {name: array.astype(cell[name].dtype) for name, array in _from_torch(arrays, cell).items()}

    return {**variables, "params": _each_cell("load", loaded, variables["params"])}


def export(variables: Mapping[str, Any], *, prefix: str = "") -> dict[str, np.ndarray]:
    """The state_dict of the torch.nn.RNN, LSTM or GRU that computes what a `Recurrent` with `variables` does.

        lstm.load_state_dict({name: torch.from_numpy(array) for name, array in recurrent.export(variables).items()})

    Of shapes alone (`jax.eval_shape`) it gives zeros.

    Raises:
      ValueError: not the variables of a `Recurrent`, or of a cell that torch.nn lacks.
    """
    state_dict = {}

    def add(cell, suffix):
        state_dict.update({f"{prefix}{name}{suffix}": array for name, array in _to_torch(cell).items()})

    _each_cell("export", add, variables["params"])
    return state_dict


def _each_cell(name: str, function: Callable, params: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `function(cell, suffix)` over layers and directions; `suffix` ends PyTorch's names."""
    if set(params) != {f"layer_{index}" for index in range(len(params))}:
        raise ValueError(f"{name}: expected the params of a Recurrent, layer_0, layer_1, ..., got {sorted(params)}.")
    tree = {}
    for index in range(len(params)):
        layer, suffix = params[f"layer_{index}"], f"_l{index}"
        both = set(layer) == {"forward", "backward"}
        for cell in layer.values() if both else (layer,):
            if set(cell) - {"projection"} not in ({*PLAIN}, {*PLAIN, *CANDIDATE, "recurrent_bias"}):
                raise ValueError(f"{name}: torch.nn has no cell with the parameters of layer_{index}, {sorted(cell)}.")
        tree[f"layer_{index}"] = (
            {"forward": function(layer["forward"], suffix), "backward": function(layer["backward"], f"{suffix}_reverse")}
            if both
            else function(layer, suffix)
        )
    return tree


def _to_torch(cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(leaf) if hasattr(leaf, "__array__") else np.zeros(leaf.shape) for name, leaf in cell.items()}
    if "recurrent_bias" in arrays:
        arrays |= {name: np.concatenate([arrays[name], arrays[f"{name}_candidate"]], axis=-1) for name in PLAIN}
    state_dict = {theirs: arrays[ours].T.copy() for ours, theirs in KERNELS.items() if ours in arrays}
    inner = np.zeros_like(arrays["bias"])
    if "recurrent_bias" in arrays:
        inner[-len(arrays["recurrent_bias"]) :] = arrays["recurrent_bias"]
    return {**state_dict, "bias_ih": arrays["bias"].copy(), "bias_hh": inner}


def _from_torch(weights: Mapping[str, np.ndarray], cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {ours: weights[theirs].T for ours, theirs in KERNELS.items() if theirs in weights}
    if "recurrent_bias" not in cell:
        return {**arrays, "bias": weights["bias_ih"] + weights["bias_hh"]}
    width = cell["recurrent_bias"].shape[0]
    inner = np.concatenate([weights["bias_hh"][:-width], np.zeros_like(weights["bias_hh"][-width:])])
    arrays["bias"] = weights["bias_ih"] + inner
    candidate = {f"{name}_candidate": array[..., -width:] for name, array in arrays.items()}
    gates = {name: array[..., :-width] for name, array in arrays.items()}
    return {**gates, **candidate, "recurrent_bias": weights["bias_hh"][-width:]}
