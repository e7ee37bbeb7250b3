"""What `fitting.fit` trains: a task, the batches that it learns from, and previews of what it has learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..dataset.views import ViewPool
from ..method.conditioning import empty_context
from ..method.latent_diffusion import Context, LatentDiffusion
from ..method.reweighting import AARConfig
from ..method.sampling import SamplingConfig, SamplingRequest, image_generator, sample

PREVIEW_SAMPLING = SamplingConfig(steps=10, guidance=2.5, aar=AARConfig("off"))  # quick


@dataclass(frozen=True)
class Batch:
    """Views of a pool, and how each is noised: its rows (B,), timesteps `t` (B,) and noise (B,C,h,w); and the
    number of the prompt template.
    """

    rows: Tensor
    t: Tensor
    noise: Tensor
    template: int = 0

    def part(self, rows: slice | Tensor, device: torch.device) -> Batch:
        """Some of its views; timesteps and noise on a device."""
        return Batch(self.rows[rows], self.t[rows].to(device), self.noise[rows].to(device), self.template)


class Task(Protocol):
    """Something `fit` can train: parameters, and what they cost."""

    base: LatentDiffusion

    @property
    def pool(self) -> ViewPool: ...

    def parameter_groups(self) -> list[dict]:
        """What is learned, as the optimiser takes it: parameters and their peak rate `lr`."""
        ...

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        """Loss of each view (B,) of a batch of `pool`."""
        ...

    def preview(self, rows: Tensor) -> Tensor:
        """The pool's `rows` sampled anew with what was learned so far, latents (B,C,h,w)."""
        ...


def sample_batch(pool: ViewPool, count: int, generator: torch.Generator) -> Batch:
    """`count` views of as many types as possible, with timesteps one in each of `count` equal strata."""
    types = torch.randperm(len(pool.names), generator=generator)
    rows = [_any_row(pool, int(types[i % len(types)]), generator) for i in range(count)]
    t = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count * 1000
    noise = torch.randn((count, *pool.latents.shape[1:]), generator=generator)
    template = int(torch.randint(1 << 16, (), generator=generator))
    return Batch(torch.tensor(rows), t.long(), noise, template)


def _any_row(pool: ViewPool, type_number: int, generator: torch.Generator) -> int:
    rows = (pool.types == type_number).nonzero()[:, 0]
    return int(rows[torch.randint(len(rows), (), generator=generator)])


def sampled_from_noise(base: LatentDiffusion, context: Context, pool: ViewPool) -> Tensor:
    """A latent of the pool's size for each row of a context, (B,C,h,w), from the same noise each time."""
    size = pool.latents.shape[-2], pool.latents.shape[-1]
    return sample(base, preview_request(base, context), size, PREVIEW_SAMPLING)


def preview_request(base: LatentDiffusion, context: Context) -> SamplingRequest:
    """A request for one latent per row of a context, with the same noise each time."""
    count = len(context.hidden)
    generators = [image_generator(0, i, "redrawn") for i in range(count)]
    return SamplingRequest(context, empty_context(base, count), generators)
