"""What the demo trains on its own few-shot dataset, and the embeddings of it that come with the pack."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..dataset.layout import find_dataset
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStage
from ..procedural.few_shot import write_few_shot_dataset
from ..training.config import DEMO
from ..training.jobs import TrainingJob
from ..training.stage import TrainingOutcome, TrainingRun

SIZE = DEMO.image_size


def train_demo(base: LatentDiffusion, few_shot: Path, on_stage: OnStage = lambda *_: None) -> TrainingOutcome:
    """Learns the demo's four defect types from its few-shot dataset."""
    return TrainingJob(base, find_dataset(few_shot), DEMO).run(TrainingRun(on_stage))


def demo_embeddings(base: LatentDiffusion) -> Learned:
    """What the demo learns on a base, for those who want to generate at once."""
    with tempfile.TemporaryDirectory() as folder:
        write_few_shot_dataset(Path(folder), SIZE)
        return train_demo(base, Path(folder)).learned
