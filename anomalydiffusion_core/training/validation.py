"""Measurements on held-out pairs: what a training has not seen, and how much better it became there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..dataset.views import ViewPool
from .history import History
from .task import Batch, Task


class Validation:
    """Losses on held-out pairs at fixed timesteps and noise, so that two measurements pair up.

    They are taken `every` so many steps (0: only before and after); after `patience` of them without a better
    one (0: never) training stops.
    """

    def __init__(
        self, pool: ViewPool, repeats: int = 4, seed: int = 1234, *, every: int = 0, patience: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pool, self.repeats, self.every, self.patience = pool, repeats, every, patience
        rows = torch.arange(len(pool)).repeat_interleave(repeats)
        strata = torch.arange(repeats).repeat(len(pool))
        t = ((strata + torch.rand(len(rows), generator=generator)) / repeats * 1000).long()
        noise = torch.randn((len(rows), *pool.latents.shape[1:]), generator=generator)
        self.batch = Batch(rows, t, noise)

    def due(self, step: int) -> bool:
        """Whether to measure before that step is taken."""
        return step % self.every == 0 if self.every else step == 0

    def gave_up(self, history: History) -> bool:
        """Whether patience is at an end."""
        best = history.best()
        waited = 0 if best is None else len(history.validation) - 1 - best
        return 0 < self.patience <= waited

    @torch.no_grad()
    def measure(self, task: Task) -> Tensor:
        """Loss of every pair at each of its timesteps, (N, repeats)."""
        parts = [
            task.loss(self.pool, self.batch.part(part, task.base.device))
            for part in torch.arange(len(self.batch.rows)).split(8)
        ]
        return torch.cat(parts).cpu().view(-1, self.repeats)


@dataclass(frozen=True)
class Improvement:
    """Held-out loss before and after training, paired: mean change with its 95 % interval over pairs."""

    before: float
    after: float
    relative: float  # (after - before) / before; negative is better
    low: float
    high: float


def in_words(improvement: Improvement | None, trained: int, measured: int) -> str:
    """Whether a training helped, for people: so many pairs `trained`, so many only `measured` it."""
    counts = (
        f"{trained} {'pairs' if trained > 1 else 'pair'} to train on, {measured or 'none'} to measure on."
    )
    if improvement is None:
        reason = "The training was interrupted before it measured, so" if measured else "So"
        return f"{counts} {reason} nothing says whether the training helped: judge it by what it makes."
    change = (
        f"on {'these' if measured > 1 else 'that one'}, the loss went from {improvement.before:.4f} to "
        f"{improvement.after:.4f} ({100 * improvement.relative:+.1f} %"
    )
    if measured == 1:  # an interval over one pair has no width
        return f"{counts} One pair says little about whether the training helped: {change})."
    change += f"; 95 % interval {100 * improvement.low:+.1f} to {100 * improvement.high:+.1f} %)."
    if improvement.high < 0:
        return f"{counts} The training helped: {change}"
    if improvement.low > 0:
        return f"{counts} The training did harm: {change} Give more pairs, or fewer steps."
    return f"{counts} Whether the training helped is open: {change}"


def improvement_of(history: History) -> Improvement | None:
    """From before training to its best measurement; none where nothing was held out."""
    best = history.best()
    if best is None:
        return None
    return paired_improvement(history.validation[0][1].numpy(), history.validation[best][1].numpy())


def paired_improvement(before: np.ndarray, after: np.ndarray, resamples: int = 4000) -> Improvement:
    """Relative change of the mean loss (N, repeats), with a 95 % bootstrap interval over the N pairs."""
    rng = np.random.default_rng(0)
    before, after = before.mean(1), after.mean(1)
    rows = rng.integers(0, len(before), (resamples, len(before)))
    ratios = after[rows].mean(1) / before[rows].mean(1) - 1
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Improvement(
        float(before.mean()),
        float(after.mean()),
        float(after.mean() / before.mean() - 1),
        float(low),
        float(high),
    )
