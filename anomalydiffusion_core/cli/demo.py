"""The command `demo`: a few-shot dataset of its own, training, generation and report on the embedded base.

Headless, or through the example workflow in a ComfyUI that it starts itself.
"""

from __future__ import annotations

import asyncio
import math
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
from .comfyui_client import ComfyUIServer, JobFailed, Prompt, as_prompt, changed, read_workflow
from .comfyui_process import PACK, RunningServer, running_server
from .console import progress, run_command, say
from .invocation import same_command, say_next
from .options import Json, Seed

GATE = "ADiff_QualityGate"
WORKFLOW = PACK / "workflows" / "4_all_in_one.json"
SPARE_SHARE, SPARE_PAIRS = 0.5, 2  # made beyond what is missing, since the quality gate leaves some out
NORMALS = 24  # photos of a category, each of which a job uses once
TRIES_PER_PAIR = GenerationConfig().tries_per_pair


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
    """As `run_demo`, by jobs of the example workflow "everything in one graph" on a server of its own.

    `comfyui` is a folder of ComfyUI; the server's own folders lie in `out/comfyui`. Raises ValueError where
    it does not start, or a defect type does not reach `count` pairs; what was made stays.
    """
    with running_server(comfyui, out / "comfyui") as server:
        on_stage("ComfyUI", 1, 1, f"runs at {server.url} while the demo does")
        asyncio.run(_queue_types(server, count, seed, on_stage))
        saved = server.base / "output" / "anomalydiffusion"
        artifact = max(saved.glob("*.safetensors"))
        few_shot = server.base / "input" / "anomalydiffusion_demo"
    return _summary(few_shot, artifact, saved / "dataset", load_artifact(artifact))


async def _queue_types(server: RunningServer, count: int, seed: int, on_stage: OnStage) -> None:
    dataset = server.base / "output" / "anomalydiffusion" / "dataset"
    async with ComfyUIServer.connected(server.url) as connection:
        prompt = as_prompt(read_workflow(WORKFLOW), await connection.information())
        for category, (_, _, defects) in CATEGORIES.items():
            for defect in defects:
                defect_type, tries = f"{category}/{defect}", 0
                while (accepted := _pairs_of(dataset, category, defect)) < count:
                    if tries >= TRIES_PER_PAIR * count:
                        raise ValueError(
                            f"{defect_type} has {accepted} of {count} pairs, {tries} tried: see {dataset}."
                        )
                    pairs = min(math.ceil((1 + SPARE_SHARE) * (count - accepted)) + SPARE_PAIRS, NORMALS)
                    job = changed(prompt, _assignments(defect_type, pairs, seed + accepted + tries))
                    await _run_job(connection, job, defect_type, on_stage)
                    tries += pairs


async def _run_job(connection: ComfyUIServer, job: Prompt, defect_type: str, on_stage: OnStage) -> None:
    """Runs a job to its end, also where its quality gate ends it, having accepted nothing."""
    try:
        await connection.run(job, lambda node, i, n: on_stage(f"{defect_type}: {node}", i, n, ""))
    except JobFailed as failure:
        if failure.node != GATE:
            raise


def _pairs_of(dataset: Path, category: str, defect: str) -> int:
    rows = read_manifest(dataset)
    return sum((row["category"], row["defect"]) == (category, defect) for row in rows)


def _assignments(defect_type: str, pairs: int, seed: int) -> list[str]:
    """What a job of one defect type changes in the workflow; its trainings stay as they are."""
    return [
        f"Defect type.value={defect_type}",
        f"Normal photos.category={defect_type.partition('/')[0]}",
        f"Normal photos.normal_count={pairs}",
        f"ADiff_GenerateMasks.count={pairs}",
        f"ADiff_GenerateMasks.seed={seed}",
        f"ADiff_KSampler.seed={seed}",
    ]


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
