"""The command `masks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..masks.invention import MaskConfig
from .console import check_new, progress, run_command, say
from .options import Base, DefectTypes, Device, Json, Seed, load_with_base


def masks(
    artifact: Annotated[Path, typer.Argument(help="A file written by train.")],
    out: Annotated[
        Path, typer.Option(help="Folder for <category>/<defect>/NNNNN_mask.png; must not exist yet.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Accepted masks per defect type.")] = 20,
    defect_type: DefectTypes = None,
    *,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance (Eq. 10); released: 5.")
    ] = MaskConfig.sampling.guidance,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = MaskConfig.sampling.steps,
    base: Base = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
) -> None:
    """Invents masks; others take the place of empty, tiny, full and border-filling ones."""
    from ..masks.files import OVERVIEW, write_masks
    from ..masks.invention import invent_for_types

    def command() -> dict[str, Any]:
        check_new(out)
        config = MaskConfig(replace(MaskConfig.sampling, steps=steps, guidance=guidance))
        loaded, learned = load_with_base(artifact, base, device)
        types = defect_type or sorted(learned.mask)
        if not types:
            raise ValueError(f"{artifact} holds no mask embedding: train with --mask-steps above 0.")
        with progress() as on_stage:
            invention = invent_for_types(
                loaded, learned, types, count, seed=seed, config=config, on_stage=on_stage
            )
        write_masks(invention.masks, out)
        say(f"Masks: {out}\nOverview: {out / OVERVIEW}")
        return {
            "masks": {name: len(group) for name, group in invention.masks.items()},
            "out": str(out),
            "shortfall": " ".join(invention.shortfalls.values()),
        }

    raise typer.Exit(run_command(command, json))
