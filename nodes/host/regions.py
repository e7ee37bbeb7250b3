"""Crop-and-stitch on ComfyUI's batches: defect regions in windows of their photos, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...anomalydiffusion_core.dataset.photos import Photo
from ...anomalydiffusion_core.dataset.windows import MAX_SHRINK, Region, regions_of
from ...anomalydiffusion_core.generation.regions import (
    DecodedRegion,
    autoencoder_noise,
    on_canvas,
    restored,
    stitched,
    to_pixels,
)
from ...anomalydiffusion_core.method.embeddings import Learned
from .conditioning import binary_masks
from .pixels import pixels_of, to_core
from .sampling import match_batch


@dataclass(frozen=True)
class CroppedRegions:
    """Photos (B,H,W,3) in [0,1] with masks (B,H,W), and of each crop which photo it shows, and where; crops
    have `size` pixels per side.
    """

    photos: Tensor
    masks: Tensor
    crops: tuple[tuple[int, Region], ...]
    size: int


def find_regions(images: Tensor, masks: Tensor, canvas: int, learned: Learned | None) -> CroppedRegions:
    """The regions of masks (B,H,W), those of one photo after the other; `canvas` 0 takes the size of the
    training.

    Raises ValueError where there is no size, or a region is too large for it.
    """
    size = canvas or (learned.image_size if learned else 0)
    if not size:
        raise ValueError("Canvas 0 takes the size of the training: connect the embeddings, or set it.")
    photos, marked = match_batch(images, binary_masks(masks))
    crops = []
    for number, mask in enumerate(marked[:, 0].cpu().numpy() > 0):
        for region in regions_of(mask, size):
            if region.window.side > MAX_SHRINK * size:
                raise ValueError(
                    f"Mask {number} has a part that needs {region.window.side} pixels per side, over "
                    f"{MAX_SHRINK} times the canvas of {size}: mark less, or scale the photo down."
                )
            crops.append((number, region))
    return CroppedRegions(photos.cpu(), marked[:, 0].cpu(), tuple(crops), size)


def cropped(regions: CroppedRegions) -> tuple[Tensor, Tensor]:
    """Crops (N,S,S,3) in [0,1] and their masks (N,S,S); where a window has the canvas's size, the photo's own
    values.
    """
    images, masks = [], []
    for number, region in regions.crops:
        window = region.window.cut(regions.photos[number].numpy())
        if len(window) == regions.size:
            images.append(window)
            masks.append(region.mask)
        else:
            view = on_canvas(255 * window, region.mask, regions.size)
            images.append(view.pixels / 255)
            masks.append(view.mask)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)).float()


def stitched_photos(crops: Tensor, regions: CroppedRegions, feather: float) -> Tensor:
    """The photos (B,H,W,3) with crops (N,S,S,3) in [0,1] laid into them; outside the masks nothing changes.

    Crops of windows of another size are scaled, and get back the detail that this costs. Raises ValueError
    where they are not those that were cut out.
    """
    size = (len(regions.crops), regions.size, regions.size)
    if tuple(crops.shape[:3]) != size:
        raise ValueError(
            f"There are {len(crops)} crops of {crops.shape[2]}x{crops.shape[1]} for {size[0]} regions of "
            f"{size[2]}x{size[1]}: connect what was made of the crops of the same Crop Regions."
        )
    photos = [Photo(pixels, gray=False) for pixels in pixels_of(regions.photos)]
    before, _ = cropped(regions)
    for (number, region), generated, normal in zip(regions.crops, crops[..., :3].cpu(), before, strict=True):
        photo = region.window.cut(255 * regions.photos[number].numpy())
        photos[number] = stitched(photos[number], _decoded(region, photo, generated, normal), feather)
    results = torch.from_numpy(np.stack([photo.pixels for photo in photos])).float() / 255
    return torch.where(regions.masks[..., None] > 0, results, regions.photos)


def _decoded(region: Region, photo: np.ndarray, generated: Tensor, normal: Tensor) -> DecodedRegion:
    """A crop (S,S,3) in [0,1] at its window's own size; `normal` is the crop of the photo."""
    side = region.window.side
    if side == len(generated):
        return DecodedRegion(region, 255 * generated.numpy(), 1.0)
    after, before = (to_pixels(to_core(x[None])[0], (side, side)) for x in (generated, normal))
    noise = autoencoder_noise(photo, before)
    return DecodedRegion(region, restored(photo, before, after, noise), noise)
