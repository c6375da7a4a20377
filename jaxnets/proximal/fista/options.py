"""Options of the solver as small values: step sizes, momenta, restarts, stopping rules. Their numbers may be traced."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.types import Array

Number = int | float | Array


# --- step sizes ---------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepSize:
    """How a step size is chosen; `rule` is None (never changed), or "curvature" or "objective": what a trial has to pass."""

    initial: Any
    shrink: Any = 1.0
    grow: Any = 1.0
    memory: Any = 0.0
    rule: str | None = dataclasses.field(default=None, metadata={"static": True})


def constant(step_size: Number) -> StepSize:
    """The step size of the theory is `1 / L`, `L` the Lipschitz constant of the gradient: `|A|^2` for least squares.

    Raises:
      ValueError: not positive. Beyond `1 / L` the status of the solution tells.
    """
    _positive("constant", "step_size", step_size)
    return StepSize(step_size)


def backtracking(initial: Number | None = None, *, shrink: Number = 0.5, grow: Number = 1.1) -> StepSize:
    """Shrinks a step until `f` lies below its quadratic model of curvature `1 / step`; the next one tries `grow` times as much.

    The model holds where `|A (x+ - y)|^2 <= |x+ - y|^2 / step` (times the curvature of the loss): a test of differences,
    right in float32 where that of function values isn't. A refusal costs one more `A`. Without `initial` the first trial is
    the inverse curvature along the first gradient, `|g|^2 / |A g|^2`. Growing follows the curvature where the iterates are,
    which is lower than `|A|^2`: the four lasso problems of the tests take 29 to 168 products with `A`, with a constant
    `1 / L` 66 to 288 (float64, to a KKT error of 1e-8, both with restart, 2026-11-22). `grow=1` never grows.

    Raises:
      ValueError: `initial <= 0`, `shrink` outside (0, 1), `grow < 1`.
    Source: Beck & Teboulle (2009), section 4; growing: Scheinberg, Goldfarb & Bai (2014), doi:10.1007/s10208-014-9189-9.
    """
    _positive("backtracking", "initial", initial)
    _inside("backtracking", "shrink", shrink, 0, 1)
    if isinstance(grow, int | float) and grow < 1:
        raise ValueError(f"backtracking: grow must be at least 1, got {grow}.")
    return StepSize(initial, shrink, grow, rule="curvature")


def barzilai_borwein(initial: Number | None = None, *, shrink: Number = 0.5, memory: Number = 0.85) -> StepSize:
    """The inverse curvature along the last step, `|dx|^2 / Re<dx, dgrad>`, for `momentum=none()`.

    Safeguard: a step is shrunk until the objective lies below a running mean of the earlier ones, which keeps a share `memory`.

    Raises:
      ValueError: `initial <= 0`, `shrink` outside (0, 1), `memory` outside [0, 1).
    Source: Barzilai & Borwein (1988), doi:10.1093/imanum/8.1.141; safeguard: Zhang & Hager (2004),
    doi:10.1137/S1052623403428208; with a prox: Wright, Nowak & Figueiredo (2009), doi:10.1109/TSP.2009.2016892.
    """
    _positive("barzilai_borwein", "initial", initial)
    _inside("barzilai_borwein", "shrink", shrink, 0, 1)
    if isinstance(memory, int | float) and not 0 <= memory < 1:
        raise ValueError(f"barzilai_borwein: memory must be inside [0, 1), got {memory}.")
    return StepSize(initial, shrink, memory=memory, rule="objective")


# --- momentum -----------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Momentum:
    """`y = x + β (x - x_prev)`; `advance(params, t, ratio, step_size) -> (β, next t)`, `ratio` this step size over the next."""

    advance: Callable = dataclasses.field(metadata={"static": True})
    params: Any = None
    stretch: Any = None  # steps are this much longer than 1 / L ...
    decay: Any = None  # ... and lose it by this factor whenever one is longer than the first; None: neither
    tolerated: float = dataclasses.field(default=1.0, metadata={"static": True})  # a step size up to this over L descends


def none() -> Momentum:
    """No momentum: ISTA, or plain gradient descent. Source: Daubechies, Defrise & De Mol (2004), doi:10.1002/cpa.20042."""
    return Momentum(_none, tolerated=2.0)


ista = none


def nesterov() -> Momentum:
    """`t+ = (1 + sqrt(1 + 4 t^2)) / 2`, `β = (t - 1) / t+`. Source: Nesterov (1983); Beck & Teboulle (2009), eq. 4.2-4.3."""
    return Momentum(_nesterov)


def chambolle_dossal(a: Number = 3.0) -> Momentum:
    """`β_k = (k - 1) / (k + a)`: for `a > 2` the iterates converge, not only the objective.

    Raises:
      ValueError: `a < 2`.
    Source: Chambolle & Dossal (2015), doi:10.1007/s10957-015-0746-4.
    """
    if isinstance(a, int | float) and a < 2:
        raise ValueError(f"chambolle_dossal: a must be at least 2, got {a}.")
    return Momentum(_chambolle_dossal, a)


def strongly_convex(mu: Number) -> Momentum:
    """`β = (1 - sqrt(mu step)) / (1 + sqrt(mu step))` for an objective that is `mu`-strongly convex: linear convergence.

    Raises:
      ValueError: `mu <= 0`.
    Source: Nesterov (2004), Introductory Lectures on Convex Optimization, section 2.2.1.
    """
    _positive("strongly_convex", "mu", mu)
    return Momentum(_strongly_convex, mu)


def greedy(stretch: Number = 1.3, *, decay: Number = 0.96) -> Momentum:
    """`β = 1` and steps of `1.3 / L`, kept in check by a restart (needed), the stretch given up when the steps get longer.

    Raises:
      ValueError: `stretch` outside [1, 2), `decay` outside (0, 1).
    Source: Liang, Luo & Schoenlieb (2022), doi:10.1137/21M1395685, algorithm 4.3.
    """
    if isinstance(stretch, int | float) and not 1 <= stretch < 2:
        raise ValueError(f"greedy: stretch must be inside [1, 2), got {stretch}.")
    _inside("greedy", "decay", decay, 0, 1)
    return Momentum(_greedy, None, stretch, decay)


def _none(_, t, ratio, step_size):
    return jnp.zeros_like(t), t


def _nesterov(_, t, ratio, step_size):
    following = (1 + jnp.sqrt(1 + 4 * ratio * t**2)) / 2
    return (t - 1) / following, following


def _chambolle_dossal(a, t, ratio, step_size):
    following = t + 1 / jnp.asarray(a, t.dtype)
    return (t - 1) / following, following


def _strongly_convex(mu, t, ratio, step_size):
    root = jnp.minimum(1, jnp.sqrt(mu * step_size)).astype(t.dtype)
    return (1 - root) / (1 + root), t


def _greedy(_, t, ratio, step_size):
    return jnp.ones_like(t), t


# --- restarts -----------------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Restart:
    """`test(params, alignment, increase, age)` tells when to forget the momentum."""

    test: Callable = dataclasses.field(metadata={"static": True})
    params: Any = None
    needs_objective: bool = dataclasses.field(default=False, metadata={"static": True})


def gradient() -> Restart:
    """Restart when the momentum points uphill, `Re<y - x+, x+ - x> > 0`: free.

    Source: O'Donoghue & Candes (2015), doi:10.1007/s10208-013-9150-3, section 3.2.
    """
    return Restart(_uphill)


def function() -> Restart:
    """Restart when the objective rises. Source: O'Donoghue & Candes (2015), section 3.2."""
    return Restart(_rises, needs_objective=True)


def every(k: int | Array) -> Restart:
    """Restart every `k` steps.

    Raises:
      ValueError: `k < 1`.
    """
    _positive("every", "k", k)
    return Restart(_due, k)


def never() -> Restart:
    """The plain method."""
    return Restart(_never)


def _uphill(_, alignment, increase, age):
    return alignment > 0


def _rises(_, alignment, increase, age):
    return increase > 0


def _due(k, alignment, increase, age):
    return age >= k


def _never(_, alignment, increase, age):
    return False


# --- stopping rules -----------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stop:
    """`test(params, state)` tells when a state is good enough."""

    test: Callable = dataclasses.field(metadata={"static": True})
    params: Any
    needs: frozenset[str] = dataclasses.field(default=frozenset(), metadata={"static": True})


def gap(tolerance: Number) -> Stop:
    """Stop at a duality gap of `tolerance f(0)`, `|y|^2 / 2` for least squares: `F(x) - F*` is smaller, up to rounding.

    Terms that leave a direction unpenalized (`zero`, `nonnegative`, a weight of 0) give no useful bound: use `residual`.

    Raises (here or from the solver):
      ValueError: `tolerance < 0`; a term without a conjugate, a problem made by `smooth`.
    """
    _not_negative("gap", "tolerance", tolerance)
    return Stop(_gap, tolerance, frozenset({"gap"}))


def residual(tolerance: Number | None = None) -> Stop:
    """Stop at an optimality residual `|x+ - y| / step <= tolerance |grad f(0)|`; by default 1e-5 in float32, 1e-9 in float64.

    In 16 bits the default is the root of their unit, 0.09 and 0.03.
    The distance of `0` from `grad f(x+) + dg(x+)` is at most twice `|x+ - y| / step`.
    """
    if tolerance is not None:
        _not_negative("residual", "tolerance", tolerance)
    return Stop(_residual, tolerance)


def step_change(tolerance: Number) -> Stop:
    """Stop at `|x+ - x| <= tolerance |x+|`: cheap, says little where steps are short."""
    _not_negative("step_change", "tolerance", tolerance)
    return Stop(_step_change, tolerance)


def discrepancy(noise_norm: Number) -> Stop:
    """Stop at `|A x - y| <= noise_norm` (weighted with the weights' roots): early stopping as regularization, of least squares.

    Source: Morozov (1966), Soviet Mathematics Doklady 7.
    """
    _not_negative("discrepancy", "noise_norm", noise_norm)
    return Stop(_discrepancy, noise_norm, frozenset({"least squares"}))


def any_of(*stops: Stop) -> Stop:
    """Stop when one of them would."""
    return Stop(_any_of, stops, frozenset().union(*(stop.needs for stop in stops)))


def _gap(tolerance, state):
    return state.gap <= tolerance * state.value_at_zero


def _residual(tolerance, state):
    if tolerance is None:
        eps = float(jnp.finfo(state.residual.dtype).eps)
        tolerance = eps**0.5 if eps > 1e-6 else 1e-5 if eps > 1e-10 else 1e-9
    return state.residual <= tolerance


def _step_change(tolerance, state):
    return state.change <= tolerance


def _discrepancy(noise_norm, state):
    return 2 * state.value <= noise_norm**2


def _any_of(stops, state):
    return jnp.any(jnp.stack([stop.test(stop.params, state) for stop in stops]))


def _positive(function, argument, value):
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{function}: {argument} must be positive, got {value}.")


def _not_negative(function, argument, value):
    if isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{function}: {argument} must not be negative, got {value}.")


def _inside(function, argument, value, low, high):
    if isinstance(value, int | float) and not low < value < high:
        raise ValueError(f"{function}: {argument} must be inside ({low}, {high}), got {value}.")
