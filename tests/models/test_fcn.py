import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxnets import ops
from jaxnets.models import cnn, fcn, resnet
from jaxnets.training import precision

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "torch_segmentation.npz"
VGG = functools.partial(cnn.VGG, (1, 1, 1, 1, 1), width=2, hidden=6)
ORIGINAL = functools.partial(VGG, padding=100, ceil=True)
RESNET = functools.partial(resnet.ResNet, (1, 1, 1, 1), block="basic", width=2, zero_scale=False)
BACKBONES = {"original": ORIGINAL, "vgg": VGG, "resnet": RESNET}
VARIANTS = ("32s", "16s", "8s")


def drawn(model, image, scale=1.0):
    """Variables of random numbers, the scores too: they begin at zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)

    def draw(path, leaf):
        if path[-1] in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        std = scale * np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.1
        return jnp.asarray(rng.normal(0, std, leaf.shape), leaf.dtype)

    return traverse_util.path_aware_map(draw, shapes)


def image(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((1, *shape, 3)), jnp.float32)


def assert_close(actual, expected, tolerance):
    """Relative to the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- the authors' networks ------------------------------------------------------------------------------------------


def golden_variables(script, golden, model, x):
    """The weights of the script under our names; torch's kernels are OIHW, of transposed convolutions IOHW."""
    shapes = {name: tuple(map(int, shape)) for name, *shape in map(str.split, golden["fcn/names"])}

    def take(path, leaf):
        name = f"{path[-2]}.{'bias' if path[-1] == 'bias' else 'weight'}"
        array = script.draw(name, shapes[name])
        order = (0,) if array.ndim == 1 else (2, 3, 0, 1) if name.startswith("upscore") else (2, 3, 1, 0)
        return jnp.asarray(array.transpose(order), jnp.result_type(float))

    return traverse_util.path_aware_map(take, jax.eval_shape(model.init, jax.random.key(0), x))


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-10)])
def test_every_variant_computes_what_the_authors_network_does(x64, tolerance):
    spec = importlib.util.spec_from_file_location("torch_segmentation", GOLDEN.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    backbone = cnn.VGG((2, 1, 1, 1, 1), width=2, hidden=6, padding=100, ceil=True)
    models = {f"{v}/{u}": fcn.FCN(v, 3, backbone, u) for v in VARIANTS for u in ("fixed", "learned")}
    models["8s/at_once"] = fcn.FCN("8s", 3, backbone, at_once=True)
    with np.load(GOLDEN) as golden, jax.enable_x64(x64), jax.disable_jit(False):
        x = jnp.asarray(script.image(2, 1, 3, 20, 27).transpose(0, 2, 3, 1))
        variables = {name: golden_variables(script, golden, model, x) for name, model in models.items()}
        logits = jax.jit(lambda variables: {name: model.apply(variables[name], x) for name, model in models.items()})(variables)
        for name, found in logits.items():
            assert_close(found[:, ::2, ::2], golden[f"fcn/{name}"], tolerance)


def test_without_a_backbone_it_is_vgg16_of_134_million_weights():
    shapes = jax.eval_shape(fcn.FCN("8s", 21).init, jax.random.key(0), image(20, 20))
    assert shapes["params"]["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    convolutions = sum(9 * i * o + o for i, o in ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256)))
    convolutions += 2 * (9 * 256 * 256 + 256) + (9 * 256 * 512 + 512) + 5 * (9 * 512 * 512 + 512)
    dense, scores = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096, 21 * (4096 + 512 + 256) + 3 * 21
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == convolutions + dense + scores


# ---- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_have_the_images_size(backbone):
    for options in ({"variant": "32s"}, {"variant": "16s"}, {"variant": "8s"}, {"variant": "8s", "upsampling": "learned"}):
        model = fcn.FCN(**options, classes=3, backbone=BACKBONES[backbone]())
        for size in [(33, 47), (32, 90)] + ([] if backbone == "vgg" else [(1, 17)]):
            logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image(*size))
            assert logits.shape == (1, *size, 3)


@pytest.mark.parametrize(
    ("variant", "backbone", "size"),
    [("8s", "original", 58), ("8s", "vgg", 64), ("8s", "resnet", 65), ("32s", "vgg", 64), ("16s", "resnet", 65)],
)
def test_of_symmetric_kernels_the_mirrored_image_has_the_mirrored_logits(variant, backbone, size):
    """So maps lie over each other and over the image to the pixel. Of these sizes the maps end as they begin."""
    model, x = fcn.FCN(variant, 2, BACKBONES[backbone]()), image(size, size)
    variables = jax.tree.map(lambda leaf: (leaf + leaf[:, ::-1]) / 2 if leaf.ndim == 4 else leaf, drawn(model, x))
    with jax.disable_jit(False):
        logits, mirrored = (jax.jit(model.apply)(variables, x[:, :, ::step]) for step in (1, -1))
    assert_close(mirrored[:, :, ::-1], logits, 1e-5)
    assert np.ptp(np.asarray(logits), axis=2).max() > 0.1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_scores_of_a_map_move_with_what_is_seen_by_its_stride(backbone):
    """A spot on nothing, moved. No biases: nothing has no features; the middle of fc6 alone: no border sees the spot."""
    model, spot = fcn.FCN("8s", 2, BACKBONES[backbone](normalization=None)), image(8, 8)

    def spot_at(place):
        return jnp.pad(spot, ((0, 0), (place, 280 - place), (place, 280 - place), (0, 0)))

    variables = drawn(model, spot_at(0))
    variables = traverse_util.path_aware_map(lambda path, leaf: leaf * (path[-1] != "bias"), variables)
    if "fc6" in variables["params"]:
        kernel = variables["params"]["fc6"]["kernel"]
        variables["params"]["fc6"]["kernel"] = jnp.zeros_like(kernel).at[3, 3].set(7 * kernel[3, 3])
    with jax.disable_jit(False):
        apply = jax.jit(model.apply)
        for only, shift in (("score_fr", 32), ("score_pool4", 16), ("score_pool3", 8)):
            params = {
                k: v if only == k or "score" not in k else jax.tree.map(jnp.zeros_like, v)
                for k, v in variables["params"].items()
            }
            logits, moved = (np.asarray(apply({"params": params}, spot_at(place))) for place in (100, 100 + shift))
            assert np.abs(logits).max() > 1e-3
            assert_close(moved[:, shift:, shift:], logits[:, :-shift, :-shift], 1e-5)
            assert np.abs(moved - logits).max() > 1e-3


@pytest.mark.parametrize("backbone", ["vgg", "resnet"])
def test_scores_go_on_beyond_the_border(jit, backbone):
    model, x = fcn.FCN("8s", 2, BACKBONES[backbone]()), image(35, 41)
    variables = jax.tree.map(jnp.zeros_like, drawn(model, x))
    variables["params"]["score_fr"]["bias"] = jnp.array([1.0, -2.0])
    logits = jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, np.broadcast_to([1.0, -2.0], logits.shape), rtol=1e-6)


# ---- surgery --------------------------------------------------------------------------------------------------------


def test_a_vgg_as_an_fcn_scores_in_the_middle_what_it_did_for_the_image():
    """Of a 224x224 image the middle of the 7x7 scores sees all of the last map and none of fc6's padding."""
    vgg, x = VGG(classes=4), image(224, 224)
    variables = drawn(vgg, x, scale=2.0)
    model = fcn.FCN("32s", 4, VGG())
    converted = fcn.fully_convolutional(variables)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, shapes)
    with jax.disable_jit(False):
        logits, inner = jax.jit(functools.partial(vgg.apply, capture_intermediates=True))(variables, x)
        _, outer = jax.jit(functools.partial(model.apply, capture_intermediates=True))(converted, x)
    (fc7,), (outer7,) = inner["intermediates"]["fc7"]["__call__"], outer["intermediates"]["fc7"]["__call__"]
    (scores,) = outer["intermediates"]["score_fr"]["__call__"]
    assert scores.shape == (1, 7, 7, 4)
    assert_close(outer7[:, 3, 3], fc7, 1e-5)
    assert_close(scores[:, 3, 3], logits, 1e-5)


def test_surgery_for_other_classes_begins_with_scores_of_zero():
    variables = fcn.fully_convolutional(drawn(VGG(classes=4, normalization="batch"), image(32, 32)), classes=7)
    scores = variables["params"]["score_fr"]
    assert scores["kernel"].shape == (1, 1, 6, 7)
    assert not scores["kernel"].any()
    assert not scores["bias"].any()
    assert set(variables["batch_stats"]) == {"backbone"}


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_a_transplanted_network_begins_as_the_coarser_one_in_steps(upsampling):
    x = image(20, 27)
    models = {variant: fcn.FCN(variant, 3, ORIGINAL(), upsampling) for variant in VARIANTS}
    first = fcn.FCN("32s", 3, ORIGINAL())  # its upsampling is bilinear, learned or not
    variables = {"32s": drawn(first, x)}
    variables["16s"] = fcn.transplant(models["16s"], from_=variables["32s"])
    variables["8s"] = fcn.transplant(models["8s"], from_=variables["16s"])
    with jax.disable_jit(False):
        _, found = first.apply(variables["32s"], x, capture_intermediates=True)
        (scores,) = found["intermediates"]["score_fr"]["__call__"]
        for variant, factors, start in (("16s", (2, 16), 27), ("8s", (2, 2, 8), 31)):
            expected = functools.reduce(ops.bilinear_upsample, factors, scores)[:, start : start + 20, start : start + 27]
            assert_close(models[variant].apply(variables[variant], x), expected, 1e-5)


def test_a_transplant_takes_what_both_have():
    model, x = fcn.FCN("16s", 3, RESNET(), "learned"), image(32, 32)
    variables = drawn(model, x)
    new = fcn.transplant(fcn.FCN("8s", 3, RESNET(), "learned"), from_=variables)
    assert set(new["params"]) - set(variables["params"]) == {"score_pool3", "upscore_pool4", "upscore8"}
    for name in ("backbone", "score_fr", "score_pool4", "upscore2"):
        jax.tree.map(np.testing.assert_array_equal, new["params"][name], variables["params"][name])
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(("backbone", "channels"), [(VGG(), 1), (RESNET(stem="deep"), 5)], ids=["vgg", "resnet"])
def test_a_transplant_takes_images_of_any_channels_and_the_dtype_of_the_scores(backbone, channels):
    x, model = jnp.zeros((1, 32, 32, channels)), fcn.FCN("8s", 3, backbone, "learned")
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), drawn(fcn.FCN("32s", 3, backbone), x))
    new = fcn.transplant(model, from_=variables)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


def test_a_transplant_of_another_architecture_is_refused_by_names_and_shapes():
    coarse = drawn(fcn.FCN("16s", 3, VGG()), image(32, 32))
    with pytest.raises(ValueError, match=r"transplant: .* params/score_fr/bias is \(3,\), not \(4,\)"):
        fcn.transplant(fcn.FCN("8s", 4, VGG()), from_=coarse)
    with pytest.raises(ValueError, match=r"transplant: .*batch_stats/backbone/entry/norm1/mean is missing"):
        fcn.transplant(fcn.FCN("8s", 3, RESNET()), from_=coarse)
    with pytest.raises(ValueError, match=r"transplant: .* params/score_pool4/\w+ is unused"):
        fcn.transplant(fcn.FCN("32s", 3, VGG()), from_=coarse)
    with pytest.raises(ValueError, match=r"fully_convolutional: expected the variables of a VGG"):
        fcn.fully_convolutional(coarse)
    with pytest.raises(ValueError, match=r"fully_convolutional: classes must be at least 1, got 0"):
        fcn.fully_convolutional(drawn(VGG(classes=4), image(32, 32)), classes=0)


# ---- as any function of JAX -----------------------------------------------------------------------------------------


def test_scores_begin_at_zero_and_learn(key):
    model, x = fcn.FCN("8s", 2, VGG()), image(32, 40)
    variables = drawn(model, x)
    with jax.disable_jit(False):
        initial = jax.jit(lambda key: {k: v for k, v in model.init(key, x)["params"].items() if k.startswith("score")})(key)
        variables["params"] |= initial
        logits, gradient = jax.jit(jax.value_and_grad(lambda v: model.apply(v, x).sum()))(variables)
    assert logits == 0
    assert set(initial) == {"score_fr", "score_pool4", "score_pool3"}
    assert all(np.abs(gradient["params"][name]["kernel"]).max() > 0 for name in initial)


def test_members_of_an_ensemble_in_bfloat16_are_each_their_network():
    model, x = fcn.FCN("8s", 2, VGG(), "learned"), image(32, 40)
    members = [jax.tree.map(lambda leaf, s=scale: leaf * s, drawn(model, x)) for scale in (1.0, 0.9)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    with jax.disable_jit(False):
        apply = jax.jit(model.apply)
        logits = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, x)
        for member, expected in zip(members, logits, strict=True):
            assert_close(apply(member, x), expected, 1e-4)
        assert_close(jax.jit(precision.mixed(model.apply))(members[0], x), logits[0], 0.1)


def test_one_exported_program_serves_every_platform():
    model, x = fcn.FCN("8s", 2, ORIGINAL(), "learned"), image(20, 27)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(model.apply), platforms=("cpu", "cuda", "tpu"))(shapes, x)
    assert exported.out_avals[0].shape == (1, 20, 27, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "64s"}, "variant must be one of 32s, 16s, 8s, got 64s"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"upsampling": "nearest"}, "upsampling must be 'fixed' or 'learned', got nearest"),
        ({"backbone": cnn.VGG((1, 1))}, r"a VGG must have five stages, got \(1, 1\)"),
        ({"backbone": cnn.vgg16(padding=100)}, r"padding=100 and ceil=True, got \(100, False\)"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=f"FCN: .*{message}"):
        fcn.FCN(**{"variant": "8s", "classes": 2, **options})


def test_a_backbone_of_other_strides_is_refused():
    model = fcn.FCN("8s", 2, RESNET(output_stride=8))
    with pytest.raises(ValueError, match=r"FCN: .* strides 8, 16, 32"):
        jax.eval_shape(model.init, jax.random.key(0), image(64, 64))


# ---- torchvision's --------------------------------------------------------------------------------------------------


def test_torchvisions_fcn_gives_two_maps_of_logits_or_one():
    for size in ((1, 3), (31, 44)):
        for auxiliary in (True, False):
            model = fcn.ResNetFCN(RESNET(output_stride=8), 3, auxiliary=auxiliary)
            (main, second), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image(*size))
            assert main.shape == (1, *size, 3)
            assert (second.shape == main.shape) if auxiliary else (second is None)


@pytest.mark.parametrize("drop_channels", [False, True])
def test_a_head_drops_pixels_or_whole_channels(key, drop_channels):
    head, x = fcn.Head(64, 64, 0.25, drop_channels, normalization=None), jnp.ones((2, 3, 3, 1))
    variables = {
        "params": {
            "conv": {"kernel": jnp.zeros((3, 3, 1, 64)).at[1, 1].set(3.0)},
            "score": {"kernel": jnp.eye(64)[None, None], "bias": jnp.zeros(64)},
        }
    }
    y = np.asarray(head.apply(variables, x, train=True, rngs={"dropout": key}))
    np.testing.assert_allclose(np.unique(y), [0, 4])  # 3 / (1 - 1/4)
    assert 0.1 < (y == 0).mean() < 0.4
    assert (np.ptp(y, axis=(1, 2)) == 0).all() == drop_channels
    np.testing.assert_array_equal(head.apply(variables, x), np.full((2, 3, 3, 64), 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes must be at least 1"),
        ({"dropout": 1}, "dropout must"),
        ({"normalization": "layer"}, "normalization must be 'batch', 'group', None or a callable .* got layer"),
    ],
)
def test_bad_fields_of_torchvisions_are_refused(options, message):
    with pytest.raises(ValueError, match=f"ResNetFCN: {message}"):
        fcn.ResNetFCN(RESNET(), **{"classes": 2, **options})
