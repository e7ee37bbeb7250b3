"""A training in ComfyUI that may be stopped: where it is kept, and what it gives then."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import folder_paths
from comfy.model_management import InterruptProcessingException

from ...anomalydiffusion_core.training.checkpoint import Checkpoints
from ...anomalydiffusion_core.training.config import FitConfig
from ...anomalydiffusion_core.training.jobs import TrainingJob
from ...anomalydiffusion_core.training.stage import End, Stage
from .training_preview import TrainingPreview

FOLDER = Path("anomalydiffusion") / "training"  # below ComfyUI's output folder


def kept_training(
    name: str,
    job: TrainingJob,
    config: FitConfig,
    minutes: float,
    *,
    keep_best: bool,
    preview: TrainingPreview,
) -> tuple[Checkpoints, Stage]:
    """One training of a job by `config`, which `preview` shows, and where it is kept: queued again with just
    these settings, it goes on from there. A cancel ends it, or, where it is to `keep_best`, its stage alone.
    """
    origin = job.origin()
    settings = json.dumps([name, origin, asdict(config)], sort_keys=True)
    folder = hashlib.sha256(settings.encode()).hexdigest()[:16]
    checkpoints = Checkpoints(Path(folder_paths.get_output_directory()) / FOLDER / folder, minutes)
    stage = Stage(name, preview.on_stage, preview.monitor, checkpoints.stage(name, origin))
    if keep_best:
        stage.interrupts = (*stage.interrupts, InterruptProcessingException)
    return checkpoints, stage


def ended(end: End, checkpoints: Checkpoints, keep_best: bool) -> str:
    """A word on a training that did not come to its end; of one that did, the checkpoints go.

    Raises ValueError where a problem stopped it, and nobody asked for the best so far.
    """
    if end.problem and not keep_best:
        raise ValueError(end.problem)
    if end.finished:
        checkpoints.remove()
        return ""
    return f"{end.problem or 'Cancelled.'} This is the best so far. "
