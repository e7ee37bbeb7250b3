"""A training to look at in TensorBoard while it runs: losses, gradients, rates, and previews."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..method.latent_diffusion import LatentDiffusion
from .history import History

PREVIEW_EVERY = 50  # steps


class TensorBoardLog:
    """Writes the trainings of one run into `folder`; raises ValueError where TensorBoard is not installed."""

    def __init__(self, folder: Path, base: LatentDiffusion) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed: pip install tensorboard.") from error
        self.writer, self.base = SummaryWriter(str(folder)), base
        self.known: dict[str, int] = {}  # measurements noted, by stage

    def step(self, stage: str, history: History) -> None:
        """Notes the last step of a training."""
        for name in ("loss", "gradient", "rate"):
            self.writer.add_scalar(f"{stage}/{name}", getattr(history, name)[-1], len(history.loss))
        self.measured(stage, history)

    def measured(self, stage: str, history: History) -> None:
        """Notes measurements on held-out pairs that are new."""
        for step, losses in history.validation[self.known.get(stage, 0) :]:
            self.writer.add_scalar(f"{stage}/held_out_loss", float(losses.mean()), step)
        self.known[stage] = len(history.validation)

    @torch.no_grad()
    def show(self, stage: str, step: int, real: Tensor, sampled: Tensor) -> None:
        """Latents (N,C,h,w) of views, and their previews below."""
        rows = [self.base.decode(latents).clamp(-1, 1) / 2 + 0.5 for latents in (real, sampled)]
        self.writer.add_images(f"{stage}/real_above_preview", torch.cat(rows, 2).float().cpu(), step)

    def close(self) -> None:
        """Writes what is not on disk yet."""
        self.writer.close()
