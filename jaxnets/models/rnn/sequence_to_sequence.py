"""Sequences to sequences: an encoder, and a decoder that attends to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxnets.models.rnn import language
from jaxnets.models.rnn.cells import Cell
from jaxnets.models.rnn.layer import Recurrent
from jaxnets.types import Array, Bool, Float, Int, Integer, Params


class Memory(NamedTuple):
    """An encoded source, as the decoder sees it."""

    values: Float[Array, "..."]  # the encoder's outputs h_j [batch, source, features]
    keys: Float[Array, "..."]  # h_j U [batch, source, units]
    mask: Bool[Array, "..."]  # [batch, source]: False in the padding


class SequenceToSequence(nn.Module):
    """Logits of the target symbol after each of `target`, given the source: `[batch, time, target_vocabulary]`.

    The first layer of the decoder takes the embedded symbol and the context `c_i = Σ_j α_ij h_j` of the encoder's outputs h;
    `α_i = softmax_j(tanh(s_{i-1} W + h_j U) · v)` with the output s of its last layer. The head sees s_i, c_i and the symbol.
    The decoder starts from the final state of the encoder, of its backward direction if `bidirectional` (the paper has a
    layer between), and the head is linear (the paper's has a maxout layer).

    `target` is what the decoder reads: the start symbol, then the right symbols (teacher forcing); see `greedy`. `lengths` are
    those of the sources: ids beyond have attention exactly 0 and may be any, and a source of length 0 is a zero context.
    An id outside its vocabulary is an error where it is known, and makes NaN inside jit.
    Dropout acts on the embeddings, between the encoder's layers and before the head. `mutable=["intermediates"]` also gives
    `attention [batch, time, source]`. To train on batches with x, y, `target` and `lengths`:

        steps.supervised(model.apply, losses.softmax_cross_entropy, inputs=("target", "lengths"))

    Parameters: `embed_source/embedding` and `embed_target/embedding` `[vocabulary, embedding]`; `encoder/layer_i/...`,
    `decoder/layer_i/...`; `attention/query [outputs, attention]`, `attention/key [features, attention]`,
    `attention/score [attention]`; `head/kernel`, `head/bias`.

    Raises:
      ValueError: a bad field; sources or targets that are not integers `[batch, time]` or are outside the vocabulary; see
        `Recurrent`.
    Source: Bahdanau, Cho & Bengio (2015), sections 3.1, 3.2 and A.1.2, arXiv:1409.0473.
    """

    source_vocabulary: int
    target_vocabulary: int
    cell: Cell
    layers: int = 1
    bidirectional: bool = True  # the encoder
    dropout: int | float = 0.0
    embedding: int | None = None  # width; None: the cell's outputs
    attention: int | None = None  # hidden units of the score; None: the cell's outputs
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        for name in ("source_vocabulary", "target_vocabulary", "embedding", "attention"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"SequenceToSequence: {name} must be at least 1, got {size}.")
        super().__post_init__()

    def setup(self):
        width, outputs = self.embedding or self.cell.outputs, self.cell.outputs
        dtype = {"param_dtype": self.param_dtype}
        self.embed_source = nn.Embed(self.source_vocabulary, width, **dtype)
        self.embed_target = nn.Embed(self.target_vocabulary, width, **dtype)
        self.encoder = Recurrent(self.cell, self.layers, self.bidirectional, self.dropout, **dtype)
        features = outputs * (2 if self.bidirectional else 1)
        # Plain arrays, not submodules: they are used inside `lax.scan`.
        self.decoder = self.param("decoder", self._draw_decoder, width + features)
        self.scores = self.param("attention", self._draw_attention, features, self.attention or outputs)
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.target_vocabulary, **dtype)

    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        lengths: Int[Array, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch time symbols"]:
        memory, state = self.encode(source, lengths=lengths, train=train)
        return self.decode(memory, state, target, train=train)[0]

    def encode(self, source: Array, *, lengths: Int[Array, " batch"] | None = None, train: bool = False) -> tuple[Memory, Any]:
        """The encoded source, and the decoder's first state."""
        mask = jnp.ones(source.shape, bool)
        if lengths is not None:
            mask = jnp.arange(source.shape[1])[None] < lengths[:, None]
            source = jnp.where(mask, source, 0)
        language.check_ids("SequenceToSequence", "source", source, self.source_vocabulary, axes=2)
        x = self.drop(self.embed_source(_nan_beyond(source, self.source_vocabulary)), deterministic=not train)
        values, final = self.encoder(x, lengths=lengths, train=train)
        state = tuple(backward for _, backward in final) if self.bidirectional else final
        return Memory(values, values @ self.scores["key"], mask), state

    def decode(self, memory: Memory, state: Any, target: Array, *, train: bool = False) -> tuple[Array, Any]:
        """Logits after each symbol, and the decoder's state after the last."""
        language.check_ids("SequenceToSequence", "target", target, self.target_vocabulary, axes=2)
        symbols = self.drop(self.embed_target(_nan_beyond(target, self.target_vocabulary)), deterministic=not train)
        step = _decoder_step(self.cell, self.decoder, self.scores, memory)
        state, (outputs, weights) = lax.scan(step, state, symbols.swapaxes(0, 1))
        self.sow("intermediates", "attention", weights.swapaxes(0, 1))
        readout = jnp.concatenate([outputs.swapaxes(0, 1), symbols], axis=-1)
        return self.head(self.drop(readout, deterministic=not train)), state

    def _draw_decoder(self, key: Any, inputs: int) -> Params:
        sizes = [inputs] + [self.cell.outputs] * (self.layers - 1)
        keys = jax.random.split(key, self.layers)
        return {f"layer_{i}": self.cell.init(keys[i], size, self.param_dtype) for i, size in enumerate(sizes)}

    def _draw_attention(self, key: Any, features: int, units: int) -> Params:
        draw, keys = nn.initializers.lecun_normal(), jax.random.split(key, 3)
        return {
            "query": draw(keys[0], (self.cell.outputs, units), self.param_dtype),
            "key": draw(keys[1], (features, units), self.param_dtype),
            "score": draw(keys[2], (units, 1), self.param_dtype)[:, 0],
        }


def greedy(
    model: SequenceToSequence,
    variables: Any,
    source: Integer[Array, "batch source"],
    lengths: Int[Array, " batch"] | None = None,
    *,
    start: int,
    stop: int,
    steps: int,
) -> tuple[Int[Array, "batch {steps}"], Int[Array, " batch"]]:
    """The likeliest symbol at every step, after `start`: (tokens, how many come before the first `stop`).

    From the first `stop` on all tokens are `stop`.

    Raises:
      ValueError: `steps < 1`; `start` or `stop` outside the vocabulary.
    """
    if steps < 1:
        raise ValueError(f"greedy: steps must be at least 1, got {steps}.")
    for name, symbol in (("start", start), ("stop", stop)):
        if not 0 <= symbol < model.target_vocabulary:
            raise ValueError(f"greedy: {name} must be an id in 0..{model.target_vocabulary - 1}, got {symbol}.")
    memory, state = model.apply(variables, source, lengths=lengths, method="encode")

    def body(carry, _):
        state, token, done = carry
        logits, state = model.apply(variables, memory, state, token[:, None], method="decode")
        token = jnp.where(done, stop, jnp.argmax(logits[:, 0], axis=-1).astype(token.dtype))
        done |= token == stop
        return (state, token, done), (token, ~done)

    first = jnp.full(len(source), start, jnp.int32)
    _, (tokens, going) = lax.scan(body, (state, first, jnp.zeros(len(source), bool)), length=steps)
    return tokens.T, going.sum(0, dtype=jnp.int32)


def _decoder_step(cell: Cell, params: Params, scores: Params, memory: Memory) -> Callable:
    """`step(state, symbol) -> (state, (s and c side by side, attention))`, a pure function for `lax.scan`."""
    layers = [params[f"layer_{index}"] for index in range(len(params))]

    def step(state, symbol):
        inputs = cell.outputs if layers[1:] else symbol.shape[-1] + memory.values.shape[-1]  # of the last layer
        query = cell.read(layers[-1], state[-1], jnp.zeros((len(symbol), inputs), symbol.dtype)) @ scores["query"]
        weights = _masked_softmax(jnp.tanh(query[:, None] + memory.keys) @ scores["score"], memory.mask)
        context = jnp.einsum("bs,bsf->bf", weights, memory.values)
        x, after = jnp.concatenate([symbol, context], axis=-1), []
        for layer, before in zip(layers, state, strict=True):
            after.append(cell.step(layer, before, x))
            x = cell.read(layer, after[-1], x)
        return tuple(after), (jnp.concatenate([x, context], axis=-1), weights)

    return step


def _masked_softmax(scores: Array, mask: Array) -> Array:
    """Exactly 0 where `mask` is False; all 0, not NaN, where it is so everywhere."""
    lowest = jnp.finfo(scores.dtype).min  # with -inf, a row without a single True would be NaN
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, lowest)), 0)


def _nan_beyond(ids: Array, vocabulary: int) -> Array:
    """Ids whose embeddings are NaN where they are outside the vocabulary: -1 alone would be the last row."""
    return jnp.where(ids < 0, vocabulary, ids)
