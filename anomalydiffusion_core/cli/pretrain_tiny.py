"""The command `pretrain-tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..pretraining.recipe import FURTHER, RECIPES, Recipe
from .console import run_command, say
from .options import Device, Json, Seed, device_of


def pretrain_tiny(
    out: Annotated[Path, typer.Option(help="Work in this folder, and write tiny_base.safetensors there.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="Follow this recipe: cpu takes two cores two hours, gpu 20 minutes in all; further "
            "goes on from trained weights on two cores, at a lower rate."
        ),
    ] = "cpu",
    resume: Annotated[Path | None, typer.Option(help="Continue from this base file.")] = None,
    textures: Annotated[
        Path | None,
        typer.Option(
            help="Make a share of the surfaces of photographs, too: a folder with one of pictures for each "
            "material, which is named as captions are to call it."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for so many minutes instead of the recipe's.")
    ] = None,
    *,
    seed: Seed = Recipe().seed,
    device: Device = None,
    json: Json = None,
) -> None:
    """Trains the embedded base model on procedural surfaces."""
    import dataclasses
    import logging

    from ..pretraining.tiny_base import pretrain

    def command() -> dict[str, Any]:
        if recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe!r}: choose from {', '.join(RECIPES)}.")
        if recipe == FURTHER and not resume:
            raise ValueError(f"The recipe {FURTHER} goes on from trained weights: give them by --resume.")
        if resume and not resume.is_file():
            raise ValueError(f"{resume} does not exist: give a base file to continue from.")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        chosen = RECIPES[recipe]
        chosen = dataclasses.replace(chosen, seed=seed, minutes=minutes or chosen.minutes)
        path = pretrain(chosen, out, resume, device_of(device), textures=textures)
        say(f"Base model: {path}")
        return {"base": str(path)}

    raise typer.Exit(
        run_command(command, json, kept=f"the last base that was saved is in {out}: go on with --resume.")
    )
