"""Masks: invented ones, thresholded ones, and what they say as tokens."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui

from .conditioning import chosen_type
from .inputs import base_inputs, sampler_inputs, seed_input, type_input
from .sockets import AnomalyEmbedding

CATEGORY = "AnomalyDiffusion/masks"


class GenerateMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_GenerateMasks",
            display_name="Generate Masks",
            category=CATEGORY,
            description="Invents masks like those of a defect; empty, tiny, full and border-filling ones are "
            "drawn again until the number is reached.",
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Masks."),
                type_input(),
                io.Int.Input("count", default=4, min=1, max=4096, tooltip="Accepted masks."),
                *sampler_inputs(cfg=2.0),
            ],
            outputs=[io.Mask.Output("masks", display_name="masks")],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, embeddings: Any, defect_type: str, count: int, **sampler: Any
    ) -> io.NodeOutput:
        from .comfy_generation import invented_masks

        name = chosen_type(embeddings, defect_type, "mask")
        masks = invented_masks(model, clip, vae, embeddings, name, count, **sampler)
        return io.NodeOutput(masks, ui=ui.PreviewMask(masks))


class BinarizeMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_BinarizeMasks",
            display_name="Binarize Masks",
            category=CATEGORY,
            description="Pictures of masks (as any sampler draws them with Mask Conditioning) to masks of 0 "
            "and 1: channels averaged, thresholded, pin holes closed, specks dropped. With embeddings they "
            "are laid where the training masks were, at their size.",
            inputs=[
                io.Image.Input("images", tooltip="White or bright = defect."),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="Brighter is defect."
                ),
                AnomalyEmbedding.Input(
                    "embeddings",
                    optional=True,
                    tooltip="From Train Masks, which learns shapes close up: with it each mask gets the size "
                    "and the place of a training mask. Without it masks stay as drawn.",
                ),
                type_input(),
                seed_input(changes=False),
            ],
            outputs=[io.Mask.Output("masks", display_name="masks")],
        )

    @classmethod
    def execute(
        cls, images: Any, threshold: float, embeddings: Any = None, defect_type: str = "", seed: int = 0
    ) -> io.NodeOutput:
        import numpy as np
        import torch

        from ..anomalydiffusion_core.masks import MaskConfig, masks_from_pictures
        from ..anomalydiffusion_core.placement import placing
        from .pixels import to_core

        config = MaskConfig(threshold=2 * threshold - 1)
        found = masks_from_pictures(to_core(images[..., :3]), config)
        if embeddings is not None:
            name = chosen_type(embeddings, defect_type, "mask")
            embeddings.mask_tokens(name)
            place = placing(embeddings, name, seed)
            found = [place(shape, number) for number, shape in enumerate(found)]
        masks = torch.from_numpy(np.stack(found)).float()
        return io.NodeOutput(masks, ui=ui.PreviewMask(masks))
