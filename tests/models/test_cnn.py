"""LeNet, AlexNet, VGG, ConvNeXt and MobileNetV2: sizes of the papers, each part in closed form, the same everywhere."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses, ops
from jaxnets.data import batches
from jaxnets.models import cnn, convnext, mobilenet
from jaxnets.training import precision, state, steps


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def shapes(module, x):
    return jax.eval_shape(lambda key: module.init(key, x), jax.random.key(0))


def count(module, size):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes(module, jnp.zeros(size))["params"]))


def compiled(function, *arguments):
    """Also where the tests run without jit: whole networks cost a compilation per operation there."""
    with jax.disable_jit(False):
        return jax.jit(function)(*arguments)


def drawn(module, x, *, scale=0.3, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), s.dtype), shapes(module, x))


TINY = {
    "LeNet5": (cnn.LeNet5(classes=3), (2, 28, 28, 1)),
    "LeNet": (cnn.LeNet(classes=3, widths=(2, 3, 4, 5)), (2, 14, 13, 2)),
    "AlexNet": (cnn.AlexNet(classes=3, widths=(2, 4, 4, 2, 2), hidden=4, local_response=True, towers=2), (1, 64, 63, 1)),
    "VGG": (cnn.VGG((1, 2), classes=3, width=2, hidden=4, normalization="group"), (2, 9, 8, 1)),
    "ConvNeXt": (convnext.ConvNeXt((1, 1), (3, 4), classes=3, layer_scale=1), (2, 9, 8, 1)),
    "MobileNetV2": (mobilenet.MobileNetV2(classes=3, width=0.1, normalization="group"), (1, 32, 33, 3)),
}


def test_the_alexnet_of_the_paper_has_the_size_of_caffes():
    """Those of torchvision's networks are in tests/weights/test_torchvision.py."""
    model = cnn.AlexNet(widths=(96, 256, 384, 384, 256), towers=2)
    assert count(model, (1, 64, 64, 3)) == 60_965_224


def test_lenet5_has_the_sizes_of_the_paper_layer_by_layer():
    """LeCun et al. (1998), section II.B: 60,000 in all."""
    params = shapes(cnn.LeNet5(), images(1, 32, 32, 1))["params"]
    sizes = {name: sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(layer)) for name, layer in params.items()}
    assert sizes == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert sum(sizes.values()) == 60_000
    assert count(cnn.LeNet5(codes="learned"), (1, 32, 32, 1)) == 60_840
    assert count(cnn.LeNet(), (1, 28, 28, 1)) == 61_706  # of every LeNet-5 with linear outputs and a full second convolution


# LeCun et al. (1998), table I: a row for each map of S2, a column for each of C3.
TABLE = """\
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


def test_each_map_of_c3_sees_the_maps_that_the_table_lists():
    model, x = cnn.LeNet5(), images(1, 14, 14, 6)
    bound = model.bind(drawn(model, images(1, 32, 32, 1)))
    base = bound.c3(x)
    for source in range(6):
        moved = np.abs(bound.c3(x.at[..., source].add(1)) - base).max((0, 1, 2)) > 1e-3
        assert moved.tolist() == [cross == "X" for cross in TABLE.splitlines()[source]]


def test_lenet5_layer_by_layer():
    model, x = cnn.LeNet5(), images(2, 32, 32, 1)
    variables = drawn(model, x)
    maps, params = compiled(lambda v: model.apply(v, x, method="features"), variables), variables["params"]
    c1 = 1.7159 * np.tanh(2 / 3 * (ops.convolution(x, params["c1"]["kernel"]) + params["c1"]["bias"][None, None, None]))
    np.testing.assert_allclose(maps["c1"], c1, rtol=1e-4, atol=1e-5)
    summed = c1.reshape(2, 14, 2, 14, 2, 6).sum((2, 4))
    s2 = 1.7159 * np.tanh(2 / 3 * (summed * np.asarray(params["s2"]["scale"]) + np.asarray(params["s2"]["bias"])))
    np.testing.assert_allclose(maps["s2"], s2, rtol=1e-4, atol=1e-5)
    assert {name: each.shape[1:] for name, each in maps.items()} == {
        "c1": (28, 28, 6),
        "s2": (14, 14, 6),
        "c3": (10, 10, 16),
        "s4": (5, 5, 16),
        "c5": (1, 1, 120),
        "f6": (84,),
    }
    distances = [[np.sum((f - code) ** 2) for code in np.asarray(cnn.digit_codes())] for f in np.asarray(maps["f6"])]
    np.testing.assert_allclose(compiled(model.apply, variables, x), -np.array(distances), rtol=1e-5)


def test_squashing_is_one_at_one():
    np.testing.assert_allclose(cnn.squash(jnp.array([-1.0, 0.0, 1.0, 100.0])), [-1, 0, 1, 1.7159], atol=1e-4)


def test_codes_are_signs_and_no_two_digits_are_near():
    codes = np.asarray(cnn.digit_codes())
    assert np.unique(codes).tolist() == [-1, 1]
    assert (codes.reshape(10, 12, 7)[:, [0, -1]] == -1).all()
    assert min((a != b).sum() for a, b in itertools.combinations(codes, 2)) >= 7


def test_learned_codes_begin_as_signs_and_are_the_logits_centers(key):
    model, x = cnn.LeNet5(classes=12, codes="learned"), images(1, 28, 28, 1)
    variables = compiled(model.init, key, x)
    codes = variables["params"]["codes"]
    assert np.unique(codes).tolist() == [-1, 1]
    state = compiled(lambda v: model.apply(v, x, method="features"), variables)["f6"]
    np.testing.assert_allclose(compiled(model.apply, variables, x)[0], -((state - codes) ** 2).sum(1), rtol=1e-5)


def test_a_smaller_image_stands_in_a_frame_of_zeros():
    model, x = cnn.LeNet5(), images(1, 28, 25, 1)
    variables = drawn(model, x)
    framed = jnp.pad(x, ((0, 0), (2, 2), (3, 4), (0, 0)))
    np.testing.assert_array_equal(compiled(model.apply, variables, x), compiled(model.apply, variables, framed))


def test_an_ensemble_under_vmap_is_a_loop_of_single_networks(key):
    model, size = TINY["LeNet5"]
    x, keys = images(*size), jax.random.split(key, 3)

    def logits(key):
        return model.apply(model.init(key, x), x)

    with jax.disable_jit(False):
        single = jax.jit(logits)
        np.testing.assert_allclose(jax.jit(jax.vmap(logits))(keys), jnp.stack([single(k) for k in keys]), rtol=2e-4, atol=1e-4)


def test_an_ensemble_trained_under_vmap_is_a_loop_of_trained_networks(key):
    """Two steps of gradient descent with momentum."""
    model, size = TINY["LeNet"]
    batch, optimizer = batches.Dataset(images(*size), jnp.arange(2)), optax.sgd(0.1, momentum=0.9)
    step = steps.make_train_step(steps.supervised(model.apply, losses.softmax_cross_entropy), optimizer)

    def trained(key):
        start = state.create(model, optimizer, key, batch.x)
        end, metrics = jax.lax.scan(lambda before, _: step(before, batch), start, length=2)
        return end.params, end.opt_state, metrics

    keys = jax.random.split(key, 2)
    with jax.disable_jit(False):
        members, single = jax.jit(jax.vmap(trained))(keys), jax.jit(trained)
        alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(single, keys))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), members, alone)
    assert (members[2]["grad_norm"] > 0.01).all()


def test_local_response_divides_by_the_channels_around():
    x = images(2, 3, 7)
    padded = np.pad(np.asarray(x) ** 2, ((0, 0), (0, 0), (1, 1)))
    total = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    y = cnn.local_response(x, window=3, bias=1.5, scale=0.2, power=0.6)
    np.testing.assert_allclose(y, np.asarray(x) / (1.5 + 0.2 * total) ** 0.6, rtol=1e-5)


def test_a_fully_connected_layer_of_vgg_reshaped_is_a_convolution():
    """The surgery of the fully convolutional networks: what the first layer says of a 7x7 map."""
    model, x = cnn.VGG((1,), classes=3, width=2, hidden=5), images(2, 14, 14, 1)
    variables = drawn(model, x)
    params, pool = variables["params"], compiled(lambda v: model.apply(v, x, method="features"), variables)["pool1"]
    y = jax.nn.relu(
        ops.convolution(pool, params["fc6"]["kernel"].reshape(7, 7, 2, 5)) + params["fc6"]["bias"][None, None, None]
    )
    for name in ("fc7", "head"):
        y = y @ params[name]["kernel"] + params[name]["bias"][None, None, None]
        y = jax.nn.relu(y) if name == "fc7" else y
    np.testing.assert_allclose(compiled(model.apply, variables, x), y[:, 0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, [250, 125, 62, 31, 15]), ({"ceil": True, "padding": 100}, [349, 175, 88, 44, 22])],
)
def test_vggs_maps_have_the_sizes_of_the_fully_convolutional_networks(options, sizes):
    """An image of 500x500 of VOC: pool5 has 22 rows in the original, whose fc6 then has 16."""
    model = cnn.vgg16(width=1, hidden=1, **options)
    x = jnp.zeros((1, 500, 500, 3))
    maps, _ = jax.eval_shape(lambda key: model.init_with_output(key, x, method="features"), jax.random.key(0))
    assert [maps[f"pool{stage}"].shape[1] for stage in range(1, 6)] == sizes


def test_stochastic_depth_leaves_out_whole_images_and_makes_up_for_it(key):
    block, x = convnext.Block(drop=0.5, layer_scale=1.0), images(16, 2, 2, 3)
    variables = drawn(block, x)
    residual = compiled(block.apply, variables, x) - x
    y = compiled(lambda v, x: block.apply(v, x, train=True, rngs={"dropout": key}), variables, x) - x
    kept = np.abs(np.asarray(y)).max((1, 2, 3)) > 0
    assert 0 < kept.sum() < 16
    np.testing.assert_allclose(y, 2 * residual * kept[:, None, None, None], rtol=1e-4, atol=1e-5)


def test_stochastic_depth_grows_linearly_from_zero():
    model = convnext.ConvNeXt((2, 3), (1, 1), drop_depth=0.4)
    bound = model.bind({})
    np.testing.assert_allclose([*bound.stage1.drops, *bound.stage2.drops], [0, 0.1, 0.2, 0.3, 0.4])


def test_layer_scale_begins_near_the_identity(key):
    model, x = convnext.ConvNeXt((2, 1), (3, 4)), images(1, 8, 8, 3)
    maps, variables = compiled(lambda key: model.init_with_output(key, x, method="features"), key)
    np.testing.assert_allclose(maps["stage1"], maps["stem"], atol=1e-4)
    assert variables["params"]["stage2"]["block0"]["scale"].tolist() == [np.float32(1e-6)] * 4


def test_an_inverted_residual_adds_its_input_where_sizes_agree():
    x = images(1, 4, 3, 8)
    for options, expected in (({}, x), ({"stride": 2}, jnp.zeros((1, 2, 2, 8))), ({"expansion": 1}, x)):
        block = mobilenet.InvertedResidual(8, **options)
        variables = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes(block, x))
        np.testing.assert_array_equal(compiled(block.apply, variables, x), expected)
    assert "expand_conv" not in variables["params"]


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [(16 * 0.1, 8), (24 * 0.75, 24), (32 * 0.75, 24), (11.9, 16), (12, 16), (1280 * 1.4, 1792), (19, 24)],
)
def test_channels_are_multiples_of_8_near_what_was_asked_for(channels, rounded):
    """24 * 0.75 = 18 would be 16, more than 10 % below."""
    assert mobilenet.round_to_8(channels) == rounded
    assert rounded >= 0.9 * channels


def test_the_width_of_mobilenet_multiplies_its_channels_but_the_last():
    """Counts of torchvision's `mobilenet_v2(width_mult=...)`."""
    assert count(mobilenet.MobileNetV2(width=0.5), (1, 32, 32, 3)) == 1_968_680
    assert count(mobilenet.MobileNetV2(width=1.4), (1, 32, 32, 3)) == 6_108_776


@pytest.mark.parametrize("name", ["LeNet", "ConvNeXt"])
def test_with_and_without_jit_features_lead_to_the_logits(name, jit):
    """The maps are what the head sees; images do not see each other."""
    model, size = TINY[name]
    x = images(*size)
    with jax.disable_jit(False):
        variables = drawn(model, x)
    logits = jit(model.apply)(variables, x)
    assert logits.shape == (size[0], 3)
    with jax.disable_jit(False):
        alone = jax.jit(lambda x: model.apply(variables, x))
        np.testing.assert_allclose(logits, jnp.concatenate([alone(x[:1]), alone(x[1:])]), rtol=1e-4, atol=1e-5)


DEEP = pytest.param("MobileNetV2", marks=pytest.mark.slow)  # 52 convolutions to compile, however narrow


@pytest.mark.parametrize("name", ["LeNet5", "LeNet", "AlexNet", "ConvNeXt", DEEP])
def test_bfloat16_float64_and_one_program_for_all_platforms(name):
    model, size = TINY[name]
    x = images(*size)
    with jax.disable_jit(False):
        variables = drawn(model, x)
        apply = jax.jit(model.apply)
        expected = apply(variables, x)
        # Of five draws: one in which 52 layers amplify each rounding says nothing of the computation, of whatever norm.
        mixed, errors = jax.jit(precision.mixed(model.apply)), []
        for seed in range(1, 6):
            draw = drawn(model, x, seed=seed)
            params, rounded = precision.cast(precision.cast((draw["params"], x), jnp.bfloat16), jnp.float32)
            of_rounded = apply({**draw, "params": params}, rounded)
            errors.append(np.abs(mixed(draw, x) - of_rounded).max() / np.abs(of_rounded).max())
        assert 0 < np.median(errors) < 0.05
        exported = jax.export.export(apply, platforms=["cpu", "cuda", "tpu"])(variables, x)
        np.testing.assert_allclose(exported.call(variables, x), expected, rtol=1e-4, atol=1e-5)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (variables, x))
            logits = jax.jit(model.apply)(*wide)
            assert logits.dtype == jnp.float64
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["LeNet", "VGG", DEEP])
def test_dropout_is_in_training_only(name, key):
    model, size = TINY[name]
    model, x = model.clone(dropout=0.5), images(*size)
    with jax.disable_jit(False):
        variables = drawn(model, x)
        one, other = (
            jax.jit(lambda k: model.apply(variables, x, train=True, rngs={"dropout": k}))(k) for k in jax.random.split(key)
        )
        calm = jax.jit(lambda: model.apply(variables, x))()
    assert np.abs(one - other).max() > 0 or np.abs(one - calm).max() > 0


@pytest.mark.slow
def test_initializations_are_those_of_the_papers(key):
    params = compiled(cnn.LeNet5().init, key, images(1, 32, 32, 1))["params"]
    for name, fan_in in (("c1", 25), ("c5", 400), ("f6", 120)):
        assert 0.9 * 2.4 / fan_in < np.abs(params[name]["kernel"]).max() <= 2.4 / fan_in
    largest = np.abs(params["c3"]["kernel"]).max((0, 1))
    bounds = np.concatenate([[2.4 / (25 * len(sources))] * len(sources) for sources in cnn.CONNECTIONS])
    assert (largest <= bounds).all()
    assert (largest > 0.75 * bounds).all()
    alexnet = compiled(cnn.AlexNet(widths=(8, 8, 8, 8, 8), hidden=8).init, key, images(1, 63, 63, 3))["params"]
    ones = {name for name, layer in alexnet.items() if (layer["bias"] == 1).all()}
    assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert np.std(alexnet["conv1"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    vgg = compiled(cnn.VGG((1, 1), width=16, hidden=16).init, key, images(1, 8, 8, 3))["params"]
    assert np.std(vgg["conv2_1"]["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.1)
    assert np.std(vgg["fc6"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    lenet = compiled(cnn.LeNet(widths=(16, 16, 64, 64)).init, key, images(1, 28, 28, 1))["params"]
    assert np.std(lenet["conv2"]["kernel"]) == pytest.approx(np.sqrt(2 / (25 * 16)), rel=0.1)
    assert np.std(lenet["dense1"]["kernel"]) == pytest.approx(np.sqrt(2 / 400), rel=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cnn.LeNet5(classes=0), "LeNet5: classes must be at least 1, got 0."),
        (lambda: cnn.LeNet5(classes=11), "codes of 10 digits, got 11"),
        (lambda: cnn.LeNet(classes=0), "LeNet: classes"),
        (lambda: cnn.LeNet(widths=(0, 1, 1, 1)), "LeNet: widths"),
        (lambda: cnn.LeNet(padding=(-1, 0)), "LeNet: padding"),
        (lambda: cnn.LeNet(dropout=1.0), "LeNet: dropout"),
        (lambda: cnn.AlexNet(classes=0), "AlexNet: classes"),
        (lambda: cnn.AlexNet(hidden=0), "AlexNet: widths and hidden"),
        (lambda: cnn.AlexNet(towers=3), "AlexNet: towers"),
        (lambda: cnn.AlexNet(dropout=-0.1), "AlexNet: dropout"),
        (lambda: cnn.vgg16(classes=0), "VGG: classes"),
        (lambda: cnn.VGG(()), "VGG: depths"),
        (lambda: cnn.VGG((1,), width=0), "VGG: width and hidden"),
        (lambda: cnn.VGG((1,), padding=-1), "VGG: padding"),
        (lambda: cnn.VGG((1,), dropout=1), "VGG: dropout"),
        (lambda: cnn.VGG((1,), normalization="layer"), "VGG: normalization must be 'batch', 'group', None or"),
        (lambda: convnext.convnext_tiny(classes=0), "ConvNeXt: classes"),
        (lambda: convnext.ConvNeXt((1, 0), (1, 1)), "ConvNeXt: depths"),
        (lambda: convnext.ConvNeXt((1, 1), (1,)), r"ConvNeXt: widths must be 2 positive integers, one per stage, got \(1,\)."),
        (lambda: convnext.ConvNeXt((1,), (1,), drop_depth=1), "ConvNeXt: drop_depth"),
        (lambda: mobilenet.MobileNetV2(classes=0), "MobileNetV2: classes"),
        (lambda: mobilenet.MobileNetV2(width=0), "MobileNetV2: width"),
        (lambda: mobilenet.MobileNetV2(dropout=1), "MobileNetV2: dropout"),
        (lambda: mobilenet.MobileNetV2(normalization="layer"), "MobileNetV2: normalization must be"),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("model", "good", "bad", "words"),
    [
        (cnn.LeNet5(), (32, 32, 1), (33, 32, 1), "LeNet5: an image must be gray, at most 32x32"),
        (cnn.LeNet5(), (1, 1, 1), (28, 28, 3), "LeNet5: an image must be gray"),
        (cnn.LeNet(), (12, 12, 1), (11, 12, 1), "LeNet: the input of conv2 is too small"),
        (cnn.LeNet(padding=(2, 2)), (4, 4, 1), (3, 4, 1), "LeNet: the input of conv2"),
        (cnn.AlexNet(hidden=1), (63, 63, 3), (63, 62, 3), "AlexNet: an image must be at least 63 pixels"),
        (cnn.vgg11(hidden=1, width=1), (32, 32, 3), (31, 32, 3), "VGG: an image must be at least 32 pixels"),
        (convnext.ConvNeXt((1, 1), (1, 1)), (8, 8, 3), (7, 8, 3), "ConvNeXt: an image must be at least 8 pixels"),
    ],
    ids=str,
)
def test_images_too_small_are_refused_and_no_others(model, good, bad, words):
    assert shapes(model, jnp.zeros((1, *good)))
    with pytest.raises(ValueError, match=words):
        shapes(model, jnp.zeros((1, *bad)))
