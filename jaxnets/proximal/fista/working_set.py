"""Lasso with many columns: solve over the few that may matter, certify over all."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.proximal import implicit, prox
from jaxnets.proximal.fista import iteration, options, problems
from jaxnets.proximal.fista.iteration import CONVERGED, LIMIT, NOT_FINITE
from jaxnets.proximal.fista.solver import Solution
from jaxnets.proximal.linear import arrays
from jaxnets.types import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Round:
    """Where a run stands after a pass over the whole matrix."""

    x: Any
    image: Any  # A x
    gradient: Any  # A^T (A x - y)
    gap: Any  # of the whole problem
    step_size: Any
    rounds: Any
    steps: Any


def working_set(
    problem: problems.Smooth,
    term: prox.Term,
    x0: Float[Array, " columns"] | None = None,
    *,
    capacity: int,
    tolerance: options.Number = 1e-6,
    max_rounds: int = 20,
    max_steps: int = 300,
) -> Solution:
    """Minimizes `1/2 |A x - y|^2 + sum weight |x|`, `A` a `linear.matrix`, over `capacity` columns at a time.

    Each round takes the columns of the present support and those that violate `|a_j^T (A x - y)| <= weight_j` the most, solves
    the problem over them by restarted FISTA on their Gram matrix (small: it stays in the cache; at most `max_steps` steps), and
    certifies the duality gap of the whole problem by one pass over `A`. It ends at a gap of `tolerance |y|^2 / 2`, as `gap` does.

    A few rounds are enough where `capacity` is a good deal larger than the support, and a multiple of it pays little. If the
    solution has more non-zeros than that, the status is LIMIT, and `fista` continues from its `x`. Rounding of a Gram matrix
    doesn't add up: every round starts from the gradient that the whole matrix gave. Differentiable as `fista` is.

    Raises:
      ValueError: another operator, loss or term; `capacity`, `max_rounds` or `max_steps` below 1.
    Source: Massias, Gramfort & Salmon (2018), arXiv:1802.07481.
    """
    for name, value in {"capacity": capacity, "max_rounds": max_rounds, "max_steps": max_steps}.items():
        if value < 1:
            raise ValueError(f"working_set: {name} must be at least 1, got {value}.")
    if problem.operator is None or problem.operator.forward is not arrays._matrix_vector:
        raise ValueError("working_set: the operator must be a linear.matrix of vectors.")
    if jnp.iscomplexobj(problem.operator.params):
        raise ValueError(f"working_set: the matrix must be real, got {problem.operator.params.dtype}.")
    if problem.loss is not problems.LEAST_SQUARES or problem.data[1] is not None:
        raise ValueError("working_set: the problem must be least_squares without weights.")
    if term.kind is not prox.l1(0.0).kind:
        raise ValueError("working_set: the term must be prox.l1.")
    fixed_problem, fixed_term, x0 = lax.stop_gradient((problem, term, x0))
    matrix, target = fixed_problem.operator.params, fixed_problem.data[0]
    columns = matrix.shape[1]
    capacity = min(capacity, columns)
    weight = jnp.broadcast_to(fixed_term.params, (columns,)).astype(matrix.dtype)
    enough = tolerance * 0.5 * jnp.vdot(target, target)

    def measured(x, image, step_size, rounds, steps):
        slope = image - target
        gradient = fixed_problem.pull(slope)
        gap = iteration.duality_gap(fixed_problem, fixed_term, x, image, slope, gradient)
        return Round(x, image, gradient, gap, step_size, rounds, steps)

    def advance(state):
        score = jnp.where(state.x != 0, jnp.inf, jnp.abs(state.gradient) - weight)
        chosen = lax.top_k(score, capacity)[1]
        compact = jnp.take(matrix, chosen, axis=1, mode="clip")
        gram = jnp.matmul(compact.T, compact, precision="highest")
        step_size = 0.95 / _largest_eigenvalue(gram)
        start, slope, threshold = state.x[chosen], state.gradient[chosen], weight[chosen]
        solved, steps = _solve(gram, slope, threshold, start, step_size, tolerance, max_steps)
        x = jnp.zeros_like(state.x).at[chosen].set(solved)
        return measured(x, jnp.matmul(compact, solved, precision="highest"), step_size, state.rounds + 1, state.steps + steps)

    def unfinished(state):
        return (state.gap > enough) & (state.rounds < max_rounds)

    x = jnp.zeros(columns, matrix.dtype) if x0 is None else x0
    image = jnp.zeros_like(target) if x0 is None else fixed_problem.image(x0)
    state = measured(x, image, jnp.ones((), matrix.dtype), jnp.int32(0), jnp.int32(0))
    state = lax.while_loop(unfinished, advance, state)
    status = jnp.where(state.gap <= enough, CONVERGED, jnp.where(jnp.isfinite(state.gap), LIMIT, NOT_FINITE))
    moved = state.x - fixed_term.prox(state.x - state.step_size * state.gradient, state.step_size)
    return Solution(
        x=implicit.attach(state.x, problem, term, state.step_size),
        status=status.astype(jnp.int32),
        steps=state.steps,
        gap=state.gap,
        objective=fixed_problem.loss.value(fixed_problem.data, state.image) + fixed_term.value(state.x),
        residual=jnp.linalg.norm(moved) / state.step_size,
        step_size=state.step_size,
        history=None,
    )


def _solve(gram, slope, weight, start, step_size, tolerance, max_steps):
    """FISTA with gradient restart on `<slope, d> + 1/2 <d, gram d> + sum weight |start + d|`; returns `start + d` and the steps."""
    # A violation of 1 + v of the optimality condition means a gap of about v |y|^2.
    small = jnp.maximum(0.25 * tolerance, 8 * jnp.finfo(gram.dtype).eps) * jnp.max(weight)

    def body(carry):
        x, point, t, _, steps = carry
        gradient = slope + jnp.matmul(gram, point - start, precision="highest")
        v = point - step_size * gradient
        new = jnp.sign(v) * jnp.maximum(jnp.abs(v) - step_size * weight, 0)
        t = jnp.where(jnp.vdot(point - new, new - x) > 0, 1.0, t).astype(t.dtype)
        following = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        residual = jnp.max(jnp.abs(new - point)) / step_size
        return new, new + (t - 1) / following * (new - x), following, residual, steps + 1

    first = (start, start, jnp.ones_like(step_size), jnp.full_like(step_size, jnp.inf), jnp.int32(0))
    x, _, _, _, steps = lax.while_loop(lambda carry: (carry[3] > small) & (carry[4] < max_steps), body, first)
    return x, steps


def _largest_eigenvalue(gram):
    """By 20 power iterations: from below, by far less than the third that FISTA's momentum forgives."""
    v = lax.fori_loop(0, 20, lambda _, v: gram @ (v / jnp.linalg.norm(v)), jnp.sum(jnp.abs(gram), axis=0))
    return jnp.linalg.norm(v)
