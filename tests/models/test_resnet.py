"""Residual networks: dilation against striding, both orders of normalization, the same everywhere.

The sizes of the ImageNet networks are in tests/weights/test_torchvision.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import losses, ops
from jaxnets.models import layers, resnet
from jaxnets.training import precision


def drawn(module, x, *, seed=0, **options):
    """Variables of `module`, all of them random, variances positive: nothing is hidden by a zero or a one."""
    shapes = jax.eval_shape(lambda key: module.init(key, x, **options), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        array = rng.standard_normal(leaf.shape) * (0.3 if leaf.ndim > 1 else 0.5)
        name = path[-1].key
        return jnp.asarray(np.exp(array) if name in ("var", "scale") else array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def compiled(module, key, x):
    """Initial variables and outputs; also where the tests run without jit, as each operation is a compilation there."""
    with jax.disable_jit(False):
        return jax.jit(lambda key, x: (v := module.init(key, x), module.apply(v, x)))(key, x)


def parameters(module, x):
    shapes = jax.eval_shape(lambda key: module.init(key, x), jax.random.key(0))
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes["params"]))


def tiny(**options):
    return resnet.ResNet(**({"depths": (1, 1), "classes": 3, "width": 4, "zero_scale": False} | options))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)])
def test_the_cifar_networks_have_the_sizes_of_the_paper(depth, millions):
    """He et al. (2015), table 6."""
    count = parameters(resnet.cifar_resnet(depth, shortcut="pad"), jnp.zeros((1, 32, 32, 3)))
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (16, 16, 8, 4, 2)),
        ({"output_stride": 16}, (16, 16, 8, 4, 4)),
        ({"output_stride": 8, "stem": "deep"}, (16, 16, 8, 8, 8)),
        ({"output_stride": 4}, (16, 16, 16, 16, 16)),
        ({"stem": "cifar"}, (64, 64, 32, 16, 8)),
        ({"stem": "cifar", "output_stride": 2}, (64, 64, 32, 32, 32)),
    ],
)
def test_features_have_the_strides_asked_for(options, sizes):
    model = tiny(depths=(1, 1, 1, 1), **options)
    maps, _ = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, method="features"), jax.random.key(0), images(1, 64, 61, 3)
    )
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert set(maps) == set(names)
    assert tuple(maps[name].shape[1] for name in names) == sizes
    assert [maps[name].shape[3] for name in names] == [8 if "deep" in options.values() else 4, 16, 32, 64, 128]


@pytest.mark.parametrize(
    "options",
    [
        {"block": "basic"},
        {"groups": 2},
        {"early_stride": True},
        {"preactivation": True},
        {"block": "basic", "preactivation": True, "shortcut": "pad"},
    ],
    ids=str,
)
def test_a_dilated_network_is_the_strided_one_at_its_positions(options):
    """Exactly so by torchvision's convention, borders included."""
    x, strided = images(1, 33, 38, 3), tiny(depths=(1, 2, 2), **options)
    dilated = tiny(depths=(1, 2, 2), output_stride=4, **options)
    with jax.disable_jit(False):
        variables = drawn(strided, x)
        few, many = (jax.jit(lambda v, x, m=m: m.apply(v, x, method="features"))(variables, x) for m in (strided, dilated))
    for name, step in (("stage1", 1), ("stage2", 2), ("stage3", 4)):
        np.testing.assert_allclose(many[name][:, ::step, ::step], few[name], rtol=2e-4, atol=1e-4 * np.abs(few[name]).max())


def test_by_semsegs_convention_it_is_the_one_that_strides_early():
    """A 3x3 that dilates at once sees what one behind a strided 1x1 sees."""
    x, early = images(1, 33, 38, 3), tiny(depths=(1, 2, 2), early_stride=True)
    dilated = tiny(depths=(1, 2, 2), output_stride=4, dilate_first=True)
    with jax.disable_jit(False):
        variables = drawn(early, x)
        few, many = (jax.jit(lambda v, x, m=m: m.apply(v, x, method="features"))(variables, x) for m in (early, dilated))
    np.testing.assert_allclose(many["stage3"][:, ::4, ::4], few["stage3"], rtol=2e-4, atol=1e-4 * np.abs(few["stage3"]).max())


def test_semsegs_convention_comes_with_its_stem():
    x = images(1, 33, 33, 3)
    deep = {"depths": (1, 1), "stem": "deep", "output_stride": 4}
    with jax.disable_jit(False):
        variables = drawn(tiny(**deep), x)
        default, semseg, torchvision = (
            jax.jit(tiny(**deep, dilate_first=first).apply)(variables, x) for first in (None, True, False)
        )
    np.testing.assert_array_equal(default, semseg)
    assert np.abs(default - torchvision).max() > 1e-3


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_at_the_start_a_block_is_its_shortcut(kind, key):
    """As its last scale is zero: the input where sizes agree, else the projection."""
    channels = 4 if kind == "basic" else 16
    x = jnp.abs(images(2, 3, 4, channels))
    for features, block in ((x, resnet.Block(kind, planes=4)), (None, resnet.Block(kind, planes=8, stride=2))):
        variables, y = compiled(block, key, x)
        scales = [variables["params"][f"norm{index}"]["scale"].mean() for index in range(1, 3 if kind == "basic" else 4)]
        assert scales == [*[1] * (len(scales) - 1), 0]  # else nothing would learn
        if features is None:
            projected = ops.convolution(x, variables["params"]["shortcut_conv"]["kernel"], stride=2)
            features = jax.nn.relu(projected / jnp.sqrt(1 + 1e-5))
        np.testing.assert_allclose(y, features, rtol=1e-5, atol=1e-6)
    plain = resnet.Block(kind, planes=4, zero_scale=False)
    assert np.abs(compiled(plain, key, x)[1] - x).max() > 0.1


@pytest.mark.parametrize("stride", [1, 2])
def test_a_preactivation_block_written_out(stride):
    """`x + conv2 relu norm2 conv1 relu norm1 x`; a projection sees what the first convolution sees, and no relu ends it."""
    x, block = images(2, 5, 4, 4), resnet.Block("basic", planes=4, stride=stride, preactivation=True)
    variables = drawn(block, x)
    params, statistics = variables["params"], variables["batch_stats"]

    def normalized(x, name):
        s, p = statistics[name], params[name]
        return jax.nn.relu((x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"])

    with jax.numpy_rank_promotion("allow"):
        first = normalized(x, "norm1")
        h = ops.convolution(first, params["conv1"]["kernel"], stride=stride, padding=1)
        h = ops.convolution(normalized(h, "norm2"), params["conv2"]["kernel"], padding=1)
    shortcut = x if stride == 1 else ops.convolution(first, params["shortcut_conv"]["kernel"], stride=2)
    np.testing.assert_allclose(block.apply(variables, x), shortcut + h, rtol=1e-4, atol=1e-5)


def test_a_shortcut_without_parameters_takes_pixels_and_adds_zeros():
    x, block = jnp.abs(images(1, 5, 4, 4)), resnet.Block("basic", planes=6, stride=2, shortcut="pad")
    variables = jax.tree.map(jnp.zeros_like, drawn(block, x))
    expected = np.zeros((1, 3, 2, 6), np.float32)
    expected[..., :4] = np.asarray(x)[:, ::2, ::2]
    np.testing.assert_array_equal(block.apply(variables, x), expected)
    assert set(variables["params"]) == {"conv1", "conv2", "norm1", "norm2"}


def test_with_group_normalization_images_do_not_see_each_other(jit):
    model, x = tiny(normalization="group", stem="cifar", depths=(1,)), images(2, 6, 5, 3)
    variables = drawn(model, x)
    assert set(variables) == {"params"}
    apply = jit(lambda x: model.apply(variables, x, train=True))
    np.testing.assert_allclose(apply(x)[1:], apply(x[1:]), rtol=1e-4, atol=1e-5)


def test_batch_statistics_over_a_named_axis_are_those_of_the_whole_batch():
    """In logits and running statistics; evaluation needs no axis, and the module is as hashable as any other."""
    options, x = {"stem": "cifar", "depths": (1,)}, images(4, 6, 5, 3)
    model, named = tiny(**options), tiny(**options, normalization=functools.partial(layers.BatchNorm, axis_name="data"))
    assert len({model, named, named.clone()}) == 2
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    train_part = functools.partial(named.apply, train=True, mutable=["batch_stats"])
    with jax.disable_jit(False):
        variables = drawn(named, x)
        expected, statistics = jax.jit(train)(variables, x)
        parts, of_parts = jax.jit(jax.vmap(train_part, (None, 0), axis_name="data"))(variables, x.reshape(2, 2, 6, 5, 3))
        np.testing.assert_array_equal(jax.jit(named.apply)(variables, x), jax.jit(model.apply)(variables, x))
    np.testing.assert_allclose(parts.reshape(4, 3), expected, rtol=1e-4, atol=1e-5)
    for part in range(2):
        jax.tree.map(lambda a, b, i=part: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), of_parts, statistics)


def test_without_normalization_there_is_none(key):
    variables = jax.eval_shape(tiny(normalization=None).init, key, images(1, 16, 16, 3))
    assert not any("norm" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables))


def test_a_training_step_moves_every_parameter_and_statistic(jit, key):
    """From any start but the zero scale's."""
    model, x, y = tiny(stem="cifar", block="basic"), images(3, 5, 4, 3), jnp.array([0, 1, 2])
    variables = drawn(model, x)

    @jit
    def gradient(variables):
        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return losses.softmax_cross_entropy(logits, y).mean(), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, statistics = gradient(variables)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).min(), statistics, variables["batch_stats"])
    assert all(leaf > 0 for leaf in jax.tree.leaves(moved))


def test_dropout_is_before_the_last_layer_and_in_training_only(key):
    model, x = tiny(dropout=0.5, normalization=None, stem="cifar", depths=(1,)), images(2, 4, 4, 3)
    variables = drawn(model, x)
    logits, rngs = model.apply(variables, x), {"dropout": key}
    np.testing.assert_array_equal(model.apply(variables, x, rngs=rngs), logits)
    _, captured = model.apply(variables, x, train=True, rngs=rngs, capture_intermediates=True)
    pooled = model.apply(variables, x, method="features")["stage1"].mean((1, 2))
    dropped = captured["intermediates"]["drop"]["__call__"][0]
    assert 0 < (dropped == 0).sum() < dropped.size
    np.testing.assert_allclose(dropped, jnp.where(dropped == 0, 0, 2 * pooled), rtol=1e-5)


@pytest.mark.parametrize("preactivation", [False, True])
def test_bfloat16_is_near_float32_and_gradients_stay_float32(preactivation):
    model, x = tiny(block="basic", stem="cifar", preactivation=preactivation), images(2, 8, 8, 3)
    with jax.disable_jit(False):
        variables = drawn(model, x)
        apply = precision.mixed(model.apply)
        logits = jax.jit(apply)(variables, x)
        gradient = jax.jit(jax.grad(lambda p: apply({**variables, "params": p}, x).sum()))(variables["params"])
        expected = jax.jit(model.apply)(variables, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


def test_float64_stays_float64():
    with jax.enable_x64(True), jax.disable_jit(False):
        model, x = tiny(), jnp.asarray(np.asarray(images(2, 16, 16, 3)), jnp.float64)
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), drawn(model, x))
        logits, updated = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
        assert {leaf.dtype for leaf in jax.tree.leaves((logits, updated))} == {np.dtype("float64")}


def test_one_exported_program_serves_all_platforms():
    model, x = tiny(groups=2, output_stride=4), images(2, 16, 16, 3)
    with jax.disable_jit(False):
        variables = drawn(model, x)
        apply = jax.jit(lambda x: model.apply(variables, x))
        exported = jax.export.export(apply, platforms=["cpu", "cuda", "tpu"])(x)
        np.testing.assert_allclose(exported.call(x), apply(x), rtol=1e-4, atol=1e-5)


def test_bad_options_are_refused():
    for options, words in (
        ({"classes": 0}, "ResNet: classes must be at least 1, got 0."),
        ({"depths": ()}, "depths must be positive"),
        ({"depths": (1, 0)}, "depths must be positive"),
        ({"width": 0}, "width must be at least 1"),
        ({"output_stride": 3}, r"output_stride must be one of \[4, 8\], got 3"),
        ({"block": "wide"}, "block must be one of basic, bottleneck, got wide"),
        ({"shortcut": "padd"}, "shortcut must be one of projection, pad, got padd"),
        ({"block": "basic", "stem": "deep", "shortcut": "pad"}, "shortcut must be 'projection' where a deep stem"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"block": "basic", "groups": 2}, r"groups and group_width are a bottleneck's, got \(2, 64\)"),
        ({"group_width": 15}, "group_width must be at least 64 / width: a channel for each group, got 15"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"normalization": "layer"}, "normalization must be 'batch', 'group', None or a callable .* got layer"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(**options)
    with pytest.raises(ValueError, match="depth must be 6 n"):
        resnet.cifar_resnet(18)
