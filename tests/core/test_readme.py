"""The README: its example in Python runs but for the number of steps; links of all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#([^)]+))?\)")


def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    quick = code.replace("DefectConfig(steps=500)", "DefectConfig(steps=2, views_per_pair=2), masks=None")
    assert quick != code
    write_few_shot_dataset(tmp_path, 64, pairs=3, normals=1, test_normals=0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(quick, names)
    assert names["outcome"].end.finished and set(names["outcome"].learned.anomaly) == {
        "leather/burn",
        "leather/ink",
    }


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")], ids=str
)
def test_links_lead_to_files_and_headings_that_exist(page: str | Path) -> None:
    path = ROOT / page
    for target, heading in LINK.findall(path.read_text()):
        other = path.parent / target
        assert other.exists(), target
        if heading and other.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"
