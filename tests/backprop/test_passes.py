"""Hand-written passes against `jax.vjp` of an independent formulation, in float32 to 1e-6 and in float64 to 1e-12."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import backprop


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def as_dtype(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def assert_close(actual, expected, tolerance):
    """Equal in the Euclidean norm of each leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def assert_equals_vjp(forward, backward, function, inputs, jit):
    """Output and gradients of the pair equal `function` and its vjp, for a random cotangent."""
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        with jax.enable_x64(dtype == "float64"):
            cast = as_dtype(inputs, dtype)
            shape = jax.eval_shape(function, *cast).shape
            cotangent = jnp.asarray(normal(99, *shape), dtype)

            def by_hand(cotangent, *inputs):
                output, residuals = forward(*inputs)
                return output, backward(residuals, cotangent)

            def by_jax(cotangent, *inputs):
                output, pull = jax.vjp(function, *inputs)
                return output, pull(cotangent)

            assert_close(jit(by_hand)(cotangent, *cast), jit(by_jax)(cotangent, *cast), tolerance)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_dense_equals_vjp(jit, batch):
    inputs = normal(0, *batch, 5), normal(1, 5, 4), normal(2, 4)

    def dense(x, kernel, bias):
        return jnp.einsum("...i,io->...o", x, kernel) + bias.reshape((1,) * len(batch) + (4,))

    assert_equals_vjp(backprop.dense_forward, backprop.dense_backward, dense, inputs, jit)


def test_activation_equals_vjp(jit):
    forward = functools.partial(backprop.activation_forward, function=jnp.sin, derivative=jnp.cos)
    assert_equals_vjp(forward, backprop.activation_backward, jnp.sin, (normal(0, 3, 4),), jit)


def test_softmax_cross_entropy_equals_vjp(jit):
    targets = np.abs(normal(1, 6, 4))  # rows that do not sum to 1: the general formula
    assert_equals_vjp(
        backprop.softmax_cross_entropy_forward,
        backprop.softmax_cross_entropy_backward,
        optax.softmax_cross_entropy,
        (10 * normal(0, 6, 4), targets),
        jit,
    )


def test_softmax_cross_entropy_of_large_logits_is_finite():
    logits, targets = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([[0.0, 1.0, 0.0]])
    loss, residuals = backprop.softmax_cross_entropy_forward(logits, targets)
    gradient, _ = backprop.softmax_cross_entropy_backward(residuals, jnp.ones(1))
    np.testing.assert_allclose(loss, 2e4)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]])


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [
        (1, "SAME", 1),
        (2, "SAME", 1),
        ((3, 2), "VALID", 1),
        ((1, 2), "SAME", (2, 3)),
        (3, ((4, 0), (1, 5)), 2),  # unsymmetric; some pixels are read by no window
    ],
)
def test_convolution_equals_vjp(jit, stride, padding, dilation):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    inputs = normal(0, 2, 10, 9, 3), normal(1, 3, 2, 3, 4), normal(2, 4)

    def convolution(x, kernel, bias):
        layer = nn.Conv(4, (3, 2), strides=stride, padding=padding, kernel_dilation=dilation, promote_dtype=as_they_are)
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    forward = functools.partial(backprop.convolution_forward, **options)
    assert_equals_vjp(forward, backprop.convolution_backward, convolution, inputs, jit)


def as_they_are(*arrays, dtype=None, inexact=True):
    return arrays


POOLS = [
    {"window": 2},
    {"window": (3, 2), "stride": (2, 1), "padding": "SAME"},
    {"window": 2, "stride": 3, "padding": ((1, 0), (0, 1))},
]


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("options", POOLS)
def test_pooling_equals_vjp(jit, kind, options):
    window = np.broadcast_to(options["window"], 2).tolist()
    strides = np.broadcast_to(options.get("stride", window), 2).tolist()
    reference = nn.max_pool if kind == "max" else nn.avg_pool
    forward = getattr(backprop, f"{kind}_pool_forward")
    backward = getattr(backprop, f"{kind}_pool_backward")
    assert_equals_vjp(
        functools.partial(forward, **options),
        backward,
        lambda x: reference(x, tuple(window), tuple(strides), options.get("padding", "VALID")),
        (normal(0, 2, 7, 8, 3),),
        jit,
    )


def test_max_pool_gives_the_gradient_of_a_tie_to_one_pixel_as_jax_does():
    x = jnp.zeros((1, 4, 4, 1))
    options = {"window": 3, "stride": 1, "padding": "SAME"}
    y, residuals = backprop.max_pool_forward(x, **options)
    (gradient,) = backprop.max_pool_backward(residuals, jnp.ones_like(y))
    _, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (1, 1), "SAME"), x)
    np.testing.assert_array_equal(gradient, pull(jnp.ones_like(y))[0])
    assert gradient.sum() == y.size


# Small weights: where tanh saturates, 1 - h² turns any two roundings of h into a large relative difference.
ELMAN = backprop.Elman(normal(0, 3, 4) / 3, normal(1, 4, 4) / 3, normal(2, 4) / 3)


def elman(params, x, hidden):
    """The recurrence as it is read, unrolled."""
    states = []
    for t in range(x.shape[-2]):
        z = x[..., t, :] @ params.input + hidden @ params.recurrent
        hidden = jnp.tanh(z + jnp.broadcast_to(params.bias, z.shape))
        states.append(hidden)
    return jnp.stack(states, axis=-2)


def test_elman_step_equals_vjp(jit):
    def step(params, x, hidden):
        return elman(params, jnp.expand_dims(x, -2), hidden)[..., 0, :]

    inputs = ELMAN, normal(3, 2, 3), normal(4, 2, 4)
    assert_equals_vjp(backprop.elman_step_forward, backprop.elman_step_backward, step, inputs, jit)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_elman_through_time_equals_vjp(jit, batch):
    inputs = ELMAN, normal(3, *batch, 4, 3), normal(4, *batch, 4)
    assert_equals_vjp(backprop.elman_forward, backprop.elman_backward, elman, inputs, jit)


def test_two_layers_composed_by_hand_have_the_gradient_of_jax(jit):
    params = (
        backprop.Dense(normal(0, 5, 8) / 3, normal(1, 8) / 3),
        backprop.Dense(normal(2, 8, 3), normal(3, 3)),
    )
    targets = np.eye(3)[np.arange(7) % 3]

    def loss(params, x, targets):
        first, second = params
        h = jnp.tanh(x @ first.kernel + first.bias[None])
        return optax.softmax_cross_entropy(h @ second.kernel + second.bias[None], targets).mean()

    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        with jax.enable_x64(dtype == "float64"):
            inputs = as_dtype((params, normal(4, 7, 5), targets), dtype)
            by_hand = jit(backprop.two_layer_value_and_gradient)(*inputs)
            assert_close(by_hand, jit(jax.value_and_grad(loss))(*inputs), tolerance)


def test_a_pair_is_a_custom_vjp(jit):
    """The convention is that of `jax.custom_vjp`; residuals with static fields pass through jit and vmap."""

    @jax.custom_vjp
    def pool(x):
        return backprop.max_pool_forward(x)[0]

    pool.defvjp(backprop.max_pool_forward, backprop.max_pool_backward)
    x = jnp.asarray(normal(0, 3, 2, 4, 4, 2), "float32")  # three members of an ensemble
    gradient = jit(jax.vmap(jax.grad(lambda x: (pool(x) ** 2).sum())))(x)
    expected = jax.vmap(jax.grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) ** 2).sum()))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_window_larger_than_the_image_is_an_error():
    with pytest.raises(ValueError, match=r"the window \(3, 3\) must fit .* got \(2, 4\)"):
        backprop.max_pool_forward(jnp.zeros((1, 2, 4, 1)), window=3)
