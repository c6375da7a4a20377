"""What holds for every loss: derivatives, dtype, one value per example, vmap, and one program for every platform."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxnets import losses

RNG = np.random.default_rng(0)
SCORES, OTHERS = RNG.normal(size=(2, 4, 3))
LABELS, SIGNS, SOFT = jnp.array([2, 0, 1, 2]), jnp.array([[1, -1, 1]] * 4), jnp.asarray(RNG.dirichlet(np.ones(3), 4))
UNIFORM, GROUPS = jax.nn.sigmoid(OTHERS), jnp.array([0, 1, 0, 1])
PIXELS = jnp.array([[[0, 1], [2, 1]], [[2, 2], [9, 0]]])
IMAGE = RNG.normal(size=(2, 2, 2, 3))
WEIGHTS = jnp.array([1.0, 2.0, 0.5])

# name: (loss of its floating arguments, these arguments)
CASES = {
    "squared": (losses.squared, (SCORES, OTHERS)),
    "absolute": (losses.absolute, (SCORES, OTHERS)),
    "huber": (losses.huber, (2 * SCORES, OTHERS)),
    "smooth_l1": (functools.partial(losses.smooth_l1, beta=0.5), (SCORES, OTHERS)),
    "log_cosh": (losses.log_cosh, (2 * SCORES, OTHERS)),
    "quantile": (functools.partial(losses.quantile, level=0.8), (SCORES, OTHERS)),
    "gaussian_nll": (lambda m, v, t: losses.gaussian_nll((m, v), t), (SCORES, OTHERS, SCORES[::-1].copy())),
    "poisson_nll": (lambda r: losses.poisson_nll(r, jnp.abs(SIGNS)), (SCORES,)),
    "softmax_cross_entropy": (lambda x: losses.softmax_cross_entropy(x, LABELS, ignore_index=1), (SCORES,)),
    "softmax_cross_entropy of all options": (
        lambda x: losses.softmax_cross_entropy(x, LABELS, label_smoothing=0.1, class_weights=WEIGHTS.astype(x.dtype)),
        (SCORES,),
    ),
    "softmax_cross_entropy of a distribution": (lambda x, t: losses.softmax_cross_entropy(x, t), (SCORES, np.asarray(SOFT))),
    "nll": (lambda x: losses.nll(x, LABELS), (SCORES,)),
    "softmax_focal": (lambda x: losses.softmax_focal(x, LABELS, gamma=1.5), (SCORES,)),
    "poly": (lambda x: losses.poly(x, LABELS), (SCORES,)),
    "multiclass_hinge": (lambda x: losses.multiclass_hinge(x, LABELS), (SCORES,)),
    "sigmoid_cross_entropy": (losses.sigmoid_cross_entropy, (SCORES, np.asarray(UNIFORM))),
    "sigmoid_focal": (functools.partial(losses.sigmoid_focal, alpha=0.3), (SCORES, np.asarray(UNIFORM))),
    "hinge": (lambda x: losses.hinge(x, SIGNS), (SCORES,)),
    "kl_divergence": (losses.kl_divergence, (SCORES, np.asarray(SOFT))),
    "reverse_kl_divergence": (losses.reverse_kl_divergence, (SCORES, np.asarray(SOFT))),
    "gaussian_kl": (losses.gaussian_kl, (SCORES, OTHERS)),
    "dice": (lambda x: losses.dice(x, PIXELS, ignore_index=9), (IMAGE,)),
    "tversky": (lambda x: losses.tversky(x, PIXELS, alpha=0.3, beta=0.7, ignore_index=9), (IMAGE,)),
    "generalized_dice": (lambda x: losses.generalized_dice(x, PIXELS, ignore_index=9), (IMAGE,)),
    "lovasz_softmax": (lambda x: losses.lovasz_softmax(x, PIXELS, ignore_index=9), (IMAGE,)),
    "ohem": (lambda v: jnp.where(losses.ohem(v, threshold=0.5, min_kept=2), v, 0), (SCORES,)),
    "with_ohem": (
        lambda x: losses.with_ohem(losses.softmax_cross_entropy, threshold=1.0, min_kept=2, ignore_index=9)(x, PIXELS),
        (IMAGE,),
    ),
    "with_auxiliary": (
        lambda x, a: losses.with_auxiliary(losses.softmax_cross_entropy)((x, None, a, x + a), LABELS),
        (SCORES, OTHERS),
    ),
    "ctc": (lambda x: losses.ctc(x, jnp.array([[1, 1], [2, -1]]), logit_lengths=jnp.array([4, 3])), (IMAGE.reshape(2, 4, 3),)),
    "cosine_similarity": (losses.cosine_similarity, (SCORES, OTHERS)),
    "cosine_distance": (losses.cosine_distance, (SCORES, OTHERS)),
    "contrastive": (lambda a, b: losses.contrastive(a, b, GROUPS > 0, margin=4.0), (SCORES, OTHERS)),
    "triplet": (lambda a, b: losses.triplet(a, b, a[::-1], margin=4.0), (SCORES, OTHERS)),
    "info_nce": (functools.partial(losses.info_nce, temperature=0.5), (SCORES, OTHERS)),
    "supervised_contrastive": (lambda a: losses.supervised_contrastive(a, GROUPS), (SCORES,)),
    "reduce": (lambda v, w: losses.reduce(v, weights=w, axis=1), (SCORES, np.asarray(UNIFORM))),
}


def arguments(name, dtype):
    return [jnp.asarray(a, dtype) for a in CASES[name][1]]


def test_every_public_loss_has_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(losses.__all__) - {"target_weights"}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_the_finite_differences_of_float64(name):
    """Forward and reverse mode, for every floating argument; and nothing falls back to float32 on the way."""
    with jax.enable_x64(True):
        loss, args = CASES[name][0], arguments(name, jnp.float64)
        assert loss(*args).dtype == jnp.float64
        on_arrays = jax.jit(lambda *a: loss(*map(jnp.asarray, a)))
        jax.test_util.check_grads(on_arrays, args, order=1, modes=("fwd", "rev"), atol=1e-8, rtol=1e-6, eps=1e-5)


def everything(inputs):
    """All losses in one program, compiled whether or not the rest of the suite is: one by one is what every other test does."""
    return {name: CASES[name][0](*args) for name, args in inputs.items()}


def test_bfloat16_gives_bfloat16_near_the_float32_value():
    rounded = {name: arguments(name, jnp.bfloat16) for name in CASES}
    with jax.disable_jit(False):
        values = jax.jit(everything)(rounded)
        expected = jax.jit(everything)(jax.tree.map(lambda a: a.astype(jnp.float32), rounded))
    for name in CASES:
        assert values[name].dtype == jnp.bfloat16, name
        assert expected[name].dtype == jnp.float32, name
        np.testing.assert_allclose(values[name].astype(jnp.float32), expected[name], rtol=0.02, atol=0.02, err_msg=name)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (losses.poisson_nll, (5.6875, 299.0)),
        (losses.gaussian_kl, (0.01, 0.02)),
        (lambda m, v, t: losses.gaussian_nll((m, v), t), (2.0, -1.83, 2.0)),
        (losses.log_cosh, (1.01, 0.0)),
        (losses.smooth_l1, (3.02, 0.01)),
        (functools.partial(losses.quantile, level=0.99), (1.0, 0.0)),
        (losses.sigmoid_cross_entropy, (5.0, 1.0)),
        (losses.sigmoid_focal, (5.0, 1.0)),
        (lambda x: losses.cosine_distance(jnp.concatenate([jnp.ones_like(x), x]), jnp.array([1, 0], x.dtype))[None], (0.05,)),
    ],
)
def test_bfloat16_is_rounded_once_where_large_terms_cancel(loss, inputs):
    """In bfloat16 throughout, the first would be 0 for 3.79 and the second 20 % off."""
    rounded = [jnp.array([x], jnp.bfloat16) for x in inputs]
    expected = loss(*[x.astype(jnp.float32) for x in rounded])
    np.testing.assert_array_equal(loss(*rounded), expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("missing", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (losses.softmax_cross_entropy, (2, 3)),
        (losses.nll, (2, 3)),
        (losses.kl_divergence, (2, 3)),
        (losses.reverse_kl_divergence, (2, 3)),
        (losses.cosine_distance, (2, 3)),
        (lambda x, t: losses.triplet(x, t, -x, margin=9.0), (2, 3)),
        (losses.dice, (2, 4, 3)),
        (losses.tversky, (2, 4, 3)),
        (losses.generalized_dice, (2, 4, 3)),
    ],
)
def test_a_row_with_a_missing_target_is_visible_and_can_be_masked(loss, shape, missing):
    prediction, target = jnp.asarray(RNG.normal(size=shape), jnp.float32), jnp.full(shape, 1 / 3)
    spoiled, mask = target.at[1, ..., 0].set(missing), jnp.array([True, False])
    assert not np.isfinite(loss(prediction, spoiled)[1])
    gradient = jax.grad(lambda x: losses.reduce(loss(x, spoiled), mask=mask))(prediction)
    np.testing.assert_allclose(gradient[0], jax.grad(lambda x: loss(x, target)[0])(prediction)[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)


def test_options_may_be_plain_integers_or_mapped_over():
    x, t = jnp.asarray(SCORES, jnp.float32), jnp.asarray(OTHERS, jnp.float32)
    image, half = jnp.asarray(IMAGE, jnp.float32), jnp.array([0.5, 0.75])
    program = {  # every option that takes an array, of one scalar
        "huber": lambda o: losses.huber(x, t, delta=o),
        "smooth_l1": lambda o: losses.smooth_l1(x, t, beta=o),
        "quantile": lambda o: losses.quantile(x, t, level=o),
        "smoothing": lambda o: losses.softmax_cross_entropy(x, LABELS, label_smoothing=o),
        "softmax_focal": lambda o: losses.softmax_focal(x, LABELS, gamma=o),
        "sigmoid_focal": lambda o: losses.sigmoid_focal(x, UNIFORM, gamma=o, alpha=o),
        "poly": lambda o: losses.poly(x, LABELS, epsilon=o),
        "multiclass_hinge": lambda o: losses.multiclass_hinge(x, LABELS, margin=o),
        "contrastive": lambda o: losses.contrastive(x, t, GROUPS > 0, margin=o),
        "triplet": lambda o: losses.triplet(x, t, -x, margin=o),
        "info_nce": lambda o: losses.info_nce(x, t, temperature=o),
        "supervised_contrastive": lambda o: losses.supervised_contrastive(x, GROUPS, temperature=o),
        "tversky": lambda o: losses.tversky(image, PIXELS, alpha=o, beta=o, smooth=o, ignore_index=9),
        "ohem": lambda o: losses.ohem(x, threshold=o),
    }

    def everything(option):
        return {name: loss(option) for name, loss in program.items()}

    with jax.disable_jit(False):
        mapped, alone = jax.jit(jax.vmap(everything))(half), jax.jit(lambda: everything(0.75))()
    for name, values in mapped.items():
        np.testing.assert_allclose(values[1], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(losses.huber(x, t, delta=1), losses.huber(x, t))
    np.testing.assert_array_equal(losses.triplet(x, t, -x, margin=1), losses.triplet(x, t, -x))


def test_there_is_one_value_per_example_under_vmap_too():
    inputs = {name: arguments(name, jnp.float32) for name in CASES}
    backwards = jax.tree.map(lambda a: a[::-1], inputs)
    with jax.disable_jit(False):
        values = jax.jit(jax.vmap(everything))(jax.tree.map(lambda *members: jnp.stack(members), inputs, backwards))
        one_by_one = [jax.jit(everything)(inputs), jax.jit(everything)(backwards)]
    for i, alone in enumerate(one_by_one):
        for name in CASES:
            assert len(alone[name]) == len(inputs[name][0]), name
            np.testing.assert_allclose(values[name][i], alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_program_of_all_losses_and_gradients_lowers_for_every_platform():
    def program(inputs):
        return everything(inputs), jax.grad(lambda x: sum(values.sum() for values in everything(x).values()))(inputs)

    inputs = {name: arguments(name, jnp.float32) for name in CASES}
    with jax.disable_jit(False):
        exported = jax.export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(inputs)
    assert exported.platforms == ("cpu", "cuda", "tpu")
