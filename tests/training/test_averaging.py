"""Power-function averages: the sums they stand for, any width from a few snapshots, steps and checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets.training import averaging, checkpoint, ensemble, state, steps

EMA = averaging.power((0.05, 0.10))
SGD = optax.sgd(0.1)
LOSS = steps.plain(lambda params, batch, key: jnp.mean((batch - params["w"][None]) ** 2))


def shares(width, count):
    """Of each of `count` steps in the average of a width: the profile `(γ + 1) τ^γ` integrated over the step."""
    return np.diff((np.arange(count + 1) / count) ** (averaging.gamma(width) + 1))


def trajectory(count=400):
    """Parameters that drift and shake around 5: `[step, parameter]`."""
    rng = np.random.default_rng(0)
    drift = np.exp(-np.arange(count)[:, None] / count * np.array([1.0, 3.0, 10.0]))
    return (5 + drift + 0.1 * rng.normal(size=(count, 3))).astype("float32")


def followed(path, ema=EMA, every=20):
    """The averages along a trajectory, and snapshots of them."""

    def follow(averages, step_and_params):
        step, params = step_and_params
        averages = ema.update(averages, {"w": params}, step)
        return averages, averages

    with jax.disable_jit(False):  # hundreds of steps
        start = ema.init({"w": jnp.full(3, 1e3)})  # forgotten at the first update
        _, all_ = jax.lax.scan(follow, start, (jnp.arange(1, len(path) + 1), jnp.asarray(path)))
    return [(n, jax.tree.map(lambda leaf, n=n: leaf[n - 1], all_)) for n in range(every, len(path) + 1, every)]


def start(ema=EMA, dtype="float32"):
    return state.from_params({"w": jnp.ones(3, dtype)}, SGD, jax.random.key(0), ema=ema)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 12**-0.5])
def test_width_and_exponent_are_inverse_and_are_those_of_the_profile(width):
    """The deviation of τ under `(γ + 1) τ^γ`, integrated numerically, is the width."""
    exponent = averaging.gamma(width)
    np.testing.assert_allclose(averaging.relative_width(exponent), width, rtol=1e-12)
    middle = (np.arange(200_000) + 0.5) / 200_000
    profile = (exponent + 1) * middle**exponent / 200_000
    mean = np.sum(profile * middle)
    np.testing.assert_allclose(np.sqrt(np.sum(profile * (middle - mean) ** 2)), width, rtol=1e-6)


def test_exponents_have_their_closed_forms():
    """γ = 0 is the uniform average, of width 12^-½; γ = 1 the linear one, of width 18^-½."""
    np.testing.assert_allclose(averaging.relative_width(0), 12**-0.5)
    np.testing.assert_allclose(averaging.gamma(18**-0.5), 1, rtol=1e-9)
    np.testing.assert_allclose(averaging.gamma(12**-0.5), 0, atol=1e-9)


def test_averages_are_the_weighted_sums_of_the_trajectory():
    path = trajectory()
    for count, averages in followed(path)[::5]:
        for width in (0.05, 0.10):
            np.testing.assert_allclose(averages[width]["w"], shares(width, count) @ path[:count], rtol=2e-6)


def test_a_width_that_was_kept_is_reconstructed_as_it_is():
    snapshots = followed(trajectory(), every=50)
    for width in (0.05, 0.10):
        np.testing.assert_allclose(averaging.reconstruct(snapshots, width)["w"], snapshots[-1][1][width]["w"], rtol=1e-6)
        earlier = averaging.reconstruct(snapshots, width, at=200)["w"]
        np.testing.assert_allclose(earlier, snapshots[3][1][width]["w"], rtol=1e-6)


@pytest.mark.parametrize(("every", "bound"), [(50, 5e-3), (20, 1e-3)], ids=["8 snapshots", "20 snapshots"])
@pytest.mark.parametrize("width", [0.07, 0.15, 0.2])
def test_other_widths_are_reconstructed_from_snapshots(every, bound, width):
    path = trajectory()
    found = averaging.reconstruct(followed(path, every=every), width)["w"]
    exact = shares(width, len(path)) @ path
    assert np.abs(exact - path[-1]).max() > 0.03  # what is left to get wrong
    np.testing.assert_allclose(found, exact, rtol=0, atol=bound)


def test_parameters_that_stand_still_are_returned_as_they_are():
    weights = averaging.weights([10, 25, 40], (0.05, 0.1), 0.25)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    snapshots = followed(np.full((8, 3), 7, "float32"), every=4)
    np.testing.assert_allclose(averaging.reconstruct(snapshots, 0.25)["w"], 7, rtol=1e-6)


def test_weights_are_the_least_squares_fit_of_sampled_profiles():
    middle = (np.arange(20_000) + 0.5) / 500  # to step 40

    def profile(time, width):
        exponent = averaging.gamma(width)
        return np.where(middle <= time, (exponent + 1) * middle**exponent / time ** (exponent + 1), 0)

    basis = np.stack([profile(time, width) for time in (20, 30, 40) for width in (0.05, 0.1)])
    weights = averaging.weights([20, 30, 40], (0.05, 0.1), 0.15).ravel()
    residual = basis @ (weights @ basis - profile(40, 0.15))
    np.testing.assert_allclose(residual, residual.mean(), rtol=2e-2)  # at the optimum the multiplier of the sum


def test_a_training_step_keeps_the_averages_of_its_parameters(jit):
    step, now, path = jit(steps.make_train_step(LOSS, SGD, ema=EMA)), start(), []
    for _ in range(4):
        now, _ = step(now, jnp.zeros((2, 3)))
        path.append(np.asarray(now.params["w"]))
    for width in (0.05, 0.10):
        np.testing.assert_allclose(now.ema[width]["w"], shares(width, 4) @ np.stack(path), rtol=1e-6)


def test_a_skipped_step_leaves_the_averages_and_their_time_as_they_were(jit):
    step = jit(steps.make_train_step(LOSS, SGD, ema=EMA))
    good, bad = jnp.zeros((2, 3)), jnp.full((2, 3), jnp.nan)
    once = step(start(), good)[0]
    skipped = step(once, bad)[0]
    np.testing.assert_array_equal(skipped.ema[0.05]["w"], once.ema[0.05]["w"])
    np.testing.assert_array_equal(step(skipped, good)[0].ema[0.05]["w"], step(once, good)[0].ema[0.05]["w"])


def test_members_of_an_ensemble_keep_their_own_averages_and_evaluate_by_width():
    begin = jax.vmap(lambda scale: state.from_params({"w": scale * jnp.ones(3)}, SGD, jax.random.key(0), ema=EMA))(
        jnp.arange(2.0)
    )
    members, _ = ensemble.step(steps.make_train_step(LOSS, SGD, ema=EMA))(begin, jnp.ones((2, 3)))
    np.testing.assert_array_equal(members.ema[0.05]["w"], members.params["w"])  # after one step
    one = dataclasses.replace(jax.tree.map(lambda leaf: leaf[1], members), params={"w": jnp.full(3, 9.0)})
    weight, sums = steps.make_eval_step(LOSS, ema=0.05)(one, jnp.ones((2, 3)))
    np.testing.assert_allclose(sums["loss"] / weight, np.mean((1 - np.asarray(members.params["w"][1])) ** 2), atol=1e-6)


def test_averages_are_donated_checkpointed_and_wide(tmp_path):
    step = jax.jit(steps.make_train_step(LOSS, SGD, ema=EMA), donate_argnums=0)
    begin = start(dtype="bfloat16")
    now, _ = step(begin, jnp.zeros((2, 3), "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(now.ema)} == {jnp.dtype("float32")}
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, now)
        restored = checkpointer.restore(1, like=now)
    assert restored.ema.widths == (0.05, 0.10)
    averaged = averaging.reconstruct([(restored.step, restored.ema)], 0.1)
    np.testing.assert_allclose(averaged["w"], np.asarray(now.params["w"], "float32"), rtol=2**-8)  # compiled: before rounding


def test_bad_arguments_are_named():
    snapshots = followed(trajectory(8), every=4)
    for widths in ((), (0.1, 0.1)):
        with pytest.raises(ValueError, match="power: expected different widths"):
            averaging.power(widths)
    for width in (0.0, 0.3):
        with pytest.raises(ValueError, match=r"gamma: width must be in \(0, 12\^-1/2\]"):
            averaging.gamma(width)
    with pytest.raises(ValueError, match="exponent must not be negative"):
        averaging.relative_width(-0.5)
    with pytest.raises(ValueError, match="at least one snapshot, got none"):
        averaging.reconstruct([], 0.1)
    with pytest.raises(ValueError, match="snapshots of the same widths"):
        averaging.reconstruct([snapshots[0], followed(trajectory(8), averaging.power((0.2,)), every=8)[0]], 0.1)
    with pytest.raises(ValueError, match=r"at must lie between .* 4 and 8, got 9"):
        averaging.reconstruct(snapshots, 0.1, at=9)
    with pytest.raises(ValueError, match=r"different positive steps, got \[4, 4\]"):
        averaging.weights([4, 4], (0.1,), 0.1)
    with pytest.raises(ValueError, match=r"one of the widths \(0.05, 0.1\), got 0.2"):
        snapshots[0][1][0.2]
    batch = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"state created with ema=averaging.power\(...\) needs"):
        steps.make_train_step(LOSS, SGD, ema=0.9)(start(), batch)
    with pytest.raises(ValueError, match=r"expected averages of widths \(0.05, 0.1\)"):
        steps.make_train_step(LOSS, SGD, ema=EMA)(start(ema=True), batch)
    for held, ema in ((EMA, True), (True, 0.05), (False, 0.05)):
        with pytest.raises(ValueError, match=f"ema={ema} needs a state created with ema="):
            steps.make_eval_step(LOSS, ema=ema)(start(ema=held), batch)
