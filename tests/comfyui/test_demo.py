"""The demo in a ComfyUI of its own, with short trainings: from a folder of ComfyUI to dataset and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.cli import demo
from anomalydiffusion_core.cli.comfyui_process import running_server
from anomalydiffusion_core.dataset.layout import find_dataset

TYPES = ["leather/burn", "leather/ink", "metal/rust", "metal/weld_spatter"]
SHORT = {"ADiff_TrainAnomaly": 4, "ADiff_TrainMasks": 4}


@pytest.fixture
def short_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example workflow with few steps, and a gate that lets everything pass."""
    workflow: dict[str, Any] = json.loads(demo.WORKFLOW.read_text())
    for node in workflow["nodes"]:
        if node["type"] in SHORT:
            node["widgets_values"][0] = SHORT[node["type"]]  # steps
        if node["type"] == "ADiff_QualityGate":
            node["widgets_values"] = [0.0, "", *[False] * 5]
    path = tmp_path / "short.json"
    path.write_text(json.dumps(workflow))
    monkeypatch.setattr(demo, "WORKFLOW", path)


def test_the_demo_ends_in_a_dataset_and_a_report_and_goes_on_where_it_was(
    comfyui: Path, short_workflow: None, tmp_path: Path
) -> None:
    stages: list[str] = []
    summary = demo.run_demo_in_comfyui(
        comfyui, tmp_path, 2, 0, on_stage=lambda stage, *_: stages.append(stage)
    )
    assert summary["changed_outside"] == 0 and summary["pairs"] == 4 * (3 + demo.SPARE_PAIRS)
    assert sorted(find_dataset(Path(summary["generated"])).by_type()) == TYPES
    assert "data:image/png" in Path(summary["report"]).read_text()
    trained = [stage for stage in dict.fromkeys(stages) if "Train Anomaly" in stage]
    assert trained == ["leather/burn: Train Anomaly"]  # the other types take it from the cache
    again = demo.run_demo_in_comfyui(comfyui, tmp_path, 2, 0, on_stage=lambda stage, *_: stages.append(stage))
    assert again["pairs"] == summary["pairs"]


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
