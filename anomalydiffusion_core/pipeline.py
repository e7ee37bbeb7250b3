"""The whole job on folders: a dataset becomes an artifact, and an artifact a generated dataset."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from .checkpoint import Checkpoints
from .dataset.layout import Dataset, Pair, split_pairs
from .dataset.photos import short_hash
from .dataset.views import ViewPool, make_mask_views, make_views
from .embeddings import AnomalyModel
from .fitting import History, Keeper, TrainingStopped, Validation, fit, training_record
from .foreground import object_finder
from .latent_diffusion import LatentDiffusion
from .masks import mask_picture_size
from .placement import places_of
from .spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from .templates import PHOTO_TEMPLATES
from .training import AnomalyTask, MaskTask, Task, TrainingConfig

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


@dataclass(frozen=True)
class End:
    """How a training ended: of itself, `interrupted` by a KeyboardInterrupt, or by a `problem`."""

    interrupted: bool = False
    problem: str = ""


@dataclass
class TrainingOutcome:
    """What `train_model` hands back: the best of what was learned, also where it was `interrupted`, or a
    `problem` stopped it.
    """

    model: AnomalyModel
    improvement: Improvement | None
    interrupted: bool = False
    problem: str = ""

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return not self.interrupted and not self.problem


def train_model(
    base: LatentDiffusion,
    dataset: Dataset,
    config: TrainingConfig,
    mask_steps: int,
    share: float,
    on_stage: OnStage = lambda *_: None,
    checkpoints: Checkpoints | None = None,
) -> TrainingOutcome:
    """Learns e_a, E and (with `mask_steps` > 0) e_m of every type in the dataset.

    The first `share` of each type's pairs trains; the rest only measures. With share 1 nothing is held out.
    A KeyboardInterrupt ends the stage under way, as does a loss that explodes or memory that runs out; the
    outcome holds the best of what was learned so far. With `checkpoints` it goes on where it was cut off.
    """
    origin = {"dataset": dataset.fingerprint(), "base": base.fingerprint.weights, "share": share}
    keepers = {
        name: checkpoints.stage(name, origin) if checkpoints else None for name in ("anomaly", "masks")
    }
    outcome = train_anomaly(base, dataset, config, share, on_stage, keeper=keepers["anomaly"])
    try:
        if mask_steps and outcome.finished:
            mask_config = replace(config, steps=mask_steps)
            end = train_masks(
                base, dataset, outcome.model, mask_config, share, on_stage, keeper=keepers["masks"]
            )
            outcome.interrupted, outcome.problem = end.interrupted, end.problem
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
    keeper: Keeper | None = None,
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
    end = _run(task, config, validation, "train", on_stage, monitor, keeper)
    task.into(model)
    model.training["anomaly"] = training_record(config, monitor.history)
    improvement, measured = None, monitor.history.validation
    if (best := monitor.history.best()) is not None:
        improvement = paired_improvement(measured[0][1].numpy(), measured[best][1].numpy())
        model.training["improvement"] = asdict(improvement)
    return TrainingOutcome(model, improvement, end.interrupted, end.problem)


def train_masks(
    base: LatentDiffusion,
    dataset: Dataset,
    model: AnomalyModel,
    config: TrainingConfig,
    share: float,
    on_stage: OnStage = lambda *_: None,
    monitor: Monitor | None = None,
    keeper: Keeper | None = None,
) -> End:
    """Learns e_m of every type in the dataset, from the masks of its training pairs, into `model`.

    `model` holds what was learned so far, however it ended.
    """
    monitor, generator = monitor or Monitor(), torch.Generator().manual_seed(config.seed)
    training, size = _split(dataset, share)[0], mask_picture_size(base, config.image_size)
    pictures = make_mask_views(base, training, config.views_per_pair, size, generator)
    task = MaskTask(base, pictures, config)
    end = _run(task, config, None, "masks", on_stage, monitor, keeper)
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
    return end


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
    keeper: Keeper | None,
) -> End:
    def on_step(step: int, total: int, loss: float) -> None:
        monitor.look(task, step, total)
        on_stage(stage, step, total, f"loss {loss:.4f}")

    try:
        fit(task, config, validation, on_step, monitor.history, keeper)
    except KeyboardInterrupt:
        return End(interrupted=True)
    except TrainingStopped as stopped:
        return End(problem=str(stopped))
    except OSError as error:  # of a checkpoint
        return End(problem=f"{error.filename or stage}: {error.strerror or error}; nothing more was learned.")
    except torch.OutOfMemoryError:
        return End(problem="The device ran out of memory: lower batch or size, then resume or train again.")
    return End()


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
