"""The command `pretrain-encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import WORDS_BATCH, EncoderTrainingConfig, PlacesConfig, WordsConfig
from .console import check_new, interrupted_between, progress, run_command, say
from .invocation import say_next
from .options import Base, Checkpointing, Device, Json, Precision, Seed, base_to_train_on


def pretrain_encoder(
    out: Annotated[
        Path, typer.Option(help="Write the encoder to this file (.safetensors), which must not exist yet.")
    ],
    base: Base = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Teach so many steps of making the base follow masks.")
    ] = PlacesConfig.steps,
    words_steps: Annotated[
        int, typer.Option(min=0, help="Before, teach so many steps of imitating the base's words for places.")
    ] = WordsConfig.steps,
    *,
    minutes: Annotated[
        float | None, typer.Option(help="Stop each of the two trainings after so many minutes.")
    ] = PlacesConfig.minutes,
    scenes: Annotated[
        int, typer.Option(min=1, help="Draw so many procedural scenes at first.")
    ] = EncoderTrainingConfig.scenes,
    batch: Annotated[
        int, typer.Option(min=1, help="Take so many scenes at a time.")
    ] = PlacesConfig.batch_size,
    precision: Precision = "fp32",
    checkpointing: Checkpointing = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Write losses, gradients, rates and previews to this folder for TensorBoard."),
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
        imitation = WordsConfig(steps=words_steps, batch_size=WORDS_BATCH * batch, minutes=minutes, seed=seed)
        places = PlacesConfig(steps=steps, batch_size=batch, minutes=minutes, seed=seed)
        log = TensorBoardLog(tensorboard, loaded) if tensorboard else None
        with progress() as on_stage, interrupted_between(on_stage) as on_stage:
            config = EncoderTrainingConfig(imitation, places, scenes)
            outcome = train_encoder(loaded, config, TrainingRun(on_stage, log=log))
        if log:
            log.close()
        save_artifact(outcome.learned, out)
        say(f"Spatial encoder: {out}")
        words = ["train", "DATASET", "--encoder", out, *(["--base", base] if base else [])]
        say_next("Next, start a training from it", *words, "--out", "mine.safetensors")
        return {
            "encoder": str(out),
            "interrupted": outcome.end.interrupted,
            "shortfall": outcome.end.problem,
        }

    raise typer.Exit(run_command(command, json, kept="nothing was learned."))
