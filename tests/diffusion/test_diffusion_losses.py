"""Losses of denoising: by hand, in the contract of the training step, their weights and times, the bound's parts."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxnets.data import batches
from jaxnets.diffusion import losses, parametrization, schedules
from jaxnets.training import state, steps

LINEAR, FLOW = schedules.linear(), schedules.flow()
KEY = jax.random.key(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    x: Any
    y: Any = None
    weight: Any = None


class Network(nn.Module):
    """A linear map of x, the time and a label; twice the channels where asked for."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x, t, label=None, previous=None, *, train=False):
        parts = [x, t[:, None]] + ([] if label is None else [jax.nn.one_hot(label, 4)])
        parts += [] if previous is None else [previous]
        return nn.Dense(self.outputs)(jnp.concatenate(parts, -1))


def batch(count=6, **fields):
    x = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    return Batch(jnp.asarray(x), jnp.arange(count) % 3, **fields)


def recorder(output=lambda x, t: 0 * x):
    """`(apply, seen)`: a network without parameters that keeps what it was shown."""
    seen = []

    def apply(variables, x, t, *, train, rngs=None, mutable=None, **conditions):
        seen.append((x, t, conditions, train, rngs))
        return output(x, t) if mutable is None else (output(x, t), {})

    return apply, seen


def value(loss_fn, data, key=KEY, params=None):
    total, (weight, metrics, carry) = loss_fn({} if params is None else params, {}, data, key)
    assert metrics == {}
    assert carry == {}
    return float(total) / float(weight)


# ---- the value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", parametrization.PREDICTIONS)
def test_the_loss_is_the_mean_square_of_what_the_network_misses(prediction):
    """By hand from what the network was shown: the noise is recovered from x and the time, with weights per example."""
    schedule, data = LINEAR, batch(weight=jnp.arange(6.0))
    apply, seen = recorder(lambda x, t: 0.1 * x)
    got = value(losses.denoising(apply, schedule, prediction), data)
    shown, told, conditions, train, rngs = seen[0]
    assert train
    assert conditions == {}
    assert "dropout" in rngs
    if prediction == "edm":  # shown x / hypot(σ, α s) and log(ρ) / 4
        t = schedule.time(jnp.exp(4 * told))
        level = schedule(t)
        x = shown * jnp.hypot(level.sigma, 0.5 * level.alpha)[:, None]
    else:
        x, t, level = shown, told, schedule(told)
    noise = (x - level.alpha[:, None] * data.x) / level.sigma[:, None]
    aim = parametrization.target(data.x, noise, t, schedule, prediction)
    expected = np.sum(np.arange(6) * np.square(0.1 * shown - aim).mean(1)) / 15
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_the_network_sees_each_example_with_its_own_noise_and_time():
    apply, seen = recorder()
    data = Batch(jnp.zeros((4000, 3)))
    value(losses.denoising(apply, LINEAR, "epsilon"), data)
    x, t = seen[0][:2]
    noise = np.asarray(x / LINEAR(t).sigma[:, None])
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06
    assert len(np.unique(t)) > 3990  # float32 repeats a few


def test_a_training_step_lowers_the_loss_in_the_contract_of_the_steps(jit):
    """By `make_train_step`; the metric is the hand-made value, the gradient that of the mean."""
    network, data = Network(), batch()
    loss_fn = losses.denoising(network.apply, FLOW, "v")
    optimizer = optax.sgd(0.1)
    params = network.init(jax.random.key(0), data.x, jnp.zeros(6))["params"]
    step = jit(steps.make_train_step(loss_fn, optimizer))
    begin = state.from_params(params, optimizer, KEY)
    after, metrics = step(begin, data)
    total, (weight, _, _) = loss_fn(params, {}, data, jax.random.fold_in(KEY, 0))
    np.testing.assert_allclose(metrics["loss"], total / weight, rtol=1e-5)
    gradient = jax.grad(lambda p: loss_fn(p, {}, data, jax.random.fold_in(KEY, 0))[0] / 6)(params)
    for got, start, slope in zip(*map(jax.tree.leaves, (after.params, params, gradient)), strict=True):
        np.testing.assert_allclose(got, start - 0.1 * slope, rtol=1e-4, atol=1e-6)


def test_evaluation_is_deterministic_and_training_is_not():
    network, data = Network(), batch()
    params = network.init(jax.random.key(0), data.x, jnp.zeros(6))["params"]
    loss_fn = losses.denoising(network.apply, FLOW, "v")
    first, again = (value(loss_fn, data, None, params) for _ in range(2))
    assert first == again
    assert value(loss_fn, data, jax.random.key(1), params) != value(loss_fn, data, jax.random.key(2), params)
    apply, seen = recorder()
    value(losses.denoising(apply, FLOW, "v", inputs={"label": "y"}, unlabeled=0.9), data, None)
    assert not seen[0][3]
    np.testing.assert_array_equal(seen[0][2]["label"], data.y)  # nothing is hidden


def test_flow_matching_is_the_velocity_of_straight_lines():
    """`|u - (ε - x_0)|²` at `x = (1 - t) x_0 + t ε`."""
    apply, seen = recorder(lambda x, t: jnp.sin(x))
    data = batch()
    got = value(losses.flow_matching(apply), data)
    x, t = seen[0][0], seen[0][1][:, None]
    noise = (x - (1 - t) * data.x) / t
    np.testing.assert_allclose(got, jnp.square(jnp.sin(x) - (noise - data.x)).mean(), rtol=1e-4)


# ---- weights --------------------------------------------------------------------------------------------------------

WEIGHTS = {  # weight, closed form of the signal to noise ratio r
    "snr": (losses.snr(), lambda r: r),
    "truncated_snr": (losses.truncated_snr(), lambda r: max(r, 1)),
    "min_snr": (losses.min_snr(), lambda r: min(r, 5)),
    "p2": (losses.p2(1.0, 0.5), lambda r: r / (1 + r) ** 0.5),
    "edm": (losses.edm(0.5), lambda r: r + 4),
    "sigmoid": (losses.sigmoid(-3.0), lambda r: r / (1 + r * math.exp(3))),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_their_formulas(name):
    """Of the error of the data: `sigmoid` is `r sigmoid(b - log r)`, the error of epsilon times the sigmoid."""
    weight, formula = WEIGHTS[name]
    ratios = np.array([1e-4, 0.1, 1.0, 4.9, 5.1, 300.0])
    np.testing.assert_allclose(weight(jnp.log(jnp.asarray(ratios))), [formula(r) for r in ratios], rtol=1e-5)
    assert np.isfinite(weight(jnp.float32(-40.0)))


def test_p2_of_no_power_is_the_error_of_epsilon():
    logs = jnp.array([-3.0, 0.0, 4.0])
    np.testing.assert_allclose(losses.p2(1.0, 0.0)(logs), losses.snr()(logs), rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
def test_one_weight_is_one_loss_whatever_the_network_predicts(name):
    """Networks that mean the same data have the same loss."""
    data = batch(40)

    def means(x, t):
        return jnp.tanh(x)

    values = []
    for prediction in parametrization.PREDICTIONS:

        def network(shown, seen, prediction=prediction):
            if prediction != "edm":
                return parametrization.from_x0(means(shown, seen), shown, seen, LINEAR, prediction)
            t = LINEAR.time(jnp.exp(4 * seen))
            x = shown * jnp.hypot(LINEAR(t).sigma, 0.5 * LINEAR(t).alpha)[:, None]
            return parametrization.from_x0(means(x, t), x, t, LINEAR, prediction)

        loss_fn = losses.denoising(
            recorder(network)[0], LINEAR, prediction, weight=WEIGHTS[name][0], times=losses.logit_normal()
        )
        values.append(value(loss_fn, data))
    np.testing.assert_allclose(values, values[0], rtol=2e-3)
    assert values[0] > 0


@pytest.mark.parametrize(("prediction", "name"), [("epsilon", "snr"), ("edm", "edm")])
def test_the_plain_loss_of_a_prediction_is_its_own_weight(prediction, name):
    apply, _ = recorder(lambda x, t: jnp.tanh(x))
    plain, weighted = (value(losses.denoising(apply, LINEAR, prediction, weight=w), batch()) for w in (None, WEIGHTS[name][0]))
    np.testing.assert_allclose(weighted, plain, rtol=1e-3)


# ---- times ----------------------------------------------------------------------------------------------------------

TIMES = {
    "uniform": (losses.uniform(), FLOW, lambda t: t, stats.uniform()),
    "low_discrepancy": (losses.low_discrepancy(), FLOW, lambda t: t, stats.uniform()),
    "log_normal": (losses.log_normal(), schedules.edm(1e4), np.log, stats.norm(-1.2, 1.2)),
    "logit_normal": (losses.logit_normal(0.3, 0.8), FLOW, lambda t: np.log(t / (1 - t)), stats.norm(0.3, 0.8)),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_are_drawn_from_their_distribution(name):
    draw, schedule, of_time, distribution = TIMES[name]
    t = np.asarray(draw(KEY, schedule, 4000), np.float64)
    assert t.shape == (4000,)
    assert (t > 0).all()
    assert (t <= schedule.end).all()
    assert stats.kstest(of_time(t), distribution.cdf).pvalue > 1e-3


def test_low_discrepancy_has_one_time_in_each_share():
    t = np.asarray(losses.low_discrepancy()(KEY, FLOW, 50))
    assert sorted(np.ceil(t * 50 - 1e-5).astype(int)) == list(range(1, 51)) or np.ptp(np.diff(np.sort(t))) < 1e-5
    assert len({float(losses.low_discrepancy()(jax.random.key(i), FLOW, 2)[0]) for i in range(5)}) == 5


@pytest.mark.parametrize("name", TIMES)
def test_times_of_a_table_are_whole(name):
    table = schedules.linear(100)
    t = np.asarray(TIMES[name][0](KEY, table, 5000))
    np.testing.assert_array_equal(t, np.round(t))
    assert t.min() >= 1
    assert t.max() <= 100
    if name == "uniform":
        assert stats.chisquare(np.bincount(t.astype(int), minlength=101)[1:]).pvalue > 1e-3


# ---- conditions -----------------------------------------------------------------------------------------------------


def test_the_share_of_unlabeled_examples_is_hidden_from_the_network():
    apply, seen = recorder()
    data = Batch(jnp.zeros((4000, 1)), jnp.arange(4000) % 3)
    value(losses.denoising(apply, FLOW, "v", inputs={"label": "y"}, unlabeled=0.2), data)
    label = np.asarray(seen[0][2]["label"])
    hidden = label == -1
    assert abs(hidden.mean() - 0.2) <= 4 * math.sqrt(0.2 * 0.8 / 4000)
    np.testing.assert_array_equal(label[~hidden], np.asarray(data.y)[~hidden])


def test_self_conditioning_shows_the_networks_own_data_without_a_gradient():
    """Of the share of batches; the guess is that of `previous`-less prediction, and evaluation has none."""
    data = batch()
    network = Network()
    shown = network.init(jax.random.key(0), data.x, jnp.zeros(6), previous=data.x)["params"]

    def apply(variables, x, t, *, previous=None, **options):
        previous = jnp.zeros_like(x) if previous is None else previous
        return network.apply(variables, x, t, previous=previous, **options)

    plain, always = (losses.denoising(apply, FLOW, "x0", self_conditioning=share) for share in (0.0, 1.0))
    assert value(plain, data, KEY, shown) != value(always, data, KEY, shown)
    assert value(plain, data, None, shown) == value(always, data, None, shown)
    kernel = shown["Dense_0"]["kernel"]
    told = {"Dense_0": {**shown["Dense_0"], "kernel": kernel.at[-3:].set(0)}}  # doesn't read the guess: same loss
    assert value(plain, data, KEY, told) == pytest.approx(value(always, data, KEY, told), rel=1e-6)
    assert value(losses.denoising(apply, FLOW, "x0", self_conditioning=1e-9), data, KEY, shown) == pytest.approx(
        value(plain, data, KEY, shown), rel=1e-6
    )


# ---- learned variance -----------------------------------------------------------------------------------------------


def test_the_gradient_of_the_bound_reaches_the_variance_alone():
    """With the mean's share of the loss taken away by its own plain gradient nothing is left, and v learns by the bound."""
    schedule, data = schedules.linear(100), batch()
    network = Network(outputs=6)
    params = network.init(jax.random.key(0), data.x, jnp.zeros(6))["params"]

    def gradient(bound):
        loss_fn = losses.hybrid(network.apply, schedule, "epsilon", bound=bound)
        with jax.disable_jit(False):
            return jax.jit(jax.grad(lambda p: loss_fn(p, {}, data, KEY)[0]))(params)["Dense_0"]["kernel"]

    without, with_bound = gradient(0.0), gradient(10.0)
    np.testing.assert_allclose(without[:, :3], with_bound[:, :3], rtol=1e-5, atol=1e-6)
    assert not without[:, 3:].any()
    assert np.abs(with_bound[:, 3:]).min() > 0


def test_the_terms_of_the_bound_are_kl_divergences_of_gaussians():
    """In 30 digits from the two posteriors of Nichol & Dhariwal (2021), eq. 10 to 15; the step to the data is a bin's."""
    schedule, steps_of = schedules.linear(50), 50
    for t in (1.0, 2.0, 7.0):
        x0, guess, x, v = 0.2, 0.35, -0.4, 0.3
        s = t - 1
        column = lambda value: jnp.full((1, 1), value, jnp.float32)  # noqa: E731
        at = jnp.array([t]), jnp.array([s])
        with jax.disable_jit(False):
            got = jax.jit(lambda *a: losses._bound_term(*a, schedule, 256))(
                column(x0), column(guess), column(v), column(x), *at
            )
        kept = np.append(1.0, schedule(np.arange(1, steps_of + 1)).alpha ** 2)
        beta = 1 - kept[int(t)] / kept[int(s)]
        mean = [
            math.sqrt(kept[int(s)]) * beta / (1 - kept[int(t)]) * data
            + math.sqrt(1 - beta) * (1 - kept[int(s)]) / (1 - kept[int(t)]) * x
            for data in (x0, guess)
        ]
        small = beta * (1 - kept[int(s)]) / (1 - kept[int(t)])
        if s > 0:
            learned = math.exp((1 + v) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small))
            expected = 0.5 * (math.log(learned / small) + (small + (mean[0] - mean[1]) ** 2) / learned - 1)
        else:  # here both variances are the large one
            expected = -math.log(
                stats.norm.cdf((x0 + 1 / 255 - mean[1]) / math.sqrt(beta))
                - stats.norm.cdf((x0 - 1 / 255 - mean[1]) / math.sqrt(beta))
            )
        np.testing.assert_allclose(got, [[expected]], rtol=2e-4)


def test_learned_variances_lie_between_those_of_ddpm():
    schedule = schedules.linear(50)
    small, large = losses.log_variances(jnp.array([1.0, 2.0, 30.0]), jnp.array([0.0, 1.0, 29.0]), schedule)
    kept = np.append(1.0, schedule(np.arange(1, 51)).alpha ** 2)
    for index, t in enumerate((1, 2, 30)):
        beta = 1 - kept[t] / kept[t - 1]
        np.testing.assert_allclose(large[index], math.log(beta), rtol=1e-4)
        posterior = beta * (1 - kept[t - 1]) / (1 - kept[t]) if t > 1 else beta
        np.testing.assert_allclose(small[index], math.log(posterior), rtol=1e-4)


# ---- the discretized likelihood -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (-0.9, 0.01), (0.99, 0.002), (2.0, 0.1), (0.0, 1e-4)])
def test_the_likelihood_of_a_bin_has_its_digits_in_the_tails(mean, std):
    """Against 60 digits, up to thousands of nats, in float32; bins at the ends reach to infinity."""
    x = np.linspace(-1, 1, 256, dtype=np.float32)[::15]
    got = losses.discretized_gaussian_nll(jnp.asarray(x), jnp.full_like(x, mean), jnp.full_like(x, math.log(std)))
    center, width = mp.mpf(float(np.float32(mean))), mp.exp(mp.mpf(float(np.float32(math.log(std)))))
    expected = []
    with mp.workdps(60):
        for value in map(float, x):
            away = abs(mp.mpf(value) - center)
            sign = 1 if value < center else -1  # on the side of the tail
            ends = sorted(
                [sign * (mp.mpf(value) - center) + mp.mpf(1) / 255, sign * (mp.mpf(value) - center) - mp.mpf(1) / 255]
            )
            low, high = ends
            if abs(value) > 0.999:
                outer_is_low = (value < 0) == (sign > 0)
                low, high = (-mp.inf, high) if outer_is_low else (low, mp.inf)
            probability = mp.ncdf(high / width) - (mp.ncdf(low / width) if low > -mp.inf else 0)
            del away
            expected.append(float(-mp.log(probability)) if probability > 0 else math.inf)
    expected = np.array(expected)
    finite = np.isfinite(expected)
    assert np.isfinite(got).all()
    assert finite.any()
    np.testing.assert_allclose(np.asarray(got)[finite], expected[finite], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_probabilities_of_all_bins_sum_to_one(levels):
    x = jnp.linspace(-1, 1, levels)
    for mean, std in ((0.0, 0.5), (0.7, 0.01), (-1.4, 0.2)):
        nll = losses.discretized_gaussian_nll(x, jnp.full_like(x, mean), jnp.full_like(x, math.log(std)), levels=levels)
        np.testing.assert_allclose(jnp.exp(-nll).sum(), 1, rtol=2e-5)


def test_gradients_of_the_likelihood_are_finite():
    x = jnp.linspace(-1, 1, 9)
    for mean, log_std in ((0.0, -9.0), (0.5, 0.0), (3.0, -5.0)):
        slopes = jax.grad(lambda m, s: losses.discretized_gaussian_nll(x, m, s).sum(), argnums=(0, 1))(
            jnp.full_like(x, mean), jnp.full_like(x, log_std)
        )
        assert all(np.isfinite(slope).all() for slope in slopes)
        assert all(slope.any() for slope in slopes)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said(unchecked):
    apply, _ = recorder()
    wide, _ = recorder(lambda x, t: jnp.concatenate([x, x, x], -1))
    for call, words in [
        (lambda: losses.denoising(apply, FLOW, "epsilon"), "denoising: epsilon says nothing"),
        (lambda: losses.denoising(apply, FLOW, "velocitee"), "did you mean 'velocity'"),
        (lambda: losses.denoising(apply, FLOW, "v", unlabeled=1.5), r"unlabeled must be in \[0, 1\], got 1.5"),
        (lambda: losses.denoising(apply, FLOW, "v", self_conditioning=-0.1), r"self_conditioning must be in \[0, 1\]"),
        (lambda: losses.denoising(apply, FLOW, "v", unlabeled=0.1), "unlabeled needs a condition 'label'"),
        (lambda: losses.hybrid(apply, LINEAR, "v"), "hybrid: give steps, the schedule is continuous"),
        (lambda: losses.min_snr(0.0), "min_snr: gamma must be positive"),
        (lambda: losses.p2(0.0), "p2: k must be positive"),
        (lambda: losses.edm(0.0), "edm: data_std must be positive"),
        (lambda: losses.log_normal(std=0.0), "log_normal: std must be positive"),
        (lambda: losses.logit_normal(std=-1.0), "logit_normal: std must be positive"),
        (lambda: losses.discretized_gaussian_nll(*[jnp.zeros(1)] * 3, levels=1), "levels must be at least 2, got 1"),
        (lambda: value(losses.denoising(wide, FLOW, "v"), batch()), r"must give the shape of its input \(6, 3\), got \(6, 9\)"),
        (lambda: value(losses.hybrid(apply, schedules.linear(50), "v"), batch()), "must give 6 channels, got 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_the_hybrid_loss_shows_every_step_of_a_table_as_it_was_drawn():
    """In float32 a time over its end, times the count, may lie above a whole number."""
    count, shown = 4000, []
    schedule = schedules.linear(count)

    def apply(variables, x, t, **options):
        shown.append(np.asarray(t))
        return jnp.concatenate([x, x], -1), {}

    def times(key, schedule, size):
        return jnp.arange(1.0, size + 1)

    loss = losses.hybrid(apply, schedule, "epsilon", times=times)
    loss({}, {}, batches.Dataset(jnp.zeros((count, 1)), None), jax.random.key(0))
    np.testing.assert_array_equal(shown[0], np.arange(1, count + 1))


def test_the_hybrid_loss_takes_no_prediction_that_scales_its_inputs():
    with pytest.raises(ValueError, match="got 'edm'"):
        losses.hybrid(lambda *_: None, schedules.edm(), "edm", steps=10)
