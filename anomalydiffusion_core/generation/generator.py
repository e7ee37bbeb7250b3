"""From normal photos and masks to accepted pairs: each region is made in its window and stitched into the
photo; the pair is judged by the gate, and others are tried until enough are accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ..dataset.layout import Pair
from ..dataset.photos import Photo
from ..gate.checks import CHECKS, Scores
from ..gate.features import find_backbone
from ..gate.region_view import ChangedRegion, shown_share
from ..gate.scores import visible
from ..masks.invention import NO_OBJECT, TriesExhausted
from ..masks.sources import GIVEN, MaskSource
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStep
from ..method.sampling import Decode, image_generator
from .calibration import calibrated_gate
from .config import GenerationConfig
from .drafting import MISSHAPEN, Draft, DraftedDefect, Drafter, TryNumber, Unusable
from .regions import (
    DecodedRegion,
    RegionJob,
    RegionMaker,
    Watch,
    in_window,
    mask_on_canvas,
    on_canvas,
    regions_on_canvas,
    shown_parts,
    softened,
)

MASKS_PER_TRY = 50  # unusable ones, after which a source counts as hopeless
MASKS_PER_PHOTO = 10  # unusable ones, after which it is the next photo's turn


@dataclass(frozen=True)
class GeneratedPair:
    """One result at the photo's own size and depth, `mask` (H,W) bool of all its defects, what made it, and
    what the gate says.
    """

    defect_type: str
    number: TryNumber
    normal: int  # which normal photo
    template: str
    strength: float  # of the anomaly embedding
    guidance: float
    contrast: float  # of a pasted defect, by that of the real one
    photo: Photo  # before
    result: Photo
    mask: np.ndarray
    defects: tuple[DraftedDefect, ...]
    feather: float  # pixels over which the softest outline fades in
    regions: tuple[tuple[str, ChangedRegion], ...]  # with the defect type of each
    scores: Scores = field(default_factory=Scores)
    limits: Scores = field(default_factory=Scores)  # what the gate asks; of several types, the strictest
    problems: tuple[str, ...] = ()  # what the gate finds wrong
    attention: np.ndarray | None = None  # (S,n*S,3) uint8: what the tokens of the first region looked at

    @property
    def pixels(self) -> np.ndarray:
        """(H,W,3) uint8 of the result."""
        return self.result.pixels

    @property
    def fill(self) -> float:
        """Share of the whole mask that shows."""
        return shown_share([region for _, region in self.regions])

    @property
    def noise(self) -> float:
        """Grey levels that a change must exceed to count for fill, in the noisiest region."""
        return max(region.noise for _, region in self.regions)


@dataclass
class _Tries:
    """The tries at pairs of one type: the next one, how many are allowed and spent, and how often each
    problem occurred.
    """

    next: TryNumber
    limit: int
    spent: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    unusable_masks: int = 0  # on the photo whose turn it is

    def drafted(self) -> None:
        """Notes that the next try is made."""
        self.spent, self.unusable_masks = self.spent + 1, 0
        self.next = TryNumber(self.next.index + 1, self.next.mask + 1)

    def unusable(self, problem: str) -> None:
        """Notes that its mask is unusable: the photo gets another one, unless that will not help."""
        self.problems[problem] += 1
        self.unusable_masks += 1
        given_up = problem == NO_OBJECT or self.unusable_masks == MASKS_PER_PHOTO
        self.unusable_masks = 0 if given_up else self.unusable_masks
        self.next = TryNumber(self.next.index + given_up, self.next.mask + 1)

    def shortfall(self, defect_type: str, done: int, count: int) -> str:
        """What kept the pairs from being made, and what to change for the most frequent reason."""
        reasons = ", ".join(f"{n} {problem}" for problem, n in self.problems.most_common())
        most = next(iter(self.problems.most_common(1)), ("", 0))[0]
        by_check = {check.problem: (name, check.remedy) for name, check in CHECKS.items()}
        name, remedy = by_check.get(most, ("", "Give other masks, or allow more tries."))
        eyes = f" Where such pairs look right to you, leave the check {name} out." if name else ""
        return (
            f"Only {done} of {count} pairs of {defect_type} were accepted in {self.spent} tries ({reasons}). "
            f"{remedy}{eyes}"
        )


class PairGenerator:
    """Makes pairs of one category on its normal photos, which are read as they are needed.

    `real` are the pairs, by defect type, that the gate is calibrated on: those that trained the model.
    `decode` serves AAR modes that compare pixels, as in `RegionMaker`.
    """

    def __init__(
        self,
        base: LatentDiffusion,
        learned: Learned,
        normals: list[Path],
        config: GenerationConfig,
        *,
        real: dict[str, list[Pair]] | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.learned, self.config = learned, config
        device = str(base.device)
        self.backbone = find_backbone(base.encode, base.fingerprint.family, device)
        self.drafter = Drafter(learned, normals, config, real or {}, backbone=self.backbone, device=device)
        self.maker = RegionMaker(base, learned, config.batch_size, decode)
        self.gate = lru_cache(maxsize=None)(
            lambda defect_type: calibrated_gate(self.drafter, defect_type, self.backbone)
        )

    def accepted(
        self,
        defect_type: str,
        masks: dict[str, MaskSource],
        count: int,
        *,
        start: TryNumber = TryNumber(),
        earlier: Iterable[tuple[dict[str, np.ndarray], Photo]] = (),
        on_pair: Callable[[int, int], None] = lambda accepted, tries: None,
        on_rejected: Callable[[GeneratedPair], None] = lambda pair: None,
        on_step: OnStep | None = None,
    ) -> Iterator[GeneratedPair]:
        """Yields exactly `count` accepted pairs, trying from `start` on.

        `on_rejected` is given each pair that the gate stopped. None is too much
        like another of them, or of the `earlier` ones: masks (H,W) bool by defect type, and photo. Raises
        TriesExhausted, saying what failed how often, when tries or masks run out.
        """
        self._recall(list(masks), earlier)
        done, tries = 0, _Tries(start, self.config.tries_per_pair * count)
        while done < count:
            drafts = self._drafts(defect_type, masks, min(self.config.batch_size, count - done), tries)
            if not drafts:
                raise TriesExhausted(tries.shortfall(defect_type, done, count))
            watch = Watch(on_step, heat=done < self.config.attention_maps)
            for pair in map(self.judged, self.make(defect_type, drafts, watch)):
                if pair.problems:
                    tries.problems.update(pair.problems)
                    on_rejected(pair)
                else:
                    done += 1
                    self.remember(pair)
                    yield pair
                if done == count:
                    break
                del pair  # else it would stay in memory while the next is made
            on_pair(done, tries.spent)

    def _drafts(
        self, defect_type: str, masks: dict[str, MaskSource], count: int, tries: _Tries
    ) -> list[Draft]:
        """The next `count` drafts, or as many as tries and masks suffice for."""
        drafts: list[Draft] = []
        while len(drafts) < count and tries.spent < tries.limit:
            try:
                drafts.append(self._draft(defect_type, tries.next, masks))
                tries.drafted()
            except Unusable as problem:
                tries.unusable(str(problem))
            except TriesExhausted:  # of the masks
                if not drafts:
                    raise
                break  # what is drafted is made first
            if tries.problems.total() > MASKS_PER_TRY * tries.limit:
                break
        return drafts

    def usable_drafts(self, defect_type: str, indices: range, masks: MaskSource) -> list[Draft]:
        """One draft per index whose mask is usable."""
        drafts = []
        for index in indices:
            with suppress(Unusable):
                number = TryNumber(index, index)
                drafts.append(self._draft(defect_type, number, {defect_type: masks}))
        return drafts

    def _draft(self, defect_type: str, number: TryNumber, masks: dict[str, MaskSource]) -> Draft:
        """A draft whose masks have their type's shape; the user's own may have any. Raises Unusable."""
        draft = self.drafter.draft(defect_type, number, masks)
        for defect in draft.defects:
            misshapen = self.gate(defect.defect_type).misshapen
            on_canvas = (mask_on_canvas(region.mask, self.learned.image_size) for region in defect.regions)
            if defect.source != GIVEN and any(map(misshapen, on_canvas)):
                raise Unusable(MISSHAPEN)
        return draft

    def try_indices(self, defect_type: str, indices: range, masks: MaskSource) -> list[GeneratedPair]:
        """One pair per index whose mask is usable, good or not: for comparing settings."""
        drafts, size = self.usable_drafts(defect_type, indices, masks), self.config.batch_size
        return [
            self.judged(pair)
            for start in range(0, len(drafts), size)
            for pair in self.make(defect_type, drafts[start : start + size])
        ]

    def make(self, defect_type: str, drafts: list[Draft], watch: Watch = Watch()) -> Iterator[GeneratedPair]:
        """Generates drafts together, and yields them stitched, one at a time, not judged yet."""
        jobs = [self._jobs(draft) for draft in drafts]
        types = [defect.defect_type for defect in drafts[0].defects]
        sampling = {name: self.drafter.config_of(name).sampling for name in types}
        decoded = iter(self.maker.make(sum(jobs, []), sampling, watch))
        for draft, draft_jobs in zip(drafts, jobs, strict=True):
            yield self._stitched(defect_type, draft, draft_jobs, [next(decoded) for _ in draft_jobs])

    def _jobs(self, draft: Draft) -> list[RegionJob]:
        photo, seed = self.drafter.photo(draft.normal), self.config.seed
        return [
            RegionJob(
                defect_type=defect.defect_type,
                template=draft.template,
                region=region,
                photo=in_window(photo, region.window),
                generator=image_generator(seed, draft.number.index, f"{defect.defect_type} region {number}"),
                strength=draft.strength,
                guidance=draft.guidance,
                contrast=draft.contrast,
                defect=self.drafter.real_defects(defect.defect_type)[pasted] if pasted is not None else None,
            )
            for defect in draft.defects
            for number, (region, pasted) in enumerate(zip_longest(defect.regions, defect.pasted))
        ]

    def _stitched(
        self, defect_type: str, draft: Draft, jobs: list[RegionJob], decoded: list[DecodedRegion]
    ) -> GeneratedPair:
        config, size = self.config, self.learned.image_size
        photo = self.drafter.photo(draft.normal)
        decoded, defects = self._as_shown(draft, jobs, decoded)
        result, feathers, changed = photo, [], []
        for job, region in zip(jobs, decoded, strict=True):
            usual = self.gate(job.defect_type).usual_seam
            result, feather = softened(
                result, region, config.feather, config.softest, usual_seam=usual, size=size
            )
            feathers.append(feather)
        given = [defect.defect_type for defect in defects if defect.source == GIVEN]
        for job, region in zip(jobs, decoded, strict=True):
            after, mask = in_window(result, job.region.window).levels(), region.region.mask
            one = ChangedRegion(
                on_canvas(after, mask, size),
                job.photo.levels(),
                after,
                mask,
                visible(region.noise),
                own_mask=job.defect_type in given,
            )
            changed.append((job.defect_type, one))
        heat = decoded[0].heat
        return GeneratedPair(
            defect_type=defect_type,
            number=draft.number,
            normal=draft.normal,
            template=draft.template,
            strength=draft.strength,
            guidance=draft.guidance,
            contrast=draft.contrast,
            photo=photo,
            result=result,
            mask=np.any([defect.mask for defect in defects], 0),
            defects=defects,
            feather=max(feathers),
            regions=tuple(changed),
            attention=None if heat is None else np.concatenate(list(heat), 1),
        )

    def _as_shown(
        self, draft: Draft, jobs: list[RegionJob], decoded: list[DecodedRegion]
    ) -> tuple[list[DecodedRegion], tuple[DraftedDefect, ...]]:
        """Regions and defects without specks that do not show; as they are, where what is left of the masks
        would not be usable.
        """
        shown = [self._shown(job, region) for job, region in zip(jobs, decoded, strict=True)]
        normal = self.drafter.normal(draft.normal)
        left = _left(draft.defects, shown, normal.photo.size)
        if any(self.drafter.problem(defect, normal) for defect in left):
            return decoded, draft.defects
        return shown, left

    def _shown(self, job: RegionJob, decoded: DecodedRegion) -> DecodedRegion:
        """The region without specks that do not show, where fill is checked."""
        gate = self.gate(job.defect_type)
        if "fill" not in gate.config.checks:
            return decoded
        return shown_parts(job.photo, decoded, self.config.feather, gate.limits["fill"])

    def judged(self, pair: GeneratedPair) -> GeneratedPair:
        """The pair with its scores, and what the gates of its types find wrong."""
        scores, limits, problems = [], [], []
        for name in dict.fromkeys(name for name, _ in pair.regions):
            gate = self.gate(name)
            worst = Scores.worst([gate.score(region) for other, region in pair.regions if other == name])
            problems += gate.problems(worst)
            scores.append(worst)
            limits.append(gate.limits)
        return replace(
            pair,
            scores=Scores.worst(scores),
            limits=Scores.strictest(limits),
            problems=tuple(dict.fromkeys(problems)),
        )

    def remember(self, pair: GeneratedPair) -> None:
        """Takes note of an accepted pair, so that none too much like it follows."""
        for name, region in pair.regions:
            self.gate(name).remember(region.view)

    def _recall(
        self, defect_types: list[str], earlier: Iterable[tuple[dict[str, np.ndarray], Photo]]
    ) -> None:
        """Makes the gates remember the `earlier` pairs and no others, whatever they accepted before."""
        for name in defect_types:
            self.gate(name).forget()
        for masks, photo in earlier:
            for name, mask in masks.items():
                for view in regions_on_canvas(photo, mask, self.learned.image_size):
                    self.gate(name).remember(view)

    def pasted_from(self, defect: DraftedDefect) -> list[str]:
        """Short hashes of the photos whose defects its regions started from; none where that was noise."""
        return [self.drafter.real_defects(defect.defect_type)[number].photo for number in defect.pasted]

    def trained_on(self, pair: GeneratedPair) -> list[str]:
        """Short hashes of the photos that taught the pair's defect types."""
        taught = (self.learned.trained_on.get(defect.defect_type, []) for defect in pair.defects)
        return sorted({photo for photos in taught for photo in photos})


def _left(
    defects: tuple[DraftedDefect, ...], decoded: list[DecodedRegion], size: tuple[int, int]
) -> tuple[DraftedDefect, ...]:
    """The defects with what is left of their masks; `decoded` has their regions in order."""
    shown, regions = [], iter(decoded)
    for defect in defects:
        mask = defect.mask.copy()
        for before in defect.regions:
            after = next(regions).region
            within = before.window.within(size)
            mask[before.window.box(size)] &= ~(before.mask & ~after.mask)[within]
        shown.append(replace(defect, mask=mask))
    return tuple(shown)
