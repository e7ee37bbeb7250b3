"""The quality gate in ComfyUI: what it asks for, by which real pairs, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Run = Callable[..., tuple]


def test_the_gate_keeps_what_shows_and_says_what_it_left_out(run: Run, trained: Any, masks: Tensor) -> None:
    images = trained.normals.clone()
    images[1][masks[1] > 0] = 1 - images[1][masks[1] > 0]  # only the second pair shows anything
    vae = trained.base["vae"]
    inputs = {"images": images, "masks": masks, "normals": trained.normals, "vae": vae}
    kept, kept_masks, normals, scores, report, left, left_masks = run(
        "ADiff_QualityGate", **inputs, smallest_fill=0.3
    )
    assert torch.equal(kept, images[1:2]) and torch.equal(kept_masks, masks[1:2])
    assert torch.equal(normals, trained.normals[1:2])
    assert torch.equal(left, images[[0, 2]]) and torch.equal(left_masks, masks[[0, 2]])
    (score,) = scores
    assert score["fill"] > 0.9 and score["noise"] >= 1
    assert score["scores"]["fill"] > 0.9 and score["thresholds"] == {"fill": 0.3}
    assert score["backbone"] == "connected autoencoder"
    one = run("ADiff_QualityGate", **{**inputs, "normals": trained.normals[1:2]}, smallest_fill=0)
    assert torch.equal(one[2], trained.normals[[1, 1, 1]])
    assert one[5].shape == (1, 128, 128, 3) and not one[5].any() and not one[6].any()  # none was left out
    assert report.startswith("1 of 3 pairs accepted (2 unfilled)")
    assert report.count("left out: unfilled") == 2
    assert "not calibrated: connect the dataset that the embeddings were trained on" in report
    with pytest.raises(ValueError, match=r"None of 3 pairs is good enough \(3 unfilled; best fill 0%\)"):
        run("ADiff_QualityGate", **{**inputs, "images": trained.normals}, smallest_fill=0.3)
    with pytest.raises(ValueError, match="The images are 128x64, the normal photos 128x128: connect"):
        run("ADiff_QualityGate", **{**inputs, "images": images[:, :64]}, smallest_fill=0.3)


def real_pairs(trained: Any, defect_type: str) -> tuple[Tensor, Tensor]:
    """All photos and masks of a type, in order of names: the first six trained."""
    from adiff_pack.anomalydiffusion_core.dataset.photos import (  # type: ignore[import-not-found]
        read_mask,
        read_photo,
    )

    pairs = trained.dataset.by_type()[defect_type]
    photos = np.stack([read_photo(pair.image).pixels for pair in pairs])
    masks = np.stack([read_mask(pair.mask) for pair in pairs])
    return torch.from_numpy(photos).float() / 255, torch.from_numpy(masks).float()


def test_the_gate_asks_for_what_real_pairs_show(run: Run, trained: Any, masks: Tensor) -> None:
    photos, marked = real_pairs(trained, "leather/ink")
    images = torch.cat([photos[[1, 8]], trained.normals[:1]])  # one that trained, another real one, nothing
    marked = torch.cat([marked[[1, 8]], masks[:1]])
    inputs = {"images": images, "masks": marked, "normals": 1 - images, "vae": trained.base["vae"]}
    known = {"dataset": trained.dataset, "embeddings": trained.embeddings, "defect_type": "leather/ink"}
    *accepted, rows, report, left, _ = run("ADiff_QualityGate", **inputs, **known, smallest_fill=0.3)
    lines = report.splitlines()
    assert torch.equal(accepted[0], images[1:2]) and torch.equal(left, images[[0, 2]])
    assert lines[0].startswith("1 of 3 pairs accepted (") and "1 duplicate" in lines[0]
    assert lines[1] == "calibrated on 6 pairs that trained leather/ink"
    assert lines[3].endswith("left out: duplicate") and "duplicate 0.00" in lines[3]
    assert "faint" in lines[5] and "left out" not in lines[4]
    (row,) = rows
    names = {"fill", "contrast", "seam", "plausibility", "duplicate"}
    assert set(row["scores"]) == set(row["thresholds"]) == names and row["backbone"] == "tiny autoencoder"
    assert row["scores"]["contrast"] >= row["thresholds"]["contrast"]
    assert row["scores"]["seam"] <= row["thresholds"]["seam"]
    off = dict.fromkeys(names, False)
    assert len(run("ADiff_QualityGate", **inputs, **known, **off, smallest_fill=0.3)[0]) == 3
    some = run("ADiff_QualityGate", **inputs, **known, **{**off, "duplicate": True}, smallest_fill=0.3)
    assert torch.equal(some[0], images[1:])


def test_the_gate_says_what_it_is_calibrated_on(run: Run, trained: Any) -> None:
    from dataclasses import replace

    photos, marked = real_pairs(trained, "leather/burn")
    inputs = {"images": photos[6:], "masks": marked[6:], "normals": 1 - photos[6:], "smallest_fill": 0.0}
    inputs |= {"vae": trained.base["vae"], "dataset": trained.dataset, "defect_type": "leather/burn"}
    inputs |= dict.fromkeys(("seam", "plausibility", "contrast", "fill"), False)
    elsewhere = replace(trained.embeddings, trained_on={"leather/burn": ["0" * 16]})
    unknown = replace(trained.embeddings, trained_on={})

    def calibration(**more: Any) -> str:
        return run("ADiff_QualityGate", **inputs, **more)[4].splitlines()[1]

    assert calibration(embeddings=trained.embeddings) == "calibrated on 6 pairs that trained leather/burn"
    every = "calibrated on 10 pairs of leather/burn, which of them trained is not known"
    assert calibration(embeddings=unknown, duplicate=False) == calibration(duplicate=False) == every
    assert calibration(embeddings=elsewhere) == (
        "not calibrated: the dataset holds no pairs that trained leather/burn, connect the one that does"
    )
    with pytest.raises(ValueError, match="no anomaly embedding for 'leather/hole'"):
        run("ADiff_QualityGate", **{**inputs, "defect_type": "leather/hole"}, embeddings=trained.embeddings)


def test_defects_fade_in_as_softly_as_real_ones_where_the_dataset_is_given(
    run: Run,
    generated: Run,
    trained: Any,
    masks: Tensor,
) -> None:
    from adiff_pack.anomalydiffusion_core.gate.scores import seam  # type: ignore[import-not-found]

    conditioning = {"embeddings": trained.embeddings, "mask": masks, "template": "a photo of a {}"}
    positive, _ = run("ADiff_AnomalyConditioning", **trained.base, **conditioning, defect_type="leather/burn")
    sharp, soft = (
        generated(masks, positive=positive, **more)[0] for more in ({}, {"dataset": trained.dataset})
    )
    seams = [
        [seam(255 * image.numpy(), mask.numpy() > 0) for image, mask in zip(images, masks, strict=True)]
        for images in (sharp, soft)
    ]
    assert all(after <= before for before, after in zip(*seams, strict=True)) and seams[0] != seams[1]
    assert max(seams[1]) < 0.9 * max(seams[0])
    assert torch.equal(soft[masks == 0], trained.normals[masks == 0])
    assert torch.equal(soft[0, 50, 60], sharp[0, 50, 60])  # the middle of the first mask
