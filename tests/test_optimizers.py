import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso

from jaxnets import optimizers

PARAMS = {
    "net": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)},
    "ahead": jnp.ones(2),
}


def soft_threshold(weight):
    def prox(tree, step_size):
        return jax.tree.map(lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - weight * step_size, 0), tree)

    return prox


def descend(optimizer, gradient, params, steps):
    def step(carry, _):
        updates, state = optimizer.update(gradient(carry[0]), carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1]


# ---- schedules


def test_warmup_cosine_meets_its_formula_and_its_corners(jit):
    schedule = optimizers.warmup_cosine(0.3, epochs=5, steps_per_epoch=8, warmup_epochs=1, final_fraction=0.1)
    rates = np.asarray(jit(jax.vmap(schedule))(jnp.arange(50)))
    t = np.arange(50)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.minimum(t - 8, 32) / 32)) / 2
    np.testing.assert_allclose(rates, 0.3 * np.where(t < 8, t / 8, cosine), rtol=1e-6, atol=1e-8)
    number = rates.dtype.type
    end = number(0.3) * number(0.1)
    assert [rates[0], rates[8], rates[40], rates[49]] == [0, number(0.3), end, end]
    assert optimizers.warmup_cosine(0.3, epochs=5, steps_per_epoch=8)(40) == 0


def test_poly_meets_its_formula_and_its_corners(jit):
    schedule = optimizers.poly(0.01, epochs=2.5, steps_per_epoch=4)
    rates = np.asarray(jit(jax.vmap(schedule))(jnp.arange(12)))
    np.testing.assert_allclose(rates, 0.01 * np.maximum(1 - np.arange(12) / 10, 0) ** 0.9, rtol=1e-6)
    np.testing.assert_array_equal(rates[10:], 0)
    warm = optimizers.poly(0.01, epochs=3.5, steps_per_epoch=4, warmup_epochs=1)
    np.testing.assert_array_equal(jit(jax.vmap(warm))(jnp.arange(4, 16)), rates)


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_step_decay_drops_at_the_first_step_of_its_epochs(jit, warmup):
    schedule = optimizers.step_decay(0.5, at=(1, 3), steps_per_epoch=4, factor=0.25, warmup_epochs=warmup)
    rates = np.asarray(jit(jax.vmap(schedule))(jnp.arange(16)))
    start = [0, 0.25, 0.5, 0.5] if warmup else [0.5] * 4
    np.testing.assert_array_equal(rates, start + [0.125] * 8 + [0.03125] * 4)  # powers of two: exact


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: optimizers.poly(0.0, epochs=1, steps_per_epoch=1), "poly: peak must be positive, got 0.0"),
        (lambda: optimizers.poly(1.0, epochs=0, steps_per_epoch=5), "poly: needs 0 <= warm-up < end in steps, got 0 and 0"),
        (lambda: optimizers.poly(1.0, epochs=1, steps_per_epoch=0), "poly: steps_per_epoch must be at least 1, got 0"),
        (lambda: optimizers.warmup_cosine(1.0, epochs=2, steps_per_epoch=3, warmup_epochs=2), "in steps, got 6 and 6"),
        (lambda: optimizers.poly(1.0, epochs=1, steps_per_epoch=5, power=0), "poly: power must be positive, got 0"),
        (lambda: optimizers.step_decay(1.0, at=(1, 1.1), steps_per_epoch=4), r"increasing epochs.*\(1, 1.1\)"),
        (lambda: optimizers.step_decay(1.0, at=(1,), steps_per_epoch=4, factor=0.0), "factor must be positive, got 0.0"),
        (lambda: optimizers.step_decay(1.0, at=(), steps_per_epoch=3), r"increasing epochs, at least one.*got \(\)"),
        (lambda: optimizers.step_decay(1.0, at=(3, 2), steps_per_epoch=3), r"increasing epochs.*\(3, 2\)"),
        (lambda: optimizers.step_decay(1.0, at=(3,), steps_per_epoch=3, warmup_epochs=4), "in steps, got 12 and 9"),
    ],
)  # fmt: skip
def test_an_impossible_schedule_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule()


def test_poly_ends_at_zero_and_starts_at_its_peak_for_any_length(jit):
    """Compiled, optax.polynomial_schedule ends in NaN for 218 of the lengths 1 to 399, not in 0 for 172 more (0.2.8)."""
    lengths = (3, 41, 397) if jax.config.jax_disable_jit else (*range(1, 60, 4), 397)
    schedules = [optimizers.poly(0.01, epochs=1, steps_per_epoch=length) for length in lengths]
    ends = jit(lambda last: [schedule(t) for schedule, t in zip(schedules, last, strict=True)])
    np.testing.assert_array_equal(ends([jnp.int32(length) for length in lengths]), 0)
    np.testing.assert_allclose(ends([jnp.int32(0) for _ in lengths]), 0.01, rtol=2e-7)


# ---- parameters by name


def test_weight_decay_leaves_the_vectors_of_recurrent_cells_alone():
    vectors = ("bias_candidate", "recurrent_bias", "head_bias", "scale_input", "bias_cell", "peephole_i", "nu_log", "frequency")
    params = {
        "layer_0": dict.fromkeys((*vectors, "input", "recurrent_candidate", "projection"), 1.0),
        "bias_net": {"kernel": 1.0},
    }
    mask = optimizers.decay_mask()(params)
    assert {name for name, decays in mask["layer_0"].items() if decays} == {"input", "recurrent_candidate", "projection"}
    assert mask["bias_net"]["kernel"]


def test_decay_mask_leaves_out_biases_and_scales_but_no_name_that_contains_theirs():
    mask = optimizers.decay_mask()({**PARAMS, "bias_net": {"kernel": jnp.ones(2)}})
    assert mask == {
        "net": {"Dense_0": {"kernel": True, "bias": False}, "norm": {"scale": False}},
        "head": {"kernel": True, "bias": False},
        "ahead": True,
        "bias_net": {"kernel": True},
    }
    assert optimizers.decay_mask("head")(PARAMS)["head"] == {"kernel": False, "bias": False}
    assert optimizers.decay_mask([r"Dense_\d+/kernel"])(PARAMS)["net"]["Dense_0"] == {"kernel": False, "bias": True}


def test_masked_weight_decay_shrinks_what_the_mask_says(jit):
    optimizer = optax.adamw(0.1, weight_decay=0.5, mask=optimizers.decay_mask())
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = jit(optimizer.update)(zero, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["head"]["bias"], 0)


def test_groups_multiply_the_step_of_what_they_match(jit):
    optimizer = optax.chain(optax.sgd(0.5, momentum=0.9), optimizers.groups({"head": 10.0, r"Dense_\d+/bias": 0.0}))
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = jit(optimizer.update)(gradient, optimizer.init(PARAMS), PARAMS)
    assert jax.tree.map(lambda u: float(u.ravel()[0]), updates) == {
        "net": {"Dense_0": {"kernel": -0.5, "bias": 0.0}, "norm": {"scale": -0.5}},
        "head": {"kernel": -5.0, "bias": -5.0},
        "ahead": -0.5,
    }


def test_chained_groups_compound():
    optimizer = optax.chain(optimizers.groups({"head": 10.0}), optimizers.groups({"bias": 2.0}))
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
    assert (updates["head"]["bias"] == 20).all()
    assert (updates["net"]["Dense_0"]["bias"] == 2).all()


def test_groups_refuse_a_pattern_without_parameters_and_a_parameter_with_two_patterns():
    with pytest.raises(ValueError, match=r"groups: \['haed'\] must match a parameter, got \['ahead', 'head/bias'"):
        optimizers.groups({"haed": 2.0, "head": 1.0}).init(PARAMS)
    with pytest.raises(ValueError, match=r"got head/bias that matches \['head', 'bias'\]"):
        optimizers.groups({"head": 2.0, "bias": 1.0}).init(PARAMS)


def test_groups_and_proximal_work_with_optax_tree_tools():
    optimizer = optax.chain(optax.adam(0.1), optimizers.groups({"head": 2.0}), optimizers.proximal(soft_threshold(1), 0.1))
    state = optax.tree_map_params(optimizer, lambda v: v + 1, optimizer.init(PARAMS))
    np.testing.assert_array_equal(state[0][0].mu["ahead"], 1)


# ---- proximal steps


@functools.cache
def regression():
    """64 examples of 12 features, 4 of them used; scikit-learn's Lasso of weight 0.1 in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 12))
    truth = np.where(np.arange(12) % 3 == 0, rng.normal(size=12) + 2, 0)
    y = x @ truth + 0.1 * rng.normal(size=64)
    return x, y, Lasso(alpha=0.1, fit_intercept=False, tol=1e-12).fit(x, y).coef_


def mean_squared_gradient():
    x, y = (jnp.asarray(a, jnp.float32) for a in regression()[:2])
    return lambda params: {"kernel": (x @ params["kernel"] - y) @ x / len(y)}


@pytest.mark.parametrize(
    ("optimizer", "step_size", "steps"),
    [
        (optax.sgd(0.4), 0.4, 60),
        (optax.sgd(0.2, momentum=0.5), 0.4, 60),  # the step along the gradient is rate / (1 - momentum)
        (optax.sgd(0.2, momentum=0.5, nesterov=True), 0.4, 60),
        (optax.sgd(optax.linear_schedule(0.2, 0.4, 30)), optax.linear_schedule(0.2, 0.4, 30), 80),
    ],
    ids=["ista", "momentum", "nesterov", "schedule"],
)
def test_a_proximal_step_after_gradient_descent_reaches_the_lasso_with_its_exact_zeros(jit, optimizer, step_size, steps):
    optimizer = optax.chain(optimizer, optimizers.proximal(soft_threshold(0.1), step_size))
    start = {"kernel": jnp.ones(12)}
    solution = jit(lambda p: descend(optimizer, mean_squared_gradient(), p, steps))(start)["kernel"][-1]
    expected = regression()[2]
    assert 0 < np.count_nonzero(expected) < 12
    np.testing.assert_allclose(solution, expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(solution) == 0, expected == 0)


def test_momentum_with_the_plain_rate_minimizes_a_weaker_penalty(jit):
    """The docstring's warning: sgd(0.2, 0.5) with step 0.2 and weight 0.2 solves the Lasso of weight 0.1."""
    optimizer = optax.chain(optax.sgd(0.2, momentum=0.5), optimizers.proximal(soft_threshold(0.2), 0.2))
    solution = jit(lambda p: descend(optimizer, mean_squared_gradient(), p, 60))({"kernel": jnp.ones(12)})
    np.testing.assert_allclose(solution["kernel"][-1], regression()[2], atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_the_prox_sets_to_zero_is_zero_and_no_sign_changes(jit, key, dtype):
    params = (jax.random.normal(key, (20_000,)) * 10.0 ** jnp.linspace(-3, 3, 20_000)).astype(dtype)
    updates = (0.01 * jax.random.normal(jax.random.key(1), (20_000,))).astype(dtype)
    prox, rate = soft_threshold(1.0), jnp.float32(0.3)  # a traced or scheduled step size is float32
    optimizer = optimizers.proximal(prox, rate)

    @jit
    def step(params, updates):
        new, _ = optimizer.update(updates, optimizer.init(params), params)
        return new, optax.apply_updates(params, new)

    new, stepped = step(params, updates)
    assert new.dtype == stepped.dtype == dtype
    target = np.asarray(prox(params + updates, rate), np.float64)
    result, scale = np.asarray(stepped, np.float64), np.abs(np.asarray(params, np.float64))
    assert 0.2 < (target == 0).mean() < 0.9
    np.testing.assert_array_equal(result[target == 0], 0)
    assert (result * target >= 0).all()
    assert (np.abs(result - target) <= 2 * float(jnp.finfo(dtype).eps) * (scale + np.abs(target))).all()


def test_proximal_under_a_mask_of_names_leaves_the_biases_alone(jit):
    sparse = optax.masked(optimizers.proximal(soft_threshold(1.0), 2.0), optimizers.decay_mask())
    optimizer = optax.chain(optax.sgd(0.1), sparse)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = jit(optimizer.update)(gradient, optimizer.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    np.testing.assert_array_equal(new["head"]["kernel"], 0)
    np.testing.assert_allclose(new["head"]["bias"], 0.9, rtol=1e-6)


def test_adam_with_a_proximal_step_gives_exact_zeros(jit):
    optimizer = optax.chain(optax.adam(0.02), optimizers.proximal(soft_threshold(1.0), 0.02))
    kernels = jit(lambda p: descend(optimizer, mean_squared_gradient(), p, 40))({"kernel": jnp.full(12, 0.1)})["kernel"]
    assert (np.asarray(kernels[-1]) == 0).any()


def test_one_program_trains_all_learning_rates_and_penalties(jit):
    @optax.inject_hyperparams
    def sparse(rate, weight):
        return optax.chain(
            optax.sgd(rate), optimizers.groups({"kernel": 0.5}), optimizers.proximal(soft_threshold(weight), rate)
        )

    def solve(rate, weight):
        return descend(sparse(rate, weight), mean_squared_gradient(), {"kernel": jnp.ones(12)}, 10)["kernel"][-1]

    rates, weights = jnp.array([0.1, 0.2, 0.4]), jnp.array([0.0, 0.5, 5.0])
    many = jit(jax.vmap(solve))(rates, weights)
    for i in range(3):
        np.testing.assert_allclose(many[i], solve(rates[i], weights[i]), rtol=1e-5, atol=1e-6)
    assert [np.count_nonzero(m) for m in many][::2] == [12, 0]


def test_schedules_accept_traced_peaks():
    def rates(peak):
        return jnp.stack([
            optimizers.warmup_cosine(peak, epochs=2, steps_per_epoch=4, warmup_epochs=1, final_fraction=0.1)(jnp.int32(6)),
            optimizers.poly(peak, epochs=2, steps_per_epoch=4)(jnp.int32(4)),
            optimizers.step_decay(peak, at=(1,), steps_per_epoch=4)(jnp.int32(4)),
        ])  # fmt: skip

    peaks = jnp.array([0.1, 1.0])
    np.testing.assert_allclose(jax.vmap(rates)(peaks), jnp.outer(peaks, rates(1.0)), rtol=1e-6)


def test_proximal_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="proximal: step_size must be positive, got 0"):
        optimizers.proximal(soft_threshold(1.0), 0.0)
    optimizer = optimizers.proximal(soft_threshold(1.0), 1.0)
    with pytest.raises(ValueError, match=r"proximal: update.* needs params, got None"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


# ---- update rules written out


def test_the_perceptron_makes_no_more_mistakes_than_its_theorem_allows(jit, key):
    """Novikoff: at most (R / gamma)^2 mistakes in all, whatever the order; then it separates the data."""
    rng = np.random.default_rng(2)  # 18 mistakes in five epochs; the bound is 262
    x, separator = np.c_[rng.normal(size=(60, 2)) + 2, np.ones(60)], np.array([0.6, 0.7, -2.6])
    x = x[np.argsort(-np.abs(x @ separator))[:16]]  # those far from the boundary
    radius, margin = np.linalg.norm(x, axis=1).max(), np.abs(x @ separator).min() / np.linalg.norm(separator)
    inputs, targets = jnp.asarray(x[:, :2], jnp.float32), jnp.asarray(x @ separator > 0, jnp.float32)[:, None]

    def learn(layer, example):
        new = optimizers.perceptron_update(layer, *example)
        return new, new["bias"][0] != layer["bias"][0]

    def epoch(layer, _):
        layer, mistakes = jax.lax.scan(learn, layer, (inputs, targets))
        return layer, mistakes.sum()

    start = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
    layer, mistakes = jit(lambda p: jax.lax.scan(epoch, p, length=7))(start)
    assert 10 < mistakes.sum() <= (radius / margin) ** 2
    np.testing.assert_array_equal(mistakes[-2:], 0)
    np.testing.assert_array_equal(inputs @ layer["kernel"] + layer["bias"][None] > 0, targets == 1)


def test_a_perceptron_update_is_its_formula_for_each_unit():
    layer = {"kernel": jnp.array([[1.0, -1.0, 0.0], [0.0, 2.0, 0.0]]), "bias": jnp.array([0.0, 1.0, 0.0])}
    new = optimizers.perceptron_update(layer, jnp.array([3.0, 1.0]), jnp.array([0, 1, 0]), learning_rate=0.5)
    # Outputs H([3, 0, 0]) = [1, 0, 0]: the first fires wrongly, the second (z = 0) not, the third rests rightly.
    np.testing.assert_array_equal(new["kernel"], [[-0.5, 0.5, 0.0], [-0.5, 2.5, 0.0]])
    np.testing.assert_array_equal(new["bias"], [-0.5, 1.5, 0.0])
    for narrow in (jnp.array([0, 1, 0], jnp.uint8), jnp.array([False, True, False])):  # 0 - 1 would wrap, or raise
        same = optimizers.perceptron_update(layer, jnp.array([3.0, 1.0]), narrow, learning_rate=0.5)
        jax.tree.map(np.testing.assert_array_equal, same, new)


def rosenbrock_gradient(params):
    return jax.grad(lambda p: 0.1 * jnp.sum(10 * (p["y"] - p["x"] ** 2) ** 2 + (1 - p["x"]) ** 2))(params)


START = {"x": jnp.array([-1.0, 0.5]), "y": jnp.array([1.2, 0.3])}


def trajectory(step, learning_rate, momentum, steps=15):
    def body(state, _):
        state = step(rosenbrock_gradient, state, learning_rate=learning_rate, momentum=momentum)
        return state, state

    return jax.lax.scan(body, optimizers.momentum_init(START), length=steps)[1]


def assert_same(actual, expected, rtol=2e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-6), actual, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_heavy_ball_is_optax_sgd(jit, momentum):
    expected = jit(lambda p: descend(optax.sgd(0.02, momentum), rosenbrock_gradient, p, 15))(START)
    states = jit(lambda: trajectory(optimizers.momentum_step, 0.02, momentum))()
    assert_same(states.params, expected)


def test_nesterov_looks_where_optax_is(jit):
    """A change of variables: optax's parameters are the look-ahead point theta + mu v, exactly in real arithmetic."""
    expected = jit(lambda p: descend(optax.sgd(0.02, 0.9, nesterov=True), rosenbrock_gradient, p, 15))(START)
    states = jit(lambda: trajectory(optimizers.nesterov_step, 0.02, 0.9))()
    assert_same(optimizers.look_ahead(states, 0.9), expected)
    assert not np.allclose(states.params["x"], expected["x"], atol=1e-3)


def test_the_heavy_ball_is_optax_bit_for_bit_where_scaling_is_exact():
    expected = descend(optax.sgd(1 / 64, 0.5), rosenbrock_gradient, START, 10)
    assert_same(trajectory(optimizers.momentum_step, 1 / 64, 0.5, 10).params, expected, rtol=0)


def test_the_rules_keep_bfloat16():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), START)
    for step in (optimizers.momentum_step, optimizers.nesterov_step):
        state = optimizers.momentum_init(params)
        state = step(rosenbrock_gradient, state, learning_rate=jnp.float32(0.1), momentum=jnp.float32(0.9))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("bfloat16")}
    layer = {"kernel": jnp.zeros((2, 1), jnp.bfloat16), "bias": jnp.zeros(1, jnp.bfloat16)}
    layer = optimizers.perceptron_update(layer, jnp.ones(2), jnp.ones(1))
    assert {leaf.dtype for leaf in layer.values()} == {jnp.dtype("bfloat16")}


def test_a_step_with_everything_lowers_for_every_platform():
    schedule = optimizers.warmup_cosine(0.1, epochs=3, steps_per_epoch=10, warmup_epochs=1)
    optimizer = optax.chain(
        optax.adamw(schedule, mask=optimizers.decay_mask()),
        optimizers.groups({"head": 10.0}),
        optax.masked(optimizers.proximal(soft_threshold(1e-3), schedule), optimizers.decay_mask()),
    )
    state = optimizer.init(PARAMS)
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(optimizer.update), platforms=("cpu", "cuda", "tpu"))
        assert exported(PARAMS, state, PARAMS).platforms == ("cpu", "cuda", "tpu")
