"""Where masks come from: one table of sources, and mixtures of them by weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..dataset.augmentation import MAX_ROTATION
from ..method.embeddings import Placement
from ..method.sampling import image_generator
from .edges import touched_sides
from .invention import TriesExhausted
from .placement import ON_OBJECT, PlacementMode, lay, place_mask, placement_of
from .resizing import fit_mask, turned
from .warping import bent, warped

INVENTED, REAL, GIVEN, PROCEDURAL = "invented", "real", "given", "procedural"
FORMER_NAMES = {"generated": INVENTED, "drawn": GIVEN}  # in scripts and graphs of before
UNKNOWN_AREA = 0.01  # share of the photo that a procedural mask covers where nothing is known of its type
USUAL = {REAL: 2.0, INVENTED: 1.0, PROCEDURAL: 1.0}  # weights, where the user names none
CANVAS = 256  # pixels per side that procedural shapes are drawn at
BEYOND = 1 << 20  # more than the masks of any run
REACH = 0.15  # of that side: half the extent of a procedural shape


@dataclass(frozen=True)
class SourcedMask:
    """A mask and the source it came from; one that is not `placed` is a shape, to be laid on a photo."""

    shape: np.ndarray  # (h,w) bool
    source: str  # a name of SOURCES
    placed: bool = False  # to be used where it is, unless that is beside the object
    invention: tuple[int, int] | None = None  # of an invented one: its number, and that of the try
    real: int | None = None  # of a real one: its number among the training masks


MaskSource = Callable[[int], SourcedMask]  # number -> mask, the same whatever was asked before


@dataclass(frozen=True)
class MaskRequest:
    """What a source may need to hand out masks of one defect type."""

    defect_type: str
    seed: int = 0
    invented: MaskSource | None = None  # shapes (s,s) bool of the base
    real: Callable[[], Sequence[np.ndarray]] = tuple  # the training masks (H,W) bool, read when asked for
    given: Sequence[np.ndarray] = ()  # the user's masks (h,w) bool
    given_placed: bool = True  # which stay where they are
    area: float | None = None  # share of the photo that a mask covers; None where its placement sets it


class Lacking(ValueError):
    """Raised by a source that a request does not give what it needs: what that is, and what to do."""


@dataclass(frozen=True)
class Source:
    """A line of `SOURCES`: `masks` makes the source, and raises Lacking; `meaning` is its help text."""

    masks: Callable[[MaskRequest], MaskSource]
    meaning: str


def onto_photo(
    mask: SourcedMask,
    placements: Sequence[Placement],
    foreground: np.ndarray | None,
    size: tuple[int, int],
    *,
    generator: torch.Generator,
    share: float = ON_OBJECT,
    mode: PlacementMode = "learned",
) -> np.ndarray | None:
    """A mask (H,W) bool on a photo of `size` (H,W): fitted where it is placed, laid by `placement.lay`
    otherwise, None where that finds no place.
    """
    if mask.placed:
        return fit_mask(mask.shape, size)
    if mask.source == REAL:  # those that ran into the photo's edge are placed
        placements = [replace(placement, sides=()) for placement in placements]
    return lay(mask.shape, placements, foreground, size, generator=generator, share=share, mode=mode)


def masks_in_frame(
    source: MaskSource,
    count: int,
    placements: Sequence[Placement],
    size: tuple[int, int],
    *,
    seed: int,
    defect_type: str,
) -> list[np.ndarray]:
    """The first `count` masks of a source, each (H,W) bool, placed where no photo is at hand."""
    masks = []
    for number in range(count):
        generator = image_generator(seed, number, f"{defect_type} places")
        mask = onto_photo(source(number), placements, None, size, generator=generator)
        assert mask is not None  # without a foreground anywhere will do
        masks.append(mask)
    return masks


def known_placements(placements: Sequence[Placement], real: Iterable[np.ndarray]) -> list[Placement]:
    """A type's `placements`, or, where the artifact has none, those of real masks (H,W) bool, anywhere."""
    return list(placements) or [placement_of(mask, None) for mask in real if mask.any()]


def in_turn(masks: Sequence[np.ndarray]) -> Callable[[int], np.ndarray]:
    """Masks one after the other, and over again."""
    return lambda number: masks[number % len(masks)]


def invented_in_turn(shapes: Sequence[np.ndarray]) -> MaskSource:
    """Shapes (s,s) bool that were invented before, one after the other, and over again."""
    shape = in_turn(shapes)
    return lambda number: SourcedMask(shape(number), INVENTED)


def invented_shapes(request: MaskRequest) -> MaskSource:
    """Shapes that the base invents, not placed (`invention.invented_masks` without a frame)."""
    if request.invented is None:
        raise Lacking("none were invented: train a mask embedding and invent some")
    return request.invented


def real_masks(request: MaskRequest) -> MaskSource:
    """The training masks in turn, flipped, turned and bent; laying them varies their size. One that runs into
    the photo's edge stays there, about where it was: elsewhere it would be no mask of its type.
    """
    masks = [(number, mask) for number, mask in enumerate(request.real()) if mask.any()]
    if not masks:
        raise Lacking("no training masks are at hand: give the dataset")

    def source(number: int) -> SourcedMask:
        generator = image_generator(request.seed, number, f"{request.defect_type} real masks")
        upright, straight, turn = torch.rand(3, generator=generator).tolist()
        real, mask = masks[number % len(masks)]
        mask = mask[:: 1 if upright < 0.5 else -1, :: 1 if straight < 0.5 else -1]
        mask = np.ascontiguousarray(mask)
        if touched_sides(mask):
            return SourcedMask(warped(mask, generator), REAL, placed=True, real=real)
        shape = bent(turned(mask, MAX_ROTATION * (2 * turn - 1), 1), generator)
        return SourcedMask(shape, REAL, real=real)

    return source


def given_masks(request: MaskRequest) -> MaskSource:
    """The user's masks in turn: exactly as they are, or as shapes to be laid."""
    if not len(request.given):
        raise Lacking("none were given: give your own")
    mask = in_turn(request.given)
    return lambda number: SourcedMask(mask(number), GIVEN, request.given_placed)


def procedural_masks(request: MaskRequest) -> MaskSource:
    """Scratches, cracks, blobs, specks, threads and folds, without any training."""
    from ..procedural.defects import DEFECTS, Canvas, Spot, apply_defect
    from ..procedural.materials import Surface

    def source(number: int) -> SourcedMask:
        generator = image_generator(request.seed, number, f"{request.defect_type} procedural masks")
        rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        shape = np.zeros((CANVAS, CANVAS), bool)
        while not shape.any():
            surface = Surface(np.full((CANVAS, CANVAS, 3), 0.5), np.zeros((CANVAS, CANVAS)), 0.0)
            canvas = Canvas(surface, np.ones((CANVAS, CANVAS)))
            family, spot = str(rng.choice(list(DEFECTS))), Spot((CANVAS / 2, CANVAS / 2), REACH * CANVAS)
            shape = apply_defect(rng, canvas, family, spot)[0]
        if request.area is not None:
            shape = place_mask(shape, [Placement(1.0, request.area, None)], shape.shape, generator)
        return SourcedMask(shape, PROCEDURAL)

    return source


SOURCES: dict[str, Source] = {
    INVENTED: Source(invented_shapes, "shapes that the base invents"),
    REAL: Source(real_masks, "the training masks, flipped, turned and bent"),
    GIVEN: Source(given_masks, "your own masks, as they are"),
    PROCEDURAL: Source(procedural_masks, "scratches, cracks, blobs, specks, threads and folds, drawn"),
}


def usual_weights(request: MaskRequest, *, judged: bool) -> dict[str, float]:
    """Weights by source where the user names none: the masks given, or what a request has of the `USUAL`
    ones. Procedural ones take part where others are at hand, and masks are `judged` by their shape: else they
    would not be of their type.
    """
    if len(request.given):
        return {GIVEN: 1.0}
    weights = {name: USUAL[name] for name in USUAL if name != PROCEDURAL and _has(request, name)}
    if weights and judged:
        weights[PROCEDURAL] = USUAL[PROCEDURAL]
    return weights or {INVENTED: 1.0}  # which then says what it lacks


def _has(request: MaskRequest, name: str) -> bool:
    try:
        SOURCES[name].masks(request)
    except Lacking:
        return False
    return True


def mask_source(weights: dict[str, float], request: MaskRequest) -> MaskSource:
    """The sources that `weights` names, mixed. Raises ValueError naming one that lacks what it needs."""
    sources = {}
    for name in (name for name, weight in checked_weights(weights).items() if weight):
        try:
            sources[name] = SOURCES[name].masks(request)
        except Lacking as lack:
            raise ValueError(
                f"Masks of {request.defect_type} cannot come from source {name!r}, since {lack}, or leave "
                "the source out."
            ) from None
    return mixed(sources, weights, request.seed, request.defect_type)


def mixed(
    sources: dict[str, MaskSource], weights: dict[str, float], seed: int, defect_type: str
) -> MaskSource:
    """Each number's source is chosen at random by the weights, and is asked for its next number: mask i is
    the same whatever was asked before. Where a source has no more, another one takes its turn.
    """
    names = [name for name in SOURCES if weights.get(name)]
    chances, chosen = torch.tensor([weights[name] for name in names]), list[str]()

    def source(number: int) -> SourcedMask:
        for index in range(len(chosen), number + 1):
            generator = image_generator(seed, index, f"{defect_type} mask sources")
            chosen.append(names[int(torch.multinomial(chances, 1, generator=generator))])
        turn = chosen[:number].count(chosen[number])
        try:
            return sources[chosen[number]](turn)
        except TriesExhausted:
            others = [name for name in names if name != chosen[number]]
            if not others:
                raise
            # a number that is not its own, lest a mask comes twice
            return sources[others[number % len(others)]](BEYOND + number)

    return source


def current_name(name: str) -> str:
    """What a source is called now, by its present or former name."""
    return FORMER_NAMES.get(name, name)


def parse_weights(text: str) -> dict[str, float]:
    """`invented=2,real=1` as weights by source; a name alone weighs 1, and former names are read too.

    Raises ValueError naming the known sources.
    """
    weights: dict[str, float] = {}
    for name, weight in named_weights(text):
        name = current_name(name)
        weights[name] = weights.get(name, 0) + weight
    return checked_weights(weights)


def named_weights(text: str) -> list[tuple[str, float]]:
    """The names and weights of `a=2,b`, in order: 1 where there is none, and no number where it is none."""
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            pairs.append((name, float(number or 1)))
        except ValueError:
            pairs.append((name, float("nan")))
    return pairs


def checked_weights(weights: dict[str, float]) -> dict[str, float]:
    """Weights by source, as they are; raises ValueError where they name another, or none has a weight."""
    if not set(weights) <= set(SOURCES) or not all(w == 0 or 1e-6 <= w <= 1e6 for w in weights.values()):
        wrong = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
    elif not any(weights.values()):
        wrong = "none with a weight"
    else:
        return weights
    raise ValueError(
        f"Mask sources are given as weights of 0, or of 1e-6 to 1e6, such as invented=2,real=1, of "
        f"{', '.join(SOURCES)}: got {wrong}."
    )
