"""The sequence classifier against its definition; sequence to sequence against its paper, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import losses, metrics
from jaxnets.data import sequences
from jaxnets.models import rnn
from jaxnets.training import steps

LENGTHS = jnp.array([4, 0, 1])
ROWS, TIME, WIDTH = 3, 4, 3
OWN = np.arange(4) < np.array([[4], [0], [1]])  # the steps that count
START = STOP = 5


def draw(like, dtype=jnp.float32):
    """A tree of random numbers of the shapes of `like`."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), like)


def classifier(dtype=jnp.float32, **options):
    """A model, its variables, and x with NaN in the padding."""
    model, x = rnn.Classifier(2, rnn.Elman(WIDTH), **options), np.empty((ROWS, TIME, 2), np.float32)
    variables, x = draw((jax.eval_shape(model.init, jax.random.key(0), x), x), dtype)
    return model, variables, jnp.where(jnp.asarray(OWN)[..., None], x, jnp.nan)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_classifier_pools_over_a_rows_own_steps(bidirectional):
    """The vector before the head by the definition; "last" from the final states, so that both directions are checked."""
    model, variables, x = classifier(bidirectional=bidirectional)
    params, head = variables["params"], variables["params"]["head"]
    layer = rnn.Recurrent(model.cell, bidirectional=bidirectional)
    outputs, (final,) = layer.apply({"params": params["recurrent"]}, x, lengths=LENGTHS)
    own = [row[:length] for row, length in zip(np.asarray(outputs), LENGTHS, strict=True)]
    nothing = np.zeros(outputs.shape[-1])
    expected = {
        "last": np.concatenate(final if bidirectional else [final], axis=-1),
        "mean": np.stack([row.mean(0) if len(row) else nothing for row in own]),
        "max": np.stack([row.max(0) if len(row) else nothing for row in own]),
    }
    for pooling, vectors in expected.items():
        logits = model.clone(pooling=pooling).apply(variables, x, lengths=LENGTHS)
        np.testing.assert_allclose(
            logits, vectors @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_padding_and_rows_of_no_steps_leave_the_gradient_of_a_classifier_finite(pooling):
    model, variables, x = classifier(pooling=pooling)

    def value(variables, x):
        return model.apply(variables, x, lengths=LENGTHS).sum()

    with jax.disable_jit(False):
        d_variables, d_x = jax.jit(jax.grad(value, argnums=(0, 1)))(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_variables))
    assert not np.asarray(d_x)[~OWN].any()
    assert np.asarray(d_x)[OWN].any()


def test_without_lengths_a_classifier_sees_all_steps():
    for pooling in ("last", "mean", "max"):
        model, variables, x = classifier(pooling=pooling)
        x, full = jnp.nan_to_num(x), jnp.full(ROWS, TIME)
        np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x, lengths=full))


def test_dropout_acts_before_the_head_and_options_reach_the_layers():
    model, variables, x = classifier(dropout=0.5)
    rngs = {"dropout": jax.random.key(0)}
    plain, noisy = model.apply(variables, x, lengths=LENGTHS), model.apply(variables, x, lengths=LENGTHS, train=True, rngs=rngs)
    assert (plain != noisy).any()
    held = model.clone(options={"zoneout": 0.9}).apply(variables, x, lengths=LENGTHS)
    assert (plain != held).any()


def test_a_classifier_fits_a_supervised_loss_on_padded_batches():
    model, variables, x = classifier()
    data = sequences.Sequences(x, jnp.array([0, 1, 1]), lengths=LENGTHS)
    loss_fn = steps.supervised(model.apply, losses.softmax_cross_entropy, inputs=("lengths",), accuracy=metrics.correct)
    loss, (weight, sums, _) = loss_fn(variables["params"], {}, data, None)
    logits = model.apply(variables, x, lengths=LENGTHS)
    np.testing.assert_allclose(loss, losses.softmax_cross_entropy(logits, data.y).sum(), rtol=1e-6)
    assert (weight, sums["accuracy"]) == (ROWS, np.sum(np.argmax(logits, axis=1) == data.y))


def translator(dtype=jnp.float32, cell=rnn.Elman(WIDTH), **options):
    """A model, its variables, sources of `LENGTHS` and what the decoder reads."""
    model, rng = rnn.SequenceToSequence(4, 6, cell, **options), np.random.default_rng(1)
    source, target = (jnp.asarray(rng.integers(0, size, (ROWS, time)), jnp.int32) for size, time in ((4, TIME), (6, 3)))
    return model, draw(jax.eval_shape(model.init, jax.random.key(0), source, target), dtype), source, target


def test_the_decoder_is_that_of_the_paper():
    """Bahdanau et al. (2015), eq. 2 and 4-6, symbol by symbol, with tanh layers; a row of no steps has context 0."""
    with jax.enable_x64(True):
        model, variables, source, target = translator(jnp.float64, layers=2, embedding=2, attention=5)
        encoder = rnn.Recurrent(model.cell, 2, bidirectional=True)
        p = jax.tree.map(np.asarray, variables["params"])
        embedded = jnp.asarray(p["embed_source"]["embedding"][source])
        h, final = encoder.apply({"params": variables["params"]["encoder"]}, embedded, lengths=LENGTHS)
        logits, seen = model.apply(variables, source, target, lengths=LENGTHS, mutable=["intermediates"])
    (attention,) = seen["intermediates"]["attention"]
    for row, length in enumerate(LENGTHS):
        own, s = np.asarray(h)[row, :length], [np.asarray(backward)[row] for _, backward in final]
        for i, symbol in enumerate(p["embed_target"]["embedding"][np.asarray(target[row])]):
            e = np.tanh(s[-1] @ p["attention"]["query"] + own @ p["attention"]["key"]) @ p["attention"]["score"]
            alpha = np.exp(e) / np.exp(e).sum()
            context = alpha @ own
            x = np.concatenate([symbol, context])
            for layer in range(2):
                own_p = p["decoder"][f"layer_{layer}"]
                x = s[layer] = np.tanh(x @ own_p["input"] + s[layer] @ own_p["recurrent"] + own_p["bias"])
            expected = np.concatenate([x, context, symbol]) @ p["head"]["kernel"] + p["head"]["bias"]
            np.testing.assert_allclose(logits[row, i], expected, rtol=1e-12)
            np.testing.assert_allclose(attention[row, i, :length], alpha, rtol=1e-12)
    assert not np.where(OWN[:, None], 0, attention).any()


def test_ids_in_the_padding_may_be_any():
    model, variables, source, target = translator()

    wild = jnp.where(jnp.asarray(OWN), source, jnp.array([[-5, 99, 2**30, 3]]))

    def apply(variables, source):
        return model.apply(variables, source, target, lengths=LENGTHS)

    np.testing.assert_array_equal(apply(variables, wild), apply(variables, source))
    with jax.disable_jit(False):  # where ids are not known
        gradient = jax.jit(jax.grad(lambda *arguments: apply(*arguments).sum()))
        got = gradient(variables, wild)
        jax.tree.map(np.testing.assert_array_equal, got, gradient(variables, source))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("bad", [-1, 6])
def test_an_unknown_id_that_is_not_known_before_is_nan(bad):
    model, variables, source, target = translator()
    with jax.disable_jit(False):
        logits = jax.jit(model.apply)(variables, source, target.at[1, 1].set(bad))
    np.testing.assert_array_equal(np.isnan(logits).any(-1), [[0, 0, 0], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("cell", "options"),
    [(rnn.LSTM(WIDTH, projection=2), {"layers": 2}), (rnn.GRU(WIDTH), {"bidirectional": False}), (rnn.LRU(WIDTH), {})],
    ids=["lstm", "gru", "lru"],
)
def test_greedy_is_the_argmax_of_teacher_forcing_on_its_own_output(cell, options):
    model, variables, source, _ = translator(cell=cell, **options)
    source, lengths = jnp.tile(source, (2, 1)), jnp.array([4, 0, 1, 3, 2, 4])
    decode = jax.jit(lambda v: rnn.greedy(model, v, source, lengths, start=START, stop=STOP, steps=4))
    tokens, counts = decode(variables)
    read = jnp.concatenate([jnp.full((6, 1), START), tokens[:, :-1]], axis=1)
    best = np.argmax(jax.jit(model.apply)(variables, source, read, lengths=lengths), axis=-1)
    for row, likeliest, count in zip(np.asarray(tokens), best, counts, strict=True):
        stops = np.flatnonzero(likeliest == STOP)
        expected = stops[0] if len(stops) else 4
        assert count == expected
        np.testing.assert_array_equal(row, np.where(np.arange(4) < expected, likeliest, STOP))


def test_greedy_knows_where_it_stopped():
    """A head that sees nothing but the symbol before: 5 -> 1 -> 2 -> 5 (stop), or, with stop 3, for ever."""
    model, variables, source, _ = translator(embedding=6)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["embed_target"]["embedding"] = jnp.eye(6)
    params["head"]["kernel"] = params["head"]["kernel"].at[jnp.array([-1, -5, -4]), jnp.array([1, 2, 5])].set(1)

    def decode(stop):
        return jax.jit(lambda p: rnn.greedy(model, {"params": p}, source, start=5, stop=stop, steps=5))(params)

    tokens, counts = decode(5)
    assert tokens.tolist() == [[1, 2, 5, 5, 5]] * ROWS
    assert counts.tolist() == [2] * ROWS
    tokens, counts = decode(3)
    assert tokens.tolist() == [[1, 2, 5, 1, 2]] * ROWS
    assert counts.tolist() == [5] * ROWS


@pytest.mark.slow
def test_it_learns_to_reverse_and_attends_where_it_reads():
    """Sequences of 1 to 5 symbols; the weights then lie on the antidiagonal of each row's own steps."""
    symbols, longest, rows = 6, 5, 64
    model, optimizer = rnn.SequenceToSequence(symbols, symbols + 1, rnn.GRU(24)), optax.adam(0.01)

    def batch(key):
        key_x, key_lengths = jax.random.split(key)
        x = jax.random.randint(key_x, (rows, longest), 0, symbols)
        lengths = jax.random.randint(key_lengths, (rows,), 1, longest + 1)
        mirrored = lengths[:, None] - 1 - jnp.arange(longest + 1)[None]
        y = jnp.where(mirrored >= 0, jnp.take_along_axis(x, jnp.maximum(mirrored, 0), axis=1), symbols)
        return x, y, jnp.concatenate([jnp.full((rows, 1), symbols), y[:, :-1]], axis=1), lengths

    def loss(params, key):
        x, y, target, lengths = batch(key)
        return losses.softmax_cross_entropy(model.apply({"params": params}, x, target, lengths=lengths), y).mean()

    def step(carry, key):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    with jax.disable_jit(False):
        x, y, target, lengths = batch(jax.random.key(1))
        params = jax.jit(model.init)(jax.random.key(0), x, target)["params"]
        keys = jax.random.split(jax.random.key(2), 300)
        params = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])((params, optimizer.init(params)))[0]
        decode = jax.jit(lambda p: rnn.greedy(model, {"params": p}, x, lengths, start=symbols, stop=symbols, steps=longest + 1))
        tokens, counts = decode(params)
        _, seen = model.apply({"params": params}, x, target, lengths=lengths, mutable=["intermediates"])
    (attention,) = seen["intermediates"]["attention"]
    assert np.mean(np.all(np.asarray(tokens == y), axis=1)) > 0.95
    assert np.mean(np.asarray(counts == lengths)) > 0.95
    where = [attention[row, np.arange(n), n - 1 - np.arange(n)] for row, n in enumerate(np.asarray(lengths))]
    assert np.mean(np.concatenate(where)) > 0.8


def test_greedy_lowers_for_every_platform():
    model, variables, source, _ = translator(cell=rnn.GRU(WIDTH))

    def decode(variables, source, lengths):
        return rnn.greedy(model, variables, source, lengths, start=START, stop=STOP, steps=4)

    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(decode), platforms=("cpu", "cuda", "tpu"))(variables, source, LENGTHS)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rnn.Classifier(0, rnn.GRU(2)), "Classifier: classes must be at least 1, got 0"),
        (
            lambda: rnn.Classifier(2, rnn.GRU(2), pooling="sum"),
            "Classifier: pooling must be 'last', 'mean' or 'max', got 'sum'",
        ),
        (lambda: rnn.Classifier(2, rnn.GRU(2), options={"time_major": True}), "Classifier: x is batch-major"),
        (lambda: rnn.SequenceToSequence(0, 2, rnn.GRU(2)), "source_vocabulary must be at least 1, got 0"),
        (lambda: rnn.SequenceToSequence(2, 2, rnn.GRU(2), embedding=0), "embedding must be at least 1, got 0"),
    ],
)
def test_a_bad_field_is_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": jnp.zeros((ROWS, TIME))},
            r"SequenceToSequence: source must be integer ids with 2 axes, got float32\[3, 4\]",
        ),
        ({"target": jnp.zeros((ROWS, TIME))}, r"SequenceToSequence: target must be integer ids with 2 axes"),
        ({"source": jnp.full((ROWS, TIME), 4)}, r"SequenceToSequence: source must be ids 0..3, got \[4\]"),
        ({"target": jnp.full((ROWS, TIME), -1)}, r"SequenceToSequence: target must be ids 0..5, got \[-1\]"),
        ({"lengths": jnp.array([5, 1, 1])}, r"Recurrent: lengths must be in 0..4, the steps of x, got \[5 1 1\]"),
    ],
)
def test_a_bad_source_or_target_is_refused(arguments, message):
    model, variables, source, target = translator()
    with pytest.raises(ValueError, match=message):
        model.apply(variables, **{"source": source, "target": target, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "greedy: steps must be at least 1, got 0"),
        ({"start": 6}, "greedy: start must be an id in 0..5, got 6"),
        ({"stop": -1}, "greedy: stop must be an id in 0..5, got -1"),
    ],
)
def test_greedy_refuses_bad_arguments(arguments, message):
    model, variables, source, _ = translator()
    with pytest.raises(ValueError, match=message):
        rnn.greedy(model, variables, source, **{"start": 5, "stop": 5, "steps": 2, **arguments})
