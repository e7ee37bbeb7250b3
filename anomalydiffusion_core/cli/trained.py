"""What the command `train` does once something was learned: says so, finds settings, says how to go on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..dataset.layout import normals_folder
from ..training.processes import Processes
from .console import interrupted_between, progress, say
from .invocation import free_name, same_command, say_next

if TYPE_CHECKING:
    from ..method.embeddings import Learned
    from ..training.files import TrainingFiles
    from ..training.jobs import TrainingJob
    from ..training.stage import TrainingOutcome


@dataclass(frozen=True)
class Trained:
    """A training's end, and what the commands after it are made of."""

    context: typer.Context
    dataset: Path
    base: str | None
    files: TrainingFiles
    tune: bool = True

    def say(self, outcome: TrainingOutcome, job: TrainingJob, processes: Processes) -> None:
        """Says how to go on: with a training that was cut off, else with generating; what went wrong says so
        itself.
        """
        if outcome.end.interrupted:
            again = same_command(self.context, "--resume")
            again = again if processes.count == 1 else "the same launch, with --resume"
            say(f"Interrupted; this is the best so far. Go on with:\n  {again}")
        if not outcome.end.finished:
            return
        generated = free_name(self.files.artifact, "generated")
        if self.dataset.resolve() in generated.resolve().parents:
            generated = free_name(self.dataset.resolve(), "generated")
        words: list[object] = ["generate", self.files.artifact, self.dataset, "--out", generated]
        words += ["--count", 50, *(["--base", self.base] if self.base else [])]
        if set(outcome.learned.anomaly) - set(job.dataset.by_type()):  # of another dataset, that was extended
            words += [word for name in job.dataset.by_type() for word in ("--type", name)]
        if not outcome.learned.mask:
            words += ["--mask-sources", "real=1,procedural=1"]
        lacking = [
            str(normals_folder(self.dataset, name))
            for name, category in job.dataset.categories.items()
            if category.pairs and not category.normals
        ]
        if lacking:
            say(f"Pairs are made on photos of good parts: put some into {' and '.join(lacking)}.")
        say_next("Next, make pairs", *words)

    def announce(self, outcome: TrainingOutcome, job: TrainingJob) -> dict[str, Any]:
        """Says how a training ended; returns the same for the summary."""
        say(f"Artifact: {self.files.artifact}")
        summary: dict[str, Any] = {"interrupted": outcome.end.interrupted, "shortfall": outcome.end.problem}
        if outcome.learned.adapter:
            say(f"LoRA for ComfyUI: {self.files.lora}")
            summary["lora"] = str(self.files.lora)
        if outcome.learned.anomaly:
            say(job.verdict(outcome))
        if outcome.improvement:
            summary["improvement"] = vars(outcome.improvement)
        return summary

    def tuned(self, learned: Learned, job: TrainingJob, processes: Processes) -> dict[str, Any]:
        """Finds the settings of the types that were learned, and keeps them in the artifact; returns them for
        the summary. Each of several processes tries the same, and waits for none.
        """
        from ..generation.runs import RunWatch
        from ..generation.tuning import in_words, tune
        from ..method.artifact import save_artifact

        new, interrupted = list(job.split()[0]), False
        try:
            with progress() as on_stage, interrupted_between(on_stage) as on_stage:
                tune(job.base, learned, job.dataset, new, RunWatch(on_stage))
        except KeyboardInterrupt:
            interrupted = True
            say(
                "Interrupted: the artifact is whole; types whose settings were not tried keep the usual ones."
            )
        processes.first(lambda: save_artifact(learned, self.files.artifact))
        tunings = {name: learned.tunings[name] for name in new if name in learned.tunings}
        for name, tuning in tunings.items():
            say(f"{name} is made {in_words(tuning)}")
        settings = {name: asdict(tuning) for name, tuning in tunings.items()}
        return {"tunings": settings, "interrupted": interrupted}
