"""The command `train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..training.config import (
    CHECKPOINT_MINUTES,
    AdaptationConfig,
    DefectConfig,
    MaskEmbeddingConfig,
    Normalisation,
    TrainingConfig,
)
from ..training.processes import Processes, launched
from .console import check_new, check_writable, interrupted_between, progress, run_command, say
from .options import Base, Checkpointing, Device, Json, Precision, Seed, base_to_train_on

if TYPE_CHECKING:
    from ..training.files import TrainingFiles
    from ..training.jobs import TrainingJob
    from ..training.stage import TrainingOutcome


def train(
    dataset: Annotated[
        Path, typer.Argument(help="A category, a folder of categories, or images/ with masks/.")
    ],
    out: Annotated[Path, typer.Option(help="The artifact to write (.safetensors); must not exist yet.")],
    base: Base = None,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    *,
    defect: Annotated[list[str] | None, typer.Option(help="Only these defects (repeat).")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps for anomaly embeddings and spatial encoder.")
    ] = DefectConfig.steps,
    mask_steps: Annotated[
        int, typer.Option(min=0, help="Steps for mask embeddings; 0 = none.")
    ] = MaskEmbeddingConfig.steps,
    minutes: Annotated[
        float | None, typer.Option(help="Stop each of the trainings after this long.")
    ] = DefectConfig.minutes,
    size: Annotated[
        int, typer.Option(min=64, help="Pixels per side of the training views.")
    ] = TrainingConfig.image_size,
    batch: Annotated[
        int, typer.Option(min=1, help="Views at a time, in each process.")
    ] = DefectConfig.batch_size,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches per step: as a larger batch, in the memory of one.")
    ] = DefectConfig.accumulate,
    refresh_every: Annotated[
        int,
        typer.Option(min=0, help="Steps after which other views of the pairs are made meanwhile; 0 = never."),
    ] = DefectConfig.refresh_every,
    precision: Precision = "fp32",
    checkpointing: Checkpointing = DefectConfig.checkpointing,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the U-Net: minutes at first, then faster steps on a GPU."),
    ] = False,
    share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of each type's pairs that trains, lowest ids first; the rest measures. 1 = all.",
        ),
    ] = TrainingConfig.share,
    loss: Annotated[
        Normalisation,
        typer.Option(help="mask: Eq. 5; released: as the authors' code; unmasked: plain textual inversion."),
    ] = DefectConfig.normalisation,
    spatial_encoder: Annotated[
        bool, typer.Option(help="Learn where defects are; without it, how they look alone.")
    ] = DefectConfig.spatial_encoder,
    validate_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps between measurements on held-out pairs, the best of which is kept. 0 = only before "
            "and after.",
        ),
    ] = DefectConfig.validate_every,
    patience: Annotated[
        int,
        typer.Option(min=0, help="Stop after this many measurements without a better one; 0 = never."),
    ] = DefectConfig.patience,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard: losses, gradients, rates, previews."),
    ] = None,
    adapt: Annotated[
        Literal["normals"] | None,
        typer.Option(
            help="First adapt the base's attention to the dataset's normal photos, by LoRA; kept in the "
            "artifact, and beside it as .lora.safetensors for ComfyUI."
        ),
    ] = None,
    adapt_steps: Annotated[
        int, typer.Option(min=1, help="Steps of that adaptation.")
    ] = AdaptationConfig.steps,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="Add the dataset's new defect types to this artifact; what it knows stays to the bit."
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Start from the spatial encoder in this file of 'pretrain-encoder' or 'train'. Default: the "
            "base's own, or an untrained one."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was cut off.")] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="Minutes between two checkpoints, beside the artifact.")
    ] = CHECKPOINT_MINUTES,
    seed: Seed = DefectConfig.seed,
    device: Device = None,
    json: Json = None,
) -> None:
    """Learns how each defect looks, where it may be, and masks like its own, from image-mask pairs.

    Ctrl-C keeps the best so far; --resume goes on from there, or from the last checkpoint, bit for bit.
    Several devices: accelerate launch --multi_gpu --num_processes 2 -m anomalydiffusion_core.cli train ...
    """
    from ..bases.diffusers_model import load_onto
    from ..dataset.layout import find_dataset
    from ..method.artifact import load_artifact
    from ..training.files import TrainingFiles
    from ..training.jobs import TrainingJob

    files = TrainingFiles(out, checkpoint_minutes)

    def configure() -> TrainingConfig:
        defects = DefectConfig(
            steps=steps,
            batch_size=batch,
            accumulate=accumulate,
            minutes=minutes,
            seed=seed,
            checkpointing=checkpointing,
            spatial_encoder=spatial_encoder,
            normalisation=loss,
            refresh_every=refresh_every,
            validate_every=validate_every,
            patience=patience,
        )
        masks = MaskEmbeddingConfig(
            steps=mask_steps,
            batch_size=batch,
            accumulate=accumulate,
            minutes=minutes,
            seed=seed,
            checkpointing=checkpointing,
        )
        adaptation = AdaptationConfig(
            steps=adapt_steps, batch_size=batch, accumulate=accumulate, minutes=minutes, seed=seed
        )
        return TrainingConfig(
            size, share, defects, masks if mask_steps else None, adaptation if adapt else None
        )

    def prepare() -> TrainingJob:
        config = configure()
        files.check(config, extend is not None, resume)
        if not resume:
            check_new(files.artifact)
            check_new(files.lora)
        few_shot = find_dataset(dataset, category, defect)
        loaded = base_to_train_on(base, processes.local_device(device), precision, checkpointing)
        if compiled:
            loaded.compile()
        extends = load_onto(loaded, extend) if extend else None
        start = load_artifact(encoder, loaded.fingerprint) if encoder else None
        return TrainingJob(loaded, few_shot, config, extends, start)

    processes = launched(device)
    processes.end(run_command(lambda: _train(prepare, files, tensorboard, processes), json, processes))


def _train(
    prepare: Callable[[], TrainingJob], files: TrainingFiles, tensorboard: Path | None, processes: Processes
) -> dict[str, Any]:
    """Runs the job with a progress bar, so that Ctrl-C ends it between two steps; returns the summary."""
    from ..training.stage import TrainingRun
    from ..training.tensorboard import TensorBoardLog

    processes.first(lambda: check_writable(files.artifact))
    with processes.held(files.checkpoints.alone()):
        job = processes.together(prepare)
        shown = tensorboard if processes.index == 0 else None
        log = processes.together(lambda: TensorBoardLog(shown, job.base) if shown else None)
        counts = {name: len(pairs) for name, pairs in job.dataset.by_type().items()}
        say("Pairs: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
        with progress() as on_stage, interrupted_between(on_stage, processes) as on_stage:
            outcome = job.run(TrainingRun(on_stage, files.checkpoints, log, processes))
        if log:
            log.close()
        files.save(outcome, processes)
    if outcome.end.finished:
        processes.first(files.checkpoints.remove)
    return {"artifact": str(files.artifact), "pairs": counts, **_announce(files, outcome)}


def _announce(files: TrainingFiles, outcome: TrainingOutcome) -> dict[str, Any]:
    """Says how a training ended; returns the same for the summary."""
    say(f"Artifact: {files.artifact}")
    summary: dict[str, Any] = {"interrupted": outcome.end.interrupted, "shortfall": outcome.end.problem}
    if outcome.learned.adapter:
        say(f"LoRA for ComfyUI: {files.lora}")
        summary["lora"] = str(files.lora)
    if outcome.improvement:
        i = outcome.improvement
        say(
            f"Held-out masked loss: {i.before:.4f} before, {i.after:.4f} after, "
            f"{100 * i.relative:+.1f} % (95 % interval {100 * i.low:+.1f} to {100 * i.high:+.1f} %)"
        )
        summary["improvement"] = vars(i)
    return summary
