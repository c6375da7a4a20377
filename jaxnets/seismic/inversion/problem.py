"""An inversion as data: what is minimized, and how the unknown becomes a model; its solution by FISTA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse import linalg

from jaxnets.proximal import fista, linear, prox, tree
from jaxnets.seismic import checks
from jaxnets.seismic.inversion import weights
from jaxnets.types import Array, InputError, Num, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prior:
    """A second quadratic, `1/2 |Q m - q|^2` of the model `m`: what is known of it besides the data."""

    operator: linear.Operator  # Q
    target: PyTree  # q


def affine(problem: "Problem", unknown: PyTree) -> PyTree:
    """`base + expand(z)`."""
    model = unknown if problem.expand is None else problem.expand(unknown)
    return model if problem.base is None else tree.add(problem.base, model)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """`minimize 1/2 |F m - data|^2 + weight g(z)` over `z`, where `m = base + expand(z)`, plus `1/2 |Q m - q|^2` of a prior.

    Fields are data: `dataclasses.replace(problem, term=prox.elastic_net(1.0, 0.1))` is a variation. `report(problem, z)`
    makes of the solution what the user asked for, `m` itself unless given.
    """

    data: PyTree
    forward: linear.Operator  # F
    term: prox.Term  # g
    expand: linear.Operator | None = None  # change of variables; None: z itself
    base: PyTree = None  # None: 0
    start: PyTree = None  # first z; None: 0
    prior: Prior | None = None
    ceiling: Any = None  # largest weight worth a try; None: lambda_max, from which z = 0 is the answer
    live: Any = None  # where there are data: true or false for each sample; None: everywhere
    context: Any = ()  # arrays that `report` needs
    selects: bool = dataclasses.field(
        default=True, metadata={"static": True}
    )  # zeros of z mean something: `debias` may fix them
    report: Callable = dataclasses.field(default=affine, metadata={"static": True})

    @property
    def operator(self) -> linear.Operator:
        """`A = F expand`, of `z`."""
        return self.forward if self.expand is None else self.forward @ self.expand

    @property
    def initial(self) -> PyTree:
        return self.operator.structure.zeros() if self.start is None else self.start

    @property
    def count(self) -> int | Num[Array, ""]:
        """How many samples are data."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.data)) if self.live is None else jnp.sum(self.live)

    def predict(self, unknown: PyTree) -> PyTree:
        """`F m`."""
        return self.forward(affine(self, unknown))

    def residual(self, unknown: PyTree) -> PyTree:
        """`data - F m`."""
        return tree.subtract(self.data, self.predict(unknown))

    def equations(self) -> tuple[linear.Operator, PyTree]:
        """`(B, b)` such that the quadratic part is `1/2 |B z - b|^2`."""
        rows, targets = (self.forward,), (self.data,)
        if self.prior is not None:
            rows, targets = (*rows, self.prior.operator), (*targets, self.prior.target)
        if self.base is not None:
            targets = tuple(tree.subtract(target, row(self.base)) for row, target in zip(rows, targets, strict=True))
        if self.expand is not None:
            rows = tuple(row @ self.expand for row in rows)
        return (rows[0], targets[0]) if self.prior is None else (linear.stack(rows), targets)

    def smooth(self) -> fista.Smooth:
        """The quadratic part as the solver takes it."""
        return fista.least_squares(*self.equations())

    def largest_weight(self) -> Num[Array, ""]:
        """The ceiling if there is one, else lambda_max."""
        return fista.lam_max(self.smooth(), self.term) if self.ceiling is None else jnp.asarray(self.ceiling)

    def masked(self, keep: Array) -> "Problem":
        """The same problem with the data where `keep` is true only."""
        here = linear.mask(keep, linear.Structure.of(self.data))
        live = keep if self.live is None else keep & self.live
        return dataclasses.replace(self, data=here(self.data), forward=here @ self.forward, live=live)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
    """What an inversion gives. `solution.status` says whether it converged."""

    model: PyTree  # what was asked for: reflectivity, impedance, primaries, ...
    unknown: PyTree  # z, after debiasing if that was asked for
    predicted: PyTree  # the data that the model explains
    residual: PyTree  # data - predicted
    weight: Num[Array, "..."]  # of the term
    solution: fista.Solution


def solve(problem: Problem, weight: "weights.Weight" = weights.Relative(0.1), *, debias: int = 0, **options) -> Result:
    """Solves by FISTA at a weight that is a number or array, or a rule: `relative`, `discrepancy`, `tuned`, or any function
    `(problem, minimize) -> (weight, first z)` where `minimize(problem, weight, z)` gives a `fista.Solution`.

    `options` go to `fista.fista` (`stop=`, `max_steps=`, `momentum=`, ...), also where a rule solves. `debias` is a number of
    conjugate-gradient steps of least squares on the support, for terms that select one (`damped` and `blocky` have none that
    do). One problem; `jax.vmap` solves many, each stopping on its own.

    Raises:
      ValueError: a weight known to be negative or not finite; `debias` negative, or of a term that doesn't select.
    """
    if not isinstance(debias, int) or debias < 0:
        raise ValueError(f"solve: debias must be a number of steps, at least 0, got {debias}.")
    if debias and not problem.selects:  # the support is everything: least squares without any regularization
        raise ValueError(f"solve: debias must be 0 where the term selects no support (damped, blocky), got {debias}.")

    def minimize(problem, weight, start):
        return fista.fista(problem.smooth(), problem.term.scaled(weight), start, **options)

    if callable(weight):
        weight, start = weight(problem, minimize)
    else:
        weight, start = weights.checked(weight), problem.initial
    solution = minimize(problem, weight, start)
    unknown = debiased(problem, solution.x, debias) if debias else solution.x
    predicted = problem.predict(unknown)
    residual = tree.subtract(problem.data, predicted)
    return Result(problem.report(problem, unknown), unknown, predicted, residual, weight, solution)


def debiased(problem: Problem, unknown: PyTree, steps: int) -> PyTree:
    """Least squares on the support of `unknown`, by conjugate gradients from there: undoes the shrinkage of thresholding.

    Few steps regularize: neighbors in the support are almost one column.
    """
    operator, target = problem.equations()
    support = jax.tree.map(lambda leaf: leaf != 0, unknown)

    def keep(x):
        return jax.tree.map(lambda leaf, here: jnp.where(here, leaf, 0), x, support)

    normal = keep(operator.adjoint(target))
    solution, _ = linalg.cg(lambda x: keep(operator.adjoint(operator(keep(x)))), normal, x0=unknown, maxiter=steps)
    return solution


def check_traces(data: Array, name: str = "data") -> None:
    """Raises InputError naming the first trace with NaN or infinite samples. Traced arrays pass: their values are unknown."""
    known = checks.known(data)
    if known is None:
        return
    bad = np.sum(~np.isfinite(known), axis=-1)
    for index in np.argwhere(bad)[:1]:
        where = ", ".join(map(str, index)) or "0"
        raise InputError(f"{name}: trace {where} has {bad[tuple(index)]} NaN or infinite samples of {data.shape[-1]}.")
