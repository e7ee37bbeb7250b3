"""Telling defect types apart: ResNet-34 (He et al., 2016), trained on generated photos, tested on real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .localizer import OnLoss

if TYPE_CHECKING:  # the node's schema reads the configuration alone
    from ..dataset.layout import Pair
    from .split import Split

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0,1]

# Raise the number when the same pairs and seed train another network: results kept by it are then made again.
METHOD = "classifier/1"


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained."""

    size: int = 256
    steps: int = 1500
    batch_size: int = 16
    rate: float = 1e-4
    pretrained: bool = True  # ImageNet's weights, as in the paper
    seed: int = 0


QUICK_CLASSIFIER = ClassifierConfig(size=128, steps=150)


@dataclass(frozen=True)
class Classification:
    """`confusion` (K,K) counts real photos of a true type (row) by the predicted type (column)."""

    names: list[str]
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of all photos whose type was predicted."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def by_type(self) -> dict[str, float]:
        """The same for each type by itself."""
        shares = np.diag(self.confusion) / self.confusion.sum(1)
        return dict(zip(self.names, shares.tolist(), strict=True))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    device: torch.device | str = "cpu",
    *,
    on_step: OnLoss = lambda step, total, loss: None,
) -> nn.Module:
    """Photos (N,3,S,S) uint8, labels (N,) in 0..K-1 -> a network of K logits; the same seed, the same one.

    Raises ValueError for fewer than two types, or where ImageNet's weights cannot be had.
    """
    types = int(labels.max()) + 1 if len(labels) else 0
    if types < 2:
        raise ValueError(f"There are photos of {types} defect types: a classifier needs at least two.")
    network = new_resnet(types, config).to(device).train()
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.rate)
    for step in range(1, config.steps + 1):
        rows = torch.randint(len(images), (config.batch_size,), generator=generator)
        loss = F.cross_entropy(network(_normalised(images[rows]).to(device)), labels[rows].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        on_step(step, config.steps, float(loss.detach()))
    return network.eval()


def train_and_classify(
    pairs: Sequence[Pair],
    split: Split,
    config: ClassifierConfig,
    device: torch.device | str = "cpu",
    *,
    on_step: OnLoss = lambda step, total, loss: None,
) -> Classification:
    """A classifier of the split's defects, trained on pairs of these and tested on its real test photos."""
    from .localization import read_pairs

    names = split.defects
    images, _ = read_pairs(pairs, config.size)
    labels = torch.tensor([names.index(pair.defect) for pair in pairs])
    network = train_classifier(images, labels, config, device, on_step=on_step)
    photos, _ = read_pairs(split.test_pairs, config.size)
    truth = torch.tensor([names.index(pair.defect) for pair in split.test_pairs])
    return classify(network, photos, truth, names, device=device)


@torch.no_grad()
def classify(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: list[str],
    *,
    device: torch.device | str = "cpu",
) -> Classification:
    """Tests on photos (N,3,S,S) uint8 whose true types are `labels` (N,), indices into `names`."""
    parts = [network(_normalised(part).to(device)).argmax(1).cpu() for part in images.split(16)]
    confusion = torch.bincount(labels * len(names) + torch.cat(parts), minlength=len(names) ** 2)
    return Classification(names, confusion.reshape(len(names), len(names)).numpy())


def new_resnet(types: int, config: ClassifierConfig) -> nn.Module:
    """A ResNet-34 of so many logits; ValueError where ImageNet's weights are asked for and not there."""
    from torchvision.models import ResNet34_Weights, resnet34

    weights = ResNet34_Weights.IMAGENET1K_V1 if config.pretrained else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            network = resnet34(weights=weights)
        except (URLError, OSError) as error:
            file = ResNet34_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
            raise ValueError(
                f"ImageNet's weights of ResNet-34 cannot be fetched ({error}): put {file} into "
                f"{torch.hub.get_dir()}/checkpoints, or train from scratch."
            ) from None
        network.fc = nn.Linear(network.fc.in_features, types)
    return network


def _normalised(images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation
