"""The spatial encoder of the authors' released code, as their published checkpoint has it: an IR-50
face-recognition backbone, a feature pyramid, and for each token six convolutions of stride 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASK_SIZE = 256  # pixels per side
WIDTHS = {
    **dict.fromkeys(range(3), 64),
    **dict.fromkeys(range(3, 7), 128),
    **dict.fromkeys(range(7, 21), 256),
}
WIDTHS |= dict.fromkeys(range(21, 24), 512)  # of the backbone's units
HALVING = (0, 3, 7, 21)  # units of stride 2
TAPS = (6, 20, 23)  # units that feed the pyramid
HEAD = 1280  # channels of a head


class Unit(nn.Module):
    """A residual unit of IR-50."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        shortcut = [nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.shortcut_layer = nn.Sequential(*shortcut) if before != width else nn.MaxPool2d(1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class Head(nn.Module):
    """The finest level of the pyramid (B,512,64,64) -> one token (B,width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(512 if i == 0 else HEAD, HEAD, 3, 2, 1) for i in range(6)]
        self.convs = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.LeakyReLU())))
        self.linear = nn.Linear(HEAD, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class ReleasedEncoder(nn.Module):
    """Mask (B,1,H,W) in {0,1} -> tokens (B,n,width); 356 M parameters for four tokens of width 1280."""

    def __init__(self, width: int, tokens: int = 4) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        self.body = nn.ModuleList(
            Unit(WIDTHS[max(0, i - 1)], width_, 2 if i in HALVING else 1) for i, width_ in WIDTHS.items()
        )
        self.styles = nn.ModuleList(Head(width) for _ in range(tokens))
        self.latlayer1, self.latlayer2 = nn.Conv2d(256, 512, 1), nn.Conv2d(128, 512, 1)

    def forward(self, mask: Tensor) -> Tensor:
        mask = F.interpolate(mask.float(), (MASK_SIZE, MASK_SIZE))
        x, levels = self.input_layer((2 * mask - 1).expand(-1, 3, -1, -1)), []
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in TAPS:
                levels.append(x)
        fine, middle, coarse = levels
        middle = _twice(coarse) + self.latlayer1(middle)
        finest = _twice(middle) + self.latlayer2(fine)
        return torch.stack([style(finest) for style in self.styles], 1)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
