"""Gradient-flow diagnostics on Flax models and on plain trees, against closed forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import backprop


class Network(nn.Module):
    depth: int = 2

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(3, name="shared")
        x = shared(shared(x))
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(3)(x))
        self.sow("intermediates", "features", x)
        return x.sum(-1)


X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), "float32")


def test_norms_per_layer_equal_their_closed_form():
    params = {"a": {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([4.0])}, "b": {"c": {"scale": jnp.zeros(2)}}}
    grads = {"a": {"kernel": jnp.array([0.0, 1.0]), "bias": jnp.array([0.0])}, "b": {"c": {"scale": jnp.ones(2)}}}
    flow = backprop.gradient_flow(params, grads)
    assert list(flow) == ["a", "b/c"]
    np.testing.assert_allclose(flow["a"], (5, 1, 0.2), rtol=1e-6)
    np.testing.assert_allclose(flow["b/c"], (0, 2**0.5, np.inf), rtol=1e-6)


def test_layers_keep_the_order_of_their_numbers_under_jit_and_vmap(jit):
    params = {f"Dense_{i}": {"kernel": jnp.full((2, 3), 1.0 + i)} for i in range(11)}  # two members
    flow = jit(jax.vmap(backprop.gradient_flow))(params, params)
    assert list(flow) == [f"Dense_{i}" for i in range(11)]
    np.testing.assert_allclose(flow["Dense_10"].weight, [11 * 3**0.5] * 2, rtol=1e-6)


def test_flow_of_an_ensemble_of_flax_models_equals_that_of_each_member():
    model = Network()
    params = jax.jit(jax.vmap(lambda key: model.init(key, X)["params"]))(jax.random.split(jax.random.key(0), 2))
    grads = jax.jit(jax.vmap(jax.grad(lambda p: model.apply({"params": p}, X).mean())))(params)
    flow = jax.vmap(backprop.gradient_flow)(params, grads)
    weights, gradients = (np.append(tree["Dense_1"]["kernel"][1], tree["Dense_1"]["bias"][1]) for tree in (params, grads))
    expected = np.linalg.norm(weights), np.linalg.norm(gradients), np.linalg.norm(gradients) / np.linalg.norm(weights)
    np.testing.assert_allclose([part[1] for part in flow["Dense_1"]], expected, rtol=1e-6)


def test_bfloat16_norms_are_summed_in_float32():
    flow = backprop.gradient_flow({"w": jnp.ones(1000, "bfloat16")}, {"w": jnp.ones(1000, "bfloat16")})
    np.testing.assert_allclose(flow["/"].weight, 1000**0.5, rtol=1e-6)


def test_dead_and_saturated_units_are_counted():
    x = jnp.array([[-1.0, 2.0, 0.5, -4.0], [-3.0, -1.0, 0.995, 4.0]])
    relu = backprop.activation_flow({"layer": x}, activation=jax.nn.relu)["layer"]
    assert relu.dead == 0.25
    np.testing.assert_allclose(relu.mean, np.maximum(x, 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(relu.std, np.maximum(x, 0).std(), rtol=1e-6)
    assert relu.saturated == 0
    tanh = backprop.activation_flow([x], activation=jnp.tanh, bounds=(-1.0, 1.0))["0"]
    np.testing.assert_allclose(tanh.saturated, (np.abs(np.tanh(x)) >= 0.99).mean(), rtol=1e-6)
    assert tanh.dead == 0
    assert backprop.activation_flow([jax.nn.relu(x)], bounds=(0.0, np.inf), margin=0.0)["0"].saturated == 4 / 8


def test_channels_of_images_are_the_units():
    x = jnp.zeros((2, 4, 4, 3)).at[1, 2, 3, 1].set(1.0)
    assert backprop.activation_flow({"conv": x})["conv"].dead == pytest.approx(2 / 3)


def test_captured_intermediates_of_a_flax_model(jit):
    model = Network()
    variables = jax.jit(model.init)(jax.random.key(0), X)

    def flow(x):
        _, state = model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
        return backprop.activation_flow(state)

    layers = jit(flow)(X)
    assert list(layers) == ["/", "Dense_0", "Dense_1", "features", "shared", "shared/1"]
    kernel, bias = variables["params"]["shared"]["kernel"], variables["params"]["shared"]["bias"][None]
    second = (X @ kernel + bias) @ kernel + bias
    np.testing.assert_allclose(layers["shared/1"].std, second.std(), rtol=1e-6)
    ensemble = jit(jax.vmap(flow))(jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(ensemble["shared/1"].std, [second.std(), 2 * second.std()], rtol=1e-6)


def test_outputs_that_are_tuples_and_integers_are_told_apart():
    tree = {"rnn": {"__call__": ((jnp.ones(2), jnp.zeros(2)), (jnp.ones(2), 2 * jnp.ones(2)))}, "steps": (jnp.array(3),)}
    flow = backprop.activation_flow(tree)
    assert {name: float(layer.mean) for name, layer in flow.items()} == {"rnn/0": 1, "rnn/1": 0, "rnn/1/0": 1, "rnn/1/1": 2}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="gradient_flow: params and grads must have the same structure"):
        backprop.gradient_flow({"a": X}, {"b": X})
    with pytest.raises(ValueError, match="no floating array found"):
        backprop.activation_flow({"intermediates": {}})
    with pytest.raises(ValueError, match=r"bounds must rise .* got \(1.0, -1.0\)"):
        backprop.activation_flow([X], bounds=(1.0, -1.0))
