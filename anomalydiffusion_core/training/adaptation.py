"""The base adapted to a dataset's normal photos: a low-rank update of its attention (LoRA, Hu et al., 2021),
learned by the base's own loss on views of them, before defects are learned on the adapted base.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..bases.diffusers_model import DiffusersModel
from ..dataset.layout import Dataset
from ..dataset.photos import file_hash
from ..dataset.views import ViewPool, make_normal_views
from ..method.embeddings import Learned
from ..method.latent_diffusion import PLACEHOLDER, LatentDiffusion
from ..method.templates import PHOTO_TEMPLATES
from .defects import TrainingConfig, drawn_from_noise, unmasked_loss
from .fitting import training_record
from .jobs import TrainingOutcome, empty_model, origin_of, train_model
from .stage import End, Stage, TrainingRun

RANK = 8
RATE = 1e-3  # 3e-3 learns no more of leather in 100 steps


class AdaptationTask:
    """An adapter's parameters, on views of normal photos whose types are categories.

    Half of the prompts are empty, so that the unconditional branch of guidance is adapted, too.
    """

    def __init__(self, base: LatentDiffusion, pool: ViewPool, adapter: dict[str, nn.Parameter]) -> None:
        self.base, self.pool, self.adapter = base, pool, adapter

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        return [{"params": list(self.adapter.values()), "lr": RATE}]

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        prompts = ["" if (template + row) % 2 else _prompt(pool, row, template // 2) for row in rows.tolist()]
        latents = pool.latents[rows].to(self.base.device)
        return unmasked_loss(self.base, latents, t, noise, self.base.encode_prompts(prompts))

    @torch.no_grad()
    def redraw(self, rows: Tensor) -> Tensor:
        """Normal photos invented from noise, of the categories of `rows`."""
        context = self.base.encode_prompts([_prompt(self.pool, row, 0) for row in rows.tolist()])
        return drawn_from_noise(self.base, context, self.pool)


def _prompt(pool: ViewPool, row: int, template: int) -> str:
    category = pool.names[int(pool.types[row])].replace("_", " ")
    return PHOTO_TEMPLATES[template % len(PHOTO_TEMPLATES)].replace(PLACEHOLDER, category)


def train_adapted(
    base: DiffusersModel,
    dataset: Dataset,
    config: TrainingConfig,
    mask_steps: int,
    share: float,
    adapt_steps: int,
    run: TrainingRun = TrainingRun(),
    start: Learned | None = None,
) -> TrainingOutcome:
    """Adapts the base to the dataset's normal photos by `adapt_steps` steps, then learns on it as
    `train_model` does; the outcome holds the adapter.

    Interrupts and problems of the adaptation end the whole, as they do there.
    """
    origin = origin_of(base, dataset, share, run.processes)
    origin["normals"] = _fingerprint(training_normals(dataset))
    adaptation, stage = replace(config, steps=adapt_steps), run.stage("normals", origin)
    end = adapt_to_normals(base, dataset, adaptation, stage)
    outcome = TrainingOutcome(empty_model(base, dataset, config), None, end)
    try:
        if end.finished:
            outcome = train_model(base, dataset, config, mask_steps, share, run, start=start)
    except KeyboardInterrupt:  # between two trainings
        outcome.end = End(interrupted=True)
    outcome.learned.training["normals"] = training_record(adaptation, stage.monitor.history)
    return outcome


def adapt_to_normals(
    base: DiffusersModel,
    dataset: Dataset,
    config: TrainingConfig,
    stage: Stage | None = None,
) -> End:
    """Adapts the base, for good, to the training normals of all categories together.

    Raises ValueError where there are none in `train/good`, and where the base is adapted already.
    """
    photos, stage = training_normals(dataset), stage or Stage("normals")
    stage.tell("reading normal photos and making views")
    generator = torch.Generator().manual_seed(config.seed)
    pool = make_normal_views(base, photos, _views_per_photo(config, photos), config.image_size, generator)
    with base.adapting(RANK, generator) as parameters:
        task = AdaptationTask(base, pool, parameters)
        end = stage.train(task, config)
        adapter = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    base.adapt(adapter)
    return end


def training_normals(dataset: Dataset) -> dict[str, tuple[Path, ...]]:
    """The training normals of each category that has defect pairs; raises ValueError where there are none."""
    photos = {
        name: category.training_normals
        for name, category in dataset.categories.items()
        if category.pairs and category.training_normals
    }
    if not photos:
        raise ValueError(
            f"{dataset.root} has no normal photos to adapt the base to: add some under train/good, or train "
            "without --adapt."
        )
    return photos


def _views_per_photo(config: TrainingConfig, photos: dict[str, tuple[Path, ...]]) -> int:
    """No more than the steps can use."""
    used = config.steps * config.batch_size * config.accumulate
    return max(1, min(config.views_per_pair, used // sum(map(len, photos.values()))))


def _fingerprint(photos: dict[str, tuple[Path, ...]]) -> str:
    lines = [f"{name} {file_hash(path)}" for name, paths in photos.items() for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
