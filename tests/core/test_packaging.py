"""pyproject.toml as registries read it: names, addresses, the icon, no package that the code does not use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")

ROOT = Path(__file__).parents[2]
MODULES = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "pytest": "pytest",
}  # named otherwise than their packages
TOOLS = {"pyright", "ruff", "import-linter", "pytest-xdist"}  # run by name, never imported
OPENED_BY_OTHERS = {"accelerate"}  # diffusers looks for it by itself


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_all_addresses_are_those_of_one_repository(project: dict[str, Any]) -> None:
    urls = project["project"]["urls"]
    assert set(urls) == {"Repository", "Documentation", "Issues"}
    address = urlsplit(urls["Repository"])
    assert address.scheme == "https" and address.netloc and not address.query
    assert re.fullmatch(r"/[A-Za-z0-9-]+/[A-Za-z0-9._-]+", address.path)
    assert urls["Issues"] == urls["Repository"] + "/issues"
    documentation = urls["Documentation"].removeprefix(urls["Repository"] + "/tree/main/")
    assert (ROOT / documentation).is_dir()
    icon = urlsplit(project["tool"]["comfy"]["Icon"])
    assert icon.path.startswith(address.path + "/main/")
    assert (ROOT / icon.path.removeprefix(address.path + "/main/")).is_file()


def test_the_registry_finds_a_name_a_host_version_and_a_publisher_if_any(
    project: dict[str, Any],
) -> None:
    comfy = project["tool"]["comfy"]
    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}
    assert re.fullmatch(r"([a-z0-9][a-z0-9_-]*)?", comfy["PublisherId"])
    assert 0 < len(comfy["DisplayName"]) <= 60
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert comfy["requires-comfyui"].removeprefix(">=") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_name_and_version_are_such_as_the_registry_takes(project: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["project"]["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])


def test_every_package_asked_for_is_used_somewhere(project: dict[str, Any]) -> None:
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    asked = {re.split(r"[\[<>=~! ]", line, maxsplit=1)[0] for group in groups for line in group}
    folders = ("anomalydiffusion_core", "nodes", "benchmarks", "tools", "tests")
    code = "\n".join(
        path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py")
    )
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE))
    for package in asked - TOOLS - OPENED_BY_OTHERS:
        module = MODULES.get(package, package.replace("-", "_"))
        assert module in imported or f'importorskip("{module}' in code, package
