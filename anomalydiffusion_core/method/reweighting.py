"""Adaptive attention re-weighting (AAR): where the defect does not show yet, cross-attention is strengthened.

Three modes: `paper` (Eq. 7-8), `released` (the authors' code), `adaptive` (ours). A fourth, `masked`, is what
the paper compares with: Prompt-to-Prompt's mask attention (Hertz et al., 2023), tokens seen inside the mask
alone.
Weight maps w are (B,1,h,w), 1 = unchanged; only conditional rows are re-weighted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .attention_maps import AttentionMaps


class AARMode(str, Enum):
    """Which difference, weight and attention site."""

    OFF = "off"
    PAPER = "paper"
    RELEASED = "released"
    ADAPTIVE = "adaptive"
    MASKED = "masked"


@dataclass(frozen=True)
class AARConfig:
    """Settings of AAR; strength 0 or mode off is exactly the plain sampler.

    Raises ValueError where nothing lies between start and end.
    """

    mode: AARMode = AARMode.RELEASED  # fills more and costs no plausibility: docs/results.md
    strength: float = 1.0  # w - 1 is multiplied by this
    maximum: float = 3.0  # clip of `adaptive`
    temperature: float = 1.0  # of `paper`'s softmax; 1 = paper
    start: float = 0.0  # share of the steps after which it begins
    end: float = 1.0  # share of the steps at which it stops

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"AAR starts at {self.start} and ends at {self.end} of the steps: give shares of 0 to 1, the "
                "start below the end."
            )

    @property
    def enabled(self) -> bool:
        """Whether AAR is on at all."""
        return self.mode is not AARMode.OFF and self.strength != 0

    def acts(self, progress: float) -> bool:
        """Whether AAR is on at this share of the steps."""
        return self.enabled and self.start <= progress < self.end


Columns = slice | tuple[slice, ...]  # where inserted tokens stand: alike in all rows, or row by row


@dataclass
class AttentionWeights:
    """What a host's attention reads at each evaluation: `w` (B,1,h,w), None for plain, the inserted tokens'
    place, and `maps` that record what they look at.
    """

    mode: AARMode
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


def released_region(mask: Tensor, t: int, fifty_steps: bool = False) -> Tensor:
    """M of the authors' code: the latent mask dilated by a square of radius floor((t + 100) * 8 / 1000).

    With exactly 50 steps their factor is 16. M is the region of the weights and the blend mask.
    """
    radius = int((t + 100) * (16 if fifty_steps else 8) / 1000)
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def released_weight(noisy: Tensor, normal: Tensor, region: Tensor) -> Tensor:
    """w = ||M||_1 (1/d) / sum(1/d) with d = mean_c [M (z_t - z_y)]^2, zeros to 1, clipped to [1, 1.5]."""
    d = (region * (noisy - normal)).square().mean(1, keepdim=True)
    inverse = torch.where(region > 0, 1 / d.clamp(min=1e-8), 0.0)
    w = region.sum((1, 2, 3), keepdim=True) * inverse / inverse.sum((1, 2, 3), keepdim=True)
    return torch.where(w == 0, 1.0, w).clamp(1.0, 1.5)


def adaptive_weight(clean_hat: Tensor, normal: Tensor, m_z: Tensor, maximum: float) -> Tensor:
    """w = clip(1 / sqrt(d), 1, maximum) with d = mean_c [m_z (z0_hat - z_y)]^2 in latent space; 1 outside.

    Latents have about unit variance, so d = 1 is a change as large as the contrast of the picture itself:
    cells that changed less are strengthened. Measured against a ratio to the mask's mean: docs/results.md.
    """
    d = (m_z * (clean_hat - normal)).square().mean(1, keepdim=True)
    return torch.where(m_z > 0, d.clamp(min=1e-12).rsqrt().clamp(1.0, maximum), 1.0)


def strengthened(w: Tensor, strength: float) -> Tensor:
    """1 + strength (w - 1), never negative."""
    return (1 + strength * (w - 1)).clamp(min=0)


def level_size(height: int, width: int, count: int) -> tuple[int, int]:
    """Sides of the U-Net level with `count` queries, for a latent (or photo) of height x width.

    Raises ValueError when `count` queries are no factor-of-two reduction of it.
    """
    for level in range(8):
        size = -(-height // 2**level), -(-width // 2**level)
        if size[0] * size[1] == count:
            return size
    raise ValueError(
        f"{count} attention queries do not fit a latent of {height}x{width}: no level has that size."
    )


def to_queries(w: Tensor, count: int) -> Tensor:
    """Weight map (B,1,h,w) -> one weight per query (B,count,1) of a U-Net level, by area average.

    Raises ValueError when no level has `count` queries.
    """
    size = level_size(w.shape[-2], w.shape[-1], count)
    return F.adaptive_avg_pool2d(w, size).flatten(1)[..., None]


def marked(columns: Columns, value: Tensor) -> Tensor:
    """(B,T), 1 in the given columns of each row and 0 elsewhere, for values (B,H,T,c)."""
    rows, length = len(value), value.shape[2]
    marks = torch.zeros((rows, length), dtype=value.dtype)
    for row, part in enumerate((columns,) * rows if isinstance(columns, slice) else columns):
        marks[row, part] = 1
    return marks.to(value.device)


def attend(query: Tensor, key: Tensor, value: Tensor, w: Tensor, columns: Columns) -> Tensor:
    """Attention with post-softmax weights on some columns: (A * (1 + (w - 1) marked)) V.

    q (B,H,N,c), k and v (B,H,T,c), w (B,N,1) -> (B,H,N,c). A is made in full: with 77 keys that costs less
    than a fused kernel given a wider V, which takes its slow path twice as long.
    """
    attention = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
    return attention * (1 + marked(columns, value)[:, None, None] * (w[:, None] - 1)) @ value


def attend_logits(query: Tensor, key: Tensor, value: Tensor, w: Tensor, columns: Columns) -> Tensor:
    """The authors' site: logits of the anomaly columns and of column 0 times w, before the softmax."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    strengthened_columns = torch.maximum(marked(columns, value), marked(slice(0, 1), value))
    logits = logits * (1 + strengthened_columns[:, None, None] * (w[:, None] - 1))
    return logits.softmax(-1) @ value


def attend_all(query: Tensor, key: Tensor, value: Tensor, w: Tensor) -> Tensor:
    """Eq. 7's site: the whole post-softmax map times w, which scales the output of every query."""
    return w[:, None] * F.scaled_dot_product_attention(query, key, value)


def reweighted_attention(query: Tensor, key: Tensor, value: Tensor, weights: AttentionWeights) -> Tensor:
    """Attention as the mode of `weights` has it; `weights.w` must be set.

    q (B,H,N,c), k and v (B,H,T,c) -> (B,H,N,c).
    """
    if weights.w is None:
        raise ValueError("There is no weight map: use the plain attention.")
    w = to_queries(weights.w, query.shape[2]).to(query.dtype)
    if weights.mode is AARMode.PAPER:
        return attend_all(query, key, value, w)
    if weights.mode is AARMode.RELEASED:
        return attend_logits(query, key, value, w, weights.columns)
    return attend(query, key, value, w, weights.columns)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B,N,H*c) -> (B,H,N,c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B,H,N,c) -> (B,N,H*c)."""
    return x.transpose(1, 2).flatten(2)
