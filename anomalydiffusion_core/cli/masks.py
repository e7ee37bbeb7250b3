"""The command `masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import check_new, progress, run_command, say
from .options import Base, DefectTypes, Device, Json, Seed, load_with_base


def masks(
    artifact: Annotated[Path, typer.Argument(help="A file written by train.")],
    out: Annotated[
        Path, typer.Option(help="Folder for <category>/<defect>/NNNNN_mask.png; must not exist yet.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Accepted masks per defect type.")] = 20,
    defect_type: DefectTypes = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance (Eq. 10); released: 5.")] = 2.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    base: Base = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
) -> None:
    """Invents masks; empty, tiny, full and border-filling ones are drawn again."""
    from ..masks.invention import MaskConfig, write_masks
    from ..method.reweighting import AARConfig
    from ..method.sampling import SamplingConfig

    def command() -> dict[str, Any]:
        check_new(out)
        config = MaskConfig(SamplingConfig(steps=steps, guidance=guidance, aar=AARConfig("off")))
        host, learned = load_with_base(artifact, base, device)
        types = defect_type or sorted(learned.mask)
        if not types:
            raise ValueError(f"{artifact} holds no mask embedding: train with --mask-steps above 0.")
        with progress() as on_stage:
            written = write_masks(host, learned, types, count, seed, out, config, on_stage)
        say(f"Masks: {out}\nOverview: {out / 'overview.png'}")
        return {"masks": written, "out": str(out)}

    raise typer.Exit(run_command(command, json))
