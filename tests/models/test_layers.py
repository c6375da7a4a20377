"""Statistical bounds are five standard errors: with n draws sd(mean) = σ / √n, sd(variance) = σ² √((kurtosis - 1) / n)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxnets.models import layers, mlp

SHAPE = (3, 2, 50, 40)  # a convolution's kernel: fan-in 300, 12,000 draws


def assert_moments(x, variance, kurtosis):
    x = np.asarray(x, np.float64).ravel()
    assert abs(x.mean()) < 5 * np.sqrt(variance / x.size)
    assert abs(x.var() - variance) < 5 * variance * np.sqrt((kurtosis - 1) / x.size)


def assert_distributed(x, distribution):
    assert scipy.stats.kstest(np.asarray(x, np.float64).ravel(), distribution.cdf).pvalue > 1e-6


def test_scaled_normal_has_its_gain(jit, key):
    draw = jit(lambda k: layers.scaled_normal(np.sqrt(2.0))(k, SHAPE, jnp.float32))(key)
    assert_moments(draw, 2 / 300, kurtosis=3)
    assert_distributed(draw, scipy.stats.norm(scale=np.sqrt(2 / 300)))


def test_torch_uniform_is_uniform_up_to_the_root_of_the_fan_in(key):
    kernel, bias = layers.torch_uniform()(key, SHAPE), layers.torch_uniform(fan_in=300)(key, (5000,))
    for draw in (kernel, bias):
        assert np.abs(draw).max() <= 1 / np.sqrt(300)
        assert_moments(draw, 1 / 900, kurtosis=1.8)
        assert_distributed(draw, scipy.stats.uniform(-1 / np.sqrt(300), 2 / np.sqrt(300)))


def test_torch_defaults_draws_kernels_and_their_biases_and_nothing_else(jit, key):
    model, x = mlp.MLP(widths=(400, 300), normalization="batch"), jnp.zeros((1, 100))
    params = model.init(key, x)["params"]
    drawn = jit(layers.torch_defaults)(jax.random.key(1), params)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
    jax.tree.map(np.testing.assert_array_equal, drawn["BatchNorm_0"], params["BatchNorm_0"])
    for name, fan_in in (("Dense_0", 100), ("Dense_1", 400)):
        for leaf in drawn[name].values():
            assert_distributed(leaf, scipy.stats.uniform(-1 / np.sqrt(fan_in), 2 / np.sqrt(fan_in)))
    assert not np.isin(drawn["Dense_0"]["bias"], drawn["Dense_0"]["kernel"]).all()  # a key for each


def test_identity_passes_signals_on(key):
    np.testing.assert_array_equal(layers.identity(0.5)(key, (3, 3)), 0.5 * np.eye(3))
    np.testing.assert_array_equal(layers.identity()(None, (2, 3)), np.eye(2, 3))
    signal, kernel = jax.random.normal(key, (1, 7, 2)), layers.identity()(key, (3, 2, 2))
    convolved = jax.lax.conv_general_dilated(signal, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    np.testing.assert_array_equal(convolved, signal)


def test_sparse_gives_every_unit_its_connections(jit, key):
    kernel = jit(lambda k: layers.sparse(15, scale=0.5)(k, SHAPE, jnp.float32))(key)
    used = np.asarray(kernel).reshape(300, 40) != 0
    np.testing.assert_array_equal(used.sum(0), 15)
    assert_distributed(kernel[kernel != 0], scipy.stats.norm(scale=0.5))
    assert len({tuple(np.flatnonzero(column)) for column in used.T}) == 40  # each unit its own choice
    counts = used.sum(1)  # over inputs: 40 draws of 15 / 300, so mean 2 and variance 40 * 0.05 * 0.95
    assert scipy.stats.chi2.sf(((counts - 2) ** 2).sum() / (40 * 0.05 * 0.95), 299) > 1e-6


def test_lsuv_gives_every_layer_unit_variance(jit, key):
    x = 3 * jax.random.normal(key, (64, 10))
    model = mlp.MLP(widths=(20, 20, 5), activation=jnp.tanh, kernel_init=jax.nn.initializers.orthogonal())
    variables = jit(lambda v: layers.lsuv(model, v, x))(model.init(key, x))
    _, captured = model.apply(variables, x, capture_intermediates=True)
    for i in range(3):
        np.testing.assert_allclose(captured["intermediates"][f"Dense_{i}"]["__call__"][0].var(), 1, rtol=1e-4)


def test_lsuv_leaves_a_silent_layer_alone(key):
    model = mlp.MLP(widths=(4, 2), kernel_init=jax.nn.initializers.zeros)
    variables = model.init(key, jnp.ones((3, 5)))
    jax.tree.map(np.testing.assert_array_equal, layers.lsuv(model, variables, jnp.ones((3, 5))), variables)


@pytest.mark.parametrize(
    "initializer", [layers.scaled_normal(1.0), layers.identity(), layers.sparse(2), layers.torch_uniform()]
)
def test_the_type_asked_for_is_the_type_given(key, initializer):
    assert initializer(key, (4, 4), jnp.bfloat16).dtype == jnp.bfloat16
    assert jax.vmap(lambda k: initializer(k, (4, 4), jnp.float32))(jax.random.split(key, 2)).shape == (2, 4, 4)


def test_bad_values_are_refused(key):
    with pytest.raises(ValueError, match=r"scaled_normal: gain must be positive, got 0.0"):
        layers.scaled_normal(0.0)
    with pytest.raises(ValueError, match="sparse: connections must be at least 1, got 0"):
        layers.sparse(0)
    with pytest.raises(ValueError, match=r"sparse: connections must be at most the fan-in 4 .*got 15"):
        layers.sparse()(key, (4, 2))
