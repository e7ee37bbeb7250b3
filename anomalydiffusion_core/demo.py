"""The demo: a few-shot dataset of its own, training, masks, generation and report on the embedded base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .artifact import load_artifact, save_artifact
from .dataset.layout import find_dataset
from .diffusers_model import load_base
from .generation import GenerationConfig
from .pipeline import OnStage, generate_all, train_model
from .report import write_report
from .tiny_base.few_shot import write_few_shot_dataset
from .training import TrainingConfig

SIZE = 128  # pixels per side
TRAIN_SHARE = 0.6  # of ten pairs per defect: six train, four measure
TRAINING = TrainingConfig(steps=500, image_size=SIZE)
MASK_STEPS = 300


def run_demo(out: Path, count: int, seed: int, on_stage: OnStage) -> dict[str, Any]:
    """Runs or continues the demo in `out`: `count` accepted pairs of each of four defect types; returns a
    summary.
    """
    few_shot, artifact, generated = out / "few_shot", out / "demo.safetensors", out / "generated"
    write_few_shot_dataset(few_shot, SIZE, seed=seed)
    base = load_base("tiny")
    if not artifact.exists():
        outcome = train_model(base, find_dataset(few_shot), TRAINING, MASK_STEPS, TRAIN_SHARE, on_stage)
        if outcome.interrupted:  # kept, but not taken for a finished training by the next run
            save_artifact(outcome.model, out / "interrupted.safetensors")
            raise KeyboardInterrupt
        save_artifact(outcome.model, artifact)
    model = load_artifact(artifact, base.fingerprint)
    improvement = model.training.get("improvement")
    config = GenerationConfig(seed=seed)
    rows = generate_all(base, model, artifact, few_shot, None, None, count, generated, config, on_stage)
    figures = write_report(generated, generated / "report.html", model)
    return {
        "few_shot": str(few_shot),
        "artifact": str(artifact),
        "generated": str(generated),
        "pairs": len(rows),
        "report": str(generated / "report.html"),
        "improvement": improvement,
        **figures,
    }
