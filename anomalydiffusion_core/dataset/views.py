"""A pool of augmented views with their latents, made once, from which training draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent_diffusion import LatentDiffusion
from .augmentation import random_view, whole_view
from .layout import Pair
from .photos import Photo, read_mask, read_photo

Source = TypeVar("Source", Pair, Path)


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

    def views(pair: Pair) -> list[tuple[Tensor, Tensor]]:
        photo, mask = read_pair(pair)
        image = photo.tensor()
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

    def views(pair: Pair) -> list[tuple[Tensor, Tensor]]:
        mask = read_pair(pair)[1]
        close = [random_view(mask, mask, size, generator, close_up=True)[1] for _ in range(per_pair)]
        return [(2.0 * view.float().expand(3, -1, -1) - 1, view) for view in close]

    return _pool(base, pairs, size, views)


def make_normal_views(
    base: LatentDiffusion,
    photos: Mapping[str, Sequence[Path]],
    per_photo: int,
    size: int,
    generator: torch.Generator,
) -> ViewPool:
    """`per_photo` random views of normal photos, anywhere in them, at the scale of views of pairs; `types`
    are the categories, the masks empty. Raises as `make_views` does.
    """

    def views(path: Path) -> list[tuple[Tensor, Tensor]]:
        image = read_photo(path).tensor()
        around = [_one_pixel(image.shape[-2:], generator) for _ in range(per_photo)]
        unmarked = torch.zeros(1, 1, 1, dtype=torch.uint8)
        return [(random_view(image, pixel, size, generator)[0], unmarked) for pixel in around]

    pool = _pool(base, photos, size, views)
    return replace(pool, masks=pool.masks.expand(-1, 1, size, size))


def _one_pixel(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A mask (1,H,W) of one pixel anywhere."""
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    mask.flatten()[torch.randint(mask.numel(), (), generator=generator)] = 1
    return mask


def _pool(
    base: LatentDiffusion,
    sources: Mapping[str, Sequence[Source]],
    size: int,
    views_of: Callable[[Source], list[tuple[Tensor, Tensor]]],
) -> ViewPool:
    if size % base.factor:
        raise ValueError(
            f"Size {size} is no multiple of {base.factor} pixels, the base's latent cell: change it."
        )
    names = sorted(sources)
    latents, masks, types = [], [], []
    for index, name in enumerate(names):
        for source in sources[name]:
            views = views_of(source)
            with torch.no_grad():
                latents += [base.encode(part) for part in torch.stack([i for i, _ in views]).split(2)]
            masks += [m for _, m in views]
            types += [index] * len(views)
    return ViewPool(torch.cat(latents), torch.stack(masks).to(base.device), torch.tensor(types), names)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """m_z: (B,1,H,W) in {0,1} -> (B,1,H/f,W/f) float, 1 in every cell that the defect touches."""
    return F.max_pool2d(mask.float(), factor)
