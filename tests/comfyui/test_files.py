"""Where nodes read and write: nodes/host/folders.py, nodes/embeddings.py, nodes/datasets.py."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_inputs import DEMO
from PIL import Image

TINY = "adiff_pack.anomalydiffusion_core.bases.tiny.architecture"
Run = Callable[..., tuple]


def test_the_model_folder_is_known_with_what_the_user_configured(run: Run) -> None:
    import folder_paths  # type: ignore[import-not-found]

    paths, extensions = folder_paths.folder_names_and_paths["anomalydiffusion"]
    assert paths[0] == str(run.root / "configured") and paths[1].endswith("models/anomalydiffusion")  # type: ignore[attr-defined]
    assert extensions == {".safetensors"}


def test_the_demo_set_loads_with_its_normals_and_types(trained: Any) -> None:
    assert sorted(trained.dataset.by_type()) == ["leather/burn", "leather/ink"]
    assert trained.normals.shape == (3, 128, 128, 3) and 0 < float(trained.normals.mean()) < 1


def test_folders_outside_comfyui_s_own_are_refused(run: Run, tmp_path: Path) -> None:
    for folder in (str(tmp_path), "../..", "/"):
        with pytest.raises(ValueError, match="lies outside ComfyUI's input and output folders"):
            run("ADiff_LoadDataset", **{**DEMO, "source": "folder", "folder": folder}, normal_count=1)


def test_a_dataset_s_stamp_changes_with_its_files(run: Run) -> None:
    node = run.nodes["ADiff_LoadDataset"]  # type: ignore[attr-defined]
    root = run.root / "input" / "mine" / "images"  # type: ignore[attr-defined]
    root.mkdir(parents=True)
    inputs = {**DEMO, "source": "folder", "folder": "mine"}
    before = node.fingerprint_inputs(**inputs)
    Image.new("RGB", (8, 8)).save(root / "a.png")
    assert node.fingerprint_inputs(**inputs) != before


def test_embeddings_are_saved_and_loaded_with_the_same_numbers(run: Run, trained: Any) -> None:
    first, second, third = (
        run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix=prefix)[0]
        for prefix in ("a/learned", "a/learned", "anomalydiffusion/a/learned")
    )
    saved = run.root / "output" / "anomalydiffusion" / "a"  # type: ignore[attr-defined]
    assert [Path(path).name for path in (first, second, third)] == [
        f"learned_0000{n}_.safetensors" for n in (1, 2, 3)
    ]
    assert {Path(path).parent for path in (first, second, third)} == {saved}
    loaded, types = run("ADiff_LoadEmbeddings", name="a/learned_00001_.safetensors [output]")
    assert types == "leather/burn\nleather/ink"
    for kind in ("anomaly", "mask"):
        for name, tokens in getattr(trained.embeddings, kind).items():
            assert torch.equal(getattr(loaded, kind)[name]["clip_l"], tokens["clip_l"])
    with pytest.raises(Exception, match="outside the output folder"):
        run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix="../../elsewhere")
    for prefix in ("../beside", "training/mine"):
        with pytest.raises(ValueError, match=f"The prefix '{prefix}' leads out of output/anomalydiffusion"):
            run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix=prefix)


def choices(run: Any, node_id: str, name: str) -> list[str]:
    return next(entry.options for entry in run.nodes[node_id].define_schema().inputs if entry.id == name)


def test_what_is_saved_is_listed_at_once_beside_files_of_the_same_name_in_the_model_folder(
    run: Run, trained: Any
) -> None:
    (path,) = run("ADiff_SaveEmbeddings", embeddings=trained.embeddings, filename_prefix="listed")
    configured = run.root / "configured"  # type: ignore[attr-defined]
    configured.mkdir(exist_ok=True)
    shutil.copy(importlib.import_module(TINY).DEMO_EMBEDDINGS, configured / Path(path).name)
    kept = Path(path).parent / "training" / "0123" / "defects.safetensors"  # a training's checkpoint
    kept.parent.mkdir(parents=True)
    shutil.copy(path, kept)
    names = choices(run, "ADiff_LoadEmbeddings", "name")
    assert {"listed_00001_.safetensors", "listed_00001_.safetensors [output]"} <= set(names)
    assert not any("training" in name for name in names)
    _, of_models = run("ADiff_LoadEmbeddings", name="listed_00001_.safetensors")
    _, of_output = run("ADiff_LoadEmbeddings", name="listed_00001_.safetensors [output]")
    assert "metal/rust" in of_models and "metal/rust" not in of_output
    node = run.nodes["ADiff_LoadEmbeddings"]  # type: ignore[attr-defined]
    assert node.validate_inputs(name=names[-1]) is True and node.validate_inputs(name=None) is True
    for missing in ("gone.safetensors", "../listed_00001_.safetensors [output]", "training/0123 [output]"):
        told = node.validate_inputs(name=missing)
        assert told.startswith(f"There is no {missing} in models/anomalydiffusion or output/anomalydiffusion")
        assert "listed_00001_.safetensors [output]" in told and told.endswith("and press R.")


def test_the_save_node_s_checkpoints_folder_is_that_of_trainings(run: Run, pack: Any) -> None:
    host = f"{pack.__name__}.nodes.host"
    folder = importlib.import_module(f"{host}.training").FOLDER
    assert folder == importlib.import_module(f"{host}.folders").TRAININGS


def write_pair_folders(root: Path, *, good: bool) -> None:
    """`images` and `masks`, and photos of good parts beside them."""
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 20:30] = 255
    for folder in ("images", "masks", *(["good"] if good else [])):
        (root / folder).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (90, 80, 70)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
        if good:
            Image.new("RGB", (64, 64), (90, 80, 70)).save(root / "good" / f"{number}.png")


def test_folders_in_input_are_a_list_down_to_categories_and_none_chosen_is_refused(run: Run) -> None:
    root = run.root / "input"  # type: ignore[attr-defined]
    for folder in ("mvtec/screw/train/good", "mvtec/screw/test/cut", "deep/a/b/c", "clipspace", ".hidden"):
        (root / folder).mkdir(parents=True)
    write_pair_folders(root / "plain", good=True)
    nothing, *folders = choices(run, "ADiff_LoadDataset", "folder")
    assert {"mvtec", "mvtec/screw", "plain", "deep", "deep/a", "deep/a/b"} <= set(folders)
    assert not {"mvtec/screw/train", "mvtec/screw/test", "plain/images", "deep/a/b/c"} & set(folders)
    assert not {"clipspace", ".hidden"} & set(folders)
    for folder in ("", "  ", nothing):
        with pytest.raises(ValueError, match=r"No folder is chosen: put .* \(there: .*mvtec"):
            run("ADiff_LoadDataset", **{**DEMO, "source": "folder", "folder": folder}, normal_count=1)
    with pytest.raises(ValueError, match="The folder 'plain' is chosen, but the source is the demo set: set"):
        run("ADiff_LoadDataset", **{**DEMO, "folder": "plain"}, normal_count=1)


def test_the_loader_s_card_says_which_normal_photos_come_out(run: Run) -> None:
    for category, sizes in (("bolt", ((64, 64), (64, 64), (64, 48))), ("nut", ((32, 32),))):
        for number, size in enumerate(sizes):
            path = run.root / "input" / "two" / category / "train" / "good" / f"{number}.png"  # type: ignore[attr-defined]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (90, 80, 70)).save(path)
    node = run.nodes["ADiff_LoadDataset"].PREPARE_CLASS_CLONE({})  # type: ignore[attr-defined]
    inputs = {**DEMO, "source": "folder", "folder": "two", "category": ""}
    result = node.execute(**inputs, normal_count=8)
    text = result.ui["text"][0]
    assert result.args[1].shape == (2, 64, 64, 3)
    assert "normals: 2 of 3, since the others differ in size from the first" in text
    assert "normals are those of bolt: choose another one by category." in text
    alone = node.execute(**{**inputs, "category": "nut"}, normal_count=8).ui["text"][0]
    assert "normals" not in alone


def test_images_with_masks_need_no_good_photos_until_a_defect_is_to_be_put_on_one(run: Run) -> None:
    root = run.root / "input"  # type: ignore[attr-defined]
    write_pair_folders(root / "complete", good=True)
    write_pair_folders(root / "lacking", good=False)
    (root / "only_good" / "train" / "good").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "only_good" / "train" / "good" / "0.png")
    source = {**DEMO, "source": "folder", "category": "", "normal_count": 4}

    def lines(folder: str) -> tuple[Any, list[str]]:
        dataset, normals, _ = run("ADiff_LoadDataset", **{**source, "folder": folder})
        return normals, sys.modules[run.nodes["ADiff_LoadDataset"].__module__].contents(dataset)  # type: ignore[attr-defined]

    normals, told = lines("complete")
    assert normals.shape == (2, 64, 64, 3)
    assert told == ["complete/defect: 2 pairs", "complete: 2 normal photos"]
    normals, told = lines("lacking")
    assert "gives no normal photos: put photos of good parts into" in normals.message
    assert told[-1].startswith("lacking has no normal photos to put defects on: put photos of good parts")
    normals, told = lines("only_good")
    assert normals.shape == (1, 64, 64, 3) and told[0] == "only_good: 1 normal photos"
    assert told[1].startswith("only_good has no defect pairs, so that nothing can be trained on it: put")
