"""A pool of augmented views with their latents, made once, from which training draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent_diffusion import LatentDiffusion
from .augmentation import random_view, whole_view
from .layout import Pair
from .photos import Photo, read_mask, read_photo


@dataclass
class ViewPool:
    """`latents` (N,C,h,w), `masks` (N,1,S,S) uint8 in {0,1}, `types` (N,) index into `names`."""

    latents: Tensor
    masks: Tensor
    types: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.latents)

    def smallest_areas(self) -> dict[str, float]:
        """The least covered share of a view, by type."""
        areas = self.masks.float().mean((1, 2, 3)).cpu()
        return {name: float(areas[self.types == i].min()) for i, name in enumerate(self.names)}


def read_pair(pair: Pair) -> tuple[Photo, Tensor]:
    """The photo and its mask (1,H,W) uint8 in {0,1}; raises ValueError naming the file at fault."""
    photo = read_photo(pair.image)
    return photo, torch.from_numpy(read_mask(pair.mask, photo.size).astype("uint8"))[None]


def make_views(
    base: LatentDiffusion,
    pairs: dict[str, list[Pair]],
    per_pair: int,
    size: int,
    generator: torch.Generator,
    masks_as_pictures: bool = False,
) -> ViewPool:
    """The pair itself and `per_pair - 1` random views of every pair, encoded.

    With `masks_as_pictures` the latents are those of the masks, drawn black and white (for e_m).
    Raises ValueError when `size` is no whole number of latent cells, or a file is at fault.
    """
    if size % base.factor:
        raise ValueError(
            f"Size {size} is no multiple of {base.factor} pixels, the base's latent cell: change it."
        )
    names = sorted(pairs)
    latents, masks, types = [], [], []
    for index, name in enumerate(names):
        for pair in pairs[name]:
            photo, mask = read_pair(pair)
            image = photo.tensor()
            views = [whole_view(image, mask, size)]
            views += [random_view(image, mask, size, generator) for _ in range(per_pair - 1)]
            pictures = torch.stack(
                [2.0 * m.float().expand(3, -1, -1) - 1 if masks_as_pictures else i for i, m in views]
            )
            with torch.no_grad():
                latents += [base.encode(part) for part in pictures.split(8)]
            masks += [m for _, m in views]
            types += [index] * len(views)
    return ViewPool(torch.cat(latents), torch.stack(masks).to(base.device), torch.tensor(types), names)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """m_z: (B,1,H,W) in {0,1} -> (B,1,H/f,W/f) float, 1 in every cell that the defect touches."""
    return F.max_pool2d(mask.float(), factor)
