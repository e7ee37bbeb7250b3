"""The command line `anomalydiffusion`: commands read folders, call the pipeline and say what they made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_encoder import pretrain_encoder
from .cli_generate import generate
from .cli_options import Base, DefectTypes, Device, Json, Seed, device_of, load_with_base, names_in
from .cli_train import train
from .console import check_new, check_writable, progress, run_command, say
from .method.reweighting import AARMode

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Few-shot anomaly image-mask pairs by latent diffusion. Start with: anomalydiffusion demo",
)


@app.command(epilog="Example: anomalydiffusion demo --out demo-output")
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo-output"),
    count: Annotated[int, typer.Option(min=1, help="Accepted pairs per defect type.")] = 12,
    seed: Seed = 0,
    comfyui: Annotated[
        Path | None,
        typer.Option(help="Run it in this ComfyUI (the folder of its main.py), by the example workflow."),
    ] = None,
    json: Json = None,
) -> None:
    """Makes a few-shot dataset, trains on it, generates labelled pairs and writes a report."""
    from . import demo as job

    def command() -> dict[str, Any]:
        with progress() as on_stage:
            if comfyui:
                summary = job.run_demo_in_comfyui(comfyui, out, count, seed, on_stage)
            else:
                summary = job.run_demo(out, count, seed, on_stage)
        say(
            f"Few-shot dataset:  {summary['few_shot']}\nArtifact:          {summary['artifact']}\n"
            f"Generated dataset: {summary['generated']} ({summary['pairs']} accepted pairs)\n"
            f"Report:            {summary['report']}"
        )
        return summary

    raise typer.Exit(run_command(command, json))


app.command(epilog="Example: anomalydiffusion train data/leather --out leather.safetensors")(train)


@app.command(epilog="Example: anomalydiffusion masks leather.safetensors --out masks --count 20")
def masks(
    artifact: Annotated[Path, typer.Argument(help="A file written by train.")],
    out: Annotated[
        Path, typer.Option(help="Folder for <category>/<defect>/NNNNN_mask.png; must not exist yet.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Accepted masks per defect type.")] = 20,
    defect_type: DefectTypes = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance (Eq. 10); released: 5.")] = 2.0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    base: Base = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
) -> None:
    """Invents masks; empty, tiny, full and border-filling ones are drawn again."""
    from .masks.invention import MaskConfig, write_masks
    from .method.reweighting import AARConfig
    from .method.sampling import SamplingConfig

    def command() -> dict[str, Any]:
        check_new(out)
        config = MaskConfig(SamplingConfig(steps=steps, guidance=guidance, aar=AARConfig(AARMode.OFF)))
        host, model = load_with_base(artifact, base, device)
        types = defect_type or sorted(model.mask)
        if not types:
            raise ValueError(f"{artifact} holds no mask embedding: train with --mask-steps above 0.")
        with progress() as on_stage:
            written = write_masks(host, model, types, count, seed, out, config, on_stage)
        say(f"Masks: {out}\nOverview: {out / 'overview.png'}")
        return {"masks": written, "out": str(out)}

    raise typer.Exit(run_command(command, json))


@app.command(epilog="Example: anomalydiffusion report generated --artifact leather.safetensors")
def report(
    generated: Annotated[Path, typer.Argument(help="A dataset written by generate.")],
    artifact: Annotated[Path | None, typer.Option(help="Adds training curves.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page to write. Default: report.html in the dataset.")
    ] = None,
    json: Json = None,
) -> None:
    """Writes one HTML page: contact sheets, fill, loss curves, settings, versions."""
    from .method.artifact import load_artifact
    from .report.report import write_report

    def command() -> dict[str, Any]:
        page = out or generated / "report.html"
        check_writable(page)
        figures = write_report(generated, page, load_artifact(artifact) if artifact else None)
        say(f"Report: {page}")
        return {"report": str(page), **figures}

    raise typer.Exit(run_command(command, json))


@app.command(
    epilog="Example: anomalydiffusion evaluate generated --real data/leather --out evaluation --quick"
)
def evaluate(
    generated: Annotated[
        list[str],
        typer.Argument(help="Datasets of pairs, each a folder, or name=folder for the tables."),
    ],
    real: Annotated[Path, typer.Option(help="The real dataset: train/good, test/good and real pairs.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and results; a repeated call continues.")],
    against: Annotated[
        str, typer.Option(help="Baselines, comma-separated: crop-paste, cutpaste, draem, prn.")
    ] = "",
    detectors: Annotated[
        str,
        typer.Option(help="Detectors of anomalib, comma-separated: patchcore, padim, cflow, ..."),
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="Pairs per type, the same for all.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Localisers for each contender and category.")] = 3,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of real pairs that trained the generator: the one given to train."
        ),
    ] = 1 / 3,
    with_real: Annotated[
        bool, typer.Option("--with-real", help="Add the few real pairs to those of every contender.")
    ] = False,
    defect: Annotated[list[str] | None, typer.Option(help="Only these defects (repeat).")] = None,
    protocol: Annotated[
        Literal["honest", "paper"],
        typer.Option(help="paper: the best checkpoint on the test photos, as printed tables."),
    ] = "honest",
    quick: Annotated[bool, typer.Option("--quick", help="A small localiser, for a CPU.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each localiser.")] = None,
    weights: Annotated[
        Literal["imagenet", "scratch"] | None,
        typer.Option("--classify", help="Also tell types apart by a ResNet-34 that begins there."),
    ] = None,
    published_metrics: Annotated[
        bool,
        typer.Option(
            "--published-metrics",
            help="Also Inception Score, KID and IC-LPIPS, whose networks are downloaded once.",
        ),
    ] = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Even where a training photo is also a test photo.")
    ] = False,
    device: Device = None,
    json: Json = None,
) -> None:
    """Trains a localiser on each dataset's pairs and measures it on real photos that none has seen."""
    from dataclasses import asdict, replace

    from .evaluation.classifier import QUICK_CLASSIFIER, ClassifierConfig
    from .evaluation.comparison import ComparisonConfig, compare, named_datasets
    from .evaluation.localizer import QUICK, LocalizerConfig
    from .evaluation.tables import in_all_categories, macro, write_tables

    def command() -> dict[str, Any]:
        check_writable(out)
        localizer = QUICK if quick else LocalizerConfig()
        localizer = replace(localizer, steps=steps) if steps else localizer
        classifier = QUICK_CLASSIFIER if quick else ClassifierConfig()
        classifier = replace(classifier, pretrained=weights == "imagenet") if weights else None
        config = ComparisonConfig(
            localizer,
            classifier,
            share,
            count,
            seeds,
            protocol,
            published_metrics=published_metrics,
            allow_overlap=allow_overlap,
            with_real=with_real,
            defects=tuple(defect or ()),
            detectors=names_in(detectors),
        )
        with progress() as on_stage:
            comparison = compare(
                named_datasets(generated),
                real,
                list(names_in(against)),
                out,
                config,
                on_stage,
                device_of(device),
            )
        paths, runs = write_tables(comparison, config, out), comparison.runs
        means = {name: macro(runs, name) for name in in_all_categories(runs)}
        for name, metrics in means.items():
            figures = ", ".join(f"{key} {100 * figure.mean:.1f}" for key, figure in metrics.items())
            say(f"{name}: {figures}")
        say(f"Tables: {paths['html']}")
        return {**paths, "means": {n: {k: asdict(f) for k, f in m.items()} for n, m in means.items()}}

    raise typer.Exit(run_command(command, json))


@app.command(
    epilog="Example: anomalydiffusion queue workflows/4_all_in_one.json --count 3 --set ADiff_KSampler.cfg=3"
)
def queue(
    workflow: Annotated[Path, typer.Argument(help="A workflow saved by ComfyUI, in either of its formats.")],
    server: Annotated[str, typer.Option(help="Where ComfyUI runs.")] = "http://127.0.0.1:8188",
    count: Annotated[int, typer.Option(min=1, help="Jobs; each has its seeds raised by one.")] = 1,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="node.input=value (repeat); a node by its id, title or type."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Download what the jobs saved into this folder; else it is named.")
    ] = None,
    json: Json = None,
) -> None:
    """Sends a workflow to a ComfyUI server and follows it to its end."""
    import asyncio

    from .comfyui_jobs import queue_jobs, read_workflow

    def command() -> dict[str, Any]:
        content = read_workflow(workflow)
        if out:
            check_writable(out)
        with progress() as on_stage:
            jobs = asyncio.run(queue_jobs(content, server, count, assignments or [], out, on_stage))
        for job in jobs:
            for file in job.saved:
                say(file)
        return {"jobs": [{"id": job.prompt_id, "files": job.saved} for job in jobs]}

    raise typer.Exit(run_command(command, json))


app.command(
    "pretrain-encoder",
    epilog="Example: anomalydiffusion pretrain-encoder --base sd15.safetensors --out encoder.safetensors",
)(pretrain_encoder)


@app.command("pretrain-tiny", epilog="Example: anomalydiffusion pretrain-tiny --recipe cpu --out runs/tiny")
def pretrain_tiny(
    out: Annotated[Path, typer.Option(help="Work folder; tiny_base.safetensors is written there.")],
    recipe: Annotated[str, typer.Option(help="cpu (2 cores, 2 hours) or gpu (20 minutes in all).")] = "cpu",
    resume: Annotated[Path | None, typer.Option(help="Continue from this base file.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Instead of the recipe's time.")] = None,
    seed: Seed = 1,
    device: Device = None,
    json: Json = None,
) -> None:
    """Trains the embedded base model on procedural surfaces."""
    import dataclasses
    import logging

    from .pretraining.tiny_base import RECIPES, pretrain

    def command() -> dict[str, Any]:
        if recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe!r}: choose from {', '.join(RECIPES)}.")
        if resume and not resume.is_file():
            raise ValueError(f"{resume} does not exist: give a base file to continue from.")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        chosen = RECIPES[recipe]
        chosen = dataclasses.replace(chosen, seed=seed, minutes=minutes or chosen.minutes)
        path = pretrain(chosen, out, resume, device_of(device))
        say(f"Base model: {path}")
        return {"base": str(path)}

    raise typer.Exit(run_command(command, json))


@app.command(epilog="Example: anomalydiffusion doctor")
def doctor(base: Base = None, json: Json = None) -> None:
    """Says what is installed, which devices are found, and whether a base model loads."""
    from .doctor import examine

    def command() -> dict[str, Any]:
        findings = examine(base or "tiny")
        for name, finding in findings.items():
            say(f"{name:16} {finding}")
        return findings

    raise typer.Exit(run_command(command, json))


app.command(
    epilog="Example: anomalydiffusion generate leather.safetensors data/leather --out generated --count 50"
)(generate)


if __name__ == "__main__":
    app()
