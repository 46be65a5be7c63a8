"""Sampling from a denoiser with diffusers' schedulers, and the noise it is trained on.

A denoiser here is a function of latents of unit variance and their log signal-to-noise ratio that returns the latents
without noise (`weightgen.generators.d2nwg.denoiser`). The same network serves every scheduler:

    ddim    Song et al. 2021 (arXiv:2010.02502), cosine schedule
    dpm     DPM-Solver++ of second order, Lu et al. 2022 (arXiv:2211.01095), cosine schedule
    flow    Euler steps along the straight path of flow matching, Lipman et al. 2023 (arXiv:2210.02747)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.generators.d2nwg.method import SchedulerOptions

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(latents (b, k, c), log signal-to-noise ratio (b,)) -> latents without noise (b, k, c)."""


def sample_latents(
    denoise: Denoise, shape: tuple[int, int, int], options: SchedulerOptions, *, rng: torch.Generator
) -> Float[Tensor, "b k c"]:
    """Latents (b, k, c) from noise; equal seeds of `rng` give equal latents."""
    latents = torch.randn(shape, generator=rng)
    scheduler = _build_scheduler(options)
    scheduler.set_timesteps(options.steps)
    for i, timestep in enumerate(scheduler.timesteps):
        if options.scheduler == "flow":
            sigma = scheduler.sigmas[i]
            clean = denoise(latents / math.hypot(1 - sigma, sigma), _log_snr_of_flow(sigma).expand(len(latents)))
            output = (latents - clean) / sigma
        else:
            kept = scheduler.alphas_cumprod[timestep]
            output = denoise(latents, (kept / (1 - kept)).log().expand(len(latents)))
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents


def guide(denoise: Denoise, unconditioned: Denoise, guidance: float) -> Denoise:
    """Classifier-free guidance: `unconditioned` plus `guidance` times the difference of `denoise` from it."""
    if guidance == 1:
        return denoise

    def guided(latents: Tensor, log_snr: Tensor) -> Tensor:
        plain = unconditioned(latents, log_snr)
        return plain if guidance == 0 else plain + guidance * (denoise(latents, log_snr) - plain)

    return guided


def draw_noise_levels(count: int, *, rng: torch.Generator) -> Float[Tensor, " b"]:
    """Log signal-to-noise ratios (b,) to train on, at stratified times over the cosine schedule."""
    time = (torch.rand((), generator=rng) + torch.arange(count) / count) % 1
    return -2 * torch.tan(0.5 * math.pi * (0.001 + 0.998 * time)).log()


def add_noise(
    latents: Float[Tensor, "b k c"], log_snr: Float[Tensor, " b"], *, rng: torch.Generator
) -> Float[Tensor, "b k c"]:
    """Latents of unit variance plus noise, scaled to unit variance again (b, k, c)."""
    kept = torch.sigmoid(log_snr)[:, None, None]
    return kept.sqrt() * latents + (1 - kept).sqrt() * torch.randn(latents.shape, generator=rng)


def _log_snr_of_flow(sigma: Tensor) -> Tensor:
    return 2 * ((1 - sigma).clamp_min(1e-6) / sigma).log()


def _build_scheduler(options: SchedulerOptions) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # imported here: it takes a second
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    cosine: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if options.scheduler == "ddim":
        return DDIMScheduler(**cosine, clip_sample=False)
    if options.scheduler == "dpm":
        cosine["algorithm_type"] = "dpmsolver++"
        return DPMSolverMultistepScheduler(**cosine)
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
