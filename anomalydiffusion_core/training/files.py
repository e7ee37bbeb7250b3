"""The files of one training: the artifact, beside it its LoRA for ComfyUI, and a folder of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..method.artifact import export_lora, save_artifact
from .checkpoint import Checkpoints
from .config import CHECKPOINT_MINUTES, TrainingConfig
from .jobs import check_extension
from .processes import ALONE, Processes
from .stage import TrainingOutcome


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training is kept while it runs, at most every `minutes`, and what it writes in the end."""

    artifact: Path
    minutes: float = CHECKPOINT_MINUTES

    @property
    def lora(self) -> Path:
        """Written where the base was adapted."""
        return self.artifact.with_suffix(".lora.safetensors")

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.artifact.with_suffix(".training"), self.minutes)

    def check(self, config: TrainingConfig, extends: bool, resume: bool) -> None:
        """Before anything is loaded. Raises ValueError where parts of a training exclude each other; where
        there is nothing to resume, or something that nobody asked for; and where a training that was begun
        with adaptation would go on without, or the reverse.
        """
        check_extension(config, extends)
        self.checkpoints.check(resume)
        adapts = config.adaptation is not None
        if resume and adapts != self.checkpoints.has("normals"):
            how = "without" if adapts else "with"
            raise ValueError(
                f"The training in {self.checkpoints.folder} was begun {how} --adapt: give the same again, or "
                "train to another name."
            )

    def save(self, outcome: TrainingOutcome, processes: Processes = ALONE) -> None:
        """Writes what was learned, by the first of several processes."""
        processes.first(lambda: save_artifact(outcome.learned, self.artifact))
        if outcome.learned.adapter:
            processes.first(lambda: export_lora(outcome.learned, self.lora))
