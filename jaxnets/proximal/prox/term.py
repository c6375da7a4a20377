"""A nonsmooth term of an objective as plain data: its value, its proximal operator, its conjugate."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.proximal import tree
from jaxnets.proximal.prox import common
from jaxnets.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """The functions of a term, each of its parameters first. What a term doesn't have is None.

    Where `domain` is inf, no multiple of `z` but 0 is a feasible dual point (the domain is a cone, or part of one: `zero`,
    `nonnegative`, a weight of 0): a duality gap is then that of the point 0, and stays large up to the solution.
    """

    value: Callable  # (params, x) -> g(x); indicators give 0 inside (up to rounding) and inf outside
    prox: Callable  # (params, v, step) -> argmin_x g(x) + |x - v|^2 / (2 step)
    conjugate: Callable | None = None  # (params, z) -> g*(z) = sup_x Re<x, z> - g(x)
    domain: Callable | None = None  # (params, z) -> smallest c >= 0 with g*(z / c) finite; None: g* is finite everywhere
    at_zero: Callable | None = None  # (params, z) -> smallest c >= 0 with z in c dg(0): z = -grad f(0) makes it lambda_max
    symmetric: bool = (
        True  # the Jacobian of the prox, as of any function g; not that of a denoiser or of an unfinished iteration
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """An option among a term's parameters that is no array: an axis, a count, a function. It must be hashable."""

    value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """`term.value(x)`, `term.prox(v, step)`, `term.conjugate(z)`; `params` are leaves, so gradients and `vmap` reach them.

    Every result has the dtypes of `x`, `v` or `z`, whatever those of the parameters and the step.
    """

    params: Any
    kind: Kind = dataclasses.field(metadata={"static": True})

    def value(self, x: PyTree):
        """`g(x)`."""
        return _real(self.kind.value(self.params, x), x)

    def prox(self, v: PyTree, step) -> PyTree:
        """`argmin_x g(x) + |x - v|^2 / (2 step)`."""
        x = self.kind.prox(self.params, v, step)
        return jax.tree.map(lambda x, v: x.astype(jnp.result_type(v, float)), x, v)

    def moreau(self, v: PyTree, step):
        """Moreau envelope `min_x g(x) + |x - v|^2 / (2 step)`; its gradient in `v` is `(v - prox(v, step)) / step`."""
        x = self.prox(v, step)
        return self.value(x) + tree.squared_norm(tree.subtract(v, x)) / (2 * step)

    def conjugate(self, z: PyTree):
        """`g*(z) = sup_x Re<x, z> - g(x)`."""
        if self.kind.conjugate is None:
            raise ValueError("prox: this term has no conjugate in closed form.")
        return _real(self.kind.conjugate(self.params, z), z)

    def domain(self, z: PyTree):
        """The smallest `c >= 0` with `g*(z / c)` finite: `z / max(1, c)` is a feasible dual point."""
        if self.kind.conjugate is None:
            raise ValueError("prox: this term has no conjugate in closed form.")
        return _real(0 if self.kind.domain is None else self.kind.domain(self.params, z), z)

    def at_zero(self, z: PyTree):
        """The smallest `c >= 0` with `z` in `c dg(0)`: at `z = -grad f(0)` the factor of `g` from which 0 solves `f + c g`."""
        if self.kind.at_zero is None:
            raise ValueError("prox: this term has no subdifferential at 0 in closed form.")
        return _real(self.kind.at_zero(self.params, z), z)

    def prox_conjugate(self, z: PyTree, step) -> PyTree:
        """Proximal operator of `g*` by the Moreau identity: `z - step prox_g(z / step, 1 / step)`. Source: Moreau (1965)."""
        return tree.add_scaled(z, -step, self.prox(tree.scale(1 / step, z), 1 / step))

    def scaled(self, factor) -> "Term":
        """`factor g(x)`, `factor >= 0`."""
        factor = common.nonnegative("prox.scale: factor", factor)
        return compose((self, factor), _SCALED, [self])


def compose(params: Any, kind: Kind, terms: list[Term]) -> Term:
    """A term of others: it has no conjugate, or no subdifferential at 0, where one of them has none."""
    kinds = [term.kind for term in terms]
    dual, at_zero = (all(getattr(kind, name) is not None for kind in kinds) for name in ("conjugate", "at_zero"))
    return Term(params, _restrict(kind, dual, at_zero, all(kind.symmetric for kind in kinds)))


@functools.cache  # one kind for all terms made alike: kinds are compared by identity
def _restrict(kind: Kind, dual: bool, at_zero: bool, symmetric: bool) -> Kind:
    kind = kind if dual else dataclasses.replace(kind, conjugate=None, domain=None)
    kind = kind if at_zero else dataclasses.replace(kind, at_zero=None)
    return kind if symmetric else dataclasses.replace(kind, symmetric=False)


def _real(value, x):
    return jnp.asarray(value, jnp.finfo(jnp.result_type(float, *jax.tree.leaves(x))).dtype)


def _scaled_value(params, x):
    term, factor = params
    return factor * term.value(x)


def _scaled_prox(params, v, step):
    term, factor = params
    return term.prox(v, factor * step)


def _scaled_conjugate(params, z):
    term, factor = params
    return factor * term.conjugate(jax.tree.map(lambda z: common.gauge(z, factor), z))


def _scaled_domain(params, z):
    term, factor = params
    return common.gauge(term.domain(z), factor)


def _scaled_at_zero(params, z):
    term, factor = params
    return common.gauge(term.at_zero(z), factor)


_SCALED = Kind(_scaled_value, _scaled_prox, _scaled_conjugate, _scaled_domain, _scaled_at_zero)
