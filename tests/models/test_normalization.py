"""Batch and group normalization: their formulas, running statistics as PyTorch's, split batches, few values, few digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import layers
from jaxnets.training import sharding

# The variables are NumPy arrays, as those of `weights.torch.load` are.


def batch(*shape, seed=0, mean=0.0):
    return jnp.asarray(mean + np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def variables(channels, *, mean=None, seed=1):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(channels) if mean is None else np.full(channels, mean)
    arrays = {"scale": rng.standard_normal(channels), "bias": rng.standard_normal(channels)}
    statistics = {"mean": means, "var": rng.uniform(0.5, 2, channels)}
    return jax.tree.map(np.float32, {"params": arrays, "batch_stats": statistics})


def normalized(x, mean, var, params, epsilon=1e-5):
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["bias"]


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 3)])
def test_batch_statistics_normalize_and_move_the_running_ones(jit, shape):
    """The running variance is unbiased, that which normalizes isn't: as in PyTorch."""
    x, state, norm = batch(*shape), variables(3), layers.BatchNorm(momentum=0.3)
    y, updated = jit(lambda v, x: norm.apply(v, x, train=True, mutable=["batch_stats"]))(state, x)
    values = np.asarray(x, np.float64).reshape(-1, 3)
    expected = normalized(np.asarray(x), values.mean(0), values.var(0), state["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    before, after = state["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(after["mean"], 0.7 * before["mean"] + 0.3 * values.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.7 * before["var"] + 0.3 * values.var(0, ddof=1), rtol=1e-5)


def test_running_statistics_normalize_when_not_training(jit):
    x, state = batch(4, 2, 2, 3), variables(3)
    y = jit(layers.BatchNorm(epsilon=0.1).apply)(state, x)
    statistics = state["batch_stats"]
    expected = normalized(np.asarray(x), statistics["mean"], statistics["var"], state["params"], 0.1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_one_value_per_channel_uses_the_running_statistics_and_leaves_them(jit):
    x, state, norm = batch(1, 1, 1, 3), variables(3), layers.BatchNorm()
    y, updated = jit(lambda v, x: norm.apply(v, x, train=True, mutable=["batch_stats"]))(state, x)
    np.testing.assert_allclose(y, norm.apply(state, x), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], state["batch_stats"])


def test_the_first_look_at_a_batch_moves_nothing(key):
    state = layers.BatchNorm().init(key, batch(8, 3), train=True)
    assert state["batch_stats"]["mean"].tolist() == [0, 0, 0]
    assert state["batch_stats"]["var"].tolist() == [1, 1, 1]


def test_statistics_over_a_named_axis_are_those_of_the_whole_batch():
    """In values, running statistics and gradients, also where each part has one value per channel."""
    x, state = batch(4, 1, 1, 3), variables(3)
    weight = batch(4, 1, 1, 3, seed=2)

    def loss(norm):
        def of(x, weight):
            y, updated = norm.apply(state, x, train=True, mutable=["batch_stats"])
            return (y * weight).sum(), (y, updated["batch_stats"])

        return of

    parts = jax.vmap(jax.value_and_grad(loss(layers.BatchNorm(axis_name="part")), has_aux=True), axis_name="part")
    (_, (y, statistics)), gradient = parts(x[:, None], weight[:, None])
    (_, (whole, expected)), whole_gradient = jax.value_and_grad(loss(layers.BatchNorm()), has_aux=True)(x, weight)
    np.testing.assert_allclose(y[:, 0], whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[:, 0], whole_gradient, rtol=1e-4, atol=1e-5)
    for each in range(4):
        jax.tree.map(lambda s, e, i=each: np.testing.assert_allclose(s[i], e, rtol=1e-5), statistics, expected)


def test_parameters_are_made_outside_of_the_named_axis():
    norm, x = layers.BatchNorm(axis_name="part"), batch(4, 3)
    for train in (True, False):
        assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), x, train=train)) == jax.tree.map(jnp.shape, variables(3))


def test_under_jit_the_statistics_of_an_array_split_over_devices_are_those_of_the_whole():
    x, state, norm = batch(4, 2, 3), variables(3), layers.BatchNorm()
    with jax.disable_jit(False):
        train = jax.jit(lambda v, x: norm.apply(v, x, train=True, mutable=["batch_stats"]))
        of_split, of_whole = train(state, sharding.shard(x, sharding.make_mesh())), train(state, x)
    assert len(of_split[0].sharding.device_set) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of_split, of_whole)


def test_a_mean_far_from_zero_costs_no_digits_once_it_is_known():
    x, state = batch(64, 3, mean=1e4), variables(3, mean=1e4)
    y, updated = layers.BatchNorm().apply(state, x, train=True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, normalized(values, values.mean(0), values.var(0), state["params"]), atol=5e-3)
    var = 0.9 * state["batch_stats"]["var"] + 0.1 * values.var(0, ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-4)


def test_bfloat16_is_normalized_with_float32_statistics():
    x, state = batch(256, 3, mean=3.0).astype(jnp.bfloat16), variables(3)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), state["params"])
    y, updated = layers.BatchNorm().apply({**state, "params": params}, x, train=True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["mean"].dtype == jnp.float32
    mean = 0.9 * state["batch_stats"]["mean"] + 0.1 * values.mean(0)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-5)
    expected = normalized(values, values.mean(0), values.var(0), jax.tree.map(lambda a: np.asarray(a, np.float64), params))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (64, 32), (48, 16), (3, 1)])
def test_group_normalization_normalizes_groups_of_each_image(channels, groups):
    """32 groups, or the most of the powers of two below that divides the channels."""
    x = batch(2, 3, 2, channels)
    state = {"params": variables(channels)["params"]}
    y = layers.normalization("group", channels).apply(state, x, train=True)
    grouped = np.asarray(x, np.float64).reshape(2, 6, groups, channels // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * state["params"]["scale"] + state["params"]["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_mean_far_from_zero_costs_group_normalization_no_digits(jit):
    """But for those that a float32 input near 1000 has not."""
    x, params = batch(2, 4, 4, 6, mean=1e3), variables(6)["params"]
    y = jit(layers.normalization("group", 6).apply)({"params": params}, x)
    grouped = np.asarray(x, np.float64).reshape(2, 16, 2, 3)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_no_normalization_is_the_identity():
    x = batch(2, 3)
    assert layers.normalization(None, 3)(x, train=True) is x
