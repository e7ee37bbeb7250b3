"""Inputs that several nodes share."""

from __future__ import annotations

import comfy.samplers
from comfy_api.v0_0_2 import io


def base_inputs(model: str = "The base model that the embeddings were trained on.") -> list[io.Input]:
    """MODEL, CLIP and VAE of one base."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
        io.Vae.Input("vae", tooltip="The autoencoder that belongs to the model."),
    ]


def seed_input(changes: bool) -> io.Input:
    """A seed; `changes` says whether the browser draws another after each run."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=changes,
        tooltip="Same seed, same result, whatever the batch.",
    )


def type_input(optional: bool = False) -> io.Input:
    return io.String.Input(
        "defect_type",
        optional=optional,
        default="",
        tooltip="Which defect, as category/defect, such as leather/burn. Empty: the first one.",
    )


def sampler_inputs(cfg: float) -> list[io.Input]:
    """Seed, steps, guidance, sampler and scheduler, as ComfyUI's own KSampler has them."""
    from ..anomalydiffusion_core.method.sampling import SamplingConfig

    return [
        seed_input(changes=True),
        io.Int.Input("steps", default=SamplingConfig.steps, min=1, max=1000, tooltip="Denoising steps."),
        io.Float.Input(
            "cfg",
            default=cfg,
            min=1.0,
            max=30.0,
            step=0.1,
            tooltip="Classifier-free guidance; 1 = none, and half the time.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="euler_ancestral",
            tooltip="Any sampler. Ancestral ones invent more, as the method's released code does.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="normal",
            tooltip="Noise levels of the steps.",
        ),
    ]


def reweighting_inputs() -> list[io.Input]:
    """Mode, strength, part of the steps and clip of AAR; what came later is optional, for older graphs."""
    from ..anomalydiffusion_core.method.reweighting import MODES, AARConfig, meanings

    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=AARConfig.mode,
            tooltip=f"Where the defect does not show yet, attention to it is strengthened. {meanings()}",
        ),
        io.Float.Input(
            "strength",
            default=AARConfig.strength,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="0 = exactly the plain sampler. Texture-like defects gain from it, others may not.",
        ),
        io.Float.Input(
            "start",
            optional=True,
            default=AARConfig.start,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps after which re-weighting begins; 0 = from the first one on.",
        ),
        io.Float.Input(
            "end",
            optional=True,
            default=AARConfig.end,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the steps at which re-weighting stops; 1 = never.",
        ),
        io.Float.Input(
            "maximum",
            optional=True,
            default=AARConfig.maximum,
            min=1.0,
            max=100.0,
            step=0.1,
            tooltip="The largest weight of mode adaptive, at strength 1. Other modes do not use it.",
        ),
    ]
