"""Runs that bring each defect type of a dataset to the asked number of accepted pairs, and continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..bases.tiny_decoder import decoder_file, load_tiny_decoder
from ..dataset.layout import Category, Pair, find_dataset
from ..dataset.photos import file_hash, list_images, read_mask, read_photo, short_hash
from ..export.mvtec import MVTecWriter
from ..masks.invention import TriesExhausted, invented_masks
from ..masks.sources import GIVEN, INVENTED, REAL, MaskSource, checked_weights, mask_source
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStage, OnStep
from .config import GenerationConfig
from .generator import BOTH, GeneratedPair, PairGenerator

DEFAULT_AREA = 0.01  # share of the photo that a procedural mask covers where nothing is known of its type
BUDGET = ("tries_per_pair", "batch_size")  # settings that no pair depends on


@dataclass(frozen=True)
class GenerationRun:
    """One call of `generate_dataset`: what identifies it in the manifest."""

    artifact: Path
    config: GenerationConfig
    base: LatentDiffusion
    mask_sources: str = INVENTED  # their weights, and a hash of masks that were given
    keep_rejected: bool = False
    aar_decoder: Path | None = None  # of AAR mode `paper`, instead of the base's own

    def settings(self) -> dict[str, object]:
        """Everything but the seed's index that makes a pair what it is."""
        config = {key: value for key, value in asdict(self.config).items() if key not in BUDGET}
        return {
            "artifact_sha256": file_hash(self.artifact),
            "base_family": self.base.fingerprint.family,
            "base_weights": self.base.fingerprint.weights,
            "package_version": __version__,
            "torch": torch.__version__,
            "mask_sources": self.mask_sources,
            "config": config,
            **({"aar_decoder_sha256": file_hash(decoder_file(self.aar_decoder))} if self.aar_decoder else {}),
        }

    def identity(self) -> str:
        """Hash (12 hex digits) of the settings: the same command again continues the same run."""
        settings = json.dumps(self.settings(), sort_keys=True, default=str)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


@dataclass
class GenerationOutcome:
    """Manifest rows of a run's accepted pairs, and by type what kept it from the asked number."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    shortfalls: dict[str, str] = field(default_factory=dict)

    @property
    def mean_fill(self) -> float:
        return float(np.mean([row["fill"] for row in self.rows])) if self.rows else 0.0


def generate_dataset(
    run: GenerationRun,
    learned: Learned,
    category: Category,
    masks: dict[str, dict[str, MaskSource]],
    count: int,
    out: Path,
    real: dict[str, list[Pair]] | None = None,
    on_stage: OnStage = lambda *_: None,
    on_step: OnStep | None = None,
) -> GenerationOutcome:
    """Brings each defect of `masks` to `count` accepted pairs under `out`.

    `masks` says for each defect where the masks of its types (`category/defect`, or both of `a+b`) come from,
    `real` holds the pairs that trained them, for the gate. Pairs of the same run that exist already count; a
    repeated call continues. Types that fall short do not keep the others from being made.
    """
    generator = PairGenerator(
        run.base,
        learned,
        list(category.normals),
        run.config,
        real,
        load_tiny_decoder(run.aar_decoder, run.base) if run.aar_decoder else None,
    )
    output = _Output(run, generator, category, out)
    outcome = GenerationOutcome()
    for defect, given_masks in masks.items():
        name = f"{category.name}/{defect}"
        finished = output.done(defect)
        outcome.rows += finished
        missing = count - len(finished)
        if missing <= 0:
            continue

        def report(done: int, tries: int, name: str = name, had: int = len(finished)) -> None:
            on_stage(name, had + done, count, f"{tries} tried")

        pairs = generator.accepted(
            name,
            given_masks,
            missing,
            output.next_index(defect),
            report,
            partial(output.reject, defect) if run.keep_rejected else lambda pair: None,
            on_step,
            ((_parts_of(row, out), read_photo(out / row["image"])) for row in finished),
        )
        try:
            for pair in pairs:
                outcome.rows.append(output.write(defect, pair))
        except TriesExhausted as shortfall:
            outcome.shortfalls[name] = str(shortfall)
    return outcome


class _Output:
    """Where a run's pairs of one category go, with the normal photos they were made on."""

    def __init__(self, run: GenerationRun, generator: PairGenerator, category: Category, root: Path) -> None:
        self.generator, self.category = generator, category
        self.identity, self.settings = run.identity(), run.settings()
        self.writer = MVTecWriter(root)
        self.normals: list[str] = []
        self.sources = [file_hash(path) for path in category.normals]

    def done(self, defect: str) -> list[dict[str, Any]]:
        """Rows of this run's pairs that are there already."""
        return self.writer.done(self.category.name, defect, self.identity)

    def next_index(self, defect: str) -> int:
        """The first index that this run has not tried, as far as is known."""
        tried = self.done(defect) + self.writer.rejected(self.category.name, defect, self.identity)
        return 1 + max((int(row["index"]) for row in tried), default=-1)

    def write(self, defect: str, pair: GeneratedPair) -> dict[str, Any]:
        """Appends an accepted pair; returns its manifest row."""
        name, row = self.category.name, self._row(pair)
        if len(pair.parts) > 1:
            masks = {part.defect_type.partition("/")[2]: part.mask for part in pair.parts}
            return self.writer.write_mixed(name, pair.result, masks, row)
        attention = None
        if pair.attention is not None:  # a batch records as many as it has pairs
            shown = sum("attention" in written for written in self.done(defect))
            if shown < self.generator.config.attention_maps:
                attention = Image.fromarray(pair.attention)
        return self.writer.write(name, defect, pair.result, pair.mask, row, attention)

    def reject(self, defect: str, pair: GeneratedPair) -> None:
        """Keeps a rejected pair apart."""
        row = {**self._row(pair), "rejected": ", ".join(pair.problems)}
        self.writer.reject(self.category.name, defect, pair.result, pair.mask, row)

    def _row(self, pair: GeneratedPair) -> dict[str, object]:
        self.normals = self.normals or self.writer.add_normals(
            self.category.name, map(read_photo, self.category.normals)
        )
        return {
            "run": self.identity,
            "index": pair.index,
            "normal": self.normals[pair.normal],
            "normal_sha256": self.sources[pair.normal],
            "template": pair.template,
            "masks_from": {part.defect_type: part.source for part in pair.parts},
            "strength": round(pair.strength, 4),
            "guidance": round(pair.guidance, 4),
            "feather": pair.feather,
            "fill": round(pair.fill, 4),
            "noise": round(pair.noise, 3),
            "scores": pair.scores.rounded(),
            "thresholds": self.generator.limits(pair).rounded(),
            "backbone": self.generator.backbone.name,
            **self.settings,
            "trained_on": self.generator.trained_on(pair),
        }


def _parts_of(row: dict[str, Any], root: Path) -> dict[str, np.ndarray]:
    """Masks (H,W) bool of a written pair by defect type."""
    if "labels" not in row:
        return {f"{row['category']}/{row['defect']}": read_mask(root / row["mask"])}
    labels = np.asarray(Image.open(root / row["labels"]))
    return {f"{row['category']}/{d}": labels == int(number) for number, d in row["classes"].items()}


def training_pairs(category: Category, learned: Learned, defect_type: str) -> list[Pair]:
    """Those of a category's pairs that trained a type, which the gate may be calibrated on."""
    known = set(learned.trained_on.get(defect_type, []))
    own = [pair for pair in category.pairs if pair.defect_type == defect_type]
    return [pair for pair in own if short_hash(pair.image) in known]


def generate_all(
    run: GenerationRun,
    learned: Learned,
    dataset: Path,
    count: int,
    out: Path,
    defect_types: list[str] | None = None,
    mask_folder: Path | None = None,
    weights: dict[str, float] | None = None,
    on_stage: OnStage = lambda *_: None,
) -> GenerationOutcome:
    """`count` accepted pairs of each defect type (default: all in the artifact), on the dataset's normal
    photos. `category/a+b` puts both defects into every image.

    `weights` says which sources masks come from (default: those of `mask_folder`, or generated ones).
    """
    types = defect_types or sorted(learned.anomaly)
    if not types:
        raise ValueError(f"{run.artifact} holds no anomaly embedding: give a file written by 'train'.")
    kinds = {name: kinds_of(name, learned) for name in types}
    for name, _ in run.config.aar_strengths:
        learned.anomaly_tokens(name)  # else a misspelt type would silently keep the others' strength
    found = find_dataset(dataset)
    if dataset.resolve() == out.resolve() or dataset.resolve() in out.resolve().parents:
        raise ValueError(f"{out} lies inside the dataset {dataset}: choose a folder outside it.")
    single = list(dict.fromkeys(kind for own in kinds.values() for kind in own))
    given = {name: read_mask_folder(mask_folder, *name.split("/", 1)) for name in single if mask_folder}
    weights = checked_weights(weights or {GIVEN if given else INVENTED: 1.0})
    run = replace(run, mask_sources=_sources_label(weights, given))
    outcome = GenerationOutcome()
    for category_name in sorted({name.partition("/")[0] for name in types}):
        if category_name not in found.categories:
            raise ValueError(
                f"There is no category {category_name!r} in {dataset}: it has "
                f"{', '.join(found.categories)}; name the types wanted with --type."
            )
        category = found.categories[category_name]
        real = {name: training_pairs(category, learned, name) for name in single}
        masks = {
            name.partition("/")[2]: {
                kind: _source(run, learned, kind, weights, real[kind], given.get(kind, []), count, on_stage)
                for kind in own
            }
            for name, own in kinds.items()
            if name.partition("/")[0] == category_name
        }
        made = generate_dataset(run, learned, category, masks, count, out, real, on_stage)
        outcome.rows += made.rows
        outcome.shortfalls |= made.shortfalls
    return outcome


def _source(
    run: GenerationRun,
    learned: Learned,
    kind: str,
    weights: dict[str, float],
    real: list[Pair],
    drawn: list[np.ndarray],
    count: int,
    on_stage: OnStage,
) -> MaskSource:
    generated = None
    if weights.get(INVENTED):
        on_mask = _stage_of(on_stage, kind, count)
        generated = invented_masks(
            run.base, learned, kind, run.config.seed, run.config.masks, on_mask=on_mask, in_frame=False
        )
    real_masks = [read_mask(pair.mask) for pair in real] if weights.get(REAL) else []
    area = (
        None
        if learned.mask_placements.get(kind) or real_masks
        else learned.mask_areas.get(kind, DEFAULT_AREA)
    )
    return mask_source(weights, kind, run.config.seed, generated, real_masks, drawn, area)


def kinds_of(name: str, learned: Learned) -> list[str]:
    """The defect types of `category/defect`, or of `category/a+b` where no type is called so itself.

    Raises ValueError naming those that exist.
    """
    category, _, defect = name.partition("/")
    kinds = [name] if name in learned.anomaly else [f"{category}/{one}" for one in defect.split(BOTH)]
    for kind in kinds:
        learned.anomaly_tokens(kind)
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"{name} names a defect twice: join two that differ, as in leather/cut+glue.")
    return kinds


def _sources_label(weights: dict[str, float], given: dict[str, list[np.ndarray]]) -> str:
    """What a manifest says of where masks come from: weights, and a hash of those given."""
    label = ",".join(f"{name}={weight:g}" for name, weight in sorted(weights.items()))
    if not given:
        return label
    digest = hashlib.sha256()
    for name, masks in sorted(given.items()):
        digest.update(name.encode() + b"".join(np.packbits(mask).tobytes() for mask in masks))
    return f"{label} {digest.hexdigest()[:16]}"


def _stage_of(on_stage: OnStage, stage: str, total: int) -> Callable[[int, int], None]:
    """Progress of masks drawn on the way: at least one per pair, more where pairs are tried again."""
    return lambda accepted, tries: on_stage(
        f"{stage} masks", accepted, max(accepted, total), f"{tries} tried"
    )


def read_mask_folder(folder: Path, category: str, defect: str) -> list[np.ndarray]:
    """Masks of one type: `<folder>/<category>/<defect>/*`, `<folder>/<defect>/*` or `<folder>/*`.

    Raises ValueError when there are none or one is unusable.
    """
    for candidate in (folder / category / defect, folder / defect, folder):
        paths = list_images(candidate)
        if paths:
            return [read_mask(path) for path in paths]
    raise ValueError(
        f"{folder} holds no masks for {category}/{defect}: expected {folder / category / defect}."
    )
