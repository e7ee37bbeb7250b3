"""How good generated pairs look, and whether their masks tell the truth.

Inception Score, KID and IC-LPIPS come with the field's networks; fill, background, mask-change IoU and
memorisation need no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dataset.augmentation import box_of
from ..dataset.layout import Pair
from ..dataset.views import read_pair
from ..gate.fidelity import mask_fidelity
from ..gate.scores import change, fill

Distance = Callable[[Tensor, Tensor], Tensor]  # photos (B,3,S,S) in [-1,1], twice -> (B,)
PATCH = 32  # pixels per side that defects are compared at
COPY = 0.95  # correlation from which a defect counts as a copy


@dataclass(frozen=True)
class PublishedNetworks:
    """What the field's metrics are made of: Inception v3's class logits and features, and LPIPS."""

    logits: nn.Module  # photos (N,3,H,W) uint8 -> (N,K)
    features: nn.Module  # photos (N,3,H,W) uint8 -> (N,D)
    distance: Distance


@dataclass(frozen=True)
class PublishedScores:
    """Inception Score and IC-LPIPS (higher is better), KID (lower is better); None of too few photos."""

    inception_score: float
    kid: float | None
    ic_lpips: float | None


@dataclass(frozen=True)
class PairQuality:
    """Of one pair: `fill`, the share of the mask that shows; `background`, the mean change outside (grey
    levels); `iou` of the mask with the pixels that changed; and `precision` and `boundary_iou` of
    `MaskFidelity`.
    """

    fill: float
    background: float
    iou: float
    precision: float
    boundary_iou: float


def pair_quality(normal: np.ndarray, generated: np.ndarray, mask: np.ndarray, noise: float) -> PairQuality:
    """Photos (H,W,3) uint8, mask (H,W) bool; a pixel changed where it differs by more than `noise` grey
    levels.
    """
    difference = change(normal, generated)
    changed = difference > noise
    union = (changed | mask).sum()
    outside, fidelity = difference[~mask], mask_fidelity(normal, generated, mask)
    return PairQuality(
        fill(normal, generated, mask, noise),
        float(outside.mean()) if outside.size else 0.0,
        float((changed & mask).sum() / union) if union else 1.0,
        fidelity.precision,
        fidelity.boundary_iou,
    )


def memorisation_rate(generated: Sequence[Tensor], training: Sequence[Tensor]) -> float:
    """Share of generated defects that copy a training defect: their brightness correlates by 0.95 or more,
    turned and mirrored as may be. Each is a patch of `defect_patch`.

    Raises ValueError where there are none.
    """
    if not generated or not training:
        raise ValueError("Memorisation compares generated with training pairs: there are none of a kind.")
    known = torch.stack([view for patch in training for view in _symmetries(patch)])
    patches = torch.stack(list(generated))
    return float(((patches.flatten(1) @ known.flatten(1).T).amax(1) >= COPY).float().mean())


def defect_patch(pixels: np.ndarray, mask: np.ndarray) -> Tensor:
    """The defect of a photo (H,W,3) uint8, cut out along its mask (H,W) bool and brought to one size:
    brightness (32,32), of zero mean over the mask and unit norm.
    """
    top, bottom, left, right = box_of(mask)
    inside = torch.from_numpy(mask[top:bottom, left:right].astype(np.float32))
    brightness = torch.from_numpy(pixels[top:bottom, left:right].mean(-1, dtype=np.float32))
    brightness = (brightness - (brightness * inside).sum() / inside.sum()) * inside
    small = F.interpolate(brightness[None, None], (PATCH, PATCH), mode="bilinear", antialias=True)[0, 0]
    return small / small.norm().clamp(min=1e-6)


def defect_patches(pairs: Iterable[Pair]) -> list[Tensor]:
    """`defect_patch` of each pair on disk."""
    return [defect_patch(photo.pixels, mask[0].numpy() > 0) for photo, mask in map(read_pair, pairs)]


def _symmetries(patch: Tensor) -> list[Tensor]:
    return [torch.rot90(view, k) for view in (patch, patch.flip(1)) for k in range(4)]


def published_networks() -> PublishedNetworks:
    """The networks with their published weights, downloaded once. Raises ValueError saying what to fetch
    where they cannot be had.
    """
    try:
        import lpips
        from torchmetrics.image import InceptionScore, KernelInceptionDistance
    except ImportError:
        raise ValueError(
            'The published metrics need torchmetrics and lpips: pip install "comfyui-anomalydiffusion[eval]".'
        ) from None
    logits = _with_weights(lambda: InceptionScore("logits_unbiased").inception)
    features = _with_weights(lambda: KernelInceptionDistance(2048).inception)
    network = _with_weights(lambda: lpips.LPIPS(net="vgg", verbose=False)).eval()
    return PublishedNetworks(logits, features, lambda one, other: network(one, other).flatten())


def published_scores(
    generated: Tensor, training: Tensor, real: Tensor, networks: PublishedNetworks
) -> PublishedScores:
    """Of generated photos, against those that trained their generator (IC-LPIPS's clusters) and other real
    ones (KID); all (N,3,S,S) uint8.
    """
    return PublishedScores(
        inception_score(generated, networks.logits),
        kernel_inception_distance(generated, real, networks.features),
        intra_cluster_lpips(generated / 127.5 - 1, training / 127.5 - 1, networks.distance),
    )


def inception_score(images: Tensor, network: nn.Module) -> float:
    """IS (Salimans et al., 2016) of photos (N,3,H,W) uint8: exp of the mean divergence of each photo's class
    distribution, by the logits of `network`, from all photos', averaged over at most ten parts of 50 or more:
    no part can score higher than it has photos.
    """
    from torchmetrics.image import InceptionScore

    metric = InceptionScore(network, splits=max(1, min(10, len(images) // 50)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # it shuffles before it splits
        _update(metric, images)
        return float(metric.compute()[0])


def kernel_inception_distance(generated: Tensor, real: Tensor, network: nn.Module) -> float | None:
    """KID (Binkowski et al., 2018): squared MMD with a cubic kernel between the features, by `network`, of
    photos (N,3,H,W) uint8, over subsets of at most 50; None of single photos.
    """
    from torchmetrics.image import KernelInceptionDistance

    size = min(50, len(generated), len(real))
    if size < 2:
        return None
    metric = KernelInceptionDistance(network, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # it draws subsets
        _update(metric, real, real=True)
        _update(metric, generated, real=False)
        return float(metric.compute()[0])


def _update(metric: Any, images: Tensor, **options: bool) -> None:
    for part in images.split(16):
        metric.update(part, **options)


def intra_cluster_lpips(generated: Tensor, training: Tensor, distance: Distance) -> float | None:
    """IC-LPIPS (Ojha et al., 2021): each generated photo joins the nearest training photo; the mean pairwise
    distance inside each cluster of two or more, averaged over clusters; None where no cluster has two. Photos
    (N,3,S,S) in [-1,1].
    """
    with torch.no_grad():
        rows = [distance(photo.expand_as(training), training) for photo in generated]
        nearest = torch.stack(rows).argmin(1)
        means = []
        for cluster in range(len(training)):
            members = generated[nearest == cluster]
            if len(members) > 1:
                one, other = torch.combinations(torch.arange(len(members))).T
                parts = zip(one.split(16), other.split(16), strict=True)
                means.append(torch.cat([distance(members[a], members[b]) for a, b in parts]).mean())
    return float(torch.stack(means).mean()) if means else None


def _with_weights(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (URLError, OSError) as error:
        raise ValueError(
            f"The metric's network cannot be fetched ({error}): download its weights into "
            f"{torch.hub.get_dir()}/checkpoints on a machine with access, and copy them."
        ) from None
