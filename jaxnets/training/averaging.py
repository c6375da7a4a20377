"""Averages of parameters whose width is chosen after training: power-function profiles kept meanwhile, then combined.

    ema = averaging.power((0.05, 0.10))
    begin = state.create(model, optimizer, key, x, ema=ema)
    step = steps.make_train_step(loss_fn, optimizer, ema=ema)
    ...                                             # save (step, state.ema) some 8 to 20 times, at equal distances
    params = averaging.reconstruct(snapshots, 0.15)  # the average of width 0.15 at the last snapshot
    steps.make_eval_step(loss_fn, ema=0.05)          # evaluates one of those kept

A width is the standard deviation of a profile, relative to the training time: 0.1 averages about the last tenth.

Source: Karras et al. (2024), "EDM2", arXiv:2312.02696, section 3 and appendix C.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.types import Params

WIDEST = 12**-0.5  # of the uniform profile


class Average(NamedTuple):
    """What `state.create(ema=...)` and `make_train_step(ema=...)` take: how averages begin and follow the parameters."""

    init: Callable[[Params], Any]  # params -> averages
    update: Callable[..., Any]  # (averages, params, step: 1 at the first update) -> averages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PowerAverages:
    """One average of the parameters for each width; `averages[0.05]` is that of width 0.05."""

    params: tuple[Params, ...]
    widths: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, width: float) -> Params:
        if width not in self.widths:
            raise ValueError(f"PowerAverages: expected one of the widths {self.widths}, got {width}.")
        return self.params[self.widths.index(width)]


def power(widths: Sequence[float] = (0.05, 0.10)) -> Average:
    """Running averages with profiles `p(τ) ∝ τ^γ` on [0, t]: `θ̂(t) = β θ̂(t-1) + (1 - β) θ(t)` with `β = (1 - 1/t)^(γ+1)`.

    They forget the initial parameters, whatever the length of the run; exact where averaging starts with training. Held in
    float32 at least: in bfloat16 `1 - β` would soon change nothing.

    Raises:
      ValueError: no width, equal ones, one outside (0, 12^-½]; at the update, averages of other widths.
    """
    widths = tuple(float(width) for width in widths)
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"power: expected different widths, got {widths}.")
    exponents = [gamma(width) for width in widths]

    def init(params: Params) -> PowerAverages:
        def copy(leaf):  # one of its own for each width: aliased buffers can't be donated
            return jnp.array(leaf, jnp.promote_types(leaf.dtype, "float32"), copy=True)

        return PowerAverages(tuple(jax.tree.map(copy, params) for _ in widths), widths)

    def update(averages: Any, params: Params, step: Any) -> PowerAverages:
        if getattr(averages, "widths", None) != widths:
            raise ValueError(f"power: expected averages of widths {widths}: create the state with the same `ema` as the step.")
        time = jnp.asarray(step, jnp.result_type(float))

        def moved(average, exponent):
            share = -jnp.expm1((exponent + 1) * jnp.log1p(-1 / time))  # 1 - β in all its digits
            return jax.tree.map(lambda a, p: a + share.astype(a.dtype) * (p - a), average, params)

        return PowerAverages(tuple(map(moved, averages.params, exponents)), widths)

    return Average(init, update)


def reconstruct(snapshots: Sequence[tuple[Any, PowerAverages]], width: float, *, at: Any = None) -> Params:
    """The average of any `width` at step `at` (default: the last snapshot's) from snapshots `(step, averages)`, on the host.

    The nearest profile, in the sense of least squares, that `weights` finds; exact for a width that was kept. `step` counts
    the applied updates: `state.step`. The snapshots may be in any order. Their arrays are read one after the other.

    Measured 2026-11-23: of the last profile's norm, what is missing at widths 0.07 / 0.15 / 0.20 is 1.3 / 3.3 / 7.7 % with 8
    equally spaced snapshots of (0.05, 0.10), and 0.25 / 0.6 / 1.5 % with 20; below 0.05 it soon is much.

    Raises:
      ValueError: no snapshot, snapshots of different widths, and what `weights` raises.
    """
    if not snapshots:
        raise ValueError("reconstruct: expected at least one snapshot, got none.")
    kept = {averages.widths for _, averages in snapshots}
    if len(kept) > 1:
        raise ValueError(f"reconstruct: expected snapshots of the same widths, got {sorted(kept)}.")
    shares = weights([int(step) for step, _ in snapshots], kept.pop(), width, at=at).ravel()
    trees = [tree for _, averages in snapshots for tree in averages.params]

    def combined(*leaves):
        total = sum(share * np.asarray(leaf, np.float64) for share, leaf in zip(shares, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(combined, *trees)


def weights(steps: Sequence[int], widths: Sequence[float], width: float, *, at: Any = None) -> np.ndarray:
    """How much of each snapshot and width `[step, width]` makes up the average of `width` at step `at`.

    Minimizes `∫ (Σ w_i p_i(τ) - p(τ))² dτ` under `Σ w_i = 1`. The paper leaves the sum free, which then is off by up to 2 %
    with 8 snapshots: parameters would shrink. The constraint costs at most a few percent of the residual.

    Raises:
      ValueError: steps that are not positive or repeat, `at` not between the first and the last, a width outside (0, 12^-½].
    Source: Karras et al. (2024), arXiv:2312.02696, appendix C.
    """
    times = np.asarray(steps, np.float64)
    if times.ndim != 1 or not len(times) or times.min() <= 0 or len(set(steps)) < len(times):
        raise ValueError(f"weights: expected different positive steps, got {list(steps)}.")
    end = times.max() if at is None else float(at)
    if not times.min() <= end <= times.max():
        raise ValueError(
            f"weights: at must lie between the first and the last snapshot, {min(steps)} and {max(steps)}, got {at}."
        )
    time = np.repeat(times, len(widths)) / end
    exponent = np.tile([gamma(kept) for kept in widths], len(times))
    products = _inner(time[:, None], exponent[:, None], time[None], exponent[None])
    scale = 1 / np.sqrt(np.diag(products))  # unit profiles: the system's condition is then that of their angles
    wanted = scale * _inner(time, exponent, 1.0, gamma(width))
    free, ones = np.linalg.solve(products * np.outer(scale, scale), np.stack([wanted, scale], axis=1)).T * scale
    return (free + ones * (1 - free.sum()) / ones.sum()).reshape(len(times), len(widths))


def gamma(width: float) -> float:
    """Exponent of the profile of a `width`: the root γ >= 0 of `(γ + 2)² (γ + 3) = (γ + 1) / width²`.

    >>> round(gamma(0.05), 2), round(gamma(0.10), 2)
    (16.97, 6.94)

    Raises:
      ValueError: `width` not in (0, 12^-½], 0.2887 being the uniform average.
    Source: Karras et al. (2024), arXiv:2312.02696, appendix C.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"gamma: width must be in (0, 12^-1/2] = (0, {WIDEST:.4f}], got {width}.")
    inverse = width**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def relative_width(exponent: float | int) -> float:
    """Standard deviation of the profile `τ^γ` on [0, 1]: `(γ + 1)^½ (γ + 2)^-1 (γ + 3)^-½`; the inverse of `gamma`.

    Raises:
      ValueError: a negative exponent.
    """
    if exponent < 0:
        raise ValueError(f"relative_width: exponent must not be negative, got {exponent}.")
    return (exponent + 1) ** 0.5 / (exponent + 2) / (exponent + 3) ** 0.5


def of_state(state: Any, ema: bool | float) -> Params:
    """A state's parameters: those trained (False), their average (True), or that of one width.

    Raises:
      ValueError: the state has no average, or several and none is named, or none of this width.
    """
    if ema is False:
        return state.params
    several = isinstance(state.ema, PowerAverages)
    if state.ema is None or (ema is True) == several:
        held = f"averages of widths {state.ema.widths}: name one" if several else "no such average"
        raise ValueError(
            f"ema={ema} needs a state created with ema={True if ema is True else 'averaging.power(...)'}, it has {held}."
        )
    return state.ema if ema is True else state.ema[ema]


def _inner(time_a, gamma_a, time_b, gamma_b) -> Any:
    """`∫ p_a p_b dτ` of profiles `(γ + 1) τ^γ / t^(γ+1)` on [0, t]."""
    ratio, latest = np.minimum(time_a, time_b) / np.maximum(time_a, time_b), np.where(time_a < time_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**latest / np.maximum(time_a, time_b)
