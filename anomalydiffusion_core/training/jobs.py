"""The whole job: how a dataset's defects look, where they are, and what their masks look like, on a base."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..dataset.layout import Dataset, Pair, split_pairs
from ..dataset.photos import short_hash
from ..dataset.views import RefreshedPool, ViewPool, make_mask_views, make_views
from ..masks.foreground import FindObject, object_finder
from ..masks.invention import mask_picture_size
from ..masks.placement import placements_of
from ..method.artifact import check_base, learned_hash
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion, hash_weights
from ..method.sampling import image_generator
from ..method.spatial_encoder import SpatialEncoder
from ..method.templates import PHOTO_TEMPLATES
from .adaptation import adapt_to_normals, adaptable, normal_views, normals_fingerprint
from .config import TOKENS, TrainingConfig
from .defects import AnomalyTask, MaskTask
from .encoders import starting_encoders
from .history import training_record
from .processes import ALONE, Processes
from .stage import End, Stage, TrainingOutcome, TrainingRun
from .validation import Validation, improvement_of, in_words

Pairs = dict[str, list[Pair]]  # by defect type


@dataclass(frozen=True)
class TrainingJob:
    """What is learned of which dataset on which base: e_a of every defect type, E, and e_m.

    The first `config.share` of each type's pairs trains (without one, all but a few); the rest only measures.
    Where the job `extends` what was learned before, only types that are new to it are learned, with its E as
    it is: the outcome holds both, and of what was known every bit as before. E starts as that of `start`,
    where given.
    """

    base: LatentDiffusion
    dataset: Dataset
    config: TrainingConfig = TrainingConfig()
    extends: Learned | None = None
    start: Learned | None = None

    def __post_init__(self) -> None:
        check_extension(self.config, self.extends is not None)

    @classmethod
    def of_masks(
        cls, base: LatentDiffusion, dataset: Dataset, config: TrainingConfig, learned: Learned
    ) -> TrainingJob:
        """Learns e_m of the types that `learned` lacks; of all types, where it lacks none."""
        adds = learned.mask and set(dataset.by_type()) - set(learned.mask)
        return cls(base, dataset, config, learned if adds else None)

    def run(self, run: TrainingRun = TrainingRun()) -> TrainingOutcome:
        """Adapts the base to normal photos, where that is configured, then learns defects, then masks.

        A KeyboardInterrupt ends the stage under way, as does a loss that explodes or memory that runs out;
        the outcome holds the best of what was learned so far. With checkpoints it goes on where it was cut
        off.
        """
        if not self.config.adaptation:
            return self._learn(run)
        stage, size = run.stage("normals", self.origin(run.processes)), self.config.image_size
        end = adapt_to_normals(self.base, self.dataset, self.config.adaptation, size, stage=stage)
        outcome = TrainingOutcome(self._nothing_learned(), None, end)
        try:
            if end.finished:
                outcome = self._learn(run)
        except KeyboardInterrupt:  # between two trainings
            outcome.end = End(interrupted=True)
        outcome.learned.training["normals"] = training_record(self.config.adaptation, stage.monitor.history)
        return outcome

    @cached_property
    def _finders(self) -> dict[str, FindObject | None]:
        """How objects are found on the photos of each category, from its normal ones."""
        return {
            name: object_finder(category.normals or [pair.image for pair in category.pairs])
            for name, category in self.dataset.categories.items()
        }

    def _learn(self, run: TrainingRun) -> TrainingOutcome:
        if self.config.masks:
            _ = self._finders  # a normal photo that cannot be read is told before the long work
        origin = self.origin(run.processes)
        outcome = self.train_defects(run.stage("anomaly", origin))
        try:
            if outcome.end.finished:
                outcome.end = self.train_masks(outcome.learned, run.stage("masks", origin))
        except KeyboardInterrupt:  # between two trainings
            outcome.end = End(interrupted=True)
        return outcome

    def origin(self, processes: Processes = ALONE) -> dict[str, Any]:
        """What is learned from what, as a checkpoint remembers it."""
        sees_normals = self.config.adaptation or self.config.defects.learn != TOKENS
        return {
            "dataset": self.dataset.fingerprint(),
            "base": self.base.fingerprint.weights,
            "precision": str(self.base.dtype).removeprefix("torch."),
            "adapter": hash_weights(self.base.adapter) if self.base.adapter else "",
            "image_size": self.config.image_size,
            "share": self.config.share,
            "extends": learned_hash(self.extends) if self.extends else "",
            "starts from": learned_hash(self.start) if self.start else "",
            "processes": processes.count,
            **({"normals": self._normals} if sees_normals else {}),
        }

    @cached_property
    def _normals(self) -> str:
        """The fingerprint of the normal photos, of which there may be thousands."""
        return normals_fingerprint(self.dataset)

    def split(self) -> tuple[Pairs, Pairs]:
        """The pairs that train and those that only measure, of every type that is to be learned; ValueError
        where there is none, or where `start` is of no use.
        """
        self._check_start()
        return self._split(self.extends.anomaly if self.extends else {})

    def verdict(self, outcome: TrainingOutcome) -> str:
        """Whether what a training of defects made of the job helped, for people."""
        trained, measured = (sum(map(len, part.values())) for part in self.split())
        return in_words(outcome.improvement, trained, measured)

    def train_defects(self, stage: Stage | None = None) -> TrainingOutcome:
        """Learns e_a of every type, and E."""
        stage, config = stage or Stage("anomaly"), self.config.defects
        encoders = self._encoders()
        training, held_out = self.split()
        learned = self._extended(self.extends) if self.extends else self._nothing_learned()
        stage.tell("reading pairs and making views")
        _remember(learned, training)

        def views(number: int) -> ViewPool:
            generator = image_generator(config.seed, number, "views")
            return make_views(
                self.base, training, config.views_per_pair, self.config.image_size, generator=generator
            )

        pools = RefreshedPool(views, config.refresh_every) if config.refresh_every else None
        pool = pools.at(0) if pools else views(0)
        validation = self._validation(held_out, pool) if held_out else None
        with self._adapting() as (adapter, normals):
            task = AnomalyTask(
                self.base,
                pool,
                encoders,
                config,
                frozen=self.extends is not None,
                adapter=adapter,
                normals=normals,
            )
            end = stage.train(task, config, validation, pools)
            task.into(learned)
        if adapter and end.finished:  # else it goes on from the base as it is
            adaptable(self.base).adapt(learned.adapter)
        improvement = improvement_of(stage.monitor.history)
        record = training_record(config, stage.monitor.history, stage.processes.count)
        if improvement:
            (record if self.extends else learned.training)["improvement"] = asdict(improvement)
        _record(learned, "anomaly", record, training if self.extends else ())
        return TrainingOutcome(learned, improvement, end)

    def train_masks(self, learned: Learned, stage: Stage | None = None) -> End:
        """Learns e_m of every type, from the masks of its training pairs, into `learned`; nothing where the
        job's configuration has none.

        `learned` holds what was learned so far, however it ended.
        """
        stage, config = stage or Stage("masks"), self.config.masks
        if not config:
            return End()
        known = self.extends.mask if self.extends else {}
        training = self._split(known)[0]
        size, generator = mask_picture_size(self.base, learned.image_size), _seeded(config.seed)
        pictures = make_mask_views(self.base, training, config.views_per_pair, size, generator=generator)
        task = MaskTask(self.base, pictures, config)
        end = stage.train(task, config)
        task.into(learned)
        _remember(learned, training)
        learned.mask_placements |= {
            name: placements_of(pairs, self._finders[pairs[0].category]) for name, pairs in training.items()
        }
        record = training_record(config, stage.monitor.history, stage.processes.count)
        _record(learned, "mask", record, training if known else ())
        return end

    @contextmanager
    def _adapting(self) -> Iterator[tuple[dict[str, nn.Parameter], ViewPool | None]]:
        """While active, the base's update takes part, where one is learned: its parameters, and views of the
        normal photos that keep the ground as it is.
        """
        config = self.config.defects
        if config.learn == TOKENS:
            yield {}, None
            return
        base, generator = adaptable(self.base), _seeded(config.seed)
        size, most = self.config.image_size, config.views_per_pair
        normals = normal_views(base, self.dataset, config, size, most, generator=generator)
        with base.adapting(config.rank, generator) as adapter:
            yield adapter, normals

    def _encoders(self) -> dict[str, SpatialEncoder]:
        """E before the first step; ValueError where `start` is of no use."""
        self._check_start()
        wanted = self.config.defects.spatial_encoder
        if self.extends:
            return copy.deepcopy(self.extends.spatial_encoders)
        return starting_encoders(self.base, self.config.defects.seed, self.start) if wanted else {}

    def _check_start(self) -> None:
        if self.start and (self.extends or not self.config.defects.spatial_encoder):
            reason = "keep their own" if self.extends else "learns none"
            who = "Embeddings that are extended" if self.extends else "A training without spatial encoder"
            raise ValueError(f"{who} {reason}: leave out the spatial encoder to start from.")

    def _split(self, known: Collection[str]) -> tuple[Pairs, Pairs]:
        """Training and held-out pairs of every type that is not known yet."""
        groups = self.dataset.by_type()
        if not groups:
            raise ValueError(
                f"{self.dataset.root} holds no defect pairs: add photos under test/<defect> and their masks."
            )
        groups = {name: pairs for name, pairs in groups.items() if name not in known}
        if not groups:
            raise ValueError(
                f"Every defect type of {self.dataset.root} is known already: there is nothing to add."
            )
        parts = {name: split_pairs(pairs, self.config.share) for name, pairs in groups.items()}
        training = {name: first for name, (first, _) in parts.items()}
        return training, {name: rest for name, (_, rest) in parts.items() if rest}

    def _validation(self, held_out: Pairs, pool: ViewPool) -> Validation:
        """Measurements on held-out pairs, whose types are numbered as in the pool that is trained on."""
        config = self.config.defects
        views = make_views(self.base, held_out, 1, self.config.image_size, generator=_seeded(config.seed))
        views.types = torch.tensor([pool.names.index(views.names[i]) for i in views.types.tolist()])
        return Validation(views, every=config.validate_every, patience=config.patience)

    def _nothing_learned(self) -> Learned:
        """What is learned on the base as it stands, before the first step: nothing."""
        return Learned(
            self.base.fingerprint,
            self.config.image_size,
            PHOTO_TEMPLATES,
            dataset_fingerprint=self.dataset.fingerprint(),
            adapter=dict(self.base.adapter),
        )

    def _extended(self, known: Learned) -> Learned:
        """A copy that may be added to."""
        remedy = "give the base that it was trained on"
        check_base(known.base, self.base.fingerprint, "What is to be extended", remedy)
        if known.image_size != self.config.image_size:
            raise ValueError(
                f"What is to be extended was trained at {known.image_size} px, not "
                f"{self.config.image_size}: give the same size."
            )
        return known.copied()


def check_extension(config: TrainingConfig, extends: bool) -> None:
    """Raises ValueError where embeddings are to be extended on a base that is to be changed, or where two
    trainings would change it.
    """
    if config.adaptation and config.defects.learn != TOKENS:
        raise ValueError(
            f"--adapt and --learn {config.defects.learn} exclude each other: the latter learns from normal "
            "photos, too; leave --adapt out."
        )
    if extends and config.defects.learn != TOKENS:
        raise ValueError(
            f"Extending and learning an update of the base ({config.defects.learn}) exclude each other: what "
            "is extended stays on the base that it was trained on; learn tokens."
        )
    if extends and config.adaptation:
        raise ValueError(
            "--adapt and --extend exclude each other: what is extended stays on the base that it was "
            "trained on, adapted or not; leave --adapt out."
        )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _record(learned: Learned, part: str, record: dict[str, object], added: Collection[str]) -> None:
    """Notes how a part was trained; or, where types were `added` to one later, how these were."""
    if not added:
        learned.training[part] = record
        return
    earlier: Any = learned.training.get("added", [])
    learned.training["added"] = [*earlier, {"kind": part, "types": sorted(added), **record}]


def _remember(learned: Learned, training: Pairs) -> None:
    for name, pairs in training.items():
        learned.remember(name, [short_hash(pair.image) for pair in pairs])
