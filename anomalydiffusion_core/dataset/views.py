"""A pool of augmented views with their latents, made once, from which training draws."""

from __future__ import annotations

from collections.abc import Callable
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
) -> ViewPool:
    """The pair itself and `per_pair - 1` random views of every pair, encoded.

    Raises ValueError when `size` is no whole number of latent cells, or a file is at fault.
    """

    def views(image: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        others = [random_view(image, mask, size, generator) for _ in range(per_pair - 1)]
        return [whole_view(image, mask, size), *others]

    return _pool(base, pairs, size, views)


def make_mask_views(
    base: LatentDiffusion,
    pairs: dict[str, list[Pair]],
    per_pair: int,
    size: int,
    generator: torch.Generator,
) -> ViewPool:
    """`per_pair` close-ups of every mask, drawn black and white and encoded (for e_m).

    Close-ups, since in the whole photo a small defect's mask is a speck, which a loss over the whole picture
    hardly notices. Raises as `make_views` does.
    """

    def views(image: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        close = [random_view(mask, mask, size, generator, close_up=True)[1] for _ in range(per_pair)]
        return [(2.0 * view.float().expand(3, -1, -1) - 1, view) for view in close]

    return _pool(base, pairs, size, views)


def _pool(
    base: LatentDiffusion,
    pairs: dict[str, list[Pair]],
    size: int,
    views_of: Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]],
) -> ViewPool:
    if size % base.factor:
        raise ValueError(
            f"Size {size} is no multiple of {base.factor} pixels, the base's latent cell: change it."
        )
    names = sorted(pairs)
    latents, masks, types = [], [], []
    for index, name in enumerate(names):
        for pair in pairs[name]:
            photo, mask = read_pair(pair)
            views = views_of(photo.tensor(), mask)
            with torch.no_grad():
                latents += [base.encode(part) for part in torch.stack([i for i, _ in views]).split(2)]
            masks += [m for _, m in views]
            types += [index] * len(views)
    return ViewPool(torch.cat(latents), torch.stack(masks).to(base.device), torch.tensor(types), names)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """m_z: (B,1,H,W) in {0,1} -> (B,1,H/f,W/f) float, 1 in every cell that the defect touches."""
    return F.max_pool2d(mask.float(), factor)
