"""The whole job on folders: a dataset becomes an artifact, and an artifact a generated dataset."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .dataset.layout import Category, Dataset, Pair, find_dataset, split_pairs
from .dataset.photos import file_hash, list_images, read_mask, read_photo, short_hash
from .dataset.views import ViewPool, make_mask_views, make_views
from .embeddings import AnomalyModel
from .export.mvtec import MVTecWriter
from .foreground import object_finder
from .generation import GeneratedPair, GenerationConfig, PairGenerator
from .latent_diffusion import LatentDiffusion
from .masks import MaskSource, drawn_masks, mask_picture_size, masks_in_turn
from .placement import places_of
from .sampling import OnStep
from .spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from .templates import PHOTO_TEMPLATES
from .training import (
    AnomalyTask,
    History,
    MaskTask,
    Task,
    TrainingConfig,
    Validation,
    fit,
    training_record,
)

log = logging.getLogger(__name__)
OnStage = Callable[[str, int, int, str], None]  # (stage, done, total, note)


@dataclass(frozen=True)
class Improvement:
    """Held-out loss before and after training, paired: mean change with its 95 % interval over pairs."""

    before: float
    after: float
    relative: float  # (after - before) / before; negative is better
    low: float
    high: float


@dataclass
class Monitor:
    """Looks on at a training: `history` fills step by step, and every `every` steps (0: never) `show` is
    given latents (N,C,h,w) of one view of each of the first types, and of the same drawn anew.
    """

    history: History = field(default_factory=History)
    every: int = 0
    show: Callable[[torch.Tensor, torch.Tensor], None] = lambda real, redrawn: None
    types: int = 4  # at most

    def look(self, task: Task, step: int, total: int) -> None:
        """To be called after each step."""
        if not self.every or (step % self.every and step != total):
            return
        first = [int((task.pool.types == i).nonzero()[0]) for i in range(len(task.pool.names))]
        rows = torch.tensor(first[: self.types])
        self.show(task.pool.latents[rows], task.redraw(rows))


@dataclass
class TrainingOutcome:
    """What `train_model` hands back; `interrupted` tells that it was stopped and holds what was learned so
    far.
    """

    model: AnomalyModel
    improvement: Improvement | None
    interrupted: bool = False


def train_model(
    base: LatentDiffusion,
    dataset: Dataset,
    config: TrainingConfig,
    mask_steps: int,
    share: float,
    on_stage: OnStage = lambda *_: None,
) -> TrainingOutcome:
    """Learns e_a, E and (with `mask_steps` > 0) e_m of every type in the dataset.

    The first `share` of each type's pairs trains; the rest only measures. With share 1 nothing is held out.
    A KeyboardInterrupt ends the stage under way; the outcome holds what was learned so far.
    """
    outcome = train_anomaly(base, dataset, config, share, on_stage)
    try:
        if mask_steps and not outcome.interrupted:
            mask_config = replace(config, steps=mask_steps)
            outcome.interrupted = train_masks(base, dataset, outcome.model, mask_config, share, on_stage)
    except KeyboardInterrupt:  # between two trainings
        outcome.interrupted = True
    return outcome


def train_anomaly(
    base: LatentDiffusion,
    dataset: Dataset,
    config: TrainingConfig,
    share: float,
    on_stage: OnStage = lambda *_: None,
    monitor: Monitor | None = None,
) -> TrainingOutcome:
    """Learns e_a of every type in the dataset, and E, as `train_model` does."""
    monitor = monitor or Monitor()
    training, held_out = _split(dataset, share)
    generator = torch.Generator().manual_seed(config.seed)
    model = AnomalyModel(
        base.fingerprint, config.image_size, PHOTO_TEMPLATES, dataset_fingerprint=dataset.fingerprint()
    )
    on_stage("read", 0, 1, "reading pairs and making views")
    _remember(model, training)
    pool = make_views(base, training, config.views_per_pair, config.image_size, generator)
    validation = None
    if held_out:
        validation = Validation(make_views(base, held_out, 1, config.image_size, generator))
        validation.pool.types = _types_as_in(validation.pool, pool)
    task = AnomalyTask(base, pool, starting_encoders(base) if config.spatial_encoder else {}, config)
    interrupted = _run(task, config, validation, "train", on_stage, monitor)
    task.into(model)
    model.training["anomaly"] = training_record(config, monitor.history)
    improvement = None
    if len(monitor.history.validation) == 2:
        (_, before), (_, after) = monitor.history.validation
        improvement = paired_improvement(before.numpy(), after.numpy())
        model.training["improvement"] = asdict(improvement)
    return TrainingOutcome(model, improvement, interrupted)


def train_masks(
    base: LatentDiffusion,
    dataset: Dataset,
    model: AnomalyModel,
    config: TrainingConfig,
    share: float,
    on_stage: OnStage = lambda *_: None,
    monitor: Monitor | None = None,
) -> bool:
    """Learns e_m of every type in the dataset, from the masks of its training pairs, into `model`.

    Returns whether a KeyboardInterrupt ended it; `model` holds what was learned so far.
    """
    monitor, generator = monitor or Monitor(), torch.Generator().manual_seed(config.seed)
    training, size = _split(dataset, share)[0], mask_picture_size(base, config.image_size)
    pictures = make_mask_views(base, training, config.views_per_pair, size, generator)
    task = MaskTask(base, pictures, config)
    interrupted = _run(task, config, None, "masks", on_stage, monitor)
    task.into(model)
    _remember(model, training)
    finders = {
        name: object_finder(category.normals or [pair.image for pair in category.pairs])
        for name, category in dataset.categories.items()
    }
    model.mask_places |= {
        name: places_of(pairs, finders[pairs[0].category]) for name, pairs in training.items()
    }
    model.training["mask"] = training_record(config, monitor.history)
    return interrupted


def _split(dataset: Dataset, share: float) -> tuple[dict[str, list[Pair]], dict[str, list[Pair]]]:
    groups = dataset.by_type()
    if not groups:
        raise ValueError(
            f"{dataset.root} holds no defect pairs: add photos under test/<defect> and their masks."
        )
    training, held_out = {}, {}
    for name, pairs in groups.items():
        training[name], rest = split_pairs(pairs, share)
        if rest:
            held_out[name] = rest
    return training, held_out


def _remember(model: AnomalyModel, training: dict[str, list[Pair]]) -> None:
    for name, pairs in training.items():
        model.remember(name, [short_hash(pair.image) for pair in pairs])


def _types_as_in(pool: ViewPool, other: ViewPool) -> torch.Tensor:
    return torch.tensor([other.names.index(pool.names[i]) for i in pool.types.tolist()])


def starting_encoders(base: LatentDiffusion) -> dict[str, SpatialEncoder]:
    """The base's own pre-trained spatial encoders, or fresh ones of the paper's size."""
    if base.spatial_encoders:
        return copy.deepcopy(base.spatial_encoders)
    encoders = {}
    for name, width in base.token_widths.items():
        encoders[name] = SpatialEncoder(SpatialEncoderConfig(width))
        encoders[name].set_scale(float(base.word_vectors("scratch stain hole")[name].square().mean().sqrt()))
    return encoders


def _run(
    task: Task,
    config: TrainingConfig,
    validation: Validation | None,
    stage: str,
    on_stage: OnStage,
    monitor: Monitor,
) -> bool:
    """Trains; returns whether a KeyboardInterrupt ended it."""

    def on_step(step: int, total: int, loss: float) -> None:
        monitor.look(task, step, total)
        on_stage(stage, step, total, f"loss {loss:.4f}")

    try:
        fit(task, config, validation, on_step, monitor.history)
    except KeyboardInterrupt:
        return True
    return False


def paired_improvement(before: np.ndarray, after: np.ndarray, resamples: int = 4000) -> Improvement:
    """Relative change of the mean loss (N, draws), with a 95 % bootstrap interval over the N pairs."""
    rng = np.random.default_rng(0)
    before, after = before.mean(1), after.mean(1)
    rows = rng.integers(0, len(before), (resamples, len(before)))
    ratios = after[rows].mean(1) / before[rows].mean(1) - 1
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Improvement(
        float(before.mean()),
        float(after.mean()),
        float(after.mean() / before.mean() - 1),
        float(low),
        float(high),
    )


@dataclass(frozen=True)
class GenerationRun:
    """One call of `generate_dataset`: what identifies it in the manifest."""

    artifact: Path
    config: GenerationConfig
    base: LatentDiffusion
    mask_source: str = "drawn"  # or a hash of the masks given

    def settings(self) -> dict[str, object]:
        """Everything but the seed's index that makes a pair what it is."""
        return {
            "artifact_sha256": file_hash(self.artifact),
            "base_family": self.base.fingerprint.family,
            "base_weights": self.base.fingerprint.weights,
            "package_version": __version__,
            "torch": torch.__version__,
            "mask_source": self.mask_source,
            "config": asdict(self.config),
        }

    def identity(self) -> str:
        """Hash (12 hex digits) of the settings: the same command again continues the same run."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True, default=str).encode()).hexdigest()[
            :12
        ]


def generate_dataset(
    run: GenerationRun,
    model: AnomalyModel,
    category: Category,
    masks: dict[str, MaskSource],
    count: int,
    out: Path,
    on_stage: OnStage = lambda *_: None,
    on_step: OnStep | None = None,
) -> list[dict[str, Any]]:
    """Brings each defect of `masks` to `count` accepted pairs under `out`; returns their manifest rows.

    `masks` says for each defect where its masks come from. Pairs of the same run that exist already count;
    a repeated call continues. Raises TriesExhausted when a type falls short; what was accepted stays.
    """
    generator = PairGenerator(run.base, model, list(category.normals), run.config)
    identity, settings = run.identity(), run.settings()
    rows: list[dict[str, Any]] = []
    writer = MVTecWriter(out)
    normals: list[str] = []
    sources = [file_hash(path) for path in category.normals]
    for defect, defect_masks in masks.items():
        name = f"{category.name}/{defect}"
        finished = writer.done(category.name, defect, identity)
        rows += finished
        missing = count - len(finished)
        if missing <= 0:
            continue
        first = 1 + max((int(row["index"]) for row in finished), default=-1)

        def report(accepted: int, tries: int, name: str = name, had: int = len(finished)) -> None:
            on_stage(name, had + accepted, count, f"{tries} tried")

        for pair in generator.accepted(name, defect_masks, missing, first, report, on_step):
            normals = normals or writer.add_normals(category.name, map(read_photo, category.normals))
            row = {"run": identity, **_pair_row(pair, normals, sources), **settings}
            row["trained_on"] = model.trained_on.get(name, [])
            rows.append(writer.write(category.name, defect, pair.pixels, pair.mask, pair.photo.gray, row))
    return rows


def _pair_row(pair: GeneratedPair, normals: list[str], sources: list[str]) -> dict[str, object]:
    return {
        "index": pair.index,
        "normal": normals[pair.normal],
        "normal_sha256": sources[pair.normal],
        "template": pair.template,
        "fill": round(pair.fill, 4),
        "noise": round(pair.noise, 3),
    }


def generate_all(
    base: LatentDiffusion,
    model: AnomalyModel,
    artifact: Path,
    dataset: Path,
    defect_types: list[str] | None,
    mask_folder: Path | None,
    count: int,
    out: Path,
    config: GenerationConfig,
    on_stage: OnStage = lambda *_: None,
) -> list[dict[str, Any]]:
    """`count` accepted pairs of each defect type (default: all in the artifact), on the dataset's normal
    photos.
    """
    types = defect_types or sorted(model.anomaly)
    if not types:
        raise ValueError(f"{artifact} holds no anomaly embedding: give a file written by 'train'.")
    for name in types:
        model.anomaly_tokens(name)
    found = find_dataset(dataset)
    if dataset.resolve() == out.resolve() or dataset.resolve() in out.resolve().parents:
        raise ValueError(f"{out} lies inside the dataset {dataset}: choose a folder outside it.")
    rows: list[dict[str, Any]] = []
    given = (
        {name: read_mask_folder(mask_folder, *name.split("/", 1)) for name in types} if mask_folder else {}
    )
    run = GenerationRun(artifact, config, base, _hash_masks(given) if given else "drawn")
    for category_name in sorted({name.partition("/")[0] for name in types}):
        if category_name not in found.categories:
            raise ValueError(
                f"There is no category {category_name!r} in {dataset}: it has "
                f"{', '.join(found.categories)}; name the types wanted with --type."
            )
        masks: dict[str, MaskSource] = {}
        for name in (n for n in types if n.partition("/")[0] == category_name):
            defect = name.partition("/")[2]
            masks[defect] = (
                masks_in_turn(given[name])
                if given
                else drawn_masks(
                    base, model, name, config.seed, config.masks, on_mask=_stage_of(on_stage, name, count)
                )
            )
        rows += generate_dataset(run, model, found.categories[category_name], masks, count, out, on_stage)
    return rows


def _hash_masks(given: dict[str, list[np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, masks in sorted(given.items()):
        digest.update(name.encode() + b"".join(np.packbits(mask).tobytes() for mask in masks))
    return digest.hexdigest()[:16]


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
