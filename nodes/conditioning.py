"""Learned embeddings as CONDITIONING for any sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.v0_0_2 import io

from .host.conditioning import COLUMNS, LEARNED, binary_masks, chosen_type
from .inputs import base_inputs, type_input
from .sockets import AnomalyEmbedding, SpatialTokens

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE
    from torch import Tensor

    from ..anomalydiffusion_core.method.embeddings import Learned, TokensByEncoder

CATEGORY = "AnomalyDiffusion/conditioning"


class EncodeMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_EncodeMask",
            display_name="Encode Mask",
            category=CATEGORY,
            description="Masks to the spatial tokens that tell the prompt where the defect is. Anomaly "
            "Conditioning does this by itself; use this node to tell it another place than the sampler's "
            "mask, such as one larger region.",
            inputs=[
                AnomalyEmbedding.Input(
                    "embeddings", tooltip="From Train Anomaly or Load Anomaly Embeddings."
                ),
                io.Mask.Input("mask", tooltip="Where the defect is: white = defect. A batch gives a batch."),
            ],
            outputs=[SpatialTokens.Output("spatial_tokens", display_name="spatial tokens")],
        )

    @classmethod
    def execute(cls, embeddings: Learned, mask: Tensor) -> io.NodeOutput:
        import torch

        from ..anomalydiffusion_core.method.conditioning import spatial_tokens

        if not embeddings.spatial_encoders:
            raise ValueError(
                "These embeddings were trained without spatial encoder: connect the mask itself."
            )
        with torch.no_grad():
            return io.NodeOutput(spatial_tokens(embeddings.spatial_encoders, binary_masks(mask)))


class AnomalyConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_AnomalyConditioning",
            display_name="Anomaly Conditioning",
            category=CATEGORY,
            description="A prompt that says what the defect looks like and, from the mask, where it is. One "
            "conditioning per mask, in one batch.",
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input(
                    "embeddings", tooltip="From Train Anomaly or Load Anomaly Embeddings."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the defect goes: white = defect. A batch gives a batch.",
                ),
                type_input(),
                io.String.Input(
                    "template",
                    default="a photo of a {}",
                    tooltip="Prompt around the learned vectors, which stand at {}.",
                ),
                SpatialTokens.Input(
                    "spatial_tokens", optional=True, tooltip="From Encode Mask, in place of the mask."
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                io.Conditioning.Output("negative", display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, embeddings: Learned, *, defect_type: str,
        template: str, mask: Tensor | None = None, spatial_tokens: TokensByEncoder | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        import torch

        from ..anomalydiffusion_core.method.conditioning import empty_context, placed_context
        from ..anomalydiffusion_core.method.conditioning import spatial_tokens as encoded
        from .host.base_model import load_for
        from .host.conditioning import conditioning

        base = load_for(embeddings, model, clip, vae)
        name = chosen_type(embeddings, defect_type, "anomaly")
        look = embeddings.anomaly_tokens(name)
        with torch.no_grad():
            if mask is not None and spatial_tokens is None:
                marked = binary_masks(mask)
                where, count = encoded(embeddings.spatial_encoders, marked), len(marked)
            elif mask is None and spatial_tokens is not None:
                where, count = spatial_tokens, len(next(iter(spatial_tokens.values())))
            else:
                raise ValueError("Connect either a mask, or the tokens of Encode Mask: they say where.")
            context = placed_context(base, template, look, where, count=count)
            empty = empty_context(base, len(context.hidden))
        known = {COLUMNS: context.columns, LEARNED: (embeddings, name)}
        return io.NodeOutput(conditioning(context, **known), conditioning(empty))


class MaskConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_MaskConditioning",
            display_name="Mask Conditioning",
            category=CATEGORY,
            description="A prompt for a black-and-white picture of a mask like the defect's own.",
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Masks."),
                type_input(),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive"),
                io.Conditioning.Output("negative", display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, embeddings: Learned, *, defect_type: str
    ) -> io.NodeOutput:
        import torch

        from ..anomalydiffusion_core.method.conditioning import empty_context, mask_context
        from ..anomalydiffusion_core.method.templates import MASK_TEMPLATES
        from .host.base_model import load_for
        from .host.conditioning import conditioning
        from .host.update import tell_of_update

        base = load_for(embeddings, model, clip, vae)
        tell_of_update(model, embeddings.adapter)
        tokens = embeddings.mask_tokens(chosen_type(embeddings, defect_type, "mask"))
        with torch.no_grad():
            context = mask_context(base, MASK_TEMPLATES[0], tokens, 1)
            empty = empty_context(base, 1)
        return io.NodeOutput(conditioning(context), conditioning(empty))
