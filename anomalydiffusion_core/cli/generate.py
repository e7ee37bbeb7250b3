"""The command `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..gate.gate import CHECKS, GateConfig
from ..generation.config import GenerationConfig
from ..masks.placement import PlacementMode
from ..masks.sources import SOURCES
from ..method.reweighting import AARConfig, meanings, modes_of_pixels
from ..method.sampling import SCHEDULERS, SamplingConfig
from .console import check_writable, progress, run_command, say, steps_shown
from .options import Base, Device, Json, Seed, load_with_base, names_in


def generate(
    artifact: Annotated[Path, typer.Argument(help="A file written by train.")],
    dataset: Annotated[Path, typer.Argument(help="Where the normal photos are: the dataset trained on.")],
    out: Annotated[Path, typer.Option(help="Dataset to write or to continue (MVTec layout + manifest).")],
    count: Annotated[int, typer.Option(min=1, help="Accepted pairs per defect type, in all.")] = 20,
    *,
    defect_type: Annotated[
        list[str] | None,
        typer.Option(
            "--type", help="Only these category/defect (repeat); category/a+b puts both into each image."
        ),
    ] = None,
    mask_folder: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            help="Masks as written by 'masks' or a ground_truth folder; default: invented on the way. "
            "One that misses the object is moved onto it.",
        ),
    ] = None,
    mask_sources: Annotated[
        str | None,
        typer.Option(
            help="Where masks come from, mixed by weights, such as invented=2,real=1,procedural=1: "
            + "; ".join(f"{name}, {source.meaning}" for name, source in SOURCES.items())
            + ". Default: given where there are --masks, else invented."
        ),
    ] = None,
    foreground: Annotated[
        str,
        typer.Option(
            help="How the object is found: auto (by the photos' plain ground), none (masks lie anywhere), "
            "or a segmentation model of transformers (folder or hub id)."
        ),
    ] = GenerationConfig.foreground,
    placement: Annotated[
        PlacementMode,
        typer.Option(help="Where on the object masks lie: as the training masks did, or anywhere."),
    ] = GenerationConfig.placement,
    aar: Annotated[
        str,
        typer.Option(help=f"Attention re-weighting. {meanings()}"),
    ] = AARConfig.mode,
    aar_strength: Annotated[
        list[str] | None,
        typer.Option(
            help="0 = exactly the plain sampler; a number for all types, or category/defect=number (repeat)."
        ),
    ] = None,
    aar_start: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps after which it begins.")
    ] = AARConfig.start,
    aar_end: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps where it stops.")
    ] = AARConfig.end,
    aar_maximum: Annotated[
        float, typer.Option(min=1, help="Greatest weight of mode adaptive.")
    ] = AARConfig.maximum,
    aar_decoder: Annotated[
        Path | None,
        typer.Option(
            help=f"A tiny decoder (TAESD, as in ComfyUI's vae_approx): makes mode {modes_of_pixels()} faster."
        ),
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option(help=f"{', '.join(SCHEDULERS)}, or a diffusers class."),
    ] = GenerationConfig.sampling.scheduler,
    steps: Annotated[
        int, typer.Option(min=1, help="Denoising steps; lcm takes at most 50.")
    ] = GenerationConfig.sampling.steps,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 = none.")
    ] = GenerationConfig.sampling.guidance,
    vary_strength: Annotated[
        float, typer.Option(min=0, max=0.9, help="Scale the anomaly embedding by 1 give or take up to this.")
    ] = GenerationConfig.vary_strength,
    vary_guidance: Annotated[
        float, typer.Option(min=0, max=0.9, help="Scale the guidance by 1 give or take up to this.")
    ] = GenerationConfig.vary_guidance,
    checks: Annotated[
        str,
        typer.Option(
            help=f"What the quality gate checks, by the measure of the real pairs: {', '.join(CHECKS)}; '' = "
            "nothing."
        ),
    ] = ",".join(GateConfig().checks),
    smallest_fill: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of each mark that must show; real pairs may ask for more."),
    ] = GateConfig.smallest_fill,
    tries: Annotated[
        int, typer.Option(min=1, help="Tries for each pair asked for.")
    ] = GenerationConfig.tries_per_pair,
    keep_rejected: Annotated[
        bool, typer.Option("--keep-rejected", help="Keep what the gate stops, in OUT/rejected.")
    ] = False,
    reject: Annotated[
        Path | None,
        typer.Option(
            help="Move the pairs in this list, which the report lets you download, to OUT/rejected and make "
            "others in their place."
        ),
    ] = None,
    attention_maps: Annotated[
        int, typer.Option(min=0, help="Show what the tokens looked at, for so many pairs of each type.")
    ] = GenerationConfig.attention_maps,
    batch: Annotated[int, typer.Option(min=1, help="Regions at a time.")] = GenerationConfig.batch_size,
    base: Base = None,
    seed: Seed = GenerationConfig.seed,
    device: Device = None,
    json: Json = None,
) -> None:
    """Puts learned defects on normal photos, inside masks; every pixel outside stays as it was."""
    from ..export.mvtec import REJECTED, MVTecWriter, check_output
    from ..export.pair_list import read_pair_list
    from ..generation.runs import GenerationRun, generate_all
    from ..masks.sources import parse_weights

    def command() -> dict[str, Any]:
        strength, strengths = _strengths(aar_strength or [])
        weights = parse_weights(mask_sources) if mask_sources else None
        gate = GateConfig(names_in(checks), smallest_fill)
        check_output(out)
        check_writable(out)
        unwanted = read_pair_list(reject) if reject else []
        loaded, learned = load_with_base(artifact, base, device)
        aar_config = AARConfig(aar, strength, aar_maximum, start=aar_start, end=aar_end)
        config = GenerationConfig(
            SamplingConfig(scheduler, steps, guidance=guidance, aar=aar_config),
            gate=gate,
            seed=seed,
            foreground=foreground,
            placement=placement,
            aar_strengths=strengths,
            vary_strength=vary_strength,
            vary_guidance=vary_guidance,
            attention_maps=attention_maps,
            tries_per_pair=tries,
            batch_size=batch,
        )
        run = GenerationRun(artifact, config, loaded, keep_rejected=keep_rejected, aar_decoder=aar_decoder)
        moved = MVTecWriter(out).reject_by_hand(unwanted) if unwanted else 0
        with progress() as on_stage:
            outcome = generate_all(
                run,
                learned,
                dataset,
                count,
                out=out,
                defect_types=defect_type,
                mask_folder=mask_folder,
                weights=weights,
                on_stage=on_stage,
                on_step=steps_shown(on_stage),
            )
        if reject:
            say(f"Rejected by hand: {moved} pairs, now in {out / REJECTED}, with others in their place.")
        say(f"Dataset: {out} ({len(outcome.rows)} pairs, mean fill {outcome.mean_fill:.2f})")
        return {
            "out": str(out),
            "pairs": len(outcome.rows),
            "rejected_by_hand": moved,
            "mean_fill": outcome.mean_fill,
            "shortfalls": outcome.shortfalls,
            "shortfall": " ".join(outcome.shortfalls.values()),
        }

    raise typer.Exit(run_command(command, json))


def _strengths(texts: list[str]) -> tuple[float, tuple[tuple[str, float], ...]]:
    """The strength for all defect types, and those of single ones."""
    strength, strengths = AARConfig.strength, []
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ValueError(
                f"--aar-strength {text!r} is no number from 0 up, nor category/defect=number: correct it."
            )
        if equals:
            strengths.append((name, value))
        else:
            strength = value
    return strength, tuple(strengths)
