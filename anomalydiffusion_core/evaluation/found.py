"""What a localiser found and missed on each test photo, in words and as close-ups.

A pixel counts as found at the threshold of the best pixel F1 over all test photos: a choice in hindsight, the
same for every contender.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..dataset.photos import read_mask, read_photo
from ..dataset.windows import Box
from ..report.shown_pair import around, outlined, strip, tile
from .localization import TestPhotos
from .localizer import Predictions
from .metrics import rank_pixels
from .split import Split

MOST_OF_IT, HARDLY = 0.5, 0.05  # shares of a mark from which it counts as found, and below which as missed
SHOWN_OF_EACH = 6  # photos of each defect with a close-up, the least found first; and of normal ones
FOUND_COLOUR = np.array((255, 140, 0), np.float32)
FOUND, PARTLY, MISSED = "found", "found in part", "missed"


@dataclass(frozen=True)
class FoundDefect:
    """What was found on one test photo, in shares of its pixels."""

    photo: str  # the file's name
    defect: str | None  # None on a normal photo
    share: float  # of the marked pixels; 0 on a normal photo
    beside: float  # of the others, by mistake

    @property
    def verdict(self) -> str:
        """In a word, of a photo with a defect."""
        return FOUND if self.share >= MOST_OF_IT else PARTLY if self.share >= HARDLY else MISSED

    @property
    def sentence(self) -> str:
        """The same in a sentence."""
        beside = f"{100 * self.beside:.2g} %" if self.beside else "nothing"
        if self.defect is None:
            return f"Normal photo {self.photo}: {beside} of it was taken for a defect."
        return (
            f"{self.defect} {self.photo}: {self.verdict}, {100 * self.share:.0f} % of the mark; besides it "
            f"{beside} of the photo."
        )


def found_defects(
    predictions: Predictions, test: TestPhotos, split: Split
) -> tuple[list[FoundDefect], Image.Image]:
    """Every test photo, those shown first, and their close-ups from top to bottom: the photo, the outline of
    the mark, and what was found in orange.
    """
    maps = predictions.maps.numpy()
    threshold = rank_pixels(list(maps), list(test.masks))[0].f1_max()[1]
    paths = [*(pair.image for pair in split.test_pairs), *split.test_normals]
    found = []
    for path, defect, scores, mask in zip(paths, test.defects, maps, test.masks, strict=True):
        over = scores >= threshold
        share = float(over[mask].mean()) if mask.any() else 0.0
        found.append(FoundDefect(path.name, defect, round(share, 4), round(float(over[~mask].mean()), 6)))
    shown = _shown(found)
    strips = [strip(_tiles(split, number, maps[number] >= threshold)) for number in shown]
    order = [*shown, *(number for number in range(len(found)) if number not in shown)]
    return [found[number] for number in order], _stacked(strips)


def tally(found: Iterable[FoundDefect]) -> list[tuple[str, str]]:
    """By defect, how many were found, found in part and missed, in words."""
    counts: dict[str, Counter[str]] = {}
    for one in found:
        if one.defect is not None:
            counts.setdefault(one.defect, Counter())[one.verdict] += 1
    return [
        (defect, ", ".join(f"{count[word]} {word}" for word in (FOUND, PARTLY, MISSED) if count[word]))
        for defect, count in sorted(counts.items())
    ]


def _shown(found: list[FoundDefect]) -> list[int]:
    """Of each defect the least found photos, and the normal ones where most was taken for a defect."""
    numbers: list[int] = []
    for defect in sorted({one.defect for one in found if one.defect}):
        of_defect = [number for number, one in enumerate(found) if one.defect == defect]
        numbers += sorted(of_defect, key=lambda number: found[number].share)[:SHOWN_OF_EACH]
    mistaken = [number for number, one in enumerate(found) if one.defect is None and one.beside]
    return numbers + sorted(mistaken, key=lambda number: -found[number].beside)[:SHOWN_OF_EACH]


def _tiles(split: Split, number: int, over: np.ndarray) -> list[np.ndarray]:
    """The photo's close-up, (TILE,TILE,3) each: as it is, with the mark outlined, with what was found."""
    if number < len(split.test_pairs):
        pair = split.test_pairs[number]
        photo = read_photo(pair.image)
        mask = read_mask(pair.mask, photo.size)
        box: Box = around(mask)
    else:
        photo = read_photo(split.test_normals[number - len(split.test_pairs)])
        mask, box = np.zeros(photo.size, bool), np.s_[:, :]
    height, width = photo.size
    at_photo_size = Image.fromarray(over).resize((width, height), Image.Resampling.NEAREST)
    pixels, marked = photo.pixels[box], np.asarray(at_photo_size)[box]
    coloured = np.where(marked[..., None], 0.4 * pixels + 0.6 * FOUND_COLOUR, pixels).astype(np.uint8)
    plain = tile(pixels)
    return [plain, outlined(plain, mask[box]), outlined(tile(coloured), mask[box])]


def _stacked(strips: list[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(one) for one in strips]))


def close_ups(picture: Image.Image, height: int) -> list[Image.Image]:
    """The strips of a picture that `found_defects` stacked, each so many pixels high."""
    return [picture.crop((0, top, picture.width, top + height)) for top in range(0, picture.height, height)]
