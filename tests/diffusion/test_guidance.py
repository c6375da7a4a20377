"""Guidance by conditions, classifiers and worse models; thresholds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.diffusion import guidance, samplers, schedules
from jaxnets.models import denoiser

SCHEDULE = schedules.cosine()
TABLE = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.2, -1.0], [0.0, 0.1, 3.0]])


def denoise(x, t, label=None):
    """Depends on everything that it is told; label None is the null class, the last row."""
    row = TABLE[2] if label is None else TABLE[label]
    return 0.5 * x * jnp.reshape(1 - t, (-1, 1)).astype(x.dtype) + row[None].astype(x.dtype)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (2, 3))


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", [0.5, jnp.array(0.5), jnp.array([0.4, 0.6])], ids=["number", "scalar", "per example"])
def test_classifier_free_is_linear_in_the_scale_with_the_unconditional_at_0_and_the_conditional_at_1(jit, x, t):
    conditional, unconditional = denoise(x, t, label=0), denoise(x, t)

    def guided(scale):
        return jit(lambda x: guidance.classifier_free(denoise, scale)(x, t, label=0))(x)

    for scale in (1.0, jnp.array(1.0)):
        close(guided(scale), conditional)
    close(guided(0.0), unconditional)
    close(guided(3.5), unconditional + 3.5 * (conditional - unconditional))


def test_outside_of_its_interval_guidance_is_the_conditional_denoiser_for_each_example_by_itself(jit, x):
    guided = guidance.classifier_free(denoise, 4.0, interval=(0.2, 0.9))
    always = guidance.classifier_free(denoise, 4.0)
    run = jit(lambda x, t: guided(x, t, label=1))
    for t in (0.1, 0.95):
        close(run(x, jnp.array(t)), denoise(x, jnp.array(t), 1))
    for t in (0.2, 0.5, 0.9):  # ends included
        close(run(x, jnp.array(t)), always(x, t, label=1))
    mixed = run(x, jnp.array([0.1, 0.5]))
    close(mixed[0], denoise(x, 0.1, 1)[0])
    close(mixed[1], always(x, 0.5, label=1)[1])


@pytest.mark.skipif(jax.config.jax_disable_jit, reason="what a compiled program skips")
def test_outside_of_its_interval_the_unconditional_denoiser_is_not_evaluated():
    calls = []

    def counted(x, t, label=None):
        jax.debug.callback(lambda: calls.append(label))
        return denoise(x, t, label)

    guided = jax.jit(lambda x, t: guidance.classifier_free(counted, 2.0, (0.2, 0.9))(x, t, label=0))
    for t, expected in ((0.1, 1), (0.5, 2)):
        calls.clear()
        jax.block_until_ready(guided(jnp.ones((2, 3)), jnp.array(t)))
        jax.effects_barrier()
        assert len(calls) == expected


def test_rescaling_gives_each_example_the_deviation_of_the_conditional_and_a_share_of_it_is_between(jit, x):
    run = jit(lambda x, share: guidance.classifier_free(denoise, 5.0, rescale=share)(x, 0.5, label=0), static_argnums=1)
    wanted, pushed = np.std(denoise(x, 0.5, 0), axis=1), run(x, 0.0)
    close(np.std(run(x, 1.0), axis=1), wanted)
    close(run(x, 0.25), 0.25 * run(x, 1.0) + 0.75 * pushed, 1e-5)
    assert (np.abs(np.std(pushed, axis=1) - wanted) > 0.5).all()  # otherwise nothing was rescaled


def test_a_constant_conditional_is_rescaled_to_a_finite_result():
    def flat(x, t, label=None):
        return jnp.ones_like(x)

    close(guidance.classifier_free(flat, 3.0, rescale=0.7)(jnp.ones((2, 3)), 0.5, label=0), np.ones((2, 3)))


def test_null_conditions_are_what_the_caller_says(x):
    guided = guidance.classifier_free(denoise, 2.0, null={"label": 1})
    close(guided(x, 0.5, label=0), 2 * denoise(x, 0.5, 0) - denoise(x, 0.5, 1))


def test_autoguidance_pushes_away_from_the_worse_denoiser_which_sees_the_same_conditions(jit, x):
    def weak(x, t, label=None):
        return 0.9 * denoise(x, t, label)

    best, worse = denoise(x, 0.5, 1), 0.9 * denoise(x, 0.5, 1)
    for scale, expected in ((0.0, worse), (1.0, best), (2.5, worse + 2.5 * (best - worse))):
        close(jit(lambda x, s=scale: guidance.autoguidance(denoise, weak, s)(x, 0.5, label=1))(x), expected)
    close(jit(lambda x: guidance.autoguidance(denoise, denoise, 7.0)(x, 0.5, label=1))(x), best, 1e-5)
    np.testing.assert_array_equal(guidance.autoguidance(denoise, weak, 2.0, (0.6, 0.9))(x, 0.5, label=1), best)


def gaussian(schedule, mean, std):
    def exact(x, t, **conditions):
        alpha, sigma, _ = schedule(jnp.asarray(t))
        return mean[None] + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean[None])

    return exact


MEANS, STD, SHARES = jnp.array([[1.0, 0.0], [-1.0, 0.5]]), 0.5, jnp.array([0.3, 0.7])


def log_classes(schedule, x, t):
    alpha, sigma, _ = schedule(jnp.asarray(t))
    distance = ((x[:, None] - alpha * MEANS[None]) ** 2).sum(-1) / (alpha**2 * STD**2 + sigma**2)
    return jax.nn.log_softmax(jnp.log(SHARES)[None] - 0.5 * distance)


@pytest.mark.parametrize("schedule", [schedules.cosine(), schedules.flow(), schedules.edm(2.0)], ids=["cosine", "flow", "edm"])
def test_the_exact_classifier_makes_of_all_data_those_of_the_class(jit, key, schedule):
    """Of two Gaussian classes: a mixture guided by its exact posterior class probability is the class itself."""
    x, classes = jax.random.normal(key, (6, 2)), [gaussian(schedule, mean, STD) for mean in MEANS]

    def mixture(x, t, label):
        del label
        shares = jnp.exp(log_classes(schedule, x, t))
        return shares[:, :1] * classes[0](x, t) + shares[:, 1:] * classes[1](x, t)

    def log_prob(x, t, label):
        return log_classes(schedule, x, t)[:, label]

    run = jit(lambda x, t: guidance.classifier(mixture, schedule, log_prob)(x, t, label=1))
    for t in (0.05, 0.5, 0.95):
        close(run(x, jnp.array(t)), classes[1](x, t), 2e-5)
    at_noise = jit(lambda x: guidance.classifier(mixture, schedule, log_prob)(x, schedule.end, label=1))(x)
    assert np.isfinite(at_noise).all()
    twice = guidance.classifier(mixture, schedule, log_prob, 2.0)(x, 0.5, label=1)
    close(twice - mixture(x, 0.5, 1), 2 * (classes[1](x, 0.5) - mixture(x, 0.5, 1)), 2e-5)


def test_dynamic_thresholds_bound_every_example_and_leave_what_is_inside(jit):
    x0 = jnp.array([[0.2, -0.9, 0.5, 0.1], [5.0, -1.0, 2.0, -8.0]])
    run = jit(lambda x: guidance.dynamic_thresholding(lambda x, t: x, 0.75)(x, 0.5))
    bounded = run(x0)
    np.testing.assert_array_equal(bounded[0], x0[0])
    bound = np.quantile(np.abs(x0[1]), 0.75)
    close(bounded[1], np.clip(x0[1], -bound, bound) / bound)
    assert np.abs(bounded).max() <= 1
    wide = guidance.dynamic_thresholding(lambda x, t: x, 1.0, least=3.0)(x0, 0.5)
    close(wide[1], x0[1] * 3 / 8)


def test_an_array_of_one_axis_is_one_example():
    x0 = jnp.array([1.0, -4.0, 2.0])
    close(guidance.dynamic_thresholding(lambda x, t: x, 1.0)(x0, 0.5), x0 / 4)


def test_clip_bounds_every_leaf_of_a_tree(jit):
    x = {"a": jnp.array([-3.0, 0.5]), "b": jnp.array([[0.7, 0.2]])}
    clipped = jit(lambda x: guidance.clip(lambda x, t: x, -0.5, 0.6)(x, 0.0))(x)
    close(clipped["a"], [-0.5, 0.5])
    close(clipped["b"], [[0.6, 0.2]])


def test_a_network_without_a_null_class_says_so_itself(key):
    model = denoiser.MLPDenoiser(width=4, depth=1, classes=3, null=False)
    x = jnp.ones((2, 3))
    variables = model.init(key, x, 0.5, 0)
    guided = guidance.classifier_free(lambda x, t, label: model.apply(variables, x, t, label), 2.0)
    with pytest.raises(ValueError, match="null class"):
        guided(x, 0.5, label=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: guidance.classifier_free(denoise)(jnp.ones((2, 3)), 0.5), "needs the condition label; got none"),
        (lambda: guidance.classifier_free(denoise)(jnp.ones((2, 3)), 0.5, label=None), "needs the condition label"),
        (lambda: guidance.classifier_free(denoise, interval=(0.9, 0.2)), "low < high, got"),
        (lambda: guidance.classifier_free(denoise, rescale=1.5), r"rescale must be in \[0, 1\], got 1.5"),
        (lambda: guidance.autoguidance(denoise, denoise, interval=(0.5, 0.5)), "autoguidance: interval"),
        (lambda: guidance.dynamic_thresholding(denoise, 0.0), r"percentile must be in \(0, 1\], got 0.0"),
        (lambda: guidance.dynamic_thresholding(denoise, least=0.0), "least must be positive"),
        (lambda: guidance.clip(denoise, 1.0, -1.0), "low must be below high, got 1.0 and -1.0"),
        (
            lambda: guidance.classifier(denoise, SCHEDULE, lambda x, t: x)(jnp.ones((2, 3)), 0.5),
            r"log_prob must be a number or one for each example, got \(2, 3\)",
        ),
    ],
)
def test_wrong_use_is_told(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def composed(schedule):
    """All of them at once."""
    guided = guidance.classifier_free(denoise, 2.0, (0.2, 0.9), rescale=0.5)
    guided = guidance.autoguidance(guided, denoise, 1.5, (0.1, 0.8))
    guided = guidance.classifier(guided, schedule, lambda x, t, label: -((x - TABLE[label][None]) ** 2).sum(-1), 0.1)
    return guidance.clip(guidance.dynamic_thresholding(guided, 0.9), -1.0, 1.0)


def draw(key, label):
    grid = schedules.uniform(2)
    return samplers.sample(samplers.ddim(), composed(SCHEDULE), SCHEDULE, grid, key, (2, 3), label=label)


def test_guidance_lowers_for_every_platform(key):
    exported = jax.export.export(jax.jit(draw), platforms=("cpu", "cuda", "tpu"))(key, 0)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_vmap_over_labels_is_one_label_after_the_other(jit, key):
    labels = jnp.array([0, 1])
    many = jit(jax.vmap(functools.partial(draw, key)))(labels)
    for label, one in zip(labels, many, strict=True):
        close(one, jit(draw)(key, label), 1e-5)
    assert np.abs(many[0] - many[1]).max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_dtype_is_that_of_x(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.ones((2, 3), dtype)
        out = composed(SCHEDULE)(x, jnp.asarray(0.5, jnp.float32), label=0)
        plain = guidance.classifier_free(lambda x, t, label: (x * (2 if label is None else 3)).astype(x.dtype), 2.0)(
            x, 0.5, label=0
        )
    assert out.dtype == plain.dtype == jnp.dtype(dtype)
    close(np.asarray(plain, np.float64), np.full((2, 3), 4.0))
