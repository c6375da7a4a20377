"""Constraints: indicators of convex sets; the prox is the projection. A pytree is one vector: its ball is one of all leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal.prox import common
from jaxnets.proximal.prox.term import Kind, Term
from jaxnets.types import PyTree


def box(lower: PyTree, upper: PyTree) -> Term:
    """`lower <= x <= upper` for a real `x`; a bound is a number (infinite for none), or an array or tree broadcast to `x`."""
    if common.concrete(lower) and common.concrete(upper) and not np.all(np.asarray(lower) <= np.asarray(upper)):
        raise ValueError(f"prox.box: lower must be at most upper, got {lower} and {upper}.")
    return Term((lower, upper), _BOX)


def nonnegative() -> Term:
    """`x >= 0` for a real `x`. No duality gap where the gradient has a negative element: stop by the residual (see `Kind`)."""
    return Term((), _NONNEGATIVE)


def l1_ball(radius: PyTree) -> Term:
    """`sum |x| <= radius`. Source: Duchi et al. (2008), ICML, doi:10.1145/1390156.1390191."""
    radius = common.nonnegative("prox.l1_ball: radius", radius)
    return Term(radius, _L1_BALL)


def l2_ball(radius: PyTree, center: PyTree = 0.0) -> Term:
    """`|x - center|_2 <= radius`; `center` is a number, or broadcast to `x`: around data, the discrepancy constraint."""
    radius = common.nonnegative("prox.l2_ball: radius", radius)
    return Term((radius, center), _L2_BALL)


def linf_ball(radius: PyTree) -> Term:
    """`|x| <= radius` everywhere: of a real `x` the box, of a complex one discs; `radius` as the weight of `l1`."""
    radius = common.nonnegative("prox.linf_ball: radius", radius)
    return Term(radius, _LINF_BALL)


def simplex(total: PyTree = 1.0) -> Term:
    """`x >= 0` and `sum x = total`, for a real `x`. Source: Condat (2016), doi:10.1007/s10107-015-0946-6 (by sorting)."""
    total = common.nonnegative("prox.simplex: total", total)
    return Term(total, _SIMPLEX)


def _box_value(params, x):
    def outside(x, lower, upper):
        below, above = common.indicator(lower - x, x, jnp.abs(lower)), common.indicator(x - upper, x, jnp.abs(upper))
        return jnp.maximum(below, above)

    return common.largest(common.elementwise(outside, x, *params))


def _box_prox(params, v, step):
    common.check_real("prox.box", v)

    def clip(v, lower, upper):  # unlike that of jnp.clip, its derivative in v is 0 at the bounds
        inside = jnp.where(v <= lower, lower, jnp.where(v >= upper, upper, v))
        return jnp.where(lower <= upper, inside, jnp.nan)

    return common.elementwise(clip, v, *params)


def _box_conjugate(params, z):
    def support(z, lower, upper):
        return z * jnp.where(z > 0, upper, jnp.where(z < 0, lower, 0))

    return common.total(common.elementwise(support, z, *params))


def _box_domain(params, z):
    def gauge(z, lower, upper):
        return jnp.where((z == 0) | (jnp.where(z > 0, upper, -lower) < jnp.inf), 0, jnp.inf)

    return common.largest(common.elementwise(gauge, z, *params))


_BOX = Kind(_box_value, _box_prox, _box_conjugate, _box_domain)


def _nonnegative_value(_, x):
    return _box_value((0, jnp.inf), x)


def _nonnegative_prox(_, v, step):
    common.check_real("prox.nonnegative", v)
    return jax.tree.map(lambda v: jnp.where(v <= 0, 0, v), v)


def _nonnegative_domain(_, z):
    return _box_domain((0, jnp.inf), z)


def _nonnegative_conjugate(_, z):
    return _nonnegative_domain(_, z)  # 0 or inf


_NONNEGATIVE = Kind(_nonnegative_value, _nonnegative_prox, _nonnegative_conjugate, _nonnegative_domain)


def _flat(x):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(x)])


def _level(sizes, total):
    """`top` and `level` with `sum max(sizes - top - level, 0) = total`: in two parts, as exact for large sizes as for small."""
    sizes = common.wide(sizes)
    top = jax.lax.stop_gradient(jnp.max(sizes))
    sizes = sizes - top
    fixed = jax.lax.stop_gradient(sizes)
    # The level of the k largest alone is greatest for the right k: no search, and no index to differentiate through.
    descending = -jnp.sort(-fixed)
    levels = (jnp.cumsum(descending) - jax.lax.stop_gradient(total)) / jnp.arange(1, sizes.size + 1)
    support = fixed >= jnp.minimum(levels.max(), 0)  # rounding may lift the level of equal sizes above them all
    # Once more on the support, which is fixed: differentiable, and without the rounding errors of the cumulative sum.
    return top, (jnp.sum(jnp.where(support, sizes, 0)) - total) / jnp.maximum(jnp.sum(support), 1)


def _l1_ball_value(radius, x):
    return common.indicator(common.total(jax.tree.map(common.modulus, x)) - radius, x, radius)


def _l1_ball_prox(radius, v, step):
    top, level = _level(_flat(jax.tree.map(common.modulus, v)), radius)

    def shrink(v):
        size = common.modulus(v) - top - level
        outside = jnp.where(size <= 0, 0, size * common.direction(v))
        return jnp.where(top + level <= 0, v, outside)

    return jax.tree.map(shrink, v)


def _l1_ball_conjugate(radius, z):
    return radius * common.largest(jax.tree.map(common.modulus, z))


_L1_BALL = Kind(_l1_ball_value, _l1_ball_prox, _l1_ball_conjugate)


def _l2_ball_value(params, x):
    radius, center = params
    distance = common.norm(common.elementwise(jnp.subtract, x, center))
    scale = radius + common.largest(jax.tree.map(common.modulus, center))  # x - center is rounded like the center
    return common.indicator(distance - radius, x, scale)


def _l2_ball_prox(params, v, step):
    radius, center = params
    difference = common.elementwise(jnp.subtract, v, center)
    size = common.norm(difference)
    return common.elementwise(lambda d, c: c + common.project(d, radius, size), difference, center)


def _l2_ball_conjugate(params, z):
    radius, center = params
    return radius * common.norm(z) + common.total(common.elementwise(lambda z, c: (jnp.conj(z) * c).real, z, center))


_L2_BALL = Kind(_l2_ball_value, _l2_ball_prox, _l2_ball_conjugate)


def _linf_ball_value(radius, x):
    return common.largest(common.elementwise(lambda x, r: common.indicator(common.modulus(x) - r, x, r), x, radius))


def _linf_ball_prox(radius, v, step):
    return common.elementwise(common.project, v, radius)


def _linf_ball_conjugate(radius, z):
    return common.total(common.elementwise(lambda z, r: r * common.modulus(z), z, radius))


_LINF_BALL = Kind(_linf_ball_value, _linf_ball_prox, _linf_ball_conjugate)


def _simplex_value(total, x):
    x = _flat(x)
    return common.indicator(jnp.maximum(jnp.abs(common.total(x) - total), -jnp.min(x)), x, total)


def _simplex_prox(total, v, step):
    common.check_real("prox.simplex", v)
    top, level = _level(_flat(v), total)
    return jax.tree.map(lambda v: jnp.where(v - top <= level, 0, v - top - level), v)


def _simplex_conjugate(total, z):
    return total * jnp.max(_flat(z))


_SIMPLEX = Kind(_simplex_value, _simplex_prox, _simplex_conjugate)
