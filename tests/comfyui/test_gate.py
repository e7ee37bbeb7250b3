"""The quality gate in ComfyUI: what it asks for, by which real pairs, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomalydiffusion_core.gate.features import find_backbone

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
    assert score["backbone"] == find_backbone(abs, "connected").name
    one = run("ADiff_QualityGate", **{**inputs, "normals": trained.normals[1:2]}, smallest_fill=0)
    assert torch.equal(one[2], trained.normals[[1, 1, 1]])
    assert one[5].shape == (1, 128, 128, 3) and not one[5].any() and not one[6].any()  # none was left out
    assert report.startswith("1 of 3 pairs accepted (2 unfilled)")
    assert report.count("left out: unfilled") == 2
    assert "- not calibrated: connect the dataset that the embeddings were trained on" in report.splitlines()
    assert "a part of the mask is not filled: 0.00 of it shows, at least 0.30 should" in report
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
    assert lines[1] == "- calibrated on 6 pairs that trained leather/ink"
    assert all(line.startswith("- ") for line in lines[1:])  # a list in Markdown, so that lines stay lines
    copy, good, nothing = lines[-3:]
    assert copy.startswith("- pair 0: left out: duplicate (too much like a real or an earlier defect: 0.00 ")
    assert "duplicate 0.00 (at least " in copy
    assert nothing.startswith("- pair 2: left out: ") and "too faint: contrast " in nothing
    assert good.startswith("- pair 1: accepted; fill ") and good.count(" (at ") == 6
    faint = next(line for line in lines if line.startswith("- 1 faint: too faint: contrast"))
    assert faint.endswith("or train longer.")
    (row,) = rows
    names = {"fill", "contrast", "seam", "plausibility", "duplicate", "tone", "shape"}
    assert set(row["scores"]) == set(row["thresholds"]) == names
    assert row["backbone"] == find_backbone(abs, "tiny").name
    assert row["scores"]["contrast"] >= row["thresholds"]["contrast"]
    assert row["scores"]["seam"] <= row["thresholds"]["seam"]
    off = dict.fromkeys(names, False)
    assert len(run("ADiff_QualityGate", **inputs, **known, **off, smallest_fill=0.3)[0]) == 3
    some = run("ADiff_QualityGate", **inputs, **known, **{**off, "duplicate": True}, smallest_fill=0.3)
    assert torch.equal(some[0], images[1:])


def pictures_below(run: Any, **inputs: Any) -> tuple[list[Image.Image], str]:
    """What the gate's node shows: its pictures, and its text for the API."""
    import folder_paths  # type: ignore[import-not-found]

    node = run.nodes["ADiff_QualityGate"].PREPARE_CLASS_CLONE({})
    shown = node.execute(**inputs).ui
    temp = Path(folder_paths.get_temp_directory())
    files = [temp / entry["subfolder"] / entry["filename"] for entry in shown["images"]]
    return [Image.open(file) for file in files], shown["text"][0]


def test_where_none_is_good_enough_all_are_shown_and_what_would_take_them_is_not_run(
    run: Run, trained: Any, masks: Tensor
) -> None:
    inputs = {"images": trained.normals, "masks": masks, "normals": trained.normals}
    inputs |= {"vae": trained.base["vae"], "smallest_fill": 0.3}
    images, *others, report, rejected, rejected_masks = run("ADiff_QualityGate", **inputs)
    assert images.message.startswith("None of 3 pairs is good enough: 3 unfilled, the nearest to passing: a ")
    assert images.message.endswith("or lower smallest fill.")
    assert [other.message for other in others] == [None] * 3  # one word is enough
    assert torch.equal(rejected, trained.normals) and torch.equal(rejected_masks, masks)
    pictures, text = pictures_below(run, **inputs)
    assert text == report and report.startswith("0 of 3 pairs accepted (3 unfilled)")
    assert len(pictures) == 1 + 3 and {picture.width for picture in pictures[1:]} == {768}
    assert all((np.asarray(picture) == (255, 120, 95)).all(-1).any() for picture in pictures)  # titles, red


def test_with_one_training_pair_the_gate_says_what_it_does_not_check(run: Run, trained: Any) -> None:
    from dataclasses import replace

    photos, marked = real_pairs(trained, "leather/burn")
    one = replace(trained.embeddings, trained_on={"leather/burn": [short_hash_of(trained, "leather/burn")]})
    inputs = {"images": photos[6:], "masks": marked[6:], "normals": 1 - photos[6:], "smallest_fill": 0.3}
    inputs |= {"vae": trained.base["vae"], "dataset": trained.dataset, "defect_type": "leather/burn"}
    lines = run("ADiff_QualityGate", **inputs, embeddings=one)[4].splitlines()
    assert lines[1] == "- calibrated on 1 pair that trained leather/burn"
    assert lines[2].startswith("- Asked for: fill at least ")
    assert lines[3] == (
        "- Not checked, for want of real pairs (known: 1; needed: seam (3), plausibility (3), "
        "duplicate (2), tone (3))."
    )


def short_hash_of(trained: Any, defect_type: str) -> str:
    from adiff_pack.anomalydiffusion_core.dataset.photos import short_hash  # type: ignore[import-not-found]

    return short_hash(trained.dataset.by_type()[defect_type][0].image)


def test_the_gate_shows_each_pair_as_it_is_judged_and_can_be_cancelled_between_two(
    run: Run, trained: Any, masks: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]
    import comfy.utils  # type: ignore[import-not-found]

    seen: list[tuple[int, int, int]] = []

    def progress(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append((value, total, preview[1].width))
        if value == 2:
            management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", progress)
    inputs = {"images": trained.normals, "masks": masks, "normals": trained.normals}
    with pytest.raises(management.InterruptProcessingException):
        run("ADiff_QualityGate", **inputs, vae=trained.base["vae"], smallest_fill=0.3)
    assert seen == [(1, 3, 768), (2, 3, 768)]


def test_the_gate_says_what_it_is_calibrated_on(run: Run, trained: Any) -> None:
    from dataclasses import replace

    photos, marked = real_pairs(trained, "leather/burn")
    inputs = {"images": photos[6:], "masks": marked[6:], "normals": 1 - photos[6:], "smallest_fill": 0.0}
    inputs |= {"vae": trained.base["vae"], "dataset": trained.dataset, "defect_type": "leather/burn"}
    inputs |= dict.fromkeys(("seam", "plausibility", "contrast", "fill", "tone"), False)
    elsewhere = replace(trained.embeddings, trained_on={"leather/burn": ["0" * 16]})
    unknown = replace(trained.embeddings, trained_on={})

    def calibration(**more: Any) -> str:
        return run("ADiff_QualityGate", **inputs, **more)[4].splitlines()[1].removeprefix("- ")

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
