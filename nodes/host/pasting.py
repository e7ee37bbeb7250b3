"""What KSampler (Anomaly) starts from where that is no noise: photos with real defects in the masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...anomalydiffusion_core.dataset.layout import Dataset
from ...anomalydiffusion_core.dataset.windows import regions_of
from ...anomalydiffusion_core.generation.drafting import real_defects
from ...anomalydiffusion_core.generation.pasting import RealDefect, choose_defect, contrast_kept, pasted
from ...anomalydiffusion_core.generation.regions import mask_on_canvas
from ...anomalydiffusion_core.method.sampling import image_generator
from .conditioning import Conditioning, learned_in
from .gate import real_pairs
from .pixels import from_core, to_core
from .sampling import MaskedPhotos, padded

REMEDY = "connect the dataset that the embeddings were trained on, or set denoise to 1 to start from noise"


@dataclass(frozen=True)
class PastedDefects:
    """Photos (B,H,W,3) in [0,1] with a real defect in each mask, their latents (B,C,h,w) in the scale of the
    VAE, and the share of the schedule that these are noised to.
    """

    image: Tensor
    latent: Tensor
    denoise: float

    def detail(self, photos: MaskedPhotos) -> Tensor:
        """What the autoencoder lost of them (B,H,W,3), the less the more they were denoised."""
        height, width = photos.image.shape[1:3]
        decoded: Any = photos.vae.decode(self.latent)
        return (1 - self.denoise) * (self.image - decoded[:, :height, :width].float().cpu())

    def contrast_kept(self, photos: MaskedPhotos, decoded: Tensor, reconstruction: Tensor) -> Tensor:
        """Decoded images (B,H,W,3) in [0,1] with the contrast that they lost against the pasted defects."""
        images = decoded, reconstruction, self.image, photos.image.cpu()
        generated, before, start, photo = map(to_core, images)
        return from_core(
            contrast_kept(generated, before, start, photo, photos.mask.cpu(), share=1 - self.denoise)
        )


def pasted_defects(
    photos: MaskedPhotos, positive: Conditioning, dataset: Dataset | None, *, seed: int, denoise: float
) -> PastedDefects | None:
    """The photos with real defects of the type in `positive`; None where all is denoised.

    Raises ValueError where there are no real pairs that trained it.
    """
    if denoise >= 1:
        return None
    learned, name = learned_in(positive)
    if dataset is None or learned is None:
        raise ValueError(f"A denoise below 1 starts from a real defect: {REMEDY}.")
    _, pairs, which = real_pairs(dataset, learned, name)
    if not pairs:
        raise ValueError(f"A denoise below 1 starts from a real defect, and there is {which}: {REMEDY}.")
    size, defects = learned.image_size, real_defects(pairs, learned.image_size)
    marked = photos.mask[:, 0].cpu().numpy() > 0
    images = [
        _with_defects(255 * image.cpu().numpy(), mask, defects, size, image_generator(seed, i, "pasted"))
        for i, (image, mask) in enumerate(zip(photos.image, marked, strict=True))
    ]
    image = torch.from_numpy(np.stack(images)).float() / 255
    latent: Any = photos.vae.encode(padded(image, photos.factor))
    return PastedDefects(image, latent.float(), denoise)


def _with_defects(
    photo: np.ndarray, mask: np.ndarray, defects: list[RealDefect], size: int, generator: torch.Generator
) -> np.ndarray:
    """A photo (H,W,3) in [0,255] with a real defect in each region of mask (H,W) bool."""
    result = photo.copy()
    for region in regions_of(mask, size):
        defect = defects[choose_defect(defects, mask_on_canvas(region.mask, size), generator)]
        window = pasted(region.window.cut(photo), region.mask, defect, generator)
        within, box = region.window.within(mask.shape), region.window.box(mask.shape)
        result[box] = np.where(region.mask[within][..., None], window[within], result[box])
    return result
