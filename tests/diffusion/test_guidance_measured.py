"""Denoisers given measurements: where the data are normal, the conditional mean is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxnets.diffusion import guidance, samplers, schedules
from jaxnets.proximal import fista, linear

A = np.array([[0.8, 0.5, -0.2], [-0.3, 0.6, 0.9]])
MEAN, STD, NOISE = np.array([0.5, -0.3, 0.2]), 0.7, 0.2
FACTOR = np.array([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.3]])  # of a covariance with deviations 1.2 to 0.2
Y = np.array([[0.7, -0.4], [0.1, 0.9], [-1.0, 0.2], [0.3, 0.3]])
SCHEDULES = [schedules.cosine(), schedules.edm(), schedules.flow()]
NAMES = ["cosine", "edm", "flow"]


def covariance(isotropic):
    return STD**2 * np.eye(3) if isotropic else FACTOR @ FACTOR.T


def normal(schedule, mean, covariance):
    """The exact denoiser of N(mean, covariance), one mean for all or one per example."""
    covariance, mean = jnp.asarray(covariance, float), jnp.broadcast_to(jnp.asarray(mean, float), (4, 3))

    def denoise(x, t):
        alpha, sigma, _ = (jnp.reshape(part, (-1, 1)) for part in schedule(jnp.asarray(t)))
        total = alpha[..., None] ** 2 * covariance[None] + sigma[..., None] ** 2 * jnp.eye(3)[None]
        gain = alpha[..., None] * covariance[None] @ jnp.linalg.inv(total)
        gain = jnp.broadcast_to(gain, (4, 3, 3))
        return mean[: len(x)] + jnp.einsum("bij,bj->bi", gain[: len(x)], x - alpha * mean[: len(x)])

    return denoise


def conditioned(covariance, noise=NOISE, y=Y):
    """Means and covariance of the data given y."""
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + noise**2 * np.eye(2))
    return MEAN + (y - MEAN @ A.T) @ gain.T, covariance - gain @ A @ covariance


@pytest.fixture
def x(key):
    return jax.random.normal(key, (4, 3), float)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def operator():
    return linear.matrix(jnp.asarray(A, float))


def posterior(name, schedule, y=Y, **options):
    denoise = normal(schedule, MEAN, covariance(name == "pigdm"))
    options = {"noise": NOISE, **({"data_std": STD} if name == "pigdm" else {}), **options}
    return getattr(guidance, name)(denoise, schedule, operator(), jnp.asarray(y, float), **options)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
@pytest.mark.parametrize("name", ["pigdm", "moment_matching"])
def test_of_normal_data_the_posterior_denoiser_is_that_of_the_posterior_at_every_time(jit, x, name, schedule):
    """pigdm where the covariance is a multiple of 1, moment_matching where it is any."""
    exact = normal(schedule, *conditioned(covariance(name == "pigdm")))
    run = jit(lambda x, t: posterior(name, schedule, solver=(30, 1e-7))(x, t))
    for t in (0.05, 0.5, 0.95):
        close(run(x, jnp.array(t)), exact(x, t), 1e-4)
    times = jnp.array([0.1, 0.2, 0.6, 0.9])  # one for each example
    close(run(x, times), exact(x, times), 1e-4)


@pytest.mark.parametrize("name", ["pigdm", "moment_matching"])
def test_in_double_precision_it_is_exact_to_nine_digits(name):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (4, 3), float)
        found = posterior(name, SCHEDULES[0], solver=(30, 1e-12))(x, 0.4)
        expected = normal(SCHEDULES[0], *conditioned(covariance(name == "pigdm")))(x, 0.4)
    assert found.dtype == np.float64
    close(found, expected, 1e-9)


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_at_both_ends_of_the_schedule_pigdm_is_finite_and_at_pure_noise_exact(jit, x, noise):
    schedule = SCHEDULES[0]
    run = jit(lambda x, t: posterior("pigdm", schedule, noise=noise)(x, t))
    close(run(x, jnp.array(1.0)), conditioned(covariance(True), noise)[0], 1e-4)
    if noise:
        close(run(x, jnp.array(0.0)), x, 1e-5)
    assert np.isfinite(run(x, jnp.array(0.0))).all()
    assert np.isfinite(posterior("moment_matching", schedule, noise=noise)(x, 1.0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pigdm", "moment_matching"])
def test_samples_of_normal_data_given_measurements_have_the_exact_mean_and_covariance(name):
    """Heun's steps are an affine map of the noise here: its Jacobian holds the covariance, no draws are needed."""
    schedule = schedules.edm()

    def run(x):
        grid = schedules.karras(40)
        return samplers.sample(samplers.heun(), posterior(name, schedule), schedule, grid, x=x)

    means, expected = conditioned(covariance(name == "pigdm"))
    jacobian = jax.jit(jax.jacfwd(lambda one: run(jnp.tile(one[None], (4, 1)))[0]))(jnp.zeros(3)) * 80.0
    close(jax.jit(run)(jnp.zeros((4, 3))), means, 5e-3)
    close(jacobian @ jacobian.T, expected, 5e-3)
    prior = covariance(name == "pigdm")
    assert np.linalg.norm(prior - expected) > 0.3  # far from the prior, which another posterior would give


def test_the_snippet_of_the_documentation_restores(jit, key):
    schedule, y, shape = SCHEDULES[0], jnp.asarray(Y, float), (4, 3)
    denoise = normal(schedule, MEAN, covariance(True))
    steps = 40 if jit is jax.jit else 2

    def restore(key):
        posterior = guidance.pigdm(denoise, schedule, operator(), y, noise=0.05)
        return samplers.sample(samplers.heun(), posterior, schedule, schedules.karras(steps), key, shape)

    restored = jit(restore)(key)
    assert restored.shape == shape
    assert np.isfinite(restored).all()
    if jit is jax.jit:  # two steps don't
        assert np.abs(restored @ A.T - Y).max() < 0.25


def test_one_operator_for_each_example_is_one_operator_for_the_batch(x):
    schedule, t, y = SCHEDULES[0], 0.5, jnp.asarray(Y, float)
    denoise = normal(schedule, MEAN, covariance(True))
    whole = linear.batch(operator(), 4)
    for method in (guidance.pigdm, guidance.moment_matching):
        options = {"noise": NOISE, "solver": (50, 1e-7)}
        each = method(denoise, schedule, operator(), y, **options)(x, t)
        close(method(denoise, schedule, whole, y, **options)(x, t), each, 1e-5)
        same = method(denoise, schedule, operator(), Y[1], **options)(x, t)  # one y for all, of NumPy
        close(same[1], each[1], 1e-5)


def test_vmap_over_measurements_is_one_after_the_other(jit, x):
    ys = jnp.stack([jnp.asarray(Y, float), 2 - jnp.asarray(Y, float)])
    restored = functools.partial(_restored, x)
    many = jit(jax.vmap(restored))(ys)
    for y, one in zip(ys, many, strict=True):
        close(one, jit(restored)(y), 1e-4)
    assert np.abs(many[0] - many[1]).max() > 0.1


def _restored(x, y):
    schedule = SCHEDULES[0]
    denoise = normal(schedule, MEAN, covariance(True))
    corrected = guidance.pigdm(denoise, schedule, operator(), y, noise=NOISE, data_std=STD)
    return samplers.sample(samplers.ddim(), corrected, schedule, schedules.uniform(2), x=x)


def test_the_gradient_by_the_measurements_goes_through_the_solver(x):
    """The exact posterior mean is linear in y: its derivative is the gain."""
    with jax.enable_x64(True):
        x = jnp.asarray(x, float)
        schedule, prior = SCHEDULES[0], covariance(True)
        denoise = normal(schedule, MEAN, prior)

        def first(y):
            corrected = guidance.pigdm(denoise, schedule, operator(), y, noise=NOISE, data_std=STD, solver=(30, 1e-12))
            return corrected(x, 1.0)[0]

        y = jnp.asarray(Y, float)
        for derivative in (jax.jacrev, jax.jacfwd):
            gain = prior @ A.T @ np.linalg.inv(A @ prior @ A.T + NOISE**2 * np.eye(2))
            close(jax.jit(derivative(first))(y)[:, 0], gain, 1e-8)


# ---- DPS, DDNM ------------------------------------------------------------------------------------------------------


def test_dps_descends_the_misfit_by_the_variance_along_the_residual(jit, x):
    schedule, prior, y, noise = SCHEDULES[0], covariance(False), jnp.asarray(Y, float), 0.1
    denoise = normal(schedule, MEAN, prior)
    found = jit(lambda x: guidance.dps(denoise, schedule, operator(), y, noise=noise, strength=0.5)(x, 0.5))(x)
    alpha, sigma, _ = schedule(0.5)
    x0 = np.asarray(denoise(x, 0.5))
    residual = Y - x0 @ A.T
    left = sigma**2 * prior @ np.linalg.inv(alpha**2 * prior + sigma**2 * np.eye(3))  # the covariance of x_0 given x
    direction = residual / np.linalg.norm(residual, axis=1, keepdims=True)
    variance = noise**2 + np.einsum("bi,ij,bj->b", direction @ A, left, direction @ A)
    close(found, x0 + 0.5 * (residual / variance[:, None]) @ A @ left, 1e-4)
    assert np.isfinite(guidance.dps(denoise, schedule, operator(), y)(x, 1.0)).all()  # nothing is left of the data
    assert np.isfinite(guidance.dps(denoise, schedule, operator(), y, noise=0.0)(x, 0.0)).all()


def test_with_one_number_measured_dps_is_exact_for_normal_data(jit, x):
    schedule, prior, row = SCHEDULES[0], covariance(False), A[:1]
    one = linear.matrix(jnp.asarray(row, float))
    gain = prior @ row.T / (row @ prior @ row.T + NOISE**2)
    exact = normal(schedule, MEAN + (Y[:, :1] - MEAN @ row.T) @ gain.T, prior - gain @ row @ prior)
    denoise = normal(schedule, MEAN, prior)
    found = jit(lambda x: guidance.dps(denoise, schedule, one, jnp.asarray(Y[:, :1], float), noise=NOISE)(x, 0.5))(x)
    close(found, exact(x, 0.5), 1e-4)


def test_dps_takes_any_function_and_lowers_its_misfit(jit, x):
    schedule, y = SCHEDULES[0], jnp.full((4,), 1.5)
    denoise = normal(schedule, MEAN, covariance(True))

    def radius(x):
        return jnp.sqrt((x**2).sum(-1))

    before = denoise(x, 0.3)
    after = jit(lambda x: guidance.dps(denoise, schedule, radius, y)(x, 0.3))(x)
    assert np.linalg.norm(y - radius(after)) < np.linalg.norm(y - radius(before))


def test_ddnm_measures_y_and_keeps_what_the_operator_does_not_see(jit, x):
    denoise = normal(SCHEDULES[0], MEAN, covariance(False))
    run = jit(lambda x: guidance.ddnm(denoise, operator(), jnp.asarray(Y, float), solver=(30, 1e-7))(x, 0.5))
    found, x0 = run(x), denoise(x, 0.5)
    close(found @ A.T, Y, 1e-5)
    unseen = np.eye(3) - np.linalg.pinv(A) @ A
    close(found @ unseen, x0 @ unseen, 1e-5)


def test_ddnm_samples_measure_y_exactly(jit, key):
    denoise = normal(SCHEDULES[0], MEAN, covariance(False))
    projected = guidance.ddnm(denoise, operator(), jnp.asarray(Y, float), solver=(30, 1e-7))
    run = jit(lambda key: samplers.sample(samplers.ddpm(), projected, SCHEDULES[0], schedules.uniform(3), key, (4, 3)))
    close(run(key) @ A.T, Y, 1e-5)


def test_dependent_rows_and_complex_measurements_are_solved_too(x):
    """Rows that say the same, and a Fourier transform of real data: pseudo-inverses, one singular, one complex."""
    twice = linear.matrix(jnp.asarray(np.vstack([A, A]), float))
    y = jnp.asarray(np.hstack([Y, Y]), float)
    close(guidance.ddnm(lambda x, t: x, twice, y)(x, 0.5) @ A.T, Y, 1e-4)
    spectrum = linear.rfft((3,))
    wanted = jnp.asarray([[0.3, -0.1, 0.8]], float)
    close(guidance.ddnm(lambda x, t: x, spectrum, spectrum(wanted[0]))(x, 0.5), np.tile(wanted, (4, 1)), 1e-4)


@pytest.mark.parametrize("name", ["ddnm", "pigdm", "moment_matching"])
def test_what_no_data_could_have_caused_changes_nothing(jit, x, name):
    """Rows that contradict each other: their mean counts, exact measurements though they were."""
    denoise = normal(SCHEDULES[0], MEAN, covariance(False))
    twice = linear.matrix(jnp.asarray(np.vstack([A, A]), float))
    arguments = (denoise,) if name == "ddnm" else (denoise, SCHEDULES[0])
    options = {"solver": (30, 1e-6)} | ({} if name == "ddnm" else {"noise": 0.0})
    apart = np.array([3.0, -1.0])
    run = jit(lambda y: getattr(guidance, name)(*arguments, twice, y, **options)(x, jnp.asarray(0.5)))
    found = run(jnp.asarray(np.hstack([Y - apart, Y + apart]), float))
    close(found, run(jnp.asarray(np.hstack([Y, Y]), float)), 2e-4)
    if name != "pigdm":  # whose factor is exact for other data
        close(found @ A.T, Y, 2e-4)


# ---- plug and play --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)
def test_plug_and_play_fista_finds_the_posterior_mean_of_normal_data(jit, schedule):
    """MAP and mean are the same point: `(A^T A + noise² / s²) (x - m) = A^T (y - A m)`, whatever the step size."""
    term = guidance.plug_and_play(normal(schedule, MEAN, covariance(True)), schedule, strength=NOISE)
    problem = fista.least_squares(linear.batch(operator(), 4), jnp.asarray(Y, float))
    steps = 300 if jit is jax.jit else 4

    def run(x0):
        return fista.fista(problem, term, x0, step=fista.constant(0.5), stop=fista.residual(1e-6), max_steps=steps)

    exact = conditioned(covariance(True))[0]
    start = jnp.zeros((4, 3)) if jit is jax.jit else jnp.asarray(exact, float)  # without jit: that it stays there
    close(jit(run)(start).x, exact, 2e-4)


def test_plug_and_play_hands_conditions_to_the_denoiser_and_compares_by_value():
    def denoise(x, t, label):
        return x + label

    first, second = (guidance.plug_and_play(denoise, SCHEDULES[1], label=jnp.array(label)) for label in (2.0, 3.0))
    close(first.prox(jnp.ones((1, 2)), 0.1), np.full((1, 2), 3.0), 1e-6)
    close(second.prox(jnp.ones((1, 2)), 0.1), np.full((1, 2), 4.0), 1e-6)
    assert jax.tree.structure(first) == jax.tree.structure(second)  # one compiled program serves both


# ---- all ------------------------------------------------------------------------------------------------------------

METHODS = {
    "dps": guidance.dps,
    "pigdm": guidance.pigdm,
    "moment_matching": guidance.moment_matching,
    "ddnm": lambda denoise, schedule, *data: guidance.ddnm(denoise, *data),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_for_every_platform_and_keeps_the_dtype(name):
    schedule = SCHEDULES[0]

    def run(x, y):
        return METHODS[name](lambda x, t: x / 2, schedule, operator(), y)(x, 0.5)

    for dtype in (jnp.bfloat16, jnp.float32):
        shapes = jax.ShapeDtypeStruct((4, 3), dtype), jax.ShapeDtypeStruct((4, 2), jnp.float32)
        assert jax.eval_shape(run, *shapes).dtype == dtype
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("name", METHODS)
def test_an_operator_or_y_of_another_shape_is_told(name):
    def build(y, x, t=0.5, operator=operator):
        return METHODS[name](lambda x, t: x, SCHEDULES[0], operator(), y)(x, t)

    x, y = jnp.ones((4, 3)), jnp.asarray(Y, float)
    with pytest.raises(ValueError, match=rf"{name}: y must have the shape of A\(x\), \(2,\), or a batch axis.*got \(4, 3\)"):
        build(x, x)
    with pytest.raises(ValueError, match=rf"{name}: the operator takes \(3,\), which is neither x, \(4, 5\), nor one"):
        build(y, jnp.ones((4, 5)))
    with pytest.raises(ValueError, match=f"{name}: y has 4 examples, x has 5"):
        build(y, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=rf"{name}: y must have the shape of A\(x\), \(2,\), got \(4, 2\)"):
        build(y, jnp.ones(3))
    if name != "ddnm":
        with pytest.raises(ValueError, match=rf"{name}: an operator that takes all of x needs one time for all, got \(4,\)"):
            build(y, x, jnp.full((4,), 0.5), lambda: linear.batch(operator(), 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: posterior("dps", SCHEDULES[0], noise=-0.1), "dps: noise must be at least 0, got -0.1"),
        (lambda: posterior("pigdm", SCHEDULES[0], noise=-1), "pigdm: noise must be at least 0"),
        (lambda: posterior("pigdm", SCHEDULES[0], data_std=0.0), "data_std must be positive, got 0.0"),
        (lambda: posterior("moment_matching", SCHEDULES[0], noise=-0.1), "moment_matching: noise"),
        (
            lambda: guidance.dps(lambda x, t: x, SCHEDULES[0], jnp.sum, jnp.ones(2))(jnp.ones((4, 3)), 0.5),
            r"dps: y must have the shape of A\(x\), \(\), got \(2,\)",
        ),
    ],
)
def test_wrong_use_is_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_function_in_place_of_an_operator_is_told_what_to_do():
    jaxtyping.config.update("jaxtyping_disable", True)  # as users have it
    try:
        with pytest.raises(
            ValueError, match=r"ddnm: operator must be a linear.Operator; linear.operator\(function, shape\) makes"
        ):
            guidance.ddnm(lambda x, t: x, jnp.sum, jnp.ones(2))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
