"""The command `pretrain-encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import WORDS_BATCH, EncoderTrainingConfig, PlacesConfig, WordsConfig
from .console import check_new, interrupted_between, progress, run_command, say
from .options import Base, Checkpointing, Device, Json, Precision, Seed, base_to_train_on


def pretrain_encoder(
    out: Annotated[Path, typer.Option(help="The file to write (.safetensors); must not exist yet.")],
    base: Base = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps for making the base follow masks.")
    ] = PlacesConfig.steps,
    words_steps: Annotated[
        int, typer.Option(min=0, help="Steps, before, for imitating the base's words for places.")
    ] = WordsConfig.steps,
    *,
    minutes: Annotated[
        float | None, typer.Option(help="Stop each of the two trainings after this long.")
    ] = PlacesConfig.minutes,
    scenes: Annotated[
        int, typer.Option(min=1, help="Procedural scenes, drawn at first.")
    ] = EncoderTrainingConfig.scenes,
    batch: Annotated[int, typer.Option(min=1, help="Scenes at a time.")] = PlacesConfig.batch_size,
    precision: Precision = "fp32",
    checkpointing: Checkpointing = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard: losses, gradients, rates, previews."),
    ] = None,
    seed: Seed = PlacesConfig.seed,
    device: Device = None,
    json: Json = None,
) -> None:
    """Teaches a spatial encoder where defects are, on procedural scenes, for any base: 'train --encoder'
    starts from it.

    Ctrl-C keeps what was learned so far.
    """
    from ..method.artifact import save_artifact
    from ..training.places import train_encoder
    from ..training.stage import TrainingRun
    from ..training.tensorboard import TensorBoardLog

    def command() -> dict[str, Any]:
        check_new(out)
        loaded = base_to_train_on(base, device, precision, checkpointing)
        words = WordsConfig(steps=words_steps, batch_size=WORDS_BATCH * batch, minutes=minutes, seed=seed)
        places = PlacesConfig(steps=steps, batch_size=batch, minutes=minutes, seed=seed)
        log = TensorBoardLog(tensorboard, loaded) if tensorboard else None
        with progress() as on_stage, interrupted_between(on_stage) as on_stage:
            config = EncoderTrainingConfig(words, places, scenes)
            outcome = train_encoder(loaded, config, TrainingRun(on_stage, log=log))
        if log:
            log.close()
        save_artifact(outcome.learned, out)
        say(f"Spatial encoder: {out}")
        return {
            "encoder": str(out),
            "interrupted": outcome.end.interrupted,
            "shortfall": outcome.end.problem,
        }

    raise typer.Exit(run_command(command, json))
