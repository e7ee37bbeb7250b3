"""Where masks come from: drawn by the base, real ones, the user's own, procedural ones, or a mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..dataset.augmentation import MAX_ROTATION
from ..method.embeddings import Placement
from ..method.sampling import image_generator
from .placement import PlacementMode, fit_mask, lay, place_mask, placement_of, turned

INVENTED, REAL, GIVEN, PROCEDURAL = SOURCES = ("generated", "real", "drawn", "procedural")
CANVAS = 256  # pixels per side that procedural shapes are drawn at
REACH = 0.15  # of that side: half the extent of a procedural shape


@dataclass(frozen=True)
class SourcedMask:
    """A mask and the source it came from; one that is not `placed` is a shape, to be laid on a photo."""

    shape: np.ndarray  # (h,w) bool
    source: str  # one of SOURCES
    placed: bool = False  # to be used exactly where it is


MaskSource = Callable[[int], SourcedMask]  # number -> mask, the same whatever was asked before


def onto_photo(
    mask: SourcedMask,
    placements: Sequence[Placement],
    foreground: np.ndarray | None,
    size: tuple[int, int],
    generator: torch.Generator,
    share: float = 0.9,
    mode: PlacementMode = "learned",
) -> np.ndarray | None:
    """A mask (H,W) bool on a photo of `size` (H,W): fitted where it is placed, laid by `placement.lay`
    otherwise, None where that finds no place.
    """
    if mask.placed:
        return fit_mask(mask.shape, size)
    return lay(mask.shape, placements, foreground, size, generator, share, mode)


def masks_in_frame(
    source: MaskSource,
    count: int,
    placements: Sequence[Placement],
    size: tuple[int, int],
    seed: int,
    defect_type: str,
) -> list[np.ndarray]:
    """The first `count` masks of a source, each (H,W) bool, placed where no photo is at hand."""
    masks = []
    for number in range(count):
        generator = image_generator(seed, number, f"{defect_type} places")
        mask = onto_photo(source(number), placements, None, size, generator)
        assert mask is not None  # without a foreground anywhere will do
        masks.append(mask)
    return masks


def known_placements(placements: Sequence[Placement], real: Iterable[np.ndarray]) -> list[Placement]:
    """A type's `placements`, or, where the artifact has none, those of real masks (H,W) bool, anywhere."""
    return list(placements) or [placement_of(mask, None) for mask in real if mask.any()]


def generated_masks(shapes: Callable[[int], np.ndarray]) -> MaskSource:
    """Shapes drawn with a mask embedding, unplaced (`masks.invented_masks` without a frame)."""
    return lambda number: SourcedMask(shapes(number), INVENTED)


def real_masks(masks: Sequence[np.ndarray], seed: int, defect_type: str) -> MaskSource:
    """A type's training masks (H,W) bool in turn, cut out, flipped and turned as training does; laying them
    varies their size.
    """

    def source(number: int) -> SourcedMask:
        generator = image_generator(seed, number, f"{defect_type} real masks")
        upright, straight, turn = torch.rand(3, generator=generator).tolist()
        mask = masks[number % len(masks)][:: 1 if upright < 0.5 else -1, :: 1 if straight < 0.5 else -1]
        return SourcedMask(turned(np.ascontiguousarray(mask), MAX_ROTATION * (2 * turn - 1), 1), REAL)

    return source


def given_masks(masks: Sequence[np.ndarray], placed: bool = True) -> MaskSource:
    """The user's masks (h,w) bool in turn: exactly as they are, or (not `placed`) as shapes to be laid."""
    return lambda number: SourcedMask(masks[number % len(masks)], GIVEN, placed)


def procedural_masks(seed: int, defect_type: str, area: float | None = None) -> MaskSource:
    """Scratches, cracks, blobs, specks, fibres, without any training.

    `area`: share of the photo that each covers, about; None where laying them gives them their size.
    """
    from ..procedural.defects import DEFECTS, Canvas, Spot, apply_defect
    from ..procedural.materials import Surface

    def source(number: int) -> SourcedMask:
        generator = image_generator(seed, number, f"{defect_type} procedural masks")
        rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        shape = np.zeros((CANVAS, CANVAS), bool)
        while not shape.any():
            surface = Surface(np.full((CANVAS, CANVAS, 3), 0.5), np.zeros((CANVAS, CANVAS)), 0.0)
            canvas = Canvas(surface, np.ones((CANVAS, CANVAS)))
            family, middle = str(rng.choice(list(DEFECTS))), Spot((CANVAS / 2, CANVAS / 2), REACH * CANVAS)
            shape = apply_defect(rng, canvas, family, middle)[0]
        if area is not None:
            shape = place_mask(shape, [Placement(1.0, area, None)], shape.shape, generator)
        return SourcedMask(shape, PROCEDURAL)

    return source


def mixed(
    sources: dict[str, MaskSource], weights: dict[str, float], seed: int, defect_type: str
) -> MaskSource:
    """Each number's source is drawn by the weights, and is asked for its next number: mask i is the same
    whatever was asked before.
    """
    names = [name for name in SOURCES if weights.get(name)]
    chances, chosen = torch.tensor([weights[name] for name in names]), list[str]()

    def source(number: int) -> SourcedMask:
        for index in range(len(chosen), number + 1):
            generator = image_generator(seed, index, f"{defect_type} mask sources")
            chosen.append(names[int(torch.multinomial(chances, 1, generator=generator))])
        return sources[chosen[number]](chosen[:number].count(chosen[number]))

    return source


def mask_source(
    weights: dict[str, float],
    defect_type: str,
    seed: int,
    generated: Callable[[int], np.ndarray] | None = None,
    real: Sequence[np.ndarray] = (),
    drawn: Sequence[np.ndarray] = (),
    area: float | None = None,
    drawn_placed: bool = True,
) -> MaskSource:
    """The sources that `weights` names, mixed, from what is at hand for them: shapes by number, real and
    drawn masks (H,W) bool, and the `area` of procedural ones where no places are known.

    Raises ValueError naming a source that cannot be served.
    """
    real, drawn = [mask for mask in real if mask.any()], list(drawn)
    missing = {
        INVENTED: None if generated else "the artifact has no mask embedding: train the masks",
        REAL: None if real else "no training masks are at hand: give the dataset",
        GIVEN: None if drawn else "no masks were given: name their folder",
    }
    for name in weights:
        if weights[name] and missing.get(name):
            raise ValueError(
                f"Masks of {defect_type} cannot come from source {name!r}, since {missing[name]}, or leave "
                "the source out."
            )
    sources = {PROCEDURAL: procedural_masks(seed, defect_type, area)}
    if generated:
        sources[INVENTED] = generated_masks(generated)
    if real:
        sources[REAL] = real_masks(real, seed, defect_type)
    if drawn:
        sources[GIVEN] = given_masks(drawn, drawn_placed)
    return mixed(sources, checked_weights(weights), seed, defect_type)


def parse_weights(text: str) -> dict[str, float]:
    """`generated=2,real=1` as weights by source; a name alone weighs 1. Raises ValueError naming the known
    sources.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            weights[name] = weights.get(name, 0) + float(number or 1)
        except ValueError:
            weights[name] = float("nan")
    return checked_weights(weights)


def checked_weights(weights: dict[str, float]) -> dict[str, float]:
    """Weights by source, as they are; raises ValueError where they name another, or none has a weight."""
    if not set(weights) <= set(SOURCES) or not all(0 <= w < float("inf") for w in weights.values()):
        given = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
    elif not any(weights.values()):
        given = "none with a weight"
    else:
        return weights
    raise ValueError(
        f"Mask sources are given as weights of at least 0, such as generated=2,real=1, of "
        f"{', '.join(SOURCES)}: got {given}."
    )
