"""The core's quality gate on ComfyUI's batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import numpy as np
from comfy.sd import VAE
from torch import Tensor

from ...anomalydiffusion_core.dataset.layout import Dataset, Pair
from ...anomalydiffusion_core.dataset.windows import regions_of
from ...anomalydiffusion_core.gate.features import find_backbone
from ...anomalydiffusion_core.gate.gate import CHECKS, ChangedRegion, Gate, GateConfig, Scores, shown_share
from ...anomalydiffusion_core.generation.calibration import calibrated_gate
from ...anomalydiffusion_core.generation.config import GenerationConfig
from ...anomalydiffusion_core.generation.drafting import Drafter
from ...anomalydiffusion_core.generation.regions import autoencoder_noise, on_canvas, to_image, to_pixels
from ...anomalydiffusion_core.generation.runs import training_pairs
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.latent_diffusion import Fingerprint
from .conditioning import LEARNED, Conditioning, binary_masks, chosen_type
from .pixels import from_core, latent_factor, to_core
from .sampling import Outlines, match_batch

UNKNOWN = "connected"  # the base family of a VAE that comes without embeddings
LARGEST_CANVAS = 512  # pixels per side, where no embeddings tell


@dataclass(frozen=True)
class JudgedPair:
    """What a pair scores, what the gate finds wrong, and what its manifest row says of it."""

    scores: Scores
    problems: list[str]
    row: dict[str, Any]


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
) -> tuple[list[JudgedPair], str]:
    """Every pair, judged, and a report of it: images and normals (B,H,W,3) in [0,1], masks (B,H,W).

    Raises ValueError, saying what failed how often, where none is good enough.
    """
    size = canvas_size(learned, normals, vae)
    regions = changed_regions(images, masks, normals, vae, size=size)
    gate, calibration = _gate_of(dataset, learned, defect_type, config, vae, size)
    pairs = _judged(gate, regions)
    if all(pair.problems for pair in pairs):
        best = max(pair.scores.get("fill", 0) for pair in pairs)
        raise ValueError(
            f"None of {len(pairs)} pairs is good enough ({_failures(pairs)}; best fill {best:.0%}): train "
            "longer, raise the attention strength, lower smallest_fill, or leave checks out."
        )
    return pairs, _report(gate, calibration, pairs)


def outlines_of(
    positive: Conditioning, dataset: Dataset | None, image: Tensor, vae: VAE, *, feather: float
) -> Outlines:
    """How a defect of the type in `positive` fades in: with a dataset as softly as in its real pairs."""
    learned, name = next((options[LEARNED] for _, options in positive if LEARNED in options), (None, ""))
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


def changed_regions(
    images: Tensor, masks: Tensor, normals: Tensor, vae: VAE, *, size: int
) -> list[list[ChangedRegion]]:
    """The regions of each pair in their windows: images and normals (B,H,W,3) in [0,1], masks (B,H,W).

    Raises ValueError where they do not fit, or a mask is empty.
    """
    normals, marked = match_batch(normals, binary_masks(masks))
    if len(images) != len(marked):
        raise ValueError(f"There are {len(images)} images for {len(marked)} masks: give one for each.")
    if images.shape[1:3] != normals.shape[1:3]:
        raise ValueError(
            f"The images are {images.shape[2]}x{images.shape[1]}, the normal photos "
            f"{normals.shape[2]}x{normals.shape[1]}: connect the photos that the images were made from."
        )
    pairs = []
    for normal, image, mask in zip(normals, images, marked[:, 0].cpu().numpy() > 0, strict=True):
        before, after = (255 * x[..., :3].cpu().numpy() for x in (normal, image))
        regions: list[ChangedRegion] = []
        for region in regions_of(mask, size):
            good, changed = region.window.cut(before), region.window.cut(after)
            noise = autoencoder_noise(good, _reconstruction(good, vae, size))
            view = on_canvas(changed, region.mask, size)
            regions.append(ChangedRegion(view, good, changed, region.mask, noise))
        pairs.append(regions)
    return pairs


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
    backbone = find_backbone(lambda image: encode(from_core(image)), family, device)
    plain = Gate([], [], backbone, config)
    if dataset is None:
        return plain, "not calibrated: connect the dataset that the embeddings were trained on"
    name, pairs, which = _real_pairs(dataset, learned, defect_type)
    if not pairs:
        return plain, f"not calibrated: the dataset holds {which}, connect the one that does"
    normals = list(dataset.categories[pairs[0].category].normals)
    if not normals:
        return plain, "not calibrated: the dataset has no normal photos"
    model = learned or Learned(Fingerprint(family, ""), size, ())
    drafter = Drafter(model, normals, GenerationConfig(gate=config), {name: pairs}, device=device)
    return calibrated_gate(drafter, name, backbone), f"calibrated on {which}"


def _real_pairs(dataset: Dataset, learned: Learned | None, defect_type: str) -> tuple[str, list[Pair], str]:
    """The type, its pairs that trained `learned`, or all where that is not known, and which these are."""
    by_type = dataset.by_type()
    if learned is None:
        name = defect_type.strip() or next(iter(sorted(by_type)), "")
    else:
        name = chosen_type(learned, defect_type, "anomaly")
        learned.anomaly_tokens(name)  # raises where there is no such type
    pairs = by_type.get(name, [])
    if learned is None or not learned.trained_on.get(name):
        return name, pairs, f"{len(pairs) or 'no'} pairs of {name}, which of them trained is not known"
    pairs = training_pairs(dataset.categories[pairs[0].category], learned, name) if pairs else []
    return name, pairs, f"{len(pairs) or 'no'} pairs that trained {name}"


def _judged(gate: Gate, pairs: list[list[ChangedRegion]]) -> list[JudgedPair]:
    """Pairs in their order, each compared with those accepted before it as well."""
    judged = []
    for regions in pairs:
        scores = Scores.worst([gate.score(region) for region in regions])
        problems = gate.problems(scores)
        for region in [] if problems else regions:
            gate.remember(region.view)
        row = {
            "fill": round(shown_share(regions), 4),
            "noise": round(max(region.noise for region in regions), 3),
            "scores": scores.rounded(),
            "thresholds": gate.limits.rounded(),
            "backbone": gate.backbone.name,
        }
        judged.append(JudgedPair(scores, problems, row))
    return judged


def _report(gate: Gate, calibration: str, pairs: list[JudgedPair]) -> str:
    """How many passed, what is asked and why, and each pair's scores."""
    wrong, lines = _failures(pairs), []
    for number, pair in enumerate(pairs):
        scores = ", ".join(f"{name} {value:.2f}" for name, value in pair.scores.rounded().items())
        left_out = f"  left out: {', '.join(pair.problems)}" if pair.problems else ""
        lines.append(f"{number}: {scores}{left_out}")
    asked = [
        f"{name} at {'most' if CHECKS[name].at_most else 'least'} {gate.limits[name]:.2f}"
        for name in gate.config.checks
        if name in gate.limits
    ]
    accepted = sum(not pair.problems for pair in pairs)
    head = f"{accepted} of {len(pairs)} pairs accepted" + (f" ({wrong})" if wrong else "")
    return "\n".join([head, calibration, f"asked for: {', '.join(asked) or 'nothing'}", *lines])


def _failures(pairs: list[JudgedPair]) -> str:
    """How often what was wrong, in words."""
    counted = Counter(problem for pair in pairs for problem in pair.problems)
    return ", ".join(f"{count} {problem}" for problem, count in counted.most_common())
