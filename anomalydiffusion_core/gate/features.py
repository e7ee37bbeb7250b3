"""Features to compare defects by: those of an ImageNet network where its package is installed, else those of
the base's own autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor, nn

from . import imagenet
from .scores import EIGHT, surroundings

STAGES = 2  # of the network that look, at a stride of 4 pixels
OUTLINE = 2  # pixels on either side that belong to a defect's outline


@dataclass(frozen=True)
class Backbone:
    """`name` says which network; `embed` maps images (B,3,H,W) in [-1,1] to features (B,D,h,w)."""

    name: str
    embed: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(3D,) of a defect, not of its ground: pixels (S,S,3) in [0,255], mask (S,S) bool. How the mean over
        the cells that it touches differs from that of its surroundings, and the deviations over these cells
        and over those of its outline.
        """
        cells = self._embedded(pixels)
        grown, core = np.ones_like(mask), np.ones_like(mask)
        binary_dilation(mask, EIGHT, OUTLINE, output=grown)
        binary_erosion(mask, EIGHT, OUTLINE, output=core, border_value=1)
        inside, around, outline = (
            self._cells(part, cells) for part in (mask, surroundings(mask), grown & ~core)
        )
        difference = inside.mean(1) - around.mean(1)
        return torch.cat([difference, inside.std(1, correction=0), outline.std(1, correction=0)]).numpy()

    @torch.no_grad()
    def ground(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(2D,) of what lies around a mask (S,S) bool in pixels (S,S,3) in [0,255]: mean and deviation."""
        around = self._cells(surroundings(mask), self._embedded(pixels))
        return torch.cat([around.mean(1), around.std(1, correction=0)]).numpy()

    def _embedded(self, pixels: np.ndarray) -> Tensor:
        """Features (D,h,w) of pixels (S,S,3) in [0,255]."""
        # HWC -> 1CHW
        image = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return self.embed(image)[0].float().cpu()

    @staticmethod
    def _cells(marked: np.ndarray, cells: Tensor) -> Tensor:
        """(D,K) of the cells that what is marked touches; all cells where nothing is."""
        touched = (
            F.adaptive_max_pool2d(torch.from_numpy(marked.copy())[None, None].float(), cells.shape[-2:])[0, 0]
            > 0
        )
        return cells[:, touched] if touched.any() else cells.flatten(1)


def backbone_name(family: str) -> str:
    """What compares defects on a base of this family: ImageNet's network where it is installed."""
    return imagenet.NAME if imagenet.installed() else f"{family} autoencoder"


def find_backbone(encode: Callable[[Tensor], Tensor], family: str, device: str = "cpu") -> Backbone:
    """ImageNet's EfficientNet-Lite0, down to its second stage, where the extra `features` is installed; else
    `encode`, the autoencoder of a base of this family. Nothing is downloaded.
    """
    if not imagenet.installed():
        return Backbone(backbone_name(family), encode)
    network = imagenet.efficientnet_lite0()
    stages = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:STAGES]).to(device)
    stages.eval().requires_grad_(False)
    return Backbone(backbone_name(family), lambda image: stages(imagenet.normalised(image.to(device))))
