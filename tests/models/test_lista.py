import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from jaxnets import losses
from jaxnets.data import batches
from jaxnets.models import lista
from jaxnets.proximal import linear
from jaxnets.seismic import metrics, wavelets
from jaxnets.training import loop, precision, state, steps

WAVELET = np.array([-0.3, 1.0, 0.5])
CONVOLUTION = np.stack([np.convolve(e, WAVELET, mode="same") for e in np.eye(8)], axis=1)
MATRIX = np.random.default_rng(0).standard_normal((8, 12))
Y = np.random.default_rng(1).standard_normal((2, 3, 8))
OPTIONS = {"layers": 3, "penalty": 0.3}


def networks(dtype=np.float32, **options):
    """Name -> (network, the matrix of its problem)."""
    options, a = {**OPTIONS, **options}, jnp.asarray(MATRIX, dtype)
    wavelet = jnp.asarray(WAVELET, dtype)
    return {
        "lista": (lista.Lista(matrix=a, **options), MATRIX),
        "coupled": (lista.Lista(matrix=a, coupled=True, **options), MATRIX),
        "convolutional": (lista.ConvolutionalLista(wavelet=wavelet, **options), CONVOLUTION),
        "alista": (lista.Alista(operator=linear.convolution(wavelet, 8), **options), CONVOLUTION),
    }


KINDS = ["lista", "coupled", "convolutional", "alista"]


def proximal_gradient(a, y, *, step_size, momentum=False, layers=3, penalty=0.3):
    """ISTA and FISTA as Beck & Teboulle (2009) write them, eq. 1.4 and 4.1-4.3; all iterates."""
    z = x = np.zeros((*y.shape[:-1], a.shape[1]))
    t, iterates = 1.0, []
    for _ in range(layers):
        v = z + step_size * (y - z @ a.T) @ a
        x, before = np.sign(v) * np.maximum(np.abs(v) - step_size * penalty, 0), x
        t, t_before = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
        z = x + (t_before - 1) / t * (x - before) if momentum else x
        iterates.append(x)
    return np.stack(iterates)


@pytest.mark.parametrize("kind", KINDS)
def test_the_untrained_network_with_momentum_is_that_many_steps_of_fista(jit, key, kind):
    model, a = networks(momentum=True, step_size=0.05)[kind]
    y = jnp.asarray(Y, jnp.float32)
    variables = model.init(key, y)
    expected = proximal_gradient(a, Y, step_size=0.05, momentum=True)
    iterates = jit(functools.partial(model.apply, method="trajectory"))(variables, y)
    np.testing.assert_allclose(iterates, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jit(functools.partial(model.apply, train=True))(variables, y), iterates[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_untrained_network_is_ista_with_the_step_size_of_the_theory_in_double_precision(key, kind):
    with jax.enable_x64(True):
        model, a = networks(np.float64)[kind]
        variables = model.init(key, jnp.asarray(Y))
        assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float64")}
        step_size = np.exp(variables["params"]["log_threshold"][0]) / 0.3
        assert 0.98 < step_size * np.linalg.norm(a, 2) ** 2 < 1
        x = jax.jit(model.apply)(variables, jnp.asarray(Y))
        np.testing.assert_allclose(x, proximal_gradient(a, Y, step_size=step_size)[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["lista", "coupled", "convolutional"])
def test_tied_weights_are_learned_by_the_sum_of_what_the_layers_want(key, kind):
    y = jnp.asarray(Y, jnp.float32)

    def gradients(model):
        params = model.init(key, y)["params"]
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, y) ** 2)))(params)

    each, tied = (gradients(networks(step_size=0.05)[kind][0].clone(tied=tied)) for tied in (False, True))
    shared = {name for name, gradient in tied.items() if gradient.shape[0] == 1}
    assert shared == set(each) - {"log_threshold"}
    for name, gradient in each.items():
        assert len(gradient) == 3
        assert np.abs(gradient).sum(axis=tuple(range(1, gradient.ndim)))[-1] > 0  # the last layer learns, whatever the start
        np.testing.assert_allclose(
            tied[name], gradient.sum(0, keepdims=True) if name in shared else gradient, rtol=2e-4, atol=1e-4
        )


def test_the_largest_entries_pass_unshrunk_and_more_of_them_in_later_layers(jit, key):
    """With A = I and step 1 every layer sees y itself, so the selected entries of y come out as they are."""
    y = jnp.array([[3.0, -2.0, 0.1, 1.0], [-1.0, 4.0, 2.0, 3.0]])
    options = {"matrix": jnp.eye(4), "layers": 3, "penalty": 0.5, "step_size": 1.0, "coupled": True}
    model = lista.Lista(selection=(0.25, 0.5), **options)
    variables = model.init(key, y)
    one, two = [[3, -1.5, 0, 0.5], [-0.5, 4, 1.5, 2.5]], [[3, -2, 0, 0.5], [-0.5, 4, 1.5, 3]]
    iterates = jit(lambda v: model.apply(v, y, method="trajectory"))(variables)
    np.testing.assert_allclose(iterates, [one, two, two], rtol=1e-6)
    none, every = (lista.Lista(selection=(share, share), **options).apply(variables, y) for share in (0.0, 1.0))
    np.testing.assert_array_equal(none, lista.Lista(**options).apply(variables, y))
    np.testing.assert_array_equal(every, np.where(np.abs(y) > 0.5, y, 0))


def test_kernels_serve_traces_of_any_length_and_any_origin(key):
    wavelet, y = jnp.array([1.0, 0.5, -0.2, 0.1]), jnp.asarray(Y, jnp.float32)
    model = lista.ConvolutionalLista(wavelet=wavelet, origin=0, step_size=0.2, **OPTIONS)
    variables = model.init(key, y)
    causal = np.stack([np.convolve(e, wavelet)[:8] for e in np.eye(8)], axis=1)
    np.testing.assert_allclose(model.apply(variables, y), proximal_gradient(causal, Y, step_size=0.2)[-1], rtol=1e-5, atol=1e-6)
    short = model.apply(variables, y[0, 0, :5])
    np.testing.assert_allclose(short, proximal_gradient(causal[:5, :5], Y[0, 0, :5], step_size=0.2)[-1], rtol=1e-5, atol=1e-6)


def test_axes_before_those_of_the_operator_are_batch(key):
    """A section [trace time] is one example of an operator on sections, and three of one on traces."""
    by_trace = networks(step_size=0.1)["alista"][0]
    by_section = by_trace.clone(operator=linear.convolution(jnp.asarray(WAVELET, jnp.float32), (3, 8)))
    y = jnp.asarray(Y, jnp.float32)
    variables = by_trace.init(key, y)
    expected = by_trace.apply(variables, y)
    np.testing.assert_allclose(by_section.apply(variables, y), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_section.apply(variables, y[0]), expected[0], rtol=1e-5, atol=1e-6)


def test_the_analytic_weight_minimizes_its_objective_column_by_column(jit):
    with jax.enable_x64(True):
        weight = np.asarray(jit(lambda a: lista.analytic_weight(a, ridge=0.1))(jnp.asarray(MATRIX)))
    np.testing.assert_allclose(np.sum(weight * MATRIX, axis=0), 1, rtol=1e-12)
    for i in (0, 7):
        column = MATRIX[:, i]
        constraint = {"type": "eq", "fun": lambda w, column=column: w @ column - 1, "jac": lambda w, column=column: column}
        found = optimize.minimize(
            lambda w: np.sum((w @ MATRIX) ** 2) + 0.1 * w @ w,
            column / (column @ column),
            jac=lambda w: 2 * MATRIX @ (MATRIX.T @ w) + 0.2 * w,
            constraints=[constraint],
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(weight[:, i], found.x, rtol=1e-5, atol=1e-7)


def test_the_analytic_weight_of_an_orthogonal_matrix_is_the_matrix_and_others_become_less_coherent():
    orthogonal, _ = np.linalg.qr(MATRIX[:, :8])
    np.testing.assert_allclose(lista.analytic_weight(jnp.asarray(orthogonal, jnp.float32)), orthogonal, atol=1e-5)
    a = MATRIX / np.linalg.norm(MATRIX, axis=0)
    weight = np.asarray(lista.analytic_weight(jnp.asarray(a, jnp.float32)))
    off = ~np.eye(12, dtype=bool)
    assert np.sum((weight.T @ a)[off] ** 2) < 0.9 * np.sum((a.T @ a)[off] ** 2)


def test_with_the_analytic_weight_few_layers_find_what_ista_does_not(key):
    """Noise-free, 3 spikes of 40 from 20 numbers: the weights of least coherence get closer with nothing trained."""
    rng = np.random.default_rng(3)
    a = jnp.asarray(rng.standard_normal((20, 40)) / np.sqrt(20), jnp.float32)
    x = np.zeros((16, 40), np.float32)
    for trace in x:
        trace[rng.choice(40, 3, replace=False)] = rng.choice([-1, 1], 3)
    y = jnp.asarray(x @ a.T)
    options = {"operator": linear.matrix(a), "layers": 6, "penalty": 0.1}
    error = []
    for weight in (None, linear.matrix(lista.analytic_weight(a))):
        model = lista.Alista(weight=weight, **options)
        error.append(np.sum((jax.jit(lambda y, model=model: model.apply(model.init(key, y), y))(y) - x) ** 2))
    assert error[1] < 0.7 * error[0]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_inside_stays_close_and_gradients_arrive_in_float32(key, kind):
    model, a = networks(step_size=0.05)[kind]
    y = jnp.asarray(Y, jnp.float32)
    variables = model.init(key, y)
    mixed = precision.mixed(model.apply)
    x, gradient = jax.jit(lambda v: (mixed(v, y), jax.grad(lambda v: mixed(v, y).sum())(v)))(variables)
    np.testing.assert_allclose(x, proximal_gradient(a, Y, step_size=0.05)[-1], atol=0.05)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    half = jax.eval_shape(model.apply, precision.cast(variables, jnp.bfloat16), y.astype(jnp.bfloat16))
    assert half.dtype == (jnp.float32 if kind == "alista" else jnp.bfloat16)  # an operator has its own precision


@pytest.mark.parametrize(("kind", "field"), [("coupled", "matrix"), ("convolutional", "wavelet"), ("alista", "operator")])
def test_vmapped_networks_are_the_single_ones(key, kind, field):
    """Over problems: matrices, wavelets and operators are data. What starts at them differs, too."""
    y, factors = jnp.asarray(Y, jnp.float32), jnp.array([1.0, 1.5])

    def network(factor):
        model, _ = networks(step_size=0.05)[kind]
        model = model.clone(**{field: jax.tree.map(lambda leaf: factor * leaf, getattr(model, field))})
        return model.apply(model.init(key, y), y)

    single = jax.jit(network)
    expected = [single(factor) for factor in factors]
    np.testing.assert_allclose(jax.jit(jax.vmap(network))(factors), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lista", "convolutional", "alista"])
def test_training_lowers_for_every_platform_in_one_program(key, kind):
    model, _ = networks(momentum=True, selection=(0.1, 0.3))[kind]
    y = jnp.asarray(Y, jnp.float32)
    variables = model.init(key, y)
    with jax.disable_jit(False):
        gradient = jax.jit(jax.grad(lambda v: model.apply(v, y, method="trajectory").sum()))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient(variables)))
        exported = jax.export.export(gradient, platforms=("cpu", "cuda", "tpu"))(variables)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "Lista: layers must be at least 1, got 0"),
        ({"penalty": 0.0}, "Lista: penalty must be positive, got 0.0"),
        ({"penalty": float("nan")}, "penalty must be positive, got nan"),
        ({"step_size": -1}, "step_size must be positive, got -1"),
        ({"selection": (0.1, 1.5)}, r"selection must be two shares in \[0, 1\], got \(0.1, 1.5\)"),
    ],
)
def test_a_bad_field_is_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        lista.Lista(**{"matrix": jnp.eye(3), **OPTIONS, **fields})


@pytest.mark.parametrize(
    ("kind", "message"), [("lista", r"Lista: expected inputs \[\*batch, 8\]"), ("alista", "Alista: expected")]
)
def test_an_input_that_does_not_fit_the_operator_is_named(key, kind, message):
    with pytest.raises(ValueError, match=message + r".*got \(2, 5\)"):
        networks()[kind][0].init(key, jnp.zeros((2, 5)))


def test_a_negative_ridge_is_refused():
    with pytest.raises(ValueError, match="analytic_weight: ridge must be non-negative, got -1"):
        lista.analytic_weight(jnp.eye(3), ridge=-1)


@pytest.mark.slow
def test_trained_kernels_beat_as_many_steps_of_fista_on_held_out_traces(key):
    """Spikes under a Ricker wavelet in noise, 15 dB; FISTA has the penalty that is best on the validation traces."""
    rng, layers = np.random.default_rng(0), 6
    time = 0.004 * np.arange(-12, 13)
    wavelet = wavelets.ricker(jnp.asarray(time, jnp.float32), 30.0)
    wavelet /= jnp.linalg.norm(wavelet)

    def draw(count):
        x = (rng.random((count, 96)) < 0.06) * rng.standard_normal((count, 96))
        y = np.stack([np.convolve(trace, wavelet, mode="same") for trace in x])
        y += np.sqrt(0.06 / 10**1.5) * rng.standard_normal(y.shape)
        return batches.Dataset(jnp.asarray(y, jnp.float32), jnp.asarray(x, jnp.float32))

    def network(penalty):
        return lista.ConvolutionalLista(wavelet=wavelet, layers=layers, penalty=penalty, momentum=True)

    def fista(y, penalty):
        return network(penalty).apply(network(penalty).init(key, y), y)

    train, validation, test = draw(512), draw(256), draw(256)
    penalties = jnp.geomspace(0.03, 1, 16)
    estimates = jax.jit(jax.vmap(fista, in_axes=(None, 0)))(validation.x, penalties)
    best = penalties[jnp.argmax(jax.vmap(metrics.snr_db, in_axes=(0, None))(estimates, validation.y))]
    solved = metrics.snr_db(fista(test.x, best), test.y)

    model, optimizer = network(best), optax.adam(optax.cosine_decay_schedule(3e-3, 300))
    step = steps.make_train_step(steps.supervised(model.apply, losses.squared), optimizer)
    start = state.create(model, optimizer, key, train.x[:1])
    trained = loop.fit(step, start, train, batch=32, steps=300, scan=True).state
    learned = metrics.snr_db(model.apply({"params": trained.params}, test.x), test.y)
    assert trained.skipped == 0
    assert learned - solved > 3
