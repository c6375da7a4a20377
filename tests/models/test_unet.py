"""The U-Net and the MLP that remove noise: what they are told, sizes, the same under every transformation.

Their parity with diffusers is in tests/weights/test_diffusion_weights.py, DiT in test_dit.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import conditioning, denoiser, layers, unet
from jaxnets.training import precision

X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 8, 3)), jnp.float32)
T = jnp.array([0.2, 0.7])


def tiny(**options):
    return unet.UNet(**({"widths": (4, 8), "depth": 1, "attention_levels": (1,), "groups": 2} | options))


def small(**options):
    return denoiser.MLPDenoiser(**({"width": 8, "depth": 1} | options))


MODELS = {"unet": tiny, "mlp": small}


@functools.cache
def drawn(model, *, seed=0):
    """Variables, all of them random: nothing is hidden by a zero."""
    label = None if model.classes is None else 0
    shapes = jax.eval_shape(lambda key: model.init(key, X, T, label), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@functools.cache
def compiled(model):
    return jax.jit(model.apply, static_argnames="train")


def applied(model, *arguments, **options):
    """Compiled, also where the tests run without jit, as each operation is a compilation there."""
    with jax.disable_jit(False):
        return compiled(model)(drawn(model), *arguments, **options)


def message(function, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("outputs", [None, 6])
def test_at_the_start_the_output_is_zero_and_has_the_channels_asked_for(name, outputs, key):
    model = MODELS[name](outputs=outputs, classes=3)
    with jax.disable_jit(False):
        y = jax.jit(lambda key: model.init_with_output(key, X, T, jnp.array([0, 2])))(key)[0]
    np.testing.assert_array_equal(y, np.zeros((2, 4, 8, outputs or 3)))
    assert y.dtype == X.dtype


@pytest.mark.parametrize("name", MODELS)
def test_a_time_is_for_all_or_for_each(name):
    model = MODELS[name]()
    each = applied(model, X, T)
    for index in range(2):
        np.testing.assert_allclose(applied(model, X, T[index])[index], each[index], rtol=1e-4, atol=1e-5)
    assert np.abs(applied(model, X, T[0]) - applied(model, X, T[1])).max() > 1e-3
    np.testing.assert_allclose(applied(model, X, 0.5), applied(model.clone(time_scale=1), X, 500), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_no_label_is_the_null_class_of_each(name):
    model = MODELS[name](classes=3)
    null = applied(model, X, T)
    np.testing.assert_array_equal(applied(model, X, T, jnp.array([-1, -1])), null)
    np.testing.assert_array_equal(applied(model, X, T, -1), null)
    some = applied(model, X, T, jnp.array([2, -1]))
    np.testing.assert_allclose(some[1], null[1], rtol=1e-5, atol=1e-6)
    assert np.abs(some[0] - null[0]).max() > 1e-3
    np.testing.assert_allclose(applied(model, X, T, 2)[0], some[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_label_out_of_range_is_an_error_or_nan_when_it_is_known_only_at_run_time(name):
    model = MODELS[name](classes=3)
    for label in (3, -2, np.array([0, 3]), jnp.array([-2, 1])):
        words = message(model.apply, drawn(model), X, T, label)
        assert "a label must be from -1 to 2, where -1 is the null class, got " in words
        traced = applied(model, X, T, jnp.broadcast_to(jnp.asarray(label), (2,)))
        wrong = [not -1 <= each <= 2 for each in np.broadcast_to(label, 2)]
        np.testing.assert_array_equal(np.isnan(traced).all((1, 2, 3)), wrong)
        np.testing.assert_array_equal(np.isnan(traced).any((1, 2, 3)), wrong)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_told_is_checked(name):
    make = MODELS[name]

    def words(options, *arguments, **more):
        return message(make(**options).init, jax.random.key(0), *arguments, **more)

    assert "a label needs a number of classes, got label=1 with classes=None." in words({}, X, T, 1)
    certain = {"classes": 3, "null": False}
    assert "a label is needed where there is no null class, got label=None with null=False." in words(certain, X, T)
    assert "a label must be from 0 to 2, got -1." in words(certain, X, T, -1)
    assert "a label must be an integer, got float32." in words({"classes": 3}, X, T, jnp.array([0.0, 1.0]))
    assert "a scalar or one label for each of 2 examples, got (3,)." in words({"classes": 3}, X, T, jnp.array([0, 1, 2]))
    assert "t must be a scalar or one time for each of 2 examples, got (3,)." in words({}, X, jnp.zeros(3))
    assert "a previous estimate needs self_conditioning=True" in words({}, X, T, previous=X)
    assert "previous must have the shape (2, 4, 8, 3)" in words({"self_conditioning": True}, X, T, previous=X[:1])


@pytest.mark.parametrize("name", MODELS)
def test_no_previous_estimate_is_zeros(name):
    model = MODELS[name](self_conditioning=True)
    without = applied(model, X, T)
    np.testing.assert_array_equal(applied(model, X, T, previous=jnp.zeros_like(X)), without)
    assert np.abs(applied(model, X, T, previous=X) - without).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_in_training_only(name, key):
    model = MODELS[name](dropout=0.5)
    still = applied(model, X, T)
    np.testing.assert_array_equal(applied(model, X, T, rngs={"dropout": key}), still)
    moved = [applied(model, X, T, train=True, rngs={"dropout": jax.random.fold_in(key, i)}) for i in range(2)]
    assert np.abs(moved[0] - moved[1]).max() > 1e-3
    np.testing.assert_array_equal(applied(MODELS[name](), X, T, train=True), applied(MODELS[name](), X, T))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_is_its_members_and_every_parameter_learns(name):
    """Under vmap over variables; of gradients none is zero, of the null class's row neither."""
    model = MODELS[name](classes=2)
    members = [drawn(model), drawn(model, seed=1)]
    label = jnp.array([1, -1])

    def gradient(variables):
        return jax.grad(lambda v: (model.apply(v, X, T, label) ** 2).sum())(variables)

    with jax.disable_jit(False):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        outputs = jax.jit(jax.vmap(lambda v: model.apply(v, X, T, label)))(stacked)
        gradients = jax.jit(jax.vmap(gradient))(stacked)
        single = jax.jit(gradient)(members[1])
    for member, output in zip(members, outputs, strict=True):
        with jax.disable_jit(False):
            np.testing.assert_allclose(compiled(model)(member, X, T, label), output, rtol=1e-3, atol=1e-4)
    for leaf, own in zip(jax.tree.leaves(gradients), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(leaf[1], own, rtol=1e-3, atol=1e-3 * np.abs(own).max() + 1e-4)
    rows = gradients["params"]["condition"].pop("label")["embedding"]
    assert [bool(each) for each in np.abs(rows).max((0, 2)) > 1e-4] == [False, True, True]
    largest = {jax.tree_util.keystr(path): np.abs(leaf).max() for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
    silent = [path for path, each in largest.items() if each < 1e-5]
    assert silent == [path for path in largest if path.endswith("['key']['bias']")]  # softmax doesn't see it


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_float32_and_float64_stays(name):
    model = MODELS[name](classes=2)
    label, expected = jnp.array([1, -1]), applied(model, X, T, jnp.array([1, -1]))
    with jax.disable_jit(False):
        mixed = jax.jit(lambda v: precision.mixed(model.apply)(v, X, t=T, label=label))(drawn(model))
        assert jax.eval_shape(model.apply, drawn(model), X.astype(jnp.bfloat16), T).dtype == jnp.float32
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), drawn(model))
        assert jax.eval_shape(model.apply, half, X.astype(jnp.bfloat16), T).dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed, expected, atol=0.05 * np.abs(expected).max())
    with jax.enable_x64(True), jax.disable_jit(False):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), drawn(model))
        y = jax.jit(model.apply)(wide, jnp.asarray(np.asarray(X), jnp.float64), np.asarray(T), np.array([1, -1]))
        assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_without_jit_it_is_the_same(name):
    model = MODELS[name]()
    with jax.disable_jit():
        y = model.apply(drawn(model), X, T)
    np.testing.assert_allclose(y, applied(model, X, T), rtol=1e-4, atol=1e-5)


def test_one_exported_program_serves_all_platforms():
    model = tiny(classes=2)
    label = jnp.array([1, -1])
    with jax.disable_jit(False):
        apply = jax.jit(lambda x, t, label: model.apply(drawn(model), x, t, label))
        exported = jax.export.export(apply, platforms=["cpu", "cuda", "tpu"])(X, T, label)
        np.testing.assert_allclose(exported.call(X, T, label), apply(X, T, label), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_refused():
    words = message(tiny().init, jax.random.key(0), X[:, :3], T)
    assert words == "UNet: height and width must be multiples of 2 for 2 levels, got (3, 8)."


def test_vectors_are_examples_too():
    model = small()
    x = jnp.ones((5, 2))
    shapes = jax.eval_shape(lambda key: model.init_with_output(key, x, 0.5), jax.random.key(0))
    assert shapes[0].shape == (5, 2)
    assert "an input is [batch, ...] with at least one axis for an example" in message(
        small().init, jax.random.key(0), jnp.ones(3), 0.5
    )


@pytest.mark.parametrize(("tokens", "heads"), [(5, 1), (3, 2)])
def test_attention_written_out(tokens, heads):
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, tokens, heads, 4)).astype(np.float32)
    expected = np.empty_like(value)
    for b in range(2):
        for head in range(heads):
            logits = query[b, :, head] @ key[b, :, head].T / 2
            weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            expected[b, :, head] = weights @ value[b, :, head]
    np.testing.assert_allclose(layers.attend(*map(jnp.asarray, (query, key, value))), expected, rtol=1e-5, atol=1e-6)


def test_sinusoids_written_out():
    t = jnp.array([0.0, 3.0])
    found = conditioning.sinusoids(t, 5)
    np.testing.assert_allclose(found[0], [1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03), 0], rtol=1e-5, atol=1e-6)
    ddpm = conditioning.sinusoids(t, 4, shift=1, sine_first=True)
    np.testing.assert_allclose(ddpm[1], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_bad_shared_fields_are_refused(name):
    for options, words in (
        ({"classes": 0}, "classes must be None or at least 1, got 0"),
        ({"outputs": 0}, "outputs must be None or at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            MODELS[name](**options)


def test_bad_fields_are_refused():
    for options, words in (
        ({"widths": ()}, "widths must be positive integers"),
        ({"attention_levels": (2,)}, "attention_levels must be indices of the 2 widths, from 0, got"),
        ({"head_width": 3}, r"head_width must divide \[8, 8\], the widths with attention, got 3"),
        ({"time_width": 0}, "time_width must be at least 1"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(**options)
    with pytest.raises(ValueError, match="MLPDenoiser: width must be at least 1, got 0"):
        small(width=0)
