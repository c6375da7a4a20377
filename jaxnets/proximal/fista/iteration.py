"""One iteration: state in, state out. One `A` and one `A^H`; the objective, the tests and the duality gap reuse them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.proximal import prox, tree
from jaxnets.proximal.fista import options, problems
from jaxnets.types import Array, Float, PyTree

RUNNING, CONVERGED, LIMIT, NOT_FINITE, NOT_DESCENDING = range(5)
MAX_TRIALS = 60  # of a step size, in one iteration: 2^60 covers any first guess


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands. `point`, where the next gradient is taken, is `x + β (x - x_prev)`; an image is that under `A`."""

    x: PyTree
    image: PyTree
    point: PyTree
    point_image: PyTree
    t: Any  # weight of the momentum
    age: Any  # iterations since the last restart
    step_size: Any  # the next to try, without the stretch of greedy steps
    stretch: Any
    first_length: Any  # |x_1 - x_0|
    reference: Any  # running mean of the objective (Barzilai-Borwein)
    value: Any  # f(x)
    value_at_zero: Any  # f(0)
    gradient_norm: Any  # |grad f(0)|, the scale of residuals: it doesn't depend on the start, which may be the solution
    objective: Any  # f(x) + g(x)
    residual: Any  # |x - y| / (step |grad f(0)|)
    change: Any  # |x - x_prev| / |x|
    gap: Any  # duality gap
    violated: Any  # a step size was too long for descent
    status: Any
    steps: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trial:
    """What a step size leads to."""

    step_size: Any
    x: PyTree
    image: PyTree
    distance: Any  # |x - y|^2
    bend: Any  # twice the rise of f above its tangent at y
    accepted: Any
    count: Any


def init(
    problem: problems.Smooth,
    term: prox.Term,
    x0: PyTree,
    *,
    step: options.StepSize = options.backtracking(),
    momentum: options.Momentum = options.nesterov(),
) -> State:
    """The state before the first `step`.

    Two passes over the operator, one more where no step size is given, and one where `x0` isn't 0.

    Raises:
      ValueError: `x0` not of the shape that the operator takes, integer, or real where the gradient is complex.
    """
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.result_type(leaf)), x0)  # no weak types in a carry
    image = problem.image(x0)
    gradient = problem.pull(problem.slope(image))
    _check_dtypes(x0, gradient)
    value = problem.loss.value(problem.data, image)
    objective = value + term.value(x0)
    real = tree.real_dtype(x0)
    scalars = {
        "t": 1,
        "step_size": _inverse_curvature(problem, gradient, image) if step.initial is None else step.initial,
        "stretch": 1 if momentum.stretch is None else momentum.stretch,
        "first_length": 0,
        "reference": objective,
        "value": value,
        "value_at_zero": problem.loss.value(problem.data, tree.zeros_like(image)),
        "gradient_norm": _scale(problem, x0, image, gradient),
        "objective": objective,
        "residual": jnp.nan,
        "change": jnp.nan,
        "gap": jnp.nan,
    }
    return State(
        x=x0,
        image=image,
        point=x0,
        point_image=image,
        age=jnp.int32(0),
        violated=jnp.bool_(False),
        status=jnp.int32(RUNNING),
        steps=jnp.int32(0),
        **{name: jnp.asarray(scalar).astype(real) for name, scalar in scalars.items()},
    )


def step(
    problem: problems.Smooth,
    term: prox.Term,
    state: State,
    *,
    step: options.StepSize = options.backtracking(),
    momentum: options.Momentum = options.nesterov(),
    restart: options.Restart = options.gradient(),
    monotone: bool = False,
    certify: bool = True,
) -> State:
    """One proximal-gradient step from the extrapolated point, `x+ = prox(y - s grad f(y), s)`, then the next extrapolation.

    Without `certify` the duality gap isn't computed, nor the objective where no option needs it (NaN). A step that isn't finite
    leaves everything where it was and says so in the status.

    Source: Beck & Teboulle (2009), eq. 4.1-4.3; monotone: Beck & Teboulle (2009b), doi:10.1109/TIP.2009.2028250, eq. 5.3.
    """
    slope = problem.slope(state.point_image)
    gradient = problem.pull(slope)
    trial = _search(problem, term, state, step, momentum, slope, gradient)

    value = problem.loss.value(problem.data, trial.image)
    needed = certify or monotone or restart.needs_objective or step.rule == "objective"
    objective = value + term.value(trial.x) if needed else jnp.full_like(value, jnp.nan)
    moved = tree.subtract(trial.x, state.x)
    moved_image = tree.subtract(trial.image, state.image)

    next_size = _next_size(step, state, trial)
    beta, t = momentum.advance(momentum.params, state.t, trial.step_size / next_size, next_size)
    x, image, still = trial.x, trial.image, 0
    if monotone:
        # Where z, the trial, is refused, x stays and y = x + (t / t+) (z - x) = z + (t / t+ - 1) (z - x).
        refused = ~(objective <= state.objective)
        x, image = tree.where(refused, state.x, x), tree.where(refused, state.image, image)
        value, new_objective = jnp.where(refused, state.value, value), jnp.where(refused, state.objective, objective)
        beta, still = jnp.where(refused, state.t / t - 1, beta), jnp.where(refused, -1, 0)
    else:
        new_objective = objective
    uphill = tree.vdot(tree.subtract(state.point, trial.x), moved)
    restarting = restart.test(restart.params, uphill, objective - state.objective, state.age + 1)
    beta = jnp.where(restarting, still, beta)

    length, size = _length(moved), _length(trial.x)
    first_length = jnp.where(state.steps == 0, length, state.first_length)
    stretch = state.stretch
    if momentum.stretch is not None:
        longer = (length >= first_length) & (state.steps > 0)
        stretch = jnp.where(longer, jnp.maximum(momentum.decay * stretch, 1), stretch)
    residual = jnp.sqrt(lax.stop_gradient(trial.distance)) / (trial.step_size * state.stretch)
    gap = duality_gap(problem, term, x, image, slope, gradient) if certify else state.gap
    new = State(
        x=x,
        image=image,
        point=tree.add_scaled(trial.x, beta, moved),
        point_image=tree.add_scaled(trial.image, beta, moved_image),
        t=jnp.where(restarting, 1, t),
        age=jnp.where(restarting, 0, state.age + 1),
        step_size=next_size,
        stretch=stretch,
        first_length=first_length,
        # From the first finite objective on: a start outside of a constraint has none.
        reference=jnp.where(
            jnp.isfinite(state.reference), step.memory * state.reference + (1 - step.memory) * objective, objective
        ),
        value=value,
        value_at_zero=state.value_at_zero,
        gradient_norm=state.gradient_norm,
        objective=new_objective,
        residual=residual / jnp.where(state.gradient_norm > 0, state.gradient_norm, 1),
        change=length / jnp.where(size > 0, size, 1),
        gap=gap,
        violated=state.violated | ~trial.accepted,
        status=state.status,
        steps=state.steps + 1,
    )
    failed = dataclasses.replace(state, status=jnp.full_like(state.status, NOT_FINITE))
    return tree.where(jnp.isfinite(trial.distance + value), _like(new, state), failed)


def certifiable(problem: problems.Smooth, term: prox.Term) -> bool:
    """Whether a duality gap can be computed."""
    return problem.loss.fenchel is not None and term.kind.conjugate is not None


def duality_gap(problem, term, x, image, slope, gradient) -> Float[Array, ""]:
    """`f(x) + g(x) + f*(u) + g*(-A^H u)`, `u` the slope (`gradient = A^H slope`) shrunk into the domain of `g*`.

    As two sums of the form `h(a) + h*(b) - <a, b>`, each small near the solution: right in float32, where the difference of the
    primal and the dual value isn't.
    """
    if not certifiable(problem, term):
        return jnp.asarray(jnp.nan)
    outside = 1.0 if term.kind.domain is None else jnp.maximum(1, term.kind.domain(term.params, tree.scale(-1, gradient)))
    u, pulled = tree.scale(1 / outside, slope), tree.scale(1 / outside, gradient)
    smooth = problem.loss.fenchel(problem.data, image, u)
    return smooth + term.value(x) + term.conjugate(tree.scale(-1, pulled)) + tree.vdot(x, pulled)


def _search(problem, term, state, step, momentum, slope, gradient) -> Trial:
    """The trial that the rule for step sizes accepts."""
    slack = _rounding(state.point)

    def attempt(step_size, count):
        stretched = step_size * state.stretch
        x = _like(term.prox(tree.add_scaled(state.point, -stretched, gradient), stretched), state.x)
        image = problem.image(x)
        distance = tree.squared_norm(tree.subtract(x, state.point))
        bend, noise = _bend(problem, step, state, slope, image)
        if step.rule == "objective":
            value = problem.loss.value(problem.data, image) + term.value(x)
            noise = 10 * jnp.finfo(distance.dtype).eps * jnp.abs(value)
            accepted = value <= state.reference - 5e-5 * distance / step_size + noise
        else:
            longest = 1.0 if step.rule == "curvature" else 1.001 * momentum.tolerated
            accepted = bend <= longest * (distance + slack) / step_size + noise
        return Trial(step_size, x, image, distance.astype(slack.dtype), bend.astype(slack.dtype), accepted, count)

    if step.rule is None:
        return attempt(state.step_size, jnp.int32(1))
    possible = jnp.isfinite(tree.squared_norm(gradient))  # else no step size helps
    zero = jnp.zeros_like(slack)
    # A loop of one body that is run at least once: half the program of a first attempt followed by a loop.
    return lax.while_loop(
        lambda trial: (trial.count == 0) | (~trial.accepted & possible & (trial.count < MAX_TRIALS)),
        lambda trial: attempt(
            (jnp.where(trial.count == 0, 1, step.shrink) * trial.step_size).astype(slack.dtype), trial.count + 1
        ),
        Trial(state.step_size, state.x, state.image, zero, zero, jnp.bool_(False), jnp.int32(0)),
    )


def _bend(problem, step, state, slope, image):
    """Twice the rise of `f` above its tangent, from the point to a trial, and how much of it may be rounding."""
    moved = tree.subtract(image, state.point_image)
    if step.rule == "objective":  # along the secant; for least squares the same number
        return tree.vdot(tree.subtract(problem.slope(image), slope), moved), 0.0
    if problem.loss.curvature is not None:
        return problem.loss.curvature(problem.data, moved), 0.0
    here, there = (problem.loss.value(problem.data, z) for z in (state.point_image, image))
    return 2 * (there - here - tree.vdot(slope, moved)), 20 * jnp.finfo(there.dtype).eps * (jnp.abs(here) + jnp.abs(there))


def _next_size(step, state, trial):
    """The step size to try next. It grows only where the last one was put to a test: not where nothing moved."""
    if step.rule == "objective":
        secant = trial.distance / jnp.where(trial.bend > 0, trial.bend, jnp.inf)
        return jnp.where(secant > 0, jnp.clip(secant, trial.step_size / 1000, trial.step_size * 1000), trial.step_size)
    tested = (trial.bend > 0) & (trial.distance > _rounding(state.point))
    return jnp.where(tested, step.grow, 1) * trial.step_size


def _scale(problem, x0, image, gradient):
    """`|grad f(0)|`, or `|grad f(x0)|` where that is 0 or not defined. No pass over the operator from `x0 = 0`."""
    start = _length(gradient)
    away = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(x0)]))
    at_zero = lax.cond(
        away, lambda: _length(problem.pull(problem.slope(tree.zeros_like(image)))).astype(start.dtype), lambda: start
    )
    return jnp.where(jnp.isfinite(at_zero) & (at_zero > 0), at_zero, start)


def _inverse_curvature(problem, gradient, image):
    """`1 / L` with `L` the curvature of `f` along its gradient: one pass over the operator."""
    moved = problem.image(gradient)
    if problem.loss.curvature is not None:
        bend = problem.loss.curvature(problem.data, moved)
    else:
        bend = jnp.abs(tree.vdot(moved, jax.jvp(problem.slope, (image,), (moved,))[1]))
    distance = tree.squared_norm(gradient)
    return jnp.where((bend > 0) & (distance > 0), distance / jnp.where(bend > 0, bend, 1), 1)


def _rounding(point):
    """The square of what rounding may do to `|x+ - y|`: the image of `y` is known to a few units of `eps |A| |y|`."""
    return (16 * jnp.finfo(tree.real_dtype(point)).eps) ** 2 * tree.squared_norm(point)


def _like(a, b):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), a, b)


def _length(a):
    """Norm of what only informs: no derivative, which would be NaN at 0."""
    return tree.norm(lax.stop_gradient(a))


def _check_dtypes(x0, gradient):
    for leaf, slope in zip(jax.tree.leaves(x0), jax.tree.leaves(gradient), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(f"fista: x0 must be floating, got {leaf.dtype}.")
        if jnp.iscomplexobj(slope) and not jnp.iscomplexobj(leaf):
            raise ValueError(f"fista: x0 must be complex like the gradient, got {leaf.dtype}.")
