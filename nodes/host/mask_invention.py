"""Masks invented with ComfyUI's samplers."""

from __future__ import annotations

import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...anomalydiffusion_core.masks.invention import (
    InventedMasks,
    MaskConfig,
    mask_picture_size,
    masks_from_pictures,
    usable_for,
)
from ...anomalydiffusion_core.masks.placement import placer_of
from ...anomalydiffusion_core.method.conditioning import empty_context, mask_context
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.sampling import image_generator
from ...anomalydiffusion_core.method.templates import MASK_TEMPLATES
from .base_model import load_for
from .conditioning import conditioning
from .pixels import to_core
from .sampling import SamplerSettings, sample_images


def masks_from_sampler(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    learned: Learned,
    *,
    defect_type: str,
    count: int,
    settings: SamplerSettings,
) -> Tensor:
    """`count` accepted masks (B,S,S) in {0,1} of one type, invented with ComfyUI's samplers.

    Raises TriesExhausted, saying what was wrong how often, when too few are usable.
    """
    base = load_for(learned, model, clip, vae)
    config = usable_for(MaskConfig(), learned, defect_type)
    tokens = learned.mask_tokens(defect_type)
    cells = mask_picture_size(base, learned.image_size) // base.factor
    bar = comfy.utils.ProgressBar(count)

    def invent(tries: list[int]) -> list[np.ndarray]:
        with torch.no_grad():
            context = mask_context(base, MASK_TEMPLATES[0], tokens, len(tries))
            empty = empty_context(base, len(tries))
        latent = sample_images(
            model,
            [image_generator(settings.seed, i, f"{defect_type} masks") for i in tries],
            settings,
            conditioning(context),
            negative=conditioning(empty),
            latent=torch.zeros(len(tries), base.latent_channels, cells, cells),
        )
        return masks_from_pictures(to_core(vae.decode(latent)), config)

    def on_mask(accepted: int, tries: int) -> None:
        bar.update_absolute(min(accepted, count), count)

    place = placer_of(learned, defect_type, settings.seed)
    masks = InventedMasks(invent, place, defect_type, config, batch=min(8, count), on_mask=on_mask)
    return torch.from_numpy(np.stack([masks(number) for number in range(count)])).float()
