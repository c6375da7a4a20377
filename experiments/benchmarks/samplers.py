"""Sampling: 50 steps of DDIM with a U-Net, and what 1,000 steps cost beside the network, against diffusers.

Run: `python -m experiments.benchmarks.samplers --torch-python PATH` (an interpreter with torch and diffusers). The U-Net is
that of `experiments.benchmarks.diffusion`, untrained, of equal structure on both sides. The overhead is that of a denoiser
which only scales its input: one image of 8x8 without noise (DDIM), 16 of 32x32 with noise at each step (DDPM).
"""

from experiments.benchmarks import diffusion

CASES = {
    "50 steps of DDIM, U-Net, 16 images of 32x32": "unet",
    "1,000 steps of DDIM, no network, one image of 8x8": "deterministic",
    "1,000 steps of DDPM, no network, 16 images of 32x32": "noisy",
}
SHAPES = {"unet": (16, 32, 32, 3), "deterministic": (1, 8, 8, 1), "noisy": (16, 32, 32, 1)}


# --- ours ---


def jaxnets_case(kind, cores):
    import functools

    import jax

    from jaxnets.diffusion import parametrization, samplers, schedules
    from jaxnets.models import unet

    del cores  # the affinity of the process
    schedule, shape = schedules.linear(1000), SHAPES[kind]
    steps, sampler = (
        (50, samplers.ddim()) if kind == "unet" else (1000, samplers.ddpm() if kind == "noisy" else samplers.ddim())
    )
    variables = None
    if kind == "unet":
        model = unet.UNet(diffusion.WIDTHS, diffusion.DEPTH, diffusion.ATTENTION, diffusion.HEAD_WIDTH, groups=diffusion.GROUPS)
        images, _, t = diffusion.arrays()
        variables = jax.jit(model.init)(jax.random.key(0), images[:1], t[:1])

    def draw(variables, key):
        network = scaled if variables is None else functools.partial(model.apply, variables)
        denoise = parametrization.to_denoiser(network, schedule, "epsilon", time=from_one)
        return samplers.sample(sampler, denoise, schedule, schedules.trailing(steps), key, shape)

    draw = jax.jit(draw).lower(variables, jax.random.key(0)).compile()
    return lambda: draw(variables, jax.random.key(0)).block_until_ready()


def scaled(x, t):
    del t
    return 0.1 * x


def from_one(t):
    return t - 1


# --- diffusers ---


def torch_case(kind, cores, layout):
    import torch

    torch.set_num_threads(int(cores))
    torch.manual_seed(0)
    batch, height, width, channels = SHAPES[kind]
    memory = getattr(torch, layout)
    model = diffusion.torch_model().to(memory_format=memory).eval() if kind == "unet" else None
    from diffusers import DDIMScheduler, DDPMScheduler

    scheduler = (DDPMScheduler if kind == "noisy" else DDIMScheduler)(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(50 if kind == "unet" else 1000)

    @torch.inference_mode()
    def run():
        x = torch.randn(batch, channels, height, width).contiguous(memory_format=memory)
        for t in scheduler.timesteps:
            noise = 0.1 * x if model is None else model(x, t).sample
            x = scheduler.step(noise, t, x).prev_sample

    return run


def main() -> None:
    list(diffusion.compete("experiments.benchmarks.samplers", __doc__, CASES))


if __name__ == "__main__":
    main()
