"""The paper's localiser: DRAEM's discriminative U-Net (Zavrtanik et al., 2021) with focal loss (Lin et al.,
2017), trained on pairs and normal photos in equal parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gate import imagenet

# Raise the number when the same pairs and seed train another network, or are read otherwise: results kept by
# it are then made again.
METHOD = "localiser/2"
OnLoss = Callable[[int, int, float], None]  # step, total, loss
WIDTHS = (1, 2, 4, 8, 8, 8)  # of the levels, in multiples of the first one's
CHECKPOINTS = 10
SCORE_WINDOW = 21  # pixels: the image score is the greatest mean of the map over such a square


@dataclass(frozen=True)
class LocalizerConfig:
    """The paper's values; on a CPU take a smaller size, width and number of steps."""

    size: int = 256  # pixels per side; a multiple of 32
    width: int = 64  # channels of the first level
    steps: int = 12_500  # 200 epochs of 500 draws
    batch_size: int = 8  # half of it normal
    rate: float = 1e-4
    gamma: float = 2.0
    pretrained: bool = False  # the encoder begins with ImageNet's weights, of the extra `features`
    seed: int = 0


QUICK = LocalizerConfig(size=128, width=16, steps=300, rate=1e-3)


@dataclass(frozen=True)
class LocalizerData:
    """Pairs' photos (N,3,S,S) with masks (N,1,S,S), and normal photos (M,3,S,S), all uint8; masks {0,1}. The
    last `real` pairs are real ones beside generated ones: both kinds are drawn equally often.
    """

    images: Tensor
    masks: Tensor
    normals: Tensor
    real: int = 0

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows (count,) of pairs to train on."""
        generated = len(self.images) - self.real
        of_real = count // 2 if self.real and generated else 0
        rows = torch.randint(generated or self.real, (count - of_real,), generator=generator)
        real = generated + torch.randint(max(1, self.real), (of_real,), generator=generator)
        return torch.cat([rows, real])


@dataclass(frozen=True)
class Predictions:
    """Anomaly maps (N,S,S) of photos, and how anomalous each photo is (N,); higher is more so."""

    maps: Tensor
    scores: Tensor


def _convolutions(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [
            nn.Conv2d(outputs if number else inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _Encoder(nn.Module):
    """DRAEM's: images (B,3,S,S) -> levels (B,width,s,s), finest first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = [width * factor for factor in WIDTHS]
        self.levels = nn.ModuleList(
            _convolutions(inputs, outputs, 2)
            for inputs, outputs in zip([3, *self.widths], self.widths, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        levels, x = [], image
        for number, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if number else x)
            levels.append(x)
        return levels


class _ImagenetEncoder(nn.Module):
    """The same by ImageNet's EfficientNet-Lite0, at strides 2 to 32, and `width` untrained channels before
    that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        network = imagenet.efficientnet_lite0()
        first = nn.Sequential(network.conv_stem, network.bn1, network.blocks[0])
        stages = [first, network.blocks[1], network.blocks[2], network.blocks[3:5], network.blocks[5:7]]
        self.widths = [width, 16, 24, 40, 112, 320]
        self.stem = _convolutions(3, width, 2)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        levels, x = [self.stem(image)], imagenet.normalised(image)
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class Localizer(nn.Module):
    """(B,3,S,S) in [-1,1] -> logits (B,2,S,S) of normal and anomalous; S a multiple of 32."""

    def __init__(self, width: int, *, pretrained: bool = False) -> None:
        super().__init__()
        self.encoder = (_ImagenetEncoder if pretrained else _Encoder)(width)
        widths = self.encoder.widths
        steps = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(_convolutions(below, here, 1) for below, here in steps)
        self.merge = nn.ModuleList(_convolutions(2 * here, here, 2) for _, here in steps)
        self.out = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        levels = self.encoder(image)
        x = levels[-1]
        for up, merge, level in zip(self.up, self.merge, levels[-2::-1], strict=True):
            x = up(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
            x = merge(torch.cat([x, level], 1))
        return self.out(x)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p of the true class; logits (B,2,H,W), mask (B,1,H,W) in {0,1}."""
    log_p = F.log_softmax(logits, 1).gather(1, mask.long())
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


def train_localizer(
    data: LocalizerData,
    config: LocalizerConfig,
    device: torch.device | str = "cpu",
    on_step: OnLoss = lambda step, total, loss: None,
    *,
    on_checkpoint: Callable[[Localizer], None] | None = None,
) -> Localizer:
    """Trains a localiser; the same seed gives the same one. Raises ValueError where photos are missing.

    `on_checkpoint` is shown the network, as it is for measuring, at up to ten moments, the end the last.
    """
    if not len(data.images) or not len(data.normals):
        raise ValueError(
            f"The localiser needs pairs and normal photos: there are {len(data.images)} and "
            f"{len(data.normals)}."
        )
    if config.size % 32:
        raise ValueError(f"The localiser's size {config.size} is no multiple of 32: choose one.")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = Localizer(config.width, pretrained=config.pretrained)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.rate)
    milestones = [int(0.8 * config.steps), int(0.9 * config.steps)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    defective = config.batch_size - config.batch_size // 2
    for step in range(1, config.steps + 1):
        rows = data.drawn(defective, generator)
        normal_rows = torch.randint(len(data.normals), (config.batch_size // 2,), generator=generator)
        image = to_network(torch.cat([data.images[rows], data.normals[normal_rows]])).to(device)
        mask = F.pad(data.masks[rows], (0, 0, 0, 0, 0, 0, 0, config.batch_size // 2)).to(device)
        loss = focal_loss(network(image), mask, config.gamma)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(step, config.steps, float(loss.detach()))
        if on_checkpoint and (step % -(-config.steps // CHECKPOINTS) == 0 or step == config.steps):
            on_checkpoint(network.eval())
            network.train()
    return network.eval()


def to_network(images: Tensor) -> Tensor:
    """uint8 photos -> float in [-1,1]; channels last, which is a fifth to a third faster on a CPU."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


@torch.no_grad()
def predict(network: Localizer, images: Tensor, device: torch.device | str = "cpu") -> Predictions:
    """How likely each pixel of photos (N,3,S,S) uint8 is anomalous, and the photos' scores."""
    parts = [network(to_network(part).to(device)).softmax(1)[:, 1].cpu() for part in images.split(8)]
    maps = torch.cat(parts)
    return Predictions(maps, image_scores(maps))


def image_scores(maps: Tensor) -> Tensor:
    """Maps (N,S,S) -> scores (N,): the greatest mean over a square window, edges counted in full."""
    smooth = F.avg_pool2d(maps[:, None], SCORE_WINDOW, 1, SCORE_WINDOW // 2)
    return smooth.flatten(1).amax(1)
