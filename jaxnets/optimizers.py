"""What composes optax: schedules by epochs, masks and groups by name, proximal steps; and update rules written out.

optax stays the library. Schedules count optimizer steps from 0 and take a traced peak, so they vmap over it. A name
pattern is a regular expression that matches whole components of a parameter's path: `head` matches `head/kernel` and
`net/head/bias` but not `ahead/bias`; `Dense_[0-9]+/kernel` matches two components.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnets.types import Array, Float, Int, Params, Shaped

# ---- schedules ------------------------------------------------------------------------------------------------------


def warmup_cosine(
    peak, *, epochs: int | float, steps_per_epoch: int, warmup_epochs: int | float = 0, final_fraction=0.0
) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then half a cosine to `peak * final_fraction` at the last epoch's end.

    Raises:
      ValueError: `peak`, `epochs` or `steps_per_epoch` not positive; the warm-up not inside `epochs`.
    Source: Loshchilov & Hutter (2017), eq. 5, arXiv:1608.03983; Goyal et al. (2017), section 2.2, arXiv:1706.02677.
    """
    warmup, total = _span("warmup_cosine", peak, warmup_epochs, epochs, steps_per_epoch)
    return _after_warmup(peak, warmup, optax.cosine_decay_schedule(peak, total - warmup, alpha=final_fraction))


def poly(
    peak, *, epochs: int | float, steps_per_epoch: int, power: int | float = 0.9, warmup_epochs: int | float = 0
) -> optax.Schedule:
    """`peak (1 - t / T)^power`, exactly 0 from the last epoch's end T on; t and T count from the warm-up's end.

    Raises:
      ValueError: `peak`, `epochs`, `steps_per_epoch` or `power` not positive; the warm-up not inside `epochs`.
    Source: Zhao et al. (2017), PSPNet, section 5.1, arXiv:1612.01105.
    """
    if power <= 0:
        raise ValueError(f"poly: power must be positive, got {power}.")
    warmup, total = _span("poly", peak, warmup_epochs, epochs, steps_per_epoch)
    steps = total - warmup

    def decay(count):
        # optax.polynomial_schedule, compiled, may be NaN at T: XLA's 1 - t (1 / T) can be -1e-9, to the power 0.9.
        return peak * ((steps - jnp.clip(count, 0, steps)) / steps) ** power

    return _after_warmup(peak, warmup, decay)


def step_decay(
    peak, *, at: Sequence[int | float], steps_per_epoch: int, factor: float = 0.1, warmup_epochs: int | float = 0
) -> optax.Schedule:
    """`peak`, multiplied by `factor` at the first step of each epoch in `at` (counted from 0, the warm-up included).

    Raises:
      ValueError: `peak`, `steps_per_epoch` or `factor` not positive; `at` empty, not increasing, or inside the warm-up.
    Source: He et al. (2016), section 3.4, arXiv:1512.03385.
    """
    steps = [round(epoch * steps_per_epoch) for epoch in at]
    if not steps or steps != sorted(set(steps)):
        raise ValueError(f"step_decay: at must be increasing epochs, at least one and a step apart, got {tuple(at)}.")
    if factor <= 0:
        raise ValueError(f"step_decay: factor must be positive, got {factor}.")
    warmup, _ = _span("step_decay", peak, warmup_epochs, at[0], steps_per_epoch)
    drops = {step - warmup: factor for step in steps}
    return _after_warmup(peak, warmup, optax.piecewise_constant_schedule(peak, drops))


def _span(function: str, peak, warmup_epochs, epochs, steps_per_epoch: int) -> tuple[int, int]:
    """The steps of the warm-up and of the whole, both checked."""
    if isinstance(peak, int | float) and not peak > 0:  # a traced peak has no value yet
        raise ValueError(f"{function}: peak must be positive, got {peak}.")
    if steps_per_epoch < 1:
        raise ValueError(f"{function}: steps_per_epoch must be at least 1, got {steps_per_epoch}.")
    warmup, total = round(warmup_epochs * steps_per_epoch), round(epochs * steps_per_epoch)
    if not 0 <= warmup < total:
        raise ValueError(f"{function}: needs 0 <= warm-up < end in steps, got {warmup} and {total}.")
    return warmup, total


def _after_warmup(peak, warmup: int, schedule: optax.Schedule) -> optax.Schedule:
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


# ---- parameters by name ---------------------------------------------------------------------------------------------


# Biases and scales (`bias`, `head_bias`, ...) and the vectors of recurrent cells, for which zero is no better place.
UNDECAYED = (r"(\w+_)?bias(_\w+)?$", r"(\w+_)?scale(_\w+)?$", r"peephole_\w+$", r"\w+_log$", r"frequency$")


def decay_mask(exclude: str | Iterable[str] = UNDECAYED) -> Callable[[Params], Any]:
    """A function from parameters to a tree of booleans, False where a pattern of `exclude` matches the name.

    For any mask of optax: `optax.adamw(1e-3, mask=decay_mask())`, `optax.masked(proximal(l1, 1e-3), decay_mask())`.
    A pattern that matches nothing is fine here: one mask serves many models.
    """
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def mask(params: Params):
        return jax.tree_util.tree_map_with_path(lambda path, _: not _matching(patterns, _name(path)), params)

    return mask


def groups(multipliers: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies the learning rate of the parameters that match a pattern: `groups({"head": 10.0, "backbone": 0.1})`.

    Chain it after the optimizer (and before `proximal`), as in `optax.chain(optax.adamw(schedule), groups(...))`: it
    scales the whole update, decoupled weight decay included. What no pattern matches keeps its learning rate. Chain
    two `groups` for factors that compound; use `optax.partition` for different optimizers.

    Raises:
      ValueError: a pattern matches no parameter, or a parameter matches two patterns (at `init` and at `update`).
    """

    def factors(tree):
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        names = [_name(path) for path, _ in paths]
        matches = [_matching(multipliers, name) for name in names]
        unmatched = set(multipliers).difference(*matches)
        if names and unmatched:  # no names: everything is masked, or optax maps over the state with a placeholder
            raise ValueError(f"groups: {sorted(unmatched)} must match a parameter, got {names}.")
        for name, patterns in zip(names, matches, strict=True):
            if len(patterns) > 1:
                raise ValueError(f"groups: a parameter must match one pattern, got {name} that matches {patterns}.")
        return structure.unflatten([multipliers[patterns[0]] if patterns else 1 for patterns in matches])

    def init(params):
        factors(params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u, factor: (factor * u).astype(u.dtype), updates, factors(updates)), state

    return optax.GradientTransformation(init, update)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _matching(patterns: Iterable[str], name: str) -> list[str]:
    return [pattern for pattern in patterns if re.search(rf"(?:^|/)(?:{pattern})(?:/|$)", name)]


# ---- proximal steps -------------------------------------------------------------------------------------------------


class ProximalState(NamedTuple):
    count: Int[Array, "..."]  # steps taken, for a schedule


def proximal(prox: Callable[[Params, Any], Params], step_size) -> optax.GradientTransformation:
    """Ends a chain: the parameters become `prox(params + updates, step_size)`.

    With `prox(v, s) = argmin_x g(x) + ||x - v||² / (2s)`, `optax.chain(optax.sgd(rate), proximal(prox, rate))`
    minimizes loss + g by proximal gradients (ISTA). `prox` maps the tree of parameters (under `optax.masked`, those of
    the mask); `step_size` is a number, an array or a schedule. For g = weight ||x||_1:

        def prox(tree, step_size):
            return jax.tree.map(lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - weight * step_size, 0), tree)

    A zero of the prox is a zero of the parameters, bit for bit, although optax adds an update: that is -p, and
    p + -p = 0. Any other x becomes p + fl(x - p): off by rounding but, as that is monotone, never of the other sign.

    `step_size` is the step that the optimizer takes along the gradient. With momentum that is `rate / (1 - momentum)`;
    `rate` would minimize loss + (1 - momentum) g. Adaptive optimizers step differently in every coordinate: `rate` then
    gives exact zeros, a decoupled decay as in AdamW, but not the minimizer of loss + g, whose prox is in the metric of
    their preconditioner (Deleu & Bengio 2021, arXiv:2102.03869).

    Raises:
      ValueError: `step_size` a number that is not positive; `update` without `params`.
    Source: Parikh & Boyd (2014), Proximal Algorithms, section 4.2, doi:10.1561/2400000003.
    """
    if isinstance(step_size, int | float) and not step_size > 0:
        raise ValueError(f"proximal: step_size must be positive, got {step_size}.")

    def init(params):
        del params
        return ProximalState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("proximal: update(updates, state, params) needs params, got None.")
        moved = jax.tree.map(jnp.add, params, updates)
        target = prox(moved, step_size(state.count) if callable(step_size) else step_size)
        # The cast: a float32 step size must not turn bfloat16 updates into float32 ones.
        updates = jax.tree.map(lambda x, p, v: (x - p).astype(v.dtype), target, params, moved)
        return updates, ProximalState(state.count + 1)

    return optax.GradientTransformation(init, update)


# ---- update rules written out ---------------------------------------------------------------------------------------


def perceptron_update(
    layer: Mapping[str, Array], x: Float[Array, " features"], target: Shaped[Array, " units"], *, learning_rate=1.0
) -> Params:
    """The perceptron rule on one example: with the error `e = y - [w·x + b > 0]`, `w <- w + η e x` and `b <- b + η e`.

    `layer` holds `kernel [features, units]` and `bias [units]`, as `Dense_0` of `models.mlp.Perceptron`; y is 0 or 1.
    An epoch is a `lax.scan` over examples. Guarantee, from zero weights: at most (R / γ)² mistakes in all, where
    |(x, 1)| <= R and some unit vector separates the (x, 1) of both classes by γ.

    Source: Rosenblatt (1958), doi:10.1037/h0042519; the bound: Novikoff (1962).
    """
    fires = x @ layer["kernel"] + layer["bias"] > 0
    error = learning_rate * (target.astype(x.dtype) - fires)  # in unsigned integers 0 - 1 would be 255
    return optax.apply_updates(dict(layer), {"kernel": jnp.outer(x, error), "bias": error})


class MomentumState(NamedTuple):
    params: Params
    velocity: Params


def momentum_init(params: Params) -> MomentumState:
    """At rest: zero velocity."""
    return MomentumState(params, jax.tree.map(jnp.zeros_like, params))


def momentum_step(gradient: Callable, state: MomentumState, *, learning_rate, momentum=0.0) -> MomentumState:
    """The heavy ball, `v <- μ v - η ∇f(θ)`, `θ <- θ + v`; gradient descent where μ = 0.

    The parameters of `optax.sgd(η, μ)`, whose trace is `-v / η`: where η changes, there the whole velocity is rescaled,
    here the new gradients are.

    Source: Polyak (1964), doi:10.1016/0041-5553(64)90137-5.
    """
    return _move(state, gradient(state.params), learning_rate, momentum)


def nesterov_step(gradient: Callable, state: MomentumState, *, learning_rate, momentum=0.0) -> MomentumState:
    """Nesterov's look-ahead, `v <- μ v - η ∇f(θ + μ v)`, `θ <- θ + v`.

    `optax.sgd(η, μ, nesterov=True)` carries the point looked at, φ = θ + μ v: `φ <- φ + μ v - η ∇f(φ)` with the new v.
    Same gradients, same v: `look_ahead(state, μ)` are its parameters.

    Source: Sutskever et al. (2013), eq. 3-4, proceedings.mlr.press/v28/sutskever13.html; Nesterov (1983).
    """
    return _move(state, gradient(look_ahead(state, momentum)), learning_rate, momentum)


def look_ahead(state: MomentumState, momentum) -> Params:
    """`θ + μ v`, where Nesterov's step takes its gradient."""
    return jax.tree.map(lambda p, v: (p + momentum * v).astype(p.dtype), state.params, state.velocity)


def _move(state: MomentumState, gradient: Params, learning_rate, momentum) -> MomentumState:
    velocity = jax.tree.map(lambda v, g: (momentum * v - learning_rate * g).astype(v.dtype), state.velocity, gradient)
    return MomentumState(jax.tree.map(jnp.add, state.params, velocity), velocity)
