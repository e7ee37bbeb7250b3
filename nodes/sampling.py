"""Generating defects in normal photos: attention re-weighting for any sampler, and all in one sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from .conditioning import binary_masks
from .inputs import reweighting_inputs, sampler_inputs

CATEGORY = "AnomalyDiffusion/sampling"


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
                io.Image.Output("images", display_name="images", tooltip="Photos with the defect."),
                io.Mask.Output("masks", display_name="masks", tooltip="Their masks, 0 or 1."),
                io.Latent.Output("latent", display_name="latent"),
            ],
        )

    @classmethod
    def execute(cls, image: Any, mask: Any, vae: Any, feather: float, **sampler: Any) -> io.NodeOutput:
        from .comfy_generation import encode_photos, match_batch, paste_back, sample_latents

        image, mask = match_batch(image, binary_masks(mask))
        normal = encode_photos(image, vae)
        latent = sample_latents(image, mask, normal, vae, **sampler)
        images = paste_back(image, mask, normal, vae, latent, feather)
        return io.NodeOutput(images, mask[:, 0], {"samples": latent}, ui=ui.PreviewImage(images, cls=cls))
