"""Spatial encoders before their first step: those learned before, of the base, or untrained ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ..bases.families import FAMILIES
from ..method.artifact import check_base
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig


def starting_encoders(
    base: LatentDiffusion, seed: int = 0, start: Learned | None = None
) -> dict[str, SpatialEncoder]:
    """Copies of the spatial encoders of `start`, else the base's own pre-trained ones, else untrained ones.

    Raises ValueError where `start` is of another base family, or has none.
    """
    if start:
        check_base(start.base, base.fingerprint, "The spatial encoder to start from", "give one of this base")
        if not start.spatial_encoders:
            raise ValueError(
                "The artifact to start from has no spatial encoder: give one that was trained with it."
            )
        return copy.deepcopy(start.spatial_encoders)
    return copy.deepcopy(base.spatial_encoders) or untrained_encoders(base, seed)


def untrained_encoders(base: LatentDiffusion, seed: int) -> dict[str, SpatialEncoder]:
    """E per text encoder, at its token table's scale: of its family's size, else of the paper's."""
    vectors, encoders = base.word_vectors("scratch stain hole"), {}
    family = FAMILIES.get(base.fingerprint.family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, width in base.token_widths.items():
            size = (family and family.spatial_encoder) or SpatialEncoderConfig(width)
            encoders[name] = SpatialEncoder(replace(size, width=width))
            encoders[name].set_scale(float(vectors[name].square().mean().sqrt()))
    return encoders
