"""How the weight of a term is chosen: a fraction of lambda_max, the discrepancy principle, or a criterion's gradient.

Each rule is `rule(problem, minimize) -> (weight, first z)`, with `minimize(problem, weight, z) -> fista.Solution`. A weight by
discrepancy or tuning is a constant for an outer gradient; one that was given, or `relative`, is not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal import tree
from jaxnets.seismic import checks
from jaxnets.seismic.checks import Scalar
from jaxnets.types import Array, Bool, Float, Num

Weight: TypeAlias = int | float | Num[Array, "..."] | Callable[..., Any]


def checked(weight: Any) -> Any:
    """The weight as an array; raises ValueError where it is known to be negative or not finite."""
    weight = jnp.asarray(weight)
    known = checks.known(weight)
    if known is not None and not np.all((known >= 0) & np.isfinite(known)):
        raise ValueError(f"solve: weight must be non-negative and finite, got {weight}.")
    return weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relative:
    """`fraction` of lambda_max, the weight from which the answer is 0."""

    fraction: Any = 0.1

    def __call__(self, problem, minimize):
        return self.fraction * problem.largest_weight(), problem.initial


def relative(fraction: Scalar) -> Relative:
    """The rule `weight = fraction * lambda_max`, where at lambda_max and above the answer is 0 (`fraction` in (0, 1])."""
    checks.option("relative", "fraction must be in (0, 1]", fraction, (fraction > 0) & (fraction <= 1))
    return Relative(fraction)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Discrepancy:
    """See `discrepancy`."""

    noise_std: Any
    noise_norm: Any
    tolerance: Any
    floor: Any
    steps: int = dataclasses.field(metadata={"static": True})

    def __call__(self, problem, minimize):
        target = jnp.log(self.noise_std * jnp.sqrt(problem.count) if self.noise_norm is None else self.noise_norm)
        top = jnp.log(problem.largest_weight())
        start = problem.initial

        def excess(log_weight, x):
            """`log |data - F m| - log noise`, which grows with the weight."""
            x = minimize(problem, jnp.exp(log_weight), x).x
            return jnp.log(tree.norm(problem.residual(x))) - target, x

        def unfinished(state):
            step, _, _, _, excess, _ = state
            return (step < self.steps) & (jnp.abs(excess) > self.tolerance)

        def bisect(state):
            step, low, high, middle, _, x = state
            value, x = excess(middle, x)
            low, high = jnp.where(value < 0, middle, low), jnp.where(value < 0, high, middle)
            # The last trial stays `middle` when it is within tolerance.
            following = jnp.where(jnp.abs(value) > self.tolerance, (low + high) / 2, middle)
            return step + 1, low, high, following, value, x

        bottom = top + jnp.log(self.floor)
        infinite = jnp.full_like(top, jnp.inf)
        state = (0, bottom, top, (bottom + top) / 2, infinite, start)
        _, _, _, log_weight, _, x = jax.lax.stop_gradient(jax.lax.while_loop(unfinished, bisect, state))
        return jnp.exp(log_weight), x


def discrepancy(
    noise_std: Scalar | None = None,
    *,
    noise_norm: Scalar | None = None,
    tolerance: Scalar = 0.01,
    floor: float = 1e-5,
    steps: int = 20,
) -> Discrepancy:
    """Morozov's rule: the weight at which `|data - F m|` is the norm of the noise, `noise_std * sqrt(samples)`
    (of live traces).

    Bisection on log weight in `[floor lambda_max, lambda_max]`, each trial from the answer of the one before, to a relative
    `tolerance` of the norm or for `steps` trials. The nearer end where no weight fits.
    Source: Morozov (1966), On the solution of functional equations by the method of regularization.
    """
    if (noise_std is None) == (noise_norm is None):
        raise ValueError(f"discrepancy: give either noise_std or noise_norm, got {noise_std} and {noise_norm}.")
    if noise_std is not None:
        checks.option("discrepancy", "noise_std must be positive", noise_std, noise_std > 0)
    if noise_norm is not None:
        checks.option("discrepancy", "noise_norm must be positive", noise_norm, noise_norm > 0)
    checks.option("discrepancy", "tolerance must be positive", tolerance, tolerance > 0)
    checks.option("discrepancy", "floor must be in (0, 1)", floor, 0 < floor < 1)
    checks.option("discrepancy", "steps must be at least 1", steps, steps >= 1)
    return Discrepancy(noise_std, noise_norm, tolerance, floor, steps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tuned:
    """See `tuned`."""

    criterion: Any
    floor: Any
    count: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})

    def __call__(self, problem, minimize):
        top = jnp.log(problem.largest_weight())

        def value(log_weight, start):
            return self.criterion(problem, lambda problem: minimize(problem, jnp.exp(log_weight), start).x)

        def visit(start, log_weight):
            error, x = value(log_weight, start)
            return x, (error, x)

        # Down from lambda_max, each answer the start of the next.
        grid = top + jnp.log(self.floor) * jnp.arange(1, self.count + 1, dtype=top.dtype) / self.count
        _, (errors, answers) = jax.lax.scan(visit, problem.initial, grid)
        best = jnp.argmin(errors)
        spacing = -jnp.log(self.floor) / self.count
        # The criterion's spread on the path: what the step is relative to, whatever its units, offset and sign.
        spread = jnp.max(errors) - jnp.min(errors)
        spread = jnp.where(spread > 0, spread, 1)

        def descend(state, _):
            log_weight, error, slope, rate, x = state
            # Never beyond the neighbor on the grid.
            trial = log_weight - jnp.clip(rate * slope / spread, -spacing, spacing)
            (trial_error, trial_x), trial_slope = jax.value_and_grad(value, has_aux=True)(trial, x)
            better = trial_error < error
            old, new = (log_weight, error, slope, x), (trial, trial_error, trial_slope, trial_x)
            log_weight, error, slope, x = tree.where(better, new, old)
            return (log_weight, error, slope, jnp.where(better, 1.5, 0.3) * rate, x), None

        # The first round moves nowhere and takes the gradient: one program for it and the steps.
        x = jax.tree.map(lambda leaf: leaf[best], answers)
        state = (grid[best], jnp.full_like(top, jnp.inf), jnp.zeros_like(top), jnp.ones_like(top), x)
        (log_weight, _, _, _, x), _ = jax.lax.scan(descend, state, length=self.steps + 1)
        return jax.lax.stop_gradient((jnp.exp(log_weight), x))


def tuned(criterion: Callable[..., Any], *, floor: float = 1e-3, count: int = 8, steps: int = 5) -> Tuned:
    """The weight of least `criterion`: the best of `count` on a warm-started path down to `floor lambda_max`, then `steps` of
    gradient descent on log weight with the gradient of the solution (a step that doesn't descend is undone and shortened).

    `criterion(problem, solve) -> (error, z)`, where `solve(problem)` gives z at the weight in question: `held_out`, `sure`, or
    a function of yours.
    """
    checks.option("tuned", "floor must be in (0, 1)", floor, 0 < floor < 1)
    checks.option("tuned", "count must be at least 1", count, count >= 1)
    checks.option("tuned", "steps must not be negative", steps, steps >= 0)
    return Tuned(criterion, floor, count, steps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeldOut:
    """See `held_out`."""

    keep: Any

    def __call__(self, problem, solve):
        x = solve(problem.masked(self.keep))
        return tree.squared_norm(problem.masked(~self.keep).residual(x)), x


def held_out(keep: Bool[Array, "..."]) -> HeldOut:
    """Criterion: the squared error at the data where `keep` is false, of the solution that never saw them.

    The final solution sees all data at the weight so found, so hold out a small share, at random.
    """
    return HeldOut(keep)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sure:
    """See `sure`."""

    noise_std: Any
    probe: Any
    step: Any

    def __call__(self, problem, solve):
        shapes = tuple(jax.tree.map(jnp.shape, x) for x in (problem.data, self.probe))
        if shapes[0] != shapes[1]:
            raise ValueError(f"sure: probe must have the shape of the data, {shapes[0]}, got {shapes[1]}.")
        x = solve(problem)
        step = self.step * self.noise_std
        shifted = dataclasses.replace(problem, data=tree.add_scaled(problem.data, step, self.probe))
        moved = tree.subtract(shifted.predict(solve(shifted)), problem.predict(x))
        freedom = tree.vdot(self.probe, moved) / step
        return tree.squared_norm(problem.residual(x)) + self.noise_std**2 * (2 * freedom - problem.count), x


def sure(noise_std: Scalar, probe: Float[Array, "..."], *, step: Scalar = 0.3) -> Sure:
    """Criterion: Stein's unbiased estimate of `|F m - F m_true|^2` under white Gaussian noise of known `noise_std`.

    `|data - F m|^2 - n s^2 + 2 s^2 df`, the degrees of freedom `df` by a difference of `step * noise_std` along `probe`, a
    standard normal draw in the shape of the data. The difference keeps its gradient in the weight unbiased, which the count of
    non-zeros would not. It may be negative.

    Source: Stein (1981), doi:10.1214/aos/1176345632; Deledalle et al. (2014), doi:10.1137/140968045.
    """
    checks.option("sure", "noise_std must be positive", noise_std, noise_std > 0)
    return Sure(noise_std, probe, step)
