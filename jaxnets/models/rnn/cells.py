"""Recurrent cells: frozen descriptions with pure functions, to be run by `recurrence` or owned by the Flax layer `Recurrent`.

    cell = rnn.LSTM(256)
    params = cell.init(key, inputs)
    state = cell.step(params, cell.initial(batch), x)  # one step

The columns of a matrix are its gates side by side, in PyTorch's order.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from jaxnets.models.common import require
from jaxnets.models.rnn import recurrence
from jaxnets.models.rnn.recurrence import products
from jaxnets.types import Array, Key, Params

Specification = dict[str, tuple[Initializer, tuple[int, ...]]]  # of each parameter: how it starts, and its shape


@dataclasses.dataclass(frozen=True)
class Cell:
    """What every cell is: sizes and options, and functions of parameters and state.

    A subclass has `parameters` and `step`, `initial` and `read` where state and output are not one array. `step` uses a
    parameter with two axes only as a weight of `recurrence.products`, so that `scan` can defer its gradient.
    """

    width: int  # units

    def __post_init__(self):
        require(self, isinstance(self.width, int) and self.width >= 1, "width must be at least 1", self.width)

    @property
    def outputs(self) -> int:
        """Number of features of the output."""
        return self.width

    def parameters(self, inputs: int) -> Specification:
        """Initializer and shape of every parameter, for `inputs` features."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""], inputs: int, dtype: Any = float) -> Params:
        """Parameters for `inputs` features, each drawn from a key of its own."""
        specification, wide = self.parameters(inputs), jnp.promote_types(dtype, "float32")  # QR has no half precision
        keys = jax.random.split(key, len(specification))
        drawn = {name: init(k, shape, wide) for k, (name, (init, shape)) in zip(keys, specification.items(), strict=True)}
        return jax.tree.map(lambda value: value.astype(dtype), drawn)

    def initial(self, batch: int, dtype: Any = float) -> Any:
        """The zero state of `batch` rows."""
        return jnp.zeros((batch, self.outputs), dtype)

    def step(self, params: Params, state: Any, x: Array) -> Any:
        """The state after one more input `[batch, features]`."""
        raise NotImplementedError

    def read(self, params: Params, states: Any, xs: Array) -> Array:
        """The outputs that belong to states after inputs `xs`, with any leading axes."""
        del params, xs
        return states

    def scan(self, params: Params, state: Any, xs: Array, conditions: Any = recurrence.Conditions(), **options) -> Any:
        """`recurrence.scan` of this cell over `xs [time, batch, features]`: the final state, and all states."""
        return recurrence.scan(self.step, params, state, xs, conditions, **options)


@dataclasses.dataclass(frozen=True)
class Elman(Cell):
    """Simple recurrent layer `h' = f(x W + h U + b)`.

    Parameters: `input [features, width]`, `recurrent [width, width]`, `bias [width]`. `recurrent` starts orthogonal; with relu
    let it start at the identity (`layers.identity()`), or states explode.

    Source: Elman (1990), doi:10.1207/s15516709cog1402_1; relu: Le, Jaitly & Hinton (2015), arXiv:1504.00941.
    """

    activation: Callable[[Any], Any] = jnp.tanh
    recurrent_init: Initializer | None = None

    def parameters(self, inputs: int) -> Specification:
        return _gates(inputs, self.width, 1, self.recurrent_init or nn.initializers.orthogonal())

    def step(self, params: Params, state: Array, x: Array) -> Array:
        z = products((x, params["input"]), (state, params["recurrent"]))
        return self.activation(_shift(z, params["bias"]))


class LSTMState(NamedTuple):
    """State of an LSTM."""

    hidden: Any  # [batch, projection or width]
    cell: Any  # [batch, width]


@dataclasses.dataclass(frozen=True)
class LSTM(Cell):
    """Long short-term memory: `c' = σ(f) c + σ(i) tanh(g)`, `h' = σ(o) tanh(c')` with `i, f, g, o = x W + h U + b`.

    `peephole`: `i` and `f` also see `p ∘ c`, `o` sees `p ∘ c'`. `projection`: the state is `h' P`, narrower than the cell.
    `normalize`: layer normalization of `x W`, of `h U` (scales, and the one bias) and of `c'` before its tanh.

    Parameters: `input [features, 4 width]`, `recurrent [projection or width, 4 width]`, `bias [4 width]`, and with the options
    `peephole_i`, `_f`, `_o` `[width]`; `projection [width, projection]`; `scale_input`, `scale_recurrent` `[4 width]`,
    `scale_cell`, `bias_cell` `[width]`. The forget gate's bias starts at `forget_bias`.

    Source: Hochreiter & Schmidhuber (1997), doi:10.1162/neco.1997.9.8.1735; Gers, Schmidhuber & Cummins (2000; peephole: Gers &
    Schmidhuber 2000, doi:10.1109/IJCNN.2000.861302); Sak, Senior & Beaufays (2014), arXiv:1402.1128; Ba, Kiros & Hinton (2016),
    arXiv:1607.06450, eq. 20-22; forget bias: Jozefowicz, Zaremba & Sutskever (2015).
    """

    projection: int | None = None
    peephole: bool = False
    normalize: bool = False
    forget_bias: int | float = 1.0

    def __post_init__(self):
        super().__post_init__()
        fits = self.projection is None or 1 <= self.projection <= self.width
        require(self, fits, f"projection must be in 1..{self.width} (the width)", self.projection)

    @property
    def outputs(self) -> int:
        return self.projection or self.width

    def parameters(self, inputs: int) -> Specification:
        width, ones, zeros = self.width, nn.initializers.ones, nn.initializers.zeros

        def bias(key, shape, dtype=float):
            del key
            return jnp.zeros(shape, dtype).at[width : 2 * width].set(self.forget_bias)

        specification = _gates(inputs, self.outputs, 4, nn.initializers.orthogonal(), width) | {"bias": (bias, (4 * width,))}
        if self.projection:
            specification["projection"] = (nn.initializers.lecun_normal(), (width, self.projection))
        if self.peephole:
            specification |= {f"peephole_{gate}": (zeros, (width,)) for gate in "ifo"}
        if self.normalize:
            specification |= {f"scale_{part}": (ones, (4 * width,)) for part in ("input", "recurrent")}
            specification |= {"scale_cell": (ones, (width,)), "bias_cell": (zeros, (width,))}
        return specification

    def initial(self, batch: int, dtype: Any = float) -> LSTMState:
        return LSTMState(jnp.zeros((batch, self.outputs), dtype), jnp.zeros((batch, self.width), dtype))

    def step(self, params: Params, state: LSTMState, x: Array) -> LSTMState:
        hidden, cell = state
        if self.normalize:
            z = _normalize(products((x, params["input"])), params["scale_input"])
            z += _normalize(products((hidden, params["recurrent"])), params["scale_recurrent"])
        else:
            z = products((x, params["input"]), (hidden, params["recurrent"]))
        i, f, g, o = jnp.split(_shift(z, params["bias"]), 4, axis=-1)
        if self.peephole:
            i, f = i + _scale(cell, params["peephole_i"]), f + _scale(cell, params["peephole_f"])
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        if self.peephole:
            o += _scale(cell, params["peephole_o"])
        shown = _shift(_normalize(cell, params["scale_cell"]), params["bias_cell"]) if self.normalize else cell
        hidden = jax.nn.sigmoid(o) * jnp.tanh(shown)
        return LSTMState(products((hidden, params["projection"])) if self.projection else hidden, cell)

    def read(self, params: Params, states: LSTMState, xs: Array) -> Array:
        del params, xs
        return states.hidden


@dataclasses.dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit: `h' = (1 - σ(z)) n + σ(z) h` with `r, z, n` the gates below.

    `reset_after` (cuDNN, PyTorch): `n = tanh(x W_n + b_n + σ(r) (h U_n + b'_n))`; otherwise (the paper):
    `n = tanh(x W_n + (σ(r) h) U_n + b_n)`.

    Parameters: `input [features, 2 width]`, `recurrent [width, 2 width]`, `bias [2 width]` of r and z; `input_candidate`,
    `recurrent_candidate`, `bias_candidate` of n, and `recurrent_bias [width]`, the `b'_n`, if `reset_after`.

    Source: Cho et al. (2014), arXiv:1406.1078, eq. 5-8.
    """

    reset_after: bool = True

    def parameters(self, inputs: int) -> Specification:
        orthogonal = nn.initializers.orthogonal()
        candidate = _gates(inputs, self.width, 1, orthogonal)
        specification = _gates(inputs, self.width, 2, orthogonal)
        specification |= {f"{name}_candidate": value for name, value in candidate.items()}
        bias = {"recurrent_bias": (nn.initializers.zeros, (self.width,))} if self.reset_after else {}
        return specification | bias

    def step(self, params: Params, state: Array, x: Array) -> Array:
        gates = jax.nn.sigmoid(_shift(products((x, params["input"]), (state, params["recurrent"])), params["bias"]))
        r, z = jnp.split(gates, 2, axis=-1)
        of_x, of_state = (x, params["input_candidate"]), params["recurrent_candidate"]
        if self.reset_after:
            candidate = products(of_x) + r * _shift(products((state, of_state)), params["recurrent_bias"])
        else:
            candidate = products(of_x, (r * state, of_state))
        n = jnp.tanh(_shift(candidate, params["bias_candidate"]))
        return n + z * (state - n)


def _gates(inputs: int, hidden: int, gates: int, recurrent_init: Initializer, width: int | None = None) -> Specification:
    """Matrices of `gates` gates side by side, each drawn on its own, and their bias."""
    columns = gates * (width or hidden)
    return {
        "input": (_side_by_side(nn.initializers.lecun_normal(), gates), (inputs, columns)),
        "recurrent": (_side_by_side(recurrent_init, gates), (hidden, columns)),
        "bias": (nn.initializers.zeros, (columns,)),
    }


def _side_by_side(init: Initializer, parts: int) -> Initializer:
    def draw(key, shape, dtype=float):
        each = (shape[0], shape[1] // parts)
        return jnp.concatenate([init(k, each, dtype) for k in jax.random.split(key, parts)], axis=1)

    return draw


def _scale(x: Array, vector: Array) -> Array:
    return x * jnp.broadcast_to(vector, x.shape)  # rank promotion may be forbidden


def _shift(x: Array, vector: Array) -> Array:
    return x + jnp.broadcast_to(vector, x.shape)


def _normalize(x: Array, scale: Array, epsilon: float = 1e-5) -> Array:
    """Layer normalization, in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, "float32"))
    centered = wide - wide.mean(-1, keepdims=True)
    normal = centered * jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + epsilon)
    return _scale(normal.astype(x.dtype), scale)
