"""What a run of a generation is, and where its pairs go with their manifest rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..bases.tiny_decoder import decoder_file
from ..dataset.layout import Category
from ..dataset.photos import Photo, file_hash, read_photo
from ..export.mvtec import MVTecWriter
from ..export.writer import ExportPair
from ..gate.features import backbone_name
from ..masks.sources import INVENTED
from ..method.artifact import learned_hash
from ..method.embeddings import Learned
from ..method.latent_diffusion import LatentDiffusion
from ..method.progress import OnStage
from .config import TUNED, GenerationConfig
from .drafting import TryNumber
from .generator import GeneratedPair, PairGenerator

# How pairs are made. Raise it with every change after which the same settings give other pixels, masks or
# scores: a dataset that was begun before is then appended to by a run of its own, not continued.
METHOD = "generation/8"
BUDGET = ("tries_per_pair", "batch_size")  # settings that no pair depends on


@dataclass(frozen=True)
class GenerationRun:
    """What identifies a run in the manifest, and what it keeps.

    The same settings on the same base are the same run on every host, whether what was learned comes from a
    file (`artifact`) or not.
    """

    learned: Learned
    config: GenerationConfig
    base: LatentDiffusion
    artifact: Path | None = None  # the file that `learned` was read from, for the record
    mask_sources: str = INVENTED  # their weights, and a hash of masks that were given
    missing: dict[str, list[str]] = field(default_factory=dict)  # by type, training photos not at hand (hash)
    keep_rejected: bool = False
    aar_decoder: Path | None = None  # of AAR modes that compare pixels, instead of the base's own

    def settings(self) -> dict[str, object]:
        """Everything but the seed's index that makes a pair what it is."""
        config = {key: value for key, value in asdict(self.config).items() if key not in BUDGET}
        return {
            "learned_sha256": learned_hash(self.learned),
            "base_family": self.base.fingerprint.family,
            "base_weights": self.base.fingerprint.weights,
            "method_version": METHOD,
            "torch": torch.__version__,
            "mask_sources": self.mask_sources,
            "features": backbone_name(self.base.fingerprint.family),
            "config": config,
            **({"missing_pairs": self.missing} if self.missing else {}),
            **({"tunings": tunings} if (tunings := self._tunings()) else {}),
            **({"aar_decoder_sha256": file_hash(decoder_file(self.aar_decoder))} if self.aar_decoder else {}),
        }

    def _tunings(self) -> dict[str, dict[str, object]]:
        """Settings of tuned types, where the start is theirs."""
        known = self.learned.tunings if self.config.start == TUNED else {}
        return {name: asdict(tuning) for name, tuning in known.items()}

    def identity(self) -> str:
        """Hash (12 hex digits) of the settings: the same command again continues the same run."""
        settings = json.dumps(self.settings(), sort_keys=True, default=str)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


def tried_rows(writer: MVTecWriter, category: str, defect: str, identity: str) -> list[dict[str, Any]]:
    """Rows of a run's pairs that are there already, those that were refused too."""
    return writer.done(category, defect, identity) + writer.rejected(category, defect, identity)


def last_invention(rows: list[dict[str, Any]], defect_type: str) -> tuple[int, int]:
    """The numbers of the last invented mask of a single type in a run's rows and of the try that it came
    from; -1 where there is none, as in rows of before.
    """
    noted = (row.get("inventions", {}).get(defect_type) for row in rows)
    known = [tuple(x) for x in noted if isinstance(x, list) and [type(number) for number in x] == [int, int]]
    number, attempt = max(known, default=(-1, -1))
    return number, attempt


class RunOutput:
    """Where a run's pairs of one category go, with the normal photos they were made on."""

    def __init__(
        self, run: GenerationRun, generator: PairGenerator, category: Category, root: Path, on_stage: OnStage
    ) -> None:
        self.generator, self.category, self.on_stage = generator, category, on_stage
        self.identity, self.settings = run.identity(), run.settings()
        self.artifact = {"artifact_sha256": file_hash(run.artifact)} if run.artifact else {}
        self.writer = MVTecWriter(root)
        self.normals: list[str] = []
        self.sources = [file_hash(path) for path in category.normals]

    def done(self, defect: str) -> list[dict[str, Any]]:
        """Rows of this run's pairs that are there already."""
        return self.writer.done(self.category.name, defect, self.identity)

    def next_try(self, defect: str) -> TryNumber:
        """The first try that this run has not made, as far as is known."""
        tried = tried_rows(self.writer, self.category.name, defect, self.identity)
        index, mask = (
            max((row.get(key, -1) for row in tried), default=-1) for key in ("index", "mask_number")
        )
        return TryNumber(1 + index, 1 + mask)

    def write(self, defect: str, pair: GeneratedPair) -> dict[str, Any]:
        """Appends an accepted pair; returns its manifest row."""
        masks = {drafted.defect_type.partition("/")[2]: drafted.mask for drafted in pair.defects}
        return self.writer.write(self._exported(pair, masks), self._attention(defect, pair))

    def _attention(self, defect: str, pair: GeneratedPair) -> Image.Image | None:
        """What the tokens of a single defect looked at, until as many as asked for are written."""
        if pair.attention is None or len(pair.defects) > 1:
            return None
        # a batch records as many as it has pairs
        shown = sum("attention" in written for written in self.done(defect))
        return Image.fromarray(pair.attention) if shown < self.generator.config.attention_maps else None

    def reject(self, defect: str, pair: GeneratedPair) -> None:
        """Keeps a rejected pair apart, with one mask of all its defects."""
        rejected = self._exported(pair, {defect: pair.mask})
        self.writer.reject(replace(rejected, row={**rejected.row, "rejected": ", ".join(pair.problems)}))

    def _exported(self, pair: GeneratedPair, masks: dict[str, np.ndarray]) -> ExportPair:
        return ExportPair(self.category.name, pair.result, masks, self._row(pair))

    def _row(self, pair: GeneratedPair) -> dict[str, object]:
        self.normals = self.normals or self.writer.add_normals(self.category.name, self._photos())
        return {
            "run": self.identity,
            "index": pair.number.index,
            "mask_number": pair.number.mask,
            "normal": self.normals[pair.normal],
            "normal_sha256": self.sources[pair.normal],
            "template": pair.template,
            "masks_from": {defect.defect_type: defect.source for defect in pair.defects},
            "inventions": {x.defect_type: x.invention for x in pair.defects if x.invention},
            "pasted_from": {x.defect_type: self.generator.pasted_from(x) for x in pair.defects if x.pasted},
            "strength": round(pair.strength, 4),
            "guidance": round(pair.guidance, 4),
            "contrast": round(pair.contrast, 4),
            "feather": pair.feather,
            "fill": round(pair.fill, 4),
            "noise": round(pair.noise, 3),
            "scores": pair.scores.rounded(),
            "thresholds": pair.limits.rounded(),
            "backbone": self.generator.backbone.name,
            **self.settings,
            **self.artifact,
            "package_version": __version__,  # for the record: no run depends on it
            "trained_on": self.generator.trained_on(pair),
        }

    def _photos(self) -> Iterator[Photo]:
        """The category's normal photos, read one at a time."""
        total = len(self.category.normals)
        for number, path in enumerate(self.category.normals, start=1):
            yield read_photo(path)
            self.on_stage(f"{self.category.name} normal photos", number, total, "copied")
