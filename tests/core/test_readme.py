"""README.md and docs/: the example in Python runs but for the number of steps, links lead somewhere, commands
and errors are those of the code.
"""

from __future__ import annotations

import ast
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]  # what people read; docs/results is of figures
LINKED = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#([^)]+))?\)")
FILLED_IN = "\0"  # what a message fills in
PICTURE_MOST = 300_000  # bytes


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (code for page in PAGES for code in re.findall(r"```python\n(.*?)```", read(page), re.DOTALL))
    quick = code.replace("DefectConfig(steps=500)", "DefectConfig(steps=2, views_per_pair=2), masks=None")
    assert quick != code
    write_few_shot_dataset(tmp_path, 64, pairs=3, normals=1, test_normals=0)
    (tmp_path / "example.py").write_text(quick, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert names["outcome"].end.finished and set(names["outcome"].learned.anomaly) == {
        "leather/burn",
        "leather/ink",
    }


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, heading in LINK.findall(read(page)):
        other = page.parent / target
        assert other.exists(), target
        if heading and other.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", read(other), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target, _ in LINK.findall(read(ROOT / "README.md"))}
    assert set(PAGES[1:]) - {path for path in PAGES[1:] if path in linked} == set()


def test_both_commands_that_need_nothing_stand_in_the_readme() -> None:
    for command in ("make demo", "make test"):
        assert re.search(rf"^{command}\b", read(ROOT / "README.md"), re.MULTILINE), command


def test_the_commands_named_are_those_of_the_command_line() -> None:
    from anomalydiffusion_core.cli import app

    commands = {
        (entry.name or entry.callback.__name__).replace("_", "-") for entry in app.registered_commands
    }  # type: ignore[union-attr]
    table = re.search(r"\| command \| .*?\n\n", read(ROOT / "docs" / "command_line.md"), re.DOTALL)
    assert table and set(re.findall(r"^\| `([a-z-]+)`", table[0], re.MULTILINE)) == commands
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", read(page), re.DOTALL):
            assert set(re.findall(r"^anomalydiffusion ([a-z-]+)", block, re.MULTILINE)) <= commands, page


@cache
def messages() -> frozenset[str]:
    """All texts of the code, with a mark for what is filled in."""
    texts = set()
    for folder in ("anomalydiffusion_core", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(read(path))):
                if isinstance(node, ast.JoinedStr):
                    parts = (
                        str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else FILLED_IN
                        for part in node.values
                    )
                    texts.add("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
    return frozenset(texts)


def is_said(sentence: str) -> bool:
    """Whether a message of the code reads like this, … being what it fills in."""
    pattern = re.compile(".*".join(re.escape(part) for part in sentence.split("…")), re.DOTALL)
    return any(pattern.search(text) for text in messages())


def documented_errors() -> list[str]:
    rows = re.findall(r"^\| `([^`]+)` \|", read(ROOT / "docs" / "faults.md"), re.MULTILINE)
    return [row for row in rows if row.endswith(".")]


@pytest.mark.parametrize("sentence", documented_errors())
def test_errors_explained_are_errors_of_the_code(sentence: str) -> None:
    assert is_said(sentence)


def test_an_error_that_nobody_raises_is_noticed() -> None:
    assert len(documented_errors()) > 20
    assert not is_said("Mask … is …x… but its image is …x…: paint it again.")


def test_the_pictures_of_the_readme_are_small() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", read(ROOT / "README.md"))
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < PICTURE_MOST, picture
