"""The command `generate`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..gate.checks import CHECKS
from ..gate.gate import GateConfig
from ..generation.config import GenerationConfig, Start
from ..masks.placement import PlacementMode
from ..masks.sources import SOURCES, USUAL
from ..method.reweighting import AARConfig, meanings, modes_of_pixels
from ..method.sampling import SCHEDULERS, SamplingConfig, check_scheduler
from .console import check_writable, pairs_in_words, progress, run_command, say, steps_shown
from .invocation import same_command, say_next
from .options import (
    ATTENTION,
    DATA,
    FROM_0,
    GATE,
    MASKS,
    OVER_0_TO_1,
    SAMPLING,
    START,
    Base,
    Device,
    Json,
    Seed,
    check_mask_embeddings,
    load_with_base,
    names_in,
    number_by_type,
)

if TYPE_CHECKING:
    from ..dataset.layout import Dataset
    from ..generation.runs import GenerationOutcome
    from ..method.embeddings import Learned


def generate(
    context: typer.Context,
    artifact: Annotated[Path, typer.Argument(help="The artifact is a file that 'train' wrote.")],
    dataset: Annotated[
        Path, typer.Argument(help="The dataset holds the normal photos; give the one that was trained on.")
    ],
    out: Annotated[
        Path, typer.Option(help="Write or continue this dataset, in MVTec's layout with a manifest.")
    ],
    count: Annotated[
        int, typer.Option(min=1, help="Bring each defect type to so many accepted pairs in all.")
    ] = 20,
    *,
    defect_type: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            help="Make only this category/defect; repeat it for more. category/a+b puts both into each "
            "image.",
            rich_help_panel=DATA,
        ),
    ] = None,
    mask_folder: Annotated[
        Path | None,
        typer.Option(
            "--masks",
            help="Take masks from this folder, as 'masks' writes them or a ground_truth folder. One that "
            "misses the object is moved onto it.",
            rich_help_panel=MASKS,
        ),
    ] = None,
    mask_sources: Annotated[
        str | None,
        typer.Option(
            help="Mix masks from several sources by weights, such as invented=2,real=1,procedural=1: "
            + "; ".join(f"{name}, {source.meaning}" for name, source in SOURCES.items())
            + ". Without this option they are the given ones where there are --masks, else "
            + ", ".join(f"{name}={weight:g}" for name, weight in USUAL.items())
            + ", as far as there are any.",
            rich_help_panel=MASKS,
        ),
    ] = None,
    foreground: Annotated[
        str,
        typer.Option(
            help="Find the object by the photos' plain ground (auto), not at all, so that masks lie anywhere "
            "(none), or by a segmentation model of transformers (its folder or hub id).",
            rich_help_panel=MASKS,
        ),
    ] = GenerationConfig.foreground,
    placement: Annotated[
        PlacementMode,
        typer.Option(
            help="Lay masks on the object as the training masks lay, or anywhere on it.",
            rich_help_panel=MASKS,
        ),
    ] = GenerationConfig.placement,
    start: Annotated[
        Start,
        typer.Option(
            help="Lay a real training defect into the mask and denoise from there (pasted), denoise from "
            "noise, or do either by chance (mixed). With tuned, what 'train --tune' found takes the place "
            "of these options and of --guidance, --aar and --aar-strength, but for types named in them; a "
            "type that it did not try is pasted.",
            rich_help_panel=START,
        ),
    ] = GenerationConfig.start,
    denoise: Annotated[
        list[str] | None,
        typer.Option(
            help="Noise a pasted defect to this share of the schedule, over 0 up to 1; the more, the newer "
            "it is: a number for all types, or category/defect=number; repeat it for more. Without this "
            f"option it is {SamplingConfig.denoise:g}.",
            rich_help_panel=START,
        ),
    ] = None,
    pasted_guidance: Annotated[
        float,
        typer.Option(
            help="Guide by so much towards the defect from a pasted one; 1 does not guide.",
            rich_help_panel=START,
        ),
    ] = GenerationConfig.pasted_guidance,
    aar: Annotated[
        str,
        typer.Option(help=f"Re-weight attention in this way. {meanings()}", rich_help_panel=ATTENTION),
    ] = AARConfig.mode,
    aar_strength: Annotated[
        list[str] | None,
        typer.Option(
            help="Re-weight by so much, from 0, which is exactly the plain sampler: a number for all types, "
            "or category/defect=number; repeat it for more.",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    aar_start: Annotated[
        float,
        typer.Option(min=0, max=1, help="Begin after this share of the steps.", rich_help_panel=ATTENTION),
    ] = AARConfig.start,
    aar_end: Annotated[
        float,
        typer.Option(min=0, max=1, help="Stop after this share of the steps.", rich_help_panel=ATTENTION),
    ] = AARConfig.end,
    aar_maximum: Annotated[
        float,
        typer.Option(min=1, help="Let mode adaptive weigh by so much at most.", rich_help_panel=ATTENTION),
    ] = AARConfig.maximum,
    aar_decoder: Annotated[
        Path | None,
        typer.Option(
            help=f"Make mode {modes_of_pixels()} faster by this tiny decoder (TAESD, as in ComfyUI's "
            "vae_approx).",
            rich_help_panel=ATTENTION,
        ),
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option(
            help=f"Denoise by {', '.join(SCHEDULERS)}, or a diffusers class.", rich_help_panel=SAMPLING
        ),
    ] = GenerationConfig.sampling.scheduler,
    steps: Annotated[
        int,
        typer.Option(min=1, help="Denoise in so many steps; lcm takes at most 50.", rich_help_panel=SAMPLING),
    ] = GenerationConfig.sampling.steps,
    guidance: Annotated[
        float,
        typer.Option(
            help="Guide by so much towards the defect from noise (classifier-free); 1 does not guide.",
            rich_help_panel=SAMPLING,
        ),
    ] = GenerationConfig.sampling.guidance,
    vary_strength: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Scale the anomaly embedding by 1 give or take up to this.",
            rich_help_panel=SAMPLING,
        ),
    ] = GenerationConfig.vary_strength,
    vary_guidance: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Scale the guidance by 1 give or take up to this.",
            rich_help_panel=SAMPLING,
        ),
    ] = GenerationConfig.vary_guidance,
    vary_contrast: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Scale the difference of a pasted defect to its ground by 1 give or take up to this.",
            rich_help_panel=START,
        ),
    ] = GenerationConfig.vary_contrast,
    batch: Annotated[
        int, typer.Option(min=1, help="Make so many regions at a time.", rich_help_panel=SAMPLING)
    ] = GenerationConfig.batch_size,
    attention_maps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Show what the tokens looked at, for so many pairs of each type.",
            rich_help_panel=SAMPLING,
        ),
    ] = GenerationConfig.attention_maps,
    checks: Annotated[
        str,
        typer.Option(
            help=f"Check pairs by the measure of the real ones for all of {','.join(CHECKS)}; give fewer to "
            "check less, '' to check nothing.",
            show_default=False,
            rich_help_panel=GATE,
        ),
    ] = ",".join(GateConfig().checks),
    smallest_fill: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Ask that this share of each mark shows; real pairs may ask for more.",
            rich_help_panel=GATE,
        ),
    ] = GateConfig.smallest_fill,
    tries: Annotated[
        int,
        typer.Option(min=1, help="Try so often for each pair asked for.", rich_help_panel=GATE),
    ] = GenerationConfig.tries_per_pair,
    keep_rejected: Annotated[
        bool,
        typer.Option(
            "--keep-rejected", help="Keep what the gate stops, in OUT/rejected.", rich_help_panel=GATE
        ),
    ] = False,
    reject: Annotated[
        Path | None,
        typer.Option(
            help="Move the pairs in this list, which the report lets you download, to OUT/rejected and make "
            "others in their place.",
            rich_help_panel=GATE,
        ),
    ] = None,
    base: Base = None,
    device: Device = None,
    seed: Seed = GenerationConfig.seed,
    json: Json = None,
) -> None:
    """Puts learned defects on normal photos, inside masks; every pixel outside stays as it was."""
    from ..dataset.layout import find_dataset
    from ..export.mvtec import check_output
    from ..export.pair_list import read_pair_list
    from ..generation.runs import GenerationRun, RunWatch, generate_all, masks_in_folder
    from ..masks.sources import parse_weights

    def command() -> dict[str, Any]:
        strength, strengths = number_by_type("--aar-strength", aar_strength or [], AARConfig.strength, FROM_0)
        share, shares = number_by_type("--denoise", denoise or [], SamplingConfig.denoise, OVER_0_TO_1)
        weights = parse_weights(mask_sources) if mask_sources else None
        gate = GateConfig(names_in(checks), smallest_fill)
        check_output(out)
        check_writable(out)
        sampling = SamplingConfig(scheduler, steps, guidance=guidance, denoise=share)
        check_scheduler(sampling)
        unwanted = read_pair_list(reject) if reject else []
        photos = find_dataset(dataset)
        loaded, learned = load_with_base(artifact, base, device)
        names = defect_type or sorted(learned.anomaly)
        _check_start(context, start, learned, names)
        if not mask_folder or weights:
            _check_sources(artifact, learned, photos, names, weights)
        config = GenerationConfig(
            replace(sampling, aar=AARConfig(aar, strength, aar_maximum, start=aar_start, end=aar_end)),
            gate=gate,
            seed=seed,
            foreground=foreground,
            placement=placement,
            start=start,
            pasted_guidance=pasted_guidance,
            denoises=shares,
            aar_strengths=strengths,
            vary_strength=vary_strength,
            vary_guidance=vary_guidance,
            vary_contrast=vary_contrast,
            attention_maps=attention_maps,
            tries_per_pair=tries,
            batch_size=batch,
        )
        run = GenerationRun(
            learned, config, loaded, artifact, keep_rejected=keep_rejected, aar_decoder=aar_decoder
        )
        given = masks_in_folder(mask_folder, defect_type, learned) if mask_folder else None
        moved = _rejected_by_hand(unwanted, out) if reject else 0
        with progress() as on_stage:
            outcome = generate_all(
                run,
                photos,
                count,
                out=out,
                defect_types=defect_type,
                given=given,
                weights=weights,
                watch=RunWatch(on_stage, steps_shown(on_stage), on_note=say),
            )
        return _announce(outcome, out, artifact) | {"rejected_by_hand": moved}

    kept = f"the pairs made so far are kept in {out}. Go on with:\n  {same_command(context)}"
    raise typer.Exit(run_command(command, json, kept=kept))


def _rejected_by_hand(names: list[str], out: Path) -> int:
    """Moves pairs out of the dataset, and says how many."""
    from ..export.mvtec import REJECTED, MVTecWriter

    moved = MVTecWriter(out).reject_by_hand(names) if names else 0
    say(f"Rejected by hand: {moved} pairs, now in {out / REJECTED}; others take their place.")
    return moved


def _check_start(context: typer.Context, start: Start, learned: Learned, names: list[str]) -> None:
    """Raises ValueError where an option would be of no effect, since tuned settings take its place."""
    from ..generation.config import TUNED
    from ..generation.runs import single_types

    types = {single for name in names for single in single_types(name, learned)}
    tuned = sorted(types & set(learned.tunings))
    if start != TUNED or not tuned:
        return
    for name in ("denoise", "pasted_guidance", "guidance", "aar", "aar_strength"):
        source, value = context.get_parameter_source(name), context.params[name]
        of_types = isinstance(value, (list, tuple)) and all("=" in str(text) for text in value)
        if source and source.name == "COMMANDLINE" and not of_types:
            raise ValueError(
                f"--{name.replace('_', '-')} would be of no effect on {', '.join(tuned)}, whose settings "
                "were tuned: add --start pasted (or noise) to take yours."
            )


def _check_sources(
    artifact: Path, learned: Learned, photos: Dataset, names: list[str], weights: dict[str, float] | None
) -> None:
    """Raises ValueError, saying what to do, where masks are to be invented and no mask embedding is there."""
    from ..generation.runs import single_types, types_to_invent

    types = [single for name in names for single in single_types(name, learned)]
    check_mask_embeddings(artifact, learned, types_to_invent(types, photos, learned, weights))


def _announce(outcome: GenerationOutcome, out: Path, artifact: Path) -> dict[str, Any]:
    """Says what was made and what is next; returns the summary for --json."""
    if outcome.rows:
        say(f"Dataset: {out} ({pairs_in_words(len(outcome.rows))}, mean fill {outcome.mean_fill:.2f})")
    if others := outcome.others(out):
        say(others)
    for name, diversity in outcome.diversity.items():
        if words := str(diversity):
            say(f"{name}: {words}")
    if outcome.rows:
        say_next("Next, look at them", "report", out, "--artifact", artifact)
    return {
        "out": str(out),
        "pairs": len(outcome.rows),
        "mean_fill": outcome.mean_fill,
        "gate": outcome.grounds,
        "diversity": {name: asdict(diversity) for name, diversity in outcome.diversity.items()},
        "shortfalls": outcome.shortfalls,
        "shortfall": " ".join(outcome.shortfalls.values()),
    }
