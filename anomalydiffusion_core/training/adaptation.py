"""The base adapted to a dataset's normal photos: a low-rank update of its attention (LoRA, Hu et al., 2021),
learned by the base's own loss on views of them, before defects are learned on the adapted base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..dataset.layout import Dataset
from ..dataset.photos import file_hash
from ..dataset.views import ViewPool, make_normal_views
from ..method.latent_diffusion import PLACEHOLDER, Adaptable, LatentDiffusion
from ..method.templates import PHOTO_TEMPLATES
from .config import AdaptationConfig, FitConfig
from .losses import unmasked_loss
from .stage import End, Stage
from .task import Batch, sampled_from_noise


class AdaptationTask:
    """An adapter's parameters, on views of normal photos whose types are categories."""

    def __init__(
        self,
        base: LatentDiffusion,
        pool: ViewPool,
        adapter: dict[str, nn.Parameter],
        config: AdaptationConfig = AdaptationConfig(),
    ) -> None:
        self.base, self.pool, self.adapter, self.config = base, pool, adapter, config

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.adapter.values()), "lr": self.config.rate}]

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        return normal_loss(self.base, pool, batch)

    @torch.no_grad()
    def preview(self, rows: Tensor) -> Tensor:
        """Normal photos invented from noise, of the categories of `rows`."""
        context = self.base.encode_prompts([_prompt(self.pool, row, 0) for row in rows.tolist()])
        return sampled_from_noise(self.base, context, self.pool)


def normal_loss(base: LatentDiffusion, pool: ViewPool, batch: Batch) -> Tensor:
    """The base's own loss (B,) on views of normal photos whose types are categories.

    Half of the prompts are empty, so that the unconditional branch of guidance is adapted, too.
    """
    number, rows = batch.template, batch.rows.tolist()
    prompts = ["" if (number + row) % 2 else _prompt(pool, row, number // 2) for row in rows]
    latents = pool.latents[batch.rows].to(base.device)
    return unmasked_loss(base, latents, batch, base.encode_prompts(prompts))


def _prompt(pool: ViewPool, row: int, template: int) -> str:
    category = pool.names[int(pool.types[row])].replace("_", " ")
    return PHOTO_TEMPLATES[template % len(PHOTO_TEMPLATES)].replace(PLACEHOLDER, category)


def adapt_to_normals(
    base: LatentDiffusion,
    dataset: Dataset,
    config: AdaptationConfig,
    image_size: int,
    *,
    stage: Stage | None = None,
) -> End:
    """Adapts the base, for good, to the training normals of all categories together, seen in views of
    `image_size` pixels.

    Raises ValueError where there are none in `train/good`, where the base is adapted already, and where it is
    of a kind that cannot be.
    """
    base, stage = adaptable(base), stage or Stage("normals")
    stage.tell("reading normal photos and making views")
    generator = torch.Generator().manual_seed(config.seed)
    pool = normal_views(base, dataset, config, image_size, config.views_per_photo, generator=generator)
    with base.adapting(config.rank, generator) as parameters:
        end = stage.train(AdaptationTask(base, pool, parameters, config), config)
        adapter = copied(parameters)
    base.adapt(adapter)
    return end


def adaptable(base: LatentDiffusion) -> Adaptable:
    """The base; raises ValueError where it is of a kind whose weights cannot be updated."""
    if not isinstance(base, Adaptable):
        raise ValueError("This base cannot be adapted: give one of load_base, or learn tokens alone.")
    return base


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter of the parameters' values."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def normal_views(
    base: LatentDiffusion,
    dataset: Dataset,
    config: FitConfig,
    image_size: int,
    most: int,
    *,
    generator: torch.Generator,
) -> ViewPool:
    """Views of the training normals, as many as a training of `config` can use, and at `most` so many of each
    photo; raises ValueError where there are no photos.
    """
    photos = training_normals(dataset)
    used = config.steps * config.batch_size * config.accumulate // sum(map(len, photos.values()))
    return make_normal_views(base, photos, max(1, min(most, used)), image_size, generator=generator)


def training_normals(dataset: Dataset) -> dict[str, tuple[Path, ...]]:
    """The training normals of each category that has defect pairs; raises ValueError where there are none."""
    photos = {
        name: category.training_normals
        for name, category in dataset.categories.items()
        if category.pairs and category.training_normals
    }
    if not photos:
        raise ValueError(
            f"{dataset.root} has no normal photos to adapt the base to: add some under train/good, or learn "
            "tokens alone."
        )
    return photos


def normals_fingerprint(dataset: Dataset) -> str:
    """A hash of the files that the base would be adapted to."""
    photos = training_normals(dataset)
    lines = [f"{name} {file_hash(path)}" for name, paths in photos.items() for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
