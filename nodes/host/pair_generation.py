"""Accepted pairs by ComfyUI's MODEL, CLIP and VAE: the core's run, with progress, pictures and Cancel."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from PIL import Image
from torch import Tensor

from ...anomalydiffusion_core.dataset.layout import Category, Dataset, find_dataset
from ...anomalydiffusion_core.dataset.photos import png_bytes, read_photo, write_new
from ...anomalydiffusion_core.export.mvtec import written_masks
from ...anomalydiffusion_core.gate.lettering import Paragraph, written
from ...anomalydiffusion_core.gate.pair_picture import WIDTH, pair_picture, stacked
from ...anomalydiffusion_core.gate.reasons import Reason, advice, counted, measured, reasons
from ...anomalydiffusion_core.generation.config import GenerationConfig
from ...anomalydiffusion_core.generation.generator import GeneratedPair
from ...anomalydiffusion_core.generation.runs import (
    GenerationOutcome,
    GenerationRun,
    RunWatch,
    generate_all,
    single_types,
)
from ...anomalydiffusion_core.masks.sources import parse_weights
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.reweighting import AttentionWeights
from .base_model import ComfyModel, load_for
from .conditioning import binary_masks
from .pixels import pixels_of

SHOWN = 8  # pictures of accepted, and of rejected pairs, below the node
PREVIEW_SECONDS = 1.0  # between two pictures on the way


class SamplingModel(ComfyModel):
    """A base for sampling: its U-Net is loaded when its turn comes, since ComfyUI moves it off where the text
    encoder or the autoencoder need the room.
    """

    batch, size = GenerationConfig.batch_size, 0  # regions at a time, and their pixels per side

    def reweighted(self, weights: AttentionWeights) -> AbstractContextManager[None]:
        side = (self.size or self.native_size) // self.factor
        needed = self.model.memory_required([self.batch, self.latent_channels, side, side])
        comfy.model_management.load_models_gpu([self.model], memory_required=needed)
        return super().reweighted(weights)


@dataclass(frozen=True)
class PairRequest:
    """What a graph asks for: `count` accepted pairs of each defect type (with commas between; empty: all that
    were learned of the photos' categories) in the dataset `out`.

    Normal photos are those of the dataset, or `images` (B,H,W,3) in [0,1]; `masks` (B,H,W) are the user's
    own.
    """

    count: int
    defect_type: str
    out: Path
    dataset: Dataset | None = None
    images: Tensor | None = None
    masks: Tensor | None = None
    mask_sources: str = ""

    def names(self, learned: Learned) -> list[str]:
        """The defect types."""
        named = [name.strip() for name in self.defect_type.split(",") if name.strip()]
        known = sorted(learned.anomaly)
        meant = named or known
        categories = {name.partition("/")[0] for name in meant}
        if self.images is not None and len(categories) > 1:
            raise ValueError(
                f"The images would get defects of several categories ({', '.join(sorted(categories))}): name "
                f"the types wanted in defect_type, such as {meant[0]}."
            )
        if named or self.dataset is None:
            return meant
        return [name for name in known if name.partition("/")[0] in self.dataset.categories] or known

    def photos(self, names: list[str]) -> Dataset:
        """The dataset that pairs are made on: `images` take the place of its normal photos, and do without
        one. Raises ValueError where there are neither.
        """
        if self.images is None:
            if self.dataset is None:
                raise ValueError(
                    "There are no normal photos: connect a dataset (Load Few-Shot Dataset) or images (Load "
                    "Image)."
                )
            return self.dataset
        root = Path(folder_paths.get_temp_directory()) / "anomalydiffusion" / "photos"
        paths = tuple(_kept_photo(pixels, root) for pixels in pixels_of(self.images))
        known = self.dataset.categories if self.dataset else {}
        categories = sorted({name.partition("/")[0] for name in names})
        return Dataset(
            self.dataset.root if self.dataset else root,
            {x: Category(x, paths, known[x].pairs if x in known else ()) for x in categories},
        )

    def given(self, names: list[str], learned: Learned) -> dict[str, list[np.ndarray]] | None:
        """The user's masks (H,W) bool for every single type; ValueError for an empty one."""
        if self.masks is None:
            return None
        marked = list(binary_masks(self.masks)[:, 0].cpu().numpy() > 0)
        return {single: marked for name in names for single in single_types(name, learned)}


@dataclass(frozen=True)
class PairResult:
    """The dataset with all its pairs (None where there are none), where it is, how many there are of how
    many, a report in lines, and pictures of accepted and of refused pairs.
    """

    dataset: Dataset | None
    root: Path
    headline: str
    report: str
    pictures: list[Image.Image]


def generated_pairs(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    learned: Learned,
    config: GenerationConfig,
    *,
    request: PairRequest,
) -> PairResult:
    """Brings the dataset of a request to the asked number of pairs, as far as the tries suffice.

    Raises ValueError where the embeddings are another base's, or photos, masks or types are missing.
    """
    names = request.names(learned)
    weights = parse_weights(request.mask_sources) if request.mask_sources.strip() else None
    photos, given = request.photos(names), request.given(names, learned)
    base = load_for(learned, model, clip, vae, SamplingModel)
    base.batch, base.size = config.batch_size, learned.image_size
    run = GenerationRun(learned, config, base)
    shown = RunShown(run, names, request.count)
    outcome = generate_all(
        run,
        photos,
        request.count,
        out=request.out,
        defect_types=names,
        given=given,
        weights=weights,
        watch=shown.watch,
    )
    return PairResult(
        find_dataset(request.out) if outcome.rows else None,
        request.out,
        f"{len(outcome.rows)} of {request.count * len(names)} pairs",
        shown.report(outcome, request.out),
        shown.pictures(outcome, request.out),
    )


def _kept_photo(pixels: np.ndarray, root: Path) -> Path:
    """A photo (H,W,3) uint8 as a file that is named by its content."""
    content = png_bytes(Image.fromarray(pixels))
    path = root / f"{hashlib.sha256(content).hexdigest()[:32]}.png"
    if not path.is_file():
        write_new(content, path)
    return path


class RunShown:
    """Progress over the pairs of a run with a picture of the last one and the time left; what to show and to
    say of it at the end. Every step of the sampler is a point where it can be cancelled.
    """

    def __init__(self, run: GenerationRun, defect_types: list[str], count: int) -> None:
        self.run, self.names, self.count = run, defect_types, count
        self.bar = comfy.utils.ProgressBar(count * len(defect_types))
        self.done: Counter[str] = Counter()  # pairs that are there, by type
        self.made = self.tries = 0
        self.accepted: deque[Image.Image] = deque(maxlen=SHOWN)
        self.rejected: list[Image.Image] = []
        self.refused: list[list[Reason]] = []  # why, for each pair that was
        self.start = self.pictured = time.monotonic()
        self.watch = RunWatch(self._on_stage, self._on_step, self._on_accepted, self._on_rejected)

    def _on_stage(self, stage: str, done: int, total: int, note: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage in self.names:
            self.done[stage] = done
            self.bar.update_absolute(self.done.total(), self.bar.total)

    def _on_step(self, step: int, total: int, latent: Tensor) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def _on_accepted(self, pair: GeneratedPair) -> None:
        self.made, self.tries = self.made + 1, self.tries + 1
        self.done[pair.defect_type] += 1
        now, done = time.monotonic(), self.done.total()
        left = (now - self.start) / self.made * (self.bar.total - done)
        if len(self.accepted) < SHOWN or now - self.pictured >= PREVIEW_SECONDS:
            self.pictured = now
            self.accepted.append(self._picture(pair, f"{pair.defect_type}: accepted", []))
            ahead = Paragraph(f"{done} of {self.bar.total} pairs, about {duration(left)} left")
            preview = stacked([written([ahead], WIDTH), self.accepted[-1]])
            self.bar.update_absolute(done, self.bar.total, ("JPEG", preview, WIDTH))

    def _on_rejected(self, pair: GeneratedPair) -> None:
        self.tries += 1
        why = reasons(pair.scores, pair.limits, self.run.config.gate.checks)
        self.refused.append(why)
        if len(self.rejected) < SHOWN:
            self.rejected.append(self._picture(pair, f"{pair.defect_type}: refused", why))

    def _picture(self, pair: GeneratedPair, title: str, why: list[Reason]) -> Image.Image:
        scores = measured(pair.scores, pair.limits, self.run.config.gate.checks)
        return pair_picture(
            pair.photo.pixels,
            pair.pixels,
            pair.mask,
            title,
            sentences=[reason.explained for reason in why],
            details=", ".join(scores),
            good=not why,
        )

    def pictures(self, outcome: GenerationOutcome, root: Path) -> list[Image.Image]:
        """The last accepted pairs, of this run or of those that were there, and the first refused ones."""
        shown = list(self.accepted) or [
            _written_picture(row, root, self.run) for row in outcome.rows[-SHOWN:]
        ]
        return [*shown, *self.rejected]

    def report(self, outcome: GenerationOutcome, root: Path) -> str:
        """What was made, what was refused and why, what to change, and where the pairs are: in lines."""
        by_type = Counter(f"{row['category']}/{row['defect']}" for row in outcome.rows)
        lines = [f"{name}: {by_type[name]} of {self.count} pairs accepted" for name in self.names]
        lines.append(
            f"Made now: {self.made} in {self.tries} tries and {duration(time.monotonic() - self.start)}."
            if self.tries
            else "Nothing had to be made: all pairs were there already."
        )
        lines += outcome.shortfalls.values()
        lines += [f"{name}: {words}" for name, one in outcome.diversity.items() if (words := str(one))]
        lines += [others] if (others := outcome.others(root)) else []
        if self.refused:
            lines += [f"Refused: {counted(self.refused)}.", *advice(self.refused)]
        for name, asked in outcome.grounds.items():
            lines += [f"Checks of {name}:", *asked]
        written = f"Dataset: {root}" if outcome.rows else f"Nothing was written into {root}."
        return "\n".join([*lines, written])


def duration(seconds: float) -> str:
    """Such as '40 s', '12 min' or '3 h 20 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _written_picture(row: dict[str, Any], root: Path, run: GenerationRun) -> Image.Image:
    """A pair of a manifest row."""
    masks, result = written_masks(root, row), read_photo(root / row["image"]).pixels
    return pair_picture(
        read_photo(root / row["normal"]).pixels,
        result,
        np.any(list(masks.values()), 0),
        f"{row['category']}/{row['defect']}: {Path(row['image']).name}",
        details=", ".join(measured(row["scores"], row["thresholds"], run.config.gate.checks)),
    )
