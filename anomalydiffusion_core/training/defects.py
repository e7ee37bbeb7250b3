"""Masked textual inversion: e_a per defect type and one E for all (Eq. 5); e_m per type on mask pictures
(Eq. 9).

The base stays frozen. A task says what is learned and its loss; `fitting.fit` runs any task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..dataset.views import ViewPool
from ..method.blending import latent_mask
from ..method.conditioning import anomaly_context, empty_context, mask_context
from ..method.embeddings import Learned, TokensByEncoder, starting_tokens
from ..method.inpainting import Inpainting
from ..method.latent_diffusion import Context, LatentDiffusion
from ..method.reweighting import AARConfig
from ..method.sampling import SamplingConfig, SamplingRequest, image_generator, inpaint, sample
from ..method.spatial_encoder import SpatialEncoder
from ..method.templates import MASK_TEMPLATES, PHOTO_TEMPLATES

Normalisation = Literal["mask", "released", "unmasked"]
REDRAWING = SamplingConfig(steps=10, guidance=2.5, aar=AARConfig("off"))  # quick: to look at meanwhile


@dataclass(frozen=True)
class TrainingConfig:
    """How tokens are learned. Rates of tokens are per step, in units of the token table's root mean
    square. Raises ValueError where patience would wait for measurements that are never taken.
    """

    steps: int = 500
    batch_size: int = 4
    image_size: int = 256  # pixels per side of the views
    views_per_pair: int = 16  # the pair itself and random views of it
    refresh_every: int = 0  # steps after which other views are drawn, in the background; 0 = never
    anomaly_tokens: int = 8  # k
    mask_tokens: int = 4  # k'
    token_rate: float = 0.5
    encoder_rate: float = 1e-4  # of the spatial encoder
    warmup_steps: int = 20
    accumulate: int = 1  # batches whose gradients make one step
    checkpointing: bool = False  # activations of E and text encoder are computed again, not kept
    averaging: float = 0.0  # decay of the exponential moving average that is kept; 0 = the last values
    validate_every: int = 0  # steps between measurements on held-out pairs; 0 = only before and after
    patience: int = 0  # measurements without a better one after which training stops; 0 = never
    # "released": mean over all cells, as the authors' code has it; "unmasked": plain textual inversion's loss
    normalisation: Normalisation = "mask"
    spatial_encoder: bool = True  # without it e_a alone is learned, for comparison
    initial_words: str = "defect"  # tokens start around these words' mean
    minutes: float | None = None  # stop after this much wall-clock time
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patience and not self.validate_every:
            raise ValueError(
                f"Patience of {self.patience} counts measurements on held-out pairs, and none is taken on "
                "the way: say with validate_every after how many steps."
            )


class Task(Protocol):
    """Something `fit` can train."""

    base: LatentDiffusion

    @property
    def pool(self) -> ViewPool: ...

    def parameter_groups(self, config: TrainingConfig) -> list[dict]: ...

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        """Per-sample losses (B,) for rows of a pool, at timesteps t (B,) with the given noise."""
        ...

    def redraw(self, rows: Tensor) -> Tensor:
        """The pool's `rows` drawn anew with what was learned so far, latents (B,C,h,w)."""
        ...


def masked_loss(
    eps_hat: Tensor, eps: Tensor, m_z: Tensor, weight: Tensor, normalisation: Normalisation
) -> Tensor:
    """Eq. 5 per sample (B,): squared error where m_z (B,1,h,w) is 1, divided by mask area or (released) by
    all cells; or (unmasked) the mean over all cells.

    `weight` (B,1,1,1) turns noise error into the error of what the base predicts.
    """
    m_z = torch.ones_like(m_z) if normalisation == "unmasked" else m_z
    squared = (weight * m_z * (eps_hat - eps).square()).flatten(1).sum(1)
    channels = eps.shape[1]
    cells = torch.full_like(squared, m_z[0].numel()) if normalisation == "released" else m_z.flatten(1).sum(1)
    return squared / (channels * cells.clamp(min=1))


def unmasked_loss(base: LatentDiffusion, clean: Tensor, t: Tensor, noise: Tensor, context: Context) -> Tensor:
    """The loss per sample (B,) that bases are trained with, on clean latents (B,C,h,w)."""
    eps_hat = base.predict_noise(base.schedule.add_noise(clean, noise, t), t, context)
    return (base.schedule.loss_weight(t) * (eps_hat - noise).square()).flatten(1).mean(1)


class AnomalyTask:
    """e_a of every type in the pool, and E, unless it is `frozen`."""

    def __init__(
        self,
        base: LatentDiffusion,
        pool: ViewPool,
        encoders: dict[str, SpatialEncoder],
        config: TrainingConfig,
        frozen: bool = False,
    ) -> None:
        self.base, self.pool, self.checkpointing = base, pool, config.checkpointing
        self.normalisation: Normalisation = config.normalisation
        self.encoders = {
            name: encoder.to(base.device).train().requires_grad_(not frozen)
            for name, encoder in encoders.items()
        }
        self.tokens = _token_table(base, pool.names, config.anomaly_tokens, config)

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        encoders = [p for e in self.encoders.values() for p in e.parameters() if p.requires_grad]
        return [_token_group(self.base, self.tokens, config), {"params": encoders, "lr": config.encoder_rate}]

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        views = pool.part(rows, self.base.device)
        context = _recomputed(partial(self._context, views, template), self.checkpointing)
        return masked_loss(
            self.base.predict_noise(self.base.schedule.add_noise(views.latents, noise, t), t, context),
            noise,
            latent_mask(views.masks, self.base.factor),
            self.base.schedule.loss_weight(t),
            self.normalisation,
        )

    @torch.no_grad()
    def redraw(self, rows: Tensor) -> Tensor:
        """Defects drawn anew inside their masks, the rest of the photo as it is."""
        views = self.pool.part(rows, self.base.device)
        target = Inpainting(views.latents, latent_mask(views.masks, self.base.factor))
        context, empty = self._context(views, 0), empty_context(self.base, len(rows))
        return inpaint(self.base, target, SamplingRequest(context, empty, _generators(len(rows))), REDRAWING)

    def _context(self, views: ViewPool, template: int) -> Context:
        e_a = {name: table[views.types] for name, table in self.tokens.items()}
        prompt = PHOTO_TEMPLATES[template % len(PHOTO_TEMPLATES)]
        return anomaly_context(self.base, prompt, e_a, self.encoders, views.masks)

    def into(self, learned: Learned) -> None:
        """Copies what was learned into `learned`."""
        learned.anomaly |= _by_type(self.pool.names, self.tokens)
        learned.mask_areas |= self.pool.smallest_areas()
        learned.spatial_encoders |= {name: encoder.eval() for name, encoder in self.encoders.items()}


class MaskTask:
    """e_m of every type in a pool of mask pictures: plain textual inversion."""

    def __init__(self, base: LatentDiffusion, pool: ViewPool, config: TrainingConfig) -> None:
        self.base, self.pool, self.checkpointing = base, pool, config.checkpointing
        self.tokens = _token_table(base, pool.names, config.mask_tokens, config)

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        return [_token_group(self.base, self.tokens, config)]

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        views = pool.part(rows, self.base.device)
        context = _recomputed(partial(self._context, views, template), self.checkpointing)
        return unmasked_loss(self.base, views.latents, t, noise, context)

    @torch.no_grad()
    def redraw(self, rows: Tensor) -> Tensor:
        """Masks invented from noise, of the types of `rows`."""
        context = self._context(self.pool.part(rows, self.base.device), 0)
        return drawn_from_noise(self.base, context, self.pool)

    def _context(self, views: ViewPool, template: int) -> Context:
        e_m = {name: table[views.types] for name, table in self.tokens.items()}
        return mask_context(self.base, MASK_TEMPLATES[template % len(MASK_TEMPLATES)], e_m, len(views))

    def into(self, learned: Learned) -> None:
        """Copies what was learned into `learned`."""
        learned.mask |= _by_type(self.pool.names, self.tokens)


def _recomputed(context: Callable[[], Context], active: bool) -> Context:
    """The context; where `active`, computed once more for its gradient, which costs less than what it keeps
    meanwhile.
    """
    if not active or not torch.is_grad_enabled():
        return context()
    recomputed: Any = checkpoint(context, use_reentrant=False, preserve_rng_state=False)
    return recomputed


def _token_table(
    base: LatentDiffusion, names: list[str], count: int, config: TrainingConfig
) -> TokensByEncoder:
    """Starting vectors of every type, (types,count,d) per text encoder, asking for gradients."""
    generator = torch.Generator().manual_seed(config.seed)
    words = base.word_vectors(config.initial_words)
    rows = [starting_tokens(words, count, generator) for _ in names]
    return {
        encoder: torch.stack([row[encoder] for row in rows]).to(base.device).requires_grad_(True)
        for encoder in words
    }


def _token_group(base: LatentDiffusion, tokens: TokensByEncoder, config: TrainingConfig) -> dict:
    rms = max(float(v.square().mean().sqrt()) for v in base.word_vectors(config.initial_words).values())
    return {"params": list(tokens.values()), "lr": config.token_rate * rms}


def drawn_from_noise(base: LatentDiffusion, context: Context, pool: ViewPool) -> Tensor:
    """A latent of the pool's size for each row of a context, (B,C,h,w), from the same noise each time."""
    count, (height, width) = len(context.hidden), pool.latents.shape[-2:]
    return sample(
        base,
        SamplingRequest(context, empty_context(base, count), _generators(count)),
        (height, width),
        REDRAWING,
    )


def _generators(count: int) -> list[torch.Generator]:
    return [image_generator(0, i, "redrawn") for i in range(count)]


def _by_type(names: list[str], tokens: TokensByEncoder) -> dict[str, TokensByEncoder]:
    return {
        name: {encoder: table[i].detach().cpu().clone() for encoder, table in tokens.items()}
        for i, name in enumerate(names)
    }
