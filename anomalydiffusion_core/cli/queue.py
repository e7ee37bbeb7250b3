"""The command `queue`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_writable, progress, run_command, say
from .options import Json


def queue(
    workflow: Annotated[
        Path, typer.Argument(help="The workflow is a file that ComfyUI saved, in either of its formats.")
    ],
    server: Annotated[
        str, typer.Option(help="Send it to the ComfyUI that runs there.")
    ] = "http://127.0.0.1:8188",
    count: Annotated[
        int, typer.Option(min=1, help="Queue so many jobs, each with its seeds raised by one.")
    ] = 1,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change an input, as node.input=value; the node goes by its id, title or type. Repeat it "
            "for more.",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Download what the jobs saved into this folder; without this option their names are said."
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Sends a workflow to a ComfyUI server and follows it to its end."""
    import asyncio

    from .comfyui_client import queue_jobs, read_workflow

    def command() -> dict[str, Any]:
        content = read_workflow(workflow)
        if out:
            check_writable(out)
        with progress() as on_stage:
            jobs = asyncio.run(
                queue_jobs(content, server, count, assignments or [], out=out, on_stage=on_stage)
            )
        if any(job.saved for job in jobs):
            say(f"Saved in {out}:" if out else f"Saved in the output folder of {server}:")
        for job in jobs:
            for file in job.saved:
                say(file)
        return {"jobs": [{"id": job.prompt_id, "files": job.saved} for job in jobs]}

    raise typer.Exit(run_command(command, json, kept=f"the job under way goes on at {server}."))
