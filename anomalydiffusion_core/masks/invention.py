"""Inventing masks (Eq. 10): guided sampling with a mask embedding, thresholded, and only usable ones kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.ndimage import binary_closing
from torch import Tensor

from ..method.conditioning import empty_context, mask_context
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStage, OnStep
from ..method.reweighting import AARConfig
from ..method.sampling import SamplingConfig, SamplingRequest, image_generator, sample
from ..method.templates import MASK_TEMPLATES
from .edges import border_cover
from .foreground import without_specks
from .placement import ON_OBJECT, Placer, needed_share, placer_of


@dataclass(frozen=True)
class MaskConfig:
    """How masks are invented and which are accepted. Areas are shares of the picture."""

    sampling: SamplingConfig = SamplingConfig(guidance=2.0, aar=AARConfig("off"))
    threshold: float = 0.0  # on the mean of the channels in [-1,1]; released: 0.8
    smallest: float = 0.001  # or half the type's smallest training mask, where that is less
    largest: float = 0.5  # or the type's largest, where that is more
    border: float = 1 / 3  # greatest covered share of any border line, as released
    speck: float = 0.1  # components smaller than this share of the largest are dropped
    on_object: float = ON_OBJECT  # where there is one
    tries_per_mask: int = 20


OFF_OBJECT = "off the object"
NO_OBJECT = "no object"  # in the photo, that a mask could lie on


class TriesExhausted(ValueError):
    """Raised when the asked number of results was not reached within the stated tries."""


def mask_problem(mask: np.ndarray, config: MaskConfig, foreground: np.ndarray | None = None) -> str | None:
    """Why a mask (H,W) bool is not usable, in a word, or None: empty, tiny, full, border, or off the
    object.
    """
    area = float(mask.mean())
    if area == 0:
        return "empty"
    if area < config.smallest:
        return "tiny"
    if area > config.largest:
        return "full"
    if border_cover(mask) > config.border:
        return "border"
    if foreground is not None and mask[foreground].sum() < config.on_object * mask.sum():
        return OFF_OBJECT
    return None


def usable_for(config: MaskConfig, learned: Learned, defect_type: str) -> MaskConfig:
    """`config` with `smallest` as low and `largest` as high as the defect type's own training masks ask for,
    and `on_object` as low, where they overhang the object.
    """
    placements = learned.mask_placements.get(defect_type, [])
    areas = [placement.area for placement in placements]
    # views for training enlarge thin masks: only where no placements are known
    areas = areas or [learned.mask_areas.get(defect_type, 2 * config.smallest)]
    return replace(
        config,
        smallest=min(config.smallest, min(areas) / 2),
        largest=max(config.largest, max(areas)),
        on_object=needed_share(config.on_object, placements),
    )


def clean_mask(values: np.ndarray, config: MaskConfig) -> np.ndarray:
    """Thresholds (H,W) float in [-1,1]; closes pin holes and drops specks beside the largest component."""
    mask = binary_closing(np.pad(values > config.threshold, 2), iterations=1)[2:-2, 2:-2]
    return without_specks(mask, config.speck)


def mask_picture_size(base: LatentDiffusion, image_size: int) -> int:
    """Pixels per side at which masks are learned and invented: shapes need no more than the base's own."""
    return min(image_size, base.native_size)


@torch.no_grad()
def invent_shapes(
    base: LatentDiffusion,
    learned: Learned,
    defect_type: str,
    indices: list[int],
    *,
    seed: int,
    config: MaskConfig,
    on_step: OnStep | None = None,
) -> list[np.ndarray]:
    """One try per index: shapes (s,s) bool, neither checked nor placed; the same (seed, index) gives the same
    one.
    """
    generators = [image_generator(seed, index, f"{defect_type} masks") for index in indices]
    context = mask_context(base, MASK_TEMPLATES[0], learned.mask_tokens(defect_type), len(indices))
    cells = mask_picture_size(base, learned.image_size) // base.factor
    latent = sample(
        base,
        SamplingRequest(context, empty_context(base, len(indices)), generators, on_step=on_step),
        (cells, cells),
        config.sampling,
    )
    return masks_from_pictures(base.decode(latent), config)


def masks_from_pictures(pictures: Tensor, config: MaskConfig) -> list[np.ndarray]:
    """(B,3,H,W) in [-1,1] -> masks (H,W) bool: channels averaged, thresholded, cleaned."""
    return [clean_mask(value, config) for value in pictures.mean(1).cpu().numpy()]


InventShapes = Callable[
    [list[int]], list[np.ndarray]
]  # numbers of tries -> shapes (s,s) bool, not yet checked


@dataclass(frozen=True)
class _Packed:
    """An accepted mask, in bits since runs ask for thousands, and the try that it came from."""

    bits: np.ndarray
    shape: tuple[int, ...]
    attempt: int

    def mask(self) -> np.ndarray:
        """(H,W) bool."""
        return np.unpackbits(self.bits, count=math.prod(self.shape)).astype(bool).reshape(self.shape)


class InventedMasks:
    """The accepted masks of one type, invented as they are needed: number i is the same whatever was asked
    before. Without `place` they stay where they were invented, for `placement.lay`.

    `after` is the number of a mask and of the try that it came from: those up to it are not invented again,
    unless one of them is asked for.
    """

    def __init__(
        self,
        invent: InventShapes,
        place: Placer | None,
        defect_type: str,
        config: MaskConfig = MaskConfig(),
        *,
        batch: int = 8,
        on_mask: Callable[[int, int], None] = lambda accepted, tries: None,
        after: tuple[int, int] = (-1, -1),
    ) -> None:
        self.invent, self.place, self.defect_type, self.config = invent, place, defect_type, config
        self.batch, self.on_mask = batch, on_mask
        self.problems: Counter[str] = Counter()
        self._begin(*after)

    def _begin(self, number: int, attempt: int) -> None:
        self._first, self._passed = number + 1, attempt + 1
        # batches stay the same, since a mask's last digits depend on those beside it
        self.tries = self._passed // self.batch * self.batch
        self._accepted: list[_Packed] = []

    def __call__(self, number: int) -> np.ndarray:
        """Mask (S,S) bool, or shape (s,s) bool where unplaced. Raises TriesExhausted, saying what was wrong
        how often, when too few are usable.
        """
        return self._packed(number).mask()

    def attempt_of(self, number: int) -> int:
        """The number of the try that mask `number` came from."""
        return self._packed(number).attempt

    def _packed(self, number: int) -> _Packed:
        if number < self._first:
            self._begin(-1, -1)
        while self._first + len(self._accepted) <= number:
            if self.tries >= self.config.tries_per_mask * (number + 1):
                reasons = ", ".join(f"{n} {problem}" for problem, n in self.problems.most_common())
                raise TriesExhausted(
                    f"Only {self._first + len(self._accepted)} of {number + 1} masks of {self.defect_type} "
                    f"were usable after {self.tries} tries ({reasons}): train the masks on more pairs (a "
                    "larger share) or longer, or use real masks."
                )
            numbers = range(self.tries, self.tries + self.batch)
            for attempt, (mask, problem) in zip(numbers, self.attempt(list(numbers)), strict=True):
                if attempt < self._passed:
                    continue
                if problem:
                    self.problems[problem] += 1
                else:
                    self._accepted.append(_Packed(np.packbits(mask), mask.shape, attempt))
            self.tries += self.batch
            self.on_mask(self._first + len(self._accepted), self.tries)
        return self._accepted[number - self._first]

    @property
    def accepted(self) -> list[np.ndarray]:
        """Those accepted so far."""
        return [packed.mask() for packed in self._accepted]

    def attempt(self, numbers: list[int]) -> list[tuple[np.ndarray, str | None]]:
        """Tries by number: masks, placed where their shapes are usable, and what is wrong with each."""
        results = []
        for number, shape in zip(numbers, self.invent(numbers), strict=True):
            mask, problem = shape, mask_problem(shape, self.config)
            if self.place and not problem:
                mask = self.place(shape, number)
                problem = mask_problem(mask, self.config)
            results.append((mask, problem))
        return results


def invented_masks(
    base: LatentDiffusion,
    learned: Learned,
    defect_type: str,
    seed: int,
    *,
    config: MaskConfig = MaskConfig(),
    batch: int = 8,
    on_mask: Callable[[int, int], None] = lambda accepted, tries: None,
    on_step: OnStep | None = None,
    in_frame: bool = True,
    after: tuple[int, int] = (-1, -1),
) -> InventedMasks:
    """Masks that the base invents, accepted by the measure of their own type: laid `in_frame` where the
    training masks were in their photos, or left where they were invented; `after` as in `InventedMasks`.
    """
    config = usable_for(config, learned, defect_type)
    invent = partial(invent_shapes, base, learned, defect_type, seed=seed, config=config, on_step=on_step)
    place = placer_of(learned, defect_type, seed) if in_frame else None
    return InventedMasks(invent, place, defect_type, config, batch=batch, on_mask=on_mask, after=after)


def invent_masks(
    base: LatentDiffusion,
    learned: Learned,
    defect_type: str,
    count: int,
    *,
    seed: int,
    config: MaskConfig = MaskConfig(),
    on_mask: Callable[[int, int], None] = lambda accepted, tries: None,
) -> list[np.ndarray]:
    """Exactly `count` accepted masks (S,S) bool of one type.

    Raises TriesExhausted, saying what was wrong how often, after `tries_per_mask` tries for each.
    """
    masks = invented_masks(base, learned, defect_type, seed, config=config, on_mask=on_mask)
    return [masks(number) for number in range(count)]


@dataclass(frozen=True)
class Invention:
    """Invented masks (S,S) bool by defect type, and why other types have none."""

    masks: dict[str, list[np.ndarray]]
    shortfalls: dict[str, str]


def invent_for_types(
    base: LatentDiffusion,
    learned: Learned,
    defect_types: list[str],
    count: int,
    *,
    seed: int,
    config: MaskConfig,
    on_stage: OnStage,
) -> Invention:
    """`count` accepted masks of each type; those that fall short do not cost the others theirs.

    Raises TriesExhausted where all fall short, ValueError where a type has no mask embedding.
    """
    if not defect_types:
        raise ValueError("What was learned holds no mask embedding: train with --mask-steps above 0.")
    for name in defect_types:
        learned.mask_tokens(name)
    masks, shortfalls = dict[str, list[np.ndarray]](), dict[str, str]()
    for name in defect_types:

        def on_mask(accepted: int, tries: int, name: str = name) -> None:
            on_stage(name, min(accepted, count), count, f"{tries} tried")  # a batch may give more

        try:
            masks[name] = invent_masks(base, learned, name, count, seed=seed, config=config, on_mask=on_mask)
        except TriesExhausted as shortfall:
            shortfalls[name] = str(shortfall)
    if not masks:
        raise TriesExhausted(" ".join(shortfalls.values()))
    return Invention(masks, shortfalls)
