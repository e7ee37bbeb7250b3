"""Masked textual inversion: e_a per defect type and one E for all (Eq. 5); e_m per type on mask pictures
(Eq. 9).

The base stays frozen, or gets a low-rank update (LoRA, Hu et al., 2021) besides. A task says what is learned
and its loss; `fitting.fit` runs any task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..dataset.views import ViewPool
from ..method.blending import latent_mask
from ..method.conditioning import anomaly_context, mask_context
from ..method.embeddings import Learned, TokensByEncoder, starting_tokens
from ..method.inpainting import Inpainting
from ..method.latent_diffusion import Context, LatentDiffusion
from ..method.sampling import inpaint
from ..method.spatial_encoder import SpatialEncoder
from ..method.templates import MASK_TEMPLATES, PHOTO_TEMPLATES
from .adaptation import copied, normal_loss
from .config import BOTH, LORA, TOKENS, DefectConfig, EmbeddingConfig, MaskEmbeddingConfig
from .losses import masked_loss, unmasked_loss
from .task import PREVIEW_SAMPLING, Batch, preview_request, sampled_from_noise


class AnomalyTask:
    """e_a of every type in the pool, and E, unless it is `frozen`; or an `adapter` of the base, which also
    pays for views of `normals`, so that the ground stays; or both.
    """

    def __init__(
        self,
        base: LatentDiffusion,
        pool: ViewPool,
        encoders: dict[str, SpatialEncoder],
        config: DefectConfig,
        *,
        frozen: bool = False,
        adapter: Mapping[str, nn.Parameter] | None = None,
        normals: ViewPool | None = None,
    ) -> None:
        self.base, self.pool, self.config = base, pool, config
        self.adapter, self.normals = adapter or {}, normals
        frozen = frozen or config.learn == LORA
        self.encoders = {
            name: encoder.to(base.device).train().requires_grad_(not frozen)
            for name, encoder in encoders.items()
        }
        self.tokens = _token_table(base, pool.names, config)

    def parameter_groups(self) -> list[dict]:
        encoders = [p for e in self.encoders.values() for p in e.parameters() if p.requires_grad]
        groups = [
            _token_group(self.base, self.tokens, self.config),
            {"params": encoders, "lr": self.config.encoder_rate},
        ]
        of_base = {"params": list(self.adapter.values()), "lr": self.config.lora_rate}
        return {TOKENS: groups, LORA: [of_base], BOTH: [*groups, of_base]}[self.config.learn]

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        views, t, noise = pool.part(batch.rows, self.base.device), batch.t, batch.noise
        context = _recomputed(partial(self._context, views, batch.template), self.config.checkpointing)
        loss = masked_loss(
            self.base.predict_noise(self.base.schedule.add_noise(views.latents, noise, t), t, context),
            noise,
            latent_mask(views.masks, self.base.factor),
            self.base.schedule.loss_weight(t),
            normalisation=self.config.normalisation,
        )
        if self.normals is None or not torch.is_grad_enabled():  # measurements are of defects alone
            return loss
        return loss + normal_loss(self.base, self.normals, replace(batch, rows=_drawn(self.normals, batch)))

    @torch.no_grad()
    def preview(self, rows: Tensor) -> Tensor:
        """Other defects inside the masks, the rest of the photo as it is."""
        views = self.pool.part(rows, self.base.device)
        target = Inpainting(views.latents, latent_mask(views.masks, self.base.factor))
        request = preview_request(self.base, self._context(views, 0))
        return inpaint(self.base, target, request, PREVIEW_SAMPLING)

    def _context(self, views: ViewPool, template: int) -> Context:
        e_a = {name: table[views.types] for name, table in self.tokens.items()}
        prompt = PHOTO_TEMPLATES[template % len(PHOTO_TEMPLATES)]
        return anomaly_context(self.base, prompt, e_a, self.encoders, mask=views.masks)

    def into(self, learned: Learned) -> None:
        """Copies what was learned into `learned`."""
        learned.anomaly |= _by_type(self.pool.names, self.tokens)
        learned.mask_areas |= self.pool.smallest_areas()
        learned.spatial_encoders |= {name: encoder.eval() for name, encoder in self.encoders.items()}
        learned.adapter |= copied(self.adapter)


def _drawn(pool: ViewPool, batch: Batch) -> Tensor:
    """As many rows (B,) of a pool as a batch has, drawn by its template's number."""
    generator = torch.Generator().manual_seed(batch.template)
    return torch.randint(len(pool), (len(batch.rows),), generator=generator)


class MaskTask:
    """e_m of every type in a pool of mask pictures: plain textual inversion."""

    def __init__(self, base: LatentDiffusion, pool: ViewPool, config: MaskEmbeddingConfig) -> None:
        self.base, self.pool, self.config = base, pool, config
        self.tokens = _token_table(base, pool.names, config)

    def parameter_groups(self) -> list[dict]:
        return [_token_group(self.base, self.tokens, self.config)]

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        views = pool.part(batch.rows, self.base.device)
        context = _recomputed(partial(self._context, views, batch.template), self.config.checkpointing)
        return unmasked_loss(self.base, views.latents, batch, context)

    @torch.no_grad()
    def preview(self, rows: Tensor) -> Tensor:
        """Masks invented from noise, of the types of `rows`."""
        context = self._context(self.pool.part(rows, self.base.device), 0)
        return sampled_from_noise(self.base, context, self.pool)

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


def _token_table(base: LatentDiffusion, names: list[str], config: EmbeddingConfig) -> TokensByEncoder:
    """Starting vectors of every type, (types,tokens,d) per text encoder, asking for gradients."""
    generator = torch.Generator().manual_seed(config.seed)
    words = base.word_vectors(config.initial_words)
    rows = [starting_tokens(words, config.tokens, generator) for _ in names]
    return {
        encoder: torch.stack([row[encoder] for row in rows]).to(base.device).requires_grad_(True)
        for encoder in words
    }


def _token_group(base: LatentDiffusion, tokens: TokensByEncoder, config: EmbeddingConfig) -> dict:
    rms = max(float(v.square().mean().sqrt()) for v in base.word_vectors(config.initial_words).values())
    return {"params": list(tokens.values()), "lr": config.token_rate * rms}


def _by_type(names: list[str], tokens: TokensByEncoder) -> dict[str, TokensByEncoder]:
    return {
        name: {encoder: table[i].detach().cpu().clone() for encoder, table in tokens.items()}
        for i, name in enumerate(names)
    }
