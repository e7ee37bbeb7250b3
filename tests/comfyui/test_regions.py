"""Crop-and-stitch in ComfyUI: crops are the photo's own pixels, and only masks change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Callable[..., tuple]


def large_photos() -> tuple[Tensor, Tensor]:
    """Two noisy photos off whole grey levels, with three spots and one; those on top lie close together."""
    photos = torch.rand(2, 300, 420, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 300, 420)
    masks[0, 20:40, 30:60], masks[0, 50:70, 80:90], masks[0, 270:290, 390:415] = 1, 1, 1
    masks[1, 140:180, 200:220] = 1
    return photos, masks


def test_regions_are_cut_out_pixel_by_pixel_and_stitched_with_nothing_else_changed(
    run: Run, trained: Any
) -> None:
    photos, masks = large_photos()
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=128)
    assert crops.shape == (3, 128, 128, 3) and [number for number, _ in regions.crops] == [0, 0, 1]
    assert torch.equal(crops[1], photos[0, 172:, 292:]) and torch.equal(crop_masks[1], masks[0, 172:, 292:])
    assert torch.equal(crops[2], photos[1, 96:224, 146:274])
    made, made_masks = run("ADiff_StitchRegions", crops=1 - crops, regions=regions, feather=0.0)
    assert torch.equal(made_masks, masks)
    expected = torch.where(masks[..., None] > 0, 1 - photos, photos)
    assert torch.equal(made[masks == 0], photos[masks == 0])
    assert float((made - expected).abs().max()) <= 0.501 / 255
    faded, _ = run("ADiff_StitchRegions", crops=1 - crops, regions=regions, feather=8.0)
    assert torch.equal(faded[masks == 0], photos[masks == 0]) and not torch.equal(faded, made)
    (own, _, _) = run(
        "ADiff_CropRegions", images=photos, masks=masks, canvas=0, embeddings=trained.embeddings
    )
    assert torch.equal(own, crops)
    with pytest.raises(ValueError, match="There are 2 crops of 128x128 for 3 regions of 128x128: connect"):
        run("ADiff_StitchRegions", crops=crops[:2], regions=regions, feather=0.0)
    with pytest.raises(ValueError, match="Canvas 0 takes the size of the training: connect the embeddings"):
        run("ADiff_CropRegions", images=photos, masks=masks, canvas=0)


def test_what_is_longer_than_the_canvas_is_scaled_and_gets_its_detail_back(run: Run) -> None:
    photos, masks = large_photos()
    smooth = torch.linspace(60, 180, 420)[:, None] + 4 * photos
    photos, masks = smooth.round() / 255, torch.zeros_like(masks)
    masks[:, 100:110, 100:300] = 1
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=64)
    assert crops.shape == (2, 64, 64, 3) and regions.crops[0][1].window.side == 300
    assert set(crop_masks.unique().tolist()) == {0.0, 1.0} and crop_masks[0].any(0).sum() >= 64 * 200 / 300
    unchanged, _ = run("ADiff_StitchRegions", crops=crops, regions=regions, feather=0.0)
    assert torch.equal(unchanged, photos)
    red = torch.tensor([1.0, 0.0, 0.0]).expand_as(crops)
    painted, _ = run("ADiff_StitchRegions", crops=red, regions=regions, feather=0.0)
    assert torch.equal(painted[masks == 0], photos[masks == 0])
    assert (painted[masks > 0] - red[0, 0, 0]).abs().max() < 2 / 255
    masks[0, 20:280, 10:400] = 1
    with pytest.raises(ValueError, match="Mask 0 has a part that needs 420 pixels per side, over 8 times"):
        run("ADiff_CropRegions", images=photos, masks=masks, canvas=48)


def test_defects_are_made_in_crops_of_a_large_photo(
    run: Run,
    generated: Run,
    trained: Any,
) -> None:
    photos, masks = large_photos()
    crops, crop_masks, regions = run("ADiff_CropRegions", images=photos, masks=masks, canvas=128)
    made, _ = run("ADiff_StitchRegions", crops=generated(crop_masks, crops)[0], regions=regions, feather=0.0)
    changed = (made != photos).any(-1)
    assert not changed[masks == 0].any()
    assert changed[masks > 0].float().mean() > 0.9
