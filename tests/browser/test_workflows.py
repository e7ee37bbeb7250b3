"""workflows/*.json as a person meets them: opened from the template browser, given own photos, run by Run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_page import ComfyUIPage
from comfyui_server import Server
from make_workflows import FOLDER, SUBGRAPHS, files
from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import load_artifact

SHORT: dict[str, dict[str, Any]] = {  # widgets of every node of a type, so that a run takes seconds
    "ADiff_TrainAnomaly": {"steps": 4, "batch_size": 2, "preview_every": 4, "size": 64},
    "ADiff_TrainMasks": {"steps": 2, "batch_size": 2, "preview_every": 2},
    "ADiff_TuneSettings": {"tries": 1},
    "ADiff_GenerateMasks": {"count": 2, "steps": 6},
    "ADiff_MixMasks": {"count": 2, "real": 0},  # the embeddings' type is none of the photos'
    "ADiff_KSampler": {"steps": 4},
    "KSampler": {"steps": 4},
    "ADiff_GeneratePairs": {"count": 1, "steps": 4, "checks": "", "mask_sources": "procedural=1"},
    "ADiff_QualityGate": {
        "fill": False, "contrast": False, "seam": False, "plausibility": False, "duplicate": False,
        "tone": False,
    },
    "ADiff_TrainLocalizer": {"steps": 4, "size": 64},
    "ADiff_GenerationMetrics": {"category": "panel"},
    "ADiff_EvaluateLocalizer": {"category": "panel"},
}  # fmt: skip
SIZES = {"512 px": (512, 512), "300x700 gray": (300, 700)}
STROKE = [(0.4, 0.25), (0.5, 0.5), (0.6, 0.75)]


@dataclass(frozen=True)
class Result:
    """Where a run saved: the server's output folder, this test's own part of it, and the photos' size."""

    output: Path
    folder: str
    size: tuple[int, int]

    @property
    def pictures(self) -> list[Path]:
        """Pictures that were saved under this test's name."""
        return sorted(self.output.glob(f"{self.folder}_*.png"))


def pairs_have_the_photos_size(result: Result) -> None:
    pairs = find_dataset(result.output / result.folder).pairs
    assert pairs
    for pair in pairs:
        assert Image.open(pair.image).size == Image.open(pair.mask).size == result.size
        assert np.asarray(Image.open(pair.mask)).any()


def embeddings_of_both_defects_are_saved(result: Result) -> None:
    (path,) = (result.output / "anomalydiffusion").glob(f"{result.folder}_*.safetensors")
    assert sorted(load_artifact(path).mask) == ["panel/scratch", "panel/spot"]


def masks_have_the_photos_size(result: Result) -> None:
    assert len(result.pictures) == 2
    for path in result.pictures:
        assert Image.open(path).size == result.size and np.asarray(Image.open(path)).any()


def pictures_have_the_photos_size_in_whole_latent_cells(result: Result) -> None:
    assert len(result.pictures) == 2
    for path in result.pictures:
        assert Image.open(path).size == tuple(side // 8 * 8 for side in result.size)


def the_drawn_mask_is_the_pair_s(result: Result) -> None:
    pairs_have_the_photos_size(result)
    (pair,) = find_dataset(result.output / result.folder).pairs
    mask = np.asarray(Image.open(pair.mask)) > 0
    for x, y in ((0.42, 0.3), (0.5, 0.5), (0.56, 0.65)):  # the stroke's ends are smoothed away
        assert mask[round(y * result.size[1]), round(x * result.size[0])]
    assert 0.002 < mask.mean() < 0.1  # and nowhere else


CHECKED: dict[str, Callable[[Result], None]] = {
    "1_your_photos": pairs_have_the_photos_size,
    "2_train": embeddings_of_both_defects_are_saved,
    "3_masks": masks_have_the_photos_size,
    "4_draw_a_mask": the_drawn_mask_is_the_pair_s,
    "5_evaluate": lambda result: None,  # it keeps nothing
    "6_reweighting_and_lora": pictures_have_the_photos_size_in_whole_latent_cells,
    "7_large_photos": pairs_have_the_photos_size,
}
SAVING = {  # widgets that say where a node saves
    "ADiff_GeneratePairs": "folder",
    "ADiff_SaveDataset": "folder",
    "ADiff_SaveEmbeddings": "filename_prefix",
    "SaveImage": "filename_prefix",
}


def shorten(page: ComfyUIPage, folder: str) -> None:
    """Small settings for what the open workflow has, and a place of its own for what it saves."""
    for node_type in page.node_types():
        page.set(node_type, SHORT.get(node_type, {}))
        if node_type in SAVING:
            page.set(node_type, {SAVING[node_type]: folder})


def give_photos(page: ComfyUIPage, folder: str) -> None:
    """A user's own photos, by the dataset's folder or by the button of Load Image with a mask drawn on it."""
    if "LoadImage" in page.node_types():
        page.upload("LoadImage", page.server.base / "input" / folder / "panel" / "train" / "good" / "000.png")
        page.draw_mask("LoadImage", STROKE)
    else:
        chosen = {"source": "folder", "folder": folder, "category": "", "defects": "", "normal_count": 2}
        page.set("ADiff_LoadDataset", chosen)


@pytest.mark.parametrize("photos", SIZES)
@pytest.mark.parametrize("name", CHECKED)
def test_a_workflow_opens_from_the_template_browser_and_runs_on_own_photos(
    page: ComfyUIPage, own_photos: dict[str, str], pytestconfig: pytest.Config, name: str, photos: str
) -> None:
    assert sorted(page.open_template(name)) == list(CHECKED)
    assert page.complaints() == []
    folder = f"{name}_{own_photos[photos]}"
    shorten(page, folder)
    give_photos(page, own_photos[photos])
    history = page.run()
    assert page.complaints() == [] and history["status"]["status_str"] == "success"
    assert page.overlapping_nodes() == []  # with the pictures of their results
    CHECKED[name](Result(page.server.base / "output", folder, SIZES[photos]))
    pictures = pytestconfig.getoption("--screenshots")
    if pictures:
        page.screenshot(pictures / f"{folder}.png")


def test_the_files_of_workflows_and_blueprints_are_what_their_descriptions_give(server: Server) -> None:
    expected = files(server.get("/object_info"))
    written = {path: path.read_text() for folder in (FOLDER, SUBGRAPHS) for path in folder.glob("*.json")}
    assert sorted(written) == sorted(expected)
    for path, text in expected.items():
        assert written[path] == text, path.name
