"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_file, progress, run_command, say
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
    """Writes one HTML page that shows every pair around its defect, to filter, look closely and reject."""
    from ..method.artifact import load_artifact
    from ..report.report import write_report

    def command() -> dict[str, Any]:
        page = out or generated / "report.html"
        check_file(page)
        learned = load_artifact(artifact) if artifact else None
        with progress() as on_stage:
            figures = write_report(generated, page, learned, on_stage)
        say(f"Report: {page}")
        return {"report": str(page), **figures}

    raise typer.Exit(run_command(command, json))
