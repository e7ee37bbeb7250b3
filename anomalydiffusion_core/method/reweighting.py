"""Adaptive attention re-weighting (AAR): where the defect does not show yet, cross-attention is strengthened.

A mode says where Eq. 1 blends, how weights are computed, and which attention they act on; MODES has them all:
`paper` is Eq. 7-8, `released` the authors' code, `adaptive` ours, and `masked` what the paper compares with,
Prompt-to-Prompt's mask attention (Hertz et al., 2023), tokens seen inside the mask alone.
Weight maps w are (B,1,h,w), 1 = unchanged; only conditional rows are re-weighted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Columns, attend, attend_all, attend_logits, to_queries
from .attention_maps import AttentionMaps
from .blending import widened
from .inpainting import Decode, Inpainting


class Attention(Protocol):
    """q (B,H,N,c), k and v (B,H,T,c), w (B,N,1), and the columns of the inserted tokens -> (B,H,N,c)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, w: Tensor, *, columns: Columns
    ) -> Tensor: ...


@dataclass(frozen=True)
class Moment:
    """What is known before one evaluation of the U-Net: the target, z_t and the last z0_hat (B,C,h,w), the
    mask (B,1,h,w) that Eq. 1 blends with, and how latents become pixels.
    """

    target: Inpainting
    noisy: Tensor  # z_t, of unit variance
    clean_hat: Tensor | None  # None before the first evaluation
    blend_mask: Tensor
    decode: Decode


@dataclass(frozen=True)
class ReweightingMode:
    """One way to re-weight.

    `weight` gives w (B,1,h,w) at strength 1, or None where there is nothing to compare yet; a mode without it
    is the plain sampler. `attention` applies it. `blend_mask` gives the mask of Eq. 1 from m_z (B,1,h,w), the
    timestep as a share of T, the number of steps, and how far the mask widens.
    """

    weight: Callable[[Moment, AARConfig], Tensor | None] | None
    meaning: str  # for who chooses
    attention: Attention = attend
    blend_mask: Callable[[Tensor, float, int, float], Tensor] = lambda m_z, progress, steps, widening: (
        widened(m_z, widening * progress)
    )
    pixels: bool = False  # whether it reads the target's image and mask, or decodes


@dataclass(frozen=True)
class AARConfig:
    """Settings of AAR; strength 0 or mode `off` is exactly the plain sampler.

    Raises ValueError for a mode that MODES lacks, and where nothing lies between start and end.
    """

    mode: str = "released"  # fills more and costs no plausibility: docs/results/sampling.md
    strength: float = 1.0  # w - 1 is multiplied by this
    maximum: float = 3.0  # clip of `adaptive`
    temperature: float = 1.0  # of `paper`'s softmax; 1 = paper
    start: float = 0.0  # share of the steps after which it begins
    end: float = 1.0  # share of the steps at which it stops

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"There is no AAR mode {self.mode!r}: choose from {', '.join(MODES)}.")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"AAR starts at {self.start} and ends at {self.end} of the steps: give shares of 0 to 1, the "
                "start below the end."
            )

    @property
    def enabled(self) -> bool:
        """Whether AAR is on at all."""
        return MODES[self.mode].weight is not None and self.strength != 0

    def acts(self, progress: float) -> bool:
        """Whether AAR is on at this share of the steps."""
        return self.enabled and self.start <= progress < self.end

    def blend_mask(self, m_z: Tensor, progress: float, steps: int, widening: float) -> Tensor:
        """The mask (B,1,h,w) that Eq. 1 blends with at timestep t = `progress` x T of a run of `steps`: m_z,
        widened while noise is high.

        Without widening, a base that is bound to the photo from the first step on tends to continue the photo
        instead of drawing the defect.
        """
        mode = MODES[self.mode if self.enabled else "off"]
        return mode.blend_mask(m_z, progress, steps, widening)

    def weight_map(self, moment: Moment) -> Tensor | None:
        """w (B,1,h,w) for the coming evaluation; None where there is nothing to compare yet.

        Raises ValueError where the mode compares pixels, and there are none.
        """
        mode = MODES[self.mode]
        if mode.pixels and (moment.target.image is None or moment.target.mask is None):
            raise ValueError(
                f"AAR mode {self.mode!r} compares pixels: give it the normal photo, its mask and the VAE."
            )
        w = mode.weight(moment, self) if mode.weight else None
        return None if w is None else strengthened(w, self.strength)


@dataclass
class AttentionWeights:
    """What a host's attention reads at each evaluation: `w` (B,1,h,w), None for plain, the inserted tokens'
    place, and `maps` that record what they look at.
    """

    mode: str  # a key of MODES
    columns: Columns
    w: Tensor | None = None
    maps: AttentionMaps | None = None

    @property
    def idle(self) -> bool:
        """Whether attention is just the plain one."""
        return self.w is None and self.maps is None


def paper_weight(image: Tensor, clean_hat: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 7-8 in pixels: w = ||m||_1 softmax(1/d) over the mask, d = sum_c (m y - m x0_hat)^2; 1 outside.

    y and x0_hat (B,3,H,W), mask (B,1,H,W). A pixel without any difference takes the whole weight (1/0 is
    clipped).
    """
    d = (mask * (image - clean_hat)).square().sum(1, keepdim=True)
    logits = (1 / d.clamp(min=1e-8) / temperature).masked_fill(mask == 0, -torch.inf)
    softmax = logits.flatten(1).softmax(1).view_as(d)
    return torch.where(mask > 0, mask.sum((1, 2, 3), keepdim=True) * softmax, 1.0)


def released_blend_mask(mask: Tensor, t: int, fifty_steps: bool = False) -> Tensor:
    """M of the authors' code: the latent mask dilated by a square of radius floor((t + 100) * 8 / 1000).

    With exactly 50 steps their factor is 16. M is the region of the weights and the blend mask.
    """
    radius = int((t + 100) * (16 if fifty_steps else 8) / 1000)
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def released_weight(noisy: Tensor, normal: Tensor, blend_mask: Tensor) -> Tensor:
    """w = ||M||_1 (1/d) / sum(1/d) with d = mean_c [M (z_t - z_y)]^2, zeros to 1, clipped to [1, 1.5]."""
    d = (blend_mask * (noisy - normal)).square().mean(1, keepdim=True)
    inverse = torch.where(blend_mask > 0, 1 / d.clamp(min=1e-8), 0.0)
    w = blend_mask.sum((1, 2, 3), keepdim=True) * inverse / inverse.sum((1, 2, 3), keepdim=True)
    return torch.where(w == 0, 1.0, w).clamp(1.0, 1.5)


def adaptive_weight(clean_hat: Tensor, normal: Tensor, m_z: Tensor, maximum: float) -> Tensor:
    """w = clip(1 / sqrt(d), 1, maximum) with d = mean_c [m_z (z0_hat - z_y)]^2 in latent space; 1 outside.

    Latents have about unit variance, so d = 1 is a change as large as the contrast of the picture itself:
    cells that changed less are strengthened.
    """
    d = (m_z * (clean_hat - normal)).square().mean(1, keepdim=True)
    return torch.where(m_z > 0, d.clamp(min=1e-12).rsqrt().clamp(1.0, maximum), 1.0)


def strengthened(w: Tensor, strength: float) -> Tensor:
    """1 + strength (w - 1), never negative."""
    return (1 + strength * (w - 1)).clamp(min=0)


def _paper(moment: Moment, aar: AARConfig) -> Tensor | None:
    image, mask = moment.target.image, moment.target.mask
    if moment.clean_hat is None or image is None or mask is None:
        return None
    return paper_weight(image, moment.decode(moment.clean_hat), mask, aar.temperature)


def _adaptive(moment: Moment, aar: AARConfig) -> Tensor | None:
    if moment.clean_hat is None:
        return None
    return adaptive_weight(moment.clean_hat, moment.target.normal, moment.target.m_z, aar.maximum)


MODES: dict[str, ReweightingMode] = {
    "released": ReweightingMode(
        lambda moment, aar: released_weight(moment.noisy, moment.target.normal, moment.blend_mask),
        "as the authors' code, gently",
        attend_logits,
        lambda m_z, progress, steps, widening: released_blend_mask(m_z, round(1000 * progress), steps == 50),
    ),
    "adaptive": ReweightingMode(
        _adaptive,
        "by the last estimate, in latent space; most, for defects that stay faint, at some cost in likeness",
    ),
    "paper": ReweightingMode(_paper, "Eq. 7-8, in pixels", attend_all, pixels=True),
    "masked": ReweightingMode(
        lambda moment, aar: moment.target.m_z,
        "tokens are seen inside the mask alone (Prompt-to-Prompt), to compare with",
    ),
    "off": ReweightingMode(None, "plain sampling"),
}


def meanings() -> str:
    """Every mode with its meaning, as help texts say it."""
    return " ".join(f"{name}: {mode.meaning}." for name, mode in MODES.items())


def modes_of_pixels() -> str:
    """The modes that compare pixels, as help texts name them."""
    return ", ".join(name for name, mode in MODES.items() if mode.pixels)


def reweighted_attention(query: Tensor, key: Tensor, value: Tensor, weights: AttentionWeights) -> Tensor:
    """Attention as the mode of `weights` has it; `weights.w` must be set.

    q (B,H,N,c), k and v (B,H,T,c) -> (B,H,N,c).
    """
    if weights.w is None:
        raise ValueError("There is no weight map: use the plain attention.")
    w = to_queries(weights.w, query.shape[2]).to(query.dtype)
    return MODES[weights.mode].attention(query, key, value, w, columns=weights.columns)
