"""What the inserted tokens looked at: their share of every cross-attention, by range of steps, as heat maps.

Words' maps are read so in Prompt-to-Prompt (Hertz et al., 2023). Recorded is the attention of the conditional
rows after the softmax and before any re-weighting, so that modes can be compared.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import Columns, level_size, marked

HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # dark to bright
OPACITY = 0.8  # of the hottest place over the photo


class AttentionMaps:
    """Records a sampler's run over `count` latents of `size` (h,w), in `ranges` equal parts of its steps."""

    def __init__(self, count: int, size: tuple[int, int], ranges: int = 4) -> None:
        self._sums = torch.zeros(count, ranges, *size)
        self._recorded = torch.zeros(ranges)
        self._range = 0

    def begin(self, progress: float) -> None:
        """The coming evaluation stands at this share of the steps, in [0,1)."""
        self._range = int(progress * len(self._recorded))

    def record(self, query: Tensor, key: Tensor, columns: Columns) -> None:
        """One layer's attention: q (B,H,N,c) and k (B,H,T,c) of the conditional rows."""
        height, width = self._sums.shape[-2:]
        attention = (query.float() * query.shape[-1] ** -0.5 @ key.float().transpose(-1, -2)).softmax(-1)
        share = (attention * marked(columns, key)[:, None, None]).sum(-1).mean(1)
        # B(hw) -> BChw
        level = share.unflatten(1, level_size(height, width, share.shape[1]))[:, None]
        resized = F.interpolate(level, (height, width), mode="bilinear")[:, 0]
        self._sums[:, self._range] += resized.to(self._sums)
        self._recorded[self._range] += 1

    @property
    def mean(self) -> Tensor:
        """(B, ranges, h, w) in [0,1]: the tokens' share of attention, a mean over heads, layers and the
        evaluations of a range; 0 where it has none.
        """
        return self._sums / self._recorded.clamp(min=1)[:, None, None]


def heat_over_photo(maps: Tensor, photo: np.ndarray, factor: int) -> np.ndarray:
    """One image's maps (R,h,w) over its photo (H,W,3) uint8, `factor` pixels per cell -> (R,H,W,3) uint8.

    The colours reach from the least to the largest share of all ranges.
    """
    height, width = photo.shape[:2]
    shares = F.interpolate(maps[None], scale_factor=float(factor), mode="bilinear")[0, :, :height, :width]
    low, high = float(shares.min()), float(shares.max())
    heat = ((shares - low) / max(high - low, 1e-4)).numpy()
    steps = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(heat, steps, channel) for channel in HEAT.T], -1)
    opacity = OPACITY * heat[..., None]
    return ((1 - opacity) * photo + opacity * colours + 0.5).astype(np.uint8)
