"""Every term by what defines it: value in numpy, prox as the minimizer, conjugate by Fenchel, derivative by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxnets.proximal import linear, prox

SHAPE, STEP, INF = (3, 4), 0.7, np.inf
# Total variation in 2-D is iterative: without jit too few steps for a sharp test of its minimum.
ITERATIONS, INEXACT = (10, 0.1) if jax.config.jax_disable_jit else (200, 1e-6)
WEIGHTS = np.array([0.5, 0.0, 0.2, 1.5])
CENTER = np.linspace(-1, 1, 12).reshape(SHAPE)
ROTATION = np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))[0]


def _rotate(matrix, x):
    return (matrix @ x.reshape(12)).reshape(SHAPE)


def _rotate_back(matrix, y):
    return (matrix.T @ y.reshape(12)).reshape(SHAPE)


# Made on first use: 64-bit only within the test.
def _rotated(term):
    return prox.orthogonal(term, linear.Operator(ROTATION, linear.Structure.of(SHAPE), _rotate, _rotate_back))


def _norms(x, axis):
    return np.sqrt(np.sum(np.abs(x) ** 2, axis=axis))


def _inside(condition):
    return 0.0 if condition else INF


def _huber(x, delta):
    return np.where(np.abs(x) <= delta, np.abs(x) ** 2 / 2, delta * (np.abs(x) - delta / 2))


def _gradient(x):
    return np.stack([np.diff(x, axis=0, append=x[-1:]), np.diff(x, axis=1, append=x[:, -1:])])


# name: (term, its value in numpy)
REAL = {
    "box": (
        prox.box(-0.3, np.linspace(0.1, 1, 4)),
        lambda x: _inside((x >= -0.3).all() and (x <= np.linspace(0.1, 1, 4)).all()),
    ),
    "half_space": (prox.box(-INF, 0.2), lambda x: _inside((x <= 0.2).all())),
    "nonnegative": (prox.nonnegative(), lambda x: _inside((x >= 0).all())),
    "simplex": (prox.simplex(2.0), lambda x: _inside((x >= 0).all() and abs(x.sum() - 2) < 1e-12)),
    "total_variation": (prox.total_variation(0.4), lambda x: 0.4 * np.abs(np.diff(x)).sum()),
    "total_variation_rows": (
        prox.total_variation(np.array([0.1, 0.0, 3.0])),
        lambda x: (np.array([0.1, 0.0, 3.0]) * np.abs(np.diff(x)).sum(1)).sum(),
    ),
    "orthogonal": (_rotated(prox.l1(0.5)), lambda x: 0.5 * np.abs(ROTATION @ x.reshape(12)).sum()),
}
ANY = {
    "zero": (prox.zero(), lambda x: 0.0),
    "l1": (prox.l1(0.5), lambda x: 0.5 * np.abs(x).sum()),
    "weighted_l1": (prox.l1(WEIGHTS), lambda x: (WEIGHTS * np.abs(x)).sum()),
    "l2": (prox.l2(1.5), lambda x: 1.5 * _norms(x, None)),
    "squared_l2": (prox.squared_l2(WEIGHTS + 0.1), lambda x: ((WEIGHTS + 0.1) * np.abs(x) ** 2).sum() / 2),
    "group_l21": (prox.group_l21(0.9, axis=0), lambda x: 0.9 * _norms(x, 0).sum()),
    "weighted_group": (prox.group_l21(WEIGHTS[:3]), lambda x: (WEIGHTS[:3] * _norms(x, 1)).sum()),
    "elastic_net": (prox.elastic_net(0.5, 0.8), lambda x: 0.5 * np.abs(x).sum() + 0.4 * _norms(x, None) ** 2),
    "huber": (prox.huber(0.8, 0.3), lambda x: 0.8 * _huber(x, 0.3).sum()),
    "nuclear": (prox.nuclear(0.6), lambda x: 0.6 * np.linalg.svd(x, compute_uv=False).sum()),
    "l1_ball": (prox.l1_ball(1.5), lambda x: _inside(np.abs(x).sum() <= 1.5 + 1e-12)),
    "l2_ball": (prox.l2_ball(0.5, CENTER), lambda x: _inside(_norms(x - CENTER, None) <= 0.5 + 1e-12)),
    "linf_ball": (prox.linf_ball(0.4), lambda x: _inside((np.abs(x) <= 0.4 + 1e-12).all())),
    "isotropic": (prox.total_variation_2d(0.3, ITERATIONS), lambda x: 0.3 * _norms(_gradient(x), 0).sum()),
    "anisotropic": (prox.total_variation_2d(0.3, ITERATIONS, isotropic=False), lambda x: 0.3 * np.abs(_gradient(x)).sum()),
    "scale": (prox.scale(prox.l1(0.5), 1.6), lambda x: 0.8 * np.abs(x).sum()),
    "dilate": (prox.dilate(prox.elastic_net(0.5, 0.8), -1.5), lambda x: 0.75 * np.abs(x).sum() + 0.9 * _norms(x, None) ** 2),
    "translate": (prox.translate(prox.l1(0.5), CENTER), lambda x: 0.5 * np.abs(x - CENTER).sum()),
    "tilt": (prox.tilt(prox.l1(0.5), CENTER), lambda x: 0.5 * np.abs(x).sum() + (CENTER * x.real).sum()),
    "l0": (prox.l0(0.3), lambda x: 0.3 * (x != 0).sum()),
    "l_half": (prox.l_half(0.4), lambda x: 0.4 * np.sqrt(np.abs(x)).sum()),
}
SAME_PATH = {
    "zero",
    "weighted_l1",
    "squared_l2",
    "weighted_group",
    "elastic_net",
    "anisotropic",
    "scale",
    "dilate",
}  # as another
CASES = [(name, "real") for name in REAL | ANY] + [(name, "complex") for name in ANY if name not in SAME_PATH]
TERMS = {name: term for name, (term, _) in (REAL | ANY).items()}
NOT_CONVEX = {"l0", "l_half"}


def draw(rng, kind, *shape):
    x = rng.normal(size=(*shape, *SHAPE))
    return x + 1j * rng.normal(size=x.shape) if kind == "complex" else x


def inner(a, b):
    """The real inner product over the last two axes."""
    return np.sum(np.conj(a) * b, axis=(-1, -2)).real


@jax.jit
@jax.vmap
def prox_and_value(term, v):
    return term.prox(v, STEP), term.value(v)


@jax.jit
def derivatives_and_duals(term, v, other, term_tangent, tangent, cotangent):
    x, push = jax.linearize(lambda term, v: term.prox(v, STEP), term, v)
    out = {"x": x, "forward": push(term_tangent, tangent)}
    out["backward"] = jax.linear_transpose(push, term, v)(cotangent)
    if term.kind.conjugate is not None:
        z = (v - x) / STEP
        scaled = other / jnp.maximum(1, term.domain(other))
        out |= {"z": z, "domain": term.domain(z), "twice": term.domain(2 * z)}
        out |= {"conjugate": term.conjugate(z), "scaled": term.conjugate(scaled)}
    return out


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_prox_value_conjugate_and_derivative_agree_with_their_definitions(name, kind):
    term, value = (REAL | ANY)[name]
    rng = np.random.default_rng(len(name))
    v, other, tangent, cotangent = draw(rng, kind, 4)
    term_tangent = jax.tree.map(lambda a: rng.normal(size=np.shape(a)), term)
    h, loose = 1e-6, INEXACT if name in {"isotropic", "anisotropic"} else 1e-12

    def batch(points, *slopes):
        """`prox` and `value` at every point, for the term moved by a multiple of its tangent."""
        slopes = np.array([*slopes, *[0.0] * (len(points) - len(slopes))])
        terms = jax.tree.map(lambda a, b: np.array([a + slope * b for slope in slopes]), term, term_tangent)
        return jax.tree.map(np.asarray, prox_and_value(terms, points))

    with jax.enable_x64(True):
        both, _ = batch(np.stack([v + h * tangent, v - h * tangent, v, other, *[v] * 8]), h, -h)
        near, x, x_other = both[:2], both[2], both[3]
        near_x = x + draw(rng, kind, 12) * np.logspace(-4, 0, 12)[:, None, None]
        inside, near_values = batch(near_x)  # most of them are outside a set, their projections onto it are not
        _, inside_values = batch(inside)
        got = jax.tree.map(np.asarray, derivatives_and_duals(term, v, other, term_tangent, tangent, cotangent))
    points, values = np.concatenate([near_x, inside]), np.concatenate([near_values, inside_values])

    np.testing.assert_allclose(got["x"], x, atol=1e-14)  # vmap over terms and points changes nothing
    np.testing.assert_allclose(values, [value(point) for point in points], rtol=1e-12, atol=1e-12)

    # The minimum; of a strongly convex function, F(y) >= F(x) + |y - x|^2 / (2 step).
    at_x = value(x) + inner(x - v, x - v) / (2 * STEP)
    growth = values + inner(points - v, points - v) / (2 * STEP) - at_x
    distance = inner(points - x, points - x)
    assert np.isfinite(growth).sum() >= 12
    assert (growth >= (0 if name in NOT_CONVEX else distance / (2 * STEP)) - loose).all()
    if name not in NOT_CONVEX:
        assert inner(x_other - x, x_other - x) <= inner(x_other - x, other - v) + loose  # firmly non-expansive

    if "z" in got:  # Fenchel: equality at x = prox(v), z = (v - x) / step, inequality everywhere
        np.testing.assert_allclose(value(x) + got["conjugate"], inner(x, got["z"]), rtol=1e-12, atol=1e-12)
        assert (values + got["conjugate"] >= inner(points, got["z"]) - 1e-12).all()
        assert got["domain"] <= 1 + 1e-12
        np.testing.assert_allclose(got["twice"], 2 * got["domain"], rtol=1e-12)
        assert np.isfinite(got["scaled"])

    np.testing.assert_allclose(got["forward"], (near[0] - near[1]) / (2 * h), atol=1e-7)
    pairs = zip(jax.tree.leaves(got["backward"]), jax.tree.leaves((term_tangent, tangent)), strict=True)
    np.testing.assert_allclose(sum(np.sum(a * b).real for a, b in pairs), np.sum(cotangent * got["forward"]).real, rtol=1e-10)


def _nearest(v, constraints, bounds=None):
    """The projection of `v`."""
    options = {"ftol": 1e-15, "maxiter": 200}
    got = scipy.optimize.minimize(
        lambda x: (np.sum((x - v) ** 2) / 2, x - v),
        np.zeros(v.size),
        jac=True,
        method="SLSQP",
        bounds=bounds,
        constraints=constraints,
        options=options,
    )
    return got.x


def _inequality(function):
    return {"type": "ineq", "fun": function}


def _l1_ball_by_scipy(v):
    """As `x = p - q` with `p, q >= 0`, smooth."""
    got = scipy.optimize.minimize(
        lambda z: np.sum((z[:9] - z[9:] - v) ** 2) / 2,
        np.zeros(18),
        method="SLSQP",
        bounds=[(0, None)] * 18,
        constraints=_inequality(lambda z: 1.5 - z.sum()),
        options={"ftol": 1e-15, "maxiter": 200},
    )
    return got.x[:9] - got.x[9:]


def _dual(v, matrix, groups, weight):
    """`x = v - M'u` with `u` within balls of radius `weight`: the dual of `weight` times norms of groups of `M x`."""
    got = scipy.optimize.minimize(
        lambda u: (np.sum((v - matrix.T @ u) ** 2) / 2, -matrix @ (v - matrix.T @ u)),
        np.zeros(len(matrix)),
        jac=True,
        method="SLSQP",
        constraints=_inequality(lambda u: weight**2 - np.sum(u[groups] ** 2, axis=1)),
        options={"ftol": 1e-15, "maxiter": 200},
    )
    return v - matrix.T @ got.x


def _nuclear_by_scipy(v):
    """By factors, `|x|_* = min (|U|^2 + |V|^2) / 2` over `x = U V'`. Source: Srebro, Rennie & Jaakkola (2005), lemma 1."""

    def objective(z):
        left, right = z.reshape(2, 3, 3)
        misfit = left @ right.T - v.reshape(3, 3)
        gradient = np.stack([misfit @ right, misfit.T @ left]) + 0.6 * z.reshape(2, 3, 3)
        return (np.sum(misfit**2) + 0.6 * np.sum(z**2)) / 2, gradient.ravel()

    start = np.random.default_rng(0).normal(size=18)
    got = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-10, "maxiter": 2000}
    )
    left, right = got.x.reshape(2, 3, 3)
    return (left @ right.T).ravel()


GRADIENT = np.stack([_gradient(row.reshape(3, 3)).ravel() for row in np.eye(9)], axis=1)
PIXELS = np.arange(18).reshape(2, 9).T  # the two differences at each
BY_SCIPY = {
    "simplex": (
        prox.simplex(2.0),
        lambda v: _nearest(v, {"type": "eq", "fun": lambda x: x.sum() - 2}, [(0, None)] * 9),
    ),
    "l1_ball": (prox.l1_ball(1.5), _l1_ball_by_scipy),
    "l2_ball": (
        prox.l2_ball(0.5, CENTER.ravel()[:9].reshape(3, 3)),
        lambda v: _nearest(v, _inequality(lambda x: 0.25 - np.sum((x - CENTER.ravel()[:9]) ** 2))),
    ),
    "group_l21": (prox.group_l21(0.9), lambda v: _dual(v, np.eye(9), np.arange(9).reshape(3, 3), 0.9)),
    "nuclear": (prox.nuclear(0.6), _nuclear_by_scipy),
    "isotropic": (prox.total_variation_2d(0.3, 400), lambda v: _dual(v, GRADIENT, PIXELS, 0.3)),
    "anisotropic": (
        prox.total_variation_2d(0.3, 400, isotropic=False),
        lambda v: _dual(v, GRADIENT, np.arange(18)[:, None], 0.3),
    ),
}


@pytest.mark.parametrize("name", BY_SCIPY)
def test_prox_is_the_minimizer_that_scipy_finds_by_another_formulation(name):
    term, minimize = BY_SCIPY[name]
    v = np.random.default_rng(1).normal(size=9)
    with jax.enable_x64(True), jax.disable_jit(False):
        got = np.asarray(jax.jit(term.prox)(v.reshape(3, 3), 1.0)).ravel()
    assert np.abs(got - v).max() > 0.1
    np.testing.assert_allclose(got, minimize(v), atol=1e-5)


@pytest.mark.parametrize("name", ["l1", "elastic_net", "huber", "l0", "l_half"])
def test_prox_is_the_global_minimizer_that_scipy_finds(name):
    with jax.enable_x64(True):
        v = np.array([-4.0, -1.1, -0.9, -0.51, -0.2, 0.0, 0.3, 0.64, 0.66, 0.8, 1.3, 2.5])
        term = TERMS[name]
        got = np.asarray(term.prox(v, STEP))
        assert got.dtype == np.float64
    value = ANY[name][1]
    for v_i, x_i in zip(v, got, strict=True):

        def objective(x, v_i=v_i):
            return value(np.asarray(x)) + (x - v_i) ** 2 / (2 * STEP)

        low, high = sorted([0.0, v_i])
        inner_minimum = scipy.optimize.minimize_scalar(objective, bounds=((low + v_i) / 2, (high + v_i) / 2), method="bounded")
        assert objective(x_i) <= min(objective(0.0), objective(v_i), inner_minimum.fun) + 1e-13
