"""Samplers of samplers: known pixels, measurements with noise; against the exact posterior of a mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import posterior
from jaxnets.diffusion import guidance, samplers, schedules
from jaxnets.proximal import linear

SCHEDULE = schedules.cosine()
MASK, KNOWN = jnp.array([True, False, False]), jnp.array([0.3, 9.0, 9.0])  # 9: not known, must not be seen
A, Y = np.array([[0.6, 0.8, 0.0]]), np.array([0.4])  # an orthonormal row


def denoise(x, t, previous=None):
    """Of normal data with deviation 0.5; what is unknown follows what is known."""
    del previous
    alpha, sigma, _ = SCHEDULE(jnp.asarray(t))
    return 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x + 0.1 * jnp.flip(x, -1)


def operator():
    return linear.matrix(jnp.asarray(A, float))


def run(sampler, key, steps=4, denoise=denoise, schedule=SCHEDULE, **options):
    return samplers.sample(sampler, denoise, schedule, schedules.uniform(steps), key, (2, 3), **options)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# ---- known pixels ---------------------------------------------------------------------------------------------------

INNER = {
    "ddpm": samplers.ddpm(),
    "ddim": samplers.ddim(),
    "heun": samplers.heun(),
    "churned": samplers.heun(20.0),
    "dpmpp_2s": samplers.dpmpp_2s(),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "lms": samplers.lms(),
    "self_conditioned": samplers.self_conditioned(samplers.dpmpp_2m()),
}


@pytest.mark.parametrize("name", INNER)
def test_after_replacement_with_any_sampler_known_pixels_are_y_to_the_last_bit(jit, key, name):
    sampler = guidance.replacement(INNER[name], MASK, KNOWN)
    steps = 4 if jit is jax.jit else 2
    found = jit(lambda key: run(sampler, key, steps))(key)
    np.testing.assert_array_equal(found[:, 0], np.full(2, 0.3, np.float32))
    assert np.isfinite(found).all()
    assert np.abs(found[:, 1:]).max() < 5  # unlike what stands where nothing is known


def test_on_the_way_known_pixels_have_the_noise_of_their_time(key):
    """Of given noise: `α y + σ ε` at the end of each step."""
    noise = jax.random.normal(key, (4, 2, 3))
    sampler = guidance.replacement(samplers.ddpm(), MASK, KNOWN)
    _, seen = run(sampler, key, noise=noise, trajectory=True)
    alpha, sigma, _ = SCHEDULE(seen.t[1:])
    close(seen.x[1:, :, 0], (alpha * 0.3)[:, None] + sigma[:, None] * noise[:, :, 0])


def test_a_mask_of_nothing_changes_nothing_and_a_mask_of_all_gives_y(jit, key):
    plain = jit(lambda key: run(samplers.ddpm(), key, 3))(key)
    nothing = guidance.replacement(samplers.ddpm(), False, 0.0)
    close(jit(lambda key: run(nothing, key, 3))(key), plain)
    y = jnp.arange(6.0).reshape(2, 3)
    everything = guidance.replacement(samplers.ddpm(), jnp.ones((2, 3)), y)
    np.testing.assert_array_equal(jit(lambda key: run(everything, key, 3))(key), y)


def test_repaint_visits_each_stretch_as_often_as_asked():
    plan = guidance.repaint(samplers.ddpm(), MASK, KNOWN, jump_length=2, resamples=3).plan(SCHEDULE, np.linspace(1, 0, 7))
    close(plan.t * 6, [6, 5, 6, 5, 6, 5, 4, 3, 4, 3, 4, 3, 2, 1, 2, 1, 2, 1])
    close(plan.t_next * 6, [5, 6, 5, 6, 5, 4, 3, 4, 3, 4, 3, 2, 1, 2, 1, 2, 1, 0])


@pytest.mark.parametrize(("length", "resamples"), [(1, 2), (2, 3), (4, 2)])
@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.edm(), schedules.flow()], ids=["cosine", "edm", "flow"])
def test_steps_and_jumps_of_repaint_keep_the_law_of_x_at_every_time(schedule, length, resamples):
    """Of data that are one point the steps of ddpm are exact: mean α c and deviation σ after every row of the plan."""
    sampler = guidance.repaint(samplers.ddpm(), MASK, KNOWN, jump_length=length, resamples=resamples)
    rows = sampler.plan(schedule, schedule.end * np.linspace(1, 0, 5) ** 2).inner
    start = schedule(rows.t[0])
    mean, variance = start.alpha, start.sigma**2
    for i, t in enumerate(rows.t_next):
        mean = rows.next[i, 1] * mean + rows.next[i, 2]
        variance = rows.next[i, 1] ** 2 * variance + rows.noise[i] ** 2
        np.testing.assert_allclose([mean, np.sqrt(variance)], [schedule(t).alpha, schedule(t).sigma], rtol=1e-9, atol=1e-12)


def test_repaint_without_resampling_is_replacement(jit, key):
    once = guidance.repaint(samplers.ddpm(), MASK, KNOWN, jump_length=1, resamples=1)
    plain = guidance.replacement(samplers.ddpm(), MASK, KNOWN)
    np.testing.assert_array_equal(jit(lambda key: run(once, key, 3))(key), jit(lambda key: run(plain, key, 3))(key))
    twice = guidance.repaint(samplers.ddpm(), MASK, KNOWN, jump_length=1, resamples=2)
    found = jit(lambda key: run(twice, key, 2))(key)
    np.testing.assert_array_equal(found[:, 0], np.full(2, 0.3, np.float32))


def test_trees_are_inpainted_leaf_by_leaf(jit, key):
    shape = {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32), "b": jax.ShapeDtypeStruct((2, 1), jnp.float32)}
    mask = {"a": MASK, "b": jnp.array(False)}
    sampler = guidance.replacement(samplers.ddpm(), mask, {"a": KNOWN, "b": 0.0})

    def halved(x, t):
        return jax.tree.map(lambda leaf: leaf / 2, x)

    found = jit(lambda key: samplers.sample(sampler, halved, SCHEDULE, schedules.uniform(2), key, shape))(key)
    np.testing.assert_array_equal(found["a"][:, 0], np.full(2, 0.3, np.float32))


# ---- measurements with noise ----------------------------------------------------------------------------------------


def test_ddnm_plus_without_noise_is_ddnm(jit, key):
    y = jnp.asarray(Y, float)
    plus = guidance.ddnm_plus(samplers.ddpm(), operator(), y, noise=0.0)
    plain = guidance.ddnm(denoise, operator(), y)

    def both(key):
        return run(plus, key, 3), run(samplers.ddpm(), key, 3, plain)

    close(*jit(both)(key), 1e-4)


def test_the_noise_of_y_takes_the_place_of_that_of_a_step(key):
    """Of the true data as denoiser and many noisy y: x after a step has the deviation d, whether A sees it or not."""
    truth, count, noise = jnp.array([0.5, -0.2, 0.8]), 20_000, 1.2
    for_y, key = jax.random.split(key)
    y = truth[None] @ A.T + noise * jax.random.normal(for_y, (count, 1))
    sampler = guidance.ddnm_plus(samplers.ddpm(), operator(), y, noise=noise)
    times = np.array([0.6, 0.5, 0.0])

    def true(x, t):
        return jnp.broadcast_to(truth, x.shape)

    def after_one_step(x):
        grid = schedules.explicit(times)
        return samplers.sample(sampler, true, SCHEDULE, grid, key, x=x, trajectory=True)[1].x[1]

    x = np.asarray(jax.jit(after_one_step)(jnp.zeros((count, 3))), np.float64)
    deviation = sampler.plan(SCHEDULE, times).inner.noise[0]
    np.testing.assert_allclose(np.cov(x.T), deviation**2 * np.eye(3), atol=0.03 * deviation**2)
    left = sampler.plan(SCHEDULE, times).numbers["left"][0]
    assert 0.2 < left < 0.97  # so that the noise of y has a share that can be seen


def test_each_row_of_dps_goes_its_length_down_the_gradient_of_the_misfit_from_where_the_sampler_went(jit, key):
    length, steps = 0.3, 3
    sampler = guidance.dps_steps(samplers.ddim(), operator(), jnp.asarray(Y, float), length=length)
    x, seen = jit(lambda key: run(sampler, key, steps, trajectory=True))(key)
    for i, t in enumerate(seen.t[:-1]):
        now, then = SCHEDULE(t), SCHEDULE(seen.t[i + 1])
        x0 = np.asarray(denoise(seen.x[i], t))
        close(seen.x0[i], x0)
        jacobian = np.asarray(denoise(jnp.eye(3), t))
        misfit = x0 @ A.T - Y
        gradient = (misfit / np.abs(misfit)) @ A @ jacobian.T
        ddim = then.alpha * x0 + then.sigma * (seen.x[i] - now.alpha * x0) / now.sigma
        close(seen.x[i + 1], ddim - length * gradient)
    close(x, seen.x[-1])


def test_dps_steps_take_any_function_and_stay_where_y_is_fitted(jit, key):
    def radius(x):
        return jnp.sqrt((x**2).sum(-1))

    def misfit(sampler, y, key):
        return jnp.linalg.norm(radius(run(sampler, key, 8)) - y)

    y = jnp.full(2, 1.5)
    fitted = jit(functools.partial(misfit, guidance.dps_steps(samplers.ddpm(), radius, y, length=0.3), y))(key)
    assert fitted < jit(functools.partial(misfit, samplers.ddpm(), y))(key)
    zeros = guidance.dps_steps(samplers.ddim(), lambda x: 0 * x, jnp.zeros((2, 3)))
    both = jit(lambda key: (run(zeros, key, 2), run(samplers.ddim(), key, 2)))(key)
    close(*both)


def test_each_row_of_diffpir_minimizes_its_objective_and_goes_on_by_its_share_of_fresh_noise(jit, key):
    noise, weight, zeta, steps = 0.2, 3.0, 0.3, 3
    sampler = guidance.diffpir(operator(), jnp.asarray(Y, float), noise=noise, weight=weight, zeta=zeta, solver=(20, 1e-7))
    fresh = jax.random.normal(key, (steps, 2, 3))
    options = {"noise": fresh, "trajectory": True}
    x, seen = jit(lambda key: run(sampler, key, steps, **options))(key)
    for i, t in enumerate(seen.t[:-1]):
        now, then = SCHEDULE(t), SCHEDULE(seen.t[i + 1])
        x0, predicted = np.asarray(seen.x0[i]), np.asarray(denoise(seen.x[i], t))
        penalty = weight * noise**2 / SCHEDULE.ratio(t) ** 2
        close((x0 @ A.T - Y) @ A + penalty * (x0 - predicted), np.zeros((2, 3)))
        epsilon = (seen.x[i] - now.alpha * x0) / now.sigma
        close(seen.x[i + 1], then.alpha * x0 + then.sigma * (np.sqrt(1 - zeta) * epsilon + np.sqrt(zeta) * fresh[i]))
    close(x, seen.x[-1])


# ---- all ------------------------------------------------------------------------------------------------------------

SAMPLERS = {
    "replacement": lambda y: guidance.replacement(samplers.ddpm(), MASK, y),
    "repaint": lambda y: guidance.repaint(samplers.ddpm(), MASK, y, jump_length=1, resamples=2),
    "ddnm_plus": lambda y: guidance.ddnm_plus(samplers.ddpm(), operator(), y[:1]),
    "dps_steps": lambda y: guidance.dps_steps(samplers.ddpm(), operator(), y[:1]),
    "diffpir": lambda y: guidance.diffpir(operator(), y[:1]),
}


def restored(name, y, key, dtype=jnp.float32):
    return run(SAMPLERS[name](y), key, 2, dtype=dtype)


@pytest.mark.parametrize("name", ["ddnm_plus", "diffpir"])
def test_noise_on_what_a_mask_hides_is_not_seen(jit, key, name):
    seen = linear.mask(MASK)

    def found(y):
        sampler = guidance.ddnm_plus(samplers.ddpm(), seen, y) if name == "ddnm_plus" else guidance.diffpir(seen, y)
        return run(sampler, key)

    np.testing.assert_array_equal(jit(found)(KNOWN), jit(found)(jnp.where(MASK, KNOWN, 0)))
    assert np.isfinite(found(KNOWN)).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_lowers_for_every_platform_and_keeps_the_dtype(name, key):
    exported = jax.export.export(jax.jit(functools.partial(restored, name)), platforms=("cpu", "cuda", "tpu"))(KNOWN, key)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for dtype in (jnp.bfloat16, jnp.float32):
        assert jax.eval_shape(functools.partial(restored, name, dtype=dtype), KNOWN, key).dtype == dtype
    with jax.enable_x64(True):
        assert jax.eval_shape(functools.partial(restored, name, dtype=jnp.float64), KNOWN, key).dtype == np.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_vmap_over_y_is_one_after_the_other(jit, name, key):
    ys = jnp.stack([KNOWN, KNOWN - 1])
    many = jit(jax.vmap(lambda y: restored(name, y, key)))(ys)
    for y, one in zip(ys, many, strict=True):
        close(one, jit(lambda y: restored(name, y, key))(y))
    assert np.abs(many[0] - many[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: guidance.replacement(samplers.ddpm(), jnp.ones(4), KNOWN),
            r"replacement: mask and y must broadcast",
        ),
        (
            lambda: guidance.repaint(samplers.ddpm(), MASK, jnp.ones((5, 3)), jump_length=1),
            "repaint: mask and y must",
        ),
        (
            lambda: guidance.repaint(samplers.heun(), MASK, KNOWN, jump_length=1),
            "one evaluation per step without memory",
        ),
        (lambda: guidance.repaint(samplers.dpmpp_2m(), MASK, KNOWN, jump_length=1), "one evaluation per step"),
        (
            lambda: guidance.repaint(samplers.ddpm(), MASK, KNOWN, jump_length=5),
            "at most the 4 steps of the grid, got 5",
        ),
        (lambda: guidance.repaint(samplers.ddpm(), MASK, KNOWN, resamples=0), "must be at least 1, got 10 and 0"),
        (lambda: guidance.ddnm_plus(samplers.ddim(), operator(), KNOWN[:1]), "sampler must add noise, such as ddpm"),
        (lambda: guidance.ddnm_plus(samplers.heun(), operator(), KNOWN[:1]), "one evaluation per step without memory"),
        (lambda: guidance.ddnm_plus(samplers.ddpm(), operator(), KNOWN[:1], noise=-1), "ddnm_plus: noise must be at least 0"),
        (lambda: guidance.ddnm_plus(samplers.ddpm(), operator(), KNOWN[:1], noise=jnp.ones(())), "noise must be a number"),
        (lambda: guidance.ddnm_plus(samplers.ddpm(), operator(), KNOWN), "ddnm_plus: y must have the shape"),
        (
            lambda: guidance.dps_steps(samplers.heun(), operator(), KNOWN[:1]),
            "dps_steps: sampler must be one evaluation per step",
        ),
        (
            lambda: guidance.dps_steps(samplers.self_conditioned(samplers.ddpm()), operator(), KNOWN[:1]),
            "self_conditioned goes around dps_steps",
        ),
        (lambda: guidance.dps_steps(samplers.ddpm(), operator(), KNOWN[:1], length=-1), "length must be at least 0, got -1"),
        (lambda: guidance.dps_steps(samplers.ddpm(), operator(), KNOWN), "dps_steps: y must have the shape"),
        (lambda: guidance.dps_steps(samplers.ddpm(), jnp.sum, KNOWN[:1]), r"dps_steps: y must have the shape of A\(x\), \(\)"),
        (lambda: guidance.diffpir(operator(), KNOWN[:1], noise=-0.1), "diffpir: noise must be at least 0"),
        (lambda: guidance.diffpir(operator(), KNOWN[:1], weight=0.0), "weight must be positive"),
        (lambda: guidance.diffpir(operator(), KNOWN[:1], zeta=1.5), r"zeta must be in \[0, 1\], got 1.5"),
        (lambda: guidance.diffpir(linear.matrix(jnp.ones((1, 5))), KNOWN[:1]), r"the operator takes \(5,\)"),
    ],
)
def test_wrong_use_is_told(wrong, message, key):
    with pytest.raises(ValueError, match=message):
        run(wrong(), key)


# ---- against the exact posterior ------------------------------------------------------------------------------------

# Mean (in standard deviations) and covariance (relative): about 1.3 times what 10,000 draws show, see the benchmark's table.
BOUNDS = {
    "first of 3 known, noise 0.05": {
        "exact denoiser, heun": (0.06, 0.08),
        "moment_matching, heun": (0.5, 0.16),
        "pigdm, heun": (0.55, 0.14),
        "pigdm, ddpm": (0.45, 0.12),
        "dps, ddpm": (0.4, 0.16),
        "dps_steps, ddpm": (0.14, 0.17),
        "diffpir": (0.48, 0.18),
        "replacement, ddpm": (0.6, 0.18),
        "repaint(10, 10), ddpm": (0.23, 0.1),
    },
    "2 sums of 3, noise 0.3": {
        "moment_matching, heun": (0.36, 0.22),
        "pigdm, ddpm": (0.24, 0.2),
        "dps, ddpm": (0.22, 0.2),
        "dps_steps, ddpm": (0.2, 0.6),
        "diffpir": (0.3, 0.32),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", BOUNDS)
def test_errors_against_the_exact_posterior_of_a_mixture_stay_as_measured(problem):
    prior = posterior.gaussian_mixture(posterior.SCHEDULE, posterior.WEIGHTS, posterior.MEANS, posterior.COVARIANCES)
    matrix, y, noise, *pixels = posterior.problems()[problem]
    exact = posterior.moments(*posterior.condition(posterior.WEIGHTS, posterior.MEANS, posterior.COVARIANCES, matrix, y, noise))
    methods, grid, found = (
        posterior.methods(prior, matrix, y, noise, *pixels),
        schedules.log_snr(100, lowest=-9.0, highest=9.0),
        {},
    )
    for name, bounds in BOUNDS[problem].items():
        sampler, corrected = methods[name]
        program = jax.jit(lambda key, s=sampler, d=corrected: samplers.sample(s, d, posterior.SCHEDULE, grid, key, (3000, 3)))
        found[name] = posterior.errors(program(jax.random.key(5)), *exact)
        assert (np.array(found[name]) < bounds).all(), (name, found[name])
    if pixels[0] is not None:
        assert found["repaint(10, 10), ddpm"][0] < found["replacement, ddpm"][0] / 2
