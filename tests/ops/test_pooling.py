"""Pools and resizing: closed forms, the formulations against each other, and what they refuse."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import ops

module = importlib.import_module("jaxnets.ops.pooling")
POOLS = [(3, 2, 1), (2, 2, 0), ((5, 4), (1, 2), (2, 1))]  # window, stride, padding; the last in two steps


@pytest.mark.parametrize(("fast", "plain"), [("_largest", "_plain_max"), ("_total", "_plain_total")])
@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_formulations_agree_in_value_and_derivatives(size, stride, padding, fast, plain):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 2)), jnp.float32)
    window = module._window("test", x, size, stride, padding, True)

    def all_of(f, x):
        y = f(x, window)
        return y, jax.jvp(lambda x: f(x, window), (x,), (x**2,))[1], jax.grad(lambda x: (f(x, window) ** 3).sum())(x)

    with jax.disable_jit(False):
        results = [jax.jit(functools.partial(all_of, getattr(module, name)))(x) for name in (fast, plain)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("size", [2, 5])
def test_of_equal_values_the_first_takes_the_whole_gradient(jit, size):
    x = jnp.zeros((1, 10, 10, 1))
    gradient = jit(jax.grad(lambda x: ops.max_pool(x, size).sum()))(x)
    expected = np.zeros((10, 10))
    expected[::size, ::size] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_largest_is_nan_where_one_is_seen_and_padding_never_wins(place):
    x = -jnp.ones((1, 4, 4, 1))
    assert (ops.max_pool(x, 3, stride=2, padding=1) == -1).all()
    y = ops.max_pool(x.at[0, place, place].set(jnp.nan), 2)[0, :, :, 0]
    assert np.isnan(y[place // 2, place // 2])
    assert np.isnan(y).sum() == 1


def test_averages_of_a_constant_are_the_constant_but_for_counted_padding():
    x = jnp.ones((1, 5, 6, 1))
    for ceil in (False, True):
        np.testing.assert_allclose(ops.average_pool(x, 3, stride=2, padding=1, ceil=ceil, count_padding=False), 1, rtol=1e-6)
    np.testing.assert_allclose(ops.average_pool(x, 3, stride=2, padding=1)[0, 0, :2, 0], [4 / 9, 6 / 9], rtol=1e-6)
    np.testing.assert_allclose(ops.average_pool(x, 2, ceil=True), 1, rtol=1e-6)  # beyond the padding nothing is counted
    np.testing.assert_allclose(ops.adaptive_average_pool(x, (4, 7)), 1, rtol=1e-6)


def test_in_bfloat16_averages_and_resizing_add_in_float32():
    x = jnp.full((1, 23, 23, 1), 3.0, jnp.bfloat16)
    for y in (ops.average_pool(x, 7), ops.average_pool(x, 3), ops.adaptive_average_pool(x, 6), ops.resize(x, 41)):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, 3)  # weights rounded to bfloat16 don't add up to one


def test_average_pools_mean_the_same_where_bins_are_windows(jit):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6, 2)), jnp.float32)
    pools = [lambda x: ops.average_pool(x, (2, 3)), lambda x: ops.adaptive_average_pool(x, (2, 2))]
    pools.append(lambda x: ops.resize(ops.adaptive_average_pool(x, (2, 2)), (2, 2)))
    for f in pools:
        np.testing.assert_allclose(jit(f)(x), x.reshape(2, 2, 2, 2, 3, 2).mean((2, 4)), rtol=1e-5, atol=1e-6)


def test_adaptive_maxima_share_the_gradient_of_ties():
    gradient = jax.grad(lambda x: ops.adaptive_max_pool(x, (2, 1)).sum())(jnp.zeros((1, 4, 3, 1)))
    np.testing.assert_allclose(gradient, 1 / 6, rtol=1e-6)


def test_resizing_keeps_straight_lines_and_corners(jit):
    x = (jnp.arange(5.0)[:, None] + 10 * jnp.arange(4.0)[None]).reshape(1, 5, 4, 1)
    y = jit(lambda x: ops.resize(x, (9, 7), align_corners=True))(x)[0, :, :, 0]
    np.testing.assert_allclose(y, np.arange(9)[:, None] / 2 + 10 * np.arange(7) / 2, rtol=1e-5, atol=1e-5)
    inside = jit(lambda x: ops.resize(x, (10, 8)))(x)[0, 1:-1, 1:-1, 0]
    rows, columns = ((np.arange(1, m - 1) + 0.5) / 2 - 0.5 for m in (10, 8))
    np.testing.assert_allclose(inside, rows[:, None] + 10 * columns, rtol=1e-5, atol=1e-5)
    assert ops.resize(x, (5, 4)) is x


def test_pools_and_resizing_compose(jit):
    """vmap over images, scan over them, and remat, in one."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 4, 4, 2)), jnp.float32)

    @jax.checkpoint
    def f(x):
        return ops.resize(ops.max_pool(x, 2), 4).sum() + ops.adaptive_max_pool(x, 3).sum() + ops.average_pool(x, 2).sum()

    looped = jnp.stack([jax.grad(f)(image) for image in x])
    np.testing.assert_allclose(jit(jax.vmap(jax.grad(f)))(x), looped, rtol=1e-5, atol=1e-6)
    scanned = jit(lambda x: jax.lax.scan(lambda c, x: (c, jax.grad(f)(x)), 0, x)[1])(x)
    np.testing.assert_allclose(scanned, looped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_dtype_follows_the_image(dtype):
    with jax.enable_x64(dtype == "float64"), jax.disable_jit(False):
        x = jnp.ones((1, 4, 4, 1), dtype)
        for f in (ops.max_pool, ops.average_pool, ops.adaptive_average_pool, ops.adaptive_max_pool, ops.resize):
            assert f(x, 3).dtype == dtype
            assert jax.grad(lambda x, f=f: f(x, 3).sum())(x).dtype == dtype


def test_an_empty_batch_gives_an_empty_batch():
    x = jnp.zeros((0, 4, 4, 2))
    for f in (ops.max_pool, ops.average_pool, ops.adaptive_average_pool, ops.adaptive_max_pool, ops.resize):
        assert f(x, 2).shape == (0, 2, 2, 2)


def test_what_does_not_fit_is_said():
    x = jnp.zeros((1, 4, 5, 1))
    with pytest.raises(ValueError, match=r"max_pool: a window of \[5, 5\] does not fit into an image of \(4, 5\)"):
        ops.max_pool(x, 5)
    with pytest.raises(ValueError, match="max_pool: stride must be at least 1, got 0"):
        ops.max_pool(x, 2, stride=0)
    with pytest.raises(ValueError, match=r"average_pool: padding must be at most half the window \(2, 2\), got 2"):
        ops.average_pool(x, 2, padding=2)
    for f in (ops.adaptive_average_pool, ops.adaptive_max_pool, ops.resize):
        with pytest.raises(ValueError, match=f"{f.__name__}: size must be at least 1, got 0"):
            f(x, 0)
        with pytest.raises(ValueError, match=f"{f.__name__}: an image needs pixels"):
            f(x[:, :0], 1)
