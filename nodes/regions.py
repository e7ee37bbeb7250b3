"""Crop-and-stitch: defects at the model's own resolution in photos of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from .sockets import AnomalyEmbedding, Regions

if TYPE_CHECKING:
    from torch import Tensor

    from ..anomalydiffusion_core.method.embeddings import Learned
    from .host.regions import CroppedRegions

CATEGORY = "AnomalyDiffusion/regions"


class CropRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_CropRegions",
            display_name="Crop Regions",
            category=CATEGORY,
            description="Cuts a square window with some surroundings out of the photo for each region of its "
            "mask, so that large photos are worked on pixel by pixel at the model's own resolution. Parts "
            "that lie together share a window; a part that is too long gets a larger one, scaled down.",
            inputs=[
                io.Image.Input("images", tooltip="Normal photos of any size, one per mask, or one for all."),
                io.Mask.Input("masks", tooltip="Where defects go: white = defect."),
                io.Int.Input(
                    "canvas",
                    default=512,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Pixels per side of the crops: the model's own resolution. 0 = the size that the "
                    "embeddings were trained at.",
                ),
                AnomalyEmbedding.Input("embeddings", optional=True, tooltip="For canvas 0."),
                io.Mask.Input(
                    "undrawn",
                    optional=True,
                    lazy=True,
                    tooltip="Masks to take as long as masks is empty, as Load Image's is until one is drawn. "
                    "They are not made once there is one.",
                ),
            ],
            outputs=[
                io.Image.Output("crops", display_name="crops", tooltip="Of all photos, in one batch."),
                io.Mask.Output("crop_masks", display_name="crop masks"),
                Regions.Output("regions", display_name="regions", tooltip="For Stitch Regions."),
            ],
        )

    @classmethod
    def check_lazy_status(cls, masks: Tensor | None = None, **given: Any) -> list[str]:
        """Asks for `undrawn`, where it is linked, only if nothing is drawn."""
        waiting = "undrawn" in given and given["undrawn"] is None
        return ["undrawn"] if waiting and masks is not None and not _is_drawn(masks) else []

    @classmethod
    def execute(
        cls,
        images: Tensor,
        masks: Tensor,
        canvas: int,
        embeddings: Learned | None = None,
        *,
        undrawn: Tensor | None = None,
    ) -> io.NodeOutput:
        from .host.regions import cropped, find_regions

        if undrawn is not None and not _is_drawn(masks):
            masks = undrawn
        regions = find_regions(images, masks, canvas, embeddings)
        crops, crop_masks = cropped(regions)
        return io.NodeOutput(crops, crop_masks, regions, ui=ui.PreviewImage(crops, cls=cls))


def _is_drawn(masks: Tensor) -> bool:
    return bool((masks > 0.5).any())


class StitchRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADiff_StitchRegions",
            display_name="Stitch Regions",
            category=CATEGORY,
            description="Lays crops with defects back into their photos. Outside the masks every pixel stays "
            "as it was; inside, crops that were not scaled are copied, and scaled ones get back the photo's "
            "fine detail where little was changed.",
            inputs=[
                io.Image.Input("crops", tooltip="From KSampler (Anomaly), in the order of Crop Regions."),
                Regions.Input("regions", tooltip="From Crop Regions."),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="Pixels of the photo inside the mask's edge over which crops fade in. 0 = as "
                    "they are: KSampler (Anomaly) has faded its defects in already.",
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="Photos with the defects."),
                io.Mask.Output("masks", display_name="masks", tooltip="Their masks, 0 or 1."),
            ],
        )

    @classmethod
    def execute(cls, crops: Tensor, regions: CroppedRegions, feather: float) -> io.NodeOutput:
        from .host.regions import stitched_photos

        images = stitched_photos(crops, regions, feather)
        return io.NodeOutput(images, regions.masks, ui=ui.PreviewImage(images, cls=cls))
