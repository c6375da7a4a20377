"""Activations against 50 digits (mpmath), and every column of their table against an independent measurement.

Reference derivatives are mpmath's numerical ones, so no formula of the library is used twice.
"""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
from jax import export

from jaxnets import activations
from jaxnets.activations import ACTIVATIONS, self_gated

NAMES = sorted(ACTIVATIONS)
SMALLEST = float(np.finfo(np.float32).tiny)
EPS = float(np.finfo(np.float32).eps)
EDGES = [1e-30, 1e-3, 88, 104, 1e4, 3e38]
GRID = np.unique(np.concatenate([np.linspace(-20, 20, 401), EDGES, np.negative(EDGES)]).astype(np.float32))
HUGE = mp.mpf(10) ** 50  # stands for inf


def clip(x, low, high):
    return max(mp.mpf(low), min(mp.mpf(high), x))


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def leaky(slope):
    return lambda x: x if x > 0 else slope * x


def elu(x):
    return x if x > 0 else mp.expm1(x)


def swish(beta):
    return lambda x: x * logistic(beta * x)


SELU_SCALE, SELU_ALPHA = mp.mpf(1.0507009873554805), mp.mpf(1.6732632423543772)  # in float64; the paper prints them so
REFERENCE = {
    "sigmoid": logistic,
    "hard_sigmoid": lambda x: clip(x + 3, 0, 6) / 6,
    "tanh": mp.tanh,
    "hard_tanh": lambda x: clip(x, -1, 1),
    "soft_sign": lambda x: x / (1 + abs(x)),
    "relu": lambda x: max(x, mp.mpf(0)),
    "relu6": lambda x: clip(x, 0, 6),
    "leaky_relu": leaky(mp.mpf("0.01")),
    "prelu": leaky(mp.mpf("0.25")),
    "rrelu": leaky(mp.mpf(11) / 48),
    "elu": elu,
    "celu": elu,
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * elu(x)),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "squareplus": lambda x: (x + mp.sqrt(x * x + 4)) / 2 if x > 0 else 2 / (mp.sqrt(x * x + 4) - x),
    "silu": swish(1),
    "hard_silu": lambda x: x * clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * logistic(mp.sqrt(8 / mp.pi) * (x + mp.mpf("0.044715") * x**3)),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "threshold": lambda x: x if x > 1 else mp.mpf(0),
    "hard_shrink": lambda x: x if abs(x) > 0.5 else mp.mpf(0),
    "soft_shrink": lambda x: x - clip(x, -0.5, 0.5),
    "tanh_shrink": lambda x: x - mp.tanh(x),
    "snake": lambda x: x + mp.sin(x) ** 2,
    "swish_0.7": swish(mp.mpf(float(np.float32(0.7)))),
    "swish_1.7": swish(mp.mpf(float(np.float32(1.7)))),
}  # fmt: skip
KINKS = {
    **dict.fromkeys(["relu", "leaky_relu", "prelu", "rrelu", "selu"], (0,)),
    **dict.fromkeys(["hard_sigmoid", "hard_silu"], (-3, 3)),
    **dict.fromkeys(["hard_shrink", "soft_shrink"], (-0.5, 0.5)),
    **{"relu6": (0, 6), "hard_tanh": (-1, 1), "threshold": (1,)},
}
JUMPS = {"threshold", "hard_shrink"}


def slope(name, x, direction=0):
    """Derivative; at a kink that of the right (1) or left (-1) side."""
    return mp.diff(REFERENCE[name], mp.mpf(x), direction=direction)


@functools.cache
def exact(name):
    """Values and slopes on the grid to 50 digits; a slope at a kink is None."""
    with mp.workdps(60):
        values = [REFERENCE[name](mp.mpf(float(x))) for x in GRID]
        return values, [None if x in KINKS.get(name, ()) else slope(name, float(x)) for x in GRID]


def function_of(name):
    if name.startswith("swish_"):
        return functools.partial(activations.swish, beta=float(np.float32(name.removeprefix("swish_"))))
    return ACTIVATIONS[name].function


def gradient_of(function):
    return jax.vmap(jax.grad(function))


def ulps(got, reference):
    """Distance in units in the last place of the exact value; what is below the normal numbers may be flushed to 0."""
    if abs(reference) < SMALLEST:
        return 0 if abs(got) <= SMALLEST else math.inf
    unit = float(np.spacing(np.float32(abs(reference))))
    return float(abs(mp.mpf(float(got)) - reference) / unit) if np.isfinite(got) else math.inf


def near_zero_crossing(name, slopes):
    """Where the slope is within 0.5 of a zero crossing, or of a zero that it touches (snake)."""
    if name == "snake":
        return np.abs((GRID + math.pi / 4 + math.pi / 2) % math.pi - math.pi / 2) < 0.5
    around = zip(GRID[1:], slopes, slopes[2:], strict=False)
    centers = [x for x, before, after in around if None not in (before, after) and before * after < 0]
    return np.any([np.abs(GRID - center) < 0.45 for center in centers] or [GRID != GRID], axis=0)


@pytest.mark.parametrize("name", REFERENCE)
def test_value_and_gradient_are_within_8_ulp_of_50_digits(name, jit):
    function = function_of(name)
    values, slopes = exact(name)
    got = np.asarray(jit(function)(jnp.asarray(GRID)))
    assert got.dtype == np.float32
    assert max(map(ulps, got, values)) <= 8
    got = np.asarray(jit(gradient_of(function))(jnp.asarray(GRID)))
    for x, a, b, near in zip(GRID, got, slopes, near_zero_crossing(name, slopes), strict=True):
        if b is not None:
            assert ulps(a, b) <= 8 or (near and abs(float(a) - b) <= 8 * EPS), (x, a, b)


def test_the_zero_crossings_are_few_and_known():
    """The looser bar applies around these zeros only: one of the slope in each of the self-gated functions."""
    crossing = {name: GRID[near_zero_crossing(name, exact(name)[1])] for name in REFERENCE if name != "snake"}
    crossing = {name: float(x.mean()) for name, x in crossing.items() if x.size}
    assert set(crossing) == {"silu", "hard_silu", "gelu", "gelu_tanh", "mish", "swish_0.7", "swish_1.7"}
    assert crossing["silu"] == pytest.approx(-1.2785, abs=0.1)


@pytest.mark.parametrize("name", REFERENCE)
def test_infinity_gives_the_limit_and_nan_stays(name, jit):
    function, ends = function_of(name), jnp.array([-jnp.inf, jnp.inf, jnp.nan])
    with mp.workdps(60):
        values = [float(REFERENCE[name](x)) for x in (-HUGE, HUGE)]
        slopes = [1.0, 1.0] if name == "snake" else [float(slope(name, x)) for x in (-HUGE, HUGE)]  # snake's has no limit
    values = [math.copysign(math.inf, v) if abs(v) > 1e30 else v for v in values]
    np.testing.assert_allclose(jit(function)(ends), [*values, math.nan], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(jit(gradient_of(function))(ends)[:2], slopes, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", NAMES)
def test_at_a_kink_the_gradient_lies_between_the_slopes_of_its_sides(name):
    for kink in KINKS.get(name, ()):
        left = slope(name, kink, -1)
        right = slope(name, kink + 1e-6) if name in JUMPS else slope(name, kink, 1)
        for derivative in (jax.grad(ACTIVATIONS[name].function), ACTIVATIONS[name].derivative):
            assert min(left, right) - 1e-6 <= float(derivative(jnp.float32(kink))) <= max(left, right) + 1e-6


@pytest.mark.parametrize("name", REFERENCE)
def test_higher_derivatives_are_right_in_every_mode(name):
    """Second and third derivative by mixed modes, at 0 too where the function is smooth there."""
    function = function_of(name)
    smooth = name not in KINKS and name not in ("elu", "celu", "soft_sign")  # these have a kink in some derivative at 0
    x = jnp.array([-2.3, -0.7, 0.4, 1.6, 4.1] + [0.0] * smooth)
    second = jax.vmap(jax.jacfwd(jax.grad(function)))
    third = jax.vmap(jax.grad(jax.jacfwd(jax.grad(function))))
    for n, derivative in ((2, second), (3, third)):
        expected = [float(mp.diff(REFERENCE[name], mp.mpf(float(p)), n)) for p in np.asarray(x)]
        np.testing.assert_allclose(derivative(x), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_comes_back_right_and_in_its_own_dtype(dtype):
    """Within 2 eps of float32, in value and gradient: nothing inside is rounded to half precision more than once or twice."""
    x = jnp.linspace(-8, 8, GRID.size, dtype=dtype)  # the size of the grid: without jit each new shape is compiled

    def everything(x):
        return {name: (row(x), row.derivative(x), gradient_of(row.function)(x)) for name, row in ACTIVATIONS.items()}

    halves, wholes = jax.jit(everything)(x), jax.jit(everything)(x.astype(jnp.float32))
    for name, (value, derivative, gradient) in halves.items():
        assert value.dtype == derivative.dtype == gradient.dtype == dtype, name
        for half, whole in zip((value, derivative, gradient), wholes[name], strict=True):
            tolerance = {"rtol": float(2 * jnp.finfo(dtype).eps), "atol": float(jnp.finfo(dtype).smallest_subnormal)}
            np.testing.assert_allclose(half.astype(jnp.float32), whole, err_msg=name, **tolerance)


def test_float64_has_its_own_digits():
    x = np.array([-30.2, -9.7, -3.1, -1e-5, 1e-5, 0.3, 1.45, 1.55, 7.9, 25.0])

    def everything(x):
        return [(row(x), gradient_of(row.function)(x)) for row in ACTIVATIONS.values()]

    with jax.enable_x64(True), mp.workdps(60):
        for name, (value, gradient) in zip(ACTIVATIONS, jax.jit(everything)(jnp.asarray(x)), strict=True):
            assert value.dtype == gradient.dtype == jnp.float64
            expected = [float(REFERENCE[name](mp.mpf(v))) for v in x]
            np.testing.assert_allclose(value, expected, rtol=2e-15, atol=1e-300, err_msg=name)
            expected = [float(slope(name, v)) for v in x]
            np.testing.assert_allclose(gradient, expected, rtol=4e-15, atol=1e-300, err_msg=name)


def test_gradients_of_learnable_parameters(jit):
    """Against mpmath's derivative with respect to the parameter, one per feature, summed over the batch."""
    x = np.linspace(-6, 6, 8, dtype=np.float32).reshape(4, 2)
    cases = {
        activations.swish: ([0.7, 1.9], lambda v, p: v * logistic(p * v)),
        activations.prelu: ([0.25, 0.1], lambda v, p: v if v > 0 else p * v),
        activations.squareplus: ([4.0, 0.5], lambda v, p: (v + mp.sqrt(v * v + p)) / 2),
        activations.snake: ([1.0, 3.0], lambda v, p: v + mp.sin(p * v) ** 2 / p),
    }
    for function, (parameters, reference) in cases.items():
        p = np.array(parameters, np.float32)
        pairs = [list(zip(row, p.astype(float), strict=True)) for row in x.astype(float)]
        expected = [[float(reference(v, q)) for v, q in row] for row in pairs]
        np.testing.assert_allclose(jit(function)(jnp.asarray(x), jnp.asarray(p)), expected, rtol=1e-6)
        expected = [[float(mp.diff(functools.partial(reference, v), q)) for v, q in row] for row in pairs]
        gradient = jit(jax.grad(lambda q, f=function: f(jnp.asarray(x), q).sum()))(jnp.asarray(p))
        np.testing.assert_allclose(gradient, np.sum(expected, 0), rtol=2e-6, err_msg=function.__name__)
    assert activations.swish(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype == jnp.bfloat16


PARAMETERS = {
    "swish": {"beta": 2}, "prelu": {"slope": 2}, "squareplus": {"b": 4}, "snake": {"a": 2}, "elu": {"alpha": 2},
    "celu": {"alpha": 2}, "hard_shrink": {"threshold": 1}, "soft_shrink": {"threshold": 1}, "threshold": {"value": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_may_be_integers_keywords_or_mapped_and_are_wide(name):
    function, ((keyword, number),) = getattr(activations, name), PARAMETERS[name].items()
    x = jnp.array([-1.3, 0.4, 2.7])

    def at(x, p):
        return function(x, **{keyword: p})

    expected = at(x, jnp.full(3, float(number)))
    np.testing.assert_allclose(at(x, number), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(at, (None, 0))(x, jnp.array([number, 1.5]))[0], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(at)(1.3, number), jax.grad(at)(jnp.float32(1.3), float(number)), rtol=1e-6)
    assert at(x.astype(jnp.bfloat16), jnp.full(3, number, jnp.float32)).dtype == jnp.bfloat16


def test_plain_numbers_and_integers_are_taken_as_floats():
    whole = jnp.arange(3)
    for function in (activations.sigmoid, activations.elu, activations.gelu, activations.softmax, activations.log_softmax):
        np.testing.assert_array_equal(function(whole), function(jnp.arange(3.0)), err_msg=function.__name__)
    for function in (activations.tanh, activations.mish, activations.leaky_relu):
        assert function(1.0) == function(1) == function(jnp.float32(1))
        assert jax.grad(function)(1.0) == jax.grad(function)(jnp.float32(1))


def test_the_gradient_of_a_slope_is_summed_in_float32():
    x = jnp.full(5001, -1, jnp.bfloat16)
    for function in (activations.prelu, activations.leaky_relu):
        assert jax.grad(lambda slope, f=function: f(x, slope).astype(jnp.float32).sum())(0.25) == -5001


def test_swish_with_beta_zero_is_half_the_input():
    x = jnp.array([-3e38, -2.0, 0.0, 5.0, jnp.inf])
    np.testing.assert_array_equal(activations.swish(x, 0.0), x / 2)


def test_parameters_other_than_the_default():
    x = jnp.array([-2.0, -0.3, 0.3, 2.0])
    np.testing.assert_allclose(activations.elu(x, 0.5), np.where(x > 0, x, 0.5 * np.expm1(x)), rtol=1e-6)
    np.testing.assert_allclose(activations.celu(x, 2.0), np.where(x > 0, x, 2 * np.expm1(x / 2)), rtol=1e-6)
    np.testing.assert_allclose(activations.hard_shrink(x, 0.2), x)
    np.testing.assert_allclose(activations.soft_shrink(x, 0.2), [-1.8, -0.1, 0.1, 1.8], rtol=1e-6)
    np.testing.assert_allclose(activations.threshold(x, 0.1, -7.0), [-7, -7, 0.3, 2], rtol=1e-6)
    assert jax.grad(activations.celu)(-1e-7, 0.5) == pytest.approx(1)


def test_rrelu_draws_a_slope_per_element_only_with_a_key(key, jit):
    x = jnp.full((4000,), -1.0)
    slopes = -jit(activations.rrelu)(x, key=key)
    assert 1 / 8 <= slopes.min() < 0.13
    assert 0.325 < slopes.max() <= 1 / 3
    assert float(slopes.mean()) == pytest.approx(11 / 48, abs=4 * (1 / 3 - 1 / 8) / math.sqrt(12 * 4000))
    np.testing.assert_allclose(activations.rrelu(x), -11 / 48, rtol=1e-6)
    np.testing.assert_array_equal(activations.rrelu(-x, key=key), 1)


# --- The table ---


def test_the_derivative_column_is_the_gradient():
    x = jnp.asarray(GRID)
    for name, row in ACTIVATIONS.items():
        smooth = ~np.isin(GRID, KINKS.get(name, ()))
        column, gradient = row.derivative(x)[smooth], gradient_of(row.function)(x)[smooth]
        np.testing.assert_allclose(column, gradient, rtol=1e-6, atol=SMALLEST, err_msg=name)


@functools.cache
def normal_quadrature():
    """Nodes and weights for an expectation over N(0, 1): Gauss-Legendre on panels of 0.5, so that every kink is on an edge."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    z = (np.arange(-13, 13, 0.5)[:, None] + (nodes + 1) / 4).ravel()
    return z, np.tile(weights / 4, 52) * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("name", NAMES)
def test_gain_and_zero_centered_by_quadrature(name):
    z, weights = normal_quadrature()
    values = np.array([float(REFERENCE[name](mp.mpf(v))) for v in z])
    assert ACTIVATIONS[name].gain == pytest.approx(1 / math.sqrt(weights @ values**2), rel=1e-14)
    assert ACTIVATIONS[name].zero_centered == (abs(weights @ values) < 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_range_saturation_and_dying_by_sampling(name):
    row = ACTIVATIONS[name]
    x = np.round(np.arange(-20, 20, 0.01), 2).astype(np.float32)
    values, slopes = np.asarray(row(jnp.asarray(x))), np.asarray(row.derivative(jnp.asarray(x)))
    ends = np.asarray(row(jnp.array([-jnp.inf, jnp.inf])))
    np.testing.assert_allclose([min(values.min(), *ends), max(values.max(), *ends)], row.range, rtol=1e-4, atol=1e-30)

    steep = x[np.abs(slopes) > 0.01 * (1 - 1e-6)]
    measured = (-math.inf if steep[0] < -16 else steep[0], math.inf if steep[-1] > 16 else steep[-1])
    np.testing.assert_allclose(row.saturates, measured, atol=0.015)

    flat = (slopes == 0) & (np.abs(x) < 8)  # beyond, a normal density underflows
    assert row.dies == bool((flat[1:] & flat[:-1]).any())


def test_the_table_lists_every_elementwise_function():
    across = {"softmax", "log_softmax", "maxout", "glu", "reglu", "geglu", "swiglu", "bilinear"}
    assert set(ACTIVATIONS) == set(activations.__all__) - across - {"ACTIVATIONS", "Activation", "swish"}
    assert all(ACTIVATIONS[name].function is getattr(activations, name) for name in NAMES)


# --- Across features ---


def test_softmax_is_scipys_and_its_log(jit, key):
    x = 20 * jax.random.normal(key, (3, 5))
    np.testing.assert_allclose(jit(activations.softmax)(x), scipy.special.softmax(np.float64(x), -1), rtol=1e-5)
    np.testing.assert_allclose(activations.softmax(x, axis=0), scipy.special.softmax(np.float64(x), 0), rtol=1e-5)
    expected = scipy.special.log_softmax(np.float64(x), -1)
    np.testing.assert_allclose(jit(activations.log_softmax)(x), expected, rtol=1e-6, atol=1e-6)
    for function in (activations.softmax, activations.log_softmax):
        assert function(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_softmax_of_masked_and_infinite_logits_is_never_nan(jit):
    """A row with nothing left is all 0 (log: all -inf); gradients are finite, and 0 where nothing is left."""
    x = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf] * 3, [3.0, 4.0, 5.0]])
    where = jnp.array([[True, True, True], [True, True, True], [False, False, True]])
    p = scipy.special.softmax([1.0, 2.0])
    expected = np.array([[p[0], 0, p[1]], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(jit(activations.softmax)(x, where=where), expected, rtol=1e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(jit(activations.log_softmax)(x, where=where), np.log(expected), rtol=1e-6)

    weights = jnp.array([[1.0, 2.0, 4.0]])
    gradient = jit(jax.grad(lambda x: (activations.softmax(x, where=where) * weights).sum()))(x)
    np.testing.assert_allclose(gradient, [[-3 * p[0] * p[1], 0, 3 * p[0] * p[1]], [0, 0, 0], [0, 0, 0]], rtol=1e-5, atol=1e-7)
    gradient = jit(jax.grad(lambda x: activations.log_softmax(x, where=where)[:, 2].sum()))(x)
    np.testing.assert_allclose(gradient, [[-p[0], 0, p[0]], [0, 0, 0], [0, 0, 0]], rtol=1e-5, atol=1e-7)
    assert jnp.isnan(activations.softmax(jnp.array([1.0, jnp.nan]))).all()


def test_gated_units_are_value_times_gate(key):
    x = jax.random.normal(key, (3, 8))
    value, gate = np.float64(x[:, :4]), np.float64(x[:, 4:])
    gates = {
        "glu": scipy.special.expit(gate),
        "bilinear": gate,
        "reglu": np.maximum(gate, 0),
        "geglu": gate * scipy.special.ndtr(gate),
        "swiglu": gate * scipy.special.expit(gate),
    }
    for name, factor in gates.items():
        function = getattr(activations, name)
        np.testing.assert_allclose(function(x), value * factor, rtol=2e-6, atol=1e-7, err_msg=name)
        with pytest.raises(ValueError, match=f"{name}: .* even, got 7"):
            function(x[:, :7])


def test_maxout_takes_the_maximum_of_neighbors():
    x = jnp.array([[1.0, 5.0, -2.0, -3.0, 0.0, 4.0]])
    np.testing.assert_array_equal(activations.maxout(x), [[5, -2, 4]])
    np.testing.assert_array_equal(activations.maxout(x, 3), [[5, 4]])
    np.testing.assert_array_equal(jax.grad(lambda x: activations.maxout(x, 3).sum())(x), [[0, 1, 0, 0, 0, 1]])


def test_bad_arguments_are_named():
    x = jnp.ones(6)
    with pytest.raises(ValueError, match="maxout: pieces must divide the 6 features, got 4"):
        activations.maxout(x, 4)
    with pytest.raises(ValueError, match=r"rrelu: lower must be at most upper, got 0.5 and 0.2"):
        activations.rrelu(x, 0.5, 0.2)
    rules = {
        "hard_shrink": ("threshold must not be negative", -1.0),
        "soft_shrink": ("threshold must not be negative", -1.0),
        "squareplus": ("b must be positive", 0),
        "celu": ("alpha must not be 0", 0),
        "snake": ("a must not be 0", 0.0),
    }
    for name, (rule, value) in rules.items():
        with pytest.raises(ValueError, match=f"{name}: {rule}, got {value}"):
            getattr(activations, name)(x, **{rule.split()[0]: value})


# --- Inside ---


def test_all_activations_and_their_gradients_lower_for_every_platform():
    def everything(x):
        rows = [row(x) for row in ACTIVATIONS.values()] + [gradient_of(row.function)(x) for row in ACTIVATIONS.values()]
        halves = [getattr(activations, name)(x) for name in ("glu", "bilinear", "reglu", "geglu", "swiglu", "maxout")]
        wholes = [activations.softmax(x), activations.log_softmax(x), activations.swish(x, 1.5)]
        return jnp.stack(rows + wholes), jnp.stack(halves)

    x = jnp.linspace(-3, 3, 8)
    exported = export.export(jax.jit(everything), platforms=("cpu", "cuda", "tpu"))(x)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [a.shape for a in exported.out_avals] == [(2 * len(ACTIVATIONS) + 3, 8), (6, 4)]


def test_the_chebyshev_series_of_mills_ratio_computed_again():
    """Discrete cosine transform of (t + 5) M(t) at 64 Chebyshev nodes, M from mpmath."""
    with mp.workdps(50):
        angles = [mp.pi * (k + mp.mpf(1) / 2) / 64 for k in range(64)]
        values = []
        for angle in angles:
            t = 5 * (1 + mp.cos(angle)) / (1 - mp.cos(angle))
            mills = mp.sqrt(mp.pi / 2) * mp.exp(t * t / 2) * mp.erfc(t / mp.sqrt(2))
            values.append(mills * (t + 5))
        series = [2 * mp.fsum(v * mp.cos(j * a) for v, a in zip(values, angles, strict=True)) / 64 for j in range(24)]
        series[0] /= 2
    np.testing.assert_allclose(self_gated.MILLS, [float(c) for c in series], rtol=1e-14, atol=1e-20)
