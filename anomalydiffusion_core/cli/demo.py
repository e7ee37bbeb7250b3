"""The command `demo`: a few-shot dataset of its own, training, generation and report on the embedded base.

Headless, or through the example workflow in a ComfyUI that it starts itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bases.diffusers_model import load_base, load_onto
from ..dataset.layout import find_dataset
from ..export.mvtec import read_manifest
from ..generation.config import GenerationConfig
from ..generation.runs import GenerationRun, RunWatch, generate_all
from ..method.artifact import load_artifact, save_artifact
from ..method.embeddings import Learned
from ..method.progress import OnStage
from ..pretraining.demo import SIZE, train_demo
from ..procedural.few_shot import CATEGORIES, write_few_shot_dataset
from ..report.report import write_report
from .comfyui_client import ComfyUIServer, as_prompt, changed, read_workflow
from .comfyui_process import PACK, RunningServer, running_server
from .console import progress, run_command, say
from .invocation import same_command, say_next
from .options import Json, Seed

WORKFLOW = PACK / "workflows" / "1_your_photos.json"


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Write everything into this folder; a repeated call continues.")
    ] = Path("demo-output"),
    count: Annotated[int, typer.Option(min=1, help="Bring each defect type to so many accepted pairs.")] = 12,
    comfyui: Annotated[
        Path | None,
        typer.Option(help="Run it in this ComfyUI, the folder of its main.py, by the example workflow."),
    ] = None,
    *,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Makes a few-shot dataset, trains on it, generates labelled pairs and writes a report."""

    def command() -> dict[str, Any]:
        with progress() as on_stage:
            if comfyui:
                summary = run_demo_in_comfyui(comfyui, out, count, seed, on_stage=on_stage)
            else:
                summary = run_demo(out, count, seed, on_stage)
        say(
            f"Few-shot dataset:  {summary['few_shot']}\nArtifact:          {summary['artifact']}\n"
            f"Generated dataset: {summary['generated']} ({summary['pairs']} accepted pairs)\n"
            f"Report:            {summary['report']}"
        )
        say_next(
            "Open the report in a browser. Next, train on photos of your own (DATASET is their folder)",
            *("train", "DATASET", "--out", "mine.safetensors"),
        )
        return summary

    kept = f"what was finished is kept in {out}. Go on with:\n  {same_command(context)}"
    raise typer.Exit(run_command(command, json, kept=kept))


def run_demo(out: Path, count: int, seed: int, on_stage: OnStage) -> dict[str, Any]:
    """Runs or continues the demo in `out`: `count` accepted pairs of each of four defect types; returns a
    summary.
    """
    few_shot, artifact, generated = out / "few_shot", out / "demo.safetensors", out / "generated"
    write_few_shot_dataset(few_shot, SIZE, seed=seed)
    base = load_base("tiny")
    if not artifact.exists():
        training = train_demo(base, few_shot, on_stage)
        if not training.end.finished:  # kept, but not taken for a finished training by the next run
            save_artifact(training.learned, out / "interrupted.safetensors")
            training.end.check()
        save_artifact(training.learned, artifact)
    learned = load_onto(base, artifact)
    config = GenerationConfig(seed=seed)
    run = GenerationRun(learned, config, base, artifact)
    outcome = generate_all(run, find_dataset(few_shot), count, out=generated, watch=RunWatch(on_stage))
    return {
        **_summary(few_shot, artifact, generated, learned),
        "shortfall": " ".join(outcome.shortfalls.values()),
    }


def run_demo_in_comfyui(
    comfyui: Path, out: Path, count: int, seed: int, *, on_stage: OnStage
) -> dict[str, Any]:
    """As `run_demo`, by the example workflow "your photos" on a server of its own.

    `comfyui` is a folder of ComfyUI; the server's own folders lie in `out/comfyui`. Raises ValueError where
    it does not start, and JobFailed where a node fails.
    """
    saved = out / "comfyui" / "output" / "anomalydiffusion"
    few_shot, generated = out / "comfyui" / "input" / "anomalydiffusion_demo", saved / "dataset"
    if _shortfall(generated, count):
        with running_server(comfyui, out / "comfyui") as server:
            on_stage("ComfyUI", 1, 1, f"runs at {server.url} while the demo does")
            asyncio.run(_queue(server, count, seed, on_stage))
    artifact = max(saved.glob("*.safetensors"))
    learned = load_artifact(artifact)
    summary = _summary(few_shot, artifact, generated, learned)
    return {**summary, "shortfall": _shortfall(generated, count)}


async def _queue(server: RunningServer, count: int, seed: int, on_stage: OnStage) -> None:
    async with ComfyUIServer.connected(server.url) as connection:
        prompt = as_prompt(read_workflow(WORKFLOW), await connection.information())
        asked = [f"ADiff_GeneratePairs.count={count}", f"ADiff_GeneratePairs.seed={seed}"]
        await connection.run(changed(prompt, asked), lambda node, i, n: on_stage(node, i, n, ""))


def _shortfall(generated: Path, count: int) -> str:
    """What the demo's types lack of `count` pairs each; empty where nothing is missing."""
    made = Counter(f"{row['category']}/{row['defect']}" for row in read_manifest(generated))
    types = [f"{category}/{defect}" for category, (_, _, defects) in CATEGORIES.items() for defect in defects]
    short = [f"{name} has {made[name]} of {count} pairs" for name in types if made[name] < count]
    return f"{', '.join(short)}: see {generated}." if short else ""


def _summary(few_shot: Path, artifact: Path, generated: Path, learned: Learned) -> dict[str, Any]:
    report = generated / "report.html"
    return {
        "few_shot": str(few_shot),
        "artifact": str(artifact),
        "generated": str(generated),
        "report": str(report),
        "improvement": learned.training.get("improvement"),
        **write_report(generated, report, learned),
    }
