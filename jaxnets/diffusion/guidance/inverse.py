"""Denoisers of the data given measurements `y = A x_0 + noise e`: the mean of x_0 given both x and y, more or less.

The exact one is `x_0 + σ² / α ∇_x log p(y | x)`; methods differ in what they take for `p(y | x)`. An operator takes all of x,
or one example of it: then x has a batch axis before that, and y has one too or is the same for all. `solver` is the pair of
the most steps and the relative tolerance of the conjugate gradients.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxnets.diffusion import parametrization
from jaxnets.diffusion.guidance import combine, measured
from jaxnets.diffusion.schedules import Schedule
from jaxnets.proximal import linear, prox
from jaxnets.types import PyTree

SOLVER = (100, 1e-5)


def dps(
    denoise: Callable, schedule: Schedule, operator: Callable, y: PyTree, *, noise: Any = 0.05, strength: Any = 1.0
) -> Callable:
    """`x_0 - strength σ² / α ∇_x |y - A(x_0)|² / (2 v)` with `v = noise² + σ² / α <d, (∂x_0/∂x)^T d> / |r|²`.

    Here `r = y - A(x_0)` and `d = (∂A/∂x_0)^T r`; v is the variance of y along r: of its noise, and of what x leaves open of
    x_0. As published (`dps_steps`), steps have a length over `|r|` that is tuned to their number; this one needs no tuning, and
    with a single number measured it is `moment_matching`. A may be any differentiable function of all of x, if it is no
    `linear.Operator`.

    Raises:
      ValueError: `noise` negative; y or x of another shape than the operator's.
    Source: Chung et al. (2023), algorithm 1, arXiv:2209.14687.
    """
    if isinstance(operator, linear.Operator):
        measured.check("dps", operator, y, noise)
    else:
        measured.check_noise("dps", noise)

    def posterior(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = parametrization.as_time(t, x)
        problem = measured.fit("dps", operator, y, x, t)
        x0, back = measured.denoised(denoise, x, t, conditions)
        descent, size = problem.descent(measured.wide(x0, t))
        pulled, weight = back(descent), combine.from_score(schedule, t)
        spread = jnp.maximum(weight * measured.dot(problem.batched, descent, pulled), 0) / jnp.where(size > 0, size, 1)
        # Where nothing is measured to be wrong, or can be moved, and y is exact: no correction instead of 0 / 0.
        variance = jnp.maximum(noise**2 + spread, jnp.finfo(t.dtype).eps * jnp.maximum(weight, 1))
        return combine.add(x0, strength * weight / variance, pulled)

    return posterior


def pigdm(
    denoise: Callable,
    schedule: Schedule,
    operator: linear.Operator,
    y: PyTree,
    *,
    noise: Any = 0.05,
    data_std: Any = 1.0,
    solver: tuple[int, float] = SOLVER,
) -> Callable:
    """`x_0 + σ² / α (∂x_0/∂x)^T A^H (r² A A^H + noise²)^-1 (y - A x_0)` with `r² = σ² s² / (α² s² + σ²)`, s the `data_std`.

    Exact if the data are normal with covariance `s²`. Where nothing is left of the data, `σ² / α ∂x_0/∂x` is taken to be r².

    Raises:
      ValueError: `noise` negative; `data_std` not positive; y or x of another shape than the operator's.
    Source: Song et al. (2023), section 3, Pseudoinverse-guided diffusion models for inverse problems, ICLR.
    """
    measured.check("pigdm", operator, y, noise)
    if isinstance(data_std, int | float) and not data_std > 0:
        raise ValueError(f"pigdm: data_std must be positive, got {data_std}.")

    def posterior(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = parametrization.as_time(t, x)
        problem = measured.fit("pigdm", operator, y, x, t)
        x0, back = measured.denoised(denoise, x, t, conditions)
        # Divided by r², which is 0 at time 0: the system is A A^H with a penalty, the factor σ² / (α r²).
        penalty = noise**2 * jnp.minimum(1 / data_std**2 + 1 / schedule.ratio(t) ** 2, 1 / jnp.finfo(t.dtype).eps ** 2)
        pulled = problem.pull(measured.wide(x0, t), penalty, solver)
        left = schedule(t).alpha > 0
        weight = jnp.where(left, combine.from_score(schedule, t) / data_std**2 + schedule(t).alpha, 0)
        return parametrization.combine(
            x0, (jnp.ones_like(t), x0), (weight, back(pulled)), (jnp.where(left, 0, jnp.ones_like(t)), pulled)
        )

    return posterior


def moment_matching(
    denoise: Callable,
    schedule: Schedule,
    operator: linear.Operator,
    y: PyTree,
    *,
    noise: Any = 0.05,
    solver: tuple[int, float] = SOLVER,
) -> Callable:
    """`x_0 + C A^H (A C A^H + noise²)^-1 (y - A x_0)` with the covariance that the denoiser implies, `C = σ² / α ∂x_0/∂x`.

    As `pigdm` with each direction's own variance: exact for normal data of any covariance. Each step of the solver
    differentiates the denoiser backwards once. Where nothing is left of the data it is the denoiser.

    Raises:
      ValueError: `noise` negative; y or x of another shape than the operator's.
    Source: Boys et al. (2023), arXiv:2310.06721; Finzi et al. (2023), arXiv:2306.07526.
    """
    measured.check("moment_matching", operator, y, noise)

    def posterior(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = parametrization.as_time(t, x)
        problem = measured.fit("moment_matching", operator, y, x, t)
        x0, back = measured.denoised(denoise, x, t, conditions)
        weight = combine.from_score(schedule, t)

        def covariance(direction):
            return parametrization.combine(direction, (weight, back(direction)))

        penalty = jnp.broadcast_to(jnp.asarray(noise, t.dtype) ** 2, t.shape)
        return combine.add(x0, jnp.ones_like(t), covariance(problem.pull(measured.wide(x0, t), penalty, solver, covariance)))

    return posterior


def ddnm(denoise: Callable, operator: linear.Operator, y: PyTree, *, solver: tuple[int, float] = SOLVER) -> Callable:
    """`x_0 + A^+ (y - A x_0)`: what is measured is replaced by its measurement, what A doesn't see stays. No noise in y.

    With noise: `ddnm_plus`.

    Raises:
      ValueError: y or x of another shape than the operator's.
    Source: Wang, Yu & Zhang (2023), eq. 13, arXiv:2212.00490.
    """
    measured.check("ddnm", operator, y, 0.0)

    def projected(x: PyTree, t: Any, **conditions: Any) -> PyTree:
        t = parametrization.as_time(t, x)
        x0 = denoise(x, t, **conditions)
        pulled = measured.fit("ddnm", operator, y, x).pull(measured.wide(x0, t), jnp.zeros((), t.dtype), solver)
        return combine.add(x0, jnp.ones((), t.dtype), pulled)

    return projected


def plug_and_play(denoise: Callable, schedule: Schedule, *, strength: Any = 1.0, **conditions: Any) -> prox.Term:
    """A term for `proximal.fista` whose prox is the denoiser: `prox(v, step) = x_0(α v)` where `σ / α = strength sqrt(step)`.

    With `least_squares` the fixed point is that of data noise with standard deviation `strength`; for normal data the
    posterior mean. Conditions are leaves of the term; what the denoiser closes over is static.
    """
    return prox.plug_and_play(_AtNoise(denoise, schedule), conditions, strength)


@dataclasses.dataclass(frozen=True)
class _AtNoise:
    """Compares by value, so that a term made anew doesn't compile anew."""

    denoise: Callable
    schedule: Schedule

    def __call__(self, conditions: dict[str, Any], v: PyTree, noise: Any) -> PyTree:
        t = self.schedule.time(parametrization.as_time(noise, v))
        return self.denoise(parametrization.combine(v, (self.schedule(t).alpha, v)), t, **conditions)
