"""Masks invented with ComfyUI's samplers."""

from __future__ import annotations

from collections import Counter

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from PIL import Image
from torch import Tensor

from ...anomalydiffusion_core.gate.lettering import GAP, GROUND, LABEL, Paragraph, written
from ...anomalydiffusion_core.gate.pair_picture import stacked
from ...anomalydiffusion_core.masks.invention import (
    InventedMasks,
    MaskConfig,
    mask_picture_size,
    masks_from_pictures,
    usable_for,
)
from ...anomalydiffusion_core.masks.placement import lay_on_photos, placer_of
from ...anomalydiffusion_core.method.conditioning import empty_context, mask_context
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.sampling import image_generator
from ...anomalydiffusion_core.method.templates import MASK_TEMPLATES
from .base_model import load_for
from .conditioning import conditioning
from .pixels import pixels_of, to_core
from .sampling import SamplerSettings, sample_images

BATCH = 8  # tries at a time
WIDTH, COLUMNS = 512, 4  # of the picture while masks are made


def masks_from_sampler(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    learned: Learned,
    *,
    defect_type: str,
    count: int,
    settings: SamplerSettings,
    normals: Tensor | None = None,
) -> Tensor:
    """`count` accepted masks (B,S,S) in {0,1} of one type, invented with ComfyUI's samplers; with `normals`
    (N,H,W,3) in [0,1] laid on these photos in turn, (B,H,W).

    Raises TriesExhausted, saying what was wrong how often, when too few are usable, and ValueError where a
    photo has no place for its mask.
    """
    base = load_for(learned, model, clip, vae)
    config = usable_for(MaskConfig(), learned, defect_type)
    tokens = learned.mask_tokens(defect_type)
    cells = mask_picture_size(base, learned.image_size) // base.factor
    progress = _Progress(count, settings.steps)

    def invent(tries: list[int]) -> list[np.ndarray]:
        with torch.no_grad():
            context = mask_context(base, MASK_TEMPLATES[0], tokens, len(tries))
            empty = empty_context(base, len(tries))
        latent = sample_images(
            base.model,
            [image_generator(settings.seed, i, f"{defect_type} masks") for i in tries],
            settings,
            conditioning(context),
            negative=conditioning(empty),
            latent=torch.zeros(len(tries), base.latent_channels, cells, cells),
            callback=progress.on_step,
        )
        return masks_from_pictures(to_core(vae.decode(latent)), config)

    def on_mask(accepted: int, tries: int) -> None:
        progress.on_masks(masks.accepted, tries, masks.problems)

    place = placer_of(learned, defect_type, settings.seed) if normals is None else None
    masks = InventedMasks(invent, place, defect_type, config, batch=min(BATCH, count), on_mask=on_mask)
    made = [masks(number) for number in range(count)]
    if normals is not None:
        photos, placements = list(pixels_of(normals)), learned.mask_placements.get(defect_type, [])
        made = lay_on_photos(made, photos[:count], placements, settings.seed, defect_type=defect_type)
    return torch.from_numpy(np.stack(made)).float()


class _Progress:
    """ComfyUI's progress bar over masks, each counted in steps, with a picture of those accepted so far.
    Every step can be cancelled.
    """

    def __init__(self, count: int, steps: int) -> None:
        self.count, self.steps, self.accepted = count, steps, 0
        self.bar = comfy.utils.ProgressBar(count * steps)

    def on_step(self, step: int, *_: object) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        hoped_for = min(BATCH, self.count - self.accepted)
        self.bar.update_absolute(self.accepted * self.steps + hoped_for * step, self.count * self.steps)

    def on_masks(self, accepted: list[np.ndarray], tries: int, problems: Counter[str]) -> None:
        self.accepted = min(len(accepted), self.count)
        picture = masks_picture(
            accepted[: self.count], masks_in_words(self.accepted, self.count, tries, problems)
        )
        total = self.count * self.steps
        self.bar.update_absolute(self.accepted * self.steps, total, ("JPEG", picture, max(picture.size)))


def masks_in_words(accepted: int, count: int, tries: int, problems: Counter[str]) -> str:
    wrong = ", ".join(f"{number} {problem}" for problem, number in problems.most_common())
    return f"{accepted} of {count} masks, {tries} tried" + (f" ({wrong})" if wrong else "")


def masks_picture(masks: list[np.ndarray], words: str) -> Image.Image:
    """The newest masks (H,W) bool, COLUMNS times as many at most, below words."""
    side = (WIDTH - GAP * (COLUMNS + 1)) // COLUMNS
    newest = masks[-COLUMNS * COLUMNS :]
    grid = Image.new("RGB", (WIDTH, -(-len(newest) // COLUMNS) * (side + GAP)), GROUND)
    for number, mask in enumerate(newest):
        tile = Image.fromarray(mask).convert("L")
        tile.thumbnail((side, side))
        grid.paste(tile, (GAP + number % COLUMNS * (side + GAP), number // COLUMNS * (side + GAP)))
    return stacked([written([Paragraph(words, LABEL)], WIDTH), grid])
