"""Generating defects in normal photos: attention re-weighting for any sampler, and all in one sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from .host.conditioning import binary_masks
from .inputs import reweighting, reweighting_inputs, sampler_inputs
from .sockets import FewShotDataset

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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only mode paper needs it; a tiny one (Load VAE: taesd) is faster.",
                ),
            ],
            outputs=[io.Model.Output("reweighted_model", display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, mode: str, strength: float, start: float = 0.0, end: float = 1.0,
        maximum: float = 3.0, image: Any = None, mask: Any = None, vae: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .host.sampling import paper_pixels, reweighted

        pixels = {}
        if image is not None and mask is not None and vae is not None:
            pixels = paper_pixels(model, vae, image, binary_masks(mask))
        aar = reweighting(mode, strength, start, end, maximum)
        return io.NodeOutput(reweighted(model, positive, aar, **pixels))


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
                    tooltip="Pixels inside the mask's edge over which the defect fades in, at least.",
                ),
                io.Boolean.Input(
                    "attention_maps",
                    optional=True,
                    default=False,
                    tooltip="Show what the learned vectors looked at, in four parts of the steps.",
                ),
                io.Vae.Input(
                    "aar_vae",
                    optional=True,
                    tooltip="A tiny decoder (Load VAE: taesd) makes mode paper faster.",
                ),
                FewShotDataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="The one that the embeddings were trained on: defects fade in over more pixels "
                    "than feather says, where else their outlines would show more than in its real pairs.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="Photos with the defect."),
                io.Mask.Output("masks", display_name="masks", tooltip="Their masks, 0 or 1."),
                io.Latent.Output("latent", display_name="latent"),
                io.Image.Output(
                    "heat_maps",
                    display_name="attention maps",
                    tooltip="What the learned vectors looked at, over the photos, from early steps to late "
                    "ones. The plain photos where attention_maps is off.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, image: Any, mask: Any, vae: Any, feather: float, mode: str, strength: float, start: float = 0.0,
        end: float = 1.0, maximum: float = 3.0, attention_maps: bool = False, dataset: Any = None,
        **sampler: Any,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.method.attention_maps import AttentionMaps
        from .host.gate import outlines_of
        from .host.sampling import (
            attention_pictures,
            encode_photos,
            match_batch,
            paste_back,
            sample_latents,
        )

        image, mask = match_batch(image, binary_masks(mask))
        normal = encode_photos(image, vae)
        maps = AttentionMaps(len(normal), normal.shape[-2:]) if attention_maps else None
        aar = reweighting(mode, strength, start, end, maximum)
        latent = sample_latents(image, mask, normal, vae, aar=aar, maps=maps, **sampler)
        outlines = outlines_of(sampler["positive"], dataset, image, vae, feather)
        images = paste_back(image, mask, normal, vae, latent, outlines)
        heat = attention_pictures(image, vae, maps)
        shown = [*images, *heat] if attention_maps else images
        outputs = images, mask[:, 0], {"samples": latent}, heat
        return io.NodeOutput(*outputs, ui=ui.PreviewImage(shown, cls=cls))
