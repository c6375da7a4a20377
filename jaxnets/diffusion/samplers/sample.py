"""What samplers share: a plan of coefficients made on the host, one step that reads it, and the scan over both.

All samplers here are linear in what they have seen: the next x is a weighted sum of x, of an x kept from before, and of the
last few predictions. A sampler is therefore a table of weights, one row per evaluation of the denoiser, computed in float64.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.diffusion import parametrization
from jaxnets.diffusion.schedules import Grid, Schedule
from jaxnets.types import Array, Key, PyTree


class Plan(NamedTuple):
    """Weights of each evaluation, float64 with the evaluation as leading axis; `m` is what is remembered of it.

    m = memory · (x, x_0),  base ← base · (base, x, m, m of before, ...),  x ← next · (base, x, m, m of before, ...) + noise ε
    """

    t: np.ndarray  # [n] time of the evaluation
    t_next: np.ndarray  # [n] time of the x that the row ends with
    memory: np.ndarray  # [n, 2]
    base: np.ndarray  # [n, 2 + h]
    next: np.ndarray  # [n, 2 + h]
    noise: np.ndarray  # [n] standard deviation of what is added
    whole: np.ndarray  # [n] whether the row ends a step of the grid
    first: tuple[float, float] = (1.0, 0.0)  # before all: x ← first · (x, ε)


def plan_of(rows: Sequence[tuple], first: tuple[int | float, int | float] = (1.0, 0.0)) -> Plan:
    """The plan of rows `(t, t_next, memory, base, next, noise, whole)`."""
    t, t_next, memory, base, weights, noise, whole = (np.array(column) for column in zip(*rows, strict=True))
    return Plan(t, t_next, memory, base, weights, noise, whole, first)


class State(NamedTuple):
    """What a step hands to the next one; a field that no weight uses is None."""

    x: PyTree
    base: PyTree
    memory: tuple[PyTree, ...]  # m of this evaluation and of those before, the newest first


class Trajectory(NamedTuple):
    """Along the grid: times `[steps + 1]`, x at each of them, and the data predicted at the beginning of each step."""

    t: np.ndarray
    x: PyTree  # leading axis: steps + 1
    x0: PyTree  # leading axis: steps


def linear_init(plan: Plan, x: PyTree) -> State:
    """No memory yet: zeros, which the weights of the first rows don't read."""
    depth, based = plan.next.shape[1] - 2, _based(plan)
    zeros = jax.tree.map(jnp.zeros_like, x)
    remembered = 1 + max([j for j in range(depth) if _used(plan, 2 + j)], default=0)
    return State(x, zeros if based else None, (zeros,) * remembered)


def linear_step(
    plan: Plan, denoise: Callable, state: State, row: Plan, noise: Callable, **conditions: Any
) -> tuple[State, PyTree]:
    """The next state and the data predicted; `row` has the traced weights, `plan` tells which of them are 0 throughout."""
    x0 = denoise(state.x, row.t, **conditions)
    newest = _sum(state.x, plan.memory, row.memory, (state.x, x0))
    memory = (newest, *state.memory[:-1])
    base = _sum(state.x, plan.base, row.base, (state.base, state.x, *memory)) if _based(plan) else None
    fresh = ((row.noise, noise(state.x)),) if np.any(plan.noise) else ()
    x = _sum(state.x, plan.next, row.next, (base, state.x, *memory), *fresh)
    return State(x, base, memory), x0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler as data: `plan(schedule, times)` on the host, then `init` and one `step` for each row of the plan.

    `init(plan, x) -> state` with a field `x`; `step(plan, denoise, state, row, noise, **conditions) -> (state, x0)`, where
    `noise(like)` draws. Other plans than `Plan` do where they have its fields `t`, `whole` and `first`.
    """

    plan: Callable[[Schedule, np.ndarray], Any]
    init: Callable = linear_init
    step: Callable = linear_step


def sample(
    sampler: Sampler,
    denoise: Callable,
    schedule: Schedule,
    grid: Grid,
    key: Key[Array, ""] | None = None,
    shape: PyTree = None,
    *,
    x: PyTree = None,
    noise: PyTree = None,
    trajectory: bool = False,
    dtype: Any = jnp.float32,
    **conditions: Any,
) -> Any:
    """Data from noise: x of `shape` (of an array, or a pytree of `jax.ShapeDtypeStruct`), or from the given `x`.

    `conditions` go to the denoiser. With `trajectory` the result is the pair (data, `Trajectory`). `x` starts at the grid's
    first time, in place of `σ ε`. `noise` is used in place of random numbers, one leading entry per row of the plan,
    to couple runs. The step to time 0 is exact: what the denoiser says.

    Pure: under jit the sampler, schedule and grid are constants; `vmap` and `grad` go through. Weights are rounded once, from
    float64 to the dtype of x, float32 at least.

    Raises:
      ValueError: neither `shape` nor `x`, or both; no key where something is drawn; times outside of the schedule.
    """
    return _run(sampler, denoise, schedule, grid(schedule), key, shape, x, noise, trajectory, dtype, conditions)


def encode(
    sampler: Sampler,
    denoise: Callable,
    schedule: Schedule,
    grid: Grid,
    x: PyTree,
    *,
    trajectory: bool = False,
    **conditions: Any,
) -> Any:
    """The noise from which `sample(..., x=noise)` makes the data `x`, by the same steps backwards (inversion).

    Starts from `α x` at the grid's last time before 0, as if it held its noise already; good to the sampler's order up to
    there. The step of sampling that follows, to the denoiser's mean, has no inverse: let the last time be early.

    Raises:
      ValueError: a sampler that draws; a grid of one step.
    Source: Song, Meng & Ermon (2021), section 4.3, arXiv:2010.02502.
    """
    times = grid(schedule)[:-1][::-1]
    if len(times) < 2:
        raise ValueError(f"encode: grid must have at least 2 steps, got {len(times)}.")
    forwards = sampler.plan(schedule, times[::-1])  # in the other direction there is no posterior, so its noise is 0
    if np.any(getattr(forwards, "noise", 0)) or forwards.first[1]:
        raise ValueError("encode: sampler must be deterministic, got one that adds noise.")
    alpha = float(schedule(times[0]).alpha)
    start = jax.tree.map(lambda leaf: (alpha * jnp.asarray(leaf)).astype(leaf.dtype), x)
    return _run(sampler, denoise, schedule, times, None, None, start, None, trajectory, None, conditions)


def image_to_image(
    sampler: Sampler,
    denoise: Callable,
    schedule: Schedule,
    grid: Grid,
    key: Key[Array, ""],
    image: PyTree,
    *,
    strength: int | float = 0.6,
    **conditions: Any,
) -> PyTree:
    """The data `image` noised, then sampled anew by the last `strength` share of the grid's steps.

    Raises:
      ValueError: `strength` outside (0, 1].
    Source: Meng et al. (2022), SDEdit, arXiv:2108.01073.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"image_to_image: strength must be in (0, 1], got {strength}.")
    grid = dataclasses.replace(grid, last=max(1, round(strength * grid.steps)))
    start, key = jax.random.split(key)
    x = parametrization.noisy(image, gaussian(start, image), grid(schedule)[0], schedule)
    return sample(sampler, denoise, schedule, grid, key, x=x, **conditions)


class Carried(NamedTuple):
    """The state of a sampler, and the data predicted last."""

    inner: Any
    x0: PyTree

    @property
    def x(self) -> PyTree:
        return self.inner.x


def with_x(state: Any, x: PyTree) -> Any:
    """The state of any sampler at another x."""
    return state._replace(inner=with_x(state.inner, x)) if isinstance(state, Carried) else state._replace(x=x)


def self_conditioned(sampler: Sampler) -> Sampler:
    """The sampler for a network with self-conditioning: shows the denoiser as `previous` what it said last, zeros at first.

    Source: Chen, Zhang & Hinton (2023), algorithm 2, arXiv:2208.04202.
    """

    def init(plan: Any, x: PyTree) -> Carried:
        return Carried(sampler.init(plan, x), jax.tree.map(jnp.zeros_like, x))

    def step(
        plan: Any, denoise: Callable, state: Carried, row: Any, noise: Callable, **conditions: Any
    ) -> tuple[Carried, PyTree]:
        inner, x0 = sampler.step(plan, denoise, state.inner, row, noise, previous=state.x0, **conditions)
        return Carried(inner, x0), x0

    return Sampler(sampler.plan, init, step)


def gaussian(key: Key[Array, ""], like: PyTree) -> PyTree:
    """Independent standard normal numbers in the shapes and dtypes of a tree."""
    leaves, tree = jax.tree.flatten(like)
    keys = [key] if len(leaves) == 1 else list(jax.random.split(key, len(leaves)))
    return tree.unflatten([jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)])


def _run(sampler, denoise, schedule, times, key, shape, x, noise, trajectory, dtype, conditions):
    if (shape is None) == (x is None):
        raise ValueError("sample: give either shape or x, the start.")
    x = jax.tree.map(jnp.asarray, x) if shape is None else _structure(shape, dtype)
    wide = parametrization.as_time(0.0, x).dtype
    times = np.asarray(times, wide).astype(np.float64)  # as the denoiser will see them: levels agree to the last digit
    if not np.all(np.diff(times)):
        raise ValueError(f"sample: times of the grid coincide in {wide}: take fewer, or begin at a smaller ratio.")
    plan = sampler.plan(schedule, times)
    draws = bool(np.any(getattr(plan, "noise", True))) and noise is None
    if key is None:
        if draws or shape is not None or plan.first[1]:
            raise ValueError("sample: key is missing, the start or the steps are random.")
        key = jax.random.key(0)  # draws nothing
    start, key = jax.random.split(key)
    if shape is not None:
        x = jax.tree.map(lambda z: (float(schedule(times[0]).sigma) * z).astype(z.dtype), gaussian(start, x))
    if plan.first != (1.0, 0.0):
        fresh = gaussian(jax.random.fold_in(start, 1), x)
        x = jax.tree.map(lambda x, z: (plan.first[0] * x + plan.first[1] * z).astype(x.dtype), x, fresh)
    rows = jax.tree.map(lambda column: jnp.asarray(column, wide), plan._replace(whole=None, first=None))

    def body(state, at):
        row, index, given = at

        def draw(like):
            return given if given is not None else gaussian(jax.random.fold_in(key, index), like)

        state, x0 = sampler.step(plan, denoise, state, row, draw, **conditions)
        return state, (state.x, x0) if trajectory else None

    final, seen = jax.lax.scan(body, sampler.init(plan, x), (rows, jnp.arange(len(plan.t)), noise))
    if seen is None:
        return final.x
    ends = np.flatnonzero(plan.whole)
    starts = np.append(0, ends[:-1] + 1)
    later, guesses = seen
    xs = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[ends]]), x, later)
    return final.x, Trajectory(np.append(plan.t[0], plan.t_next[ends]), xs, jax.tree.map(lambda leaf: leaf[starts], guesses))


def _structure(shape, dtype):
    if isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) for n in shape):
        return jax.ShapeDtypeStruct(tuple(shape), dtype)
    return shape


def _used(plan: Plan, column: int) -> bool:
    return bool(np.any(plan.base[:, column]) or np.any(plan.next[:, column]))


def _based(plan: Plan) -> bool:
    return bool(np.any(plan.next[:, 0]))


def _sum(like, columns, weights, trees, *more):
    """Sum of the trees with their weights, leaving out what has weight 0 in every row: it costs nothing."""
    return parametrization.combine(like, *((weights[j], tree) for j, tree in enumerate(trees) if np.any(columns[:, j])), *more)
