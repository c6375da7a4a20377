"""DiT: a fresh one is zero, positions, what it is told, the same under every transformation.

Its parity with a PyTorch version is in tests/weights/test_diffusion_weights.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import dit
from jaxnets.training import precision

X = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 8, 3)), jnp.float32)
T = jnp.array([0.2, 0.7])


def tiny(**options):
    return dit.DiT(**({"width": 8, "depth": 1, "heads": 2} | options))


@functools.cache
def drawn(model, *, seed=0):
    """Variables, all of them random: nothing is hidden by a zero."""
    shapes = jax.eval_shape(lambda key: model.init(key, X, T), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


@functools.cache
def compiled(model):
    return jax.jit(model.apply, static_argnames="train")


def applied(model, *arguments, **options):
    with jax.disable_jit(False):
        return compiled(model)(drawn(model), *arguments, **options)


@pytest.mark.parametrize(
    ("make", "patch", "millions"), [(dit.dit_s, 2, 33), (dit.dit_b, 4, 130), (dit.dit_l, 4, 458), (dit.dit_xl, 2, 675)]
)
def test_the_networks_have_the_sizes_of_the_paper(make, patch, millions):
    """Peebles & Xie (2023), tables 1 and 4: latents of 32x32x4, learned variances, ImageNet's classes."""
    model = make(patch=patch, classes=1000, outputs=8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), 0.5)
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, abs=1)


def test_at_the_start_the_output_is_zero_and_blocks_pass_their_input_on(key):
    model = tiny(classes=3, outputs=6)
    with jax.disable_jit(False):
        y, variables = jax.jit(lambda key: model.init_with_output(key, X, T))(key)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.float32)
        block = dit.Block(2, 16, 0.0)
        passed = jax.jit(lambda key: block.init_with_output(key, x, x[:, 0])[0])(key)
    np.testing.assert_array_equal(y, np.zeros((2, 4, 8, 6)))
    np.testing.assert_array_equal(passed, x)
    assert set(variables) == {"params"}


def test_positions_tell_columns_then_rows():
    found = np.asarray(dit.positions(2, 3, 8))[0].reshape(2, 3, 8)
    np.testing.assert_allclose(found[1, 2, :4], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], rtol=1e-5)
    np.testing.assert_allclose(found[1, 2, 4:], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], rtol=1e-5)


def test_patches_return_to_their_places():
    """A change of one patch of the input, whose position and neighbors don't matter without attention's weights, is local."""
    model = tiny(patch=2)
    variables = jax.tree.map(jnp.array, drawn(model))
    variables["params"]["block0"]["project"] = jax.tree.map(jnp.zeros_like, variables["params"]["block0"]["project"])
    with jax.disable_jit(False):
        before, after = (compiled(model)(variables, x, T) for x in (X, X.at[1, 2:4, 4:6, 0].add(1.0)))
    changed = np.abs(after - before).max(-1) > 1e-6
    assert changed[1, 2:4, 4:6].all()
    assert changed.sum() == 4


def test_times_labels_and_previous_estimates():
    """As of every network of `conditioning`, whose errors are tested in test_unet.py."""
    model = tiny(classes=3, self_conditioning=True)
    null = applied(model, X, T)
    np.testing.assert_array_equal(applied(model, X, T, jnp.array([-1, -1])), null)
    np.testing.assert_array_equal(applied(model, X, T, previous=jnp.zeros_like(X)), null)
    for index in range(2):
        np.testing.assert_allclose(applied(model, X, T[index])[index], null[index], rtol=1e-4, atol=1e-5)
    for other in (applied(model, X, T, 1), applied(model, X, T, previous=X), applied(model, X, 0.9)):
        assert np.abs(other - null).max() > 1e-3
    with pytest.raises(ValueError, match="DiT: a label must be from -1 to 2, where -1 is the null class, got 3"):
        model.apply(drawn(model), X, T, 3)
    with pytest.raises(ValueError, match="DiT: a label is needed where there is no null class"):
        tiny(classes=3, null=False).init(jax.random.key(0), X, T)


def test_dropout_is_in_training_only(key):
    model = tiny(dropout=0.5)
    still = applied(model, X, T)
    np.testing.assert_array_equal(applied(model, X, T, rngs={"dropout": key}), still)
    assert np.abs(applied(model, X, T, train=True, rngs={"dropout": key}) - still).max() > 1e-3


def test_an_ensemble_is_its_members_and_every_parameter_learns():
    model = tiny()
    members = [drawn(model), drawn(model, seed=1)]

    def both(variables):
        y, transposed = jax.vjp(lambda v: model.apply(v, X, T), variables)
        return y, *transposed(y)

    with jax.disable_jit(False):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        outputs, gradients = jax.jit(jax.vmap(both))(stacked)
        output, gradient = jax.jit(both)(members[1])
    np.testing.assert_allclose(outputs[1], output, rtol=1e-3, atol=1e-4)
    for leaf, own in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(leaf[1], own, rtol=1e-3, atol=1e-3 * np.abs(own).max() + 1e-4)
        assert np.abs(own).max() > 1e-4


def test_bfloat16_is_near_float32_and_float64_stays():
    model = tiny()
    expected = applied(model, X, T)
    with jax.disable_jit(False):
        mixed = jax.jit(lambda v: precision.mixed(model.apply)(v, X, t=T))(drawn(model))
    np.testing.assert_allclose(mixed, expected, atol=0.05 * np.abs(expected).max())
    with jax.enable_x64(True), jax.disable_jit(False):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), drawn(model))
        y = jax.jit(model.apply)(wide, jnp.asarray(np.asarray(X), jnp.float64), np.asarray(T))
        assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())


def test_without_jit_it_is_the_same():
    model = tiny()
    with jax.disable_jit():
        y = model.apply(drawn(model), X, T)
    np.testing.assert_allclose(y, applied(model, X, T), rtol=1e-4, atol=1e-5)


def test_one_exported_program_serves_all_platforms():
    model = tiny()
    with jax.disable_jit(False):
        apply = jax.jit(lambda x, t: model.apply(drawn(model), x, t))
        exported = jax.export.export(apply, platforms=["cpu", "cuda", "tpu"])(X, T)
        np.testing.assert_allclose(exported.call(X, T), apply(X, T), rtol=1e-4, atol=1e-5)


def test_bad_sizes_and_fields_are_refused():
    with pytest.raises(ValueError, match=r"DiT: height and width must be multiples of the patch 2, got \(3, 8\)"):
        tiny().init(jax.random.key(0), X[:, :3], T)
    for options, words in (
        ({"heads": 3}, "heads must divide the width 8, got 3"),
        ({"width": 6}, "width must be a multiple of 4, got 6"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"expansion": 0}, "expansion must be positive, got 0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(**options)
