"""What networks predict: every conversion and its inverse, targets, EDM's preconditioning, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.diffusion import parametrization, samplers, schedules

PREDICTIONS = parametrization.PREDICTIONS
SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "edm": schedules.edm(),
    "exploding": schedules.variance_exploding(),
    "flow": schedules.flow(),
    "table": schedules.scaled_linear(100),
    "zero_table": schedules.zero_terminal(schedules.linear(100)),
    "shifted": schedules.shifted(schedules.sigmoid(), 3.0),
}
SHARES = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0])


def problem(schedule):
    """Data, noise, times and the noisy data, float64: one example at each of the times."""
    rng = np.random.default_rng(0)
    t = jnp.asarray(schedule.end * SHARES)
    x0, noise = jnp.asarray(0.5 * rng.standard_normal((8, 3, 2))), jnp.asarray(rng.standard_normal((8, 3, 2)))
    return x0, noise, t, parametrization.noisy(x0, noise, t, schedule)


def allowed(schedule):
    return [name for name in PREDICTIONS if not (schedule.reaches_noise and name in ("epsilon", "score"))]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_gives_every_other_and_the_data(name):
    """At all times of all schedules, both ways; what is right of the noisy data is what the data and noise say."""
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, noise, t, x = problem(schedule)
        targets = {p: parametrization.target(x0, noise, t, schedule, p) for p in allowed(schedule)}
        for p, value in targets.items():
            np.testing.assert_allclose(parametrization.to_x0(value, x, t, schedule, p), x0, atol=1e-8, err_msg=p)
            np.testing.assert_allclose(parametrization.from_x0(x0, x, t, schedule, p), value, rtol=1e-8, atol=1e-8, err_msg=p)
        for source, to in itertools.permutations(targets, 2):
            got = parametrization.convert(targets[source], x, t, schedule, source=source, target=to)
            np.testing.assert_allclose(got, targets[to], rtol=1e-8, atol=1e-8, err_msg=f"{source} to {to}")


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_targets_are_the_formulas_of_the_table(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, noise, t, x = problem(schedule)
        alpha, sigma = (np.asarray(part)[:, None, None] for part in schedule(t)[:2])
        np.testing.assert_allclose(x, alpha * x0 + sigma * noise, rtol=1e-12)
        scale = np.hypot(sigma, 0.5 * alpha)
        expected = {
            "x0": x0,
            "epsilon": noise,
            "v": alpha * noise - sigma * x0,
            "score": -noise / sigma,
            "velocity": noise - x0,
            "edm": scale / (sigma * 0.5) * (x0 - alpha * 0.25 / scale**2 * x),
        }
        for p in allowed(schedule):
            value = expected[p]
            got = parametrization.target(x0, noise, t, schedule, p)
            np.testing.assert_allclose(got, value, rtol=1e-7, atol=1e-9, err_msg=p)


def test_the_score_is_the_gradient_of_the_log_density():
    """Of Gaussian data: `x_0 = E[x_0 | x]` makes `∇ log N(x; 0, α² s² + σ²)`."""
    schedule = SCHEDULES["linear"]
    with jax.enable_x64(True):
        level, x = schedule(0.4), jnp.array([[0.3, -1.2]])
        variance = level.alpha**2 * 0.25 + level.sigma**2
        score = parametrization.from_denoiser(lambda x, t: x * level.alpha * 0.25 / variance, schedule, "score")(x, 0.4)
        expected = jax.grad(lambda x: -0.5 * (x**2).sum() / variance)(x)
        np.testing.assert_allclose(score, expected, rtol=1e-10)


def test_edm_is_karras_preconditioning():
    """Karras et al. (2022), table 1: c_skip, c_out, c_in and c_noise of σ, with σ_data = 0.5 or another."""
    for schedule, std in ((schedules.edm(), 0.5), (schedules.edm(), 1.3), (schedules.linear(), 0.5)):
        ratio = np.array([0.01, 0.3, 2.0, 70.0])
        with jax.enable_x64(True):
            t = jnp.asarray(schedule.time(ratio))
            alpha = np.asarray(schedule(t).alpha)[:, None]
            scaled = np.random.default_rng(1).standard_normal((4, 3))
            seen = []

            def network(x, c_noise, seen=seen):
                seen.append((x, c_noise))
                return jnp.sin(x)

            denoise = parametrization.to_denoiser(network, schedule, "edm", data_std=std)
            got = denoise(jnp.asarray(alpha * scaled), t)
        sigma = ratio[:, None]
        c_in = 1 / np.sqrt(sigma**2 + std**2)
        np.testing.assert_allclose(seen[0][0], c_in * scaled, rtol=1e-8)
        np.testing.assert_allclose(seen[0][1], np.log(ratio) / 4, rtol=1e-8)
        c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / np.sqrt(sigma**2 + std**2)
        np.testing.assert_allclose(got, c_skip * scaled + c_out * np.sin(c_in * scaled), rtol=1e-8)


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_the_error_of_the_data_is_x0_error_times_that_of_the_prediction(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, noise, t, x = problem(schedule)
        for p in allowed(schedule):
            value = parametrization.target(x0, noise, t, schedule, p)
            other = parametrization.to_x0(value + 0.1, x, t, schedule, p)
            square = np.square(np.asarray(other - x0)).mean((1, 2))
            np.testing.assert_allclose(square, 0.01 * parametrization.x0_error(schedule, t, p), rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_from_denoiser_is_the_inverse_of_to_denoiser(prediction, jit):
    schedule = schedules.linear()
    x, t = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32), jnp.array([0.1, 0.4, 0.6, 0.8])

    def denoise(x, t, shift):
        return jnp.tanh(x) + shift

    predict = parametrization.from_denoiser(denoise, schedule, prediction)

    def network(shown, seen, shift):  # that of edm sees another x and time: undone here
        return predict(x, t, shift=shift) if prediction == "edm" else predict(shown, seen, shift=shift)

    again = jit(lambda x, t: parametrization.to_denoiser(network, schedule, prediction)(x, t, shift=0.5))(x, t)
    np.testing.assert_allclose(again, denoise(x, t, 0.5), rtol=1e-4, atol=1e-4)


def test_pytrees_and_dtypes_go_through():
    """Leaf by leaf, each in its dtype; a time for each example of leaves of any rank."""
    schedule, t = schedules.flow(), jnp.array([0.2, 0.7])
    x0 = {"a": jnp.ones((2, 3, 3, 1)), "b": jnp.ones((2, 5), jnp.bfloat16)}
    noise = jax.tree.map(lambda leaf: 2 * leaf, x0)
    x = parametrization.noisy(x0, noise, t, schedule)
    assert {k: v.dtype for k, v in x.items()} == {"a": jnp.float32, "b": jnp.bfloat16}
    np.testing.assert_allclose(x["a"][:, 0, 0, 0], [1.2, 1.7], rtol=1e-6)
    v = parametrization.target(x0, noise, t, schedule, "velocity")
    back = parametrization.to_x0(v, x, t, schedule, "velocity")
    for name, leaf in back.items():
        assert leaf.dtype == x[name].dtype
        np.testing.assert_allclose(np.asarray(leaf, np.float32), 1, atol=1e-6 if name == "a" else 0.02)


def test_a_network_may_see_another_time():
    """A table's network was trained on indices from 0."""
    schedule, seen = schedules.linear(50), []

    def network(x, t):
        seen.append(float(t))
        return 0 * x

    parametrization.to_denoiser(network, schedule, "epsilon", time=lambda t: t - 1)(jnp.zeros((1, 2)), 10.0)
    assert seen == [9.0]


def test_a_network_with_twice_the_channels_gives_data_and_variance():
    schedule, x, t = schedules.linear(), jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)), jnp.float32), 0.3

    def network(x, t):
        return jnp.concatenate([jnp.sin(x), jnp.cos(x)], -1)

    x0, share = parametrization.with_variance(network, schedule, "v")(x, t)
    np.testing.assert_allclose(share, jnp.cos(x))
    np.testing.assert_allclose(x0, parametrization.to_x0(jnp.sin(x), x, t, schedule, "v"))


def test_epsilon_and_score_are_refused_where_nothing_is_left_of_the_data(unchecked):
    apply = network = lambda x, t: x
    x = jnp.zeros((2, 3))
    for prediction in ("epsilon", "score"):
        for name in ("cosine", "flow", "zero_table", "shifted"):
            schedule = SCHEDULES[name]
            for function, call in {
                "to_denoiser": lambda s, p: parametrization.to_denoiser(network, s, p),
                "with_variance": lambda s, p: parametrization.with_variance(network, s, p),
                "to_x0": lambda s, p: parametrization.to_x0(x, x, 0.5, s, p),
                "convert": lambda s, p: parametrization.convert(x, x, 0.5, s, source=p, target="v"),
            }.items():
                with pytest.raises(ValueError, match=f"{function}: {prediction} says nothing of the data at the end"):
                    call(schedule, prediction)
        parametrization.to_denoiser(apply, schedules.cosine(100), prediction)  # a little is left


def test_noise_and_score_of_a_denoiser_are_finite_where_nothing_is_left_of_the_data():
    """There `x = ε`: the noise is x itself and the score -x, whatever the data are taken for."""
    x, schedule = jnp.array([[0.5, -2.0]]), schedules.cosine()
    for prediction, expected in (("epsilon", x), ("score", -x)):
        predict = parametrization.from_denoiser(lambda x, t: 0.1 * x, schedule, prediction)
        np.testing.assert_allclose(predict(x, schedule.end), expected, rtol=1e-6)


def test_what_a_network_of_edm_is_shown_is_finite_at_both_ends():
    x = jnp.ones((2, 3))
    for schedule in (schedules.cosine(), schedules.flow(), schedules.edm()):
        for t in (0.0, schedule.end):
            shown, seen = parametrization.inputs(x, parametrization.as_time(t, x), schedule, "edm")
            assert jnp.isfinite(shown).all()
            assert jnp.isfinite(seen)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("eps", "did you mean 'epsilon'"),
        ("velocty", "did you mean 'velocity'"),
        ("scores", "'score'"),
        ("zzz", "expected one of x0"),
    ],
)
def test_an_unknown_prediction_is_said_with_what_was_meant(wrong, hint, unchecked):
    with pytest.raises(ValueError, match=f"no prediction '{wrong}'; .*{hint}"):
        parametrization.to_denoiser(lambda x, t: x, schedules.linear(), wrong)


def test_learned_variances_are_sampled_from_the_wrapped_network():
    schedule = schedules.linear()
    network = lambda x, t: jnp.concatenate([0 * x, 0 * x], -1)  # noqa: E731
    denoise = parametrization.with_variance(network, schedule, "x0")
    x = samplers.sample(samplers.ddpm("learned"), denoise, schedule, schedules.karras(3), jax.random.key(0), (2, 3))
    np.testing.assert_array_equal(x, 0)
