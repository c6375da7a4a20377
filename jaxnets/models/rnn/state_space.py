"""Cells whose recurrence `h_t = a_t h_{t-1} + b_t` is linear: minGRU, LRU and S5.

As `a_t` and `b_t` depend on the input alone, all steps can be taken at once: `linear.linear_recurrence`. LRU and S5 are linear
maps, and so are stacks of them; `gate=True` puts the nonlinearity of their papers after each.

States are float32 or complex64 even where parameters and inputs are half precision, in which a slow state would not move, and
float64 or complex128 where those are float64; outputs have the dtype of the inputs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Initializer
from jax import lax

from jaxnets import activations
from jaxnets.models import layers
from jaxnets.models.common import require
from jaxnets.models.rnn import linear
from jaxnets.models.rnn.cells import Cell, Specification
from jaxnets.models.rnn.recurrence import Conditions, products
from jaxnets.types import Array, Params


@dataclasses.dataclass(frozen=True)
class LinearCell(Cell):
    """A cell with `h' = a h + b`: a subclass has `terms` in place of `step`."""

    def terms(self, params: Params, xs: Array) -> tuple[Array, Array]:
        """`a`, `[..., features]` or `[features]`, and `b [..., features]` of inputs with any leading axes."""
        raise NotImplementedError

    def step(self, params: Params, state: Array, x: Array) -> Array:
        a, b = self.terms(params, x)
        return _like(a, b) * state + b

    def scan(
        self, params: Params, state: Array, xs: Array, conditions: Conditions = Conditions(), **options: Any
    ) -> tuple[Array, Array]:
        """`linear_recurrence`, with its `options`, over `xs [time, batch, features]`: the final state, and all states.

        `remat` and `plain` change nothing: of what it computes it keeps the states only, and has derivatives of both modes.

        Raises:
          ValueError: conditions with zoneout or recurrent dropout.
        """
        if conditions.zoneout is not None or conditions.keep is not None:
            raise ValueError(f"{type(self).__name__}: zoneout and recurrent dropout are for nonlinear cells.")
        options = {name: value for name, value in options.items() if name not in ("remat", "plain")}
        a, b = self.terms(params, xs)
        return linear.linear_recurrence(a, b, state, mask=conditions.mask, reset=conditions.reset, **options)


@dataclasses.dataclass(frozen=True)
class MinGRU(LinearCell):
    """A GRU whose gate and candidate see the input only: `h' = (1 - σ(z)) h + σ(z) g(c)` with `z, c = x W + b`.

    `candidate` "linear": `g(c) = c`; "positive": `g(c) = c + 1/2` where `c >= 0`, else `σ(c)`. The paper then computes with
    logarithms; there is no need to, as a weighted mean of positive numbers neither cancels nor overflows.

    Parameters: `input [features, 2 width]`, `bias [2 width]`, the gate z first.

    Source: Feng et al. (2024), section 3.1 and appendix B, arXiv:2410.01201.
    """

    candidate: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        known = self.candidate in ("linear", "positive")
        require(self, known, "candidate must be 'linear' or 'positive'", repr(self.candidate))

    def parameters(self, inputs: int) -> Specification:
        columns = 2 * self.width
        return {"input": (nn.initializers.lecun_normal(), (inputs, columns)), "bias": (nn.initializers.zeros, (columns,))}

    def initial(self, batch: int, dtype: Any = float) -> Array:
        return jnp.zeros((batch, self.width), _wide(dtype))

    def terms(self, params: Params, xs: Array) -> tuple[Array, Array]:
        of_x = _widen(products((xs, params["input"])))
        z, candidate = jnp.split(of_x + _like(params["bias"], of_x), 2, axis=-1)
        if self.candidate == "positive":
            candidate = jnp.where(candidate >= 0, candidate + 0.5, jax.nn.sigmoid(candidate))
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * candidate

    def read(self, params: Params, states: Array, xs: Array) -> Array:
        return states.astype(jnp.result_type(xs, params["input"]))


@dataclasses.dataclass(frozen=True)
class DiagonalCell(LinearCell):
    """A cell with `h' = λ h + γ (x B)`, `y = Re(h C) + x D` and complex states: a subclass has `discrete` in place of `step`.

    Complex matrices are two real ones side by side, so that optimizers and checkpoints see ordinary floats: with n complex
    states, `input [features, 2n]` is (Re B, Im B), and `output [2n, width]` is (Re C, -Im C), one above the other.
    """

    state: int | None = None  # number of states; None: the width
    gate: bool = False  # the output is u σ(u W) with u = gelu(y)

    def __post_init__(self):
        super().__post_init__()
        require(self, self.state is None or self.state >= 1, "state must be None or at least 1", self.state)

    @property
    def modes(self) -> int:
        """Number n of complex states."""
        return self.state or self.width

    def discrete(self, params: Params) -> tuple[Array, Array]:
        """λ and γ `[modes]`."""
        raise NotImplementedError

    def parameters(self, inputs: int) -> Specification:
        lecun, diagonal = nn.initializers.lecun_normal(), nn.initializers.normal(1.0)
        skip = (diagonal, (inputs,)) if inputs == self.width else (lecun, (inputs, self.width))
        specification: Specification = {"skip": skip}
        return specification | {"gate": (lecun, (self.width, self.width))} if self.gate else specification

    def initial(self, batch: int, dtype: Any = float) -> Array:
        """Zeros of the complex dtype that goes with the real `dtype`."""
        return jnp.zeros((batch, self.modes), jnp.result_type(_wide(dtype), jnp.complex64))

    def terms(self, params: Params, xs: Array) -> tuple[Array, Array]:
        eigenvalues, scale = self.discrete(params)
        of_x = lax.complex(*jnp.split(_widen(products((xs, params["input"]))), 2, axis=-1))
        return eigenvalues, _like(scale, of_x) * of_x

    def read(self, params: Params, states: Array, xs: Array) -> Array:
        parts = jnp.concatenate([states.real, states.imag], axis=-1).astype(jnp.result_type(xs, params["output"]))
        skip = params["skip"]
        y = parts @ params["output"] + (_like(skip, xs) * xs if skip.ndim == 1 else xs @ skip)
        if not self.gate:
            return y
        y = activations.gelu(y)
        return y * jax.nn.sigmoid(y @ params["gate"])


@dataclasses.dataclass(frozen=True)
class LRU(DiagonalCell):
    """Linear recurrent unit: `h' = λ h + γ (x B)`, `y = Re(h C) + x D` with `λ = exp(-exp(ν) + i exp(θ))`, so that `|λ| < 1`.

    Starts with λ uniform by area on the ring between the radii `r_min` and `r_max` (at its quantiles, where the paper draws),
    at random angles below `max_phase`, and with `γ² = 1 - |λ|²`, which keeps the variance of white inputs.

    Parameters: `nu_log`, `theta_log`, `gamma_log` `[state]`; `input [features, 2 state]`, `output [2 state, width]`, pairs of
    real matrices (see `DiagonalCell`); `skip [width]`, a diagonal D, or `[features, width]` where the two differ; with `gate`,
    `gate [width, width]`.

    Source: Orvieto et al. (2023), section 3 and appendix A, arXiv:2303.06349; the gate is that of `S5`.
    """

    r_min: int | float = 0.0
    r_max: int | float = 0.999
    max_phase: int | float = 2 * math.pi

    def __post_init__(self):
        super().__post_init__()
        ring = 0 <= self.r_min <= self.r_max and 0 < self.r_max < 1
        require(self, ring, "r_min and r_max must be 0 <= r_min <= r_max < 1, r_max > 0", (self.r_min, self.r_max))
        require(self, 0 < self.max_phase <= 2 * math.pi, "max_phase must be in (0, 2π]", self.max_phase)

    def parameters(self, inputs: int) -> Specification:
        n = self.modes
        square = self.r_min**2 + (np.arange(n) + 0.5) / n * (self.r_max**2 - self.r_min**2)  # |λ|²

        def theta_log(key, shape, dtype=float):
            return jnp.log(self.max_phase * (1 - jax.random.uniform(key, shape, dtype)))  # never log 0

        return {
            "nu_log": (_values(np.log(-np.log(square) / 2)), (n,)),
            "theta_log": (theta_log, (n,)),
            "gamma_log": (_values(np.log1p(-square) / 2), (n,)),
            "input": (layers.scaled_normal(math.sqrt(1 / 2)), (inputs, 2 * n)),
            "output": (layers.scaled_normal(math.sqrt(2)), (2 * n, self.width)),
        } | super().parameters(inputs)

    def discrete(self, params: Params) -> tuple[Array, Array]:
        nu, theta, gamma = (jnp.exp(_widen(params[name])) for name in ("nu_log", "theta_log", "gamma_log"))
        return jnp.exp(lax.complex(-nu, theta)), gamma


@dataclasses.dataclass(frozen=True)
class S5(DiagonalCell):
    """Diagonal state space `dh/dt = Λ h + x B`, `y = Re(h C) + x D`, sampled with a learned time step Δ for each state.

    Starts as `blocks` real systems of `state / blocks` states each, their matrix the normal part of HiPPO-LegS (a slowly fading
    memory of the whole past), their input and output random. Of each conjugate pair of eigenvalues one is kept, hence
    n = `state / 2` complex states. `discretization` "zoh", the input constant over a step: `λ = exp(ΛΔ)`, `γ = (λ - 1) / Λ`;
    "bilinear", the trapezoidal rule: `λ = (1 + ΛΔ/2) / (1 - ΛΔ/2)`, `γ = Δ / (1 - ΛΔ/2)`. Steps start log-uniform between
    `min_step` and `max_step`.

    Parameters: `decay_log`, `frequency`, `step_log` `[n]` with `Λ = -exp(decay_log) + i frequency`, `Δ = exp(step_log)`;
    `input [features, 2n]`, `output [2n, width]` (twice the kept half of C), `skip` and `gate` as in `LRU`.

    Source: Smith, Warrington & Linderman (2023), section 3 and appendix B, arXiv:2208.04933.
    """

    blocks: int = 1
    discretization: str = "zoh"
    min_step: int | float = 0.001
    max_step: int | float = 0.1

    def __post_init__(self):
        super().__post_init__()
        size = self.state or self.width
        even = self.blocks >= 1 and size % (2 * self.blocks) == 0
        require(self, even, "state must be a multiple of 2 blocks", f"{size} with blocks {self.blocks}")
        known = self.discretization in ("zoh", "bilinear")
        require(self, known, "discretization must be 'zoh' or 'bilinear'", repr(self.discretization))
        steps = 0 < self.min_step <= self.max_step < math.inf
        require(self, steps, "steps must be 0 < min_step <= max_step", (self.min_step, self.max_step))

    @property
    def modes(self) -> int:
        return (self.state or self.width) // 2

    def parameters(self, inputs: int) -> Specification:
        n = self.modes
        frequencies, vectors = _hippo(2 * n // self.blocks)
        vectors = np.kron(np.eye(self.blocks), vectors)
        basis = np.concatenate([vectors.real, -vectors.imag], axis=1)  # from x B of the real system to the diagonal one's
        draw = nn.initializers.lecun_normal()

        def step_log(key, shape, dtype=float):
            return jax.random.uniform(key, shape, dtype, math.log(self.min_step), math.log(self.max_step))

        def matrix_in(key, shape, dtype=float):
            return draw(key, shape, dtype) @ basis.astype(dtype)

        def matrix_out(key, shape, dtype=float):
            return 2 * basis.T.astype(dtype) @ draw(key, shape, dtype)

        return {
            "decay_log": (_values(np.full(n, math.log(1 / 2))), (n,)),
            "frequency": (_values(np.tile(frequencies, self.blocks)), (n,)),
            "step_log": (step_log, (n,)),
            "input": (matrix_in, (inputs, 2 * n)),
            "output": (matrix_out, (2 * n, self.width)),
        } | super().parameters(inputs)

    def discrete(self, params: Params) -> tuple[Array, Array]:
        decay, frequency, step = (_widen(params[name]) for name in ("decay_log", "frequency", "step_log"))
        eigenvalues, step = lax.complex(-jnp.exp(decay), frequency), jnp.exp(step)
        if self.discretization == "zoh":
            return jnp.exp(eigenvalues * step), jnp.expm1(eigenvalues * step) / eigenvalues  # exp - 1 would cancel
        half = eigenvalues * step / 2
        return (1 + half) / (1 - half), step / (1 - half)


def _hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The normal part of HiPPO-LegS: the positive ω of its eigenvalues `-1/2 ± iω`, and the eigenvectors `[size, size / 2]`.

    The matrix is `sqrt(2i + 1) sqrt(2j + 1) / 2` above the diagonal, minus that below it, and -1/2 on it.
    """
    root = np.sqrt(2 * np.arange(size) + 1)
    product = np.outer(root, root) / 2
    frequencies, vectors = np.linalg.eigh(-1j * (np.triu(product, 1) - np.tril(product, -1)))
    return frequencies[size // 2 :], vectors[:, size // 2 :]


def _values(values: np.ndarray) -> Initializer:
    return lambda key, shape, dtype=float: jnp.asarray(values, dtype).reshape(shape)


def _like(vector: Array, x: Array) -> Array:
    return jnp.broadcast_to(vector, x.shape)  # rank promotion may be forbidden


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, "float32")


def _widen(x: Array) -> Array:
    return x.astype(_wide(x.dtype))
