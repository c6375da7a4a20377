"""Makes torch_rnn.npz: outputs, final states and gradients of torch.nn.RNN, LSTM and GRU on rows of every length.

Run: `python tests/golden/torch_rnn.py`, with the extra `bench`. Made 2026-11-22 with torch 2.13.0 (CPU), float32.
One record per kind, layers and directions; its fields are those of `case`, and `weights` and `weights_gradient` have a
field for each name of the state_dict. tests/weights/test_torch_rnn.py also draws cases live, with other seeds.
"""

import itertools
import pathlib

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

KINDS = {
    "tanh": lambda *sizes, **options: torch.nn.RNN(*sizes, nonlinearity="tanh", **options),
    "relu": lambda *sizes, **options: torch.nn.RNN(*sizes, nonlinearity="relu", **options),
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
    "projection": lambda *sizes, **options: torch.nn.LSTM(*sizes, proj_size=PROJECTION, **options),
}
LENGTHS = np.array([3, 0, 5, 1, 4, 2])  # each once, not in order
TIME, FEATURES, HIDDEN, PROJECTION = 5, 3, 4, 2


def forward(module, x, initial):
    """Rows of no steps, which packing refuses, have outputs 0 and end in their initial state."""
    (rows,) = np.nonzero(LENGTHS)
    packed = pack_padded_sequence(x[rows], LENGTHS[rows], batch_first=True, enforce_sorted=False)
    starts = tuple(state[:, rows] for state in initial)
    y, ends = module(packed, starts if len(starts) > 1 else starts[0])
    y, _ = pad_packed_sequence(y, batch_first=True, total_length=TIME)
    finals = [state.clone() for state in initial]
    for final, end in zip(finals, ends if len(starts) > 1 else (ends,), strict=True):
        final[:, rows] = end
    return x.new_zeros(len(LENGTHS), *y.shape[1:]).index_copy(0, torch.from_numpy(rows), y), finals


def case(kind, layers, bidirectional, seed):
    """A record: weights, x, initial states, outputs, final states, and the gradients of a random linear functional.

    The functional is `sum(outputs * outputs_cotangent) + sum(h * h_cotangent) + sum(c * c_cotangent)` of the final h and c.
    """
    rng = np.random.default_rng(seed)

    def draw(shape, scale=1.0):
        return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))

    module = KINDS[kind](FEATURES, HIDDEN, num_layers=layers, bidirectional=bidirectional, batch_first=True)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(draw(weight.shape, 0.3))  # about what PyTorch itself starts from
    rows, directions = len(LENGTHS), 1 + bidirectional
    width = PROJECTION if kind == "projection" else HIDDEN
    x = draw((rows, TIME, FEATURES)).requires_grad_()
    widths = {"h": width, "c": HIDDEN} if kind in ("lstm", "projection") else {"h": width}
    initial = {name: draw((layers * directions, rows, size)).requires_grad_() for name, size in widths.items()}
    outputs, finals = forward(module, x, tuple(initial.values()))
    results = {"outputs": outputs, **{f"{name}_final": final for name, final in zip(initial, finals, strict=True)}}
    cotangents = {name: draw(value.shape) for name, value in results.items()}
    sum((results[name] * cotangent).sum() for name, cotangent in cotangents.items()).backward()

    weights = dict(module.named_parameters())
    tensors = {"x": x, **{f"{name}_initial": state for name, state in initial.items()}}
    fields = {
        "weights": record(weights),
        "weights_gradient": record({name: weight.grad for name, weight in weights.items()}),
        **tensors,
        **{f"{name}_gradient": tensor.grad for name, tensor in tensors.items()},
        **results,
        **{f"{name}_cotangent": cotangent for name, cotangent in cotangents.items()},
    }
    return record(fields)


def record(fields):
    """Arrays, tensors and records as one record."""
    arrays = {n: v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for n, v in fields.items()}
    return np.array(tuple(arrays.values()), dtype=[(n, a.dtype, a.shape) for n, a in arrays.items()])


if __name__ == "__main__":
    cases = {"lengths": LENGTHS}
    for seed, (kind, layers, bidirectional) in enumerate(itertools.product(KINDS, (1, 2), (False, True))):
        cases[f"{kind}_{layers}_{'both' if bidirectional else 'one'}"] = case(kind, layers, bidirectional, seed)
    np.savez_compressed(pathlib.Path(__file__).parent / "torch_rnn.npz", **cases)
