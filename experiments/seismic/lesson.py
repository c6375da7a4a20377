"""Where the method starts from: gradient descent in one dimension, by the same solver with no term and no momentum."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.proximal import fista, prox
from jaxnets.types import Array

TILT = 0.15
SIZES = {"too small": 0.02, "right": 0.2, "too large": 0.95}  # step sizes, from START
START, STARTS = 1.4, (0.3, 0.0)  # the last two lie on either side of the ridge between the valleys
STEPS = 12


def height(x, tilt=TILT):
    """Two valleys, the left one deeper."""
    return x**4 / 4 - x**2 / 2 + tilt * x


def valleys(tilt, x):
    """`height` as the solver takes it: of parameters and an array."""
    return jnp.sum(height(x, tilt))


def descend(step_size: Array, start: Array) -> tuple[Array, fista.Solution]:
    """The points that gradient descent visits, and the solver's own run."""
    problem, term = fista.smooth(valleys, TILT), prox.zero()
    options = {"step": fista.constant(step_size), "momentum": fista.none()}

    def advance(state, _):
        state = fista.step(problem, term, state, **options, restart=fista.never())
        return state, state.x[0]

    x0 = start[None]
    _, visited = jax.lax.scan(advance, fista.init(problem, term, x0, **options), length=STEPS)
    return jnp.concatenate([x0, visited]), fista.fista(problem, term, x0, **options, max_steps=STEPS)


def runs() -> dict[str, tuple[float, np.ndarray, str]]:
    """Step size, points and status of every run of the figure: all at once."""
    cases = {name: (size, START) for name, size in SIZES.items()}
    cases |= {f"from {start:g}": (SIZES["right"], start) for start in STARTS}
    sizes, starts = jnp.array(list(cases.values())).T
    visited, solutions = jax.jit(jax.vmap(descend))(sizes, starts)
    rows = zip(cases.items(), np.asarray(visited), fista.describe(solutions), strict=True)
    return {name: (size, points, status) for (name, (size, _)), points, status in rows}


def draw(runs, figure):
    """The function, and the points that each run visits."""
    x = np.linspace(-1.75, 1.75, 200, dtype=np.float32)
    panels = [[name] for name in SIZES] + [[name for name in runs if name not in SIZES]]
    for axes, names in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        axes.plot(x, height(x), color="0.7")
        for name, color in zip(names, ("C0", "C3"), strict=False):
            _, visited, _ = runs[name]
            axes.plot(visited, height(visited), "o-", color=color, markersize=4, linewidth=0.8, label=name)
            axes.plot(visited[0], height(visited[0]), "o", color=color, markersize=9, fillstyle="none")
        if len(names) > 1:
            axes.legend(loc="upper center", fontsize=8)
        title = "two starts, two valleys" if len(names) > 1 else f"step {SIZES[names[0]]:g}: {names[0]}"
        axes.set(title=title, xlabel="x", ylabel="f(x)", ylim=(-0.55, 0.75), xlim=(-1.75, 1.75))
        axes.title.set_fontsize(9)
        axes.label_outer()
