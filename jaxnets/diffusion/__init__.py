"""Diffusion models as functions that compose: schedules, parametrizations, losses, samplers, guidance, likelihood.

Noise is added as `x_t = α(t) x_0 + σ(t) ε`. A schedule says what α and σ are; a denoiser is any callable
`denoise(x, t, **conditions) -> x0`, the mean of the data given the noisy `x` (`t` is a scalar or one number per example);
parametrizations make a denoiser of a network, guidance makes a denoiser of denoisers, and a sampler takes one from noise to
data along a grid of times.
"""
