"""What is to be made: which normal photo, and which masks at which place on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..dataset.layout import Pair
from ..dataset.photos import Photo, read_mask, read_photo
from ..dataset.views import read_pair
from ..dataset.windows import MAX_SHRINK, regions_of
from ..masks.foreground import FindObject, object_finder
from ..masks.invention import NO_OBJECT, OFF_OBJECT, mask_problem, usable_for
from ..masks.placement import moved_onto
from ..masks.segmented_foreground import segmented_foreground
from ..masks.sources import MaskSource, SourcedMask, known_placements, onto_photo
from ..method.embeddings import Learned, Placement
from ..method.sampling import image_generator
from .config import AUTO, NONE, GenerationConfig

TOO_LARGE = "too large for the model's canvas"
OVERLAPPING = "overlapping"


@dataclass(frozen=True)
class DraftedDefect:
    """One defect of a pair: its type, and its mask (H,W) bool."""

    defect_type: str
    mask: np.ndarray
    source: str  # of the mask


@dataclass(frozen=True)
class Draft:
    """A pair to be made, and all that chance decided of it but its noise."""

    index: int  # of the try; with the run seed it fixes everything random
    normal: int  # which normal photo
    template: str
    parts: tuple[DraftedDefect, ...]
    strength: float  # of the anomaly embedding
    guidance: float


@dataclass(frozen=True)
class Normal:
    """A normal photo and its object (H,W) bool, or None on a texture."""

    photo: Photo
    foreground: np.ndarray | None


class Drafter:
    """Drafts pairs on a category's normal photos, which are read one at a time, as they are needed.

    `real` are the pairs, by defect type, that trained the model.
    """

    def __init__(
        self,
        learned: Learned,
        normals: list[Path],
        config: GenerationConfig,
        real: dict[str, list[Pair]],
        device: str,
    ) -> None:
        if not normals:
            raise ValueError("There are no normal photos: give a folder with photos of good parts.")
        self.learned, self.config, self.normals, self._real = learned, config, normals, real
        self.photo = lru_cache(maxsize=1)(self._read_photo)
        self.foreground = lru_cache(maxsize=1)(self._find_foreground)
        self.placements = lru_cache(maxsize=None)(self._known_places)
        self.find_object = _finder(config.foreground, normals, device)

    def normal(self, number: int) -> Normal:
        """A normal photo with its object."""
        return Normal(self.photo(number), self.foreground(number))

    def _read_photo(self, number: int) -> Photo:
        return read_photo(self.normals[number])

    def _find_foreground(self, number: int) -> np.ndarray | None:
        return self.find_object(self.photo(number).pixels) if self.find_object else None

    def real_pairs(self, defect_type: str) -> Iterator[tuple[Photo, np.ndarray]]:
        """Photos and masks (H,W) bool of the type's training pairs."""
        for pair in self._real.get(defect_type, []):
            photo, mask = read_pair(pair)
            yield photo, mask[0].numpy() > 0

    def real_masks(self, defect_type: str) -> list[Path]:
        """The files of their masks."""
        return [pair.mask for pair in self._real.get(defect_type, [])]

    def draft(
        self, defect_type: str, index: int, masks: dict[str, MaskSource]
    ) -> tuple[Draft | None, str | None]:
        """Try `index` of a type with masks from the sources of its kinds, or what is wrong with its mask."""
        generator = image_generator(self.config.seed, index, defect_type)
        template = int(torch.randint(len(self.learned.templates), (), generator=generator))
        strength, guidance = (
            1 + spread * (2 * float(torch.rand((), generator=generator)) - 1)
            for spread in (self.config.vary_strength, self.config.vary_guidance)
        )
        normal = self._turn(defect_type, index)
        parts: list[DraftedDefect] = []
        for kind, source in masks.items():
            sourced = source(index)
            mask, problem = self.mask(kind, sourced, self.normal(normal), generator)
            if mask is None:
                return None, problem
            if any((mask & part.mask).any() for part in parts):
                return None, OVERLAPPING
            parts.append(DraftedDefect(kind, mask, sourced.source))
        guidance *= self.config.sampling.guidance
        return Draft(index, normal, self.learned.templates[template], tuple(parts), strength, guidance), None

    def _turn(self, defect_type: str, index: int) -> int:
        """Which normal photo is tried: every one once, in random order, before any comes again."""
        turn, place = divmod(index, len(self.normals))
        generator = image_generator(self.config.seed, turn, f"{defect_type} normals")
        return int(torch.randperm(len(self.normals), generator=generator)[place])

    def mask(
        self, kind: str, sourced: SourcedMask, known: Normal, generator: torch.Generator
    ) -> tuple[np.ndarray | None, str | None]:
        """The mask at the photo's size, on its object, or what is wrong with it."""
        size, foreground, config = known.photo.size, known.foreground, self.config
        usable = usable_for(config.masks, self.learned, kind)
        mask = onto_photo(
            sourced,
            self.placements(kind),
            foreground,
            size,
            generator,
            config.masks.on_object,
            config.placement,
        )
        if foreground is not None and not foreground.any():
            return None, NO_OBJECT
        problem = OFF_OBJECT if mask is None else mask_problem(mask, usable, foreground)
        if problem == OFF_OBJECT and sourced.placed and mask is not None and foreground is not None:
            mask = moved_onto(mask, foreground, usable.on_object, generator)
            problem = OFF_OBJECT if mask is None else mask_problem(mask, usable, foreground)
        if mask is not None and problem is None:
            widest = max(region.window.side for region in regions_of(mask, self.learned.image_size))
            problem = TOO_LARGE if widest > MAX_SHRINK * self.learned.image_size else None
        return (None, problem) if problem else (mask, None)

    def _known_places(self, defect_type: str) -> list[Placement]:
        """Where the type's training masks lay."""
        known = self.learned.mask_placements.get(defect_type, [])
        return known_placements(known, map(read_mask, self.real_masks(defect_type)))


def _finder(foreground: str, normals: list[Path], device: str) -> FindObject | None:
    if foreground == NONE:
        return None
    return object_finder(normals) if foreground == AUTO else segmented_foreground(foreground, device)
