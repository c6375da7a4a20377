"""Convex penalties: norms, their squares and mixtures. A pytree is one vector: sums run over it all, and `l2` is one norm."""

import jax
import jax.numpy as jnp

from jaxnets.proximal.prox import common
from jaxnets.proximal.prox.term import Kind, Static, Term
from jaxnets.types import PyTree


def zero() -> Term:
    """`g(x) = 0`: FISTA with it is plain (accelerated) gradient descent. No duality gap: stop by the residual (see `Kind`)."""
    return Term((), _ZERO)


def l1(weight: PyTree) -> Term:
    """`sum weight |x|`, of a complex `x` the modulus; `weight` is a number, or an array or tree that is broadcast to `x`.

    Prox: soft threshold at `weight step`. Some weights 0: no duality gap, as for `zero`.
    Source: Donoho (1995), IEEE Trans. Information Theory 41(3), doi:10.1109/18.382009.
    """
    weight = common.nonnegative("prox.l1: weight", weight)
    return Term(weight, _L1)


def l2(weight: PyTree) -> Term:
    """`weight |x|_2`: the Euclidean norm of all of `x`, not squared. Source: Parikh & Boyd (2014), section 6.5."""
    weight = common.nonnegative("prox.l2: weight", weight)
    return Term(weight, _L2)


def squared_l2(weight: PyTree) -> Term:
    """`sum weight |x|^2 / 2`; `weight` is a number, or broadcast to `x` as in `l1`. Prox: `v / (1 + weight step)`."""
    weight = common.nonnegative("prox.squared_l2: weight", weight)
    return Term(weight, _SQUARED_L2)


def group_l21(weight: PyTree, axis: int | tuple[int, ...] = -1) -> Term:
    """`sum weight |x|_2`, a norm over `axis` for each index of the others; `weight` is a number, or broadcast to those.

    Prox: the block soft threshold. Source: Yuan & Lin (2006), doi:10.1111/j.1467-9868.2005.00532.x.
    """
    weight = common.nonnegative("prox.group_l21: weight", weight)
    return Term((weight, Static(axis)), _GROUP)


def elastic_net(l1: PyTree, l2: PyTree) -> Term:
    """`sum l1 |x| + l2 |x|^2 / 2`; weights as in `l1`. Source: Zou & Hastie (2005), doi:10.1111/j.1467-9868.2005.00503.x."""
    l1, l2 = common.nonnegative("prox.elastic_net: l1", l1), common.nonnegative("prox.elastic_net: l2", l2)
    return Term((l1, l2), _ELASTIC_NET)


def huber(weight: PyTree, delta: PyTree) -> Term:
    """`sum weight h(|x|)` with `h(r) = r^2 / 2` for `r <= delta`, else `delta (r - delta / 2)`: smooth, and has a prox too.

    Source: Huber (1964), Annals of Mathematical Statistics 35(1), doi:10.1214/aoms/1177703732.
    """
    weight = common.nonnegative("prox.huber: weight", weight)
    delta = common.positive("prox.huber: delta", delta)
    return Term((weight, delta), _HUBER)


def _zero_value(_, x):
    return 0 * common.total(jax.tree.map(jnp.real, x))  # of the dtype of x, and NaN where x is


def _zero_prox(_, v, step):
    return v


def _zero_domain(_, z):
    return common.largest(jax.tree.map(lambda z: common.gauge(common.modulus(z), 0), z))


def _zero_conjugate(_, z):
    return common.indicator(_zero_domain(_, z), z)


_ZERO = Kind(_zero_value, _zero_prox, _zero_conjugate, _zero_domain, _zero_domain)


def _l1_value(weight, x):
    return common.total(common.elementwise(lambda x, w: w * common.modulus(x), x, weight))


def _l1_prox(weight, v, step):
    return common.elementwise(lambda v, w: common.shrink(v, step * w), v, weight)


def _l1_dual_norm(weight, z):
    return common.largest(common.elementwise(lambda z, w: common.gauge(common.modulus(z), w), z, weight))


def _l1_conjugate(weight, z):
    return common.indicator(_l1_dual_norm(weight, z) - 1, z)


_L1 = Kind(_l1_value, _l1_prox, _l1_conjugate, _l1_dual_norm, _l1_dual_norm)


def _l2_value(weight, x):
    return weight * common.norm(x)


def _l2_prox(weight, v, step):
    size = common.norm(v)
    return jax.tree.map(lambda v: common.shrink(v, step * weight, size), v)


def _l2_dual_norm(weight, z):
    return common.gauge(common.norm(z), weight)


def _l2_conjugate(weight, z):
    return common.indicator(_l2_dual_norm(weight, z) - 1, z)


_L2 = Kind(_l2_value, _l2_prox, _l2_conjugate, _l2_dual_norm, _l2_dual_norm)


def _squared_value(weight, x):
    return common.total(common.elementwise(lambda x, w: w * common.square(x), x, weight)) / 2


def _squared_prox(weight, v, step):
    return common.elementwise(lambda v, w: v / (1 + step * w), v, weight)


def _squared_conjugate(weight, z):
    return common.total(common.elementwise(lambda z, w: common.gauge(common.square(z), w), z, weight)) / 2


def _squared_domain(weight, z):
    return common.largest(common.elementwise(lambda z, w: _unless_curved(common.modulus(z), w, 0), z, weight))


def _unless_curved(size, curvature, slope):
    """The gauge of a term that grows like `slope |x|`, and 0 where a positive `curvature` makes its conjugate finite."""
    return common.gauge(size, jnp.where(curvature > 0, jnp.inf, slope))


_SQUARED_L2 = Kind(_squared_value, _squared_prox, _squared_conjugate, _squared_domain)


def _group_norms(x, axis, keepdims=False):
    return common.root(jnp.sum(common.square(x), axis=axis, keepdims=keepdims))


def _group_map(function, x, params):
    """`function(leaf, weight, axis)` with the weight of each group."""
    weight, axis = params

    def leaf(x, weight):
        groups = jax.eval_shape(lambda x: _group_norms(x, axis.value), x).shape
        return function(x, common.fit(weight, groups), axis.value)

    return common.leafwise(leaf, x, weight)


def _group_value(params, x):
    return common.total(_group_map(lambda x, w, axis: w * _group_norms(x, axis), x, params))


def _group_prox(params, v, step):
    def leaf(v, w, axis):
        threshold = step * w
        if jnp.ndim(threshold):
            threshold = jnp.expand_dims(threshold, axis)
        return common.shrink(v, threshold, _group_norms(v, axis, keepdims=True))

    return _group_map(leaf, v, params)


def _group_dual_norm(params, z):
    return common.largest(_group_map(lambda z, w, axis: common.gauge(_group_norms(z, axis), w), z, params))


def _group_conjugate(params, z):
    return common.indicator(_group_dual_norm(params, z) - 1, z)


_GROUP = Kind(_group_value, _group_prox, _group_conjugate, _group_dual_norm, _group_dual_norm)


def _elastic_value(params, x):
    return _l1_value(params[0], x) + _squared_value(params[1], x)


def _elastic_prox(params, v, step):
    return common.elementwise(lambda v, l1, l2: common.shrink(v, step * l1) / (1 + step * l2), v, *params)


def _elastic_conjugate(params, z):
    def excess(z, l1, l2):
        slack = jnp.where(l2 > 0, 0, common.rounding(z) * l1)  # without l2 it is the conjugate of l1: an indicator
        outside = common.modulus(z) - l1
        return common.gauge(jnp.where(outside > slack, outside, 0) ** 2, 2 * l2)

    return common.total(common.elementwise(excess, z, *params))


def _elastic_domain(params, z):
    return common.largest(common.elementwise(lambda z, l1, l2: _unless_curved(common.modulus(z), l2, l1), z, *params))


def _elastic_at_zero(params, z):
    return _l1_dual_norm(params[0], z)


_ELASTIC_NET = Kind(_elastic_value, _elastic_prox, _elastic_conjugate, _elastic_domain, _elastic_at_zero)


def _huber_value(params, x):
    def penalty(x, weight, delta):
        size = common.modulus(x)
        near = jnp.minimum(size, delta)
        return weight * near * (size - near / 2)

    return common.total(common.elementwise(penalty, x, *params))


def _huber_prox(params, v, step):
    def pull(v, weight, delta):
        near = common.modulus(v) <= delta * (1 + step * weight)
        return jnp.where(near, v / (1 + step * weight), v - step * weight * delta * common.direction(v))

    return common.elementwise(pull, v, *params)


def _huber_domain(params, z):
    return common.largest(common.elementwise(lambda z, w, delta: common.gauge(common.modulus(z), w * delta), z, *params))


def _huber_conjugate(params, z):
    return _squared_conjugate(params[0], z) + common.indicator(_huber_domain(params, z) - 1, z)


_HUBER = Kind(_huber_value, _huber_prox, _huber_conjugate, _huber_domain)
