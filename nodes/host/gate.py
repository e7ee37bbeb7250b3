"""The core's quality gate on ComfyUI's batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
from comfy.sd import VAE
from comfy_execution.graph_utils import ExecutionBlocker
from PIL.Image import Image
from torch import Tensor

from ...anomalydiffusion_core.dataset.layout import Dataset, Pair
from ...anomalydiffusion_core.dataset.windows import regions_of
from ...anomalydiffusion_core.gate.checks import Scores
from ...anomalydiffusion_core.gate.features import find_backbone
from ...anomalydiffusion_core.gate.gate import Gate, GateConfig
from ...anomalydiffusion_core.gate.pair_picture import WIDTH, pair_picture
from ...anomalydiffusion_core.gate.reasons import Reason, advice, counted, grounds, measured, reasons
from ...anomalydiffusion_core.gate.region_view import ChangedRegion, shown_share
from ...anomalydiffusion_core.gate.scores import visible
from ...anomalydiffusion_core.generation.calibration import calibrated_gate
from ...anomalydiffusion_core.generation.config import GenerationConfig
from ...anomalydiffusion_core.generation.drafting import Drafter
from ...anomalydiffusion_core.generation.regions import autoencoder_noise, on_canvas, to_image, to_pixels
from ...anomalydiffusion_core.generation.runs import training_pairs
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.latent_diffusion import Fingerprint
from .conditioning import Conditioning, binary_masks, chosen_type, learned_in
from .pixels import from_core, latent_factor, to_core
from .sampling import Outlines, match_batch, match_images

UNKNOWN = "connected"  # the base family of a VAE that comes without embeddings
LARGEST_CANVAS = 512  # pixels per side, where no embeddings tell


@dataclass(frozen=True)
class JudgedPair:
    """Why the gate stops a pair, or nothing; its scores with what is asked of each, what its manifest row
    says of it, and itself in a picture.
    """

    reasons: list[Reason]
    scores: list[str]
    row: dict[str, Any]
    picture: Image


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a batch: each pair, and on what grounds, a sentence a line."""

    pairs: list[JudgedPair]
    grounds: list[str]

    @property
    def accepted(self) -> list[int]:
        return [number for number, pair in enumerate(self.pairs) if not pair.reasons]

    @property
    def rejected(self) -> list[int]:
        return [number for number, pair in enumerate(self.pairs) if pair.reasons]

    @property
    def headline(self) -> str:
        wrong = counted([pair.reasons for pair in self.pairs])
        count = f"{len(self.accepted)} of {len(self.pairs)} pairs accepted"
        return count + (f" ({wrong})" if wrong else "")

    @property
    def advice(self) -> list[str]:
        """What to change, for each reason that occurred."""
        return advice([pair.reasons for pair in self.pairs])

    @property
    def report(self) -> str:
        """All of it, below the headline as a list in Markdown, as Preview as Text shows it."""
        lines = [*self.grounds, *self.advice, *map(self._line, range(len(self.pairs)))]
        return "\n".join([self.headline, *(f"- {line}" for line in lines)])

    def _line(self, number: int) -> str:
        pair = self.pairs[number]
        scores = ", ".join(pair.scores)
        if not pair.reasons:
            return f"pair {number}: accepted; {scores}"
        problems = ", ".join(reason.problem for reason in pair.reasons)
        sentences = "; ".join(reason.sentence for reason in pair.reasons)
        return f"pair {number}: left out: {problems} ({sentences}); {scores}"


def judge_batch(
    images: Tensor,
    masks: Tensor,
    normals: Tensor,
    vae: VAE,
    *,
    config: GateConfig,
    dataset: Dataset | None,
    learned: Learned | None,
    defect_type: str,
) -> Judgement:
    """Every pair, judged: images and normals (B,H,W,3) in [0,1], masks (B,H,W). Shows each as it comes."""
    size = canvas_size(learned, normals, vae)
    pairs = list(matched_pairs(images, masks, normals))
    gate, calibration = _gate_of(dataset, learned, defect_type, config, vae, size)
    bar = comfy.utils.ProgressBar(len(pairs))
    judged: list[JudgedPair] = []
    for number, (before, after, mask) in enumerate(pairs):
        comfy.model_management.throw_exception_if_processing_interrupted()
        regions = list(changed_regions(before, after, mask, vae, size=size))
        judged.append(_judged(gate, regions, number, (before, after, mask)))
        bar.update_absolute(number + 1, len(pairs), ("JPEG", judged[-1].picture, WIDTH))
    return Judgement(judged, [calibration, *grounds(gate)])


def blocked(judgement: Judgement) -> tuple[ExecutionBlocker, ...]:
    """Outputs of accepted images, masks, normals and scores where there are none: nodes that take them are
    not run, and one of them says why.
    """
    words = f"None of {len(judgement.pairs)} pairs is good enough: {' '.join(judgement.advice)}"
    return ExecutionBlocker(words), *(ExecutionBlocker(None) for _ in range(3))


def outlines_of(
    positive: Conditioning, dataset: Dataset | None, image: Tensor, vae: VAE, *, feather: float
) -> Outlines:
    """How a defect of the type in `positive` fades in: with a dataset as softly as in its real pairs."""
    learned, name = learned_in(positive)
    size = canvas_size(learned, image, vae)
    if dataset is None:
        return Outlines(feather, size)
    gate, _ = _gate_of(dataset, learned, name, GateConfig(), vae, size)
    return Outlines(feather, size, gate.usual_seam)


def canvas_size(learned: Learned | None, normals: Tensor, vae: VAE) -> int:
    """Pixels per side at which pairs are looked at: those of the training, or else the photos' own, in whole
    latent cells, up to `LARGEST_CANVAS`.
    """
    if learned is not None:
        return learned.image_size
    factor = latent_factor(vae)
    return min(LARGEST_CANVAS, -(-max(normals.shape[1:3]) // factor) * factor)


Photos = tuple[np.ndarray, np.ndarray, np.ndarray]  # before, after (H,W,3) in [0,255], mask (H,W) bool


def matched_pairs(images: Tensor, masks: Tensor, normals: Tensor) -> Iterator[Photos]:
    """Each pair of a batch, one at a time: images and normals (B,H,W,3) in [0,1], masks (B,H,W).

    Raises ValueError where they do not fit, or a mask is empty.
    """
    normals, marked = match_batch(normals, binary_masks(masks))
    if images.shape[1:3] != normals.shape[1:3]:
        raise ValueError(
            f"The images are {images.shape[2]}x{images.shape[1]}, the normal photos "
            f"{normals.shape[2]}x{normals.shape[1]}: connect the photos that the images were made from."
        )
    images, marked = match_images(images, marked)
    for normal, image, mask in zip(normals, images, marked[:, 0].cpu().numpy() > 0, strict=True):
        before, after = (255 * x[..., :3].cpu().numpy() for x in (normal, image))
        yield before, after, mask


def changed_regions(
    before: np.ndarray, after: np.ndarray, mask: np.ndarray, vae: VAE, *, size: int
) -> Iterator[ChangedRegion]:
    """The regions of a pair in their windows."""
    for region in regions_of(mask, size):
        good, changed = region.window.cut(before), region.window.cut(after)
        noise = visible(autoencoder_noise(good, _reconstruction(good, vae, size)))
        yield ChangedRegion(on_canvas(changed, region.mask, size), good, changed, region.mask, noise)


def _reconstruction(pixels: np.ndarray, vae: VAE, size: int) -> np.ndarray:
    """A window (side,side,3) in [0,255] through the autoencoder at the canvas's size."""
    image = from_core(to_image(pixels, size)[None])
    return to_pixels(to_core(vae.decode(vae.encode(image)))[0].cpu(), (len(pixels), len(pixels)))


def _gate_of(
    dataset: Dataset | None,
    learned: Learned | None,
    defect_type: str,
    config: GateConfig,
    vae: VAE,
    size: int,
) -> tuple[Gate, str]:
    """The gate of a type, and in words what it is calibrated on; without a dataset on nothing."""
    device = str(comfy.model_management.get_torch_device())
    family = learned.base.family if learned is not None else UNKNOWN
    encode: Any = vae.encode

    def features(image: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()  # to calibrate takes a while
        return encode(from_core(image))

    backbone = find_backbone(features, family, device)
    plain = Gate([], [], backbone, config)
    if dataset is None:
        return plain, "not calibrated: connect the dataset that the embeddings were trained on"
    name, pairs, which = real_pairs(dataset, learned, defect_type)
    if not pairs:
        return plain, f"not calibrated: the dataset holds {which}, connect the one that does"
    normals = list(dataset.categories[pairs[0].category].normals)
    if not normals:
        return plain, "not calibrated: the dataset has no normal photos"
    model = learned or Learned(Fingerprint(family, ""), size, ())
    gated = GenerationConfig(gate=config)
    drafter = Drafter(model, normals, gated, {name: pairs}, backbone=backbone, device=device)
    return calibrated_gate(drafter, name, backbone), f"calibrated on {which}"


def real_pairs(dataset: Dataset, learned: Learned | None, defect_type: str) -> tuple[str, list[Pair], str]:
    """The type, its pairs that trained `learned`, or all where that is not known, and which these are."""
    by_type = dataset.by_type()
    if learned is None:
        name = defect_type.strip() or next(iter(sorted(by_type)), "")
    else:
        name = chosen_type(learned, defect_type, "anomaly")
        learned.anomaly_tokens(name)  # raises where there is no such type
    pairs = by_type.get(name, [])
    if learned is None or not learned.trained_on.get(name):
        return name, pairs, f"{_number(pairs)} of {name}, which of them trained is not known"
    pairs = training_pairs(dataset.categories[pairs[0].category], learned, name) if pairs else []
    return name, pairs, f"{_number(pairs)} that trained {name}"


def _number(pairs: list[Pair]) -> str:
    return f"{len(pairs) or 'no'} pair{'' if len(pairs) == 1 else 's'}"


def _judged(gate: Gate, regions: list[ChangedRegion], number: int, photos: Photos) -> JudgedPair:
    """One pair, which is remembered where it is good, so that none too much like it follows."""
    scores = Scores.worst([gate.score(region) for region in regions])
    why = reasons(scores, gate.limits, gate.config.checks)
    for region in [] if why else regions:
        gate.remember(region.view)
    row = {
        "fill": round(shown_share(regions), 4),
        "noise": round(max(region.noise for region in regions), 3),
        "scores": scores.rounded(),
        "thresholds": gate.limits.rounded(),
        "backbone": gate.backbone.name,
    }
    told = measured(scores, gate.limits, gate.config.checks)
    before, after = (np.rint(photo).astype(np.uint8) for photo in photos[:2])
    picture = pair_picture(
        before,
        after,
        photos[2],
        f"Pair {number}: {'left out' if why else 'accepted'}",
        sentences=[reason.explained for reason in why],
        details=", ".join(told),
        good=not why,
    )
    return JudgedPair(why, told, row, picture)
