"""The problems of `proximal.py` and the one judge of every answer: plain numpy and scipy in float64, no framework.

Every problem is `min_x 1/2 |A x - y|^2 + weight g(x)`, `g` the l1 norm or the sum over samples of the norm across traces.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator

import numpy as np
import scipy.fft
import scipy.signal

MAX_STEPS = 3000  # of a method that is looked at step by step


@dataclasses.dataclass(frozen=True)
class Problem:
    """`data` is a matrix, a wavelet (its time zero at the center) or the mask of an image that is made from its DCT."""

    kind: str  # dense, convolution, dct
    data: np.ndarray
    y: np.ndarray
    shape: tuple[int, ...]  # of x
    fraction: float  # weight over the smallest one whose answer is 0
    group: bool = False

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self.kind == "dense":
            return self.data @ x
        if self.kind == "convolution":
            return _convolve(x, self.data)
        return self.data * scipy.fft.idctn(x, norm="ortho")

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        if self.kind == "dense":
            return y @ self.data
        if self.kind == "convolution":
            return _convolve(y, self.data[::-1])
        return scipy.fft.dctn(self.data * y, norm="ortho")

    def norm(self, x: np.ndarray) -> float:
        return float(np.sum(np.sqrt(np.sum(x**2, axis=0))) if self.group else np.abs(x).sum())

    def dual_norm(self, z: np.ndarray) -> float:
        return float(np.max(np.sqrt(np.sum(z**2, axis=0))) if self.group else np.abs(z).max())

    @functools.cached_property
    def weight(self) -> float:
        return self.fraction * self.dual_norm(self.adjoint(self.y))

    def objective(self, x: np.ndarray) -> float:
        x = np.asarray(x, np.float64).reshape(self.shape)
        return float(0.5 * np.sum((self.y - self.forward(x)) ** 2) + self.weight * self.norm(x))

    def gap(self, x: np.ndarray) -> float:
        """Duality gap over `|y|^2 / 2`: the dual point is the residual, scaled into the feasible set."""
        x = np.asarray(x, np.float64).reshape(self.shape)
        residual = self.y - self.forward(x)
        dual = residual * min(1, self.weight / self.dual_norm(self.adjoint(residual)))
        dual_value = 0.5 * np.sum(self.y**2) - 0.5 * np.sum((self.y - dual) ** 2)
        return float((self.objective(x) - dual_value) / (0.5 * np.sum(self.y**2)))

    def largest_singular_value(self) -> float:
        x = np.random.default_rng(0).normal(size=self.shape)
        for _ in range(100):
            x = self.adjoint(self.forward(x / np.linalg.norm(x)))
        return float(np.sqrt(np.linalg.norm(x)))

    def minimum(self) -> float:
        """The least objective: FISTA with gradient restart, to a relative gap of 1e-10."""
        x = z = np.zeros(self.shape)
        step, t = 0.99 / self.largest_singular_value() ** 2, 1.0
        for k in range(20_000):
            v = z - step * self.adjoint(self.forward(z) - self.y)
            size = np.sqrt(np.sum(v**2, axis=0)) if self.group else np.abs(v)
            following = v * np.maximum(0, 1 - step * self.weight / np.maximum(size, 1e-300))
            if np.sum((z - following) * (following - x)) > 0:
                t = 1.0
            t_following = (1 + np.sqrt(1 + 4 * t**2)) / 2
            x, z, t = following, following + (t - 1) / t_following * (following - x), t_following
            if k % 50 == 49 and self.gap(x) < 1e-10:
                break
        return self.objective(x)


def _convolve(x, wavelet):
    return scipy.signal.oaconvolve(x, wavelet[None], mode="same", axes=-1)


def gaussian(rows: int, columns: int, spikes: int, fraction: float, correlation: float = 0.0) -> Problem:
    """Gaussian columns of norm about 1, neighbors correlated; 5 % of noise."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rows, columns)) / np.sqrt(rows)
    if correlation:
        a = scipy.signal.lfilter([np.sqrt(1 - correlation**2)], [1, -correlation], a, axis=1)
    x = np.zeros(columns)
    x[rng.choice(columns, spikes, replace=False)] = rng.normal(size=spikes)
    y = a @ x
    y += 0.05 * y.std() * rng.normal(size=rows)
    return _rounded(Problem("dense", a, y, (columns,), fraction))


def deconvolution(traces: int, samples: int, fraction: float, group: bool = False) -> Problem:
    """A Ricker wavelet of 20 Hz at 4 ms (81 samples), 5 % spikes (for `group` on all traces at once), 5 % of noise."""
    rng = np.random.default_rng(0)
    u = (np.pi * 20 * 0.004 * np.arange(-40, 41)) ** 2
    spikes = (rng.random((1 if group else traces, samples)) < 0.05) * rng.normal(size=(traces, samples))
    wavelet = (1 - 2 * u) * np.exp(-u)
    y = _convolve(spikes, wavelet)
    y += 0.05 * y.std() * rng.normal(size=y.shape)
    return _rounded(Problem("convolution", wavelet, y, (traces, samples), fraction, group))


def interpolation(traces: int, samples: int, fraction: float) -> Problem:
    """Half of the traces of a section with few DCT coefficients, 5 % of noise."""
    rng = np.random.default_rng(0)
    x = (rng.random((traces, samples)) < 0.01) * rng.normal(size=(traces, samples))
    mask = np.broadcast_to(rng.random((traces, 1)) < 0.5, (traces, samples))
    y = scipy.fft.idctn(x, norm="ortho")
    return _rounded(
        Problem("dct", mask * 1.0, mask * (y + 0.05 * y.std() * rng.normal(size=y.shape)), (traces, samples), fraction)
    )


def _rounded(problem):
    """The judge sees the float32 numbers that the solvers see."""
    return dataclasses.replace(
        problem, **{name: getattr(problem, name).astype(np.float32).astype(np.float64) for name in ("data", "y")}
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "dense 2000x5000": lambda: gaussian(2000, 5000, 100, 0.1),
    "dense 2000x5000, dense answer": lambda: gaussian(2000, 5000, 300, 0.1),
    "deconvolution 512x1024": lambda: deconvolution(512, 1024, 0.05),
    "dense": lambda: gaussian(500, 1250, 50, 0.1),
    "dense, correlated": lambda: gaussian(500, 1250, 50, 0.01, correlation=0.9),
    "deconvolution, one trace": lambda: deconvolution(1, 1024, 0.05),
    "deconvolution, 128 traces": lambda: deconvolution(128, 512, 0.05),
    "interpolation by DCT": lambda: interpolation(256, 256, 0.02),
    "deconvolution by groups": lambda: deconvolution(64, 512, 0.1, group=True),
}


@dataclasses.dataclass(frozen=True)
class Solver:
    """`run(steps)` is a callable to be timed that returns x; `iterates()` gives x after 1, 2, ... steps of the same method."""

    run: Callable[[int], Callable[[], np.ndarray]]
    iterates: Callable[[], Iterator[np.ndarray]]


def prepare(make: Callable[[Problem, float], Solver], arguments: str):
    """The case of a solver on `{"problem": name, "L": ..., "steps": n}`; with a `target` of the objective, its fewest steps."""
    options = json.loads(arguments)
    problem = PROBLEMS[options["problem"]]()
    solver = make(problem, options["L"])
    steps = options.get("steps")
    if steps is None:
        steps = next((k for k, x in enumerate(solver.iterates(), 1) if problem.objective(x) <= options["target"]), None)
    if steps is None:
        return nothing, {"gap": None}
    run = solver.run(steps)
    x = run()
    return run, {"steps": steps, "objective": problem.objective(x), "gap": problem.gap(x)}


def nothing():
    return None


def small_problems(count: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices `[count, 50, 100]`, data and weights (0.1 of the largest) of as many small problems."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(count, 50, 100)).astype(np.float32) / np.float32(np.sqrt(50))
    x = (rng.random((count, 100)) < 0.05) * rng.normal(size=(count, 100))
    y = np.einsum("cij,cj->ci", a, x)
    y += 0.05 * y.std() * rng.normal(size=y.shape)
    y = y.astype(np.float32)
    return a, y, (0.1 * np.abs(np.einsum("cij,ci->cj", a, y)).max(1)).astype(np.float32)


def small_gaps(x: np.ndarray) -> np.ndarray:
    """Relative duality gaps of answers to all small problems."""
    a, y, weight = (v.astype(np.float64) for v in small_problems())
    residual = y - np.einsum("cij,cj->ci", a, x)
    dual = residual * np.minimum(1, weight / np.abs(np.einsum("cij,ci->cj", a, residual)).max(1))[:, None]
    primal = 0.5 * np.sum(residual**2, 1) + weight * np.abs(x).sum(1)
    return (primal - 0.5 * np.sum(y**2, 1) + 0.5 * np.sum((y - dual) ** 2, 1)) / (0.5 * np.sum(y**2, 1))
