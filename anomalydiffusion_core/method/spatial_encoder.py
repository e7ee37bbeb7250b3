"""The spatial encoder E: mask -> n tokens that say where: ResNet, feature pyramid, one head per token.

Normalisation is by groups, not batches: the same mask gives the same tokens whatever lies beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SpatialEncoderConfig:
    """Sizes of E. `resnet50` is the paper's; `resnet10` is a small one for small bases and CPUs."""

    width: int  # of the tokens, as the base's text encoder has it
    tokens: int = 4
    backbone: Literal["resnet50", "resnet10"] = "resnet50"
    mask_size: int = 256  # pixels per side that E sees
    pyramid_channels: int = 64
    grid: int = 8  # cells per side of the pooled map that the heads read

    def to_json(self) -> str:
        return json.dumps(asdict(self))


# blocks per stage, bottleneck blocks or basic ones, and the stages that feed the pyramid
BACKBONES = {"resnet50": ((3, 4, 6, 3), True, (1, 2, 3, 4)), "resnet10": ((1, 1, 1, 1), False, (1, 2, 3))}


class SpatialEncoder(nn.Module):
    """Mask (B,1,H,W) in {0,1} -> tokens (B,n,d) at the scale of the base's token table."""

    def __init__(self, config: SpatialEncoderConfig) -> None:
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.config = config
        blocks, deep, self.stages = BACKBONES[config.backbone]
        block = Bottleneck if deep else BasicBlock
        resnet = ResNet(block, list(blocks), norm_layer=partial(nn.GroupNorm, 32))
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.layers = nn.ModuleList(getattr(resnet, f"layer{i}") for i in range(1, max(self.stages) + 1))
        widths = [64 * 2 ** (i - 1) * block.expansion for i in self.stages]
        self.pyramid = FeaturePyramidNetwork(widths, config.pyramid_channels)
        features = config.pyramid_channels * config.grid**2
        self.heads = nn.ModuleList(nn.Linear(features, config.width) for _ in range(config.tokens))
        self.normalise = nn.LayerNorm(config.width, elementwise_affine=False)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def set_scale(self, token_table_rms: float) -> None:
        """Lets tokens start at the root-mean-square value of the base's own token table."""
        self.scale.data.fill_(token_table_rms)

    def forward(self, mask: Tensor) -> Tensor:
        size = self.config.mask_size
        shrinks = max(mask.shape[-2:]) > size
        mask = F.interpolate(mask.float(), (size, size), mode="area" if shrinks else "bilinear")
        x = self.stem((2 * mask - 1).expand(-1, 3, -1, -1))
        features = {}
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if i in self.stages:
                features[str(i)] = x
        finest = self.pyramid(features)[str(self.stages[0])]
        pooled = F.adaptive_avg_pool2d(finest, self.config.grid).flatten(1)
        tokens = torch.stack([head(pooled) for head in self.heads], dim=1)
        return self.normalise(tokens) * self.scale
