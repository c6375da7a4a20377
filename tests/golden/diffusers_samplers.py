"""Makes diffusers_samplers.npz: every x of diffusers' schedulers. Run: `python tests/golden/diffusers_samplers.py`.

Made 2026-11-23 with diffusers 0.42.0 and torch 2.13.0 (CPU), float32; its LMS needs SciPy. The denoiser is the closed form of a
mixture of Gaussians, in float64 at the noise that the scheduler has at the step: a Karras scheduler rounds the time that a
network would be shown. x is that of a variance preserving process: `x / sqrt(1 + ρ²)` of schedulers whose own is `x / α`.

Per case and number of steps: `ratios [steps]`, the ρ of the steps, and `x [steps + 1, 4, 2]`. The second run, `exact`, has the
scheduler's own coefficients computed in float64 of the same float32 tables: it tells whose rounding a difference is.
tests/diffusion/test_diffusers.py reads the cases and inputs from this file, and runs it live with other seeds.
"""

import pathlib

import numpy as np

STEPS = (10, 20, 50)
MULTISTEP = "DPMSolverMultistepScheduler"
CASES = {  # scheduler, its options, options of its steps
    "ddpm_small": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}, {}),
    "ddpm_large": ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, {}),
    "ddim_zero_snr": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
        {},
    ),
    "ddim_eta": ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    "dpmpp_2m": (MULTISTEP, {}, {}),
    "dpmpp_2m_karras": (MULTISTEP, {"use_karras_sigmas": True}, {}),
    "dpmpp_3m": (MULTISTEP, {"solver_order": 3}, {}),
    "dpmpp_3m_karras": (MULTISTEP, {"solver_order": 3, "use_karras_sigmas": True}, {}),
    "dpmpp_2m_sde": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpmpp_2m_sde_karras": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, {}),
    "heun": ("HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}, {}),
    "heun_karras": ("HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02, "use_karras_sigmas": True}, {}),
    "euler": ("EulerDiscreteScheduler", {}, {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}, {}),
    "unipc_karras": ("UniPCMultistepScheduler", {"solver_order": 2, "use_karras_sigmas": True}, {}),
    "unipc_1": ("UniPCMultistepScheduler", {"solver_order": 1}, {}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}, {}),
    "lms": ("LMSDiscreteScheduler", {}, {}),
    "lms_2_karras": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, {"order": 2}),
}
MEANS = np.array([[1.0, 0.5], [-1.2, 0.3], [0.2, -1.0]])
STDS = np.array([0.4, 0.5, 0.3])
WEIGHTS = np.array([0.3, 0.5, 0.2])


def numbers(seed, steps):
    """The start over the noise's deviation, and the noise of each step."""
    draws = np.random.default_rng([seed, steps]).standard_normal((steps + 1, 4, 2)).astype(np.float32)
    return draws[0], draws[1:]


def denoise(x, ratio):
    """The mean of the data, float64, given `x = α (x_0 + ratio ε)` with `α = 1 / sqrt(1 + ratio²)`."""
    alpha, sigma = 1 / np.hypot(1, ratio), 1 / np.hypot(1, 1 / ratio) if ratio else 0.0
    variance = alpha**2 * STDS**2 + sigma**2
    away = x[:, None] - alpha * MEANS
    logits = np.log(WEIGHTS) - 0.5 * (away**2).sum(-1) / variance - np.log(variance)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return (shares[..., None] * (MEANS + (alpha * STDS**2 / variance)[:, None] * away)).sum(-2)


def run(name, steps, seed, exact=False):
    """The record of a case: `ratios [steps]` and `x [steps + 1, 4, 2]`."""
    import diffusers
    import torch

    kind, options, step_options = CASES[name]
    scheduler = getattr(diffusers, kind)(**options)
    if exact:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.betas, scheduler.alphas = scheduler.betas.double(), scheduler.alphas.double()
    scheduler.set_timesteps(steps)
    if exact and hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    start, noise = numbers(seed, steps)
    exploding = kind.split("Discrete")[0] in ("Heun", "Euler", "EulerAncestral", "LMS")
    drawn = iter(noise)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    original = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *args, **kwargs: torch.from_numpy(next(drawn))

    def ratio(index, t):
        if hasattr(scheduler, "sigmas"):
            return float(scheduler.sigmas[index])
        kept = float(scheduler.alphas_cumprod[t])
        return np.sqrt((1 - kept) / kept) if kept else np.inf

    def preserving(x, ratio):
        return np.asarray(x.numpy(), np.float64) / (np.hypot(1, ratio) if exploding else 1)

    def output(x, ratio):
        """What a network says of x, at the ratio of the step: epsilon, or v."""
        data = denoise(x, ratio)
        if np.isinf(ratio):
            return -data
        alpha, sigma = 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)
        epsilon = (x - alpha * data) / sigma
        return alpha * epsilon - sigma * data if options.get("prediction_type") == "v_prediction" else epsilon

    try:
        first = ratio(0, scheduler.timesteps[0])
        x = torch.from_numpy(start) * (1.0 if np.isinf(first) else first / (1.0 if exploding else np.hypot(1, first)))
        x = x.float()
        xs, ratios = [preserving(x, first)], [first]
        count = len(scheduler.timesteps)
        for index, t in enumerate(scheduler.timesteps):
            now = ratio(index, t)
            scheduler.scale_model_input(x, t)  # they insist
            of_network = torch.from_numpy(output(preserving(x, now), now).astype(np.float32))
            x = scheduler.step(of_network, t, x, **step_options).prev_sample.float()
            then = ratio(index + 1, None) if hasattr(scheduler, "sigmas") else None
            if then is None:
                then = ratio(0, scheduler.timesteps[index + 1]) if index + 1 < count else 0.0
            if getattr(scheduler, "state_in_first_order", True) or index == count - 1:  # else in the middle of Heun's step
                xs.append(preserving(x, then))
                ratios.append(then)
    finally:
        if original is None:
            del module.randn_tensor
        else:
            module.randn_tensor = original
    return {"ratios": np.array(ratios[:-1]), "x": np.array(xs, np.float32)}


if __name__ == "__main__":
    arrays = {}
    for name in CASES:
        for steps in STEPS:
            arrays[f"{name}/{steps}/ratios"], arrays[f"{name}/{steps}/x"] = run(name, steps, 0).values()
            arrays[f"{name}/{steps}/exact"] = run(name, steps, 0, exact=True)["x"]
    import diffusers

    arrays["alphas_cumprod"] = diffusers.DDPMScheduler().alphas_cumprod.numpy()
    arrays["alphas_cumprod_zero_snr"] = diffusers.DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod.numpy()
    arrays["betas_cosine"] = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "diffusers_samplers.npz", **arrays)
