"""Contexts for the U-Net: a photo template with [e_a, e_s] in its gap, or a mask template with e_m."""

from __future__ import annotations

import torch
from torch import Tensor

from .embeddings import TokensByEncoder
from .latent_diffusion import Context, LatentDiffusion
from .spatial_encoder import SpatialEncoder


def spatial_tokens(encoders: dict[str, SpatialEncoder], mask: Tensor) -> TokensByEncoder:
    """e_s = E(m) for masks (B,1,H,W) in {0,1}: (B,n,d) per text encoder."""
    return {name: encoder(mask.to(next(encoder.parameters()).device)) for name, encoder in encoders.items()}


def joined(anomaly: TokensByEncoder, spatial: TokensByEncoder, count: int) -> TokensByEncoder:
    """[e_a, e_s] of `count` samples B: e_a (B,k,d) or (k,d) with e_s (B,n,d) -> (B,k+n,d) per text encoder.

    Without spatial tokens, as after a training without spatial encoder, e_a alone.
    """
    rows = {}
    for name, e_a in anomaly.items():
        looks = e_a.expand(count, *e_a.shape[-2:])
        rows[name] = torch.cat([looks.to(spatial[name]), spatial[name]], 1) if spatial else looks
    return rows


def anomaly_context(
    base: LatentDiffusion,
    template: str | list[str],
    anomaly: TokensByEncoder,
    encoders: dict[str, SpatialEncoder],
    *,
    mask: Tensor,
) -> Context:
    """Context of a defect at a place, one template for all or one per mask (B,1,H,W).

    Gradients reach e_a and E.
    """
    return placed_context(base, template, anomaly, spatial_tokens(encoders, mask), count=len(mask))


def placed_context(
    base: LatentDiffusion,
    template: str | list[str],
    anomaly: TokensByEncoder,
    spatial: TokensByEncoder,
    *,
    count: int,
) -> Context:
    """As `anomaly_context`, from spatial tokens (B,n,d), `count` = B of them, that are there already."""
    rows = {name: row.to(base.device) for name, row in joined(anomaly, spatial, count).items()}
    return base.encode_prompts([template] * count if isinstance(template, str) else template, rows)


def mask_context(
    base: LatentDiffusion, template: str | list[str], tokens: TokensByEncoder, count: int
) -> Context:
    """Context of a mask picture of one type, `count` rows."""
    prompts = [template] * count if isinstance(template, str) else template
    return base.encode_prompts(
        prompts,
        {name: e_m.to(base.device).expand(count, *e_m.shape[-2:]) for name, e_m in tokens.items()},
    )


def empty_context(base: LatentDiffusion, count: int) -> Context:
    """The unconditional context of classifier-free guidance, `count` rows."""
    return base.encode_prompts([""] * count)
