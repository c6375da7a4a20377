"""One exported program for CPU, CUDA and TPU: every sampler, the likelihood, the bound and a training step."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets.diffusion import likelihood, losses, samplers, schedules
from jaxnets.training import state, steps

PLATFORMS = ("cpu", "cuda", "tpu")
FLOW, GRID = schedules.flow(), schedules.karras(4, smallest=0.1, largest=10.0)
SAMPLERS = {
    "ddpm": samplers.ddpm(),
    "ddim": samplers.ddim(0.5),
    "euler": samplers.euler(2.0),
    "heun": samplers.heun(2.0),
    "dpmpp_2s": samplers.dpmpp_2s(1.0),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "dpmpp_3m": samplers.dpmpp_3m(corrected=True, start="second"),
    "unipc": samplers.unipc(3),
    "lms": samplers.lms(),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    x: Any
    y: Any


class Network(nn.Module):
    outputs: int = 2

    @nn.compact
    def __call__(self, x, t, label=None, *, train=False):
        parts = [x, t[:, None]] + ([] if label is None else [jax.nn.one_hot(label, 3)])
        return nn.Dense(self.outputs)(jnp.concatenate(parts, -1))


def denoise(x, t):
    return jnp.tanh(x) / (1 + t)


def lowered(function, *arguments):
    """Exports for all platforms; on this one the program gives what the function gives."""
    with jax.disable_jit(False):
        program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        assert program.platforms == PLATFORMS
        expected = jax.jit(function)(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), program.call(*arguments), expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_one_program_for_every_platform(name):
    def run(bits):
        return samplers.sample(SAMPLERS[name], denoise, FLOW, GRID, jax.random.wrap_key_data(bits), (2, 3))

    lowered(run, jax.random.key_data(jax.random.key(0)))


def test_a_learned_variance_is_one_program_for_every_platform():
    def run(bits):
        sampler = samplers.ddpm("learned")
        return samplers.sample(sampler, lambda x, t: (0.5 * x, x), FLOW, GRID, jax.random.wrap_key_data(bits), (2, 3))

    lowered(run, jax.random.key_data(jax.random.key(0)))


def test_likelihood_and_bound_are_one_program_for_every_platform():
    def run(x, bits):
        key = jax.random.wrap_key_data(bits)
        grid = likelihood.flow_grid(4)
        exact = likelihood.log_likelihood(denoise, FLOW, x, grid=grid)
        probed = likelihood.log_likelihood(denoise, FLOW, x, key, grid=grid, probes=2)
        return exact, probed, likelihood.variational_bound(denoise, FLOW, GRID, x, key)

    lowered(run, 0.1 * jnp.arange(6.0).reshape(2, 3), jax.random.key_data(jax.random.key(0)))


@pytest.mark.parametrize("kind", ["denoising", "flow_matching", "hybrid"])
def test_a_training_step_is_one_program_for_every_platform(kind):
    loss_fn, outputs = {
        "denoising": lambda: (
            losses.denoising(
                Network().apply, schedules.linear(), "v", weight=losses.min_snr(), inputs={"label": "y"}, unlabeled=0.1
            ),
            2,
        ),
        "flow_matching": lambda: (losses.flow_matching(Network().apply, times=losses.logit_normal()), 2),
        "hybrid": lambda: (losses.hybrid(Network(4).apply, schedules.linear(100), "epsilon"), 4),
    }[kind]()
    batch = Batch(jnp.ones((4, 2)), jnp.arange(4) % 3)
    network, optimizer = Network(outputs), optax.adam(1e-3)
    label = (batch.y,) if kind == "denoising" else ()
    params = network.init(jax.random.key(0), batch.x, jnp.zeros(4), *label)["params"]
    begin = state.from_params(params, optimizer, jax.random.key(1))
    step = steps.make_train_step(loss_fn, optimizer)
    with jax.disable_jit(False):
        assert jax.export.export(jax.jit(step), platforms=PLATFORMS)(begin, batch).platforms == PLATFORMS
