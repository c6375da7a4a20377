"""Options of `Recurrent`: noise that can be seen in the outputs, forms of equal result, derivatives, bad input.

A linear Elman cell whose weights are 0 or 1 shows a mask as it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.models import rnn

ROWS, TIME, WIDTH = 3, 5, 4
LENGTHS, RESET = jnp.array([5, 2, 0]), jnp.asarray(np.arange(TIME) == np.array([[3], [1], [0]]))
LINEAR = rnn.Elman(WIDTH, activation=lambda a: a)
RNGS = {"dropout": jax.random.key(3)}


def draw(like, dtype=jnp.float32, seed=0):
    """A tree of random numbers of the shapes of `like`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), like)


def problem(cell=rnn.LSTM(WIDTH), dtype=jnp.float32, rows=ROWS, **options):
    """A layer, its variables and x."""
    layer = rnn.Recurrent(cell, **options)
    x = jax.ShapeDtypeStruct((TIME, rows, WIDTH) if layer.time_major else (rows, TIME, WIDTH), dtype)
    variables, x = draw((jax.eval_shape(layer.init, jax.random.key(0), x), x), dtype)
    return layer, variables, x


def linear(*, inputs, recurrent):
    """Parameters of `LINEAR`: both weights a multiple of the identity."""
    eye = jnp.eye(WIDTH)
    return {"input": inputs * eye, "recurrent": recurrent * eye, "bias": jnp.zeros(WIDTH)}


def same(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def mean_is(rate, flags):
    """The share of True, to four standard deviations of independent draws."""
    assert abs(np.mean(flags) - rate) < 4 * np.sqrt(rate * (1 - rate) / np.size(flags))


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_acts_between_layers_with_one_mask_a_sequence_if_variational(variational):
    layer, variables, x = problem(LINEAR, rows=60, layers=2, dropout=0.25, variational=variational)
    params = variables["params"] | {"layer_1": linear(inputs=1, recurrent=0)}  # shows what it is given
    first, _ = rnn.Recurrent(LINEAR).apply({"params": {"layer_0": params["layer_0"]}}, x)
    same(layer.apply({"params": params}, x)[0], first)  # in evaluation, without a key
    seen, final = layer.apply({"params": params}, x, train=True, rngs=RNGS)
    same(final[0], first[:, -1])
    dropped = np.asarray(seen) == 0
    same(seen, jnp.where(dropped, 0, first / 0.75), 1e-5)
    mean_is(0.25, dropped[:, 0])
    assert (dropped == dropped[:, :1]).all() == variational
    assert (dropped[:30] != dropped[30:]).any()


def test_recurrent_dropout_is_one_mask_a_sequence_on_the_state_alone():
    layer, _, x = problem(LINEAR, rows=60, recurrent_dropout=0.25)
    variables = {"params": {"layer_0": linear(inputs=1, recurrent=1)}}
    outputs, _ = layer.apply(variables, x, train=True, rngs=RNGS)
    same(outputs[:, 0], x[:, 0])
    keep = (outputs[:, 1] - x[:, 1]) / x[:, 0]
    dropped = np.asarray(keep) < 0.5
    same(keep, np.where(dropped, 0, 1 / 0.75), 1e-4)
    mean_is(0.25, dropped)
    assert (dropped != dropped[:1]).any()
    for t in range(1, TIME):
        same(outputs[:, t], x[:, t] + jnp.where(dropped, 0, outputs[:, t - 1] / 0.75), 1e-5)
    same(layer.apply(variables, x)[0], jnp.cumsum(x, axis=1), 1e-5)


def test_zoneout_keeps_units_at_random_and_their_share_in_evaluation():
    layer, _, x = problem(LINEAR, rows=60, zoneout=0.25)
    variables, start = {"params": {"layer_0": linear(inputs=1, recurrent=0)}}, (jnp.ones((60, WIDTH)),)
    outputs, _ = layer.apply(variables, x, initial=start, train=True, rngs=RNGS)
    before = jnp.concatenate([start[0][:, None], outputs[:, :-1]], axis=1)
    kept = np.asarray(outputs == before)
    np.testing.assert_array_equal(outputs, jnp.where(kept, before, x))
    mean_is(0.25, kept)
    assert (kept != kept[:, :1]).any()
    outputs, _ = layer.apply(variables, x, initial=start)
    before = jnp.concatenate([start[0][:, None], outputs[:, :-1]], axis=1)
    same(outputs, 0.25 * before + 0.75 * x)


def test_zoneout_has_a_rate_for_each_part_of_the_state():
    layer, variables, x = problem(rows=60, zoneout=(0.5, 0.1))
    start, x = draw(layer.initial(60), seed=1), x[:, :1]
    _, (new,) = rnn.Recurrent(layer.cell).apply(variables, x, initial=start)
    _, (noisy,) = layer.apply(variables, x, initial=start, train=True, rngs=RNGS)
    _, (mean,) = layer.apply(variables, x, initial=start)
    for rate, old, fresh, got, even in zip((0.5, 0.1), start[0], new, noisy, mean, strict=True):
        kept = np.asarray(got == old)
        mean_is(rate, kept)
        same(got, jnp.where(kept, old, fresh))
        same(even, rate * old + (1 - rate) * fresh)


def test_residual_layers_add_their_input_where_the_widths_agree():
    layer, variables, x = problem(rnn.GRU(3), layers=2, residual=True)

    def alone(index, x):
        params = {"layer_0": variables["params"][f"layer_{index}"]}
        return rnn.Recurrent(layer.cell).apply({"params": params}, x, lengths=LENGTHS)

    first, _ = alone(0, x)  # three units of four inputs
    second, last = alone(1, first)
    outputs, final = layer.apply(variables, x, lengths=LENGTHS)
    same(outputs, first + second)
    same(final[1], last[0])


def test_time_major_is_batch_major_transposed():
    layer, variables, x = problem(bidirectional=True)
    outputs, final = layer.apply(variables, x, lengths=LENGTHS, reset=RESET)
    transposed = layer.clone(time_major=True)
    turned, same_final = transposed.apply(variables, x.swapaxes(0, 1), lengths=LENGTHS, reset=RESET.T)
    same((turned.swapaxes(0, 1), same_final), (outputs, final), 0)


def test_directions_stand_side_by_side_and_the_backward_one_reads_in_reverse():
    layer, variables, x = problem(bidirectional=True)
    outputs, ((last, first),) = layer.apply(variables, x)
    for name, part, final, turn in (("forward", slice(WIDTH), last, 1), ("backward", slice(WIDTH, None), first, -1)):
        params = {"layer_0": variables["params"]["layer_0"][name]}
        expected, (state,) = rnn.Recurrent(layer.cell).apply({"params": params}, x[:, ::turn])
        same((outputs[..., part], final), (expected[:, ::turn], state))


def test_no_two_layers_or_directions_start_alike(key):
    layer, _, x = problem(LINEAR, layers=2, bidirectional=True)
    params = layer.init(key, x)["params"]
    matrices = [params[name][side]["recurrent"] for name in ("layer_0", "layer_1") for side in ("forward", "backward")]
    assert len({np.asarray(matrix).tobytes() for matrix in matrices}) == 4


def functional(cell, conditions, **options):
    """A scalar of the final state and all states, of params, state and xs."""

    def value(point):
        result = cell.scan(*point, conditions, **options)
        return sum(jnp.vdot(draw(leaf, leaf.dtype, seed=leaf.ndim), jnp.sin(leaf)) for leaf in jax.tree.leaves(result))

    return value


def scanned(cell):
    """(Params, state, xs) in float64, and all that may interfere: a mask, resets, zoneout and recurrent dropout."""
    specification = cell.parameters(WIDTH)
    shapes = {name: np.empty(shape) for name, (_, shape) in specification.items()}
    start = jax.eval_shape(lambda: cell.initial(ROWS, jnp.float64))
    point = draw((shapes, start, np.empty((TIME, ROWS, WIDTH))), jnp.float64)
    mask = jnp.arange(TIME)[:, None] < LENGTHS[None]
    zoneout = jax.tree.map(lambda s: jax.nn.sigmoid(draw(np.empty((TIME, *s.shape)), jnp.float64, seed=2)), start)
    keep = jnp.asarray(np.array([[0, 2, 0], [2, 0, 2], [2, 2, 0]], float))
    return point, rnn.Conditions(mask, RESET.T, zoneout, keep)


@functools.cache
def default_gradient(cell, reverse):
    point, conditions = scanned(cell)
    return jax.jit(jax.value_and_grad(functional(cell, conditions, reverse=reverse)))(point)


@pytest.mark.parametrize(
    "options",
    [
        {"unroll": 2},
        {"remat": 2},
        {"plain": True},
        {"plain": True, "remat": 2, "reverse": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_form_has_the_same_values_and_gradients(options):
    """Five steps are 2 + 2 + 1."""
    cell = rnn.LSTM(4, projection=3)
    with jax.enable_x64(True), jax.disable_jit(False):
        point, conditions = scanned(cell)
        got = jax.jit(jax.value_and_grad(functional(cell, conditions, **options)))(point)
        same(got, default_gradient(cell, options.get("reverse", False)), 1e-12)


def test_second_derivatives_are_right_and_forward_mode_needs_plain():
    """The derivative of the gradient along a direction: deferred, plain, and forward over reverse."""
    cell = rnn.Elman(3)
    with jax.enable_x64(True), jax.disable_jit(False):
        point, conditions = scanned(cell)
        along = draw(point, jnp.float64, seed=1)
        deferred, plain = functional(cell, conditions), functional(cell, conditions, plain=True)

        def second(value):
            def dot(point):
                return sum(map(jnp.vdot, jax.tree.leaves(jax.grad(value)(point)), jax.tree.leaves(along)))

            return jax.jit(jax.grad(dot))(point)

        expected = jax.jit(lambda: jax.jvp(jax.grad(plain), (point,), (along,)))()[1]
        same(second(deferred), expected, 1e-11)
        same(second(plain), expected, 1e-11)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(deferred, (point,), (along,))


def test_half_precision_stays_so_and_is_near_single():
    layer, variables, x = problem(rnn.GRU(WIDTH), param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(layer.init, RNGS["dropout"], x))} == {jnp.dtype("bfloat16")}

    def value(variables, x):
        outputs, _ = layer.apply(variables, x, lengths=LENGTHS)
        return outputs.sum(), outputs

    with jax.disable_jit(False):
        run = jax.jit(jax.grad(value, has_aux=True))
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (variables, x))
        got, expected = run(*half), run(*jax.tree.map(lambda a: a.astype(jnp.float32), half))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("bfloat16")}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max())


def test_the_gradient_lowers_for_every_platform():
    layer, variables, x = problem(bidirectional=True)

    def loss(params, x, lengths):
        return layer.apply({"params": params}, x, lengths=lengths)[0].sum()

    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=("cpu", "cuda", "tpu"))
        assert exported(variables["params"], x, LENGTHS).platforms == ("cpu", "cuda", "tpu")


def test_lengths_that_are_not_known_are_not_checked():
    layer, variables, x = problem()
    with jax.disable_jit(False):
        outputs, _ = jax.jit(lambda lengths: layer.apply(variables, x, lengths=lengths))(LENGTHS + 1)
    same(outputs, layer.apply(variables, x, lengths=jnp.array([5, 3, 1]))[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "Recurrent: layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"Recurrent: dropout must be in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": -0.1}, r"Recurrent: recurrent_dropout must be in \[0, 1\), got -0.1"),
        ({"zoneout": (0.5, 1)}, r"Recurrent: zoneout must be in \[0, 1\), got \(0.5, 1\)"),
    ],
)
def test_a_bad_field_is_refused_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        rnn.Recurrent(**{"cell": rnn.LSTM(WIDTH), **fields})


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"x": jnp.ones((TIME, WIDTH))}, r"Recurrent: x must be a batch of sequences, three axes, got \(5, 4\)"),
        ({}, {"lengths": jnp.array([6, 2, 0])}, r"Recurrent: lengths must be in 0..5, the steps of x, got \[6 2 0\]"),
        ({}, {"lengths": jnp.array([5, -1, 0])}, r"Recurrent: lengths must be in 0..5, the steps of x, got \[ 5 -1  0\]"),
        ({}, {"lengths": jnp.array([5, 2])}, r"Recurrent: lengths must be one number for each of 3 rows, got \(2,\)"),
        ({}, {"lengths": jnp.array([5.0, 2, 1])}, "Recurrent: lengths must be integers, got float32"),
        ({}, {"reset": RESET[:, :3]}, r"Recurrent: reset must have one flag for each of \(5, 3\) steps, got \(3, 3\)"),
        ({}, {"initial": (jnp.zeros((ROWS, WIDTH)),)}, "Recurrent: initial must be a state of shapes .*LSTMState.* got"),
        ({}, {"initial": rnn.Recurrent(rnn.LSTM(WIDTH)).initial(2)}, "Recurrent: initial must be a state of shapes"),
        ({"layers": 2}, {"initial": rnn.Recurrent(rnn.LSTM(WIDTH)).initial(ROWS)}, "Recurrent: initial must be a state"),
        ({"zoneout": (0.1, 0.1, 0.1)}, {}, "Recurrent: zoneout must be one number or 2, got"),
    ],
)
def test_a_bad_input_is_refused(fields, arguments, message):
    layer, variables, x = problem()
    with pytest.raises(ValueError, match=message):
        layer.clone(**fields).apply(variables, **{"x": x, **arguments})
