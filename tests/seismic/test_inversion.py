"""The pieces of an inversion against closed forms: with the wavelet `[1]` every answer is a threshold of the data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxnets.proximal import fista, linear, prox
from jaxnets.seismic import inversion, modelling, wavelets
from jaxnets.types import InputError

IMPULSE = jnp.ones(1)
rng = np.random.default_rng(0)
TRACE = jnp.asarray(rng.standard_normal(40), jnp.float32)
TRACES = jnp.asarray(rng.standard_normal((3, 40)), jnp.float32)
WAVELET = wavelets.ricker(wavelets.time_axis(21, 0.004), 25.0)
BACKGROUND = jnp.asarray(5e6 * np.exp(np.linspace(0, 0.3, 40)), jnp.float32)
ANGLES = jnp.asarray([0.0, 15.0, 30.0])
ELASTIC = modelling.Elastic(2500 + 10 * jnp.arange(40.0), 1200 + 6 * jnp.arange(40.0), 2200 + 2 * jnp.arange(40.0))
compiled_anyway = functools.partial(jax.disable_jit, False)  # for what exists with jit only: lowering, fast loops


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def test_spikes_of_an_impulse_are_the_soft_threshold(jit):
    result = jit(lambda y: inversion.solve(inversion.spikes(y, IMPULSE), 0.5))(TRACE)
    np.testing.assert_allclose(result.model, soft(np.asarray(TRACE), 0.5), atol=1e-6)
    np.testing.assert_allclose(result.predicted + result.residual, TRACE, atol=1e-6)
    assert int(result.solution.status) == fista.CONVERGED


def test_multichannel_spikes_of_an_impulse_are_the_block_threshold():
    result = jax.jit(lambda y: inversion.solve(inversion.multichannel_spikes(y, IMPULSE), 0.8))(TRACES)
    size = np.linalg.norm(TRACES, axis=0)
    np.testing.assert_allclose(result.model, np.asarray(TRACES) * np.maximum(1 - 0.8 / size, 0), atol=1e-6)


def test_debiasing_is_least_squares_on_the_support():
    rule = inversion.relative(0.3)
    with compiled_anyway():
        result = jax.jit(lambda y: inversion.solve(inversion.spikes(y, WAVELET), rule, debias=60, max_steps=100))(TRACE)
    a = np.asarray(linear.dense(linear.convolution(WAVELET, TRACE)), np.float64)
    on = np.asarray(result.solution.x) != 0
    assert 2 < on.sum() < 20
    expected = np.zeros(40)
    expected[on] = np.linalg.lstsq(a[:, on], np.asarray(TRACE, np.float64), rcond=None)[0]
    np.testing.assert_allclose(result.model, expected, atol=2e-3)


@pytest.mark.parametrize("regularize", [inversion.blocky, inversion.damped])
def test_debiasing_without_a_support_is_refused(regularize):
    """Total variation and squares leave no zeros: least squares on everything would undo the regularization."""
    problem = inversion.poststack(TRACE, WAVELET, BACKGROUND, regularize=regularize)
    with pytest.raises(ValueError, match="debias must be 0 where the term selects no support"):
        inversion.solve(problem, 0.1, debias=3)


def test_every_trace_of_a_vmap_is_its_own_problem():
    def solve(y):
        return inversion.solve(inversion.spikes(y, WAVELET), inversion.relative(0.4), max_steps=100)

    with compiled_anyway():
        batch, one = jax.jit(jax.vmap(solve))(TRACES), jax.jit(solve)
        alone = [one(y) for y in TRACES[:2]]
    for i, single in enumerate(alone):
        np.testing.assert_allclose(batch.model[i], single.model, atol=2e-5)
        np.testing.assert_allclose(batch.weight[i], single.weight, rtol=1e-5)
        assert abs(int(batch.solution.steps[i]) - int(single.solution.steps)) <= 3
    assert len(set(batch.solution.steps.tolist())) > 1


def test_a_weight_of_lambda_max_gives_zero():
    result = jax.jit(lambda y: inversion.solve(inversion.spikes(y, WAVELET), inversion.relative(1.0)))(TRACE)
    assert not np.any(result.model)


def test_a_weight_has_the_gradient_of_the_solution():
    """Of `|soft(y, w)|^2` it is `-2 |soft(y, w)|_1`."""

    def energy(w):
        return jnp.sum(inversion.solve(inversion.spikes(TRACE, IMPULSE), w).model ** 2)

    slope = jax.jit(jax.grad(energy))(0.5)
    np.testing.assert_allclose(slope, -2 * np.abs(soft(np.asarray(TRACE), 0.5)).sum(), rtol=1e-4)


def test_the_discrepancy_is_met():
    """The residual of a soft threshold is `min(|y|, w)`, so the weight follows from the norm without any solver."""
    rule = inversion.discrepancy(noise_norm=2.0, tolerance=1e-3)
    with compiled_anyway():
        result = jax.jit(lambda y: inversion.solve(inversion.spikes(y, IMPULSE), rule))(TRACE)
    np.testing.assert_allclose(np.linalg.norm(result.residual), 2.0, rtol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(np.minimum(np.abs(TRACE), float(result.weight))), 2.0, rtol=2e-3)


def test_the_discrepancy_of_each_trace_is_its_own_and_stops_at_the_nearer_end():
    std = jnp.asarray([0.2, 0.5, 10.0])
    solve = jax.jit(jax.vmap(lambda y, s: inversion.solve(inversion.spikes(y, IMPULSE), inversion.discrepancy(s, steps=14))))
    with compiled_anyway():
        result = solve(TRACES, std)
    np.testing.assert_allclose(np.linalg.norm(result.residual, axis=-1)[:2], std[:2] * np.sqrt(40), rtol=0.011)
    np.testing.assert_allclose(result.weight[2], np.abs(TRACES[2]).max(), rtol=0.01)


def test_only_live_samples_are_data():
    """The discrepancy is that of the live traces; held-out samples among dead ones are not counted twice."""
    live, keep = jnp.asarray([True, False, True]), jnp.arange(40) % 2 > 0
    problem = inversion.interpolation(TRACES, live, synthesis=linear.identity(linear.Structure.of(TRACES)))
    assert (int(problem.count), inversion.spikes(TRACES, IMPULSE).count) == (80, 120)
    assert int(problem.masked(jnp.broadcast_to(keep, (3, 40))).count) == 40
    with compiled_anyway():
        result = jax.jit(lambda: inversion.solve(problem, inversion.discrepancy(0.3, tolerance=1e-3)))()
    np.testing.assert_allclose(np.linalg.norm(result.residual), 0.3 * np.sqrt(80), rtol=2e-3)


def test_sure_is_steins_estimate_of_soft_thresholding():
    """`sum min(y^2, w^2) - n s^2 + 2 s^2 |{|y| > w}|`: with signs as the probe exact, where no sample is near the threshold."""
    y, w, std = np.asarray(TRACE), 0.5, 0.3
    signs = jnp.asarray(np.where(rng.random(40) > 0.5, 1, -1), jnp.float32)
    criterion = inversion.sure(std, signs, step=1e-3)
    value, x = criterion(inversion.spikes(TRACE, IMPULSE), lambda problem: jnp.asarray(soft(np.asarray(problem.data), w)))
    expected = np.minimum(y**2, w**2).sum() - 40 * std**2 + 2 * std**2 * (np.abs(y) > w).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    np.testing.assert_allclose(x, soft(y, w), atol=1e-6)


def test_tuning_by_held_out_samples_beats_every_weight_of_a_fine_grid():
    """Smooth data with half the samples of each trace hidden: the criterion has an interior minimum."""
    truth = linear.convolution(WAVELET, TRACES)(jnp.zeros((3, 40)).at[:, 10].set(1.0).at[:, 25].set(-0.7))
    data = truth + 0.1 * TRACES
    keep = jnp.asarray(np.random.default_rng(1).random((3, 40)) > 0.3)
    problem, criterion = inversion.spikes(data, WAVELET), inversion.held_out(keep)
    options = {"max_steps": 200, "stop": fista.residual(1e-4)}

    def error(weight):
        return criterion(problem, lambda problem: inversion.solve(problem, weight, **options).solution.x)[0]

    with compiled_anyway():
        result = jax.jit(
            lambda: inversion.solve(problem, inversion.tuned(criterion, floor=0.01, count=3, steps=5), **options)
        )()
        top = float(problem.largest_weight())
        errors = jax.jit(jax.vmap(error))(jnp.asarray(top * np.geomspace(0.01, 1, 25), jnp.float32))
        found = float(jax.jit(error)(result.weight))
    assert 1 <= int(np.argmin(errors)) < 24
    assert found <= 1.02 * float(np.min(errors))
    assert found < 0.97 * min(float(errors[0]), float(errors[8]), float(errors[16]))  # the three of the path


def test_tuning_by_sure_descends_to_its_minimum_of_either_sign():
    """A noise level stated too high makes the estimate negative: the least of a fine grid is found below the path's three."""
    draws = np.random.default_rng(2).standard_normal((2, 320))
    data = jnp.asarray(np.where(np.arange(320) % 16 == 0, 1.5, 0) + 0.3 * draws[0], jnp.float32)
    problem, criterion = inversion.spikes(data, IMPULSE), inversion.sure(0.4, jnp.asarray(np.sign(draws[1]), jnp.float32))
    with compiled_anyway():
        rule = inversion.tuned(criterion, floor=0.05, count=3, steps=6)
        weight = float(jax.jit(lambda: inversion.solve(problem, rule, max_steps=60).weight)())

    def estimate(w):
        return float(criterion(problem, lambda problem: jnp.asarray(soft(np.asarray(problem.data), w)))[0])

    top = float(jnp.max(jnp.abs(data)))
    least, path = min(map(estimate, np.geomspace(0.05 * top, top, 40))), [estimate(top * 0.05 ** (i / 3)) for i in (1, 2, 3)]
    assert max(least, estimate(weight)) < 0
    assert estimate(weight) - least < 0.3 * (min(path) - least)


def test_held_out_samples_are_not_seen():
    keep = jnp.arange(40) % 3 > 0
    problem = inversion.spikes(TRACE, WAVELET)
    other = dataclasses.replace(problem, data=jnp.where(keep, TRACE, 7.0))
    z = jnp.ones(40)
    np.testing.assert_array_equal(problem.masked(keep).residual(z), other.masked(keep).residual(z))
    np.testing.assert_array_equal(np.asarray(problem.masked(keep).residual(z))[~np.asarray(keep)], 0)


# Impedance


def test_damped_impedance_is_the_normal_equations():
    solve = jax.jit(lambda y: inversion.solve(inversion.poststack(y, WAVELET, BACKGROUND), 0.05, max_steps=100))
    with compiled_anyway():
        result = solve(0.1 * TRACE)
    f = np.asarray(linear.dense(modelling.poststack_operator(WAVELET, (40,))), np.float64)
    background = np.log(np.asarray(BACKGROUND, np.float64))
    delta = np.linalg.solve(f.T @ f + 0.05 * np.eye(40), f.T @ (0.1 * np.asarray(TRACE) - f @ background))
    np.testing.assert_allclose(np.log(result.model), background + delta, atol=1e-4)
    np.testing.assert_allclose(result.predicted, f @ (background + delta), atol=1e-4)


def test_sparse_steps_and_blocky_are_one_objective_in_two_variables():
    steps = inversion.poststack(TRACE, WAVELET, BACKGROUND, regularize=inversion.sparse_steps)
    blocky = inversion.poststack(TRACE, WAVELET, BACKGROUND, regularize=inversion.blocky)
    z = 0.1 * TRACE.at[0].set(0.0)
    m = np.log(BACKGROUND[0]) + jnp.cumsum(z)
    np.testing.assert_allclose(steps.smooth()(z), blocky.smooth()(m), rtol=1e-4)
    np.testing.assert_allclose(steps.term.value(z), blocky.term.value(m), rtol=1e-4)
    np.testing.assert_allclose(steps.report(steps, z), jnp.exp(m), rtol=1e-5)


def test_the_trend_pulls_to_the_background():
    """Without data the prior alone decides: the background is its minimum, and a shifted one costs."""
    problem = inversion.poststack(TRACE, WAVELET, BACKGROUND, regularize=functools.partial(inversion.blocky, trend=0.5))
    prior = fista.least_squares(problem.prior.operator, problem.prior.target)
    logs = jnp.log(BACKGROUND)
    assert float(prior(logs)) < 1e-6
    assert float(prior(logs + 0.1)) > 1e-3


def test_prestack_predicts_the_weak_contrast_reflections():
    """At logs of small steps, the gather is the wavelet on `modelling.aki_richards` of each interface."""
    rock = jax.tree.map(lambda x: x * (1 + 0.02 * (jnp.arange(40) > 20)), ELASTIC)
    gather = jnp.zeros((3, 40))
    problem = inversion.prestack(gather, IMPULSE, ELASTIC, ANGLES, covariance=jnp.diag(jnp.asarray([4.0, 1.0, 0.25])))
    z = linear.matrix(jnp.diag(jnp.asarray([0.5, 1.0, 2.0])), (3, 40), axis=-2)(jnp.log(jnp.stack(rock) / jnp.stack(ELASTIC)))
    upper, lower = (jax.tree.map(lambda x, s=s: x[s], rock) for s in (slice(None, -1), slice(1, None)))
    expected = modelling.aki_richards(upper, lower, ANGLES).T
    np.testing.assert_allclose(problem.predict(z)[:, :-1], expected, atol=2e-4)
    for found, true in zip(problem.report(problem, z), rock, strict=True):
        np.testing.assert_allclose(found, true, rtol=1e-4)


# Processing


def test_blending_by_whole_samples_shifts_and_adds(key):
    sources = jnp.asarray(rng.standard_normal((2, 3, 16)), jnp.float32)
    samples = np.asarray([[0, 0, 0], [2, -3, 20]])
    operator = inversion.blending(jnp.asarray(samples * 0.004, jnp.float32), 16, 0.004)
    expected = np.asarray(sources[0]).copy()
    expected[0, 2:] += sources[1, 0, :-2]
    expected[1, :-3] += sources[1, 1, 3:]  # the third one fires after the record
    np.testing.assert_allclose(operator(sources), expected, atol=1e-5)
    assert float(linear.dot_test(operator, key)) < 1e-5


def test_patched_fk_synthesis_undoes_its_analysis():
    section = jnp.asarray(rng.standard_normal((10, 24)), jnp.float32)
    synthesis = inversion.patched_fk((10, 24), size=(6, 8))
    np.testing.assert_allclose(synthesis(synthesis.adjoint(section)), section, atol=1e-5)


def test_interpolation_does_not_read_dead_traces():
    live = jnp.asarray([True, False, True])
    poisoned = TRACES.at[1].set(jnp.nan)
    a, b = inversion.interpolation(poisoned, live), inversion.interpolation(TRACES, live)
    np.testing.assert_array_equal(a.data, b.data)
    assert np.all(np.isfinite(a.smooth().gradient(a.initial)))


def test_demultiple_keeps_what_the_radon_panel_does_not_explain():
    offsets, curvature = jnp.asarray([0.0, 100.0, 200.0]), jnp.asarray([0.0, 1e-6])
    problem = inversion.demultiple(TRACES, offsets, curvature, 0.004, cutoff=5e-7)
    panel = jnp.zeros((2, 40)).at[0, 10].set(1.0).at[1, 20].set(1.0)
    multiple = problem.forward(jnp.zeros((2, 40)).at[1, 20].set(1.0))
    np.testing.assert_allclose(problem.report(problem, panel), TRACES - multiple, atol=1e-6)


def problems():
    live = jnp.asarray([True, False, True])
    steps = functools.partial(inversion.sparse_steps, term=prox.group_l21(1.0, axis=-2))
    return {
        "spikes": lambda: inversion.spikes(TRACE, WAVELET),
        "multichannel": lambda: inversion.multichannel_spikes(TRACES, WAVELET),
        "poststack damped": lambda: inversion.poststack(TRACES, WAVELET, jnp.broadcast_to(BACKGROUND, (3, 40))),
        "poststack blocky": lambda: inversion.poststack(TRACE, WAVELET, BACKGROUND, regularize=inversion.blocky),
        "prestack": lambda: inversion.prestack(TRACES, WAVELET, ELASTIC, ANGLES, covariance=jnp.eye(3), regularize=steps),
        "interpolation": lambda: inversion.interpolation(TRACES, live),
        "demultiple": lambda: inversion.demultiple(TRACES, 100 * jnp.arange(3.0), jnp.asarray([0.0, 1e-6]), 0.004, cutoff=5e-7),
        "deblending": lambda: inversion.deblending(TRACES, jnp.asarray([[0.0, 0, 0], [0.02, 0.05, 0.01]]), 0.004),
    }


RULES = {
    "spikes": inversion.discrepancy(0.5, steps=2),
    "multichannel": inversion.tuned(inversion.held_out(TRACES > -1), count=2, steps=1),
    "poststack damped": inversion.tuned(inversion.sure(0.5, TRACES), count=2, steps=1),
}


@pytest.mark.parametrize("name", problems())
def test_every_inversion_lowers_for_every_platform(name):
    rule, debias = RULES.get(name, inversion.relative(0.1)), 2 * (name == "demultiple")

    def run(scale):
        problem = problems()[name]()
        problem = dataclasses.replace(problem, data=jax.tree.map(lambda leaf: scale * leaf, problem.data))
        return inversion.solve(problem, rule, debias=debias, max_steps=20).model

    with compiled_anyway():
        exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(1.0)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    shapes = {leaf.shape[-1] for leaf in exported.out_avals}
    assert shapes == {40}


# Bad input


def test_a_nan_names_its_trace():
    bad = TRACES.at[1, 3:6].set(jnp.nan)
    with pytest.raises(InputError, match=r"spikes: trace 1 has 3 NaN or infinite samples of 40\."):
        inversion.spikes(bad, WAVELET)
    with pytest.raises(InputError, match=r"data: trace 0 has 1 "):
        inversion.check_traces(TRACE.at[0].set(jnp.inf))
    with pytest.raises(InputError, match="demultiple: trace 1"):
        inversion.demultiple(bad, jnp.arange(3.0), jnp.ones(2), 0.004, cutoff=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inversion.solve(inversion.spikes(TRACE, WAVELET), -0.1), "weight must be non-negative"),
        (lambda: inversion.solve(inversion.spikes(TRACE, WAVELET), float("nan")), "weight must be non-negative"),
        (lambda: inversion.solve(inversion.spikes(TRACE, WAVELET), 0.1, debias=-1), "debias must be"),
        (lambda: inversion.relative(0.0), "fraction must be in"),
        (lambda: inversion.relative(5.0), "fraction must be in"),
        (lambda: inversion.discrepancy(), "either noise_std or noise_norm"),
        (lambda: inversion.discrepancy(-1.0), "noise_std must be positive"),
        (lambda: inversion.discrepancy(1.0, tolerance=-1.0), "tolerance must be positive"),
        (lambda: inversion.tuned(inversion.held_out(TRACE > 0), floor=2.0), "floor must be in"),
        (lambda: inversion.sure(0.0, TRACE), "noise_std must be positive"),
        (
            lambda: inversion.solve(inversion.spikes(TRACE, WAVELET), inversion.tuned(inversion.sure(1.0, TRACES))),
            r"probe must have the shape of the data, \(40,\), got \(3, 40\)",
        ),
        (lambda: inversion.poststack(TRACE, WAVELET, BACKGROUND[1:]), "background"),
        (lambda: inversion.poststack(TRACE, WAVELET, -BACKGROUND), "background must be positive"),
        (
            lambda: inversion.poststack(
                TRACE, WAVELET, BACKGROUND, regularize=functools.partial(inversion.blocky, trend_samples=4)
            ),
            "odd",
        ),
        (lambda: inversion.spikes(TRACE, WAVELET[1:]), "even length"),
        (lambda: inversion.interpolation(TRACES, jnp.ones(2, bool)), "live"),
        (lambda: inversion.interpolation(TRACES, jnp.zeros(3, bool)), "at least one"),
        (lambda: inversion.demultiple(TRACES, jnp.ones(4), jnp.ones(2), 0.004, cutoff=0.5), "offsets"),
        (lambda: inversion.demultiple(TRACES, jnp.ones(3), jnp.ones(2), 0.0, cutoff=0.5), "interval must be positive"),
        (lambda: inversion.deblending(TRACES, jnp.ones((2, 4)), 0.004), "delays"),
        (lambda: inversion.deblending(TRACES, jnp.ones((2, 3)), 0.0), "interval must be positive"),
        (lambda: wavelets.check_interval(wavelets.time_axis(21, 0.004), 0.002), "sampled every 0.004 s"),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    # The tests' run-time type check finds some of the shapes first.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=message):
        call()
