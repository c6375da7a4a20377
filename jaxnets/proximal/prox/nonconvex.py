"""Sparser than l1, and not convex: the prox is a global minimizer, and 0 at the threshold, where there are two."""

import jax
import jax.numpy as jnp

from jaxnets.proximal.prox import common
from jaxnets.proximal.prox.term import Kind, Term
from jaxnets.types import PyTree


def l0(weight: PyTree) -> Term:
    """`weight` times the number of non-zeros; `weight` as in `l1`. Prox: hard threshold at `sqrt(2 weight step)`.

    Source: Blumensath & Davies (2008), doi:10.1007/s00041-008-9035-z.
    """
    weight = common.nonnegative("prox.l0: weight", weight)
    return Term(weight, _L0)


def l_half(weight: PyTree) -> Term:
    """`sum weight sqrt(|x|)`; `weight` as in `l1`. Prox: half threshold at `(27 (2 weight step)^2 / 32)^(1/3)`.

    Source: Xu et al. (2012), IEEE Trans. Neural Networks and Learning Systems 23(7), doi:10.1109/TNNLS.2012.2197412.
    """
    weight = common.nonnegative("prox.l_half: weight", weight)
    return Term(weight, _L_HALF)


def _l0_value(weight, x):
    return common.total(common.elementwise(lambda x, w: w * (x != 0), x, weight))


def _l0_prox(weight, v, step):
    return common.elementwise(_hard_threshold, v, jax.tree.map(lambda weight: 2 * step * weight, weight))


def _hard_threshold(v, square):
    return jnp.where(common.square(v) <= square, 0, jnp.where(jnp.isnan(square), jnp.nan, v))


_L0 = Kind(_l0_value, _l0_prox)


def _l_half_value(weight, x):
    return common.total(common.elementwise(lambda x, w: w * common.root(common.modulus(x)), x, weight))


def _l_half_prox(weight, v, step):
    def half_threshold(v, weight):
        size, scale = common.modulus(v), 2 * step * weight
        small = size**3 <= 27 / 32 * scale**2
        # The largest root r of r^3 - |v| r + scale / 4 = 0 is sqrt(|x|).
        third = jnp.where(small, 1, size / 3)
        angle = jnp.arccos(jnp.where(small, 0, -scale / 8 * third**-1.5))
        return jnp.where(small, 0, v * (2 / 3) * (1 + jnp.cos(2 / 3 * angle)))

    return common.elementwise(half_threshold, v, weight)


_L_HALF = Kind(_l_half_value, _l_half_prox)
