"""Denoising with any diffusers scheduler: plain, or blended into normal photos with attention
re-weighting.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attention_maps import AttentionMaps
from .blending import blend, latent_mask
from .inpainting import Decode, Inpainting
from .latent_diffusion import Context, LatentDiffusion, NoiseSchedule
from .reweighting import AARConfig, AttentionWeights

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # diffusers' class and its settings
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    # one evaluation a step (ComfyUI's dpmpp_2m_sde); DPMSolverSDEScheduler needs torchsde and two
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    # its steps are some of the 50 that latent consistency models are distilled on
    "lcm": ("LCMScheduler", {"original_inference_steps": 50}),
}


@dataclass(frozen=True)
class SamplingConfig:
    """How to denoise."""

    scheduler: str = "ddim"  # a key of SCHEDULERS, or any diffusers scheduler class name
    steps: int = 25
    eta: float = 1.0  # DDIM's noise: 1 = ancestral, as released; 0 = deterministic
    guidance: float = 1.0  # classifier-free guidance against the empty prompt; 1 = none, as released
    widening: float = (
        0.5  # the blend mask reaches this share of the side beyond m at full noise, none at the end
    )
    aar: AARConfig = field(default_factory=AARConfig)


OnStep = Callable[[int, int, Tensor], None]


def image_generator(run_seed: int, index: int, series: str = "") -> torch.Generator:
    """The generator of image `index` of a series (a defect type, say): the same whatever the batch, the order
    or the host.
    """
    digest = hashlib.sha256(f"{run_seed}/{index}/{series}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def make_scheduler(schedule: NoiseSchedule, name: str) -> Any:
    """A diffusers scheduler on the base's own noise schedule, fed with predicted noise.

    Raises ValueError naming the known ones.
    """
    import diffusers

    from .ddim import ChainedDDIMScheduler

    class_name, own_settings = SCHEDULERS.get(name, (name, {}))
    cls = ChainedDDIMScheduler if class_name == "DDIMScheduler" else getattr(diffusers, class_name, None)
    if not (inspect.isclass(cls) and hasattr(cls, "set_timesteps")):
        raise ValueError(f"There is no scheduler {name!r}: choose from {', '.join(SCHEDULERS)}.")
    products = schedule.alphas_cumprod.double()
    betas = 1 - products / torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    settings = own_settings | {
        "num_train_timesteps": schedule.steps,
        "trained_betas": betas.tolist(),
        "prediction_type": "epsilon",
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in settings.items() if key in accepted})


@torch.no_grad()
def sample(
    base: LatentDiffusion,
    context: Context,
    unconditional: Context | None,
    shape: tuple[int, int],
    config: SamplingConfig,
    generators: list[torch.Generator],
    on_step: OnStep | None = None,
) -> Tensor:
    """Plain sampling from noise: one latent (B,C,h,w) per generator, `shape` = (h, w)."""
    noise = _noise(base, shape, generators)
    return _denoise(base, context, unconditional, noise, None, config, generators, on_step, None)


@torch.no_grad()
def sample_into(
    base: LatentDiffusion,
    image: Tensor,
    mask: Tensor,
    context: Context,
    unconditional: Context | None,
    config: SamplingConfig,
    generators: list[torch.Generator],
    on_step: OnStep | None = None,
    guidance: Tensor | None = None,
    decode: Decode | None = None,
    maps: AttentionMaps | None = None,
) -> Tensor:
    """Generates inside masks: normal images (B,3,H,W) in [-1,1], masks (B,1,H,W) in {0,1} -> latents
    (B,C,h,w).

    Outside m_z the result is the normal latent exactly (Eq. 1, blended once more after the last step).
    `guidance` (B,) gives each image its own, instead of the configuration's. AAR mode `paper` sees pixels
    through `decode`, such as a tiny decoder, where it is given, else through the base's; `maps` record what
    the inserted tokens look at. Raises ValueError where counts or sizes differ.
    """
    if mask.shape[-2:] != image.shape[-2:] or len(mask) != len(image):
        raise ValueError(
            f"Masks are {tuple(mask.shape)}, images {tuple(image.shape)}: "
            "they must be of equal count and size."
        )
    image, mask = image.to(base.device), mask.to(base.device)
    target = Inpainting(base.encode(image), latent_mask(mask, base.factor), image, mask)
    return inpaint(base, target, context, unconditional, config, generators, on_step, guidance, decode, maps)


@torch.no_grad()
def inpaint(
    base: LatentDiffusion,
    target: Inpainting,
    context: Context,
    unconditional: Context | None,
    config: SamplingConfig,
    generators: list[torch.Generator],
    on_step: OnStep | None = None,
    guidance: Tensor | None = None,
    decode: Decode | None = None,
    maps: AttentionMaps | None = None,
) -> Tensor:
    """As `sample_into`, for a photo that is encoded already."""
    noise = _noise(base, (target.normal.shape[-2], target.normal.shape[-1]), generators)
    return _denoise(
        base, context, unconditional, noise, target, config, generators, on_step, guidance, decode, maps
    )


def _denoise(
    base: LatentDiffusion,
    context: Context,
    unconditional: Context | None,
    noise: Tensor,
    target: Inpainting | None,
    config: SamplingConfig,
    generators: list[torch.Generator],
    on_step: OnStep | None,
    guidance: Tensor | None,
    decode: Decode | None = None,
    maps: AttentionMaps | None = None,
) -> Tensor:
    scheduler = make_scheduler(base.schedule, config.scheduler)
    _set_timesteps(scheduler, config, base.device)
    extra = _step_arguments(scheduler, config, generators)
    weights = AttentionWeights(config.aar.mode, context.columns)
    guidance = _per_image(guidance, config.guidance, noise)
    if (guidance == 1).all():
        unconditional = None
    x, clean_hat = _start(base.schedule, scheduler, noise, target), None
    total = len(scheduler.timesteps)
    with base.reweighted(weights):  # once for all steps: installing it costs a walk through the U-Net
        for i, t in enumerate(scheduler.timesteps):
            region = None
            if target:
                progress = int(t) / base.schedule.steps
                region = target.blend_region(progress, config.steps, config.widening, config.aar)
                x = blend(x, scheduler.add_noise(target.normal, noise, t[None].expand(len(x))), region)
            z_t = scheduler.scale_model_input(x, t)
            times = t.to(z_t.dtype).expand(len(z_t))
            weights.w, weights.maps = None, maps
            if maps is not None:
                maps.begin(i / total)
            if target and region is not None and config.aar.acts(i / total):
                weights.w = target.weight_map(region, z_t, clean_hat, config.aar, decode or base.decode)
            eps = _guided_noise(base, z_t, times, context, unconditional, guidance, weights)
            clean_hat = base.schedule.clean_latent(z_t, eps, times)
            x = scheduler.step(eps, t, x, **extra).prev_sample
            if on_step:
                on_step(i + 1, total, clean_hat)
    return blend(x, target.normal, target.m_z) if target else x


def _guided_noise(
    base: LatentDiffusion,
    z_t: Tensor,
    t: Tensor,
    context: Context,
    unconditional: Context | None,
    guidance: Tensor,
    weights: AttentionWeights,
) -> Tensor:
    eps = base.predict_noise(z_t, t, context)
    weights.w = weights.maps = None
    if unconditional is None:
        return eps
    eps_empty = base.predict_noise(z_t, t, unconditional)
    return eps_empty + guidance * (eps - eps_empty)


def _per_image(guidance: Tensor | None, default: float, noise: Tensor) -> Tensor:
    if guidance is None:
        guidance = torch.full((len(noise),), default)
    if guidance.shape != (len(noise),):
        raise ValueError(f"Guidance is {tuple(guidance.shape)}, images {len(noise)}: give one for each.")
    return guidance.to(noise)[:, None, None, None]


def _set_timesteps(scheduler: Any, config: SamplingConfig, device: torch.device) -> None:
    most = scheduler.config.get("original_inference_steps", scheduler.config.num_train_timesteps)
    if not 1 <= config.steps <= most:
        raise ValueError(
            f"Scheduler {config.scheduler!r} takes 1 to {most} steps: {config.steps} were asked."
        )
    scheduler.set_timesteps(config.steps, device=device)
    # diffusers rounds to one timestep too many, -1, for 61, 103, 121 and other numbers of steps
    scheduler.timesteps = scheduler.timesteps.clamp(min=0)


def _start(schedule: NoiseSchedule, scheduler: Any, noise: Tensor, target: Inpainting | None) -> Tensor:
    """Where a run starts: unit noise, and upon it the noised photo's share of signal, as ComfyUI has it.

    Schedulers that count in sigma have unit signal. Their `init_noise_sigma` is sigma_max, with which the
    first model input would be short of unit variance.
    """
    sigma = float(scheduler.init_noise_sigma)
    counts_in_sigma = sigma != 1
    x = noise * (1 + sigma**2) ** 0.5 if counts_in_sigma else noise
    if target is None:
        return x
    signal = 1.0 if counts_in_sigma else schedule.alpha_sigma(scheduler.timesteps[:1])[0]
    return x + signal * target.normal


def _noise(base: LatentDiffusion, shape: tuple[int, int], generators: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn((base.latent_channels, *shape), generator=g) for g in generators]).to(
        base.device
    )


def _step_arguments(
    scheduler: Any, config: SamplingConfig, generators: list[torch.Generator]
) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    wanted = {"eta": config.eta, "generator": generators}
    return {key: value for key, value in wanted.items() if key in accepted}
