"""From normal photos and masks to accepted image-mask pairs: each defect region is made in a window of its
own, stitched into the photo, checked, and tried again where it is not good enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..dataset.layout import Pair
from ..dataset.photos import Photo
from ..dataset.windows import regions_of
from ..gate.features import find_backbone
from ..gate.gate import ChangedRegion, Scores, shown_share
from ..masks.invention import TriesExhausted
from ..masks.sources import MaskSource
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStep
from ..method.sampling import Decode, image_generator
from .calibration import calibrated_gate
from .config import GenerationConfig
from .drafting import Draft, DraftedDefect, Drafter
from .regions import DecodedRegion, RegionJob, RegionMaker, in_window, on_canvas, regions_on_canvas, softened

BOTH = "+"  # joins two defects that share an image


@dataclass(frozen=True)
class GeneratedPair:
    """One result at the photo's own size and depth, `mask` (H,W) bool of all parts, what made it, and what
    the gate says.
    """

    defect_type: str
    index: int  # of the try; with the run seed it fixes everything random
    normal: int  # which normal photo
    template: str
    strength: float  # of the anomaly embedding
    guidance: float
    photo: Photo  # before
    result: Photo
    mask: np.ndarray
    parts: tuple[DraftedDefect, ...]
    feather: float  # pixels over which the softest outline fades in
    regions: tuple[tuple[str, ChangedRegion], ...]  # with the defect type of each
    scores: Scores = Scores()
    problems: tuple[str, ...] = ()  # what the gate found wrong
    attention: np.ndarray | None = None  # (S,n*S,3) uint8: what the tokens of the first region looked at

    @property
    def pixels(self) -> np.ndarray:
        """(H,W,3) uint8 of the result."""
        return self.result.pixels

    @property
    def fill(self) -> float:
        """Share of the whole mask that shows."""
        return shown_share([made for _, made in self.regions])

    @property
    def noise(self) -> float:
        """Grey levels that a change must exceed to count for fill, in the noisiest region."""
        return max(made.noise for _, made in self.regions)


class PairGenerator:
    """Makes pairs of one category on its normal photos, which are read as they are needed.

    `real` are the pairs, by defect type, that the gate is calibrated on: those that trained the model.
    `decode` serves AAR mode `paper`, as in `RegionMaker`.
    """

    def __init__(
        self,
        base: LatentDiffusion,
        learned: Learned,
        normals: list[Path],
        config: GenerationConfig,
        real: dict[str, list[Pair]] | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.learned, self.config = learned, config
        self.drafter = Drafter(learned, normals, config, real or {}, str(base.device))
        self.maker = RegionMaker(base, learned, config.batch_size, decode)
        self.backbone = find_backbone(base.encode, base.fingerprint.family, str(base.device))
        self.gate = lru_cache(maxsize=None)(
            lambda defect_type: calibrated_gate(self.drafter, defect_type, self.backbone)
        )

    def accepted(
        self,
        defect_type: str,
        masks: dict[str, MaskSource],
        count: int,
        first_index: int = 0,
        on_pair: Callable[[int, int], None] = lambda accepted, tries: None,
        on_rejected: Callable[[GeneratedPair], None] = lambda pair: None,
        on_step: OnStep | None = None,
        earlier: Iterable[tuple[dict[str, np.ndarray], Photo]] = (),
    ) -> Iterator[GeneratedPair]:
        """Yields exactly `count` accepted pairs, trying indices from `first_index` on.

        Try i takes mask number i. `on_rejected` is given each pair that the gate stopped. None is too much
        like another of them, or of the `earlier` ones: masks (H,W) bool by defect type, and photo. Raises
        TriesExhausted, saying what failed how often, when tries or masks run out.
        """
        self._recall(list(masks), earlier)
        done, tries, index = 0, 0, first_index
        problems: Counter[str] = Counter()
        limit = self.config.tries_per_pair * count
        while done < count and tries < limit:
            drafts: list[Draft] = []
            while len(drafts) < min(self.config.batch_size, count - done) and tries < limit:
                try:
                    draft, problem = self.drafter.draft(defect_type, index, masks)
                except TriesExhausted:  # of the masks
                    if not drafts:
                        raise
                    break  # what is drafted is made first
                index, tries = index + 1, tries + (draft is not None)
                if draft:
                    drafts.append(draft)
                else:
                    problems[str(problem)] += 1
                if problems.total() > 50 * limit:
                    break
            if not drafts:
                break
            record = done < self.config.attention_maps
            for pair in map(self.judged, self.make(defect_type, drafts, on_step, record)):
                if pair.problems:
                    problems.update(pair.problems)
                    on_rejected(pair)
                else:
                    done += 1
                    self.remember(pair)
                    yield pair
                if done == count:
                    break
                del pair  # else it would stay in memory while the next is made
            on_pair(done, tries)
        if done < count:
            raise TriesExhausted(_shortfall(defect_type, done, count, tries, problems))

    def try_indices(self, defect_type: str, indices: range, masks: MaskSource) -> list[GeneratedPair]:
        """One pair per index whose mask is usable, good or not: for comparing settings."""
        found = [self.drafter.draft(defect_type, index, {defect_type: masks})[0] for index in indices]
        drafts, size = [draft for draft in found if draft], self.config.batch_size
        return [
            self.judged(pair)
            for start in range(0, len(drafts), size)
            for pair in self.make(defect_type, drafts[start : start + size])
        ]

    def make(
        self,
        defect_type: str,
        drafts: list[Draft],
        on_step: OnStep | None = None,
        record: bool = False,
    ) -> Iterator[GeneratedPair]:
        """Generates drafts together, and yields them stitched, one at a time, not judged yet; `record` adds
        what the tokens looked at.
        """
        jobs = [self._jobs(draft) for draft in drafts]
        sampling = {part.defect_type: self.config.sampling_of(part.defect_type) for part in drafts[0].parts}
        made = iter(self.maker.make(sum(jobs, []), sampling, on_step, record))
        for draft, own in zip(drafts, jobs, strict=True):
            yield self._stitched(defect_type, draft, own, [next(made) for _ in own])

    def _jobs(self, draft: Draft) -> list[RegionJob]:
        photo, jobs = self.drafter.photo(draft.normal), []
        for part in draft.parts:
            for number, region in enumerate(regions_of(part.mask, self.learned.image_size)):
                noise = image_generator(self.config.seed, draft.index, f"{part.defect_type} region {number}")
                jobs.append(
                    RegionJob(
                        part.defect_type,
                        draft.template,
                        region,
                        in_window(photo, region.window),
                        noise,
                        draft.strength,
                        draft.guidance,
                    )
                )
        return jobs

    def _stitched(
        self, defect_type: str, draft: Draft, jobs: list[RegionJob], made: list[DecodedRegion]
    ) -> GeneratedPair:
        photo = self.drafter.photo(draft.normal)
        result, feathers, regions = photo, [], []
        for job, region in zip(jobs, made, strict=True):
            usual = self.gate(job.defect_type).usual_seam
            result, feather = softened(
                result, region, self.config.feather, self.config.softest, usual, self.learned.image_size
            )
            feathers.append(feather)
        for job, region in zip(jobs, made, strict=True):
            after, inside = in_window(result, region.region.window).levels(), region.region.mask
            canvas = on_canvas(after, inside, self.learned.image_size)
            regions.append(
                (job.defect_type, ChangedRegion(canvas, job.photo.levels(), after, inside, region.noise))
            )
        return GeneratedPair(
            defect_type,
            draft.index,
            draft.normal,
            draft.template,
            draft.strength,
            draft.guidance,
            photo,
            result,
            np.any([part.mask for part in draft.parts], 0),
            draft.parts,
            max(feathers),
            tuple(regions),
            attention=None if made[0].heat is None else np.concatenate(list(made[0].heat), 1),
        )

    def judged(self, pair: GeneratedPair) -> GeneratedPair:
        """The pair with its scores, and what the gates of its types find wrong."""
        scores, problems = [], []
        for kind in dict.fromkeys(kind for kind, _ in pair.regions):
            gate = self.gate(kind)
            own = Scores.worst([gate.score(made) for other, made in pair.regions if other == kind])
            problems += gate.problems(own)
            scores.append(own)
        return replace(pair, scores=Scores.worst(scores), problems=tuple(dict.fromkeys(problems)))

    def remember(self, pair: GeneratedPair) -> None:
        """Takes note of an accepted pair, so that none too much like it follows."""
        for kind, made in pair.regions:
            self.gate(kind).remember(made.canvas)

    def _recall(self, kinds: list[str], earlier: Iterable[tuple[dict[str, np.ndarray], Photo]]) -> None:
        """Has the gates know the `earlier` pairs and no others, whatever was made before."""
        for kind in kinds:
            self.gate(kind).forget()
        for masks, photo in earlier:
            for kind, mask in masks.items():
                for canvas in regions_on_canvas(photo, mask, self.learned.image_size):
                    self.gate(kind).remember(canvas)

    def limits(self, pair: GeneratedPair) -> Scores:
        """What the gates ask of a pair; of several types, the strictest."""
        return Scores.strictest([self.gate(part.defect_type).limits for part in pair.parts])

    def trained_on(self, pair: GeneratedPair) -> list[str]:
        """Short hashes of the photos that taught the pair's defect types."""
        return sorted({h for part in pair.parts for h in self.learned.trained_on.get(part.defect_type, [])})


def _shortfall(defect_type: str, done: int, count: int, tries: int, problems: Counter[str]) -> str:
    reasons = ", ".join(f"{n} {problem}" for problem, n in problems.most_common())
    return (
        f"Only {done} of {count} pairs of {defect_type} were accepted in {tries} tries ({reasons}): train "
        "longer, raise the AAR strength or the tries, give other masks, or leave checks out."
    )
