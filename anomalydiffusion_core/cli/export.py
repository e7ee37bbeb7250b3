"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..export.formats import FORMATS, export_dataset
from ..export.pair_list import read_pair_list
from .console import check_writable, pairs_in_words, progress, run_command, say
from .options import Json, Reject


def export(
    generated: Annotated[Path, typer.Argument(help="The dataset is one that 'generate' wrote.")],
    format_name: Annotated[
        str, typer.Option("--format", help=f"Write one of these formats: {', '.join(FORMATS)}.")
    ],
    out: Annotated[Path, typer.Option(help="Write into this folder, which must be new or empty.")],
    reject: Reject = None,
    json: Json = None,
) -> None:
    """Writes the pairs of a generated dataset in another format; the dataset itself stays as it is."""

    def command() -> dict[str, Any]:
        check_writable(out)
        with progress() as on_stage:
            without = read_pair_list(reject) if reject else []
            pairs = export_dataset(generated, format_name, out, on_stage, without=without)
        say(f"Exported: {out} ({pairs_in_words(pairs)} as {format_name})")
        return {"out": str(out), "format": format_name, "pairs": pairs}

    raise typer.Exit(run_command(command, json))
