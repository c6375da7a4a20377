"""A recurrent language model, and text drawn from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxnets.models.common import require
from jaxnets.models.rnn.cells import Cell
from jaxnets.models.rnn.layer import Recurrent
from jaxnets.types import Array, Bool, Float, Int, Integer, Key


class LanguageModel(nn.Module):
    """Logits of the symbol after each: (logits `[batch, time, vocabulary]`, final state).

    Embedding, `Recurrent` layers, linear head; `lengths`, `initial`, `reset` and the final state are those of `Recurrent`.
    Dropout acts on the embeddings, between the layers and before the head. `tied` uses the embeddings as the head's weights.
    An id outside 0..vocabulary-1 is an error where it is known, and makes NaN inside jit.

    Parameters: `embedding/embedding [vocabulary, embedding]`, `recurrent/layer_i/...`, `head/kernel [outputs, vocabulary]` and
    `head/bias [vocabulary]`, or `head_bias` alone if `tied`.

    Raises:
      ValueError: a bad field; tokens that are not integers `[batch, time]` or are outside the vocabulary; see `Recurrent`.
    Source: Mikolov et al. (2010), Recurrent neural network based language model; tied: Press & Wolf (2017), arXiv:1608.05859.
    """

    vocabulary: int
    cell: Cell
    layers: int = 1
    dropout: int | float = 0.0
    embedding: int | None = None  # width; None: the cell's outputs
    tied: bool = False
    options: Any = None  # dict of further options of `Recurrent`: {"variational": True}

    def __post_init__(self):
        width = self.cell.outputs if self.embedding is None else self.embedding
        require("LanguageModel", self.vocabulary >= 1, "vocabulary must be at least 1", self.vocabulary)
        require("LanguageModel", width >= 1, "embedding must be None or at least 1", self.embedding)
        fits = not self.tied or width == self.cell.outputs
        require("LanguageModel", fits, f"tied needs an embedding as wide as the cell's {self.cell.outputs} outputs", width)
        super().__post_init__()

    def initial(self, batch: int, dtype: Any = jnp.float32) -> Any:
        """The zero state of `batch` rows."""
        return Recurrent(self.cell, self.layers, parent=None).initial(batch, dtype)

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        *,
        lengths: Int[Array, " batch"] | None = None,
        initial: Any = None,
        reset: Bool[Array, "batch time"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch time vocabulary"], Any]:
        check_ids("LanguageModel", "tokens", tokens, self.vocabulary, axes=2)
        tied = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        embed = nn.Embed(
            self.vocabulary,
            self.cell.outputs if self.embedding is None else self.embedding,
            embedding_init=tied if self.tied else nn.initializers.normal(1.0),
            name="embedding",
        )
        x = embed(jnp.where(tokens < 0, self.vocabulary, tokens))  # NaN beyond the table, but -1 would be its last row
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        layers = Recurrent(self.cell, self.layers, dropout=self.dropout, name="recurrent", **(self.options or {}))
        x, final = layers(x, lengths=lengths, initial=initial, reset=reset, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if not self.tied:
            return nn.Dense(self.vocabulary, name="head")(x), final
        logits = embed.attend(x)
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocabulary,))
        return logits + jnp.broadcast_to(bias, logits.shape), final


class Written(NamedTuple):
    """Where a text stands: give it to `sample` again to go on."""

    state: Any  # of the recurrent layers, after the last symbol
    logits: Float[Array, "..."]  # of the next symbol
    count: Int[Array, "..."]  # symbols drawn so far


def sample(
    model: Any,
    variables: Any,
    key: Key[Array, ""],
    prompt: Integer[Array, " prompt"] | None,
    *,
    steps: int,
    temperature: Any = 1.0,
    top_k: int | None = None,
    nucleus: int | float | None = None,
    state: Written | None = None,
) -> tuple[Int[Array, " steps"], Written]:
    """Draws `steps` symbols after `prompt`: (tokens, state); `jax.vmap` over keys, or over prompts and states, draws a batch.

    Each symbol is drawn from `softmax(logits / temperature)`, cut to the `top_k` likeliest symbols (equals of the last one
    too) and then to the fewest likeliest that hold the probability `nucleus`; temperature 0 takes the likeliest symbol.

    With a `state` the text goes on, after a `prompt` if there is one; with the same key it is the text that one call with
    more steps would have drawn. The model is any whose `apply(variables, tokens, initial=state)` gives (logits, state).

    Raises:
      ValueError: no prompt and no state; steps < 1, a negative temperature, top_k < 1 or beyond the vocabulary, nucleus
        outside (0, 1].
    Source: top-k: Fan, Lewis & Dauphin (2018), arXiv:1805.04833; nucleus: Holtzman et al. (2020), arXiv:1904.09751.
    """
    require("sample", steps >= 1, "steps must be at least 1", steps)
    require("sample", nucleus is None or 0 < nucleus <= 1, "nucleus must be None or in (0, 1]", nucleus)
    cold = isinstance(temperature, int | float)
    require("sample", not cold or temperature >= 0, "temperature must not be negative", temperature)
    if prompt is not None and len(prompt):
        logits, recurrent = model.apply(variables, prompt[None], initial=None if state is None else state.state)
        state = Written(recurrent, logits[0, -1], jnp.zeros((), jnp.int32) if state is None else state.count)
    if state is None:
        raise ValueError(f"sample: needs a prompt or a state, got prompt {prompt} and no state.")
    symbols = state.logits.shape[-1]
    require("sample", top_k is None or 1 <= top_k <= symbols, f"top_k must be None or in 1..{symbols}", top_k)

    def draw(state: Written, _):
        if cold and temperature == 0:
            token = jnp.argmax(state.logits).astype(jnp.int32)
        else:
            logits = _likely(state.logits / temperature, top_k, nucleus)
            token = jax.random.categorical(jax.random.fold_in(key, state.count), logits).astype(jnp.int32)
        logits, recurrent = model.apply(variables, token[None, None], initial=state.state)
        return Written(recurrent, logits[0, 0], state.count + 1), token

    state, tokens = lax.scan(draw, state, length=steps)
    return tokens, state


def _likely(logits: Array, top_k: int | None, nucleus: int | float | None) -> Array:
    """Logits with -inf where a symbol is not to be drawn."""
    if top_k is not None:
        logits = jnp.where(logits < lax.top_k(logits, top_k)[0][-1], -jnp.inf, logits)
    if nucleus is not None:
        order = jnp.argsort(-logits)
        p = jax.nn.softmax(logits[order])
        taken = jnp.cumsum(p) - p < nucleus  # what the likelier ones leave open; the first is always taken
        logits = jnp.where(jnp.zeros_like(taken).at[order].set(taken), logits, -jnp.inf)
    return logits


def check_ids(function: str, name: str, ids: Array, size: int, *, axes: int) -> None:
    """Raises ValueError for ids that are not integers with so many axes, or known to be outside 0..size-1."""
    integers = jnp.issubdtype(ids.dtype, jnp.integer) and ids.ndim == axes
    require(function, bool(integers), f"{name} must be integer ids with {axes} axes", f"{ids.dtype}{list(ids.shape)}")
    if not isinstance(ids, jax.core.Tracer):
        known = np.asarray(ids)
        wrong = known[(known < 0) | (known >= size)]
        require(function, not len(wrong), f"{name} must be ids 0..{size - 1}", wrong[:1])
