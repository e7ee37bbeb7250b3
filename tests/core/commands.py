"""The command line as tests call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from anomalydiffusion_core.cli import app


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def train_quickly(data: Path, out: Path, *more: object) -> Any:
    return run(
        "train", data, "--out", out, "--steps", 3, "--mask-steps", 2, "--size", 64, "--share", 0.5, *more
    )


def generate_quickly(trained: Path, data: Path, out: Path, *more: object) -> Any:
    options = ("--steps", 2, "--smallest-fill", 0, "--masks", data / "thing/ground_truth")
    return run("generate", trained, data, "--out", out, *options, *more)


def refused(result: Any, *texts: str) -> None:
    """Exit code 2 and exactly one line on stderr that holds the texts."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: "), result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
