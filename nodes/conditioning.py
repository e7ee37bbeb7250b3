"""Learned embeddings as CONDITIONING for any sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from .inputs import base_inputs, type_input
from .sockets import AnomalyEmbedding

CATEGORY = "AnomalyDiffusion/conditioning"
COLUMNS = "anomalydiffusion_columns"  # in a conditioning's options: where the inserted vectors stand


def chosen_type(embeddings: Any, defect_type: str, kind: str) -> str:
    """The type asked for, or the first one of `kind` ("anomaly" or "mask") where none was."""
    return defect_type.strip() or next(iter(sorted(getattr(embeddings, kind))), "")


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
                    "mask", tooltip="Where the defect goes: white = defect. A batch gives a batch."
                ),
                type_input(),
                io.String.Input(
                    "template",
                    default="a photo of a {}",
                    tooltip="Prompt around the learned vectors, which stand at {}.",
                ),
            ],
            outputs=[io.Conditioning.Output("positive"), io.Conditioning.Output("negative")],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, embeddings: Any, mask: Any, defect_type: str, template: str
    ) -> io.NodeOutput:
        import torch

        from ..anomalydiffusion_core.conditioning import anomaly_context, empty_context
        from .comfy_model import conditioning, load_for

        base = load_for(embeddings, model, clip, vae)
        tokens = embeddings.anomaly_tokens(chosen_type(embeddings, defect_type, "anomaly"))
        with torch.no_grad():
            marked = binary_masks(mask)
            context = anomaly_context(base, template, tokens, embeddings.spatial_encoders, marked)
            empty = empty_context(base, len(marked))
        return io.NodeOutput(conditioning(context, **{COLUMNS: context.columns}), conditioning(empty))


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
            outputs=[io.Conditioning.Output("positive"), io.Conditioning.Output("negative")],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, embeddings: Any, defect_type: str) -> io.NodeOutput:
        import torch

        from ..anomalydiffusion_core.conditioning import empty_context, mask_context
        from ..anomalydiffusion_core.templates import MASK_TEMPLATES
        from .comfy_model import conditioning, load_for

        base = load_for(embeddings, model, clip, vae)
        tokens = embeddings.mask_tokens(chosen_type(embeddings, defect_type, "mask"))
        with torch.no_grad():
            context = mask_context(base, MASK_TEMPLATES[0], tokens, 1)
            empty = empty_context(base, 1)
        return io.NodeOutput(conditioning(context), conditioning(empty))


def binary_masks(mask: Any) -> Any:
    """ComfyUI's MASK (B,H,W) or (H,W) in [0,1] -> (B,1,H,W) in {0,1}; ValueError for an empty one."""
    marked = (mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5).float()
    empty = [i for i, m in enumerate(marked) if not m.any()]
    if empty:
        raise ValueError(f"Mask {empty[0]} is empty: draw or generate one that marks where the defect goes.")
    return marked
