"""Features to compare defects by: an ImageNet ResNet-50 where its weights are at hand, else the base's own
autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .scores import surroundings

IMAGENET = "resnet50-imagenet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0,1]


@dataclass(frozen=True)
class Backbone:
    """`name` says which network; `embed` maps images (B,3,H,W) in [-1,1] to features (B,D,h,w)."""

    name: str
    embed: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(3D,) of a defect: pixels (S,S,3) in [0,255], mask (S,S) bool. Mean and deviation over the cells
        that it touches, and how the mean differs from that of its surroundings.
        """
        # HWC -> 1CHW
        image = torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        cells = self.embed(image)[0].float().cpu()
        inside, around = (self._cells(part, cells) for part in (mask, surroundings(mask)))
        mean = inside.mean(1)
        return torch.cat([mean, inside.std(1, correction=0), mean - around.mean(1)]).numpy()

    @staticmethod
    def _cells(marked: np.ndarray, cells: Tensor) -> Tensor:
        """(D,K) of the cells that what is marked touches; all cells where nothing is."""
        touched = (
            F.adaptive_max_pool2d(torch.from_numpy(marked.copy())[None, None].float(), cells.shape[-2:])[0, 0]
            > 0
        )
        return cells[:, touched] if touched.any() else cells.flatten(1)


def find_backbone(encode: Callable[[Tensor], Tensor], family: str, device: str = "cpu") -> Backbone:
    """ImageNet's ResNet-50, down to its second stage, where torchvision's weights lie in torch's cache; else
    `encode`, the autoencoder of a base of this family. Nothing is downloaded.
    """
    from torchvision.models import ResNet50_Weights, resnet50

    weights = ResNet50_Weights.IMAGENET1K_V2
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
        return Backbone(f"{family} autoencoder", encode)
    network = resnet50(weights=weights).to(device).eval().requires_grad_(False)
    stages = torch.nn.Sequential(
        network.conv1, network.bn1, network.relu, network.maxpool, network.layer1, network.layer2
    )
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, STD))
    return Backbone(IMAGENET, lambda image: stages(((image.to(device) + 1) / 2 - mean) / std))
