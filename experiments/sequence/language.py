"""The character language model: its text, its training, and what it is worth beside compressors and counts."""

import functools
import math
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report
from experiments.harness.run import Run, identity, shown
from experiments.sequence import baselines, common, figures, gradients, writing
from jaxnets import losses
from jaxnets.data import text
from jaxnets.models import rnn
from jaxnets.training import checkpoint, loop, state, steps
from jaxnets.types import Float, InputError, Int

ROWS = 16  # streams that held-out text is cut into, so that a machine has something to do at once


class Corpus(NamedTuple):
    """A text in two parts."""

    train: str
    held_out: str
    starts: tuple[Any, Any]  # where documents begin, of both parts; None: nowhere
    vocabulary: text.Vocabulary  # of the training part; a symbol seen there only once is as good as unknown


def read(config: Any) -> Corpus:
    """The text in a file, or the standard library's sources; the last tenth is held out, or the last tenth of the rest."""
    if config.data is None:
        characters = text.standard_library(config.characters or 2_000_000)
    elif pathlib.Path(config.data).is_file():
        characters = text.read(config.data)[: config.characters]
    else:
        raise InputError(f"--data {config.data}: no such file; expected a UTF-8 text")
    if config.separator is not None:
        characters = text.strip_ansi(characters)
    if config.validate:
        characters = text.split(characters)[0]
    starts = (None, None)
    if config.separator is not None:
        starts = text.split(text.document_starts(characters, config.separator))
    train, held_out = text.split(characters)
    return Corpus(train, held_out, starts, text.vocabulary(train, min_count=2))


def main(config: Any, run: Run) -> dict[str, float]:
    corpus = read(config)
    vocabulary, model = corpus.vocabulary, make_model(config, corpus.vocabulary)
    ids, held_out = (vocabulary.encode(part) for part in (corpus.train, corpus.held_out))
    train = text.streams(ids, config.batch, config.time, starts=corpus.starts[0])
    test = whole(held_out, corpus.starts[1], config.time)
    writing.remember(run, vocabulary, zlib.crc32((corpus.train + corpus.held_out).encode()))
    per_epoch = len(train) // config.batch
    total, interval = common.cuts(config.epochs * per_epoch, 40)
    current = jax.jit(functools.partial(create, config, model, total))(jax.random.key(config.seed))
    size = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    unknown = int(np.sum(held_out == text.UNKNOWN))
    run.print(f"{len(ids):,} characters to learn, {len(held_out):,} held out ({unknown} unknown), {len(vocabulary)} symbols")
    run.print(f"{config.layers} x {config.cell} of {config.width}: {size:,} parameters, {total} steps, {per_epoch} an epoch")

    beat = baselines.compressed(corpus.train, corpus.held_out)
    beat["order-5 counts"] = -float(baselines.counted(ids, held_out, len(vocabulary)).mean())
    run.print("to beat, nats per character: " + ", ".join(f"{name} {nats:.3f}" for name, nats in beat.items()))

    writer = writing.Writer(model, vocabulary, opening(config, vocabulary))
    fitted = fit(config, run, model, writer, current, (train, test), (total, interval))
    params = fitted.state.params
    probability = jax.jit(functools.partial(log_probabilities, model, window=config.time))
    log_p = np.asarray(probability(params, test)).reshape(-1)[: len(held_out) - 1]
    nats = -float(log_p.mean())
    scores = {"held_out_nats": nats, "held_out_bits": nats / math.log(2)}
    run.print(f"held out: {nats:.4f} nats = {scores['held_out_bits']:.4f} bits per character")

    run.figure("learning", functools.partial(figures.draw_learning, run.rows(), beat), gallery=True)
    key = jax.random.key(config.seed)
    samples = {t: writer.write(params, key, steps=config.written, temperature=t) for t in (0.5, 0.8, 1.0)}
    writing.keep(run, samples, total)
    page = functools.partial(figures.draw_page, corpus.held_out, log_p, samples)
    run.figure("sample", page, size=(10, 7.5), gallery=True)
    found = gradients.compare(ids, len(vocabulary), total=config.gradient_steps, seed=config.seed)
    run.figure("gradients", functools.partial(gradients.draw, found), size=(10, 3.4), gallery=True)
    baseline = {f"{name.replace(' ', '_')}_nats": value for name, value in beat.items()}
    return scores | baseline | speed(config, interval, fitted.history)


def fit(config: Any, run: Run, model: Any, writer: writing.Writer, start: state.TrainState, data: Any, cuts: Any) -> loop.Fit:
    """Truncated back-propagation through the training text, window after window, with the state carried along."""
    (train, test), (total, interval) = data, cuts
    optimizer = common.adam(config.lr, total, config.weight_decay)
    saved = writing.WritingCheckpointer(run, config, writer)
    with saved, run.progress(total) as callback:
        return loop.fit(
            steps.make_train_step(steps.truncated_bptt(model.apply), optimizer, clip=common.CLIP),
            start,
            train,
            batch=config.batch,
            steps=total,
            shuffle=False,
            scan=jax.default_backend() == "cpu",
            evaluate=functools.partial(evaluate, model, config.time),
            test=test,
            log_every=interval,
            evaluate_every=4 * interval,
            checkpoint=saved,
            checkpoint_every=4 * interval,
            callback=callback,
        )


def go_on(config: Any, run: Run) -> None:
    """Writes `config.sample` characters from the newest checkpoint of a run: on the console, and at the end of samples.txt."""
    where = shown(run.folder)
    if not (run.folder / writing.VOCABULARY).exists():
        raise InputError(f"--sample: {where} holds no language model; give the folder of a trained one as --out")
    vocabulary = text.Vocabulary(report.read(run.folder / writing.VOCABULARY)["symbols"])
    if config.top_k is not None and config.top_k >= len(vocabulary):
        raise InputError(f"--top-k must be at most the {len(vocabulary) - 1} symbols of that run, got {config.top_k}")
    model = make_model(config, vocabulary)
    like = jax.eval_shape(functools.partial(create, config, model, 1000), jax.random.key(0))
    with checkpoint.Checkpointer(run.checkpoints, config=identity(config)) as saved:
        found = saved.latest_good(like)
    if found is None:
        raise InputError(f"--sample: {where} holds no checkpoint yet; go on with its training first")
    step, current = found
    if strange := sorted(set(config.prompt) - set(vocabulary.symbols)):
        run.print(f"note: symbols of --prompt that the model does not know: {' '.join(map(repr, strange))}")
    writer = writing.Writer(model, vocabulary, opening(config, vocabulary))
    how = {"temperature": config.temperature, "top_k": config.top_k, "nucleus": config.nucleus}
    key = jax.random.key(config.sample_seed)
    written = config.prompt + writer.write(current.params, key, steps=config.sample, prompt=config.prompt, **how)
    writing.keep(run, {config.temperature: written}, step)
    run.print(written)


def make_model(config: Any, vocabulary: text.Vocabulary) -> rnn.LanguageModel:
    cell = common.CELLS[config.cell](config.width)
    return rnn.LanguageModel(len(vocabulary), cell, config.layers, dropout=config.dropout, embedding=config.embedding)


def create(config: Any, model: rnn.LanguageModel, total: int, key: Any) -> state.TrainState:
    optimizer = common.adam(config.lr, total, config.weight_decay)
    return state.create(model, optimizer, key, jnp.zeros((1, 1), jnp.int32), carry=model.initial(config.batch))


def opening(config: Any, vocabulary: text.Vocabulary) -> str:
    """What a text begins with that has no prompt."""
    first = "\n" if config.separator is None else f"{config.separator}\n"
    return first if set(first) <= set(vocabulary.symbols) else vocabulary.symbols[0]


def whole(ids: Int[np.ndarray, " symbol"], starts: Any, window: int, rows: int = ROWS) -> text.Streams:
    """All of `ids` in `rows` streams of whole windows; what is beyond the last symbol has weight 0."""
    length = -(-(len(ids) - 1) // (rows * window)) * window
    padding = rows * length + 1 - len(ids)
    starts = np.zeros(len(ids), bool) if starts is None else starts
    weight = np.repeat(np.array([1.0, 0.0], np.float32), (len(ids) - 1, padding))
    ids, starts = np.pad(ids, (0, padding)), np.pad(starts, (0, padding))
    return text.Streams(*(part.reshape(rows, length) for part in (ids[:-1], ids[1:], weight, starts[:-1])))


def evaluate(model: rnn.LanguageModel, window: int, current: state.TrainState, batch: text.Streams):
    """Sums over whole streams for `loop.fit`. Each stream starts from the zero state: the first few symbols pay for it."""
    log_p = log_probabilities(model, current.params, batch, window=window)
    return batch.weight.sum(), {"loss": -jnp.sum(log_p * batch.weight)}


def log_probabilities(model: rnn.LanguageModel, params: Any, batch: text.Streams, *, window: int) -> Float[Any, "rows time"]:
    """Log-probability (nats) of each symbol given all those before it in its stream, computed window by window."""
    windows = jax.tree.map(lambda field: field.reshape(len(field), -1, window).swapaxes(0, 1), batch)

    def step(carry, each):
        logits, carry = model.apply({"params": params}, each.x, initial=carry, reset=each.reset)
        return carry, -losses.softmax_cross_entropy(logits, each.y)

    _, log_p = jax.lax.scan(step, model.initial(len(batch.x)), windows)
    return log_p.swapaxes(0, 1).reshape(batch.x.shape)


def speed(config: Any, interval: int, history: list[dict[str, Any]]) -> dict[str, float]:
    """Characters per second of training: of the median interval, which was neither compiled nor evaluated in."""
    seconds = np.diff([0.0, *(row["seconds"] for row in history)])
    return {"characters_per_second": config.batch * config.time * interval / float(np.median(seconds))} if history else {}
