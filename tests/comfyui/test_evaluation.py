"""The evaluation nodes in ComfyUI: what they measure is measured on photos that trained nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

Run = Callable[..., tuple]
REAL = {"category": "leather", "share": 0.6}


@pytest.fixture(scope="module")
def data(run: Run) -> Any:
    """The demo's real leather set, a second one in place of generated pairs, and its first six as a batch."""
    source = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather", "defects": ""}
    dataset, normals, _ = run("ADiff_LoadDataset", **source, normal_count=4)
    root = run.root / "input" / "second"  # type: ignore[attr-defined]
    write_few_shot_dataset(root, 128, pairs=6, normals=2, seed=5)
    generated = find_dataset(root, "leather")
    pairs = generated.by_type()["leather/burn"]
    images = torch.from_numpy(np.stack([read_photo(p.image).pixels for p in pairs])).float() / 255
    masks = torch.from_numpy(np.stack([read_mask(p.mask) for p in pairs])).float()
    return SimpleNamespace(dataset=dataset, normals=normals, generated=generated, images=images, masks=masks)


def test_a_localizer_learns_from_a_batch_and_is_measured_on_real_photos(run: Run, data: Any) -> None:
    batch = {"images": data.images, "masks": data.masks, "normals": data.normals}
    settings = {"size": 64, "seed": 0, "width": 4, "learning_rate": 1e-2}
    figures = []
    for steps in (1, 60):
        (localizer,) = run("ADiff_TrainLocalizer", **batch, **settings, steps=steps)
        report, pixel_ap, picture = run(
            "ADiff_EvaluateLocalizer", localizer=localizer, dataset=data.dataset, **REAL
        )
        assert "all: pixel_auroc" in report and f"pixel_ap {100 * pixel_ap:.1f}" in report
        assert [line.partition(":")[0] for line in report.splitlines()] == ["burn", "ink", "all"]
        assert picture.shape == (1, 2 * 64, 3 * 64, 3)
        figures.append(pixel_ap)
    assert figures[1] > 2 * figures[0] and figures[1] > 0.3
    with pytest.raises(ValueError, match="no category 'bolt': the dataset has leather"):
        run("ADiff_EvaluateLocalizer", localizer=localizer, dataset=data.dataset, category="bolt", share=0.6)
    with pytest.raises(ValueError, match="There are 5 images for 6 masks: give one for each"):
        run("ADiff_TrainLocalizer", **{**batch, "images": data.images[:5]}, **settings, steps=1)


def test_one_mask_serves_all_photos_and_an_empty_one_is_refused(run: Run, data: Any) -> None:
    vae = run("ADiff_LoadTinyBase")[2]
    inputs = {
        "images": data.images[:2],
        "normals": data.images[:2],
        "vae": vae,
        "dataset": data.dataset,
        **REAL,
    }
    assert run("ADiff_GenerationMetrics", masks=data.masks[:1], **inputs)[0].startswith("2 pairs")
    for node, more in (("ADiff_GenerationMetrics", inputs), ("ADiff_TrainLocalizer", {})):
        batch = more or {"images": data.images[:2], "normals": data.normals, "size": 32, "steps": 1}
        batch = batch if more else {**batch, "seed": 0, "width": 2, "learning_rate": 1e-3}
        with pytest.raises(ValueError, match="Mask 1 is empty"):
            run(node, masks=data.masks[:2] * torch.tensor([1.0, 0.0])[:, None, None], **batch)


def test_pairs_are_measured_by_themselves_and_copies_are_found(run: Run, data: Any) -> None:
    vae = run("ADiff_LoadTinyBase")[2]
    real = data.dataset.by_type()["leather/burn"][:2]
    copied = torch.from_numpy(np.stack([read_photo(p.image).pixels for p in real])).float() / 255
    marked = torch.from_numpy(np.stack([read_mask(p.mask) for p in real])).float()
    normals = torch.where(marked[..., None] > 0, 1 - copied, copied)
    inputs = {"normals": normals, "vae": vae, "dataset": data.dataset, **REAL}
    report, fill, copies = run("ADiff_GenerationMetrics", images=copied, masks=marked, **inputs)
    assert copies == 1 and fill > 0.5
    assert "change outside 0.000 grey levels" in report and "copies of training defects 100%" in report
    inputs["normals"] = data.images[:2]
    assert run("ADiff_GenerationMetrics", images=data.images[:2], masks=data.masks[:2], **inputs)[1:] == (
        0,
        0,
    )


def test_types_are_told_apart_on_real_photos(run: Run, data: Any) -> None:
    settings = {"size": 32, "steps": 2, "seed": 0, "pretrained": False}
    report, accuracy = run(
        "ADiff_TrainClassifier", generated=data.generated, dataset=data.dataset, **REAL, **settings
    )
    lines = report.splitlines()
    assert lines[0] == f"accuracy {accuracy:.1%}"
    counts = np.array([[int(n) for n in line.split()[1:]] for line in lines[1:]])
    assert counts.sum(1).tolist() == [4, 4] and np.trace(counts) / 8 == accuracy
    burns = find_dataset(data.generated.root, "leather", ["burn"])
    with pytest.raises(ValueError, match="No generated pairs of leather: ink; generate them too"):
        run("ADiff_TrainClassifier", generated=burns, dataset=data.dataset, **REAL, **settings)
    with pytest.raises(ValueError, match="trains and .* measures, and they are the same picture"):
        run("ADiff_TrainClassifier", generated=data.dataset, dataset=data.dataset, **REAL, **settings)


def test_the_nodes_start_from_the_core_s_quick_configurations(run: Run, pack: Any) -> None:
    core = f"{pack.__name__}.anomalydiffusion_core.evaluation"
    quick = importlib.import_module(f"{core}.localizer").QUICK
    quick_classifier = importlib.import_module(f"{core}.classifier").QUICK_CLASSIFIER
    defaults = {
        node_id: {i.id: i.default for i in run.nodes[node_id].GET_SCHEMA().inputs if hasattr(i, "default")}  # type: ignore[attr-defined]
        for node_id in ("ADiff_TrainLocalizer", "ADiff_TrainClassifier")
    }
    localizer = (quick.size, quick.steps, quick.width, quick.rate)
    assert (
        tuple(map(defaults["ADiff_TrainLocalizer"].get, ("size", "steps", "width", "learning_rate")))
        == localizer
    )
    classifier = (quick_classifier.size, quick_classifier.steps)
    assert tuple(map(defaults["ADiff_TrainClassifier"].get, ("size", "steps"))) == classifier
