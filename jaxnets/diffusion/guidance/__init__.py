"""Guidance: denoisers of denoisers, and samplers of samplers where fresh noise is needed or times are revisited.

    guided = guidance.classifier_free(denoise, scale=2.0, interval=(0.2, 0.9))
    posterior = guidance.pigdm(denoise, schedule, operator, y, noise=0.05)
    restored = samplers.sample(samplers.heun(), posterior, schedule, schedules.karras(40), key, shape)

| measurements `y = A x_0 + noise e` | makes a | the denoiser is | exact for |
|---|---|---|---|
| `pigdm` | denoiser | differentiated once | normal data of covariance s² |
| `moment_matching` | denoiser | differentiated at each step of a solver | normal data |
| `dps` | denoiser | differentiated once | normal data, one number measured (A may be nonlinear) |
| `dps_steps` | sampler | differentiated once | - (DPS as published: a step length to tune; A may be nonlinear) |
| `ddnm` | denoiser | called | - (no noise) |
| `ddnm_plus`, `diffpir` | sampler | called | - |
| `replacement`, `repaint` | sampler | called, repaint: several times | - (known pixels, no noise) |
| `plug_and_play` | term for `proximal.fista` | called | the mean, for normal data |
"""

from jaxnets.diffusion.guidance.combine import autoguidance, classifier, classifier_free, clip, dynamic_thresholding
from jaxnets.diffusion.guidance.inverse import ddnm, dps, moment_matching, pigdm, plug_and_play
from jaxnets.diffusion.guidance.steps import ddnm_plus, diffpir, dps_steps, repaint, replacement

__all__ = [
    "autoguidance",
    "classifier",
    "classifier_free",
    "clip",
    "ddnm",
    "ddnm_plus",
    "diffpir",
    "dps",
    "dps_steps",
    "dynamic_thresholding",
    "moment_matching",
    "pigdm",
    "plug_and_play",
    "repaint",
    "replacement",
]
