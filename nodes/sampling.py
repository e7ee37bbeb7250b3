"""Generating defects in normal photos: attention re-weighting for any sampler, and all in one sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from ..anomalydiffusion_core.method.reweighting import AARConfig, modes_of_pixels
from .host.conditioning import Conditioning, binary_masks
from .inputs import reweighting_inputs, sampler_inputs
from .sockets import FewShotDataset

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from torch import Tensor

    from ..anomalydiffusion_core.dataset.layout import Dataset

CATEGORY = "AnomalyDiffusion/sampling"


class AttentionReweighting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        pixels = modes_of_pixels()
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
                    "image", optional=True, tooltip=f"The normal photos. Only mode {pixels} needs them."
                ),
                io.Mask.Input("mask", optional=True, tooltip=f"Their masks. Only mode {pixels} needs them."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=f"Only mode {pixels} needs it; a tiny one (Load VAE: taesd) is faster.",
                ),
            ],
            outputs=[io.Model.Output("reweighted_model", display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, positive: Conditioning, mode: str, strength: float,
        *, start: float = AARConfig.start, end: float = AARConfig.end, maximum: float = AARConfig.maximum,
        image: Tensor | None = None, mask: Tensor | None = None, vae: VAE | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .host.sampling import pixels_to_compare, reweighted

        pixels = None
        if image is not None and mask is not None and vae is not None:
            pixels = pixels_to_compare(model, vae, image, binary_masks(mask))
        aar = AARConfig(mode, strength, maximum, start=start, end=end)
        return io.NodeOutput(reweighted(model, positive, aar, pixels=pixels))


class KSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.generation.config import GenerationConfig

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
                *sampler_inputs(cfg=GenerationConfig.sampling.guidance),
                *reweighting_inputs(),
                io.Float.Input(
                    "feather",
                    default=GenerationConfig.feather,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Pixels inside the mask's edge over which the defect fades in, at least.",
                ),
                *_optional_inputs(),
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
        cls, model: ModelPatcher, positive: Conditioning, negative: Conditioning, vae: VAE, *, image: Tensor,
        mask: Tensor, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str, mode: str,
        strength: float, feather: float, start: float = AARConfig.start, end: float = AARConfig.end,
        maximum: float = AARConfig.maximum, attention_maps: bool = False, aar_vae: VAE | None = None,
        dataset: Dataset | None = None, denoise: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        from ..anomalydiffusion_core.method.attention_maps import AttentionMaps
        from .host import sampling
        from .host.gate import outlines_of
        from .host.pasting import pasted_defects

        photos = sampling.MaskedPhotos.encoded(image, binary_masks(mask), vae)
        count, _, height, width = photos.latent.shape
        maps = AttentionMaps(count, (height, width)) if attention_maps else None
        aar = AARConfig(mode, strength, maximum, start=start, end=end)
        settings = sampling.SamplerSettings(seed, steps, cfg, sampler_name, scheduler, denoise)
        defects = pasted_defects(photos, positive, dataset, seed=seed, denoise=denoise)
        latent = sampling.sample_latents(
            photos,
            model,
            positive,
            negative,
            settings=settings,
            aar=aar,
            aar_vae=aar_vae,
            maps=maps,
            defects=defects,
        )
        outlines = outlines_of(positive, dataset, photos.image, vae, feather=feather)
        images = sampling.paste_back(photos, latent, outlines, defects)
        heat = sampling.attention_pictures(photos, maps)
        shown: Any = [*images, *heat] if attention_maps else images  # the host takes pictures of any size
        outputs = images, photos.mask[:, 0], {"samples": latent}, heat
        return io.NodeOutput(*outputs, ui=ui.PreviewImage(shown, cls=cls))


def _optional_inputs() -> list[io.Input]:
    """What came later, for older graphs."""
    return [
        io.Boolean.Input(
            "attention_maps",
            optional=True,
            default=False,
            tooltip="Show what the learned vectors looked at, in four parts of the steps.",
        ),
        io.Vae.Input(
            "aar_vae",
            optional=True,
            tooltip=f"A tiny decoder (Load VAE: taesd) makes mode {modes_of_pixels()} faster.",
        ),
        FewShotDataset.Input(
            "dataset",
            optional=True,
            tooltip="The one that the embeddings were trained on: defects fade in over more pixels "
            "than feather says, where else their outlines would show more than in its real pairs.",
        ),
        io.Float.Input(
            "denoise",
            optional=True,
            default=1.0,
            min=0.05,
            max=1.0,
            step=0.05,
            tooltip="1: from noise. Less, with a dataset: a real training defect is laid into the "
            "mask, and denoised from this share of the schedule: 0.3 keeps its form; cfg 1 suits it.",
        ),
    ]
