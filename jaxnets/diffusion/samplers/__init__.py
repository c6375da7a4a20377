"""Samplers: from noise to data along a grid of times, in one `lax.scan`.

    images = samplers.sample(samplers.dpmpp_2m(), denoise, schedule, schedules.karras(20), key, (16, 28, 28, 1), label=label)

| sampler | evaluations per step | order | noise |
|---|---|---|---|
| `ddpm`, `ddim(eta)`, `euler_ancestral` | 1 | 1 | of the posterior, `eta` times it |
| `euler(churn)`, `heun(churn)` | 1, 2 | 1, 2 | added before a step |
| `dpmpp_2s(eta)`, `dpmpp_2m`, `dpmpp_3m` | 2, 1, 1 | 2, 2, 2 or 3 | none but with `eta` |
| `dpmpp_2m_sde(eta)` | 1 | 2 in the drift | `eta` times that of the SDE |
| `unipc(order)` | 1 | order + 1, 3 at most for its first step | none |
| `lms(order)` | 1 | order; with ever more steps 2, for its first is Euler's | none |
"""

from jaxnets.diffusion.samplers.exponential import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, unipc
from jaxnets.diffusion.samplers.sample import (
    Plan,
    Sampler,
    State,
    Trajectory,
    encode,
    image_to_image,
    sample,
    self_conditioned,
)
from jaxnets.diffusion.samplers.steps import ddim, ddpm, euler, euler_ancestral, heun, lms

__all__ = [
    "Plan",
    "Sampler",
    "State",
    "Trajectory",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "encode",
    "euler",
    "euler_ancestral",
    "heun",
    "image_to_image",
    "lms",
    "sample",
    "self_conditioned",
    "unipc",
]
