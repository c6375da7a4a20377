import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxnets.models import pspnet, resnet
from jaxnets.training import precision

BACKBONE = functools.partial(resnet.ResNet, (1, 1), block="basic", width=4, zero_scale=False)  # two stages to stride 8
TINY = functools.partial(pspnet.PSPNet, width=8, auxiliary_width=4)


def image(batch, *shape):
    return jnp.asarray(np.random.default_rng(batch).standard_normal((batch, *shape, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    """Drawn ones, the same for every size of image."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1] in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        std = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.1
        return jnp.asarray(rng.normal(0, std, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(TINY(BACKBONE(), 3).init, jax.random.key(0), image(1, 33, 33))
    return traverse_util.path_aware_map(draw, shapes)


def assert_close(actual, expected, tolerance):
    """Relative to the largest."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_logits_have_the_images_size(variables):
    model = TINY(BACKBONE(), 3)
    for size in ((1, 1), (2, 9), (16, 31), (33, 40), (57, 64)):
        main, auxiliary = jax.eval_shape(model.apply, variables, image(2, *size))
        assert main.shape == auxiliary.shape == (2, *size, 3)


def test_logits_of_a_cropped_image_are_where_the_wider_images_were(variables):
    """Zeros beyond the border change nothing: the map's positions stay at multiples of 8 pixels, 17 being two of them and 1."""
    model, x = TINY(BACKBONE(), 3), image(1, 17, 25)
    for height, width in ((17, 25), (16, 20), (10, 18)):
        black = x.at[:, height:].set(0).at[:, :, width:].set(0)
        whole, cropped = model.apply(variables, black), model.apply(variables, x[:, :height, :width])
        for expected, logits in zip(whole, cropped, strict=True):
            assert_close(logits, expected[:, :height, :width], 1e-6)


def test_logits_are_the_same_without_jit(variables):
    model, x = TINY(BACKBONE(), 3), image(1, 17, 23)
    with jax.disable_jit(False):
        compiled = jax.jit(model.apply)(variables, x)
    with jax.disable_jit():
        for logits, expected in zip(model.apply(variables, x), compiled, strict=True):
            assert_close(logits, expected, 1e-5)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_the_pyramid_sets_pooled_maps_beside_the_map(pooling):
    """Of one bin the pooled map is constant, of as many as pixels it is the map itself; channels are shared out among bins."""
    x = image(2, 4, 4)
    model = pspnet.PyramidPooling((1, 4, 7), pooling, normalization=None)
    kernels = np.random.default_rng(0).standard_normal((3, 3, 1))
    params = {f"conv{i}": {"kernel": jnp.asarray(kernel[None, None], jnp.float32)} for i, kernel in enumerate(kernels)}
    y = np.asarray(model.apply({"params": params}, x))
    assert y.shape == (2, 4, 4, 3 + 3)
    np.testing.assert_array_equal(y[..., :3], x)
    whole = np.asarray(x.mean((1, 2)) if pooling == "average" else x.max((1, 2)))
    expected = np.broadcast_to(np.maximum(whole @ kernels[0], 0)[:, None, None], (2, 4, 4, 1))
    np.testing.assert_allclose(y[..., 3:4], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[..., 4:5], np.maximum(x @ kernels[1], 0), rtol=1e-5, atol=1e-6)
    # Of seven bins of four pixels the first and the last are the corners' own, where aligned corners put them.
    np.testing.assert_allclose(y[:, ::3, ::3, 5:], np.maximum(x[:, ::3, ::3] @ kernels[2], 0), rtol=1e-5, atol=1e-6)


def test_bins_share_the_channels_among_them(variables):
    pyramid = variables["params"]["pyramid"]
    assert {name: leaves["kernel"].shape for name, leaves in pyramid.items() if name.startswith("conv")} == {
        f"conv{i}": (1, 1, 8, 2) for i in range(4)
    }
    assert variables["params"]["head"]["conv"]["kernel"].shape == (3, 3, 16, 8)
    assert variables["params"]["auxiliary_head"]["conv"]["kernel"].shape == (3, 3, 4, 4)


def test_one_image_can_be_trained_on(variables):
    """All statistics move but those of the 1x1 bin, which has one value per channel; all gradients are finite."""
    model, x = TINY(BACKBONE(), 3), image(1, 17, 23)

    def loss(params):
        (main, auxiliary), updated = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return (main**2).mean() + 0.4 * (auxiliary**2).mean(), updated["batch_stats"]

    with jax.disable_jit(False):
        gradient, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))
    before, after = (traverse_util.flatten_dict(tree) for tree in (variables["batch_stats"], updated))
    unmoved = {path for path in before if (before[path] == after[path]).all()}
    assert unmoved == {("pyramid", "norm0", "mean"), ("pyramid", "norm0", "var")}


def test_groups_of_channels_need_no_batch(key):
    model = TINY(BACKBONE(normalization="group"), 3, normalization="group")
    assert set(jax.eval_shape(model.init, key, image(1, 17, 23))) == {"params"}


def test_unused_auxiliary_logits_cost_nothing(variables):
    x = image(1, 17, 23)
    alone = TINY(BACKBONE(), 3, auxiliary=False)
    assert "auxiliary_head" not in jax.eval_shape(alone.init, jax.random.key(0), x)["params"]

    def cost(model):
        compiled = jax.jit(lambda v: model.apply(v, x)[0]).lower(variables).compile()
        return compiled.cost_analysis()["flops"]

    with jax.disable_jit(False):
        assert cost(TINY(BACKBONE(), 3)) == cost(alone)
        main, none = jax.jit(alone.apply)(variables, x)
        both = jax.jit(TINY(BACKBONE(), 3).apply)(variables, x)
    assert none is None
    np.testing.assert_array_equal(main, both[0])


def test_dropout_is_of_whole_channels_and_in_training_only(variables):
    model, x = TINY(BACKBONE(), 3, dropout=0.5), image(2, 17, 23)
    options = {
        "mutable": ["batch_stats", "intermediates"],
        "capture_intermediates": True,
        "rngs": {"dropout": jax.random.key(0)},
    }
    for train, factors in ((True, {0, 2}), (False, {1})):
        with jax.disable_jit(False):
            _, found = jax.jit(functools.partial(model.apply, train=train, **options))(variables, x)
        for name in ("head", "auxiliary_head"):
            parts = (found["intermediates"][name][part]["__call__"][0] for part in ("norm", "Dropout_0"))
            before, after = (np.maximum(part, 0) for part in parts)
            ratio = (after.sum((1, 2)) + 1e-30) / (before.sum((1, 2)) + 1e-30)
            np.testing.assert_allclose(after, before * ratio[:, None, None], rtol=1e-4, atol=1e-6)
            assert set(np.round(ratio[before.any((1, 2))], 4).tolist()) == factors


def test_members_of_an_ensemble_in_bfloat16_are_each_their_network(variables):
    model, x = TINY(BACKBONE(), 3), image(2, 17, 23)
    members = [jax.tree.map(lambda leaf, s=scale: leaf * s, variables) for scale in (1.0, 0.9)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    with jax.disable_jit(False):
        apply = jax.jit(model.apply)
        both = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, x)
        half = jax.jit(precision.mixed(model.apply))(members[0], x)
        for output in (0, 1):
            for member, expected in zip(members, both[output], strict=True):
                assert_close(apply(member, x)[output], expected, 1e-4)
            assert_close(half[output], both[output][0], 0.1)
            assert half[output].dtype == jnp.float32


def test_one_exported_program_serves_every_platform(variables):
    model, x = TINY(BACKBONE(), 3), image(1, 17, 23)
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(model.apply), platforms=("cpu", "cuda", "tpu"))(variables, x)
    assert [aval.shape for aval in exported.out_avals] == 2 * [(1, 17, 23, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"bins": ()}, r"bins must be positive integers, at least one, got \(\)"),
        ({"bins": (1, 0)}, r"bins must be positive integers, at least one, got \(1, 0\)"),
        ({"pooling": "median"}, "pooling must be 'average' or 'max', got median"),
        ({"width": 0}, r"widths must be at least 1, got \(0, 256\)"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"normalization": "layer"}, "normalization must be 'batch', 'group', None or a callable .* got layer"),
    ],
)
def test_bad_fields_are_refused(options, message):
    with pytest.raises(ValueError, match=f"PSPNet: {message}"):
        pspnet.PSPNet(BACKBONE(), **{"classes": 2, **options})


def test_an_image_without_a_batch_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"PSPNet: images are \[batch, .*, got \(17, 23, 3\)"):
        TINY(BACKBONE(), 3).init(jax.random.key(0), image(1, 17, 23)[0])
