"""Guards anomalydiffusion_core/__init__.py: one version, in pyproject.toml; a light import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import anomalydiffusion_core

ROOT = Path(anomalydiffusion_core.__file__).parents[1]


def imported_version(folder: Path) -> subprocess.CompletedProcess[str]:
    """What a copy of the package's first file in `folder` says, and the heavy modules that it brought."""
    package = folder / "anomalydiffusion_core"
    package.mkdir(parents=True)
    shutil.copy(anomalydiffusion_core.__file__, package / "__init__.py")
    heavy = '[m for m in ("torch", "numpy", "PIL", "diffusers", "typer") if m in sys.modules]'
    script = f"import sys, anomalydiffusion_core as core; print(core.__version__, {heavy})"
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)


def test_a_checkout_has_the_version_of_its_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert anomalydiffusion_core.__version__ == project["version"]
    assert project["name"] == anomalydiffusion_core.NAME


def test_the_pyproject_beside_the_package_goes_before_what_is_installed(tmp_path: Path) -> None:
    project = f'[project]\nname = "{anomalydiffusion_core.NAME}"\nversion = "7.8.9"\n'
    (tmp_path / "pyproject.toml").write_text(project + '[tool.other]\npython_version = "3.10.0"\n')
    assert imported_version(tmp_path).stdout == "7.8.9 []\n"


@pytest.mark.parametrize("beside", [None, '[project]\nname = "another"\nversion = "5.5.5"\n'])
def test_an_installed_package_has_the_version_of_its_distribution(tmp_path: Path, beside: str | None) -> None:
    installed = tmp_path / "comfyui_anomalydiffusion-3.2.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Name: {anomalydiffusion_core.NAME}\nVersion: 3.2.1\n")
    if beside:
        (tmp_path / "pyproject.toml").write_text(beside)
    assert imported_version(tmp_path).stdout == "3.2.1 []\n"


@pytest.mark.parametrize("line", ["", 'version = "1.2"', 'version = "1.2.3"\nversion = "1.2.4"'])
def test_a_pyproject_without_one_plain_version_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{anomalydiffusion_core.NAME}"\n{line}\n')
    told = imported_version(tmp_path).stderr
    assert "pyproject.toml has" in told and told.strip().endswith("write exactly one.")
