"""Minimizes `F(x) = f(x) + g(x)`: `f` smooth, `g` simple (its proximal operator is known). From gradient descent to FISTA.

**Gradient descent** (Cauchy 1847) goes downhill on `f` alone, `x+ = x - s grad f(x)`. Where `grad f` changes at most `L` times
as fast as `x`, the parabola `f(y) + <grad f(y), x - y> + |x - y|^2 / (2 s)` lies above `f` for every `s <= 1 / L`, and a step
goes to its lowest point. A small `s` crawls, `s > 2 / L` diverges, and of several valleys the start decides which is reached.

**ISTA** keeps the parabola for `f` and adds `g` as it is; the lowest point is now

    x+ = prox(x - s grad f(x), s),    prox(v, s) = argmin_x g(x) + |x - v|^2 / (2 s),

for `g = lambda |x|_1` a soft threshold at `lambda s` (Daubechies, Defrise & De Mol 2004, doi:10.1002/cpa.20042). With
`s = 1 / L`, `F(x_k) - F* <= L |x0 - x*|^2 / (2 k)` (Beck & Teboulle 2009, doi:10.1137/080716542, theorem 3.1).

**FISTA** takes the step not from `x_k` but from where the last one was heading (Nesterov 1983; Beck & Teboulle, eq. 4.1-4.3),

    x_{k+1} = prox(y_k - s grad f(y_k), s),    t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2,
    y_{k+1} = x_{k+1} + (t_k - 1) / t_{k+1} (x_{k+1} - x_k),

at the same cost per step, and `F(x_k) - F* <= 2 L |x0 - x*|^2 / (k + 1)^2` (their theorem 4.4).

Momentum overshoots and the objective ripples. **Restarting** it when it points uphill (O'Donoghue & Candes 2015,
doi:10.1007/s10208-013-9150-3) adapts to curvature that nobody told the method; other momenta let the iterates converge
(Chambolle & Dossal 2015, doi:10.1007/s10957-015-0746-4) or lean on restarts altogether (**greedy**: Liang, Luo & Schoenlieb
2022, doi:10.1137/21M1395685). All of them are one function:

    fista.fista(problem, prox.zero(), x0, momentum=fista.none())    gradient descent
    fista.fista(problem, prox.l1(lam), x0, momentum=fista.none())   ISTA
    fista.fista(problem, prox.l1(lam), x0, restart=fista.never())   FISTA
    fista.fista(problem, prox.l1(lam), x0)                          FISTA with restart

each with a step size that adapts (`backtracking`) unless it is told one (`constant`).

`fista.init` and `fista.step` are its parts, for loops of one's own. One step costs one `A` and one `A^H`: the objective, the
test of the step size and the duality gap use the images `A x` that are there, of which `A x_{k+1}` is always computed from
`x_{k+1}` and only `A y` is a combination of two of them, so that rounding doesn't add up.
"""

from jaxnets.proximal.fista.iteration import CONVERGED, LIMIT, NOT_DESCENDING, NOT_FINITE, RUNNING, State, init, step
from jaxnets.proximal.fista.options import (
    Momentum,
    Restart,
    StepSize,
    Stop,
    any_of,
    backtracking,
    barzilai_borwein,
    chambolle_dossal,
    constant,
    discrepancy,
    every,
    function,
    gap,
    gradient,
    greedy,
    ista,
    nesterov,
    never,
    none,
    residual,
    step_change,
    strongly_convex,
)
from jaxnets.proximal.fista.problems import Loss, Smooth, huber, least_squares, logistic, smooth
from jaxnets.proximal.fista.solver import History, Solution, describe, fista, lam_max, path, unrolled
from jaxnets.proximal.fista.working_set import working_set

__all__ = [
    "CONVERGED",
    "LIMIT",
    "NOT_DESCENDING",
    "NOT_FINITE",
    "RUNNING",
    "History",
    "Loss",
    "Momentum",
    "Restart",
    "Smooth",
    "Solution",
    "State",
    "StepSize",
    "Stop",
    "any_of",
    "backtracking",
    "barzilai_borwein",
    "chambolle_dossal",
    "constant",
    "describe",
    "discrepancy",
    "every",
    "fista",
    "function",
    "gap",
    "gradient",
    "greedy",
    "huber",
    "init",
    "ista",
    "lam_max",
    "least_squares",
    "logistic",
    "nesterov",
    "never",
    "none",
    "path",
    "residual",
    "smooth",
    "step",
    "step_change",
    "strongly_convex",
    "unrolled",
    "working_set",
]
