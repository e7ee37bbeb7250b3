"""Where to generate in a normal photo, and what AAR and Eq. 1 ask for there at each step; for every host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .blending import widened
from .reweighting import (
    AARConfig,
    AARMode,
    adaptive_weight,
    paper_weight,
    released_region,
    released_weight,
    strengthened,
)

Decode = Callable[[Tensor], Tensor]  # model latent (B,C,h,w) -> image (B,3,H,W), about [-1,1]


@dataclass(frozen=True)
class Inpainting:
    """Normal photo y and its mask in pixels (needed by mode `paper` alone), and both at latent size."""

    normal: Tensor  # z_y (B,C,h,w)
    m_z: Tensor  # (B,1,h,w) in {0,1}
    image: Tensor | None = None  # (B,3,H,W) in [-1,1]
    mask: Tensor | None = None  # (B,1,H,W) in {0,1}

    def blend_region(self, progress: float, steps: int, widening: float, aar: AARConfig) -> Tensor:
        """The mask that Eq. 1 blends with at timestep t = `progress` x T of a run of `steps`: m_z, widened
        while noise is high.

        In mode `released` it is the dilated M of the authors' code. Without widening, a base that is bound
        to the photo from the first step on tends to continue the photo instead of drawing the defect.
        """
        if aar.mode is AARMode.RELEASED and aar.enabled:
            return released_region(self.m_z, round(1000 * progress), steps == 50)
        return widened(self.m_z, widening * progress)

    def weight_map(
        self,
        region: Tensor,
        z_t: Tensor,
        clean_hat: Tensor | None,
        aar: AARConfig,
        decode: Decode,
    ) -> Tensor | None:
        """AAR's weights (B,1,h,w) for the coming evaluation; None where they need an estimate of z0 and there
        is none yet.

        `decode` and the photo serve mode `paper`; ValueError where it lacks them.
        """
        if aar.mode is AARMode.RELEASED:
            w = released_weight(z_t, self.normal, region)
        elif aar.mode is AARMode.MASKED:
            w = self.m_z
        elif clean_hat is None:
            return None
        elif aar.mode is AARMode.ADAPTIVE:
            w = adaptive_weight(clean_hat, self.normal, self.m_z, aar.maximum)
        elif self.image is None or self.mask is None:
            raise ValueError("AAR mode 'paper' compares pixels: give it the normal photo, mask and VAE.")
        else:
            w = paper_weight(self.image, decode(clean_hat), self.mask, aar.temperature)
        return strengthened(w, aar.strength)
