"""Parity with diffusers' U-Net and with a DiT by its authors' names, from their weights, and those given back.

Against tests/golden/diffusers_unet.npz, whose weights are drawn anew from their names and shapes, and live where torch and
diffusers are importable.
"""

import functools
import importlib.util
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import dit, unet
from jaxnets.types import InputError
from jaxnets.weights import torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "diffusers_unet.npz"
SCRIPT = runpy.run_path(str(GOLDEN.with_suffix(".py")))
NAMES = (*SCRIPT["UNETS"], "dit")


def model(name):
    if name == "dit":
        return dit.DiT(**SCRIPT["DIT"], time_scale=1)
    widths, attention, _, options = SCRIPT["UNETS"][name]
    return unet.UNet(widths, attention_levels=attention, groups=4, time_scale=1, **options)


def architecture(name):
    return "dit" if name == "dit" else "diffusers/unet2d"


def arguments(name):
    """Images, times, and labels where there are any; the null class is diffusers' row 4 of five, the DiT's sixth."""
    labels = None if model(name).classes is None else np.array(SCRIPT["LABELS"])
    if name == "adm":  # row 4 is the null class of four
        labels = np.where(labels == 4, -1, labels)
    return jnp.asarray(SCRIPT["drawn"]("images", SCRIPT["IMAGES"])), np.array(SCRIPT["TIMES"], np.float32), labels


@functools.cache
def state_dict(name):
    """Drawn weights by PyTorch's names, which are those of the table for our model's variables."""
    x, t, label = arguments(name)
    shapes = jax.eval_shape(lambda key: model(name).init(key, x, t, label), jax.random.key(0))
    flat = {tuple(part.key for part in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    entries = torch.ARCHITECTURES[architecture(name)].of_variables({"/".join(path): shape for path, shape in flat.items()})
    assert {entry.path: entry.target for entry in entries} == flat
    return {entry.name: SCRIPT["drawn"](entry.name, entry.shape) for entry in entries}


def checkpoint(name, golden):
    """All that PyTorch's state_dict holds, the official embedding of positions in float32 too."""
    return {**state_dict(name), **({"pos_embed": golden["dit/pos_embed"]} if name == "dit" else {})}


def assert_near(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_pytorchs(name, dtype, tolerance, golden):
    network, (x, t, label) = model(name), arguments(name)
    variables = torch.load(architecture(name), checkpoint(name, golden))
    with jax.enable_x64(dtype == "float64"), jax.disable_jit(False):
        variables, x, t = jax.tree.map(lambda a: jnp.asarray(a, dtype), (variables, x, t))
        direction = jnp.asarray(SCRIPT["drawn"]("to", golden[f"{name}/outputs"].shape), dtype)

        @jax.jit
        def outputs(x):
            y, transposed = jax.vjp(lambda x: network.apply(variables, x, t, label), x)
            return y, *transposed(direction)

        y, gradient = outputs(x)
        assert y.dtype == gradient.dtype == dtype
        assert_near(y, golden[f"{name}/outputs"], tolerance)
        assert_near(gradient, golden[f"{name}/gradient"], tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_pytorchs_and_export_gives_all_back(name, golden):
    arrays = checkpoint(name, golden)
    assert SCRIPT["digest"]({key: array.shape for key, array in arrays.items()}) == golden[f"{name}/state_dict"]
    back = torch.export(architecture(name), jax.tree.map(jnp.asarray, torch.load(architecture(name), arrays)))
    assert set(back) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)


def test_the_positions_of_a_checkpoint_are_used_and_hold_for_its_size(golden):
    """Ours are the official ones, of 4x6 patches here; other ones count too."""
    positions = golden["dit/pos_embed"]
    np.testing.assert_allclose(dit.positions(4, 6, 16), positions, atol=1e-6)
    variables = torch.load("dit", {**state_dict("dit"), "pos_embed": positions + 1})
    np.testing.assert_array_equal(variables["constants"]["positions"], positions + 1)
    network, (x, t, label) = model("dit"), arguments("dit")
    with pytest.raises(ValueError, match=r"DiT: the variables hold positions \[1, 24, 16\], got 4 x 4 patches"):
        jax.eval_shape(network.apply, variables, x[:, :, :8], t, label)
    moved = {**variables, "params": {**variables["params"], "patches": dict(variables["params"]["patches"])}}
    moved["params"]["patches"]["bias"] = moved["params"]["patches"]["bias"] - 1
    with jax.disable_jit(False):
        y = jax.jit(network.apply)(moved, x, t, label)
    assert_near(y, golden["dit/outputs"], 1e-5)


def test_attention_by_its_old_names_is_loaded():
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, array in state_dict("adm").items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = array
    assert set(renamed) != set(state_dict("adm"))
    loaded, expected = (torch.load("diffusers/unet2d", arrays) for arrays in (renamed, state_dict("adm")))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_what_differs_is_named():
    arrays = dict(state_dict("adm"))
    del arrays["mid_block.resnets.1.conv2.bias"]
    arrays["conv_norm_out.weight"] = np.zeros(7)
    arrays["down_blocks.0.skip_conv.weight"] = np.zeros(1)
    with pytest.raises(InputError) as caught:
        torch.load("diffusers/unet2d", arrays)
    for words in (
        "load: diffusers/unet2d: the state_dict is of another architecture",
        "missing: mid_block.resnets.1.conv2.bias;",
        "unused: down_blocks.0.skip_conv.weight;",
        "conv_norm_out.weight is (7,), not (8,)",
    ):
        assert words in str(caught.value)
    for name in ("dit", "diffusers/unet2d"):
        with pytest.raises(InputError, match="missing: "):
            torch.load(name, {})
    variables = torch.load("dit", state_dict("dit"))
    del variables["params"]["block1"]["mlp1"]
    with pytest.raises(InputError, match=r"export: dit: .* missing: params/block1/mlp1/kernel, params/block1/mlp1/bias"):
        torch.export("dit", variables)


# ---- live -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pytorch():
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
        pytest.skip("torch or diffusers is not installed")
    import torch as pytorch

    try:
        SCRIPT["diffusers"]().UNet2DModel  # noqa: B018, which imports it
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers can't be imported: {error}")
    return pytorch


@pytest.mark.parametrize("name", NAMES)
def test_live_outputs_are_pytorchs_and_exports_load(name, pytorch):
    """Of weights as PyTorch draws them, in float32; an export is accepted by name and shape."""
    pytorch.manual_seed(0)
    module = SCRIPT["dit"](**SCRIPT["DIT"]) if name == "dit" else SCRIPT["unet"](name)
    x, t, label = arguments(name)
    theirs = (pytorch.tensor(np.asarray(x)).permute(0, 3, 1, 2), pytorch.from_numpy(t))
    with pytorch.no_grad():
        labels = () if label is None else (pytorch.tensor(SCRIPT["LABELS"]),)
        expected = module(*theirs, *labels)
    expected = getattr(expected, "sample", expected).permute(0, 2, 3, 1).numpy()
    variables = torch.load(architecture(name), module.state_dict())
    with jax.disable_jit(False):
        actual = jax.jit(model(name).apply)(variables, x, t, label)
    assert_near(actual, expected, 1e-5)
    exported = torch.export(architecture(name), variables)
    module.load_state_dict({key: pytorch.from_numpy(array) for key, array in exported.items()})
