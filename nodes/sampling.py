"""Generating defects in normal photos: attention re-weighting for any sampler, and all in one sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.v0_0_2 import io, ui

from .conditioning import binary_masks

CATEGORY = "AnomalyDiffusion/sampling"
MODES = ["adaptive", "paper", "released", "off"]


def sampler_inputs(cfg: float) -> list[io.Input]:
    """Seed, steps, guidance, sampler and scheduler, as ComfyUI's own KSampler has them."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Same seed, same result, whatever the batch.",
        ),
        io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Denoising steps."),
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
    """Mode and strength of AAR."""
    return [
        io.Combo.Input(
            "mode",
            options=MODES,
            default="adaptive",
            tooltip="Where the defect does not show yet, attention to it is strengthened. adaptive: by the "
            "last estimate, in latent space. paper: Eq. 7-8, in pixels. released: as the authors' code. "
            "off: plain.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="0 = exactly the plain sampler. Texture-like defects gain from it, others may not.",
        ),
    ]


class AttentionReweighting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_AttentionReweighting",
            display_name="Attention Re-weighting",
            category=CATEGORY,
            description="Adaptive attention re-weighting on a MODEL, for any sampler. The sampler needs the "
            "encoded normal photo with the mask (Set Latent Noise Mask). LoRAs and patches stay in force.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, with LoRAs or patches as you like."),
                io.Conditioning.Input(
                    "positive", tooltip="From Anomaly Conditioning: it knows the vectors' place."
                ),
                *reweighting_inputs(),
                io.Image.Input(
                    "image", optional=True, tooltip="The normal photos. Only mode paper needs them."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Their masks. Only mode paper needs them."),
                io.Vae.Input("vae", optional=True, tooltip="Only mode paper needs it."),
            ],
            outputs=[io.Model.Output("reweighted_model", display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, mode: str, strength: float, image: Any = None, mask: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .comfy_generation import paper_pixels, reweighted

        pixels = {}
        if image is not None and mask is not None and vae is not None:
            pixels = paper_pixels(model, vae, image, binary_masks(mask))
        return io.NodeOutput(reweighted(model, positive, mode, strength, **pixels))


class KSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_KSampler",
            display_name="KSampler (Anomaly)",
            category=CATEGORY,
            description="Puts a learned defect into normal photos, inside the masks: blended sampling with "
            "attention re-weighting, then pasted back. Outside the mask every pixel stays as it was.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, with LoRAs or patches as you like."),
                io.Conditioning.Input("positive", tooltip="From Anomaly Conditioning, with the same masks."),
                io.Conditioning.Input("negative", tooltip="From Anomaly Conditioning."),
                io.Vae.Input("vae", tooltip="The autoencoder that belongs to the model."),
                io.Image.Input("image", tooltip="Normal photos, one per mask, or one for all."),
                io.Mask.Input("mask", tooltip="Where the defect goes: white = defect."),
                *sampler_inputs(cfg=2.5),
                *reweighting_inputs(),
                io.Float.Input(
                    "feather",
                    default=1.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Pixels inside the mask's edge over which the defect fades in.",
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="Photos with the defect."),
                io.Mask.Output("masks", tooltip="Their masks, 0 or 1."),
                io.Latent.Output("latent"),
            ],
        )

    @classmethod
    def execute(cls, image: Any, mask: Any, vae: Any, feather: float, **sampler: Any) -> io.NodeOutput:
        from .comfy_generation import match_batch, paste_back, sample_latents

        image, mask = match_batch(image, binary_masks(mask))
        latent = sample_latents(image, mask, vae, **sampler)
        images = paste_back(image, mask, vae, latent, feather)
        return io.NodeOutput(images, mask[:, 0], {"samples": latent}, ui=ui.PreviewImage(images, cls=cls))
