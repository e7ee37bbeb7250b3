"""workflows/: what their files declare, and that a server offers them; how long the pack takes to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_declared_types_are_those_of_the_links(server: Any, name: str) -> None:
    information, prompt = server.get("/object_info"), server.workflow(name)
    for node in prompt.values():
        declared = information[node["class_type"]]["input"]
        declared = {**declared.get("required", {}), **declared.get("optional", {})}
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source = information[prompt[value[0]]["class_type"]]
                # "*" takes anything: ComfyUI's own Preview as Text
                assert declared[key][0] in (source["output"][value[1]], "*")
    assert len([name for name in information if name.startswith("ADiff_")]) == 26


def test_workflows_are_offered_with_their_pictures(server: Any) -> None:
    offered = server.get("/workflow_templates")["ComfyUI-AnomalyDiffusion"]
    assert sorted(offered) == NAMES
    for name in NAMES:
        assert Image.open(WORKFLOWS / f"{name}.jpg").size[0] >= 256


def test_the_pack_imports_in_a_moment(server: Any) -> None:
    lines = server.log.read_text().splitlines()
    line = next(line for line in lines if "ComfyUI-AnomalyDiffusion" in line and "seconds" in line)
    assert "IMPORT FAILED" not in line
