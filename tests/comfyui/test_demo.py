"""The demo in a ComfyUI of its own, with short trainings: from a folder of ComfyUI to dataset and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.cli import demo
from anomalydiffusion_core.cli.comfyui_process import running_server
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.export.mvtec import read_manifest

TYPES = ["leather/burn", "leather/ink", "metal/rust", "metal/weld_spatter"]
SHORT = {  # inputs of the workflow's nodes: few steps, no checks, and masks that need no training
    "ADiff_TrainAnomaly": {"steps": 4},
    "ADiff_TrainMasks": {"steps": 4},
    "ADiff_TuneSettings": {"tries": 1},
    "ADiff_GeneratePairs": {"steps": 4, "checks": "", "mask_sources": "procedural=1"},
}


@pytest.fixture
def short_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example workflow with few steps, and a gate that lets everything pass."""
    workflow: dict[str, Any] = json.loads(demo.WORKFLOW.read_text())
    for node in workflow["nodes"]:
        widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        for name, value in SHORT.get(node["type"], {}).items():
            node["widgets_values"][widgets.index(name)] = value
    path = tmp_path / "short.json"
    path.write_text(json.dumps(workflow))
    monkeypatch.setattr(demo, "WORKFLOW", path)


def test_the_demo_ends_in_a_dataset_and_a_report_and_goes_on_where_it_was(
    comfyui: Path, short_workflow: None, tmp_path: Path
) -> None:
    def run(count: int) -> tuple[dict[str, Any], list[str]]:
        stages: list[str] = []
        summary = demo.run_demo_in_comfyui(
            comfyui, tmp_path, count, 0, on_stage=lambda stage, *_: stages.append(stage)
        )
        return summary, list(dict.fromkeys(stages))

    summary, stages = run(2)
    assert summary["changed_outside"] == 0 and summary["pairs"] == 4 * 2 and not summary["shortfall"]
    assert sorted(find_dataset(Path(summary["generated"])).by_type()) == TYPES
    assert "data:image/png" in Path(summary["report"]).read_text()
    assert [stage for stage in stages if stage in ("Train Anomaly", "Generate Pairs")] == [
        "Train Anomaly",
        "Generate Pairs",
    ]
    before = read_manifest(Path(summary["generated"]))
    again, stages = run(2)
    assert again["pairs"] == summary["pairs"] and not stages  # nothing is missing: no server is started
    more, _ = run(3)
    rows = read_manifest(Path(more["generated"]))
    assert more["pairs"] == 4 * 3 and [row for row in rows if row in before] == before


def test_a_folder_without_comfyui_and_one_that_does_not_start_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no ComfyUI \(no main.py\): give the folder"):
        demo.run_demo_in_comfyui(tmp_path, tmp_path / "out", 1, 0, on_stage=lambda *_: None)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "main.py").write_text("raise SystemExit('no such device')")
    with (
        pytest.raises(ValueError, match=r"(?s)ComfyUI did not start .*no such device"),
        running_server(broken, tmp_path / "base"),
    ):
        pass
