"""PSPNet and FCN-ResNet compute what semseg's and torchvision's do, from weights drawn as in golden/torch_segmentation.py."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses
from jaxnets.data import batches
from jaxnets.models import fcn, pspnet, resnet
from jaxnets.training import state, steps
from jaxnets.types import InputError
from jaxnets.weights import segmentation_names, torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torch_segmentation.npz"
spec = importlib.util.spec_from_file_location("torch_segmentation", GOLDEN.with_suffix(".py"))
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MODELS = {
    "semseg/pspnet50": lambda classes: pspnet.PSPNet(resnet.resnet50(output_stride=8, stem="deep"), classes),
    "torchvision/fcn_resnet50": lambda classes: fcn.ResNetFCN(resnet.resnet50(output_stride=8), classes),
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def pytorch_shapes(golden, network):
    return {name: tuple(map(int, shape)) for name, *shape in map(str.split, golden[f"{network}/names"])}


def state_dict(golden, network):
    """Drawn as in the script, by the names and shapes that PyTorch gave."""
    return {name: script.draw(name, shape) for name, shape in pytorch_shapes(golden, network).items()}


def probed(weights):
    return np.stack([script.probe(name, np.asarray(array, float)) for name, array in weights.items()])


def assert_close(actual, expected, tolerance):
    """Relative to the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


SMALL = pspnet.PSPNet(
    resnet.ResNet((1, 1, 1, 2), width=4, output_stride=8, stem="deep"), script.CLASSES, width=12, auxiliary_width=8, dropout=0
)
ENTRIES = segmentation_names.pspnet({}, (1, 1, 1, 2))  # of 64 times as many channels: names and axes hold all the same


def small_variables(weights):
    variables = {}
    for entry in ENTRIES:
        *modules, leaf = entry.path
        tree = functools.reduce(lambda tree, key: tree.setdefault(key, {}), modules, variables)
        tree[leaf] = jnp.asarray(weights[entry.name].transpose(entry.order))
    return variables


def small_state_dict(variables):
    found = {entry: functools.reduce(lambda tree, key: tree[key], entry.path, variables) for entry in ENTRIES}
    return {entry.name: np.asarray(leaf).transpose(np.argsort(entry.order)) for entry, leaf in found.items()}


def image(seed, *shape):
    return jnp.asarray(script.image(seed, *shape).transpose(0, 2, 3, 1))


def assert_outputs(model, variables, x, golden, network, tolerance):
    for name, logits in zip(("main", "auxiliary"), jax.jit(model.apply)(variables, x), strict=True):
        assert_close(logits[:, ::2, ::2], golden[f"{network}/{name}"], tolerance)


def test_a_small_pspnet_computes_what_semsegs_does(golden):
    weights = state_dict(golden, "pspnet_small")
    assert set(weights) == {entry.name for entry in ENTRIES}
    with jax.disable_jit(False):
        assert_outputs(SMALL, small_variables(weights), image(0, 2, 3, 25, 33), golden, "pspnet_small", 1e-5)


@pytest.mark.slow
def test_a_training_step_of_pspnet_with_its_auxiliary_loss_is_pytorchs(golden):
    """Loss, gradients, updated parameters and running statistics, as norms and products with drawn directions."""
    weights = state_dict(golden, "pspnet_small")
    labels = np.random.default_rng(1).integers(0, script.CLASSES, (2, 25, 33))
    labels[:, :4] = 255
    rate, decay = script.SGD["lr"], script.SGD["weight_decay"]
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, script.SGD["momentum"]))
    entropy = functools.partial(losses.softmax_cross_entropy, ignore_index=255)
    valid = functools.partial(losses.target_weights, ignore_index=255)
    step = steps.make_train_step(steps.supervised(SMALL.apply, losses.with_auxiliary(entropy), weights=valid), optimizer)
    with jax.enable_x64(True), jax.disable_jit(False):
        variables, x = wide(small_variables(weights)), image(0, 2, 3, 25, 33)
        assert_outputs(SMALL, variables, x, golden, "pspnet_small", 1e-10)
        carry = {"batch_stats": variables["batch_stats"]}
        before = state.from_params(variables["params"], optimizer, jax.random.key(0), carry=carry)
        after, metrics = jax.jit(step)(before, batches.Dataset(x, jnp.asarray(labels)))
    found = small_state_dict({"params": after.params, **after.carry})
    updated = {name: found[name] for name in weights}  # in PyTorch's order
    gradients = {name: (weights[name] - array) / rate - decay * weights[name] for name, array in updated.items()}
    np.testing.assert_allclose(metrics["loss"], golden["step/loss"], rtol=1e-6)
    np.testing.assert_allclose(probed(updated), golden["step/updated"], rtol=1e-6)
    trained = [name for name in updated if "running" not in name]
    np.testing.assert_allclose(probed({name: gradients[name] for name in trained}), golden["step/gradients"], rtol=1e-6)


def random_state_dict(name, rng, classes):
    """Of the real size, in bytes: an import keeps the dtype."""
    shapes = {f"{head}.4.weight": (classes,) for head in ("cls", "aux", "classifier", "aux_classifier")}
    entries = segmentation_names.ARCHITECTURES[name](shapes)
    return {entry.name: rng.integers(0, 256, entry.shape, np.uint8) for entry in entries}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_pytorchs_and_the_models(name, golden):
    network = name.split("/")[1]
    weights = pytorch_shapes(golden, network)
    entries = segmentation_names.ARCHITECTURES[name](weights)
    assert {entry.name: entry.shape for entry in entries} == weights
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    variables = jax.eval_shape(MODELS[name](script.CLASSES).init, jax.random.key(0), image)
    flat = jax.tree_util.tree_flatten_with_path(variables)[0]
    assert {tuple(key.key for key in path): leaf.shape for path, leaf in flat} == {e.path: e.target for e in entries}


@pytest.mark.parametrize("name", sorted(segmentation_names.ARCHITECTURES))
def test_export_gives_back_what_was_loaded(name):
    weights = random_state_dict(name, np.random.default_rng(0), 5)
    exported = torch.export(name, torch.load(name, weights))
    assert set(exported) == set(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(exported[key], array)


def test_a_state_dict_without_the_auxiliary_head_is_a_network_without_it():
    weights = random_state_dict("torchvision/fcn_resnet50", np.random.default_rng(0), 2)
    weights = {key: array for key, array in weights.items() if not key.startswith("aux_classifier")}
    variables = torch.load("torchvision/fcn_resnet50", weights)
    assert set(variables["params"]) == {"backbone", "head"}
    assert set(torch.export("torchvision/fcn_resnet50", variables)) == set(weights)


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_of_another_architecture_is_refused_by_names_and_shapes(name):
    weights = random_state_dict(name, np.random.default_rng(0), 2)
    (other,) = set(MODELS) - {name}
    with pytest.raises(InputError, match=r"missing: .* unused: "):
        torch.load(other, weights)
    key = next(key for key in weights if key.endswith("4.weight"))
    with pytest.raises(InputError, match=rf"missing: {key.replace('weight', 'bias')}"):
        torch.load(name, {k: v for k, v in weights.items() if k != key.replace("weight", "bias")})
    with pytest.raises(InputError, match=r"unused: extra\.weight"):
        torch.load(name, weights | {"extra.weight": np.zeros(3)})
    key = next(key for key in weights if key.endswith("conv2.weight"))
    with pytest.raises(InputError, match=rf"{key} is \(1, 2\), not \(64, 64, 3, 3\)"):
        torch.load(name, weights | {key: np.zeros((1, 2))})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "x"), [("semseg/pspnet50", (3, 1, 3, 33, 41)), ("torchvision/fcn_resnet50", (4, 1, 3, 30, 43))]
)
def test_networks_of_the_real_size_compute_what_pytorchs_do(name, x, golden):
    network, model = name.split("/")[1], MODELS[name](script.CLASSES)
    variables = torch.load(name, state_dict(golden, network))
    with jax.disable_jit(False):
        assert_outputs(model, variables, image(*x), golden, network, 1e-5)
        with jax.enable_x64(True):
            assert_outputs(model, wide(variables), image(*x), golden, network, 1e-10)
