"""Learned sparse coding: a fixed number of proximal-gradient steps whose numbers are parameters.

A layer is a step of ISTA on `|y - A x|^2 / 2 + penalty |x|_1`, `B_k` in place of `step_size A.H`, from `x = 0`:

    x_{k+1} = soft(x_k + B_k (y - A_k x_k), threshold_k),    soft(v, t) = sign(v) max(|v| - t, 0)

`Lista` learns matrices, `ConvolutionalLista` kernels, `Alista` two numbers per layer. Untrained, each is exactly `layers` steps
of ISTA, or of FISTA with `momentum=True`: training starts at the solver. Like a penalty, the thresholds belong to the
amplitudes and the noise of the data that they were learned from.

    model = lista.ConvolutionalLista(wavelet=wavelet, layers=16, penalty=0.2, momentum=True)
    loss_fn = steps.supervised(model.apply, losses.squared)  # of Dataset(traces, spikes), for training.loop.fit
    spikes = model.apply(variables, traces)                  # [*batch time], any number of samples
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnets.models.common import require
from jaxnets.proximal import linear, prox
from jaxnets.types import Array, Float, Inexact


class _Unrolled(nn.Module, kw_only=True):
    """What the networks share. Parameters of each: `log_threshold [layers]` and, if wanted, `momentum [layers]`."""

    layers: int
    penalty: int | float | Array  # l1 weight of the untrained network
    step_size: int | float | Array | None = None  # of the untrained network; None: 1 / |A|^2
    momentum: bool = False  # a layer acts on x_k + momentum_k (x_k - x_{k-1}), with FISTA's momentum to start from
    selection: tuple[float, float] | None = None  # (more per layer, at most): share of the entries, the largest, not shrunk

    def __post_init__(self):
        require(self, self.layers >= 1, "layers must be at least 1", self.layers)
        for name in ("penalty", "step_size"):
            value = getattr(self, name)
            require(self, not isinstance(value, int | float) or 0 < value < math.inf, f"{name} must be positive", value)
        shares = self.selection or (0, 0)
        require(self, all(0 <= share <= 1 for share in shares), "selection must be two shares in [0, 1]", shares)
        super().__post_init__()

    def __call__(self, y: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        """The last layer's estimate."""
        return self.trajectory(y, train=train)[-1]

    def trajectory(self, y: Float[Array, "..."], *, train: bool = False) -> Float[Array, "layers ..."]:
        """Every layer's estimate, for a loss on all of them: `functools.partial(model.apply, method="trajectory")`."""
        raise NotImplementedError

    def _first_step_size(self, operator: linear.Operator, weight: linear.Operator) -> Array:
        dtype = operator.structure.dtype
        if self.step_size is not None:
            return jnp.asarray(self.step_size, dtype)
        # Lanczos estimates from below: 1 % is room. Any draw serves as its start, so this takes no key.
        return 1 / (1.01 * linear.largest_singular_value(weight.H @ operator, jax.random.key(0)))

    def _learned(self, name: str, first: Callable[[], Array], tied: bool = False) -> Float[Array, "layers ..."]:
        """A parameter per layer, or one for all if `tied`, that starts at `first()`."""
        values = self.param(name, lambda _: jnp.stack([first()] * (1 if tied else self.layers)))
        return jnp.broadcast_to(values, (self.layers, *values.shape[1:]))

    def _unroll(
        self, descend: Callable, weights: Any, start: Array, step_size: Callable[[], Array]
    ) -> Float[Array, "layers ..."]:
        """All iterates of `x <- shrink(descend(weights_k, x))`."""
        log_threshold = self._learned("log_threshold", lambda: jnp.log(step_size() * self.penalty))
        momentum = unshrunk = None
        if self.momentum:
            momentum = self.param("momentum", lambda _: _fista_momentum(self.layers, log_threshold.dtype))
        if self.selection is not None:
            growth, most = self.selection
            unshrunk = jnp.asarray(np.minimum(growth * np.arange(1, self.layers + 1), most) * start.shape[-1], int)

        def layer(iterates, parameters):
            x, before = iterates
            weights, log_threshold, momentum, unshrunk = parameters
            z = x if momentum is None else x + momentum * (x - before)
            after = _shrink(descend(weights, z), jnp.exp(log_threshold), unshrunk).astype(x.dtype)
            return (after, x), after

        start = jax.lax.optimization_barrier(start)  # or XLA evaluates A 0 of a constant A, slowly, at compile time
        # Unrolled, because XLA's CPU backend runs some operations far slower inside a loop.
        return jax.lax.scan(layer, (start, start), (weights, log_threshold, momentum, unshrunk), unroll=True)[1]


class Lista(_Unrolled, kw_only=True):
    """Learned matrices, `x_{k+1} = soft(filter_k^T y + inhibition_k x_k, threshold_k)`: `[*batch m]` to `[*batch n]`.

    Parameters: `filter [layers, m, n]` from `step_size A` and `inhibition [layers, n, n]` from `I - step_size A^T A`; `tied`:
    one for all layers, `[1, ...]`, as in the first paper. `coupled`: no `inhibition`, it is `I - filter_k^T A` with the given
    matrix, as it must become in deep layers for the error to vanish.

    Source: Gregor & LeCun (2010), ICML, algorithm 3; coupling, selection: Chen, Liu, Wang & Yin (2018), arXiv:1808.10038.
    """

    matrix: Float[Array, "m n"]
    tied: bool = False
    coupled: bool = False

    @nn.compact
    def trajectory(self, y: Float[Array, "*batch m"], *, train: bool = False) -> Float[Array, "layers *batch n"]:
        """Every layer's estimate."""
        del train  # taken so that training calls every model alike
        matrix = jnp.asarray(self.matrix)
        require(self, y.shape[-1:] == matrix.shape[:1], f"expected inputs [*batch, {len(matrix)}]", y.shape)

        def step_size():
            return self._first_step_size(linear.matrix(matrix), linear.matrix(matrix))

        filters = self._learned("filter", lambda: step_size() * matrix, self.tied)
        start = jnp.zeros((*y.shape[:-1], matrix.shape[1]), jnp.result_type(y, filters))
        if self.coupled:
            known = matrix.T.astype(filters.dtype)
            return self._unroll(lambda kernel, x: x + (y - x @ known) @ kernel, filters, start, step_size)

        def inhibition():
            return jnp.eye(matrix.shape[1], dtype=matrix.dtype) - step_size() * matrix.T @ matrix

        inhibitions = self._learned("inhibition", inhibition, self.tied)

        def descend(weights, x):
            kernel, inhibition = weights
            return y @ kernel + x @ inhibition.T

        return self._unroll(descend, (filters, inhibitions), start, step_size)


class ConvolutionalLista(_Unrolled, kw_only=True):
    """Learned kernels, `x_{k+1} = soft(x_k + correction_k ⋆ (y - wavelet_k * x_k), threshold_k)`, where `⋆` correlates.

    `[*batch time]` to `[*batch time]`, any number of samples: few parameters, learned from few traces. Time zero of the kernels
    is at `origin`, by default the center of an odd length. Parameters: `wavelet [layers, length]` from the given one and
    `correction [layers, length]` from `step_size wavelet`; if `tied`, one for all layers, `[1, length]`.

    Source: Sreter & Giryes (2018), arXiv:1711.00328.
    """

    wavelet: Float[Array, " length"]
    origin: int | None = None
    tied: bool = False

    @nn.compact
    def trajectory(self, y: Float[Array, "*batch time"], *, train: bool = False) -> Float[Array, "layers *batch time"]:
        """Every layer's estimate."""
        del train  # taken so that training calls every model alike
        wavelet = jnp.asarray(self.wavelet)

        def step_size():
            operator = linear.convolution(wavelet, y.shape[-1], origin=self.origin)
            return self._first_step_size(operator, operator)

        wavelets = self._learned("wavelet", lambda: wavelet, self.tied)
        corrections = self._learned("correction", lambda: step_size() * wavelet, self.tied)
        dtype = jnp.result_type(y, wavelets)
        wide = jnp.promote_types(dtype, "float32")  # there is no FFT in bfloat16

        def descend(kernels, x):
            model, correction = (linear.convolution(k.astype(wide), x.shape, origin=self.origin) for k in kernels)
            return x + correction.adjoint(y - model(x.astype(wide)))

        return self._unroll(descend, (wavelets, corrections), jnp.zeros(y.shape, dtype), step_size)


class Alista(_Unrolled, kw_only=True):
    """Learned step sizes and thresholds, `x_{k+1} = soft(x_k + step_size_k W.H (y - A x_k), threshold_k)`, for any `A`.

    Axes of `y` before those of `A`'s output are batch. `weight`, `W`, is `linear.matrix(analytic_weight(a))` in ALISTA and by
    default `A`. Parameters: `log_step_size [layers]` from `1 / |W.H A|`; the operators are constants.

    Source: Liu, Chen, Wang & Yin (2019), ICLR, openreview.net/forum?id=B1lnzn0ctQ; with `W = A`: Ablin, Moreau, Massias &
    Gramfort (2019), arXiv:1905.11071.
    """

    operator: linear.Operator
    weight: linear.Operator | None = None

    @nn.compact
    def trajectory(self, y: Float[Array, "..."], *, train: bool = False) -> Float[Array, "layers ..."]:
        """Every layer's estimate."""
        del train  # taken so that training calls every model alike
        operator = self.operator
        weight = operator if self.weight is None else self.weight
        shape, output = operator.structure.shape, operator.output.shape
        batch = y.shape[: max(y.ndim - len(output), 0)]
        require(self, y.shape == (*batch, *output), f"expected inputs [*batch, {', '.join(map(str, output))}]", y.shape)

        def step_size():
            return self._first_step_size(operator, weight)

        log_steps = self._learned("log_step_size", lambda: jnp.log(step_size()))
        examples = y.reshape(-1, *output)
        start = jnp.zeros((len(examples), *shape), jnp.result_type(y, log_steps, operator.structure.dtype))

        def descend(log_step, x):
            residual = examples - jax.vmap(operator)(x)
            return x + jnp.exp(log_step) * jax.vmap(weight.adjoint)(residual)

        return self._unroll(descend, log_steps, start, step_size).reshape(self.layers, *batch, *shape)


def analytic_weight(a: Inexact[Array, "m n"], *, ridge: int | float | Array = 0.0) -> Inexact[Array, "m n"]:
    """The weight of least coherence with `a`: minimizes `|W^H a|_F^2 + ridge |W|_F^2` subject to `w_i^H a_i = 1`.

    In closed form `w_i = G^-1 a_i / (a_i^H G^-1 a_i)`, `G = a a^H + ridge I`, column by column. A `ridge`, in units
    of `|a|^2`, bounds the noise `W^H e` where `a` has small singular values. Without it `a` needs full row rank (else NaN).

    Raises:
      ValueError: `ridge < 0`.
    Source: Liu et al. (2019), the Frobenius-norm problem, there without ridge.
    """
    if isinstance(ridge, int | float) and not 0 <= ridge < math.inf:
        raise ValueError(f"analytic_weight: ridge must be non-negative, got {ridge}.")
    gram = a @ a.conj().T + ridge * jnp.eye(len(a), dtype=a.dtype)
    weight = jax.scipy.linalg.solve(gram, a, assume_a="pos")
    return weight / jnp.sum(weight * a.conj(), axis=0, keepdims=True)


def _shrink(v, threshold, unshrunk):
    """Soft threshold, but the `unshrunk` largest entries along the last axis pass as they are if they exceed it."""
    shrunk = prox.l1(threshold).prox(v, 1)
    if unshrunk is None:
        return shrunk
    ascending = jnp.sort(jnp.abs(v), axis=-1)
    least = jnp.take(ascending, v.shape[-1] - unshrunk[None], axis=-1, mode="fill", fill_value=jnp.inf)  # inf: none passes
    return jnp.where((jnp.abs(v) >= least) & (shrunk != 0), v, shrunk)


def _fista_momentum(layers, dtype):
    """`(t_{k-1} - 1) / t_k`, `t_k = (1 + sqrt(1 + 4 t_{k-1}^2)) / 2`, from 0. Source: Beck & Teboulle (2009), eq. 4.2-4.3."""
    t, momentum = 1.0, [0.0]
    for _ in range(1, layers):
        before, t = t, (1 + math.sqrt(1 + 4 * t**2)) / 2
        momentum.append((before - 1) / t)
    return jnp.asarray(momentum, dtype)
