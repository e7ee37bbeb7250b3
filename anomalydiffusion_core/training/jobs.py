"""The whole job on folders: a dataset becomes an artifact, and an artifact a generated dataset."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ..bases.tiny import architecture
from ..dataset.layout import Dataset, Pair, split_pairs
from ..dataset.photos import short_hash
from ..dataset.views import RefreshedPool, ViewPool, make_mask_views, make_views
from ..masks.foreground import object_finder
from ..masks.invention import mask_picture_size
from ..masks.placement import placements_of
from ..method.artifact import check_base, learned_hash
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion, hash_weights
from ..method.sampling import image_generator
from ..method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from ..method.templates import PHOTO_TEMPLATES
from .defects import AnomalyTask, MaskTask, TrainingConfig
from .fitting import Validation, training_record
from .places import WORDS, PlaceTask, WordsTask, make_scenes
from .processes import ALONE, Processes
from .stage import End, Stage, TrainingRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Improvement:
    """Held-out loss before and after training, paired: mean change with its 95 % interval over pairs."""

    before: float
    after: float
    relative: float  # (after - before) / before; negative is better
    low: float
    high: float


@dataclass
class TrainingOutcome:
    """What `train_model` hands back: the best of what was learned, however it ended."""

    learned: Learned
    improvement: Improvement | None
    end: End


def train_model(
    base: LatentDiffusion,
    dataset: Dataset,
    config: TrainingConfig,
    mask_steps: int,
    share: float,
    run: TrainingRun = TrainingRun(),
    known: Learned | None = None,
    start: Learned | None = None,
) -> TrainingOutcome:
    """Learns e_a, E and (with `mask_steps` > 0) e_m of every type in the dataset.

    With a `known` model only types that are new to it are learned, with its E as it is; the outcome holds
    both, and of what was known every bit as before. E starts as the `start` model's, where one is given.

    The first `share` of each type's pairs trains; the rest only measures. With share 1 nothing is held out.
    A KeyboardInterrupt ends the stage under way, as does a loss that explodes or memory that runs out; the
    outcome holds the best of what was learned so far. With checkpoints it goes on where it was cut off.
    """
    origin = origin_of(base, dataset, share, run.processes, known, start)
    outcome = train_anomaly(base, dataset, config, share, run.stage("anomaly", origin), known, start)
    try:
        if mask_steps and outcome.end.finished:
            settings, stage = replace(config, steps=mask_steps), run.stage("masks", origin)
            masks_known = known.mask if known else ()
            outcome.end = train_masks(base, dataset, outcome.learned, settings, share, stage, masks_known)
    except KeyboardInterrupt:  # between two trainings
        outcome.end = End(interrupted=True)
    return outcome


def origin_of(
    base: LatentDiffusion,
    dataset: Dataset,
    share: float,
    processes: Processes = ALONE,
    known: Learned | None = None,
    start: Learned | None = None,
) -> dict[str, Any]:
    """What a training was on, as a checkpoint remembers it."""
    return {
        "dataset": dataset.fingerprint(),
        "base": base.fingerprint.weights,
        "precision": str(base.dtype).removeprefix("torch."),
        "adapter": hash_weights(base.adapter) if base.adapter else "",
        "share": share,
        "extends": learned_hash(known) if known else "",
        "starts from": learned_hash(start) if start else "",
        "processes": processes.count,
    }


def train_anomaly(
    base: LatentDiffusion,
    dataset: Dataset,
    config: TrainingConfig,
    share: float,
    stage: Stage | None = None,
    known: Learned | None = None,
    start: Learned | None = None,
) -> TrainingOutcome:
    """Learns e_a of every type in the dataset, and E, as `train_model` does."""
    stage = stage or Stage("anomaly")
    encoders = _first_encoders(base, config, known, start)
    training, held_out = _split(dataset, share, known.anomaly if known else {})
    generator = torch.Generator().manual_seed(config.seed)
    learned = _extendable(known, base, config) if known else empty_model(base, dataset, config)
    stage.tell("reading pairs and making views")
    _remember(learned, training)

    def views(number: int) -> ViewPool:
        drawn = image_generator(config.seed, number, "views")
        return make_views(base, training, config.views_per_pair, config.image_size, drawn)

    pools = RefreshedPool(views, config.refresh_every) if config.refresh_every else None
    pool = pools.at(0) if pools else views(0)
    validation = None
    if held_out:
        validation = Validation(make_views(base, held_out, 1, config.image_size, generator))
        validation.pool.types = _types_as_in(validation.pool, pool)
    task = AnomalyTask(base, pool, encoders, config, frozen=known is not None)
    end = stage.train(task, config, validation, pools)
    task.into(learned)
    history = stage.monitor.history
    record = training_record(config, history, stage.processes.count)
    improvement, measured = None, history.validation
    if (best := history.best()) is not None:
        improvement = paired_improvement(measured[0][1].numpy(), measured[best][1].numpy())
        (record if known else learned.training)["improvement"] = asdict(improvement)
    _record(learned, "anomaly", record, training, added=known is not None)
    return TrainingOutcome(learned, improvement, end)


def train_masks(
    base: LatentDiffusion,
    dataset: Dataset,
    learned: Learned,
    config: TrainingConfig,
    share: float,
    stage: Stage | None = None,
    known: Collection[str] = (),
) -> End:
    """Learns e_m of every type in the dataset that is not `known`, from the masks of its training pairs, into
    `learned`.

    `learned` holds what was learned so far, however it ended.
    """
    stage, generator = stage or Stage("masks"), torch.Generator().manual_seed(config.seed)
    training, size = _split(dataset, share, known)[0], mask_picture_size(base, config.image_size)
    pictures = make_mask_views(base, training, config.views_per_pair, size, generator)
    task = MaskTask(base, pictures, config)
    end = stage.train(task, config)
    task.into(learned)
    _remember(learned, training)
    finders = {
        name: object_finder(category.normals or [pair.image for pair in category.pairs])
        for name, category in dataset.categories.items()
    }
    learned.mask_placements |= {
        name: placements_of(pairs, finders[pairs[0].category]) for name, pairs in training.items()
    }
    record = training_record(config, stage.monitor.history, stage.processes.count)
    _record(learned, "mask", record, training, added=bool(known))
    return end


def _record(
    learned: Learned, kind: str, record: dict[str, object], types: Collection[str], added: bool
) -> None:
    """Notes how a model was trained, or what was `added` to one later."""
    if not added:
        learned.training[kind] = record
        return
    earlier: Any = learned.training.get("added", [])
    learned.training["added"] = [*earlier, {"kind": kind, "types": sorted(types), **record}]


def empty_model(base: LatentDiffusion, dataset: Dataset, config: TrainingConfig) -> Learned:
    """A model of the base as it stands that has learned nothing yet."""
    return Learned(
        base.fingerprint,
        config.image_size,
        PHOTO_TEMPLATES,
        dataset_fingerprint=dataset.fingerprint(),
        adapter=dict(base.adapter),
    )


def _extendable(known: Learned, base: LatentDiffusion, config: TrainingConfig) -> Learned:
    """A copy that may be added to."""
    remedy = "give the base that it was trained on"
    check_base(known.base, base.fingerprint, "The model to be extended", remedy)
    if known.image_size != config.image_size:
        raise ValueError(
            f"The model to be extended was trained at {known.image_size} px, not {config.image_size}: give "
            "the same size."
        )
    return known.copied()


def _split(
    dataset: Dataset, share: float, known: Collection[str]
) -> tuple[dict[str, list[Pair]], dict[str, list[Pair]]]:
    """Training and held-out pairs of every type that is not known yet."""
    groups = dataset.by_type()
    if not groups:
        raise ValueError(
            f"{dataset.root} holds no defect pairs: add photos under test/<defect> and their masks."
        )
    groups = {name: pairs for name, pairs in groups.items() if name not in known}
    if not groups:
        raise ValueError(f"Every defect type of {dataset.root} is known already: there is nothing to add.")
    training, held_out = {}, {}
    for name, pairs in groups.items():
        training[name], rest = split_pairs(pairs, share)
        if rest:
            held_out[name] = rest
    return training, held_out


def _remember(learned: Learned, training: dict[str, list[Pair]]) -> None:
    for name, pairs in training.items():
        learned.remember(name, [short_hash(pair.image) for pair in pairs])


def _types_as_in(pool: ViewPool, other: ViewPool) -> torch.Tensor:
    return torch.tensor([other.names.index(pool.names[i]) for i in pool.types.tolist()])


def train_encoder(
    base: LatentDiffusion,
    config: TrainingConfig,
    words_steps: int,
    scenes: int,
    run: TrainingRun = TrainingRun(),
) -> TrainingOutcome:
    """Learns E alone, from so many procedural scenes: first the words for places, in `words_steps`, then
    places.

    The outcome's model has no defect types; `train_model` can start from it. It ends as `train_model` does,
    but a KeyboardInterrupt while scenes are drawn, when nothing is learned yet, is passed on.
    """

    def on_scene(done: int, total: int) -> None:
        run.on_stage("scenes", done, total, "drawn and encoded")

    pool = make_scenes(base, config.seed, scenes, on_scene)
    encoders = untrained_encoders(base, config.seed)
    words = replace(
        WORDS,
        steps=words_steps,
        batch_size=4 * config.batch_size,  # which needs E alone
        minutes=config.minutes,
        seed=config.seed,
    )
    learned = Learned(base.fingerprint, base.native_size, PHOTO_TEMPLATES)
    end = End()
    for name, settings, kind in (("words", words, WordsTask), ("places", config, PlaceTask)):
        if end.finished:
            stage = run.stage(name)
            end = stage.train(kind(base, pool, encoders), settings)
            learned.training[name] = training_record(settings, stage.monitor.history)
    learned.spatial_encoders = {name: encoder.eval() for name, encoder in encoders.items()}
    return TrainingOutcome(learned, None, end)


def _first_encoders(
    base: LatentDiffusion, config: TrainingConfig, known: Learned | None, start: Learned | None
) -> dict[str, SpatialEncoder]:
    """E before the first step; ValueError where `start` is of no use."""
    if start and (known or not config.spatial_encoder):
        reason = "brings its own" if known else "learns none"
        who = "A model to be extended" if known else "A training without spatial encoder"
        raise ValueError(f"{who} {reason}: leave out the spatial encoder to start from.")
    if known:
        return copy.deepcopy(known.spatial_encoders)
    return starting_encoders(base, config.seed, start) if config.spatial_encoder else {}


def starting_encoders(
    base: LatentDiffusion, seed: int = 0, start: Learned | None = None
) -> dict[str, SpatialEncoder]:
    """Copies of the spatial encoders of `start`, else the base's own pre-trained ones, else untrained ones.

    Raises ValueError where `start` is of another base family, or has none.
    """
    if start:
        check_base(start.base, base.fingerprint, "The spatial encoder to start from", "give one of this base")
        if not start.spatial_encoders:
            raise ValueError(
                "The model to start from has no spatial encoder: give one that was trained with it."
            )
        return copy.deepcopy(start.spatial_encoders)
    return copy.deepcopy(base.spatial_encoders) or untrained_encoders(base, seed)


def untrained_encoders(base: LatentDiffusion, seed: int) -> dict[str, SpatialEncoder]:
    """E per text encoder, at its token table's scale: of the paper's size, small for the tiny base."""
    vectors, encoders = base.word_vectors("scratch stain hole"), {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, width in base.token_widths.items():
            tiny = base.fingerprint.family == "tiny"
            size = replace(architecture.SPATIAL_ENCODER, width=width) if tiny else SpatialEncoderConfig(width)
            encoders[name] = SpatialEncoder(size)
            encoders[name].set_scale(float(vectors[name].square().mean().sqrt()))
    return encoders


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
