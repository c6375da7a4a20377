"""The gradient check passes right gradients of many kinds, and names the leaf of a wrong one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import backprop

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), "float32")
TARGETS = jnp.eye(2)[jnp.arange(6) % 2]


def network(seed=1):
    rng = np.random.default_rng(seed)
    return {
        "hidden": backprop.Dense(rng.normal(size=(3, 4)).astype("float32"), np.zeros(4, "float32")),
        "output": backprop.Dense(rng.normal(size=(4, 2)).astype("float32"), np.zeros(2, "float32")),
    }


def predict(params, scale=lambda bias: bias):
    z = X @ params["hidden"].kernel
    h = jnp.tanh(z + jnp.broadcast_to(scale(params["hidden"].bias), z.shape))
    logits = h @ params["output"].kernel
    return logits + jnp.broadcast_to(params["output"].bias, logits.shape)


def loss(params):
    return optax.softmax_cross_entropy(predict(params), TARGETS).mean()


def wrong_by(factor):
    """The identity with a planted bug: its gradient is too large by `factor`."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (g * factor,))
    return identity


def wrong_loss(params, factor):
    return optax.softmax_cross_entropy(predict(params, wrong_by(factor)), TARGETS).mean()


def test_a_right_gradient_passes_in_float64_with_x64_off(key):
    report = backprop.check_gradients(loss, network(), key=key)
    assert report.ok(1e-7)
    assert report.worst.error < 1e-7
    assert 1.9 < report.slope < 2.1
    assert len(report.leaves) == 4
    assert jnp.ones(1, float).dtype == "float32"


@pytest.mark.parametrize("factor", [1 + 1e-4, -1.0])
def test_a_wrong_gradient_is_caught_and_its_leaf_named(key, factor):
    report = backprop.check_gradients(lambda p: wrong_loss(p, factor), network(), key=key)
    assert not report.ok()
    assert report.worst.name == "['hidden'].bias"
    assert report.leaves[1].error < 1e-7, "the other leaves are right"
    np.testing.assert_allclose(report.worst.error, abs(factor - 1) / max(abs(factor), 1), rtol=1e-3)
    assert report.slope < 1.1
    assert str(report).startswith("worst leaf ['hidden'].bias: relative error ")
    assert "['output'].kernel" in str(report)


def test_a_gradient_written_by_hand_can_be_checked(key):
    def gradient(params):
        _, (hidden, output) = backprop.two_layer_value_and_gradient((params["hidden"], params["output"]), X, TARGETS)
        return {"hidden": hidden, "output": output}

    check = {"params": network(), "key": key, "directions": 2}
    assert backprop.check_gradients(loss, gradient=gradient, **check).ok()
    descent = backprop.check_gradients(loss, gradient=lambda p: jax.tree.map(jnp.negative, gradient(p)), **check)
    assert [leaf.error for leaf in descent.leaves] == pytest.approx([2] * 4), "minus the gradient"


def test_only_floating_leaves_are_moved_and_any_pytree_goes(key):
    params = [jnp.ones((2, 2), "bfloat16"), {"index": jnp.array([1, 0])}, 3.0, jax.random.key(3), None]

    def loss(params):
        weights, other, scale, seed, _ = params
        assert weights.dtype == "float64"
        assert other["index"].dtype == "int32"
        noise = jax.random.uniform(seed, (2, 2), weights.dtype)
        return jnp.sum(scale**2 * (weights + noise)[other["index"]] ** 3), "auxiliary"

    report = backprop.check_gradients(loss, params, key=key, has_aux=True, directions=2)
    assert report.ok()
    assert {leaf.name for leaf in report.leaves} == {"[0]", "[2]"}


def test_complex_parameters_follow_the_convention_of_jax(key):
    report = backprop.check_gradients(lambda z: jnp.sum(jnp.abs(z * (1 + 2j)) ** 3), jnp.ones(3) * (1 - 1j), key=key)
    assert report.ok()
    assert report.worst.gradient > 1


def test_a_linear_loss_has_no_remainder_and_an_unused_leaf_no_error(key):
    report = backprop.check_gradients(lambda p: jnp.sum(p["used"]), {"used": jnp.ones(3), "unused": jnp.ones(2)}, key=key)
    assert report.ok(1e-8)
    assert report.slope == float("inf")


def test_a_gradient_that_is_zero_but_for_round_off_is_no_error(key):
    """A bias before a normalization: both sides are noise, whose relative error would be 1."""

    def loss(params):
        z = X @ params["kernel"]
        z = z + jnp.broadcast_to(params["bias"], z.shape)
        return jnp.sum((z - z.mean(0, keepdims=True)) ** 3)

    params = {"kernel": network()["hidden"].kernel, "bias": jnp.full(4, 0.3)}
    assert backprop.check_gradients(loss, params, key=key).ok()


def test_at_a_minimum_where_loss_and_gradient_are_zero_round_off_is_no_error(key):
    def loss(params):
        target = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), network(), params)
        return jnp.sum((predict(params) - predict(target)) ** 2)

    assert backprop.check_gradients(loss, network(), key=key).ok()


def test_the_kink_of_relu_is_reported(key):
    """At 0 the difference is the mean of both slopes, 1/2, and JAX's gradient 0: see the docstring."""
    report = backprop.check_gradients(lambda p: jnp.sum(jax.nn.relu(p["x"])), {"x": jnp.zeros(8)}, key=key)
    assert report.worst.error == pytest.approx(1)
    assert report.slope < 1.1
    away = backprop.check_gradients(lambda p: jnp.sum(jax.nn.relu(p["x"]) ** 2), {"x": jnp.ones(1)}, key=key)
    assert away.ok()


def test_a_nan_gradient_is_the_worst(key):
    nan = backprop.check_gradients(
        lambda p: jnp.sum(jnp.where(p["a"] == 0, 0, jnp.sqrt(p["a"]))) + jnp.sum(wrong_by(2.0)(p["b"]) ** 2),
        {"a": jnp.zeros(2), "b": jnp.ones(2)},
        key=key,
    )
    assert nan.worst == ("['a']", float("inf"), nan.worst.gradient, nan.worst.difference)
    assert np.isnan(nan.slope)
    assert not nan.ok(1e9, slope=0.0)


def test_a_loss_in_float32_is_checked_to_what_float32_can_tell(key):
    def rounded(params):
        return jnp.sum(params["w"].astype("float32") ** 3)

    report = backprop.check_gradients(rounded, {"w": jnp.array([0.7, -1.1])}, key=key)
    assert report.ok(1e-2)


def test_bad_arguments_are_named(key):
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        backprop.check_gradients(loss, network(), key=key, directions=0)
    with pytest.raises(ValueError, match="no floating-point leaf"):
        backprop.check_gradients(lambda p: 0.0, {"n": 3}, key=key)
    with pytest.raises(ValueError, match="finite real scalar, got nan"):
        backprop.check_gradients(lambda p: jnp.sum(p) * jnp.nan, jnp.ones(2), key=key)
    for not_a_loss in (lambda p: p, lambda p: 3, lambda p: p.sum() * 1j):
        with pytest.raises(ValueError, match="the loss must be a finite real scalar"):
            backprop.check_gradients(not_a_loss, jnp.ones(2), key=key)
    with pytest.raises(ValueError, match=r"gradient of \['a'\] must have shape \(2,\), got \(3,\)"):
        backprop.check_gradients(lambda p: p["a"].sum(), {"a": jnp.ones(2)}, key=key, gradient=lambda p: {"a": jnp.ones(3)})
