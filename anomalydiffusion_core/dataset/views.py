"""A pool of augmented views with their latents, made ahead, from which training draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..method.latent_diffusion import LatentDiffusion
from .augmentation import random_view, whole_view
from .layout import Pair
from .photos import Photo, read_mask, read_photo

LARGEST_POOL = 2048  # views: 650 MB of memory for a base of Stable Diffusion's kind at 512 px
PairOrPhoto = TypeVar("PairOrPhoto", Pair, Path)


@dataclass
class ViewPool:
    """`latents` (N,C,h,w), `masks` (N,1,S,S) uint8 in {0,1}, `types` (N,) index into `names`; on the CPU,
    which has more room than a GPU.
    """

    latents: Tensor
    masks: Tensor
    types: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: Tensor, device: torch.device) -> ViewPool:
        """Some of the views, on a device."""
        return ViewPool(
            self.latents[rows].to(device), self.masks[rows].to(device), self.types[rows], self.names
        )

    def smallest_areas(self) -> dict[str, float]:
        """The least covered share of a view, by type."""
        areas = self.masks.float().mean((1, 2, 3))
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
    *,
    generator: torch.Generator,
    most: int = LARGEST_POOL,
) -> ViewPool:
    """The pair itself and `per_pair - 1` random views of every pair, encoded; where that were more than
    `most`, fewer views, or views of as many pairs of each type, drawn by chance.

    Raises ValueError when `size` is no whole number of latent cells, or a file is at fault.
    """

    def views(pair: Pair, count: int) -> list[tuple[Tensor, Tensor]]:
        photo, mask = read_pair(pair)
        image = photo.tensor()
        others = [random_view(image, mask, size, generator) for _ in range(count - 1)]
        return [whole_view(image, mask, size), *others]

    return _pool(base, *_bounded(pairs, per_pair, most, generator), size, views)


def make_mask_views(
    base: LatentDiffusion,
    pairs: dict[str, list[Pair]],
    per_pair: int,
    size: int,
    *,
    generator: torch.Generator,
    most: int = LARGEST_POOL,
) -> ViewPool:
    """`per_pair` close-ups of every mask, drawn black and white and encoded (for e_m), at `most` so many.

    Close-ups, since in the whole photo a small defect's mask is a speck, which a loss over the whole picture
    hardly notices. Raises as `make_views` does.
    """

    def views(pair: Pair, count: int) -> list[tuple[Tensor, Tensor]]:
        mask = read_pair(pair)[1]
        close = [random_view(mask, mask, size, generator, close_up=True)[1] for _ in range(count)]
        return [(2.0 * view.float().expand(3, -1, -1) - 1, view) for view in close]

    return _pool(base, *_bounded(pairs, per_pair, most, generator), size, views)


def make_normal_views(
    base: LatentDiffusion,
    photos: Mapping[str, Sequence[Path]],
    per_photo: int,
    size: int,
    *,
    generator: torch.Generator,
    most: int = LARGEST_POOL,
) -> ViewPool:
    """`per_photo` random views of normal photos, anywhere in them, at the scale of views of pairs, at `most`
    so many; `types` are the categories, the masks empty. Raises as `make_views` does.
    """

    def views(path: Path, count: int) -> list[tuple[Tensor, Tensor]]:
        image = read_photo(path).tensor()
        around = [_one_pixel(image.shape[-2:], generator) for _ in range(count)]
        unmarked = torch.zeros(1, 1, 1, dtype=torch.uint8)
        return [(random_view(image, pixel, size, generator)[0], unmarked) for pixel in around]

    pool = _pool(base, *_bounded(photos, per_photo, most, generator), size, views)
    return replace(pool, masks=pool.masks.expand(-1, 1, size, size))


def _one_pixel(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A mask (1,H,W) of one pixel anywhere."""
    mask = torch.zeros(1, *size, dtype=torch.uint8)
    mask.flatten()[torch.randint(mask.numel(), (), generator=generator)] = 1
    return mask


def _bounded(
    sources: Mapping[str, Sequence[PairOrPhoto]], each: int, most: int, generator: torch.Generator
) -> tuple[Mapping[str, Sequence[PairOrPhoto]], int]:
    """Sources of views, and how many views of each, of which there are at most `most`, and at least one of
    each type.
    """
    count = sum(map(len, sources.values()))
    if count <= most:
        return sources, min(each, most // max(1, count))
    kept = max(1, most // len(sources))
    shuffled = {
        name: [group[int(i)] for i in torch.randperm(len(group), generator=generator)]
        for name, group in sources.items()
    }
    return {name: group[:kept] for name, group in shuffled.items()}, 1


class RefreshedPool:
    """Pools that follow each other every `every` steps, the next one made in the background.

    `make` is given a pool's number, which must determine it: then the pool that a step draws from is the same
    after a training was cut off. Two pools are held at most, and nothing lies on disk.
    """

    def __init__(self, make: Callable[[int], ViewPool], every: int) -> None:
        self._make, self._every = make, every
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="views")
        self._made: dict[int, Future[ViewPool]] = {}

    def at(self, step: int) -> ViewPool:
        """The pool that a step draws from; raises what `make` raises."""
        number = step // self._every
        for due in (number, number + 1):
            if due not in self._made:
                self._made[due] = self._executor.submit(self._make, due)
        self._made = {due: pool for due, pool in self._made.items() if due >= number}
        return self._made[number].result()

    def close(self) -> None:
        """Waits for the pool under way, and makes no more."""
        self._executor.shutdown(cancel_futures=True)


def _pool(
    base: LatentDiffusion,
    sources: Mapping[str, Sequence[PairOrPhoto]],
    each: int,
    size: int,
    views_of: Callable[[PairOrPhoto, int], list[tuple[Tensor, Tensor]]],
) -> ViewPool:
    if size % base.factor:
        raise ValueError(
            f"Size {size} is no multiple of {base.factor} pixels, the base's latent cell: change it."
        )
    names = sorted(sources)
    latents, masks, types = [], [], []
    for index, name in enumerate(names):
        for source in sources[name]:
            views = views_of(source, each)
            with torch.no_grad():  # one at a time: two at 512 px take more memory than a training step
                latents += [base.encode(part).cpu() for part in torch.stack([i for i, _ in views]).split(1)]
            masks += [m for _, m in views]
            types += [index] * len(views)
    return ViewPool(torch.cat(latents), torch.stack(masks), torch.tensor(types), names)
