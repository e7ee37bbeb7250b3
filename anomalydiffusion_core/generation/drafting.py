"""What is to be made: which normal photo, and which masks at which place on it.

A mask goes one way: from its source, placed on the photo, checked, cut into the windows it is made in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..dataset.layout import Pair
from ..dataset.photos import Photo, read_mask, read_photo, short_hash
from ..dataset.views import read_pair
from ..dataset.windows import MAX_SHRINK, Region, regions_of
from ..gate.features import Backbone
from ..masks.edges import RealEdges, run_off
from ..masks.foreground import FindObject, object_finder
from ..masks.invention import NO_OBJECT, OFF_OBJECT, MaskConfig, mask_problem, usable_for
from ..masks.placement import moved_onto
from ..masks.segmented_foreground import segmented_foreground
from ..masks.sources import GIVEN, REAL, MaskSource, SourcedMask, known_placements, onto_photo
from ..method.embeddings import Learned, Placement
from ..method.sampling import NOISE, PASTED, image_generator
from .config import AUTO, MIXED, NONE, GenerationConfig
from .grounds import PLACES, Grounds
from .pasting import RealDefect, choose_defect
from .regions import mask_on_canvas, pair_on_canvas

TOO_LARGE = "too large for the model's canvas"
OVERLAPPING = "overlapping"
MISSHAPEN = "shaped unlike real ones"


@dataclass(frozen=True)
class DraftedDefect:
    """One defect of a pair: its type, its mask (H,W) bool, and the regions that this is made in."""

    defect_type: str
    mask: np.ndarray
    source: str  # of the mask
    regions: tuple[Region, ...]
    invention: tuple[int, int] | None  # of an invented mask: its number, and that of the try
    pasted: tuple[int, ...] = ()  # the real defect that each region starts from, by number; none: noise


@dataclass(frozen=True)
class TryNumber:
    """Which try at a pair this is, and which of the source's masks it takes: with the run seed they fix
    everything random. A mask that is unusable costs a number of a mask, not a try: so every normal photo is
    tried equally often.
    """

    index: int = 0
    mask: int = 0


@dataclass(frozen=True)
class Draft:
    """A pair that is to be made: everything that chance decides but its noise."""

    number: TryNumber
    normal: int  # which normal photo
    template: str
    defects: tuple[DraftedDefect, ...]
    strength: float  # of the anomaly embedding
    guidance: float
    contrast: float  # of a pasted defect


class Unusable(Exception):
    """Raised where a mask cannot be used: why, in a word."""


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
        *,
        backbone: Backbone,
        device: str,
    ) -> None:
        if not normals:
            raise ValueError("There are no normal photos: give a folder with photos of good parts.")
        self.learned, self.config, self.normals, self._real = learned, config, normals, real
        self.photo = lru_cache(maxsize=1)(self._read_photo)
        self.foreground = lru_cache(maxsize=1)(self._find_foreground)
        self.placements = lru_cache(maxsize=None)(self._known_placements)
        self.real_defects = lru_cache(maxsize=None)(self._real_defects)
        self.real_photos = lru_cache(maxsize=None)(self._real_photos)
        self.edges = lru_cache(maxsize=None)(self._edges)
        self.grounds = lru_cache(maxsize=None)(self._grounds)
        self.backbone = backbone
        self.find_object = _finder(config.foreground, normals, device)

    def normal(self, number: int) -> Normal:
        """A normal photo with its object."""
        return Normal(self.photo(number), self.foreground(number))

    def _read_photo(self, number: int) -> Photo:
        return read_photo(self.normals[number])

    def _find_foreground(self, number: int) -> np.ndarray | None:
        return self.find_object(self.photo(number).pixels) if self.find_object else None

    def config_of(self, defect_type: str) -> GenerationConfig:
        """The settings of one type's pairs."""
        return self.config.of_type(defect_type, self.learned.tunings)

    def real_pairs(self, defect_type: str) -> Iterator[tuple[Photo, np.ndarray]]:
        """Photos and masks (H,W) bool of the type's training pairs."""
        yield from map(_marked, self._real.get(defect_type, []))

    def real_masks(self, defect_type: str) -> list[Path]:
        """The files of their masks."""
        return [pair.mask for pair in self._real.get(defect_type, [])]

    def draft(self, defect_type: str, number: TryNumber, masks: dict[str, MaskSource]) -> Draft:
        """A try at a type, or at several that share an image: `masks` has a source for each.

        Raises Unusable where a mask cannot be used, or two overlap.
        """
        config, generator = self.config, image_generator(self.config.seed, number.mask, defect_type)
        template = int(torch.randint(len(self.learned.templates), (), generator=generator))
        strength, guidance, contrast = (
            1 + spread * (2 * float(torch.rand((), generator=generator)) - 1)
            for spread in (config.vary_strength, config.vary_guidance, config.vary_contrast)
        )
        normal = self._turn(defect_type, number.index)
        # of several types, the first one's guidance
        configs, defects = [self.config_of(name) for name in masks], list[DraftedDefect]()
        paste = self._pastes(list(masks), [config.start for config in configs], generator)
        for name, source in masks.items():
            sourced = source(number.mask)
            defect = self.defect(name, sourced, self.normal(normal), generator)
            if paste:
                defect = replace(defect, pasted=self._chosen(defect, sourced.real, generator))
            if any((defect.mask & other.mask).any() for other in defects):
                raise Unusable(OVERLAPPING)
            defects.append(defect)
        return Draft(
            number=number,
            normal=normal,
            template=self.learned.templates[template],
            defects=tuple(defects),
            strength=strength,
            guidance=guidance * (configs[0].pasted_guidance if paste else configs[0].sampling.guidance),
            contrast=contrast,
        )

    def _pastes(self, defect_types: list[str], starts: list[str], generator: torch.Generator) -> bool:
        """Whether a try starts from real defects; else from noise."""
        if MIXED in starts:  # then all are
            starts = [PASTED if float(torch.rand((), generator=generator)) < 0.5 else NOISE]
        return {*starts} == {PASTED} and all(self.real_defects(name) for name in defect_types)

    def _chosen(
        self, defect: DraftedDefect, masked_by: int | None, generator: torch.Generator
    ) -> tuple[int, ...]:
        """The numbers of the real defects that a defect's regions start from; `masked_by` is the number of
        the training pair whose mask it is.
        """
        name, size = defect.defect_type, self.learned.image_size
        own = None if masked_by is None else self.real_photos(name)[masked_by]
        masks = [mask_on_canvas(region.mask, size) for region in defect.regions]
        real = self.real_defects(name)
        return tuple(choose_defect(real, mask, generator, masked_by=own) for mask in masks)

    def _real_defects(self, defect_type: str) -> list[RealDefect]:
        return real_defects(self._real.get(defect_type, []), self.learned.image_size)

    def _real_photos(self, defect_type: str) -> list[str]:
        """Short hashes of the photos of the type's training pairs."""
        return [short_hash(pair.image) for pair in self._real.get(defect_type, [])]

    def _turn(self, defect_type: str, index: int) -> int:
        """Which normal photo is tried: every one once, in random order, before any comes again."""
        turn, rank = divmod(index, len(self.normals))
        generator = image_generator(self.config.seed, turn, f"{defect_type} normals")
        return int(torch.randperm(len(self.normals), generator=generator)[rank])

    def defect(
        self, defect_type: str, sourced: SourcedMask, normal: Normal, generator: torch.Generator
    ) -> DraftedDefect:
        """A source's mask on a normal photo, and the regions it is made in. Raises Unusable.

        On an object it is laid at several places, and stays at the one whose ground is most like that of the
        real defects.
        """
        masks, problems = list[np.ndarray](), list[Unusable]()
        grounds = self.grounds(defect_type) if self._chooses(sourced, normal) else None
        for _ in range(PLACES if grounds else 1):
            try:
                mask = self._placed(defect_type, sourced, normal, generator)
                masks.append(self._checked(defect_type, mask, sourced, normal, generator))
            except Unusable as problem:
                problems.append(problem)
        if not masks:
            raise problems[0]
        mask = masks[grounds.nearest(normal.photo, masks) if grounds else 0]
        regions = regions_of(mask, self.learned.image_size)
        if max(region.window.side for region in regions) > MAX_SHRINK * self.learned.image_size:
            raise Unusable(TOO_LARGE)
        return DraftedDefect(defect_type, mask, sourced.source, tuple(regions), sourced.invention)

    def _chooses(self, sourced: SourcedMask, normal: Normal) -> bool:
        """Whether a mask's place is to be chosen: on an object, where nobody said where it goes."""
        learned = self.config.placement == "learned" and sourced.source != GIVEN and not sourced.placed
        return learned and normal.foreground is not None

    def _placed(
        self, defect_type: str, sourced: SourcedMask, normal: Normal, generator: torch.Generator
    ) -> np.ndarray:
        """The mask at the photo's size, where its placement brings it."""
        mask = onto_photo(
            sourced,
            self.placements(defect_type),
            normal.foreground,
            normal.photo.size,
            generator=generator,
            share=self.config.masks.on_object,
            mode=self.config.placement,
        )
        if normal.foreground is not None and not normal.foreground.any():
            raise Unusable(NO_OBJECT)
        if mask is None:
            raise Unusable(OFF_OBJECT)
        # a real one that lay inside does so afterwards, and the user's own lie where they like
        free = not sourced.placed and sourced.source not in (REAL, GIVEN)
        return self._at_edge(defect_type, mask, generator) if free else mask

    def _at_edge(self, defect_type: str, mask: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """The mask, moved to a side of the photo as often as the type's real masks run into one."""
        real = self.edges(defect_type).sides
        sides = real[int(torch.randint(len(real), (), generator=generator))] if any(real) else []
        return run_off(mask, sides[0], generator) if sides and mask.any() else mask

    def _checked(
        self,
        defect_type: str,
        mask: np.ndarray,
        sourced: SourcedMask,
        normal: Normal,
        generator: torch.Generator,
    ) -> np.ndarray:
        """The mask where it is usable; a placed one that misses the object is moved onto it."""
        usable = self._usable(defect_type, sourced.source)
        problem = mask_problem(mask, usable, normal.foreground)
        if problem == OFF_OBJECT and sourced.placed and normal.foreground is not None:
            moved = moved_onto(mask, normal.foreground, usable.on_object, generator)
            if moved is not None:
                mask, problem = moved, mask_problem(moved, usable, normal.foreground)
        if problem:
            raise Unusable(problem)
        return mask

    def _usable(self, defect_type: str, source: str) -> MaskConfig:
        """What is asked of a type's masks from a source."""
        usable = usable_for(self.config.masks, self.learned, defect_type)
        if source in (GIVEN, REAL):  # of any size, also a hairline on a large photo, or a flooded one
            return replace(usable, smallest=0.0, largest=1.0, border=1.0)
        # others may fill as much of a border as the real ones
        return replace(usable, border=max(usable.border, self.edges(defect_type).cover))

    def problem(self, defect: DraftedDefect, normal: Normal) -> str | None:
        """Why a defect's mask cannot be used on a photo, in a word."""
        return mask_problem(defect.mask, self._usable(defect.defect_type, defect.source), normal.foreground)

    def _edges(self, defect_type: str) -> RealEdges:
        return RealEdges.of([read_mask(path) for path in self.real_masks(defect_type)])

    def _grounds(self, defect_type: str) -> Grounds | None:
        """What lies around the type's real defects; None where there are none."""
        size = self.learned.image_size
        views = [view for pair in self._real.get(defect_type, []) for view in pair_on_canvas(pair, size)]
        return Grounds(views, self.backbone, size) if views else None

    def _known_placements(self, defect_type: str) -> list[Placement]:
        """Where the type's training masks lay."""
        known = self.learned.mask_placements.get(defect_type, [])
        found = known_placements(known, map(read_mask, self.real_masks(defect_type)))
        return [replace(placement, sides=()) for placement in found]  # see `_at_edge`


def real_defects(pairs: list[Pair], size: int) -> list[RealDefect]:
    """What shows on real pairs, region by region, on a canvas of `size` pixels."""
    return [
        RealDefect.of(view, short_hash(pair.image)) for pair in pairs for view in pair_on_canvas(pair, size)
    ]


def _marked(pair: Pair) -> tuple[Photo, np.ndarray]:
    photo, mask = read_pair(pair)
    return photo, mask[0].numpy() > 0


def _finder(foreground: str, normals: list[Path], device: str) -> FindObject | None:
    if foreground == NONE:
        return None
    return object_finder(normals) if foreground == AUTO else segmented_foreground(foreground, device)
