"""Parity with torchvision's classifiers from their weights and statistics, and two training steps of its ResNet-18.

Against tests/golden/torchvision_models.npz, whose weights are drawn anew from their names and shapes, and live, every
architecture, where torch and torchvision are importable.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses
from jaxnets.models import cnn, convnext, mobilenet, resnet
from jaxnets.training import state, steps
from jaxnets.types import InputError
from jaxnets.weights import names, torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torchvision_models.npz"
SCRIPT = runpy.run_path(str(GOLDEN.with_suffix(".py")))
MODELS = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50,
    "resnext101_32x8d": resnet.resnext101,
    "resnext101_64x4d": lambda **options: resnet.resnet101(groups=64, group_width=4, **options),
    "wide_resnet50_2": resnet.wide_resnet50,
    "wide_resnet101_2": resnet.wide_resnet101,
    "alexnet": cnn.AlexNet,
    **{f"vgg{depth}": getattr(cnn, f"vgg{depth}") for depth in (11, 13, 16, 19)},
    **{
        f"vgg{depth}_bn": lambda model=getattr(cnn, f"vgg{depth}"), **options: model(normalization="batch", **options)
        for depth in (11, 13, 16, 19)
    },
    "convnext_tiny": convnext.convnext_tiny,
    "mobilenet_v2": mobilenet.MobileNetV2,
}
SIZES = {  # parameters with 1000 classes, of the papers and of torchvision's documentation
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "convnext_tiny": 28_589_128,
    "mobilenet_v2": 3_504_872,
}
# The rest hold 25 to 138 million weights each.
FAST = ("resnet18", "mobilenet_v2")


def entries(name, classes=7):
    """The table of an architecture with so many classes; its last entries are the last layer's."""
    table = names.ARCHITECTURES[f"torchvision/{name}"]
    kernel = table({})[-2]
    return table({kernel.name: (classes, *kernel.shape[1:])})


def state_dict(name):
    return {entry.name: SCRIPT["drawn"](entry.name, entry.shape) for entry in entries(name)}


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def assert_near(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_probed(arrays, names, expected, tolerance):
    """Norms and products with drawn directions, which differ by as much as the arrays do; relative to the norms."""
    found = np.array([SCRIPT["probe"](name, arrays[name]) for name in names])
    assert np.abs(found / expected[:, :1] - expected / expected[:, :1]).max() <= tolerance


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPT["MODELS"]]
)
def test_outputs_are_torchvisions(name, golden):
    """To 1e-5 in float32 and 1e-10 in float64."""
    _, ours, size = SCRIPT["MODELS"][name]
    model, x = MODELS[name](classes=7), SCRIPT["drawn"]("images", (2, *size, 3))
    variables = torch.load(f"torchvision/{name}", state_dict(name))

    def outputs(variables, x):
        return model.apply(variables, x), model.apply(variables, x[:1], method="features")[ours][0, ..., ::8]

    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-10)):
        with jax.enable_x64(dtype == np.float64), jax.disable_jit(False):
            cast = jax.tree.map(lambda a, d=dtype: jnp.asarray(a, d), (variables, x))
            logits, features = jax.jit(outputs)(*cast)
            assert logits.dtype == dtype
            assert_near(logits, golden[f"{name}/logits"], tolerance)
            assert_near(features, golden[f"{name}/map"], tolerance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    x: Any
    y: Any


@pytest.mark.slow
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-4), (True, 1e-10)])
def test_two_training_steps_are_torchs(golden, x64, tolerance):
    """Losses, all gradients of the first, and all weights and running statistics of ResNet-18 after each."""
    expected = {key.removeprefix("steps/"): value for key, value in golden.items() if key.startswith("steps/")}
    variables = torch.load("torchvision/resnet18", state_dict("resnet18"))
    optimizer = optax.sgd(SCRIPT["LEARNING_RATE"], SCRIPT["MOMENTUM"])
    loss_fn = steps.supervised(resnet.resnet18(classes=7).apply, losses.softmax_cross_entropy)
    with jax.enable_x64(x64), jax.disable_jit(False):
        cast = functools.partial(jax.tree.map, functools.partial(jnp.asarray, dtype=float))
        batch = Batch(cast(SCRIPT["drawn"]("images", SCRIPT["STEP_IMAGES"])), jnp.arange(4))
        params, carry = cast(variables["params"]), {"batch_stats": cast(variables["batch_stats"])}
        step = jax.jit(steps.make_train_step(loss_fn, optimizer))
        first, metrics = step(state.from_params(params, optimizer, jax.random.key(0), carry=carry), batch)
        last, more = step(first, batch)
    np.testing.assert_allclose([metrics["loss"], more["loss"]], expected["losses"], rtol=tolerance)
    # After one step the trace of the momentum is the gradient.
    gradient = torch.export("torchvision/resnet18", {"params": first.opt_state[0].trace, **carry})
    assert_probed(gradient, [key for key in expected["names"] if "running" not in key], expected["gradients"], tolerance)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected["gradients"][:, 0]), rtol=tolerance)
    once, twice = (torch.export("torchvision/resnet18", {"params": each.params, **each.carry}) for each in (first, last))
    assert_probed(once, expected["names"], expected["once"], tolerance)
    # In the second step the relu of a value within float32's rounding of zero may pass it or not.
    assert_probed(twice, expected["names"], expected["twice"], tolerance if x64 else 1e-3)
    for key in ("conv1.weight", "fc.bias", "layer4.1.bn2.weight", "layer4.1.bn2.running_mean", "layer4.1.bn2.running_var"):
        assert_near(twice[key][:: 4 if key == "conv1.weight" else 1], expected[key], tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_the_tables_are_the_variables_of_the_models(name, golden):
    """Names, shapes and sizes, on both sides, for any number of classes; no array is made."""
    assert set(names.ARCHITECTURES) == {f"torchvision/{each}" for each in MODELS}
    assert SCRIPT["digest"]({entry.name: entry.shape for entry in entries(name)}) == golden[f"{name}/state_dict"]
    table = entries(name, classes=1000)
    assert sum(np.prod(entry.shape, dtype=int) for entry in table if entry.path[0] == "params") == SIZES[name]
    model, x = MODELS[name](classes=5), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    ours = {tuple(part.key for part in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    table = entries(name, classes=5)
    assert {entry.path: entry.target for entry in table} == ours
    assert len({entry.name for entry in table}) == len(ours) == len(table)


def test_loading_gives_the_tree_of_init_and_export_gives_it_back():
    arrays = state_dict("mobilenet_v2")
    variables = torch.load("torchvision/mobilenet_v2", arrays)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(mobilenet.MobileNetV2(classes=7).init, jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    back = torch.export("torchvision/mobilenet_v2", jax.tree.map(jnp.asarray, variables))
    assert list(back) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)


def small(classes=7):
    """A table in place of a network of millions: every kind of entry."""
    return [
        *names.convolution("conv", ("a", "conv"), 4, 6, 3, groups=2, bias=True),
        *names.batch_norm("bn", ("a", "norm"), 6),
        names.Entry("scale", ("params", "scale"), (6, 1, 1), (6,), (0,), (6,)),
        *names.dense("fc6", ("fc6",), 2, 5, pixels=(3, 4)),
        *names.dense("head", ("head",), 5, classes),
    ]


@pytest.fixture
def table(monkeypatch):
    tables = {"small": lambda shapes: small(names.classes(shapes, "head.weight"))}
    monkeypatch.setattr(torch, "ARCHITECTURES", {**torch.ARCHITECTURES, **tables})
    return {entry.name: SCRIPT["drawn"](entry.name, entry.shape) for entry in small()}


def test_axes_go_where_they_belong(table):
    params = torch.load("small", table)["params"]
    assert params["a"]["conv"]["kernel"].shape == (3, 3, 2, 6)
    assert params["a"]["conv"]["kernel"][0, 2, 1, 5] == table["conv.weight"][5, 1, 0, 2]
    assert params["scale"].shape == (6,)
    maps = np.random.default_rng(0).standard_normal((1, 3, 4, 2)).astype(np.float32)  # rows, columns, channels
    theirs = maps.transpose(0, 3, 1, 2).reshape(1, -1) @ table["fc6.weight"].T
    np.testing.assert_allclose(maps.reshape(1, -1) @ params["fc6"]["kernel"], theirs, rtol=1e-5)
    np.testing.assert_array_equal(params["head"]["kernel"], table["head.weight"].T)


def test_export_inverts_every_kind(table):
    back = torch.export("small", torch.load("small", table))
    assert list(back) == list(table)
    for key, array in table.items():
        np.testing.assert_array_equal(back[key], array)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: {"module." + k: v for k, v in a.items()},
        lambda a: {"epoch": 3, "state_dict": a},
        lambda a: {"model": a, "lr": 0.1},
    ],
)
def test_checkpoints_and_data_parallel_names_are_unwrapped(table, wrap):
    counted = {**table, "bn.num_batches_tracked": np.array(3)}
    jax.tree.map(np.testing.assert_array_equal, torch.load("small", wrap(counted)), torch.load("small", table))


def test_arrays_keep_their_dtype_and_are_copies(table):
    half = {key: array.astype(np.float16) for key, array in table.items()}
    variables = torch.load("small", half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float16")}
    back = torch.export("small", variables)
    for array in half.values():
        array[...] = 0
    assert all(leaf.all() for leaf in jax.tree.leaves(variables))
    for leaf in jax.tree.leaves(variables):
        leaf[...] = 0
    assert all(leaf.all() for leaf in back.values())


def test_one_message_names_all_that_differs(table):
    wrong = {**table, "conv.weight": np.zeros((6, 4, 3, 3)), "bn.extra": np.zeros(2)}
    del wrong["fc6.bias"]
    text = message(torch.load, "small", wrong)
    assert text.startswith("load: small: the state_dict is of another architecture; missing: fc6.bias; unused: bn.extra;")
    assert "conv.weight is (6, 4, 3, 3), not (6, 2, 3, 3)" in text
    del wrong["head.weight"]
    assert "missing: fc6.bias, head.weight" in message(torch.load, "small", wrong)
    assert "head.weight is (), not (1000, 5)" in message(torch.load, "small", {**table, "head.weight": np.zeros(())})


def test_export_names_what_differs_by_our_paths(table):
    variables = torch.load("small", table)
    variables["params"]["head"]["kernel"] = np.zeros((4, 7))
    del variables["params"]["fc6"]
    variables["params"]["other"] = np.zeros(())
    text = message(torch.export, "small", variables)
    for part in (
        "missing: params/fc6/kernel, params/fc6/bias;",
        "unused: params/other;",
        "params/head/kernel is (4, 7), not (5, 7)",
    ):
        assert part in text


def test_another_depth_is_refused_with_its_first_differing_names():
    deeper = {entry.name: np.broadcast_to(np.float32(0), entry.shape) for entry in entries("resnet34")}
    text = message(torch.load, "torchvision/resnet18", deeper)
    assert "load: torchvision/resnet18: " in text
    assert "unused: layer1.2.conv1.weight, layer1.2.bn1.weight" in text


def test_an_unknown_name_is_answered_with_the_nearest():
    assert message(torch.load, "torchvision/resnet5", {}).startswith(
        "load: no architecture 'torchvision/resnet5'; did you mean torchvision/resnet50 or "
    )
    assert "did you mean torchvision/vgg16_bn" in message(torch.export, "torchvision/vgg16bn", {})
    assert "expected one of torchvision/resnet18, " in message(torch.load, "x", {})


# ---- live -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision():
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("torch or torchvision is not installed")
    try:
        return SCRIPT["torchvision"]()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision can't be imported: {error}")


@pytest.mark.parametrize("name", MODELS)
def test_the_tables_are_torchvisions_state_dicts(name, torchvision):
    import torch as pytorch

    with pytorch.device("meta"):
        theirs = getattr(torchvision.models, name)(num_classes=5).state_dict()
    theirs = {key: tuple(value.shape) for key, value in theirs.items() if "num_batches_tracked" not in key}
    assert {entry.name: entry.shape for entry in entries(name, classes=5)} == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_live_outputs_are_torchvisions_and_exports_load(name, torchvision):
    import torch as pytorch

    del torchvision
    module = SCRIPT["module"](name)
    arrays = {key: value.float() for key, value in module.state_dict().items()}
    variables = torch.load(f"torchvision/{name}", arrays)
    x = np.random.default_rng(0).standard_normal((1, 72, 65, 3))
    theirs = pytorch.from_numpy(x.transpose(0, 3, 1, 2))
    with pytorch.no_grad():
        expected, narrow = module(theirs).numpy(), module.float()(theirs.float()).numpy()
    rounding = np.abs(narrow - expected).max() / np.abs(expected).max()  # of torchvision itself: 8e-6 of vgg19_bn
    model = MODELS[name](classes=7)
    with jax.disable_jit(False):
        assert_near(jax.jit(model.apply)(variables, jnp.asarray(x, jnp.float32)), expected, max(1e-5, 2 * rounding))
        with jax.enable_x64(True):
            wide = jax.tree.map(np.float64, variables)
            assert_near(jax.jit(model.apply)(wide, jnp.asarray(x)), expected, 1e-10)
    exported = {key: pytorch.from_numpy(array) for key, array in torch.export(f"torchvision/{name}", variables).items()}
    module.load_state_dict(exported)  # strict; PyTorch itself supplies num_batches_tracked
    for key, value in module.state_dict().items():
        assert "num_batches_tracked" in key or (value == arrays[key]).all()
