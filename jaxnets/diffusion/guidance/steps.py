"""Samplers of samplers: for known pixels, for measurements with noise, where fresh noise is needed or times are revisited."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.diffusion import parametrization
from jaxnets.diffusion.guidance import combine, measured
from jaxnets.diffusion.guidance.inverse import SOLVER
from jaxnets.diffusion.samplers import Plan, Sampler
from jaxnets.diffusion.samplers.sample import linear_init, linear_step, with_x
from jaxnets.diffusion.samplers.steps import levels, one_step
from jaxnets.diffusion.schedules import Schedule
from jaxnets.proximal import linear
from jaxnets.types import PyTree


class Beside(NamedTuple):
    """The plan of a sampler with numbers for each row beside it."""

    inner: Any
    numbers: dict[str, np.ndarray]
    t: np.ndarray
    t_next: np.ndarray
    noise: np.ndarray  # what tells `sample` whether anything is drawn
    whole: np.ndarray | None
    first: tuple[float, float] | None


def replacement(sampler: Sampler, mask: Any, y: PyTree) -> Sampler:
    """After each step, x where `mask` is true becomes `α y + σ ε`; in the end it is y exactly.

    `mask` and `y` broadcast to x. Any sampler will do. What isn't known follows only through the denoiser: approximate,
    even with a perfect one; `repaint` goes back and forth to mend that.

    Raises:
      ValueError: a `mask` or y that doesn't fit x.
    Source: Song et al. (2021), appendix I.2, arXiv:2011.13456.
    """

    def plan(schedule: Schedule, times: np.ndarray) -> Beside:
        return _with_levels(schedule, sampler.plan(schedule, times))

    return _replacing("replacement", sampler, plan, mask, y)


def repaint(sampler: Sampler, mask: Any, y: PyTree, *, jump_length: int = 10, resamples: int = 10) -> Sampler:
    """`replacement` that after every `jump_length` steps goes back as many by adding noise, so that each stretch is
    sampled `resamples` times: what is made up comes to agree with what is known.

    Evaluates the denoiser `resamples` times as often. The noise of a step and that of the jump after it are drawn as one.

    Raises:
      ValueError: as `replacement`; fewer than one of either; a jump longer than the grid; a sampler that isn't one
        evaluation per step without memory, such as `ddpm` and `ddim`.
    Source: Lugmayr et al. (2022), algorithm 1 and appendix B, arXiv:2201.09865.
    """
    if jump_length < 1 or resamples < 1:
        raise ValueError(f"repaint: jump_length and resamples must be at least 1, got {jump_length} and {resamples}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Beside:
        inner, steps = _one_step("repaint", sampler.plan(schedule, times)), len(times) - 1
        if jump_length > steps:
            raise ValueError(f"repaint: jump_length must be at most the {steps} steps of the grid, got {jump_length}.")
        order = _visits(steps, jump_length, resamples)
        ends = np.array([*order[1:], steps])  # from where the next row goes on
        rows = inner._replace(**{name: getattr(inner, name)[order] for name in Plan._fields if name != "first"})
        then, later = schedule(rows.t_next), schedule(times[ends])
        back = ends <= order
        growth = np.where(back, later.alpha / then.alpha, 1.0)
        added = np.where(back, np.sqrt(np.maximum(later.sigma**2 - (growth * then.sigma) ** 2, 0)), 0.0)
        noise = np.hypot(growth * rows.noise, added)
        return _with_levels(schedule, rows._replace(t_next=times[ends], next=rows.next * growth[:, None], noise=noise))

    return _replacing("repaint", sampler, plan, mask, y)


def dps_steps(sampler: Sampler, operator: Callable, y: PyTree, *, length: Any = 1.0) -> Sampler:
    """After each step x goes `length` down the gradient of `|y - A(x_0)|` by the x before: DPS as published.

    `length` has to be tuned to the problem and the number of steps: if short x doesn't come to fit y, if long it diverges.
    `dps` needs no tuning and goes with any sampler. A may be any differentiable function of all of x, if it is no
    `linear.Operator`.

    Raises:
      ValueError: `length` negative; y or x of another shape than the operator's; a sampler that isn't one evaluation per step
        without memory: take `ddpm()`.
    Source: Chung et al. (2023), algorithm 1, arXiv:2209.14687, the norm not squared, as in the authors' code.
    """
    if isinstance(operator, linear.Operator):
        measured.check("dps_steps", operator, y, 0.0)
    if isinstance(length, int | float) and not length >= 0:
        raise ValueError(f"dps_steps: length must be at least 0, got {length}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Plan:
        if sampler.step is not linear_step:
            raise ValueError("dps_steps: sampler must be plain, such as ddpm(): self_conditioned goes around dps_steps.")
        return _one_step("dps_steps", sampler.plan(schedule, times))

    def step(plan, denoise, state, row, draw, **conditions):
        t = parametrization.as_time(row.t, state.x)
        problem = measured.fit("dps_steps", operator, y, state.x)
        x0, back = measured.denoised(denoise, state.x, t, conditions)
        descent, square = problem.descent(measured.wide(x0, t))
        state, x0 = sampler.step(plan, lambda x, t: x0, state, row, draw)
        share = length / jnp.sqrt(jnp.where(square > 0, square, 1))
        return with_x(state, combine.add(state.x, share, back(descent))), x0

    return Sampler(plan, sampler.init, step)


def ddnm_plus(
    sampler: Sampler, operator: linear.Operator, y: PyTree, *, noise: Any = 0.05, solver: tuple[int, float] = SOLVER
) -> Sampler:
    """`ddnm` for noise in y: the data become `x_0 + λ A^+ (y - A x_0)`, and a step adds less noise where A sees.

    With a and d the step's weight of x_0 and deviation, `λ = min(1, d / (a noise))` and the new deviation is
    `sqrt(d² - (a λ noise)²)` in what A sees. The noise of `A^+ y` is taken to be `noise`: right where A's rows are orthonormal.
    A step takes it for new though it is the same each time: by many small steps x comes to fit y as closely as by `ddnm`.

    Raises:
      ValueError: `noise` negative; y or x of another shape than the operator's; a sampler that adds no noise, or isn't one
        evaluation per step without memory: take `ddpm()` or `ddim(eta)`.
    Source: Wang, Yu & Zhang (2023), eq. 17-19, arXiv:2212.00490.
    """
    measured.check("ddnm_plus", operator, y, noise)
    if not isinstance(noise, int | float):
        raise ValueError(f"ddnm_plus: noise must be a number, it makes the plan, got {type(noise).__name__}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Beside:
        inner = _one_step("ddnm_plus", sampler.plan(schedule, times))
        if not np.any(inner.noise):
            raise ValueError("ddnm_plus: sampler must add noise, such as ddpm() or ddim(eta=1.0).")
        reach = np.abs(inner.next[:, 2]) * noise
        share = np.where(inner.noise >= reach, 1.0, inner.noise / np.where(reach > 0, reach, 1))
        left = np.sqrt(np.maximum(inner.noise**2 - (share * reach) ** 2, 0)) / np.where(inner.noise > 0, inner.noise, 1)
        return _beside(inner, share=share, left=left)

    def step(plan, denoise, state, row, draw, **conditions):
        problem = measured.fit("ddnm_plus", operator, y, state.x)
        none = jnp.zeros_like(row.t)

        def corrected(x, t, **conditions):
            x0 = denoise(x, t, **conditions)
            return combine.add(x0, row.numbers["share"], problem.pull(x0, none, solver))

        def thinned(like):
            z = draw(like)
            # A^+ A z: what makes A^+ (0 - A (-z)).
            seen = measured.Measured(problem.apply, problem.adjoint, jax.tree.map(jnp.zeros_like, problem.y), problem.batched)
            return combine.add(z, 1 - row.numbers["left"], seen.pull(z, none, solver))

        return sampler.step(plan.inner, corrected, state, row.inner, thinned, **conditions)

    return Sampler(plan, _inner_init(sampler), step)


def diffpir(
    operator: linear.Operator,
    y: PyTree,
    *,
    noise: Any = 0.05,
    weight: int | float = 1.0,
    zeta: int | float = 0.5,
    solver: tuple[int, float] = SOLVER,
) -> Sampler:
    """The data become `argmin |y - A x|² + weight (noise / ρ)² |x - x_0|²` with `ρ = σ / α`; a share ζ of the noise is fresh.

    The next x is `α x_0 + σ (sqrt(1 - ζ) ε + sqrt(ζ) z)` with ε what x and the new x_0 mean. One evaluation per step, no
    derivative of the denoiser. `weight` (λ) over 1 trusts the denoiser more than its noise says.

    Raises:
      ValueError: `noise` negative; `weight` not positive; `zeta` outside [0, 1]; y or x of another shape than the operator's.
    Source: Zhu et al. (2023), algorithm 1, arXiv:2305.08995.
    """
    measured.check("diffpir", operator, y, noise)
    if not weight > 0:
        raise ValueError(f"diffpir: weight must be positive, got {weight}.")
    if not 0 <= zeta <= 1:
        raise ValueError(f"diffpir: zeta must be in [0, 1], got {zeta}.")

    def plan(schedule: Schedule, times: np.ndarray) -> Beside:
        now, then = levels(schedule, times)
        kept = math.sqrt(1 - zeta) * then.sigma / now.sigma
        inner = one_step(times, kept, then.alpha - kept * now.alpha, math.sqrt(zeta) * then.sigma)
        return _beside(inner, penalty=weight / schedule.ratio(times[:-1]) ** 2)

    def step(plan, denoise, state, row, draw, **conditions):
        problem = measured.fit("diffpir", operator, y, state.x)

        def restored(x, t, **conditions):
            x0 = denoise(x, t, **conditions)
            return combine.add(x0, jnp.ones_like(row.t), problem.pull(x0, noise**2 * row.numbers["penalty"], solver))

        return linear_step(plan.inner, restored, state, row.inner, draw, **conditions)

    return Sampler(plan, _linear_init, step)


# ---- shared ---------------------------------------------------------------------------------------------------------


def _replacing(function: str, sampler: Sampler, plan, mask: Any, y: PyTree) -> Sampler:
    def init(plan, x):
        _fitting(function, mask, y, x)
        return sampler.init(plan.inner, x)

    def step(plan, denoise, state, row, draw, **conditions):
        state, x0 = sampler.step(plan.inner, denoise, state, row.inner, draw, **conditions)
        # The same draw as the step's: that one is seen only where this isn't.
        masks, known = _fitting(function, mask, y, state.x)
        known = parametrization.combine(state.x, (row.numbers["alpha"], known), (row.numbers["sigma"], draw(state.x)))
        ends = row.numbers["ends"] > 0
        x = jax.tree.map(lambda m, a, b: jnp.where(m & ends, a, b), masks, known, state.x)
        return with_x(state, x), x0

    return Sampler(plan, init, step)


def _fitting(function: str, mask: Any, y: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
    """Mask and y in the shapes of x."""
    one = jax.tree.structure(x).num_leaves == 1
    if one and jax.tree.structure(mask).num_leaves == 1:
        mask = jax.tree.unflatten(jax.tree.structure(x), jax.tree.leaves(mask))
    try:
        masks = jax.tree.map(lambda x, m: jnp.broadcast_to(jnp.asarray(m, bool), x.shape), x, mask)
        known = jax.tree.map(lambda x, y: jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape), x, y)
    except ValueError as error:
        shapes = [jax.tree.map(jnp.shape, part) for part in (mask, y, x)]
        raise ValueError(
            f"{function}: mask and y must broadcast to x, got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        ) from error
    return masks, known


def _visits(steps: int, length: int, resamples: int) -> np.ndarray:
    """Which step of the grid each row does: after every `length` of them, counted from the data, as many again."""
    again = dict.fromkeys(range(0, steps - length + 1, length), resamples - 1)
    order, left = [], steps
    while left > 0:
        order.append(steps - left)
        left -= 1
        if again.get(left, 0):
            again[left] -= 1
            left += length
    return np.array(order)


def _with_levels(schedule: Schedule, plan: Any) -> Beside:
    alpha, sigma, _ = schedule(plan.t_next)
    return _beside(plan, plan.noise + 1, alpha=alpha, sigma=sigma, ends=plan.whole.astype(float))


def _beside(plan: Any, noise: np.ndarray | None = None, **numbers: np.ndarray) -> Beside:
    inner = plan._replace(first=None)  # `sample` makes rows of all columns, and reads `first` of the outer plan
    return Beside(inner, numbers, plan.t, plan.t_next, plan.noise if noise is None else noise, plan.whole, plan.first)


def _linear_init(plan: Beside, x: PyTree) -> Any:
    return linear_init(plan.inner, x)


def _inner_init(sampler: Sampler):
    def init(plan, x):
        return sampler.init(plan.inner, x)

    return init


def _one_step(function: str, plan: Any) -> Plan:
    simple = isinstance(plan, Plan) and bool(
        np.all(plan.whole)
        and np.all(plan.memory == [0.0, 1.0])
        and not np.any(plan.next[:, 0])
        and not np.any(plan.next[:, 3:])
        and plan.first == (1.0, 0.0)
    )
    if not simple:
        raise ValueError(f"{function}: sampler must be one evaluation per step without memory, such as ddpm() or ddim().")
    return plan
