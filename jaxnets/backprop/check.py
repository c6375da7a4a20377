"""A gradient check for any loss of any pytree, in float64, that names the leaf that is wrong."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.types import Array, Key, Params

ROUND_OFF = 32  # a loss is taken to be right to this many eps, relative


class LeafCheck(NamedTuple):
    """One leaf: its directional derivatives from the gradient and from differences, as norms over the directions."""

    name: str  # `jax.tree_util.keystr` of its path
    error: float  # ‖from gradient - from differences‖ / the larger of the two; 0 below the round-off of the loss
    gradient: float
    difference: float


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The outcome of `check_gradients`; `print(report)` shows the worst leaves first."""

    leaves: tuple[LeafCheck, ...]  # worst first
    slope: float  # order at which the Taylor remainder falls: 2 of a right gradient, 1 of a wrong one
    steps: tuple[float, ...]  # the h of the Taylor test, and its remainders
    remainders: tuple[float, ...]

    @property
    def worst(self) -> LeafCheck:
        """The leaf with the largest error."""
        return self.leaves[0]

    def ok(self, tolerance: float = 1e-6, *, slope: float = 1.8) -> bool:
        """Whether every leaf's error is at most `tolerance` and the Taylor slope at least `slope`."""
        return self.worst.error <= tolerance and self.slope >= slope

    def __str__(self) -> str:
        shown = self.leaves[:10]
        lines = [
            f"worst leaf {self.worst.name}: relative error {self.worst.error:.1e}",
            f"Taylor remainder falls at order {self.slope:.2f} (2 or more where the gradient is right, 1 where not)",
            f"{'error':>9}  {'gradient':>10}  {'difference':>10}  leaf",
            *(f"{c.error:9.1e}  {c.gradient:10.3e}  {c.difference:10.3e}  {c.name}" for c in shown),
        ]
        if len(shown) < len(self.leaves):
            lines.append(f"and {len(self.leaves) - len(shown)} leaves with smaller errors")
        return "\n".join(lines)


def check_gradients(
    loss: Callable[[Params], Any],
    params: Params,
    *,
    key: Key[Array, ""],
    gradient: Callable[[Params], Params] | None = None,
    directions: int = 2,
    has_aux: bool = False,
) -> GradientReport:
    """Compares the gradient of a scalar `loss(params)` with finite differences in float64, leaf by leaf.

    `gradient` is the function to check, by default `jax.grad(loss)`. For each leaf and each of some random directions
    `v`, `<g, v>` against the central difference of order 4; and along one direction in all leaves the order at which the
    Taylor remainder `|f(x + h v) - f(x) - h <g, v>|` falls with `h`, infinite where the loss is linear.

    Runs in float64 even where x64 is off: parameters are converted, and a loss that follows their dtype does the rest. One
    that casts to float32 inside can be checked to about 1e-3 only. Leaves that are not floating point stay as they are.
    Calls the loss `4 directions leaves + 14` times: pass `jax.jit(loss)` if it is long. Not for use inside jit.

    At a kink the two need not agree: relu at 0 has gradient 0 in JAX and difference 1/2. Move parameters and data off
    the kink before you believe the report; all-zero biases on zero inputs are the usual way onto it.

    >>> report = check_gradients(lambda p: jnp.sum(p["w"] ** 3), {"w": jnp.arange(3.0)}, key=jax.random.key(0))
    >>> report.ok(), report.worst.name
    (True, "['w']")

    Raises:
      ValueError: `directions < 1`; no floating leaf; a loss that is not a finite real scalar; a gradient of another shape.
    Source: Griewank & Walther (2008), Evaluating Derivatives; the slope test: Farrell et al. (2013), doi:10.1137/120873558.
    """
    if directions < 1:
        raise ValueError(f"check_gradients: directions must be at least 1, got {directions}.")
    with jax.enable_x64(True), np.errstate(all="ignore"):  # what is not finite is reported, not warned about
        paths, tree = jax.tree.flatten_with_path(params)
        leaves = {jax.tree_util.keystr(path): _double(leaf) for path, leaf in paths}
        point = {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
        if not point:
            raise ValueError("check_gradients: params has no floating-point leaf.")

        def rebuild(point):
            return tree.unflatten([jnp.asarray(leaf) for leaf in {**leaves, **point}.values()])

        def value(point):
            out = loss(rebuild(point))
            return jnp.asarray(out[0] if has_aux else out)

        start = value(point)
        if start.shape or not jnp.issubdtype(start.dtype, jnp.floating) or not jnp.isfinite(start):
            raise ValueError(f"check_gradients: the loss must be a finite real scalar, got {start}.")
        grads = jax.grad(value)(point) if gradient is None else _named(gradient(rebuild(point)), point)

        eps = float(jnp.finfo(start.dtype).eps)
        *drawn, taylor = [_direction(key, point) for key in jax.random.split(key, directions + 1)]
        checks = [_check_leaf(value, point, grads[name], name, [v[name] for v in drawn], eps) for name in point]
        checks.sort(key=lambda check: -check.error)
        return GradientReport(tuple(checks), *_taylor_test(value, point, float(start), grads, taylor, eps))


def _double(leaf):
    """Floating leaves in double precision (numpy, on the host); keys, integers and booleans as they are."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return np.asarray(leaf).astype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def _named(gradient, point):
    """The gradient's leaves by the names of the parameters'."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.flatten_with_path(gradient)[0]}
    for name, leaf in point.items():
        if name not in named or jnp.shape(named[name]) != leaf.shape:
            got = jnp.shape(named[name]) if name in named else "no such leaf"
            raise ValueError(f"check_gradients: the gradient of {name} must have shape {leaf.shape}, got {got}.")
    return named


def _direction(key, point):
    """A normal random step in every leaf, of the size of its entries (of 1 for a leaf of zeros)."""
    step = {}
    for draw, (name, leaf) in zip(jax.random.split(key, len(point)), point.items(), strict=True):
        size = np.sqrt(np.mean(np.abs(leaf) ** 2)) if leaf.size else 0.0
        step[name] = (size or 1.0) * np.asarray(jax.random.normal(draw, leaf.shape, leaf.dtype))
    return step


def _inner(gradient, v):
    return float(np.sum(np.real(np.asarray(gradient) * v)))


def _check_leaf(value, point, gradient, name, directions, eps):
    # The fourth-order stencil makes truncation negligible at a step small enough to meet few kinks; round-off is left.
    h = eps ** (1 / 3)
    values = np.array([[float(value({**point, name: point[name] + at * h * v})) for at in (2, 1, -1, -2)] for v in directions])
    numeric = values @ np.array([-1, 8, -8, 1]) / (12 * h)
    analytic = np.array([_inner(gradient, v) for v in directions])
    wrong, norms = np.linalg.norm(analytic - numeric), (np.linalg.norm(analytic), np.linalg.norm(numeric))
    # Rounded are the values, and inside the loss its arguments, each to eps: hence the slope (max - min) / h.
    round_off = ROUND_OFF * eps / h * np.linalg.norm(np.abs(values).max(1) + np.ptp(values, axis=1) / h)
    error = 0.0 if wrong <= round_off else wrong / max(norms)
    # NaN compares false with every tolerance, but would not be sorted as the worst.
    return LeafCheck(name, float(error) if np.isfinite(error) else math.inf, *map(float, norms))


def _taylor_test(value, point, start, grads, v, eps):
    """The slope between the two smallest steps whose remainders stand clear of round-off, the steps, the remainders."""
    steps = tuple(0.25**k for k in range(1, 13))
    rate = sum(_inner(grads[name], v[name]) for name in point)
    values = [float(value({name: leaf + h * v[name] for name, leaf in point.items()})) for h in steps]
    remainders = tuple(abs(f - start - h * rate) for h, f in zip(steps, values, strict=True))
    round_off = [ROUND_OFF * eps * max(abs(f), abs(start)) for f in values]
    clear = [(h, r) for h, r, noise in zip(steps, remainders, round_off, strict=True) if noise < r < math.inf]
    if len(clear) < 2:
        return math.nan if np.isnan(remainders).any() else math.inf, steps, remainders
    (h1, r1), (h2, r2) = clear[-2:]
    return math.log(r1 / r2) / math.log(h1 / h2), steps, remainders
