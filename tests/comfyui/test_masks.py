"""The mask nodes in a real ComfyUI: invented, mixed from several sources, placed on objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_inputs import SAMPLER
from torch import Tensor

Run = Callable[..., tuple]


def test_masks_are_invented_and_pictures_become_masks(run: Run, trained: Any) -> None:
    positive, negative = run(
        "ADiff_MaskConditioning", **trained.base, embeddings=trained.embeddings, defect_type=""
    )
    assert positive[0][0].shape == negative[0][0].shape == (1, 77, 192)
    (invented,) = run(
        "ADiff_GenerateMasks",
        **trained.base,
        embeddings=trained.embeddings,
        defect_type="leather/burn",
        count=3,
        seed=0,
        **{**SAMPLER, "steps": 12, "cfg": 5.0},
    )
    assert invented.shape == (3, 128, 128) and set(invented.unique().tolist()) == {0.0, 1.0}
    assert all(0.0005 < float(mask.mean()) <= 0.5 for mask in invented)
    picture = torch.zeros(1, 32, 32, 3)
    picture[:, 8:20, 8:20] = 0.8
    (found,) = run("ADiff_BinarizeMasks", images=picture, threshold=0.5)
    assert torch.equal(found, (picture[..., 0] > 0.5).float())
    learned = {"embeddings": trained.embeddings, "defect_type": "leather/burn", "seed": 1}
    (placed,) = run("ADiff_BinarizeMasks", images=picture, threshold=0.5, **learned)
    extents = [place.extent for place in trained.embeddings.mask_placements["leather/burn"]]
    assert placed.shape == (1, 128, 128)
    assert 0.8 * min(extents) - 0.02 <= float(placed[0].any(0).float().mean()) <= 1.25 * max(extents) + 0.02


def test_masks_of_several_sources_are_mixed(run: Run, trained: Any, masks: Tensor) -> None:
    weights = {"generated": 1.0, "real": 1.0, "drawn": 1.0, "procedural": 1.0}
    inputs = {"count": 12, "width": 160, "height": 128, "seed": 3, "defect_type": "leather/burn"}
    given = {"generated_masks": masks[:1], "drawn_masks": masks[1:2], "few_shot": trained.dataset}
    (mixed,) = run("ADiff_MixMasks", **weights, **inputs, **given, embeddings=trained.embeddings)
    assert mixed.shape == (12, 128, 160) and set(mixed.unique().tolist()) == {0.0, 1.0}
    assert all(mask.any() for mask in mixed) and len({mask.numpy().tobytes() for mask in mixed}) > 6
    procedural = {**dict.fromkeys(weights, 0.0), "procedural": 1.0}
    (drawn,) = run("ADiff_MixMasks", **procedural, **{**inputs, "defect_type": ""})
    assert all(0.005 < float(mask.mean()) < 0.02 for mask in drawn)
    with pytest.raises(ValueError, match="cannot come from source 'real', since no training masks"):
        run("ADiff_MixMasks", **weights, **inputs, generated_masks=masks, drawn_masks=masks)
    unused = {**weights, "drawn": 0.0}
    with pytest.raises(ValueError, match="Masks are connected for 'given', whose weight is 0: raise"):
        run("ADiff_MixMasks", **unused, **inputs, **given)
    wrong = {**inputs, "defect_type": "burn"}
    with pytest.raises(ValueError, match="There is no defect type 'burn': there are leather/burn, leather/i"):
        run("ADiff_MixMasks", **weights, **wrong, **given, embeddings=trained.embeddings)


def test_masks_are_placed_on_objects(run: Run, trained: Any, masks: Tensor) -> None:
    photos = torch.full((3, 96, 128, 3), 0.8)
    for photo, left in zip(photos, (10, 40, 60), strict=True):
        photo[30:80, left : left + 60] = 0.1
    for more in ({"mode": "free"}, {"mode": "learned", "embeddings": trained.embeddings}):
        (placed,) = run("ADiff_PlaceMasks", masks=masks, normals=photos, seed=1, **more)
        assert placed.shape == (3, 96, 128) and all(mask.any() for mask in placed)
        for photo, mask in zip(photos, placed, strict=True):
            assert (photo[..., 0][mask > 0] < 0.5).float().mean() >= 0.9


def test_masks_of_a_type_that_is_not_there_are_not_placed_anyhow(
    run: Run, trained: Any, masks: Tensor
) -> None:
    inputs = {"masks": masks, "normals": trained.normals, "mode": "learned", "seed": 1}
    with pytest.raises(ValueError, match="There is no defect type 'burn'"):
        run("ADiff_PlaceMasks", **inputs, embeddings=trained.embeddings, defect_type="burn")


def test_masks_of_which_none_is_usable_end_in_a_sentence(
    run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.nodes.host import mask_invention  # type: ignore[import-not-found]

    black = [np.zeros((128, 128), bool)]
    monkeypatch.setattr(mask_invention, "masks_from_pictures", lambda pictures, _: black * len(pictures))
    inputs = {**trained.base, "embeddings": trained.embeddings, "defect_type": "leather/ink", "seed": 0}
    with pytest.raises(
        ValueError, match=r"Only 0 of 1 masks of leather/ink were usable after 20 tries \(20 empty"
    ):
        run("ADiff_GenerateMasks", **inputs, count=1, **{**SAMPLER, "steps": 1})
