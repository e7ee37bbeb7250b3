"""workflows/*.json as a person meets them: opened from the template browser, changed a little, run by Run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from comfyui_page import ComfyUIPage

from anomalydiffusion_core.dataset.layout import find_dataset

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
Settings = dict[str, dict[str, Any]]
SHORT: Settings = {  # widgets of every node of a type, so that a run takes seconds
    "ADiff_TrainAnomaly": {"steps": 4, "batch_size": 2, "preview_every": 2, "size": 128},
    "ADiff_TrainMasks": {"steps": 4, "batch_size": 2, "preview_every": 2},
    "ADiff_GenerateMasks": {"count": 2, "steps": 6},
    "ADiff_MixMasks": {"count": 2},
    "ADiff_KSampler": {"steps": 4},
    "KSampler": {"steps": 4},
    "ADiff_QualityGate": {
        "fill": False, "contrast": False, "seam": False, "plausibility": False, "duplicate": False,
    },
    "ADiff_TrainLocalizer": {"steps": 4, "size": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """What is changed in a workflow before it runs, and where it puts its dataset below the output folder."""

    settings: Settings = field(default_factory=dict)
    photos: dict[str, str] = field(default_factory=dict)  # node -> which of the user's own photos
    dataset: str = ""


EXAMPLES = {
    "1_train_embeddings": Example(photos={"ADiff_LoadDataset": "300x700 gray"}),
    "2_generate_masks": Example(),
    "3_synthesise": Example({"Normal photos": {"normal_count": 2}}, dataset="anomalydiffusion/dataset"),
    "4_all_in_one": Example({"Normal photos": {"normal_count": 2}}, dataset="anomalydiffusion/dataset"),
    "5_lora_plain_ksampler": Example(),
    "6_evaluate": Example(
        {"ADiff_GenerateMasks": {"count": 4}, "Real dataset": {"normal_count": 4}},
    ),
    "7_native_resolution": Example(
        {"Large normal photos": {"normal_count": 2, "category": ""}},
        {"Large normal photos": "512 px"},
        dataset="anomalydiffusion/native_resolution",
    ),
}


def short(page: ComfyUIPage, settings: Settings) -> None:
    """Small settings for what the open workflow has."""
    present = page.node_types()
    for node_type, widgets in SHORT.items():
        if node_type in present:
            page.set(node_type, widgets)
    for node, widgets in settings.items():
        page.set(node, widgets)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_from_the_template_browser_and_runs_by_the_run_button(
    page: ComfyUIPage, own_photos: dict[str, str], pytestconfig: pytest.Config, name: str
) -> None:
    example = EXAMPLES[name]
    page.open_template(name)
    assert page.complaints() == []
    short(page, example.settings)
    for node, photos in example.photos.items():
        page.set(node, {"source": "folder", "folder": own_photos[photos]})
    history = page.run()
    assert page.complaints() == [] and history["status"]["status_str"] == "success"
    if example.dataset:
        assert find_dataset(page.server.base / "output" / example.dataset).pairs
    pictures = pytestconfig.getoption("--screenshots")
    if pictures:
        page.screenshot(pictures / f"{name}.png")
