"""Denoising with DDIM or any diffusers scheduler: plain, or blended into normal photos with attention
re-weighting.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attention_maps import AttentionMaps
from .blending import blend, latent_mask
from .ddim import DDIM
from .inpainting import Decode, Inpainting
from .latent_diffusion import Context, LatentDiffusion, NoiseSchedule
from .progress import OnStep
from .reweighting import AARConfig, AttentionWeights, Moment

NOISE, PASTED = "noise", "pasted"  # what denoising starts from: nothing, or a real defect laid into the mask
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
    """How to denoise. Raises ValueError where guidance is no finite number, or `denoise` no share."""

    scheduler: str = "ddim"  # a key of SCHEDULERS, or any diffusers scheduler class name
    steps: int = 25
    eta: float = 1.0  # DDIM's noise: 1 = ancestral, as released; 0 = deterministic
    guidance: float = 1.0  # classifier-free guidance against the empty prompt; 1 = none, as released
    # the blend mask reaches this share of the side beyond m at full noise, none at the end
    widening: float = 0.5
    # a start that is no noise is noised to this share of the schedule, of which the steps are run (SDEdit)
    denoise: float = 0.3
    aar: AARConfig = field(default_factory=AARConfig)

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"Guidance of {self.guidance} is no number to guide by: give one such as 2.5.")
        if not 0 < self.denoise <= 1:
            raise ValueError(f"A share of {self.denoise} of the schedule cannot be run: give 0.1 to 1.")


def image_generator(run_seed: int, index: int, series: str = "") -> torch.Generator:
    """The generator of image `index` of a series (a defect type, say): the same whatever the batch, the order
    or the host.
    """
    digest = hashlib.sha256(f"{run_seed}/{index}/{series}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def check_scheduler(config: SamplingConfig) -> None:
    """Raises ValueError where there is no such scheduler, or it does not take as many steps: to be asked
    before long work.
    """
    _, special = _scheduler_class(config.scheduler)
    most = special.get("original_inference_steps", config.steps)
    if config.steps > most:
        raise ValueError(f"Scheduler {config.scheduler} takes at most {most} steps, not {config.steps}.")


def _scheduler_class(name: str) -> tuple[type, dict[str, Any]]:
    """The class of that name with its settings."""
    class_name, special = SCHEDULERS.get(name, (name, {}))
    if class_name == "DDIMScheduler":
        return DDIM, special
    try:
        import diffusers
    except ModuleNotFoundError:
        raise ValueError(
            f"Scheduler {name!r} is one of diffusers, which is not installed: take ddim, or run "
            "'pip install diffusers'."
        ) from None
    cls = getattr(diffusers, class_name, None)
    if not (inspect.isclass(cls) and hasattr(cls, "set_timesteps")):
        raise ValueError(f"There is no scheduler {name!r}: choose from {', '.join(SCHEDULERS)}.")
    return cls, special


def make_scheduler(schedule: NoiseSchedule, name: str) -> Any:
    """DDIM, or a diffusers scheduler, on the base's own noise schedule, fed with predicted noise.

    Raises ValueError naming the known ones, or where diffusers is needed and not installed.
    """
    cls, special = _scheduler_class(name)
    if cls is DDIM:
        return DDIM(schedule)
    products = schedule.alphas_cumprod.double()
    betas = 1 - products / torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    settings = special | {
        "num_train_timesteps": schedule.steps,
        "trained_betas": betas.tolist(),
        "prediction_type": "epsilon",
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{key: value for key, value in settings.items() if key in accepted})


@dataclass(frozen=True)
class SamplingRequest:
    """What a batch is sampled for: a row of each context, and a generator, for each of its B images."""

    context: Context
    unconditional: Context | None  # of classifier-free guidance
    generators: Sequence[torch.Generator]
    guidance: Tensor | None = None  # (B,), each image's own, instead of the configuration's
    decode: Decode | None = None  # how AAR modes see pixels, instead of the base's own decoder
    maps: AttentionMaps | None = None  # record what the inserted tokens look at
    on_step: OnStep | None = None


@torch.no_grad()
def sample(
    base: LatentDiffusion, request: SamplingRequest, shape: tuple[int, int], config: SamplingConfig
) -> Tensor:
    """Plain sampling from noise: one latent (B,C,h,w) per generator, `shape` = (h, w)."""
    return _denoise(base, request, _noise(base, shape, request.generators), None, config)


@torch.no_grad()
def sample_into(
    base: LatentDiffusion, image: Tensor, mask: Tensor, request: SamplingRequest, *, config: SamplingConfig
) -> Tensor:
    """Generates inside masks: normal images (B,3,H,W) in [-1,1], masks (B,1,H,W) in {0,1} -> latents
    (B,C,h,w).

    Outside m_z the result is the normal latent exactly (Eq. 1, blended once more after the last step). Raises
    ValueError where counts or sizes differ.
    """
    if mask.shape[-2:] != image.shape[-2:] or len(mask) != len(image):
        raise ValueError(
            f"Masks are {tuple(mask.shape)}, images {tuple(image.shape)}: "
            "they must be of equal count and size."
        )
    image, mask = image.to(base.device), mask.to(base.device)
    target = Inpainting(base.encode(image), latent_mask(mask, base.factor), image, mask)
    return inpaint(base, target, request, config)


@torch.no_grad()
def inpaint(
    base: LatentDiffusion, target: Inpainting, request: SamplingRequest, config: SamplingConfig
) -> Tensor:
    """As `sample_into`, for a photo that is encoded already."""
    height, width = target.normal.shape[-2:]
    return _denoise(base, request, _noise(base, (height, width), request.generators), target, config)


def _denoise(
    base: LatentDiffusion,
    request: SamplingRequest,
    noise: Tensor,
    target: Inpainting | None,
    config: SamplingConfig,
) -> Tensor:
    """Blended latent diffusion (Eq. 1) with adaptive attention re-weighting (Eq. 7-8), by any scheduler, from
    noise or from a start that is noised part of the way (SDEdit, Meng et al., 2022).

    x is the scheduler's own variable, z_t the same at unit variance, y the normal photo, m_z its mask at
    latent size.
    """
    aar, decode = config.aar, request.decode or base.decode
    scheduler = make_scheduler(base.schedule, config.scheduler)
    _set_timesteps(scheduler, config, base.device)
    extra = _step_arguments(scheduler, config, request.generators)
    guidance = _per_image(request.guidance, config.guidance, noise)
    unconditional = None if (guidance == 1).all() else request.unconditional
    weights = AttentionWeights(aar.mode, request.context.columns)
    begin, total = _begin(scheduler, config, target), len(scheduler.timesteps)
    x, clean_hat, blend_mask = _start(base.schedule, scheduler, noise, target, begin), None, None
    with base.reweighted(weights):  # once for all steps: installing it costs a walk through the U-Net
        for i, t in enumerate(scheduler.timesteps[begin:], start=begin):
            # 1. Eq. 1: outside the region, x is the noised photo, x <- m x + (1 - m) q(z_y, t)
            if target:
                progress = int(t) / base.schedule.steps
                blend_mask = aar.blend_mask(target.m_z, progress, config.steps, config.widening)
                x = blend(x, scheduler.add_noise(target.normal, noise, t[None].expand(len(x))), blend_mask)
            z_t = scheduler.scale_model_input(x, t)
            times = t.to(z_t.dtype).expand(len(z_t))
            # 2. Eq. 8: weights w, from how much the last estimate of z_0, or z_t, differs from the photo
            weights.w, weights.maps = None, request.maps
            if request.maps is not None:
                request.maps.begin(i / total)
            if target and blend_mask is not None and aar.acts(i / total):
                weights.w = aar.weight_map(Moment(target, z_t, clean_hat, blend_mask, decode))
            # 3. Eq. 7: the noise in z_t, predicted with re-weighted attention; Eq. 10: guided
            eps = base.predict_noise(z_t, times, request.context)
            weights.w = weights.maps = None
            if unconditional:
                eps_empty = base.predict_noise(z_t, times, unconditional)
                eps = eps_empty + guidance * (eps - eps_empty)
            clean_hat = base.schedule.clean_latent(z_t, eps, times)
            # 4. the scheduler's step to the next timestep
            x = scheduler.step(eps, t, x, **extra).prev_sample
            if request.on_step:
                request.on_step(i + 1 - begin, total - begin, clean_hat)
    # 5. Eq. 1 once more, with m_z itself: outside it the result is the photo's latent
    return blend(x, target.normal, target.m_z) if target else x


def _per_image(guidance: Tensor | None, default: float, noise: Tensor) -> Tensor:
    if guidance is None:
        guidance = torch.full((len(noise),), default)
    if guidance.shape != (len(noise),):
        raise ValueError(f"Guidance is {tuple(guidance.shape)}, images {len(noise)}: give one for each.")
    return guidance.to(noise)[:, None, None, None]


def _set_timesteps(scheduler: Any, config: SamplingConfig, device: torch.device) -> None:
    most = scheduler.config.get("original_inference_steps") or scheduler.config["num_train_timesteps"]
    if not 1 <= config.steps <= most:
        raise ValueError(
            f"Scheduler {config.scheduler!r} takes 1 to {most} steps: {config.steps} were asked."
        )
    scheduler.set_timesteps(config.steps, device=device)
    # diffusers rounds to one timestep too many, -1, for 61, 103, 121 and other numbers of steps
    scheduler.timesteps = scheduler.timesteps.clamp(min=0)


def _begin(scheduler: Any, config: SamplingConfig, target: Inpainting | None) -> int:
    """The first timestep to run: of a start that is no noise, the one that `denoise` of the steps follow."""
    if target is None or target.start is None:
        return 0
    skipped = config.steps - max(1, round(config.denoise * config.steps))
    begin = skipped * getattr(scheduler, "order", 1)  # Heun has two evaluations a step
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return begin


def _start(
    schedule: NoiseSchedule, scheduler: Any, noise: Tensor, target: Inpainting | None, begin: int
) -> Tensor:
    """Where a run starts: unit noise, and upon it the noised photo's share of signal, as ComfyUI has it; or
    the target's start, noised as far as the timestep of number `begin`.

    Schedulers that count in sigma have unit signal. Their `init_noise_sigma` is sigma_max, with which the
    first model input would be short of unit variance.
    """
    if target is not None and target.start is not None:
        t = scheduler.timesteps[begin]
        return scheduler.add_noise(target.start, noise, t[None].expand(len(noise)))
    sigma = float(scheduler.init_noise_sigma)
    counts_in_sigma = sigma != 1
    x = noise * (1 + sigma**2) ** 0.5 if counts_in_sigma else noise
    if target is None:
        return x
    signal = 1.0 if counts_in_sigma else schedule.alpha_sigma(scheduler.timesteps[:1])[0]
    return x + signal * target.normal


def _noise(base: LatentDiffusion, shape: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn((base.latent_channels, *shape), generator=g) for g in generators]).to(
        base.device
    )


def _step_arguments(
    scheduler: Any, config: SamplingConfig, generators: Sequence[torch.Generator]
) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    wanted = {"eta": config.eta, "generator": list(generators)}
    return {key: value for key, value in wanted.items() if key in accepted}
