"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_file, run_command, say
from .options import Json


def report(
    generated: Annotated[Path, typer.Argument(help="The dataset is one that 'generate' wrote.")],
    artifact: Annotated[
        Path | None, typer.Option(help="Show the training curves of this artifact, too.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the page to this file; without this option to report.html in the dataset."),
    ] = None,
    json: Json = None,
) -> None:
    """Writes one HTML page: contact sheets, fill, loss curves, settings, versions."""
    from ..method.artifact import load_artifact
    from ..report.report import write_report

    def command() -> dict[str, Any]:
        page = out or generated / "report.html"
        check_file(page)
        figures = write_report(generated, page, load_artifact(artifact) if artifact else None)
        say(f"Report: {page}")
        return {"report": str(page), **figures}

    raise typer.Exit(run_command(command, json))
