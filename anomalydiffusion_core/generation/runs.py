"""Runs that bring each defect type of a dataset to the asked number of accepted pairs, and continue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..bases.tiny_decoder import load_tiny_decoder
from ..dataset.layout import Category, Dataset, Pair, check_outside, normals_folder
from ..dataset.photos import Photo, read_mask, read_photo, short_hash
from ..export.mvtec import MVTecWriter, read_manifest, written_masks
from ..gate.checks import CHECKS
from ..gate.reasons import grounds, unasked
from ..gate.reference import Diversity
from ..masks.files import read_mask_folder
from ..masks.invention import TriesExhausted, invented_masks
from ..masks.sources import (
    GIVEN,
    INVENTED,
    REAL,
    UNKNOWN_AREA,
    USUAL,
    MaskRequest,
    MaskSource,
    SourcedMask,
    checked_weights,
    mask_source,
    usual_weights,
)
from ..method.embeddings import Learned
from ..method.progress import OnStage, OnStep
from ..method.sampling import NOISE
from .generator import GeneratedPair, PairGenerator
from .output import GenerationRun, RunOutput, last_invention, tried_rows

BOTH = "+"  # joins two defects that share an image


@dataclass(frozen=True)
class CategoryJob:
    """What is to be made on a category's normal photos.

    `masks` says for each defect where the masks of its types (`category/defect`, or both of `a+b`) come from,
    `real` holds the pairs by type that trained the model, for the gate.
    """

    category: Category
    masks: dict[str, dict[str, MaskSource]]
    real: dict[str, list[Pair]] = field(default_factory=dict)


@dataclass
class GenerationOutcome:
    """Manifest rows of a run's accepted pairs; by type what kept it from the asked number, and, where pairs
    were made, what its gate asks and does not ask, in lines, and how much its pairs differ.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    shortfalls: dict[str, str] = field(default_factory=dict)
    grounds: dict[str, list[str]] = field(default_factory=dict)
    diversity: dict[str, Diversity] = field(default_factory=dict)

    def others(self, root: Path) -> str:
        """That the dataset in `root` holds pairs beside this run's, in words; empty where it holds none."""
        rest = len(read_manifest(root)) - len(self.rows)
        return (
            f"The folder holds {rest} more {'pairs' if rest > 1 else 'pair'}, of other settings, photos or "
            f"types, which {'do' if rest > 1 else 'does'} not count: take another folder to keep them apart."
            if rest > 0
            else ""
        )

    @property
    def mean_fill(self) -> float:
        return float(np.mean([row["fill"] for row in self.rows])) if self.rows else 0.0


@dataclass(frozen=True)
class RunWatch:
    """What is told of a run: its stages, every denoising step, each pair that was accepted or rejected, and
    what its gate could not learn to ask.
    """

    on_stage: OnStage = lambda *_: None
    on_step: OnStep | None = None
    on_accepted: Callable[[GeneratedPair], None] = lambda pair: None
    on_rejected: Callable[[GeneratedPair], None] = lambda pair: None
    on_note: Callable[[str], None] = lambda note: None


def generate_dataset(
    run: GenerationRun, job: CategoryJob, count: int, *, out: Path, watch: RunWatch = RunWatch()
) -> GenerationOutcome:
    """Brings each defect of a job to `count` accepted pairs under `out`.

    Pairs of the same run that exist already count; a repeated call continues. Types that fall short do not
    keep the others from being made.
    """
    decode = load_tiny_decoder(run.aar_decoder, run.base) if run.aar_decoder else None
    generator = PairGenerator(
        run.base, run.learned, list(job.category.normals), run.config, real=job.real, decode=decode
    )
    output = RunOutput(run, generator, job.category, out, watch.on_stage)
    outcome = GenerationOutcome()
    for defect, masks in job.masks.items():
        name = f"{job.category.name}/{defect}"
        finished = output.done(defect)
        outcome.rows += finished
        if finished:
            watch.on_stage(name, min(count, len(finished)), count, "there already")
        if len(finished) >= count:
            continue

        for single in masks:
            known = len(job.real.get(single, []))
            watch.on_stage(f"{single} gate", 0, 1, f"calibrating on {known} real pairs")
            gate = generator.gate(single)
            watch.on_stage(f"{single} gate", 1, 1, "")
            for line in _lacking(generator, single) if single not in outcome.grounds else []:
                watch.on_note(f"{single}: {line}")
            outcome.grounds[single] = grounds(gate)

        def on_pair(done: int, tries: int, name: str = name, had: int = len(finished)) -> None:
            watch.on_stage(name, had + done, count, f"{tries} tried")

        def on_rejected(pair: GeneratedPair, defect: str = defect) -> None:
            watch.on_rejected(pair)
            if run.keep_rejected:
                output.reject(defect, pair)

        pairs = generator.accepted(
            name,
            masks,
            count - len(finished),
            start=output.next_try(defect),
            earlier=_earlier(finished, out, name, watch.on_stage),
            on_pair=on_pair,
            on_rejected=on_rejected,
            on_step=watch.on_step,
        )
        try:
            for pair in pairs:
                outcome.rows.append(output.write(defect, pair))
                watch.on_accepted(pair)
        except TriesExhausted as shortfall:
            outcome.shortfalls[name] = str(shortfall)
        for single in masks:
            of = single if single == name else f"{single} of {name}"
            outcome.diversity[of] = generator.gate(single).diversity()
    return outcome


def _lacking(generator: PairGenerator, defect_type: str) -> list[str]:
    """What cannot be done for want of real pairs of a type, in sentences."""
    lines = [f"{line} Look at the pairs." for line in unasked(generator.gate(defect_type))]
    starts = generator.drafter.config_of(defect_type).start
    if starts != NOISE and not generator.drafter.real_defects(defect_type):
        lines.append("defects start from noise, since none of its training pairs is in the dataset.")
    return lines


def _earlier(
    rows: list[dict[str, Any]], root: Path, name: str, on_stage: OnStage
) -> Iterator[tuple[dict[str, np.ndarray], Photo]]:
    """Masks by type and photos of the pairs that are there; a run can be cancelled between any two."""
    for number, row in enumerate(rows, start=1):
        yield _masks_by_type(row, root), read_photo(root / row["image"])
        on_stage(f"{name} pairs of before", number, len(rows), "read")


def _masks_by_type(row: dict[str, Any], root: Path) -> dict[str, np.ndarray]:
    """Masks (H,W) bool of a written pair by defect type."""
    masks = written_masks(root, row)
    return {f"{row['category']}/{defect}": mask for defect, mask in masks.items()}


def training_pairs(category: Category, learned: Learned, defect_type: str) -> list[Pair]:
    """Those of a category's pairs that trained a type, which the gate may be calibrated on."""
    return [pair for _, pair in _hashed_training_pairs(category, learned, defect_type)]


def _hashed_training_pairs(category: Category, learned: Learned, defect_type: str) -> list[tuple[str, Pair]]:
    """The same, each with its photo's short hash."""
    known = set(learned.trained_on.get(defect_type, []))
    pairs = [pair for pair in category.pairs if pair.defect_type == defect_type]
    hashed = [(short_hash(pair.image), pair) for pair in pairs]
    return [(digest, pair) for digest, pair in hashed if digest in known]


def _missing(found: dict[str, list[tuple[str, Pair]]], learned: Learned) -> dict[str, list[str]]:
    """Short hashes of the photos that trained a type and are not among the pairs found, where there are."""
    missing = {
        name: sorted({*learned.trained_on.get(name, [])} - {digest for digest, _ in pairs})
        for name, pairs in sorted(found.items())
    }
    return {name: hashes for name, hashes in missing.items() if hashes}


def types_to_invent(
    defect_types: list[str], dataset: Dataset, learned: Learned, weights: dict[str, float] | None
) -> list[str]:
    """Those single types whose masks must be invented: all by `weights` that say so, and without weights
    those that have none of the pairs that trained them in the dataset.
    """
    if weights:
        return defect_types if weights.get(INVENTED) else []
    categories = {name: dataset.categories.get(name.partition("/")[0]) for name in defect_types}
    return [
        name
        for name, category in categories.items()
        if not (category and training_pairs(category, learned, name))
    ]


@dataclass(frozen=True)
class MaskSupply:
    """What masks are made of: sources by weight (None: the usual ones that there are of a type), and by
    defect type the user's masks and the training pairs.
    """

    weights: dict[str, float] | None
    given: dict[str, list[np.ndarray]]
    real: dict[str, list[Pair]]

    def label(self) -> str:
        """What a manifest says of it: weights, and a hash of the masks that were given."""
        weights = self.weights or (dict.fromkeys([GIVEN], 1.0) if self.given else USUAL)
        label = ",".join(f"{name}={weight:g}" for name, weight in sorted(weights.items()))
        if not self.given:
            return label
        digest = hashlib.sha256()
        for name, masks in sorted(self.given.items()):
            digest.update(name.encode() + b"".join(np.packbits(mask).tobytes() for mask in masks))
        return f"{label} {digest.hexdigest()[:16]}"


def generate_all(
    run: GenerationRun,
    dataset: Dataset,
    count: int,
    *,
    out: Path,
    defect_types: list[str] | None = None,
    given: dict[str, list[np.ndarray]] | None = None,
    weights: dict[str, float] | None = None,
    watch: RunWatch | None = None,
) -> GenerationOutcome:
    """`count` accepted pairs of each defect type (default: all that were learned), on the dataset's normal
    photos. `category/a+b` puts both defects into every image.

    `given` are the user's own masks (H,W) bool by single type; `weights` says which sources masks come from
    (default: those given, else a mixture of real, invented and procedural ones, as far as there are any).
    """
    learned, watch = run.learned, watch or RunWatch()
    names = {name: single_types(name, learned) for name in defect_types or sorted(learned.anomaly)}
    if not names:
        what = run.artifact or "What was connected"
        raise ValueError(f"{what} holds no anomaly embedding: give what 'train' or Train Anomaly learned.")
    run.config.check_own_numbers(learned)
    categories = _categories(dataset, out, names)
    types = list(dict.fromkeys(single for singles in names.values() for single in singles))
    given = {name: masks for name, masks in (given or {}).items() if name in types}
    if given and weights and not weights.get(GIVEN):
        raise ValueError(
            f"Masks were given, but the mask sources leave them out: add {GIVEN}=1 to them, or give no masks."
        )
    found = {
        name: _hashed_training_pairs(categories[name.partition("/")[0]], learned, name) for name in types
    }
    supply = MaskSupply(
        weights=checked_weights(weights) if weights else None,
        given=given,
        real={name: [pair for _, pair in pairs] for name, pairs in found.items()},
    )
    run = replace(run, mask_sources=supply.label(), missing=_missing(found, learned))
    outcome = GenerationOutcome()
    identity, writer = run.identity(), MVTecWriter(out)
    for category in categories.values():
        masks: dict[str, dict[str, MaskSource]] = {}
        for name, singles in names.items():
            of, _, defect = name.partition("/")
            if of == category.name:
                rows = tried_rows(writer, of, defect, identity)
                masks[defect] = {
                    single: _mask_source(run, supply, single, count, watch, last_invention(rows, single))
                    for single in singles
                }
        job = CategoryJob(category, masks, supply.real)
        part = generate_dataset(run, job, count, out=out, watch=watch)
        outcome.rows += part.rows
        outcome.shortfalls |= part.shortfalls
        outcome.grounds |= part.grounds
        outcome.diversity |= part.diversity
    return outcome


def masks_in_folder(
    folder: Path, defect_types: list[str] | None, learned: Learned
) -> dict[str, list[np.ndarray]]:
    """The user's masks (H,W) bool in a folder by single defect type (default: all that were learned)."""
    names = defect_types or sorted(learned.anomaly)
    singles = {single for name in names for single in single_types(name, learned)}
    return {name: read_mask_folder(folder, *name.split("/", 1)) for name in sorted(singles)}


def single_types(name: str, learned: Learned) -> list[str]:
    """The defect types of `category/defect`, or of `category/a+b` where no type is called so itself.

    Raises ValueError naming those that exist.
    """
    category, _, defect = name.partition("/")
    if BOTH in defect and "/" in defect and name not in learned.anomaly:
        joined = BOTH.join(one.rpartition("/")[2] for one in defect.split(BOTH))
        raise ValueError(f"{name} names a category twice: write {category}/{joined}.")
    types = [name] if name in learned.anomaly else [f"{category}/{one}" for one in defect.split(BOTH)]
    for single in types:
        learned.anomaly_tokens(single)
    if len(set(types)) < len(types):
        raise ValueError(f"{name} names a defect twice: join two that differ, as in leather/cut+glue.")
    return types


def _categories(dataset: Dataset, out: Path, names: Iterable[str]) -> dict[str, Category]:
    """The dataset's categories that the types `names` belong to, in order of names."""
    check_outside(out, dataset.root)
    wanted = sorted({name.partition("/")[0] for name in names})
    for name in wanted:
        if name not in dataset.categories:
            raise ValueError(
                f"There is no category {name!r} in {dataset.root}: it has {', '.join(dataset.categories)}; "
                "name the types wanted (--type, or defect_type)."
            )
        if not dataset.categories[name].normals:
            raise ValueError(
                f"There are no normal photos of {name}: put photos of good parts into "
                f"{normals_folder(dataset.root, name)}."
            )
    return {name: dataset.categories[name] for name in wanted}


def _mask_source(
    run: GenerationRun,
    supply: MaskSupply,
    defect_type: str,
    count: int,
    watch: RunWatch,
    after: tuple[int, int],
) -> MaskSource:
    """Where the masks of one defect type come from, for `count` pairs; masks and tries up to `after` were
    invented for a run that this goes on with.
    """
    config, learned, pairs = run.config, run.learned, supply.real[defect_type]

    def on_mask(accepted: int, tries: int) -> None:
        # at least one per pair, more where pairs are tried again
        watch.on_stage(f"{defect_type} masks", accepted, max(accepted, count), f"{tries} tried")

    shapes = invented_masks(
        run.base,
        learned,
        defect_type,
        config.seed,
        config=config.masks,
        on_mask=on_mask,
        on_step=watch.on_step,
        in_frame=False,
        after=after,
    )

    def invented(number: int) -> SourcedMask:
        return SourcedMask(shapes(number), INVENTED, invention=(number, shapes.attempt_of(number)))

    request = MaskRequest(
        defect_type=defect_type,
        seed=config.seed,
        invented=invented if defect_type in learned.mask else None,
        real=cache(lambda: [read_mask(pair.mask) for pair in pairs]),
        given=supply.given.get(defect_type, []),
    )
    check = CHECKS["shape"]
    judged = "shape" in config.gate.checks and len(pairs) >= check.needs
    weights = supply.weights or usual_weights(request, judged=judged)
    # the drafter lays masks by real ones where the artifact knows no placements
    if not (learned.mask_placements.get(defect_type) or (weights.get(REAL) and pairs)):
        request = replace(request, area=learned.mask_areas.get(defect_type, UNKNOWN_AREA))
    return mask_source(weights, request)
