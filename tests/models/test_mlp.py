import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import optimizers
from jaxnets.models import layers, mlp


def features(key, batch=4, size=6):
    return jax.random.normal(key, (batch, size))


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_a_small_mlp_is_its_formula(jit, key):
    x, model = features(key), mlp.MLP(widths=(5, 5, 3), activation=jnp.tanh, bias_init=jax.nn.initializers.normal(1.0))
    variables = model.init(key, x)
    weights = [[np.asarray(variables["params"][f"Dense_{i}"][n]) for n in ("kernel", "bias")] for i in range(3)]
    h = np.asarray(x)
    for kernel, bias in weights[:-1]:
        h = np.tanh(h @ kernel + bias)
    np.testing.assert_allclose(jit(model.apply)(variables, x), h @ weights[2][0] + weights[2][1], rtol=1e-5, atol=1e-5)


def test_without_bias_there_is_none(key):
    variables = mlp.MLP(widths=(5, 3), use_bias=False).init(key, features(key))
    assert shapes(variables) == {"params": {"Dense_0": {"kernel": (6, 5)}, "Dense_1": {"kernel": (5, 3)}}}


def test_a_residual_layer_adds_its_input_where_the_widths_agree(key):
    x = features(key)
    model = mlp.MLP(widths=(5, 5, 3), residual=True, kernel_init=layers.identity())
    variables = model.init(key, x)
    first = jax.nn.relu(x[:, :5])  # 6 -> 5: no shortcut; 5 -> 5 with the identity: twice what came in
    expected = 2 * first @ variables["params"]["Dense_2"]["kernel"]
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_normalizes_each_example_before_the_activation(key):
    x, model = features(key), mlp.MLP(widths=(5, 3), normalization="layer", activation=lambda h: h)
    _, captured = model.apply(model.init(key, x), x, capture_intermediates=True)
    hidden = captured["intermediates"]["hidden_0"][0]
    np.testing.assert_allclose(hidden.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(hidden.std(-1), 1, rtol=1e-3)


def test_batch_norm_uses_the_batch_in_training_and_its_running_statistics_otherwise(jit, key):
    x, model = features(key, batch=16), mlp.MLP(widths=(5, 3), normalization="batch")
    variables = model.init(key, x)
    _, updated = jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    h = np.asarray(x @ variables["params"]["Dense_0"]["kernel"])
    running = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * h.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * h.var(0), rtol=1e-4)
    logits, same = model.apply({**variables, **updated}, x, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, same, updated)
    expected = np.maximum((h - running["mean"][None]) / np.sqrt(running["var"] + 1e-5)[None], 0)
    np.testing.assert_allclose(logits, expected @ variables["params"]["Dense_1"]["kernel"], rtol=1e-4, atol=1e-5)


def test_dropout_acts_only_in_training_and_by_its_key(key):
    x, model = features(key), mlp.MLP(widths=(64, 3), dropout=0.25)
    variables = model.init(key, x)
    plain = mlp.MLP(widths=(64, 3)).apply(variables, x)
    np.testing.assert_array_equal(model.apply(variables, x), plain)

    def dropped(seed):
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(dropped(1), dropped(1))
    assert not np.allclose(dropped(1), dropped(2))
    many = jax.vmap(lambda k: model.apply(variables, x, train=True, rngs={"dropout": k}))(jax.random.split(key, 400))
    error = np.asarray(many.mean(0) - plain) / np.asarray(many.std(0)) * np.sqrt(400)  # the mean is unbiased
    assert np.abs(error).max() < 5


def test_an_image_is_flattened_after_the_first_axis_or_as_feature_axes_says(key):
    images = jax.random.normal(key, (4, 3, 2, 1))
    flat = images.reshape(4, 6)
    model = mlp.MLP(widths=(5, 3))
    variables = model.init(key, images)
    expected = model.apply(variables, flat)
    assert expected.shape == (4, 3)
    np.testing.assert_array_equal(model.apply(variables, images), expected)
    np.testing.assert_allclose(model.apply(variables, flat[0]), expected[0], rtol=1e-5)
    by_image, by_row = mlp.MLP(widths=(5, 3), feature_axes=3), mlp.MLP(widths=(5, 3), feature_axes=1)
    each = jax.vmap(lambda image: by_image.apply(variables, image))(images)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    rows = by_row.apply(variables, flat.reshape(2, 2, 6))
    np.testing.assert_allclose(rows.reshape(4, 3), expected, rtol=1e-5, atol=1e-6)


def test_a_gated_activation_halves_what_the_next_layer_gets(key):
    variables = mlp.MLP(widths=(8, 8, 3), activation=jax.nn.glu, residual=True).init(key, features(key))
    assert [variables["params"][f"Dense_{i}"]["kernel"].shape for i in range(3)] == [(6, 8), (4, 8), (4, 3)]


def test_captured_intermediates_name_every_layer(key):
    x, model = features(key), mlp.MLP(widths=(5, 5, 3))
    variables = model.init(key, x)
    assert set(variables) == {"params"}
    logits, captured = model.apply(variables, x, capture_intermediates=True)
    captured = captured["intermediates"]
    for i in range(2):
        np.testing.assert_array_equal(captured[f"hidden_{i}"][0], jax.nn.relu(captured[f"Dense_{i}"]["__call__"][0]))
    np.testing.assert_array_equal(captured["Dense_2"]["__call__"][0], logits)


def test_the_variance_stays_from_layer_to_layer(key):
    """relu keeps half of E[z^2] and the hidden kernels double it again (He); the linear output layer does not.

    A layer's mean square over 512 units has a relative standard error of at most sqrt(2 / 512); the layers' errors add up.
    """
    x, model = jax.random.normal(key, (16, 512)), mlp.MLP(widths=(512, 512, 512, 512))
    _, captured = model.apply(model.init(key, x), x, capture_intermediates=True)
    for i, expected in enumerate((2, 2, 2, 1)):
        square = (captured["intermediates"][f"Dense_{i}"]["__call__"][0] ** 2).mean()
        assert abs(square / expected - 1) < 5 * np.sqrt((i + 1) * 2 / 512)


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
def test_bfloat16_in_gives_bfloat16_out_and_the_parameters_keep_their_type(key, normalization):
    x, model = features(key), mlp.MLP(widths=(5, 5, 3), normalization=normalization)
    variables = model.init(key, x)
    expected, half = model.apply(variables, x), mlp.MLP(widths=(5, 5, 3), normalization=normalization, dtype=jnp.bfloat16)
    cast = {**variables, "params": jax.tree.map(lambda p: p.astype(jnp.bfloat16), variables["params"])}
    for logits in (half.apply(variables, x), model.apply(cast, x.astype(jnp.bfloat16))):
        assert logits.dtype == jnp.bfloat16
        np.testing.assert_allclose(logits.astype(jnp.float32), expected, atol=0.1)
    assert model.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.float32  # what both promote to
    assert {p.dtype for p in jax.tree.leaves(half.init(key, x)["params"])} == {jnp.dtype("float32")}


def test_vmapped_networks_are_the_single_ones(jit, key):
    x, model, keys = features(key), mlp.MLP(widths=(5, 3), normalization="batch"), jax.random.split(key, 3)
    many = jit(jax.vmap(lambda k: model.init(k, x)))(keys)
    logits = jit(jax.vmap(lambda v: model.apply(v, x)))(many)
    for i in range(3):
        single = model.init(keys[i], x)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7), many, single)
        np.testing.assert_allclose(logits[i], model.apply(single, x), rtol=1e-5, atol=1e-6)


def test_apply_lowers_for_every_platform_in_one_program(key):
    x, model = features(key), mlp.MLP(widths=(5, 5, 3), dropout=0.2, normalization="batch", residual=True)
    variables = model.init(key, x)

    def loss(params):
        rest = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        return model.apply({**variables, "params": params}, x, train=True, **rest)[0].sum()

    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))(variables["params"])
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_a_perceptron_is_linear_or_fires(key):
    x, model = features(key), mlp.Perceptron(units=2)
    variables = model.init(key, x.reshape(4, 3, 2))
    layer = {"kernel": variables["params"]["Dense_0"]["kernel"], "bias": jnp.array([0.5, -0.5])}
    variables = {"params": {"Dense_0": layer}}
    logits = np.asarray(x) @ np.asarray(layer["kernel"]) + np.asarray([[0.5, -0.5]])
    np.testing.assert_allclose(model.apply(variables, x, train=True), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mlp.Perceptron(units=2, fire=True).apply(variables, x), (logits > 0).astype(np.float32))


def test_the_perceptron_learns_by_its_rule(key):
    """The module and the rule share the layer's layout and the threshold: OR is learned from any start."""
    model, x = mlp.Perceptron(fire=True), jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target = jnp.array([[0.0], [1.0], [1.0], [1.0]])
    params = model.init(key, x)["params"]
    for _ in range(10):
        for i in range(4):
            params = {"Dense_0": optimizers.perceptron_update(params["Dense_0"], x[i], target[i])}
    np.testing.assert_array_equal(model.apply({"params": params}, x), target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, r"MLP: widths must be positive integers, at least one, got \(\)"),
        ({"widths": (8, 0)}, r"widths must be positive integers.*\(8, 0\)"),
        ({"widths": (8,), "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"widths": (8,), "dropout": -0.1}, "dropout must be in"),
        ({"widths": (8,), "normalization": "group"}, "normalization must be None, 'layer' or 'batch', got group"),
        ({"widths": (8,), "feature_axes": 0}, "feature_axes must be None or at least 1, got 0"),
    ],
)
def test_a_bad_field_is_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        mlp.MLP(**fields)


def test_a_perceptron_without_units_is_refused_at_construction():
    with pytest.raises(ValueError, match="Perceptron: units must be at least 1, got 0"):
        mlp.Perceptron(units=0)


@pytest.mark.parametrize("model", [mlp.MLP(widths=(5, 3)), mlp.Perceptron(units=2)], ids=["mlp", "perceptron"])
def test_an_input_that_does_not_fit_the_variables_is_named(jit, key, model):
    variables = model.init(key, jnp.zeros((4, 3, 2, 1)))
    message = r"variables expect 6 features per example, got 8 from an input of shape \(4, 4, 2, 1\)"
    with pytest.raises(ValueError, match=message):
        jit(model.apply)(variables, jnp.zeros((4, 4, 2, 1)))


def test_an_input_with_too_few_axes_is_refused(key):
    with pytest.raises(ValueError, match=r"MLP: an input needs at least 3 axes, got \(4, 6\)"):
        mlp.MLP(widths=(3,), feature_axes=3).init(key, features(key))
