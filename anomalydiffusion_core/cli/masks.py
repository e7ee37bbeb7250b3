"""The command `masks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..masks.invention import MaskConfig
from .console import check_new, progress, run_command, say
from .invocation import free_name, say_next
from .options import (
    SAMPLING,
    Base,
    DefectTypes,
    Device,
    Json,
    Seed,
    check_mask_embeddings,
    load_with_base,
)


def masks(
    artifact: Annotated[Path, typer.Argument(help="The artifact is a file that 'train' wrote.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Write <category>/<defect>/NNNNN_mask.png into this folder, which must not exist yet."
        ),
    ],
    count: Annotated[
        int, typer.Option(min=1, help="Invent so many accepted masks of each defect type.")
    ] = 20,
    defect_type: DefectTypes = None,
    *,
    guidance: Annotated[
        float,
        typer.Option(
            help="Guide by so much towards the mask (classifier-free, Eq. 10); the released code has 5.",
            rich_help_panel=SAMPLING,
        ),
    ] = MaskConfig.sampling.guidance,
    steps: Annotated[
        int, typer.Option(min=1, help="Denoise in so many steps.", rich_help_panel=SAMPLING)
    ] = MaskConfig.sampling.steps,
    base: Base = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Invents masks; others take the place of empty, tiny, full and border-filling ones."""
    from ..masks.files import OVERVIEW, write_masks
    from ..masks.invention import invent_for_types

    def command() -> dict[str, Any]:
        check_new(out)
        config = MaskConfig(replace(MaskConfig.sampling, steps=steps, guidance=guidance))
        loaded, learned = load_with_base(artifact, base, device)
        types = defect_type or sorted(learned.mask or learned.anomaly)
        check_mask_embeddings(artifact, learned, types)
        with progress() as on_stage:
            invention = invent_for_types(
                loaded, learned, types, count, seed=seed, config=config, on_stage=on_stage
            )
        write_masks(invention.masks, out)
        made = sum(map(len, invention.masks.values()))
        say(f"Masks: {out} ({made} masks of {len(invention.masks)} defect types)")
        say(f"Overview: {out / OVERVIEW}")
        say_next(
            "Next, put defects into them (DATASET is the folder that was trained on)",
            *("generate", artifact, "DATASET", "--masks", out, "--out", free_name(out, "generated")),
        )
        return {
            "masks": {name: len(group) for name, group in invention.masks.items()},
            "out": str(out),
            "shortfall": " ".join(invention.shortfalls.values()),
        }

    raise typer.Exit(run_command(command, json, kept="no mask was written."))
