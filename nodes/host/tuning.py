"""Settings of defect types by ComfyUI's MODEL, CLIP and VAE: the core's tries, with progress and Cancel."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ...anomalydiffusion_core.dataset.layout import Dataset
from ...anomalydiffusion_core.generation.runs import RunWatch
from ...anomalydiffusion_core.generation.tuning import in_words, tunable, tune
from ...anomalydiffusion_core.method.embeddings import Learned
from .base_model import load_for
from .pair_generation import SamplingModel


def tuned(
    model: ModelPatcher, clip: CLIP, vae: VAE, learned: Learned, *, dataset: Dataset, tries: int
) -> tuple[Learned, list[str], list[str]]:
    """A copy of what was learned that holds the settings of the dataset's types; and in lines what is kept,
    and what was tried. Raises ValueError where the embeddings are another base's.
    """
    base, learned = load_for(learned, model, clip, vae, SamplingModel), learned.copied()
    base.size = learned.image_size
    types = [name for name in sorted(learned.anomaly) if name.partition("/")[0] in dataset.categories]
    known = tunable(learned, dataset, types)
    bar, tried, stages = comfy.utils.ProgressBar(max(1, len(known))), list[str](), dict[str, float]()

    def on_stage(stage: str, done: int, total: int, note: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done / total != stages.get(stage, 0.0):
            tried.append(f"{stage.removesuffix(' settings')}, {note}")
        stages[stage] = done / total
        bar.update_absolute(round(100 * sum(stages.values())), 100 * bar.total)

    def on_step(*_: object) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    tune(base, learned, dataset, types, RunWatch(on_stage, on_step), tries=tries)
    kept = []
    for name in types:
        few = "fewer than three of its training pairs, or no normal photos, are in the dataset"
        why = "hardly a try was accepted" if name in known else few
        found = learned.tunings.get(name)
        kept.append(f"{name}: {in_words(found) if found else f'as usual, since {why}'}")
    return learned, kept, tried
