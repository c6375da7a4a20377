"""Samplers: moments of what they draw, the identities between them, transformations, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.diffusion import parametrization, samplers, schedules
from tests.diffusion import mixture

MEANS = mixture.CENTERED
FLOW = schedules.flow()
GRID = schedules.karras(6, smallest=0.05, largest=20.0)
ALL = {
    "ddpm": samplers.ddpm(),
    "ddpm_large": samplers.ddpm("large"),
    "ddim": samplers.ddim(),
    "euler_churn": samplers.euler(3.0),
    "heun": samplers.heun(),
    "heun_churn": samplers.heun(3.0),
    "dpmpp_2s": samplers.dpmpp_2s(),
    "dpmpp_2s_eta": samplers.dpmpp_2s(1.0),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "dpmpp_3m": samplers.dpmpp_3m(corrected=True, start="second"),
    "unipc": samplers.unipc(3),
    "lms": samplers.lms(),
}
DETERMINISTIC = ["ddim", "heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "lms"]
EDM, LINEAR = schedules.edm(), schedules.linear()
STOCHASTIC = {  # sampler, schedule, steps: first order needs more for its bias to be below the sample's error
    "ddpm_small": (samplers.ddpm(), LINEAR, 300),
    "ddpm_large": (samplers.ddpm("large"), LINEAR, 200),
    "ddim_half": (samplers.ddim(0.5), schedules.cosine(), 300),
    "ddim_1": (samplers.ddim(1.0), FLOW, 300),
    "euler_ancestral": (samplers.euler_ancestral(), EDM, 300),
    "euler_churn": (samplers.euler(10.0), EDM, 300),
    "heun_churn": (samplers.heun(40.0), LINEAR, 100),
    "dpmpp_2s_half": (samplers.dpmpp_2s(0.5), LINEAR, 100),
    "dpmpp_2s_eta": (samplers.dpmpp_2s(1.0), EDM, 100),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde(), LINEAR, 100),
}


def denoiser(schedule=FLOW):
    return mixture.denoiser(schedule, MEANS)


def normal(seed, shape=(4, 2)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCHASTIC)
def test_drawn_moments_and_shares_of_components_are_those_of_the_data(name):
    """Mean, covariance and the probability of each component: within 4 standard errors of 4,096 draws."""
    sampler, schedule, steps = STOCHASTIC[name]
    grid = schedules.karras(steps, smallest=0.01)
    with jax.disable_jit(False):  # a matter of numbers
        run = jax.jit(lambda key: samplers.sample(sampler, denoiser(schedule), schedule, grid, key, (4096, 2)))
        values, expected = mixture.moments(run(jax.random.key(1)), MEANS)
    error = values.std(0) / np.sqrt(len(values))
    assert (np.abs(values.mean(0) - expected) <= 4 * error).all()
    assert (error < 0.025).all()


def test_learned_variance_goes_from_small_to_large():
    """v = -1 is `ddpm("small")`, v = +1 is `ddpm("large")`, and v = 0 their geometric mean, of the same noise."""
    schedule, grid, key, x = LINEAR, schedules.karras(5), jax.random.key(0), normal(0)
    plain = denoiser(schedule)

    def run(sampler, denoise, trajectory=False):
        return samplers.sample(sampler, denoise, schedule, grid, key, x=x, trajectory=trajectory)

    def told(share):
        return lambda x, t: (plain(x, t), jnp.full(x.shape, share, x.dtype))

    small, large = (run(samplers.ddpm(variance), plain) for variance in ("small", "large"))
    np.testing.assert_allclose(run(samplers.ddpm("learned"), told(-1.0)), small, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(samplers.ddpm("learned"), told(1.0)), large, rtol=1e-5, atol=1e-5)
    assert np.abs(small - large).max() > 0.01
    # after one step: mean + sqrt(small large) z
    steps = [
        np.asarray(run(*pair, trajectory=True)[1].x[1])
        for pair in [
            (samplers.ddim(), plain),
            (samplers.ddpm(), plain),
            (samplers.ddpm("large"), plain),
            (samplers.ddpm("learned"), told(0.0)),
        ]
    ]
    data = np.asarray(plain(jnp.asarray(x), jnp.float32(grid(schedule)[0])))
    now, then = schedule(grid(schedule)[0]), schedule(grid(schedule)[1])
    kept = now.alpha * then.sigma**2 / (then.alpha * now.sigma**2)
    mean = kept * x + (then.alpha - kept * now.alpha) * data
    np.testing.assert_allclose((steps[3] - mean) ** 2, np.abs((steps[1] - mean) * (steps[2] - mean)), rtol=1e-3, atol=1e-5)


# ---- identities -----------------------------------------------------------------------------------------------------


def trajectory(sampler, schedule=FLOW, grid=GRID, denoise=None, **options):
    """Compiled, for the time; test_what_is_drawn_is_the_same_with_and_without_jit has both."""
    denoise = denoiser(schedule) if denoise is None else denoise
    options = {"key": jax.random.key(0), "shape": (4, 2), **options}
    shape, arrays = options.pop("shape"), options

    def run(arrays):
        return samplers.sample(sampler, denoise, schedule, grid, shape=shape, trajectory=True, **arrays)

    with jax.disable_jit(False):
        x, seen = jax.jit(run)(arrays)
    return np.asarray(x), jax.tree.map(np.asarray, seen)


@functools.cache
def usual(name):
    return trajectory(ALL[name])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (samplers.ddim(1.0), samplers.ddpm()),
        (samplers.euler(), samplers.ddim()),
        (samplers.euler_ancestral(0.4), samplers.ddim(0.4)),
        (samplers.dpmpp_2m_sde(0.0), samplers.dpmpp_2m()),
        (samplers.lms(1), samplers.ddim()),
        (samplers.heun(0.0), samplers.heun(3.0, between=(50.0, 60.0))),
    ],
    ids=["ddim(1) = ddpm", "euler = ddim(0)", "ancestral = ddim", "sde(0) = 2m", "lms(1) = ddim", "churn outside = none"],
)
def test_samplers_that_are_the_same_agree(one, other):
    (x, seen), (y, also) = trajectory(one), trajectory(other)
    np.testing.assert_allclose(seen.x, also.x, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


def test_any_sampler_is_exact_where_the_data_are_one_point():
    """The denoiser says the same at any time: x of every step is `α data + σ ε` of the first noise."""
    data = jnp.asarray(normal(5))
    for name in DETERMINISTIC:
        x, seen = trajectory(ALL[name], denoise=lambda x, t: data, key=None, shape=None, x=normal(6))
        np.testing.assert_allclose(x, data, atol=1e-6, err_msg=name)
        alpha, sigma, _ = FLOW(seen.t)
        noise = (normal(6) - alpha[0] * data) / sigma[0]
        expected = alpha[:, None, None] * data[None] + sigma[:, None, None] * noise[None]
        np.testing.assert_allclose(seen.x, expected, atol=1e-5, err_msg=name)


def test_churn_raises_the_noise_as_in_algorithm_2():
    """One step by hand: γ = min(churn / steps, √2 - 1) where the ratio is between the bounds, none elsewhere."""
    schedule, times, data = EDM, [4.0, 2.0, 1.0], normal(5)
    sampler = samplers.euler(0.9, between=(1.5, 3.0), noise=1.1)
    noise = normal(7, (3, 4, 2))
    _, seen = trajectory(
        sampler, schedule, schedules.explicit(times), lambda x, t: 0.5 * x / t, key=None, shape=None, x=data, noise=noise
    )
    x = data
    x = x + (2.0 - 4.0) * (x - 0.5 * x / 4.0) / 4.0
    raised = 2.0 * (1 + 0.3)
    x = x + 1.1 * np.sqrt(raised**2 - 2.0**2) * noise[0]
    np.testing.assert_allclose(seen.x[1], x, rtol=1e-5)
    x = x + (1.0 - raised) * (x - 0.5 * x / raised) / raised
    np.testing.assert_allclose(seen.x[2], x, rtol=1e-5)
    np.testing.assert_allclose(seen.x[3], 0.5 * x / 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_last_step_is_the_denoisers_word(name):
    x, seen = usual(name)
    np.testing.assert_array_equal(x, seen.x[-1])
    np.testing.assert_allclose(x, seen.x0[-1], rtol=1e-6, atol=1e-7)
    if "churn" not in name:
        data = mixture.posterior_mean(seen.x[-2] / (1 - seen.t[-2]), seen.t[-2] / (1 - seen.t[-2]), MEANS)
        np.testing.assert_allclose(x, data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_lost_where_the_start_is_pure_noise(name):
    """`cosine` with `uniform` begins where nothing is left of the data: ρ is infinite, and no NaN comes of it."""
    schedule = schedules.cosine()
    x, seen = trajectory(ALL[name], schedule, schedules.uniform(5))
    assert np.isfinite(seen.x).all()
    assert np.isfinite(seen.x0).all()
    np.testing.assert_allclose(seen.x0[0], np.tile(mixture.WEIGHTS @ MEANS, (4, 1)), atol=1e-6)  # knows nothing
    assert np.abs(x).max() < 4


# ---- forms of use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_is_the_same_with_and_without_jit(name):
    with jax.disable_jit():
        steps = samplers.sample(ALL[name], denoiser(), FLOW, GRID, jax.random.key(0), (4, 2))
    np.testing.assert_allclose(steps, usual(name)[0], rtol=2e-5, atol=5e-6)


def test_a_pytree_is_sampled_leaf_by_leaf():
    """Every leaf by its own numbers, and each as an array alone would be by the same ones."""
    shape = {"a": jax.ShapeDtypeStruct((4, 2), jnp.float32), "b": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    denoise = denoiser()

    def both(x, t):
        return jax.tree.map(lambda leaf: denoise(leaf, t), x)

    for name in ("heun", "dpmpp_3m"):
        sampler = ALL[name]
        x, seen = samplers.sample(sampler, both, FLOW, GRID, jax.random.key(0), shape, trajectory=True)
        for leaf in ("a", "b"):
            alone = samplers.sample(sampler, denoise, FLOW, GRID, x=seen.x[leaf][0])
            np.testing.assert_allclose(x[leaf], alone, rtol=1e-5, atol=1e-6)
    drawn = samplers.sample(samplers.ddpm(), both, FLOW, GRID, jax.random.key(0), shape)
    assert not np.allclose(drawn["a"][:3], drawn["b"])


def test_vmap_over_keys_is_a_sample_for_each_key():
    keys = jax.random.split(jax.random.key(0), 3)

    def run(key):
        return samplers.sample(ALL["dpmpp_2m_sde"], denoiser(), FLOW, GRID, key, (4, 2))

    several = jax.vmap(run)(keys)
    np.testing.assert_allclose(several[1], run(keys[1]), rtol=1e-5, atol=1e-6)
    assert not np.allclose(several[0], several[1])


@pytest.mark.parametrize("name", ["heun", "unipc"])
def test_the_gradient_goes_through_all_steps(name):
    """Against central differences, with respect to the start and to a condition."""
    x, direction = normal(0), normal(1)

    def value(step):
        def denoise(x, t, shift):
            return denoiser()(x, t) + shift

        return jnp.sin(samplers.sample(ALL[name], denoise, FLOW, GRID, x=x + step * direction, shift=0.3 * step)).sum()

    with jax.enable_x64(True), jax.disable_jit(False):
        x, direction = x.astype(np.float64), direction.astype(np.float64)
        run = jax.jit(value)
        slope = jax.jit(jax.grad(value))(0.1)
        np.testing.assert_allclose(slope, (run(0.1 + 1e-5) - run(0.1 - 1e-5)) / 2e-5, rtol=1e-6)


def test_the_dtype_is_that_of_the_start():
    """bfloat16 stays; weights are float32 at least, so the result is as good as its storage."""
    exact = samplers.sample(ALL["dpmpp_2m"], denoiser(), FLOW, GRID, x=normal(0))
    half = samplers.sample(ALL["dpmpp_2m"], denoiser(), FLOW, GRID, x=jnp.asarray(normal(0), jnp.bfloat16))
    drawn = samplers.sample(ALL["ddpm"], denoiser(), FLOW, GRID, jax.random.key(0), (4, 2), dtype=jnp.bfloat16)
    assert half.dtype == drawn.dtype == jnp.bfloat16
    assert exact.dtype == jnp.float32
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.1)


def test_a_trajectory_has_every_step_of_the_grid():
    """However many evaluations a step takes; the data predicted are those of its beginning."""
    for name in ("heun", "dpmpp_2s", "dpmpp_3m", "ddpm"):
        _, seen = usual(name)
        assert seen.x.shape == (7, 4, 2)
        assert seen.x0.shape == (6, 4, 2)
        np.testing.assert_allclose(seen.t, GRID(FLOW), rtol=1e-6)
        data = mixture.posterior_mean(seen.x[2] / (1 - seen.t[2]), seen.t[2] / (1 - seen.t[2]), MEANS)
        np.testing.assert_allclose(seen.x0[2], data, rtol=1e-4, atol=1e-5)


def test_given_noise_replaces_what_is_drawn():
    """One leading entry per row of the plan; the last step adds none."""
    noise, start = normal(3, (6, 4, 2)), normal(0)

    @jax.jit
    def run(noise):
        return samplers.sample(ALL["ddpm"], denoiser(), FLOW, GRID, x=start, noise=noise)

    one = np.eye(6, dtype=np.float32)[:, :, None, None]
    first = run(noise)
    np.testing.assert_array_equal(first, run(noise + one[5]))
    for index in range(5):
        assert not np.allclose(first, run(noise + one[index]))
    key = jax.random.key(7)
    also = samplers.sample(ALL["ddpm"], denoiser(), FLOW, GRID, key, x=start, noise=noise)  # the key isn't used
    np.testing.assert_allclose(also, first, rtol=1e-5, atol=1e-6)


def test_conditions_reach_the_denoiser():
    def denoise(x, t, label):
        return jnp.ones_like(x) * label[:, None]

    label = jnp.arange(4.0)
    x = samplers.sample(ALL["heun"], denoise, FLOW, GRID, jax.random.key(0), (4, 2), label=label)
    np.testing.assert_allclose(x, np.tile(np.arange(4.0)[:, None], (1, 2)), atol=1e-6)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 3)])
def test_encoding_then_sampling_returns_the_data_by_the_samplers_order(name, order):
    """By one more where the order is even: on the way back the leading error has the other sign."""
    data, errors = mixture.draw(2, 8, MEANS), []
    with jax.enable_x64(True), jax.disable_jit(False):
        for steps in (40, 80):
            grid = schedules.karras(steps, smallest=0.05, largest=20.0)
            level = FLOW(grid(FLOW)[-2])
            start = jnp.asarray(data)

            @jax.jit
            def there_and_back(x, grid=grid):
                noise = samplers.encode(ALL[name], denoiser(), FLOW, grid, x)
                return samplers.sample(ALL[name], denoiser(), FLOW, grid, x=noise, trajectory=True)[1].x[-2]

            errors.append(np.sqrt(np.mean((there_and_back(start) / level.alpha - start) ** 2)))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25
    assert errors[1] < 0.05


def test_image_to_image_begins_where_its_strength_says():
    """The last share of the steps, from the image with that much noise; weak changes stay near the image."""
    image = jnp.asarray(mixture.draw(4, 64, MEANS), jnp.float32)
    grid, seen = schedules.uniform(10), []

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return denoiser()(x, t)

    def run(strength):
        seen.clear()
        x = samplers.image_to_image(samplers.ddim(), denoise, FLOW, grid, jax.random.key(0), image, strength=strength)
        jax.effects_barrier()
        return x, sorted(set(seen), reverse=True)

    weak, times = run(0.2)
    np.testing.assert_allclose(times, [0.2, 0.1], rtol=1e-6)
    strong, times = run(1.0)
    np.testing.assert_allclose(times, np.arange(10, 0, -1) / 10, rtol=1e-6)
    distance = [float(jnp.sqrt(jnp.mean((x - image) ** 2))) for x in (weak, strong)]
    assert distance[0] < 0.3 < distance[1]


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said(unchecked):
    denoise, key = denoiser(), jax.random.key(0)
    for call, words in [
        (lambda: samplers.ddpm("medium"), "variance must be 'small', 'large' or 'learned', got 'medium'"),
        (lambda: samplers.ddim(1.5), r"ddim: eta must be in \[0, 1\], got 1.5"),
        (lambda: samplers.euler(-1.0), "euler: churn and noise must be at least 0"),
        (lambda: samplers.heun(noise=-1.0), "heun: churn and noise"),
        (lambda: samplers.euler(float("nan")), "euler: churn and noise must be at least 0"),
        (lambda: samplers.euler(1.0, between=(2.0, 1.0)), "between must be two ratios, the smaller first"),
        (lambda: samplers.lms(5), "order must be in 1..4, got 5"),
        (lambda: samplers.unipc(0), "order must be in 1..3, got 0"),
        (lambda: samplers.dpmpp_2s(-0.1), r"dpmpp_2s: eta must be in \[0, 1\]"),
        (lambda: samplers.dpmpp_2m_sde(-0.1), "eta must be at least 0"),
        (lambda: samplers.dpmpp_3m(start="third"), "start must be 'first' or 'second', got 'third'"),
        (lambda: samplers.sample(ALL["ddim"], denoise, FLOW, GRID, key), "give either shape or x"),
        (lambda: samplers.sample(ALL["ddim"], denoise, FLOW, GRID, key, (4, 2), x=normal(0)), "give either shape or x"),
        (lambda: samplers.sample(ALL["ddim"], denoise, FLOW, GRID, shape=(4, 2)), "key is missing"),
        (lambda: samplers.sample(ALL["ddpm"], denoise, FLOW, GRID, x=normal(0)), "key is missing"),
        (lambda: samplers.sample(ALL["ddim"], denoise, FLOW, schedules.explicit([2.0]), x=normal(0)), "must lie in 0..1"),
        (lambda: samplers.sample(ALL["ddim"], denoise, FLOW, GRID, key, x=jnp.ones((4, 2), int)), "expected floating data"),
        (lambda: samplers.sample(samplers.ddpm("learned"), denoise, FLOW, GRID, key, [2, 2]), "with_variance, which returns"),
        (
            lambda: samplers.sample(ALL["ddim"], denoise, FLOW, schedules.explicit([0.5 + 1e-9, 0.5]), x=normal(0)),
            "times of the grid coincide in float32",
        ),
        (lambda: samplers.encode(ALL["ddpm"], denoise, FLOW, GRID, normal(0)), "must be deterministic"),
        (lambda: samplers.encode(ALL["ddim"], denoise, FLOW, schedules.uniform(1), normal(0)), "at least 2 steps, got 1"),
        (
            lambda: samplers.image_to_image(ALL["ddim"], denoise, FLOW, GRID, key, normal(0), strength=0.0),
            r"strength must be in \(0, 1\], got 0",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_a_network_is_sampled_by_its_prediction():
    """The same data by a network of any prediction that means the same denoiser."""
    x, expected = normal(0), samplers.sample(ALL["dpmpp_2m"], denoiser(), FLOW, GRID, x=normal(0))
    for prediction in ("v", "epsilon", "velocity"):
        schedule, start = FLOW, x
        if prediction == "epsilon":  # says nothing at the end of a flow
            schedule, start = EDM, x / (1 - GRID(FLOW)[0]).astype(np.float32)
        network = parametrization.from_denoiser(denoiser(schedule), schedule, prediction)
        denoise = parametrization.to_denoiser(network, schedule, prediction)
        np.testing.assert_allclose(
            samplers.sample(ALL["dpmpp_2m"], denoise, schedule, GRID, x=start), expected, rtol=1e-4, atol=1e-4
        )


def test_a_self_conditioned_network_sees_at_each_evaluation_what_it_said_at_the_one_before():
    seen = []

    def denoise(x, t, previous):
        jax.debug.callback(lambda t, previous: seen.append((float(t), np.asarray(previous))), t, previous)
        return denoiser()(x, t)

    sampler = samplers.self_conditioned(ALL["heun"])
    x, path = samplers.sample(sampler, denoise, FLOW, GRID, x=normal(0), trajectory=True)
    jax.effects_barrier()
    np.testing.assert_allclose(x, samplers.sample(ALL["heun"], denoiser(), FLOW, GRID, x=normal(0)), rtol=1e-5, atol=1e-6)
    seen.sort(key=lambda pair: -pair[0])
    np.testing.assert_array_equal(seen[0][1], 0)
    np.testing.assert_allclose(seen[1][1], path.x0[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "heun", "lms", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_encoding_up_to_pure_noise_is_finite(name):
    """Where nothing is left of the data, the step is of first order: exact, where ρ is infinite."""
    sampler = samplers.lms() if name == "lms" else ALL[name]
    noise = samplers.encode(sampler, denoiser(), FLOW, schedules.uniform(5), normal(0))
    assert jnp.isfinite(noise).all()


def test_encode_is_given_the_data_themselves():
    """Of N(0, 1) data, by a flow: encoded and sampled again they come back but for the last, denoising step."""
    denoise = lambda x, t: (1 - t) / ((1 - t) ** 2 + t**2) * x  # noqa: E731
    grid = schedules.karras(60, smallest=0.002, largest=50.0)
    x = jnp.array([[1.0], [-0.4]])
    back = samplers.sample(ALL["heun"], denoise, FLOW, grid, x=samplers.encode(ALL["heun"], denoise, FLOW, grid, x))
    np.testing.assert_allclose(back, x, rtol=2e-3)
