"""The command `train`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..dataset.layout import LEAST_TRAINING, MOST_HELD_OUT
from ..training.config import (
    CHECKPOINT_MINUTES,
    AdaptationConfig,
    DefectConfig,
    Learn,
    MaskEmbeddingConfig,
    Normalisation,
    TrainingConfig,
)
from ..training.processes import Processes, launched
from .console import (
    check_new,
    check_writable,
    interrupted_between,
    pairs_in_words,
    progress,
    run_command,
    say,
)
from .invocation import same_command
from .options import (
    BASE_AND_DEVICE,
    DATA,
    GOING_ON,
    LEARNING,
    MEASURING,
    WHAT,
    Base,
    Checkpointing,
    Device,
    Json,
    Precision,
    Seed,
    base_to_train_on,
    share_in,
)
from .trained import Trained

if TYPE_CHECKING:
    from ..training.jobs import TrainingJob


def train(
    context: typer.Context,
    dataset: Annotated[
        Path,
        typer.Argument(
            help="The dataset is a category's folder, a folder of categories, or one with images/ and masks/."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Write the artifact to this file (.safetensors), which must not exist yet.")
    ],
    *,
    category: Annotated[
        str | None, typer.Option(help="Learn only this category.", rich_help_panel=DATA)
    ] = None,
    defect: Annotated[
        list[str] | None,
        typer.Option(help="Learn only this defect; repeat it for more.", rich_help_panel=DATA),
    ] = None,
    size: Annotated[
        int,
        typer.Option(
            min=64,
            max=2048,
            help="The training views are as many pixels high and wide.",
            rich_help_panel=DATA,
        ),
    ] = TrainingConfig.image_size,
    share: Annotated[
        float | None,
        typer.Option(
            parser=share_in,
            metavar="<0.6 or 1/3>",
            help="Train on this share of each type's pairs, lowest ids first; the rest only measures. "
            f"Without this option all train but a third, or {MOST_HELD_OUT} where a third is more, and never "
            f"fewer than {LEAST_TRAINING}. The paper trains on 1/3.",
            rich_help_panel=DATA,
        ),
    ] = TrainingConfig.share,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Learn anomaly embeddings and spatial encoder in so many steps.",
            rich_help_panel=LEARNING,
        ),
    ] = DefectConfig.steps,
    mask_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Learn mask embeddings in so many steps; 0 learns none, so that no masks can be invented.",
            rich_help_panel=LEARNING,
        ),
    ] = MaskEmbeddingConfig.steps,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Stop each of the trainings after so many minutes.", rich_help_panel=LEARNING
        ),
    ] = DefectConfig.minutes,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Take so many views at a time, in each process.", rich_help_panel=LEARNING),
    ] = DefectConfig.batch_size,
    accumulate: Annotated[
        int,
        typer.Option(
            min=1,
            help="Take so many batches to a step: as a larger batch, in the memory of one.",
            rich_help_panel=LEARNING,
        ),
    ] = DefectConfig.accumulate,
    refresh_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Make other views of the pairs meanwhile, every so many steps; 0 never does.",
            rich_help_panel=LEARNING,
        ),
    ] = DefectConfig.refresh_every,
    loss: Annotated[
        Normalisation,
        typer.Option(
            help="The loss is that of Eq. 5 (mask), as in the authors' code (released), or that of plain "
            "textual inversion (unmasked).",
            rich_help_panel=WHAT,
        ),
    ] = DefectConfig.normalisation,
    spatial_encoder: Annotated[
        bool,
        typer.Option(
            help="Learn where defects are, too, or only how they look.",
            rich_help_panel=WHAT,
        ),
    ] = DefectConfig.spatial_encoder,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Start from the spatial encoder in this file of 'pretrain-encoder' or 'train'; without this "
            "option from the base's own, or an untrained one.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    learn: Annotated[
        Learn,
        typer.Option(
            help="Learn tokens and spatial encoder on the base as it is (tokens), a low-rank update of its "
            "attention, which can hold what the base has never seen (lora), or both together; the update is "
            "kept in the artifact, and beside it as .lora.safetensors for ComfyUI.",
            rich_help_panel=WHAT,
        ),
    ] = DefectConfig.learn,
    rank: Annotated[
        int, typer.Option(min=1, help="Update each layer by so low a rank.", rich_help_panel=WHAT)
    ] = DefectConfig.rank,
    adapt: Annotated[
        Literal["normals"] | None,
        typer.Option(
            help="First adapt the base's attention to the dataset's normal photos, by LoRA; it is kept in "
            "the artifact, and beside it as .lora.safetensors for ComfyUI.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    adapt_steps: Annotated[
        int, typer.Option(min=1, help="Adapt the base in so many steps.", rich_help_panel=WHAT)
    ] = AdaptationConfig.steps,
    validate_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Measure on held-out pairs every so many steps, and keep the best; 0 measures only before "
            "and after.",
            rich_help_panel=MEASURING,
        ),
    ] = DefectConfig.validate_every,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop after so many measurements without a better one; 0 never does.",
            rich_help_panel=MEASURING,
        ),
    ] = DefectConfig.patience,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            help="Write losses, gradients, rates and previews to this folder for TensorBoard.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="Add the dataset's new defect types to this artifact; what it knows stays to the bit.",
            rich_help_panel=GOING_ON,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a training that was cut off.", rich_help_panel=GOING_ON),
    ] = False,
    checkpoint_minutes: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Keep the training beside the artifact, at most every so many minutes.",
            rich_help_panel=GOING_ON,
        ),
    ] = CHECKPOINT_MINUTES,
    base: Base = None,
    precision: Precision = "fp32",
    checkpointing: Checkpointing = DefectConfig.checkpointing,
    tune: Annotated[
        bool,
        typer.Option(
            help="Then try some settings on each type of three training pairs or more, and keep in the "
            "artifact which of them the gate accepts most pairs of; 'generate' takes these.",
            rich_help_panel=WHAT,
        ),
    ] = True,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the U-Net: that takes minutes at first, then steps are faster on a GPU.",
            rich_help_panel=BASE_AND_DEVICE,
        ),
    ] = False,
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
            learn=learn,
            rank=rank,
            spatial_encoder=spatial_encoder,
            normalisation=loss,
            refresh_every=refresh_every,
            validate_every=validate_every,
            patience=patience,
        )
        masks = MaskEmbeddingConfig(
            mask_steps, batch, accumulate, minutes=minutes, seed=seed, checkpointing=checkpointing
        )
        adaptation = AdaptationConfig(adapt_steps, batch, accumulate, minutes=minutes, seed=seed)
        return TrainingConfig(
            size, share, defects, masks if mask_steps else None, adaptation if adapt else None
        )

    def prepare() -> TrainingJob:
        files.check(config := configure(), extend is not None, resume)
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
    end = Trained(context, dataset, base, files, tune)
    summary = partial(_train, prepare, end, tensorboard, processes)
    kept = f"nothing new was learned. Start again with:\n  {same_command(context)}"
    processes.end(run_command(summary, json, processes, kept=kept))


def _train(
    prepare: Callable[[], TrainingJob], end: Trained, tensorboard: Path | None, processes: Processes
) -> dict[str, Any]:
    """Runs the job with a progress bar, so that Ctrl-C ends it between two steps; returns the summary."""
    from ..training.stage import TrainingRun
    from ..training.tensorboard import TensorBoardLog

    files = end.files
    processes.first(lambda: check_writable(files.artifact))
    with processes.held(files.checkpoints.alone()):
        job = processes.together(prepare)
        shown = tensorboard if processes.index == 0 else None
        log = processes.together(lambda: TensorBoardLog(shown, job.base) if shown else None)
        training, measuring = processes.together(job.split)
        for name, pairs in training.items():
            measure = len(measuring.get(name, []))
            say(f"{name}: {pairs_in_words(len(pairs))} to train on, {measure or 'none'} only to measure")
        with progress() as on_stage, interrupted_between(on_stage, processes) as on_stage:
            outcome = job.run(TrainingRun(on_stage, files.checkpoints, log, processes))
        if log:
            log.close()
        files.save(outcome, processes)
    if outcome.end.finished:
        processes.first(files.checkpoints.remove)
    summary = {
        "artifact": str(files.artifact),
        "pairs": {name: len(pairs) for name, pairs in job.dataset.by_type().items()},
        "training_pairs": {name: len(pairs) for name, pairs in training.items()},
        **end.announce(outcome, job),
    }
    if outcome.end.finished and end.tune:
        summary |= end.tuned(outcome.learned, job, processes)
    end.say(outcome, job, processes)
    return summary
