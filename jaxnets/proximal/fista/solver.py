"""Whole runs: `fista` until a stopping rule holds, `unrolled` for a fixed number of steps, `path` over many weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.proximal import implicit, prox, tree
from jaxnets.proximal.fista import iteration, options, problems
from jaxnets.proximal.fista.iteration import CONVERGED, LIMIT, NOT_DESCENDING, NOT_FINITE, RUNNING
from jaxnets.types import Array, Float, PyTree

MEANING = {
    RUNNING: "running",
    CONVERGED: "converged",
    LIMIT: "stopped at the limit of steps",
    NOT_FINITE: "not finite: NaN in the data, or a step size far beyond 1 / L",
    NOT_DESCENDING: "not descending: the step size is beyond 1 / L",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """One row per step, row 0 at `x0`; NaN where not reached, not asked for or not defined. An outer `vmap` adds an axis."""

    # Any: jax.eval_shape and jax.device_get make trees of shapes or numpy arrays out of them.
    objective: Any
    residual: Any
    gap: Any
    nonzeros: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """A minimizer and how it was reached; only `x` has a derivative.

    `status` is one of the codes that `describe` spells out. `gap` bounds `objective - min F`; it is NaN where the term has no
    conjugate or the problem no operator. `residual` is that of the stopping rule of this name. `step_size` is the next to try.
    """

    x: PyTree
    status: Any  # int32
    steps: Any  # int32
    gap: Any
    objective: Any
    residual: Any
    step_size: Any
    history: History | None


def fista(
    problem: problems.Smooth,
    term: prox.Term,
    x0: PyTree,
    *,
    step: options.StepSize = options.backtracking(),
    momentum: options.Momentum = options.nesterov(),
    restart: options.Restart = options.gradient(),
    stop: options.Stop | None = options.residual(),
    max_steps: int = 1000,
    history: bool = False,
    monotone: bool = False,
) -> Solution:
    """Minimizes `f(x) + g(x)`, `f` a smooth problem and `g` a term of `prox`; `x0` any pytree.

    Guarantee of `constant(1 / L)` and `restart=never()`: `F(x_k) - F* <= 2 L |x0 - x*|^2 / (k + 1)^2`. Nothing is raised while
    it runs: look at `status`. Under `vmap` each problem stops on its own. Differentiable in both modes, through the fixed point
    and not the steps (`implicit`), with respect to every array inside `problem` and `term`; the derivative by `x0` is 0.
    Jit the caller: outside of jit every call compiles its loop anew.

    Raises:
      ValueError: `max_steps < 1`; `x0` not of the shape that the operator takes; a stopping rule that needs another problem.
    """
    if max_steps < 1:
        raise ValueError(f"fista: max_steps must be at least 1, got {max_steps}.")
    needs = frozenset() if stop is None else stop.needs
    if "gap" in needs and not iteration.certifiable(problem, term):
        raise ValueError(
            "fista: stop=gap(...) needs a problem with an operator and a term with a conjugate; use residual(...)."
        )
    if "least squares" in needs and problem.loss is not problems.LEAST_SQUARES:
        raise ValueError("fista: stop=discrepancy(...) is for least_squares problems.")
    certify = history or "gap" in needs
    # The derivative is that of the fixed point: nothing inside the loop has one.
    fixed_problem, fixed_term, x0, step, momentum, restart, stop = lax.stop_gradient(
        (problem, term, x0, step, momentum, restart, stop)
    )
    state = iteration.init(fixed_problem, fixed_term, x0, step=step, momentum=momentum)
    rows = _record(_blank(max_steps, state), state) if history else None

    def unfinished(carry):
        return (carry[0].status == RUNNING) & (carry[0].steps < max_steps)

    def advance(carry):
        state, rows = carry
        state = iteration.step(
            fixed_problem,
            fixed_term,
            state,
            step=step,
            momentum=momentum,
            restart=restart,
            monotone=monotone,
            certify=certify,
        )
        if stop is not None:
            done = (state.status == RUNNING) & stop.test(stop.params, state)
            state = dataclasses.replace(state, status=jnp.where(done, CONVERGED, state.status))
        return state, None if rows is None else _record(rows, state)

    state, rows = lax.while_loop(unfinished, advance, (state, rows))
    stuck = jnp.where(state.violated, NOT_DESCENDING, LIMIT)
    gap = state.gap
    if not certify:  # one pass for a number that says how good the answer is
        slope = fixed_problem.slope(state.image)
        gap = iteration.duality_gap(fixed_problem, fixed_term, state.x, state.image, slope, fixed_problem.pull(slope))
    return Solution(
        x=implicit.attach(state.x, problem, term, state.step_size),
        status=jnp.where(state.status == RUNNING, stuck, state.status),
        steps=state.steps,
        gap=gap.astype(state.gap.dtype),
        objective=state.value + fixed_term.value(state.x),
        residual=state.residual,
        step_size=state.step_size,
        history=rows,
    )


def describe(solution: Solution) -> Any:
    """The status in words, on the host; a list for a batch of solutions."""
    codes = np.asarray(solution.status)
    return np.vectorize(MEANING.get, otypes=[object])(codes).tolist()


def lam_max(problem: problems.Smooth, term: prox.Term) -> Float[Array, ""]:
    """The smallest factor on the term that makes the solution 0: with `prox.l1(1.0)`, the lambda where lasso becomes exactly 0.

    Rounded up by a few units, since the solver's own rounding may differ.

    Raises:
      ValueError: a term that doesn't know it.
    """
    if term.kind.at_zero is None:
        raise ValueError("lam_max: this term has no factor that makes 0 the solution, or it is unknown.")
    if problem.operator is None:
        raise ValueError("lam_max: needs a problem with an operator.")
    slope = problem.gradient(problem.operator.structure.zeros())
    value = term.kind.at_zero(term.params, tree.scale(-1, slope))
    return value * (1 + 8 * jnp.finfo(value.dtype).eps)


def unrolled(
    problem: problems.Smooth,
    term: prox.Term,
    x0: PyTree,
    *,
    steps: int,
    step: options.StepSize,
    momentum: options.Momentum = options.nesterov(),
    restart: options.Restart = options.never(),
) -> PyTree:
    """`x` after `steps` steps of a constant size, in one scan: differentiable through them, also by `x0` and the size.

    Raises:
      ValueError: `steps < 1`; a step size that is searched for.
    """
    if steps < 1:
        raise ValueError(f"unrolled: steps must be at least 1, got {steps}.")
    if step.rule is not None:
        raise ValueError("unrolled: step must be constant(...): a search for a step size has no reverse derivative.")

    def advance(state, _):
        new = iteration.step(problem, term, state, step=step, momentum=momentum, restart=restart, certify=False)
        return new, None

    return lax.scan(advance, iteration.init(problem, term, x0, step=step, momentum=momentum), length=steps)[0].x


def path(
    problem: problems.Smooth, term: Callable[..., prox.Term], lambdas: Float[Array, " lambdas"], x0: PyTree, **settings
) -> Solution:
    """`fista(problem, term(lam), ...)` for each lambda, each from the last solution, in one scan; fields gain a leading axis.

    `term` e.g. `prox.l1`, `settings` those of `fista`. From the largest lambda down it costs little more than the last alone.
    """

    def solve(x, lam):
        solution = fista(problem, term(lam), x, **settings)
        return solution.x, solution

    return lax.scan(solve, x0, jnp.asarray(lambdas))[1]


def _blank(max_steps, state):
    row = jnp.full(max_steps + 1, jnp.nan, state.value.dtype)
    return History(row, row, row, row)


def _record(rows, state):
    nonzeros = sum(jnp.count_nonzero(leaf) for leaf in jax.tree.leaves(state.x))
    new = History(state.objective, state.residual, state.gap, jnp.asarray(nonzeros, state.gap.dtype))
    return jax.tree.map(lambda row, value: row.at[state.steps].set(value), rows, new)
