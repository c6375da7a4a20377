"""The nuclear norm: l1 of the singular values."""

import jax
import jax.numpy as jnp

from jaxnets.proximal.prox import common
from jaxnets.proximal.prox.term import Kind, Term
from jaxnets.types import PyTree


def nuclear(weight: PyTree) -> Term:
    """`weight` times the sum of the singular values of the last two axes; `weight` is a number, or broadcast to the other axes.

    Prox: soft threshold of the singular values. Source: Cai, Candès & Shen (2010), SIAM J. Optim. 20(4), doi:10.1137/080738970.
    """
    weight = common.nonnegative("prox.nuclear: weight", weight)
    return Term(weight, _NUCLEAR)


def _singular_values(x):
    return jnp.linalg.svd(common.wide(x), compute_uv=False)


def _value(weight, x):
    def leaf(x, w):
        return common.fit(w, x.shape[:-2]) * jnp.sum(_singular_values(x), axis=-1)

    return common.total(common.leafwise(leaf, x, weight))


def _prox(weight, v, step):
    def leaf(v, weight):
        v = common.wide(v)
        threshold = jnp.broadcast_to(jnp.asarray(step * weight, v.real.dtype), v.shape[:-2])
        return _shrink_singular_values(v, threshold)

    return common.leafwise(leaf, v, weight)


def _dual_norm(weight, z):
    def leaf(z, w):
        return common.gauge(jnp.max(_singular_values(z), axis=-1), common.fit(w, z.shape[:-2]))

    return common.largest(common.leafwise(leaf, z, weight))


def _conjugate(weight, z):
    return common.indicator(_dual_norm(weight, z) - 1, z)


_NUCLEAR = Kind(_value, _prox, _conjugate, _dual_norm, _dual_norm)


@jax.custom_jvp
def _shrink_singular_values(v, threshold):
    left, values, right = jnp.linalg.svd(v, full_matrices=False)
    return _product(left, common.shrink(values, threshold[..., None]), right)


def _product(left, diagonal, right):
    return (left * diagonal[..., None, :]) @ right


def _adjoint(matrix):
    return jnp.conj(jnp.swapaxes(matrix, -1, -2))


@_shrink_singular_values.defjvp
def _shrink_singular_values_jvp(primals, tangents):
    """By quotients of differences and of sums, finite where values repeat or vanish and the derivatives of the SVD are not.

    Source: Candès, Sing-Long & Trzasko (2013), doi:10.1109/TSP.2013.2270464.
    """
    (v, threshold), (tangent, threshold_tangent) = primals, tangents
    left, values, right = jnp.linalg.svd(v, full_matrices=False)
    threshold, threshold_tangent = threshold[..., None], threshold_tangent[..., None]
    identity = threshold == 0
    shrunk, kept = common.shrink(values, threshold), (values > threshold) | identity

    def outer(function, a):
        return function(a[..., :, None], a[..., None, :])

    def quotient(a, b, limit):
        return jnp.where(b == 0, limit, a / jnp.where(b == 0, 1, b))

    ratio = quotient(shrunk, values, identity)
    sums = quotient(outer(jnp.add, shrunk), outer(jnp.add, values), identity[..., None])
    # 1 between two kept values, 0 between two removed ones: no small difference over another.
    one_kept = outer(jnp.logical_xor, kept) * outer(jnp.subtract, values)
    differences = quotient(outer(jnp.subtract, shrunk), one_kept, outer(jnp.logical_and, kept))

    rows, columns = tangent @ _adjoint(right), _adjoint(left) @ tangent
    core = _adjoint(left) @ rows
    even, odd = (core + _adjoint(core)) / 2, (core - _adjoint(core)) / 2
    inside = left @ (differences * even + sums * odd) @ right
    outside = _product(rows - left @ core, ratio, right) + _product(left, ratio, columns - core @ right)
    moved = _product(left, jnp.where(kept, threshold_tangent, 0), right)
    return _product(left, shrunk, right), inside + outside - moved
