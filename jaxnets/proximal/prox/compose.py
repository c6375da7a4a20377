"""New terms from old ones: sums over a tree, changes of variable, a denoiser in place of a prox.

Source of the rules: Combettes & Pesquet (2011), Proximal splitting methods in signal processing, table 10.1, arXiv:0912.3522.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnets.proximal import tree as vectors
from jaxnets.proximal.linear import Operator
from jaxnets.proximal.prox import common
from jaxnets.proximal.prox.term import Kind, Static, Term, compose
from jaxnets.types import PyTree


def tree(terms: PyTree) -> Term:
    """`sum_i g_i(x_i)`, the tree of terms a prefix of that of `x`: `tree({"a": l1(0.1), "b": zero()})` penalizes `x["a"]`."""
    leaves = jax.tree.leaves(terms, is_leaf=_is_term)
    if not all(map(_is_term, leaves)):
        raise ValueError(f"prox.tree: every leaf must be a term, got {jax.tree.map(type, terms, is_leaf=_is_term)}.")
    return compose(terms, _TREE, leaves)


def orthogonal(term: Term, operator: Operator) -> Term:
    """`g(W x)` for an orthogonal (unitary) operator: `W^H W = W W^H = 1`, which is not checked. Prox: `W^H prox_g(W v)`."""
    before, after = (_real_numbers(side.tree()) for side in (operator.structure, operator.output))
    if before != after:
        raise ValueError(f"prox.orthogonal: operator must be square, got one from {before} to {after} real numbers.")
    return compose((term, operator), _ORTHOGONAL, [term])


def translate(term: Term, offset: PyTree) -> Term:
    """`g(x - offset)`; `offset` is a number, or broadcast to `x`. Prox: `offset + prox_g(v - offset)`.

    Of a set far smaller than `offset`, rounding puts the projections outside (value inf); use the `center` of `l2_ball`.
    """
    return compose((term, offset), _TRANSLATE, [term])


def tilt(term: Term, slope: PyTree) -> Term:
    """`g(x) + Re<slope, x>`; `slope` is a number, or broadcast to `x`. Prox: `prox_g(v - step slope)`."""
    return compose((term, slope), _TILT, [term])


def scale(term: Term, factor) -> Term:
    """`factor g(x)`, `factor >= 0`; also `term.scaled(factor)`."""
    return term.scaled(factor)


def dilate(term: Term, factor) -> Term:
    """`g(factor x)` for a real number `factor` other than 0. Prox: `prox_g(factor v, factor^2 step) / factor`."""
    return compose((term, common.nonzero("prox.dilate: factor", factor)), _DILATE, [term])


def plug_and_play(denoiser: Callable, params: PyTree = None, strength=1.0) -> Term:
    """A denoiser as a prox: `denoiser(params, v, noise)` with the standard deviation `noise = strength sqrt(step)`.

    A Flax model's `apply` fits as it is. The function is static (a new closure compiles anew); arrays belong in `params`.
    It minimizes no known function: the value is 0, so that an objective shows the data misfit, and there is no conjugate.
    Source: Venkatakrishnan, Bouman & Wohlberg (2013), doi:10.1109/GlobalSIP.2013.6737048.
    """
    strength = common.positive("prox.plug_and_play: strength", strength)
    return Term((params, strength, Static(denoiser)), _PLUG_AND_PLAY)


def _is_term(node):
    return isinstance(node, Term)


def _real_numbers(shapes):
    return sum(leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in jax.tree.leaves(shapes))


def _each(method, terms, x):
    return jax.tree.leaves(jax.tree.map(method, terms, x, is_leaf=_is_term))


def _tree_value(terms, x):
    return common.total(_each(Term.value, terms, x))


def _tree_prox(terms, v, step):
    return jax.tree.map(lambda term, v: term.prox(v, step), terms, v, is_leaf=_is_term)


def _tree_conjugate(terms, z):
    return common.total(_each(Term.conjugate, terms, z))


def _tree_domain(terms, z):
    return common.largest(_each(Term.domain, terms, z))


def _tree_at_zero(terms, z):
    return common.largest(_each(Term.at_zero, terms, z))


_TREE = Kind(_tree_value, _tree_prox, _tree_conjugate, _tree_domain, _tree_at_zero)


def _orthogonal_value(params, x):
    term, operator = params
    return term.value(operator(x))


def _orthogonal_prox(params, v, step):
    term, operator = params
    return operator.adjoint(term.prox(operator(v), step))


def _orthogonal_conjugate(params, z):
    term, operator = params
    return term.conjugate(operator(z))


def _orthogonal_domain(params, z):
    term, operator = params
    return term.domain(operator(z))


def _orthogonal_at_zero(params, z):
    term, operator = params
    return term.at_zero(operator(z))


_ORTHOGONAL = Kind(_orthogonal_value, _orthogonal_prox, _orthogonal_conjugate, _orthogonal_domain, _orthogonal_at_zero)


def _inner(a, x):
    return common.total(common.elementwise(lambda x, a: (jnp.conj(a) * x).real, x, a))


def _translate_value(params, x):
    term, offset = params
    return term.value(common.elementwise(jnp.subtract, x, offset))


def _translate_prox(params, v, step):
    term, offset = params
    return common.elementwise(jnp.add, term.prox(common.elementwise(jnp.subtract, v, offset), step), offset)


def _translate_conjugate(params, z):
    term, offset = params
    return term.conjugate(z) + _inner(offset, z)


def _inner_domain(params, z):
    return params[0].domain(z)


_TRANSLATE = Kind(_translate_value, _translate_prox, _translate_conjugate, _inner_domain)


def _tilt_value(params, x):
    term, slope = params
    return term.value(x) + _inner(slope, x)


def _tilt_prox(params, v, step):
    term, slope = params
    return term.prox(common.elementwise(lambda v, slope: v - step * slope, v, slope), step)


_TILT = Kind(_tilt_value, _tilt_prox)


def _dilate_value(params, x):
    term, factor = params
    return term.value(vectors.scale(factor, x))


def _dilate_prox(params, v, step):
    term, factor = params
    return vectors.scale(1 / factor, term.prox(vectors.scale(factor, v), factor**2 * step))


def _dilate_conjugate(params, z):
    term, factor = params
    return term.conjugate(vectors.scale(1 / factor, z))


def _dilate_domain(params, z):
    term, factor = params
    return term.domain(vectors.scale(1 / factor, z))


def _dilate_at_zero(params, z):
    term, factor = params
    return term.at_zero(vectors.scale(1 / factor, z))


_DILATE = Kind(_dilate_value, _dilate_prox, _dilate_conjugate, _dilate_domain, _dilate_at_zero)


def _denoiser_value(_, x):
    return 0 * common.total(jax.tree.map(jnp.real, x))


def _denoiser_prox(options, v, step):
    params, strength, denoiser = options
    return denoiser.value(params, v, strength * jnp.sqrt(step))


_PLUG_AND_PLAY = Kind(_denoiser_value, _denoiser_prox, symmetric=False)
