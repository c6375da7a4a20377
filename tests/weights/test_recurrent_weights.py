"""The mapping of torch.nn's recurrent weights: strict names and shapes, both ways, from memory and from files.

That the mapped weights compute the same is tested in test_torch_rnn.py.
"""

import pathlib
import sys
import zipfile

import jax
import numpy as np
import pytest

from jaxnets.types import InputError
from jaxnets.weights import recurrent, torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
GATES = {"elman": 1, "lstm": 4, "projection": 4, "gru": 2}


def parameters(kind, *, layers=1, bidirectional=False, inputs=3, hidden=4, seed=0):
    """Variables of a `Recurrent` as rnn documents them, drawn at random."""
    rng = np.random.default_rng(seed)
    outputs, gates = (2 if kind == "projection" else hidden), GATES[kind]

    def cell(inputs):
        shapes = {"input": (inputs, gates * hidden), "recurrent": (outputs, gates * hidden), "bias": (gates * hidden,)}
        if kind == "gru":
            shapes |= {"input_candidate": (inputs, hidden), "recurrent_candidate": (hidden, hidden)}
            shapes |= {"bias_candidate": (hidden,), "recurrent_bias": (hidden,)}
        elif kind == "projection":
            shapes["projection"] = (hidden, outputs)
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    widths = [inputs] + [outputs * (1 + bidirectional)] * (layers - 1)
    both = [{"forward": cell(width), "backward": cell(width)} if bidirectional else cell(width) for width in widths]
    return {"params": {f"layer_{index}": layer for index, layer in enumerate(both)}}


def message(error, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", GATES)
def test_export_then_load_is_the_identity(kind):
    variables = parameters(kind, layers=2, bidirectional=True)
    loaded = recurrent.load(recurrent.export(variables), parameters(kind, layers=2, bidirectional=True, seed=1))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru", "projection"])
def test_exported_names_and_shapes_are_those_of_torch(kind):
    with np.load(GOLDEN / "torch_rnn.npz") as golden:
        weights = golden[f"{kind}_2_both"]["weights"]
    exported = recurrent.export(parameters("elman" if kind == "tanh" else kind, layers=2, bidirectional=True))
    assert {name: array.shape for name, array in exported.items()} == {
        name: weights[name].shape for name in weights.dtype.names
    }


def test_biases_add_up_but_for_the_candidate_of_a_gru():
    state_dict = {name: np.zeros_like(array) for name, array in recurrent.export(parameters("gru")).items()}
    state_dict["bias_ih_l0"] += 1
    state_dict["bias_hh_l0"] += 10
    layer = recurrent.load(state_dict, parameters("gru"))["params"]["layer_0"]
    assert layer["bias"].tolist() == [11.0] * 8
    assert layer["bias_candidate"].tolist() == [1.0] * 4
    assert layer["recurrent_bias"].tolist() == [10.0] * 4
    np.testing.assert_array_equal(state_dict["bias_hh_l0"], 10)  # the caller's array is left alone


def test_loading_needs_shapes_only_and_keeps_dtypes_and_other_collections():
    variables = parameters("lstm")
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda a: jax.numpy.asarray(a, "bfloat16"), variables))
    loaded = recurrent.load(recurrent.export(variables), {**shapes, "other": 1})
    assert loaded["other"] == 1
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")), loaded["params"], variables["params"])


def test_a_prefix_picks_one_module():
    variables = parameters("lstm")
    state_dict = {**recurrent.export(variables, prefix="a.rnn."), "head.weight": np.zeros(3)}
    loaded = recurrent.load(state_dict, parameters("lstm", seed=1), prefix="a.rnn.")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_module_without_biases_has_zero_biases():
    state_dict = {n: a for n, a in recurrent.export(parameters("gru"), prefix="bias_net.").items() if "bias_net.bias" not in n}
    layer = recurrent.load(state_dict, parameters("gru"), prefix="bias_net.")["params"]["layer_0"]
    assert not any(layer[name].any() for name in ("bias", "bias_candidate", "recurrent_bias"))
    assert layer["input"].any()


def test_one_message_names_all_that_differs():
    state_dict = recurrent.export(parameters("lstm", layers=2))
    del state_dict["weight_hh_l1"]
    state_dict["weight_ih_l0"] = np.zeros((16, 7))
    state_dict["running_mean"] = np.zeros(1)
    text = message(InputError, recurrent.load, state_dict, parameters("lstm", layers=2))
    for part in ("missing: weight_hh_l1", "unused: running_mean", "weight_ih_l0 is (16, 7), not (16, 3)"):
        assert part in text


def test_another_architecture_is_refused():
    lstm = recurrent.export(parameters("lstm"))
    assert "(16, 3), not (12, 3)" in message(InputError, recurrent.load, lstm, parameters("gru"))
    assert "missing: weight_ih_l0_reverse" in message(InputError, recurrent.load, lstm, parameters("lstm", bidirectional=True))
    more = message(InputError, recurrent.load, lstm, parameters("lstm", layers=4))
    assert "weight_ih_l2, weight_hh_l2 and 6 more" in more
    assert "missing: rnn.weight_ih_l0" in message(InputError, recurrent.load, lstm, parameters("lstm"), prefix="rnn.")
    assert "unused: weight_hr_l0" in message(
        InputError, recurrent.load, recurrent.export(parameters("projection", hidden=2)), parameters("lstm", hidden=2)
    )


@pytest.mark.parametrize("function", [recurrent.export, lambda variables: recurrent.load({}, variables)])
def test_cells_that_torch_lacks_are_refused(function):
    for name in ("peephole_i", "input_other"):
        variables = parameters("gru")
        variables["params"]["layer_0"][name] = np.zeros(4)
        text = message(ValueError, function, variables)
        assert "torch.nn has no cell with the parameters of layer_0, ['bias', " in text
        assert name in text
    assert "got ['embedding', 'layer_0']" in message(ValueError, function, {"params": {"layer_0": {}, "embedding": {}}})


def test_what_is_not_tensors_by_name_is_refused():
    nested = {"epoch": 3, "weights": {"weight": np.zeros(1)}}
    assert "got 'epoch': int, 'weights': dict; pass the inner" in message(InputError, torch.read, nested)


def test_bad_files_are_named(tmp_path):
    for name, content in {"a.safetensors": b"", "b.safetensors": b"\xff" * 64}.items():
        (tmp_path / name).write_bytes(content)
    assert "expected a .safetensors, .pth or .pt file" in message(InputError, torch.read, tmp_path / "a.onnx")
    assert "missing.pth: can't be read as a state_dict: No such file" in message(
        InputError, torch.read, tmp_path / "missing.pth"
    )
    assert "limit=63" in message(InputError, torch.read, tmp_path / "b.safetensors", limit=63)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(100_000))
    assert "unpacks to 100000 bytes, more than limit=50000" in message(
        InputError, torch.read, tmp_path / "bomb.pth", limit=50_000
    )


@pytest.mark.parametrize(("suffix", "module"), [(".safetensors", "safetensors.numpy"), (".pth", "torch")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, module):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"1")
    assert f"{module} is needed" in message(InputError, torch.read, path)


def test_safetensors_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    variables = parameters("lstm")
    safetensors.save_file(recurrent.export(variables), tmp_path / "a.safetensors")
    loaded = recurrent.load(tmp_path / "a.safetensors", parameters("lstm", seed=1))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    assert "b.safetensors: can't be read as a state_dict" in message(InputError, torch.read, tmp_path / "b.safetensors")


def test_pth_files_are_read_without_executing_them(tmp_path):
    pytorch = pytest.importorskip("torch")
    module = pytorch.nn.GRU(3, 4, num_layers=2)
    pytorch.save(module.state_dict(), tmp_path / "a.pth")
    loaded = recurrent.load(tmp_path / "a.pth", parameters("gru", layers=2))
    jax.tree.map(np.testing.assert_array_equal, loaded, recurrent.load(module.state_dict(), parameters("gru", layers=2)))
    pytorch.save({"x": pathlib.PurePosixPath("a")}, tmp_path / "code.pth")
    assert "code.pth: can't be read" in message(InputError, torch.read, tmp_path / "code.pth")
    pytorch.save({"x": pytorch.zeros(1).expand(1000, 1000)}, tmp_path / "wide.pth")
    assert "4000000 bytes" in message(InputError, torch.read, tmp_path / "wide.pth", limit=3_999_999)
    # Of bfloat16 a float32 copy is made, which no machine has the memory for.
    pytorch.save({"x": pytorch.zeros(1, dtype=pytorch.bfloat16).expand(2**46)}, tmp_path / "wider.pth")
    assert f"unpacks to {2**48} bytes" in message(InputError, torch.read, tmp_path / "wider.pth")
    half = torch.read({"x": pytorch.tensor([1.5], dtype=pytorch.bfloat16)})["x"]
    assert half.dtype == np.float32
    assert half == 1.5
