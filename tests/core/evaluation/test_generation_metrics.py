"""Guards evaluation/generation_metrics.py: formulas of the field with a small network, ours by hand."""

from __future__ import annotations

import sys
from itertools import combinations
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomalydiffusion_core.evaluation.generation_metrics import (
    PublishedNetworks,
    defect_patch,
    inception_score,
    intra_cluster_lpips,
    kernel_inception_distance,
    memorisation_rate,
    pair_quality,
    published_networks,
    published_scores,
)


class Small(nn.Module):
    """Features of a photo: a fixed linear map of its pooled pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2)
        return pooled.flatten(1) @ self.weight


def photos(count: int, seed: int, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randint(low, 256, (count, 3, 2, 2), generator=generator)
    return means.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)


def test_the_inception_score_by_its_formula() -> None:
    images = photos(20, 0)
    p = Small()(images).softmax(1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
    assert inception_score(images, Small()) == pytest.approx(float(divergence.exp()), rel=1e-5)
    assert inception_score(images[:1].expand(20, -1, -1, -1), Small()) == pytest.approx(1)


def test_the_inception_score_is_a_mean_over_parts_of_fifty_photos() -> None:
    # alike within each half: 1 in either part, where all together would give more
    halves = torch.cat([photos(1, seed).expand(50, -1, -1, -1) for seed in (0, 5)])
    together = inception_score(halves[25:75], Small())  # 50 photos are one part
    assert together > 1.01
    assert 1 < inception_score(halves, Small()) <= 2


def test_kid_by_its_formula() -> None:
    generated, real = photos(20, 1, low=100), photos(20, 2)
    x, y = Small()(generated).double(), Small()(real).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_itself(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    expected = without_itself(kernel(x, x)) + without_itself(kernel(y, y)) - 2 * kernel(x, y).mean()
    # every subset of 20 of 20 is the whole
    assert kernel_inception_distance(generated, real, Small()) == pytest.approx(float(expected), rel=1e-4)
    far = kernel_inception_distance(generated, real, Small())
    near = kernel_inception_distance(photos(20, 3), real, Small())
    assert far is not None and near is not None and far > abs(near)
    assert kernel_inception_distance(generated, real[:1], Small()) is None


def test_ic_lpips_by_hand() -> None:
    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().flatten(1).mean(1)

    training = torch.stack([torch.full((3, 4, 4), v) for v in (-1.0, 1.0)])
    values = [-0.9, -0.5, -0.7, 0.8, 0.2]
    generated = torch.stack([torch.full((3, 4, 4), v) for v in values])
    left = np.mean([abs(a - b) for a, b in combinations(values[:3], 2)])
    found = intra_cluster_lpips(generated, training, distance)
    assert found == pytest.approx((left + abs(0.8 - 0.2)) / 2, rel=1e-5)
    assert intra_cluster_lpips(generated[[0, 3]], training, distance) is None


def test_fill_background_and_iou_by_hand() -> None:
    normal = np.full((10, 10, 3), 100, np.uint8)
    mask = np.zeros((10, 10), bool)
    mask[2:6, 2:6] = True  # 16 pixels
    generated = normal.copy()
    generated[2:6, 2:5, 1] = 130  # 12 of them
    generated[8, :4, 0] = 110  # 4 outside, of 84
    found = pair_quality(normal, generated, mask, 5.0)
    assert found.fill == 12 / 16
    assert found.background == pytest.approx(4 * 10 / 84)
    assert found.iou == pytest.approx(12 / 20)
    assert found.precision == 12 / 16  # by whatever is seen, not by the noise
    assert found.boundary_iou < found.iou  # gate/test_fidelity.py computes it by hand
    assert pair_quality(normal, generated, mask, 15.0).iou == 12 / 16


def pair(seed: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (6, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    mask = np.zeros((48, 48), bool)
    mask[8 : 8 + size, 16 : 16 + size] = True
    return pixels, mask


def test_a_copied_defect_is_found_wherever_it_lies_turned_mirrored_or_darker() -> None:
    training, other = [defect_patch(*pair(seed)) for seed in (0, 1)], defect_patch(*pair(2))
    pixels, mask = pair(1)
    turned = defect_patch(np.rot90(pixels)[:, ::-1].copy(), np.rot90(mask)[:, ::-1].copy())
    darker = defect_patch((pixels * 0.6).astype(np.uint8), mask)
    moved = defect_patch(np.roll(pixels, 5, 1), np.roll(mask, 5, 1))
    assert memorisation_rate([turned, darker, moved], training) == 1
    assert memorisation_rate([turned, other], training) == 0.5
    assert memorisation_rate([other], training) == 0
    with pytest.raises(ValueError, match="there are none of a kind"):
        memorisation_rate([], training)


def test_networks_that_cannot_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("torchmetrics.image")

    def offline(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(image, "InceptionScore", offline)
    with pytest.raises(ValueError, match="cannot be fetched .*no network.* download its weights into"):
        published_networks()
    monkeypatch.setitem(sys.modules, "lpips", None)  # not installed
    with pytest.raises(ValueError, match=r"need torchmetrics and lpips: pip install .*\[eval\]"):
        published_networks()


def test_the_published_scores_are_of_the_right_photos() -> None:
    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().flatten(1).mean(1)

    made, training, real = photos(20, 1, low=100), photos(3, 4), photos(20, 2)
    found = published_scores(made, training, real, PublishedNetworks(Small(), Small(), distance))
    assert found.inception_score == inception_score(made, Small())
    assert found.kid == kernel_inception_distance(made, real, Small())
    clusters = intra_cluster_lpips(made / 127.5 - 1, training / 127.5 - 1, distance)
    assert found.ic_lpips == pytest.approx(clusters)
