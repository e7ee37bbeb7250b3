"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..training.processes import launched
from .console import check_new, check_writable, interrupted_between, progress, run_command, say
from .options import Base, Checkpointing, Device, Json, Precision, Seed, base_to_train_on


def train(
    dataset: Annotated[
        Path, typer.Argument(help="A category, a folder of categories, or images/ with masks/.")
    ],
    out: Annotated[Path, typer.Option(help="The artifact to write (.safetensors); must not exist yet.")],
    base: Base = None,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    defect: Annotated[list[str] | None, typer.Option(help="Only these defects (repeat).")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps for anomaly embeddings and spatial encoder.")
    ] = 500,
    mask_steps: Annotated[int, typer.Option(min=0, help="Steps for mask embeddings; 0 = none.")] = 300,
    minutes: Annotated[float | None, typer.Option(help="Stop each of the trainings after this long.")] = None,
    size: Annotated[int, typer.Option(min=64, help="Pixels per side of the training views.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Views at a time, in each process.")] = 4,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Batches per step: as a larger batch, in the memory of one.")
    ] = 1,
    refresh_every: Annotated[
        int,
        typer.Option(
            min=0, help="Steps after which other views of the pairs are drawn meanwhile; 0 = never."
        ),
    ] = 0,
    precision: Precision = "fp32",
    checkpointing: Checkpointing = False,
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
    ] = 1 / 3,
    loss: Annotated[
        Literal["mask", "released", "unmasked"],
        typer.Option(help="mask: Eq. 5; released: as the authors' code; unmasked: plain textual inversion."),
    ] = "mask",
    spatial_encoder: Annotated[
        bool, typer.Option(help="Learn where defects are; without it, how they look alone.")
    ] = True,
    validate_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps between measurements on held-out pairs, the best of which is kept. 0 = only before "
            "and after.",
        ),
    ] = 0,
    patience: Annotated[
        int,
        typer.Option(min=0, help="Stop after this many measurements without a better one; 0 = never."),
    ] = 0,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard: losses, gradients, rates, views drawn anew."),
    ] = None,
    adapt: Annotated[
        Literal["normals"] | None,
        typer.Option(
            help="First adapt the base's attention to the dataset's normal photos, by LoRA; kept in the "
            "artifact, and beside it as .lora.safetensors for ComfyUI."
        ),
    ] = None,
    adapt_steps: Annotated[int, typer.Option(min=1, help="Steps of that adaptation.")] = 300,
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
    ] = 2.0,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
) -> None:
    """Learns how each defect looks, where it may be, and masks like its own, from image-mask pairs.

    Ctrl-C keeps the best so far; --resume goes on from there, or from the last checkpoint, bit for bit.
    Several devices: accelerate launch --multi_gpu --num_processes 2 -m anomalydiffusion_core.cli train ...
    """
    from ..bases.diffusers_model import DiffusersModel, load_onto
    from ..dataset.layout import Dataset, find_dataset
    from ..method.artifact import export_lora, load_artifact, save_artifact
    from ..method.embeddings import Learned
    from ..training.adaptation import train_adapted
    from ..training.checkpoint import Checkpoints
    from ..training.defects import TrainingConfig
    from ..training.jobs import train_model
    from ..training.stage import TrainingRun
    from ..training.tensorboard import TensorBoardLog

    checkpoints = Checkpoints(out.with_suffix(".training"), checkpoint_minutes)
    lora = out.with_suffix(".lora.safetensors")

    def prepare() -> tuple[Dataset, DiffusersModel, Learned | None, Learned | None, TensorBoardLog | None]:
        if adapt and extend:
            raise ValueError(
                "--adapt and --extend exclude each other: what is extended stays on the base that it was "
                "trained on, adapted or not; leave --adapt out."
            )
        checkpoints.check(resume)
        if resume and bool(adapt) != checkpoints.has("normals"):
            how = "without" if adapt else "with"
            raise ValueError(
                f"The training in {checkpoints.folder} was begun {how} --adapt: give the same again, or "
                "train to another name."
            )
        if not resume:
            check_new(out)
            check_new(lora)
        found = find_dataset(dataset, category, defect)
        model = base_to_train_on(base, processes.own_device(device), precision, checkpointing)
        if compiled:
            model.compile()
        known = load_onto(model, extend) if extend else None
        start = load_artifact(encoder, model.fingerprint) if encoder else None
        log = TensorBoardLog(tensorboard, model) if tensorboard and processes.index == 0 else None
        return found, model, known, start, log

    def command() -> dict[str, Any]:
        config = TrainingConfig(
            steps=steps,
            batch_size=batch,
            image_size=size,
            accumulate=accumulate,
            refresh_every=refresh_every,
            checkpointing=checkpointing,
            normalisation=loss,
            spatial_encoder=spatial_encoder,
            validate_every=validate_every,
            patience=patience,
            minutes=minutes,
            seed=seed,
        )
        processes.first(lambda: check_writable(out))
        with processes.held(checkpoints.alone()):
            found, model, known, start, log = processes.together(prepare)
            counts = {name: len(pairs) for name, pairs in found.by_type().items()}
            say("Pairs: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
            with progress() as on_stage, interrupted_between(on_stage, processes) as on_stage:
                run = TrainingRun(on_stage, checkpoints, log, processes)
                if adapt:
                    outcome = train_adapted(model, found, config, mask_steps, share, adapt_steps, run, start)
                else:
                    outcome = train_model(model, found, config, mask_steps, share, run, known, start)
            if log:
                log.close()
            processes.first(lambda: save_artifact(outcome.learned, out))
            if outcome.learned.adapter:
                processes.first(lambda: export_lora(outcome.learned, lora))
        if outcome.end.finished:
            processes.first(checkpoints.remove)
        say(f"Artifact: {out}")
        summary: dict[str, Any] = {
            "artifact": str(out),
            "pairs": counts,
            "interrupted": outcome.end.interrupted,
            "shortfall": outcome.end.problem,
        }
        if outcome.learned.adapter:
            say(f"LoRA for ComfyUI: {lora}")
            summary["lora"] = str(lora)
        if outcome.improvement:
            i = outcome.improvement
            say(
                f"Held-out masked loss: {i.before:.4f} before, {i.after:.4f} after, "
                f"{100 * i.relative:+.1f} % (95 % interval {100 * i.low:+.1f} to {100 * i.high:+.1f} %)"
            )
            summary["improvement"] = vars(i)
        return summary

    with launched(device) as processes:
        code = run_command(command, json, processes)
    raise typer.Exit(code)
