"""The other reference of the training benchmark: what one step of the authors' released code computes.

Each step reads the pairs, augments them, encodes the views with sampled latents, and runs the whole text
encoder; the loss is the mean over all cells, and one Adam has all parameters. Their spatial encoder is
released_encoder.py.
"""

from __future__ import annotations

import random
from typing import cast

import torch
from textual_inversion_step import sampling_encoder
from torch import nn

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.augmentation import random_view
from anomalydiffusion_core.dataset.layout import Pair
from anomalydiffusion_core.dataset.views import ViewPool, read_pair
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder
from anomalydiffusion_core.training.config import TrainingConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.task import Batch

LEARNING_RATE = 2e-2  # 5e-3 for each of the batch's four


class ReleasedStep:
    """The released training loop, one `step` at a time."""

    def __init__(
        self,
        base: DiffusersModel,
        pairs: dict[str, list[Pair]],
        encoders: dict[str, nn.Module],
        config: TrainingConfig,
    ) -> None:
        self.base, self.config = base, config
        self.pairs = [(number, pair) for number, group in enumerate(pairs.values()) for pair in group]
        self.names = list(pairs)
        self.generator = torch.Generator().manual_seed(config.defects.seed)
        self.encode = sampling_encoder(base)
        self.task = AnomalyTask(
            base, self._views(), cast(dict[str, SpatialEncoder], encoders), config.defects
        )
        parameters = [p for group in self.task.parameter_groups() for p in group["params"]]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)

    def step(self) -> float:
        """Trains once; returns the loss."""
        views = self._views()
        device = self.base.device
        t = torch.randint(0, self.base.schedule.steps, (len(views),), device=device)
        noise = torch.randn(views.latents.shape, device=device)
        batch = Batch(torch.arange(len(views)), t, noise, random.randrange(1 << 16))
        loss = self.task.loss(views, batch).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _views(self) -> ViewPool:
        chosen = random.choices(self.pairs, k=self.config.defects.batch_size)
        images, masks = [], []
        for _, pair in chosen:
            photo, mask = read_pair(pair)
            image, mask = random_view(photo.tensor(), mask, self.config.image_size, self.generator)
            images.append(image)
            masks.append(mask)
        latents, types = self.encode(torch.stack(images)), torch.tensor([n for n, _ in chosen])
        return ViewPool(latents, torch.stack(masks).to(self.base.device), types, self.names)
