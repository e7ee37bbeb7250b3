"""Masks: invented ones, thresholded ones, mixtures of sources, and where they lie on objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from comfy_api.v0_0_2 import io, ui

from .host.conditioning import chosen_type, known_type
from .inputs import base_inputs, sampler_inputs, seed_input, type_input
from .sockets import AnomalyEmbedding, FewShotDataset

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE
    from torch import Tensor

    from ..anomalydiffusion_core.dataset.layout import Dataset
    from ..anomalydiffusion_core.masks.placement import PlacementMode
    from ..anomalydiffusion_core.method.embeddings import Learned

CATEGORY = "AnomalyDiffusion/masks"
MIXED = {"generated": 1.0, "real": 1.0, "drawn": 0.0, "procedural": 0.0}  # weights, by their inputs in graphs


class GenerateMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.masks.invention import MaskConfig

        return io.Schema(
            node_id="ADiff_GenerateMasks",
            display_name="Generate Masks",
            category=CATEGORY,
            description="Invents masks like those of a defect; others take the place of empty, tiny, full "
            "and border-filling ones until the number is reached.",
            inputs=[
                *base_inputs(),
                AnomalyEmbedding.Input("embeddings", tooltip="From Train Masks."),
                type_input(),
                io.Int.Input("count", default=4, min=1, max=4096, tooltip="Accepted masks."),
                *sampler_inputs(cfg=MaskConfig.sampling.guidance),
                io.Image.Input(
                    "normals",
                    optional=True,
                    tooltip="The photos that the masks are for, of any size: masks are laid on them in turn, "
                    "on their object where there is one. Without them masks have the size of the training.",
                ),
            ],
            outputs=[io.Mask.Output("masks", display_name="masks")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        embeddings: Learned,
        *,
        defect_type: str,
        count: int,
        normals: Tensor | None = None,
        **sampler: Any,
    ) -> io.NodeOutput:
        from .host.mask_invention import masks_from_sampler
        from .host.sampling import SamplerSettings

        name = chosen_type(embeddings, defect_type, "mask")
        masks = masks_from_sampler(
            model,
            clip,
            vae,
            embeddings,
            defect_type=name,
            count=count,
            settings=SamplerSettings(**sampler),
            normals=normals,
        )
        return io.NodeOutput(masks, ui=ui.PreviewMask(masks))


class BinarizeMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_BinarizeMasks",
            display_name="Binarize Masks",
            category=CATEGORY,
            description="Pictures of masks (as any sampler makes them with Mask Conditioning) to masks of 0 "
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
                    "and the place of a training mask. Without it masks stay where they are.",
                ),
                type_input(),
                seed_input(changes=False),
            ],
            outputs=[io.Mask.Output("masks", display_name="masks")],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        threshold: float,
        embeddings: Learned | None = None,
        defect_type: str = "",
        *,
        seed: int = 0,
    ) -> io.NodeOutput:
        from ..anomalydiffusion_core.masks.invention import MaskConfig, masks_from_pictures
        from ..anomalydiffusion_core.masks.placement import placer_of
        from .host.pixels import to_core

        config = MaskConfig(threshold=2 * threshold - 1)
        masks = masks_from_pictures(to_core(images[..., :3]), config)
        if embeddings is not None:
            name = chosen_type(embeddings, defect_type, "mask")
            embeddings.mask_tokens(name)
            place = placer_of(embeddings, name, seed)
            masks = [place(shape, number) for number, shape in enumerate(masks)]
        return _masks_output(masks)


class MixMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.masks.sources import SOURCES, current_name

        def weight(input_id: str, default: float, optional: bool = False) -> io.Input:
            name = current_name(input_id)
            return io.Float.Input(
                input_id,
                display_name=name,
                optional=optional,
                default=default,
                min=0.0,
                max=1000.0,
                step=0.1,
                tooltip=f"How often masks are {name}: {SOURCES[name].meaning}; 0 = never.",
            )

        others = [name for name in SOURCES if name not in set(map(current_name, MIXED))]
        return io.Schema(
            node_id="ADiff_MixMasks",
            display_name="Mix Masks",
            category=CATEGORY,
            description="Masks from several sources, as often as their weights say: invented ones, real ones "
            "flipped, turned and bent, given ones (your own), and procedural ones without any training. They "
            "get the size and place of training masks where those are known; given ones stay as they are.",
            inputs=[
                *(weight(input_id, default) for input_id, default in MIXED.items()),
                io.Int.Input("count", default=4, min=1, max=4096, tooltip="Masks."),
                io.Int.Input("width", default=512, min=8, max=8192, tooltip="Of the photos, in pixels."),
                io.Int.Input("height", default=512, min=8, max=8192, tooltip="Of the photos, in pixels."),
                seed_input(changes=True),
                type_input(),
                io.Mask.Input(
                    "generated_masks",
                    display_name="invented_masks",
                    optional=True,
                    tooltip="From Generate Masks.",
                ),
                io.Mask.Input(
                    "drawn_masks",
                    display_name="given_masks",
                    optional=True,
                    tooltip="Your own: white = defect.",
                ),
                FewShotDataset.Input("few_shot", optional=True, tooltip="Whose masks are the real ones."),
                AnomalyEmbedding.Input(
                    "embeddings",
                    optional=True,
                    tooltip="From Train Masks: knows where and how large the training masks are.",
                ),
                *(weight(name, 0.0, optional=True) for name in others),
            ],
            outputs=[io.Mask.Output("masks", display_name="masks")],
        )

    @classmethod
    def execute(
        cls,
        count: int,
        width: int,
        height: int,
        seed: int,
        *,
        defect_type: str = "",
        generated_masks: Tensor | None = None,
        drawn_masks: Tensor | None = None,
        few_shot: Dataset | None = None,
        embeddings: Learned | None = None,
        **weights: float,
    ) -> io.NodeOutput:
        from ..anomalydiffusion_core.dataset.photos import read_mask
        from ..anomalydiffusion_core.masks.sources import (
            GIVEN,
            INVENTED,
            UNKNOWN_AREA,
            MaskRequest,
            current_name,
            invented_in_turn,
            known_placements,
            mask_source,
            masks_in_frame,
        )

        pairs = few_shot.by_type() if few_shot else {}
        name = known_type(embeddings, defect_type, pairs) if embeddings else defect_type.strip()
        name = name or next(iter(sorted(pairs)), "")
        weights = {current_name(key): value for key, value in weights.items()}
        for source, masks in ((INVENTED, generated_masks), (GIVEN, drawn_masks)):
            if masks is not None and not weights[source]:
                raise ValueError(
                    f"Masks are connected for {source!r}, whose weight is 0: raise the weight, or unplug "
                    "them."
                )
        real = [read_mask(pair.mask) for pair in pairs.get(name, [])]
        placements = known_placements(embeddings.mask_placements.get(name, []) if embeddings else [], real)
        request = MaskRequest(
            defect_type=name,
            seed=seed,
            invented=None if generated_masks is None else invented_in_turn(_marked(generated_masks)),
            real=lambda: real,
            given=[] if drawn_masks is None else _marked(drawn_masks),
            area=None if placements else UNKNOWN_AREA,
        )
        source = mask_source(weights, request)
        return _masks_output(
            masks_in_frame(source, count, placements, (height, width), seed=seed, defect_type=name)
        )


class PlaceMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..anomalydiffusion_core.generation.config import GenerationConfig
        from ..anomalydiffusion_core.masks.placement import PlacementMode

        return io.Schema(
            node_id="ADiff_PlaceMasks",
            display_name="Place Masks on Objects",
            category=CATEGORY,
            description="Moves, turns and scales masks onto the objects in normal photos: where the training "
            "masks lay on theirs, however the object lies, or anywhere on it. Photos without plain ground "
            "are textures, on which masks may lie anywhere.",
            inputs=[
                io.Mask.Input("masks", tooltip="Their forms count, not their places. One serves all photos."),
                io.Image.Input("normals", tooltip="The photos they are for, of one category."),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(PlacementMode)),
                    default=GenerationConfig.placement,
                    tooltip="learned: where the training masks lay (needs embeddings; without, masks stay "
                    "where they are on the object). free: anywhere on the object, turned anyhow.",
                ),
                seed_input(changes=True),
                AnomalyEmbedding.Input(
                    "embeddings",
                    optional=True,
                    tooltip="From Train Masks. Without it mode learned keeps the size of masks.",
                ),
                type_input(),
            ],
            outputs=[io.Mask.Output("placed", display_name="masks")],
        )

    @classmethod
    def execute(
        cls,
        masks: Tensor,
        normals: Tensor,
        mode: PlacementMode,
        seed: int,
        *,
        embeddings: Learned | None = None,
        defect_type: str = "",
    ) -> io.NodeOutput:
        from ..anomalydiffusion_core.masks.placement import lay_on_photos
        from .host.pixels import pixels_of

        name = known_type(embeddings, defect_type) if embeddings else ""
        placements = embeddings.mask_placements.get(name, []) if embeddings else []
        photos = list(pixels_of(normals))
        return _masks_output(
            lay_on_photos(_marked(masks), photos, placements, seed, defect_type=name, mode=mode)
        )


def _marked(masks: Tensor) -> list[Any]:
    """MASK (B,H,W) -> (H,W) bool each."""
    return list(masks.cpu().numpy() > 0.5)


def _masks_output(masks: list[Any]) -> io.NodeOutput:
    """(H,W) bool each -> MASK (B,H,W), shown below the node."""
    import numpy as np
    import torch

    batch = torch.from_numpy(np.stack(masks)).float()
    return io.NodeOutput(batch, ui=ui.PreviewMask(batch))
