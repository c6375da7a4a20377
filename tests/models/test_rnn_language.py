"""The language model against its definition; the sampler against the text it stands for and the distribution it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets.data import text
from jaxnets.models import rnn
from jaxnets.training import state, steps

SYMBOLS = 7
MODEL = rnn.LanguageModel(vocabulary=SYMBOLS, cell=rnn.LSTM(6), layers=2)
PROMPT = jnp.array([3, 1, 4])


@pytest.fixture(scope="module")
def variables():
    drawn = MODEL.init(jax.random.key(1), PROMPT[None])
    return jax.tree.map(lambda leaf: 3 * leaf, drawn)  # decided logits, so that greedy choices don't hang on rounding


class Constant:
    """A model whose logits never change: what is drawn has a known distribution."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)

    def apply(self, variables, tokens, initial=None):
        del variables, initial
        return jnp.broadcast_to(self.logits, (*tokens.shape, len(self.logits))), ()


def draws(logits, count=4000, **options):
    with jax.disable_jit(False):
        draw = jax.jit(lambda key: rnn.sample(Constant(logits), {}, key, PROMPT[:1], steps=count, **options)[0])
        return np.asarray(draw(jax.random.key(0)))


def test_logits_are_head_of_layers_of_embedding(variables):
    params = variables["params"]
    x = params["embedding"]["embedding"][PROMPT][None]
    outputs, final = rnn.Recurrent(MODEL.cell, 2).apply({"params": params["recurrent"]}, x)
    expected = np.asarray(outputs) @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    logits, state = MODEL.apply(variables, PROMPT[None])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, final)


def test_a_tied_head_is_the_embedding():
    model = rnn.LanguageModel(vocabulary=SYMBOLS, cell=rnn.GRU(5), tied=True)
    variables = model.init(jax.random.key(0), PROMPT[None])
    table = variables["params"]["embedding"]["embedding"]
    assert set(variables["params"]) == {"embedding", "recurrent", "head_bias"}
    outputs, _ = rnn.Recurrent(model.cell).apply({"params": variables["params"]["recurrent"]}, table[PROMPT][None])
    np.testing.assert_allclose(model.apply(variables, PROMPT[None])[0], outputs @ table.T, rtol=1e-5, atol=1e-6)


def test_the_likeliest_text_is_that_of_the_whole_model_read_again_for_every_symbol(jit, variables):
    tokens, _ = jit(lambda key: rnn.sample(MODEL, variables, key, PROMPT, steps=4, temperature=0))(jax.random.key(0))
    written = PROMPT
    for token in tokens:
        logits, _ = MODEL.apply(variables, written[None])
        assert token == logits[0, -1].argmax()
        written = jnp.append(written, token)


def test_text_in_two_calls_is_the_text_of_one(jit, variables, key):
    whole, end = jit(lambda k: rnn.sample(MODEL, variables, k, PROMPT, steps=4))(key)
    first, middle = jit(lambda k: rnn.sample(MODEL, variables, k, PROMPT, steps=2))(key)
    second, last = jit(lambda k, s: rnn.sample(MODEL, variables, k, None, steps=2, state=s))(key, middle)
    np.testing.assert_array_equal(whole, jnp.concatenate([first, second]))
    assert last.count == end.count == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, last)


def test_a_prompt_after_a_state_goes_on_from_it(variables, key):
    first, state = rnn.sample(MODEL, variables, key, PROMPT[:1], steps=1, temperature=0)
    longer = jnp.concatenate([PROMPT[:1], first, PROMPT[1:]])
    expected, _ = rnn.sample(MODEL, variables, key, longer, steps=1, temperature=0)
    actual, _ = rnn.sample(MODEL, variables, key, PROMPT[1:], steps=1, temperature=0, state=state)
    np.testing.assert_array_equal(actual, expected)


def test_a_vmapped_text_is_the_single_one(variables):
    with jax.disable_jit(False):
        keys = jax.random.split(jax.random.key(2), 2)
        draw = jax.jit(lambda key: rnn.sample(MODEL, variables, key, PROMPT, steps=4, top_k=5)[0])
        np.testing.assert_array_equal(jax.vmap(draw)(keys)[1], draw(keys[1]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_softmax_of_logits_over_temperature(temperature):
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    frequency = np.bincount(draws(logits, temperature=temperature), minlength=4) / 4000
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    assert np.abs(frequency - expected).max() < 4 * np.sqrt(0.25 / 4000)  # four standard errors


def test_top_k_draws_the_k_likeliest_and_equals_of_the_last():
    assert set(draws([0.0, 3.0, 1.0, 2.0, -9.0], 300, top_k=2)) == {1, 3}
    assert set(draws([1.0, 3.0, 1.0, 0.0], 300, top_k=2)) == {0, 1, 2}
    assert set(draws([0.0, 3.0], 20, top_k=1)) == {1}


@pytest.mark.parametrize(
    ("nucleus", "kept"), [(0.3, {3}), (0.41, {2, 3}), (0.69, {2, 3}), (0.71, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_nucleus_draws_the_fewest_symbols_with_its_probability(nucleus, kept):
    assert set(draws(np.log([0.1, 0.2, 0.3, 0.4]), 400, nucleus=nucleus)) == kept


def test_nucleus_comes_after_top_k():
    # Of 0.4 and 0.3, renormalized to 0.57 and 0.43, half is held by the first alone.
    assert set(draws(np.log([0.1, 0.2, 0.3, 0.4]), 200, top_k=2, nucleus=0.5)) == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": -0.5}, "temperature must not be negative"),
        ({"top_k": 0}, "top_k must be None or in 1..7"),
        ({"top_k": 8}, "top_k must be None or in 1..7"),
        ({"nucleus": 0.0}, "nucleus must be None or in"),
        ({"nucleus": 1.5}, "nucleus must be None or in"),
        ({"prompt": None}, "needs a prompt or a state"),
        ({"prompt": jnp.zeros((0,), int)}, "needs a prompt or a state"),
        ({"prompt": jnp.array([7])}, "tokens must be ids 0..6, got \\[7\\]"),
    ],
)
def test_sample_names_what_is_wrong(variables, key, options, message):
    arguments = {"prompt": PROMPT, "steps": 1} | options
    with pytest.raises(ValueError, match=message):
        rnn.sample(MODEL, variables, key, arguments.pop("prompt"), **arguments)


@pytest.mark.parametrize("tokens", [jnp.zeros((1, 3)), jnp.zeros(3, int), jnp.array([[0, -1, 2]]), jnp.array([[0, 7, 2]])])
def test_tokens_that_are_no_ids_are_named(variables, tokens):
    with pytest.raises(ValueError, match="LanguageModel: tokens must be"):
        MODEL.apply(variables, tokens)


def test_ids_outside_the_vocabulary_make_nan_where_they_are_not_known(variables):
    with jax.disable_jit(False):
        logits = jax.jit(lambda t: MODEL.apply(variables, t)[0])(jnp.array([[0, -1], [7, 1], [0, 1]]))
    np.testing.assert_array_equal(jnp.isnan(logits).all(-1), [[False, True], [True, True], [False, False]])


@pytest.mark.parametrize(
    "fields", [{"vocabulary": 0}, {"embedding": 0}, {"tied": True, "embedding": 4}, {"layers": 0}, {"dropout": 1.0}]
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        rnn.LanguageModel(**({"vocabulary": 7, "cell": rnn.LSTM(6)} | fields)).init(jax.random.key(0), PROMPT[None])


def test_options_reach_the_layers(variables):
    model = rnn.LanguageModel(vocabulary=SYMBOLS, cell=MODEL.cell, layers=2, options={"residual": True})
    assert not np.allclose(model.apply(variables, PROMPT[None])[0], MODEL.apply(variables, PROMPT[None])[0])


def test_training_step_and_sampler_lower_for_cpu_cuda_and_tpu(variables):
    platforms = ("cpu", "cuda", "tpu")
    optimizer, window = optax.adam(1e-2), jnp.tile(PROMPT, (2, 2))
    batch = text.Streams(window, window, reset=jnp.zeros(window.shape, bool))

    def train(params, carry, batch):
        before = state.from_params(params, optimizer, jax.random.key(0), carry=carry)
        return steps.make_train_step(steps.truncated_bptt(MODEL.apply), optimizer)(before, batch)[0].params

    def draw(seed):
        return rnn.sample(MODEL, variables, jax.random.key(seed), PROMPT, steps=3, top_k=4, nucleus=0.9)[0]

    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(draw), platforms=platforms)(1)
        assert exported.platforms == platforms
        flat, tree = jax.tree.flatten((variables["params"], MODEL.initial(2), batch))
        jax.export.export(jax.jit(lambda *flat: jax.tree.leaves(train(*tree.unflatten(flat)))), platforms=platforms)(*flat)
