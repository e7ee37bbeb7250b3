"""Open Report: the page on a dataset below the output folder, what it takes out, and how it is served."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.export.mvtec import read_manifest, rejected_by_hand

HELP = Path(__file__).parents[2] / "nodes/web/docs/ADiff_Report.md"


def saved(run: Any, folder: str, count: int = 3) -> Path:
    """A dataset of grey photos with a red square, as Save Anomaly Dataset writes it."""
    normals = torch.full((count, 64, 64, 3), 0.4)
    masks = torch.zeros(count, 64, 64)
    masks[:, 20:30, 20:40] = 1
    images = torch.where(masks[..., None] > 0, torch.tensor([1.0, 0.0, 0.0]), normals)
    scores = [{"fill": 0.5 + number / 10, "noise": 3.0} for number in range(count)]
    batch = {"images": images, "masks": masks, "normals": normals, "scores": scores}
    (path,) = run("ADiff_SaveDataset", **batch, defect_type="bolt/dent", folder=folder)
    return Path(path)


def report(run: Any, **inputs: Any) -> Any:
    return run.nodes["ADiff_Report"].PREPARE_CLASS_CLONE({}).execute(**inputs)


def test_the_page_is_written_beside_the_dataset_and_its_address_told(run: Any) -> None:
    root = saved(run, "to judge/first")
    told = report(run, folder="to judge/first")
    assert told.args == (str(root / "report.html"),)
    assert told.ui["text"] == ("3 pairs: to judge/first/report.html",)
    assert told.ui["adiff_report"] == ("/view?filename=report.html&subfolder=to+judge%2Ffirst&type=output",)
    assert "bolt/test/dent/00002.png" in (root / "report.html").read_text()
    assert report(run, folder=str(root)).args == told.args  # as the path of Save Anomaly Dataset is connected


def test_pasted_pairs_are_moved_apart_and_nothing_is_lost(run: Any) -> None:
    root = saved(run, "reject")
    told = report(run, folder="reject", reject="# mine\nbolt/test/dent/00001.png\n")
    assert told.ui["text"][0].startswith("2 pairs, 1 rejected: ")
    assert [row["index"] for row in read_manifest(root)] == [0, 2]
    assert list(rejected_by_hand(root)) == ["bolt/test/dent/00001.png"]
    again = report(run, folder="reject", reject="bolt/test/dent/00001.png")
    assert again.ui["text"] == told.ui["text"]
    with pytest.raises(ValueError, match="There is no pair 'bolt/test/dent/00007.png'"):
        report(run, folder="reject", reject="bolt/test/dent/00007.png")


def test_only_a_dataset_below_the_output_folder_is_reported(run: Any, tmp_path: Path) -> None:
    for folder in ("..", str(tmp_path), "", "a/../.."):
        with pytest.raises(ValueError, match="is none below"):
            report(run, folder=folder)
    with pytest.raises(ValueError, match="has no generated pairs"):
        report(run, folder="absent")


def test_the_node_runs_again_when_the_dataset_grew_or_its_page_is_gone(run: Any) -> None:
    root, node = saved(run, "grows"), run.nodes["ADiff_Report"]
    report(run, folder="grows")
    stamp = node.fingerprint_inputs(folder="grows")
    assert stamp == node.fingerprint_inputs(folder="grows")
    saved(run, "grows", 1)
    grown = node.fingerprint_inputs(folder="grows")
    (root / "report.html").unlink()
    assert len({stamp, grown, node.fingerprint_inputs(folder="grows")}) == 3
    assert node.fingerprint_inputs(folder=None) == ""  # a linked input is not known yet


def test_the_help_names_every_input_and_output(run: Any) -> None:
    schema, text = run.nodes["ADiff_Report"].GET_SCHEMA(), HELP.read_text()
    assert text.startswith(f"# {schema.display_name}")
    for one in schema.inputs:
        assert f"**{one.id}**" in text and one.tooltip
    assert HELP.with_suffix(".jpg").is_file()


def test_the_server_hands_out_the_page_and_the_script_of_its_button(run: Any, server: Any) -> None:
    shutil.copytree(saved(run, "served"), server.base / "output" / "served")
    entry = server.run({"1": {"class_type": "ADiff_Report", "inputs": {"folder": "served"}}})
    assert entry["status"]["status_str"] == "success", entry["status"]
    (address,) = entry["outputs"]["1"]["adiff_report"]
    with urllib.request.urlopen(server.url + address, timeout=30) as answer:
        assert answer.read() == (server.base / "output/served/report.html").read_bytes()
    scripts = [path for path in server.get("/extensions") if path.endswith("/report.js")]
    assert len(scripts) == 1
    with urllib.request.urlopen(server.url + scripts[0], timeout=30) as answer:
        assert b"ADiff_Report" in answer.read()
