"""Guards evaluation/localizer.py: its shape, its loss by hand, and what it learns from a seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anomalydiffusion_core.evaluation.localizer import (
    Localizer,
    LocalizerConfig,
    LocalizerData,
    focal_loss,
    image_scores,
    train_localizer,
)
from anomalydiffusion_core.gate import imagenet


def test_the_localiser_follows_its_widths_and_keeps_the_size() -> None:
    network = Localizer(4)
    shapes = [tuple(block[0].weight.shape[:2]) for block in network.encoder.levels]  # type: ignore[index,union-attr]
    assert shapes == [(4, 3), (8, 4), (16, 8), (32, 16), (32, 32), (32, 32)]
    assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 2, 64, 96)


def test_a_pretrained_one_begins_with_imagenets_weights_and_learns_on_from_there() -> None:
    for package in imagenet.PACKAGES:
        pytest.importorskip(package)
    network, published = Localizer(4, pretrained=True).eval(), imagenet.efficientnet_lite0().eval()
    assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 2, 64, 96)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = published.blocks(published.bn1(published.conv_stem(imagenet.normalised(image))))
    levels = network.encoder(image)
    torch.testing.assert_close(levels[-1], seen)
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8, 4, 2]
    pixels, normals = torch.full((2, 3, 32, 32), 99).byte(), torch.zeros(2, 3, 32, 32).byte()
    data = LocalizerData(pixels, torch.ones(2, 1, 32, 32).byte(), normals)
    trained = train_localizer(data, LocalizerConfig(size=32, width=4, steps=2, rate=1e-2, pretrained=True))
    assert not torch.equal(trained.encoder.stages[0][0].weight, published.conv_stem.weight)  # type: ignore


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])  # (1,2,1,2)
    mask = torch.tensor([[[[1, 0]]]])
    p = torch.tensor([torch.sigmoid(torch.tensor(1.0)), torch.sigmoid(torch.tensor(2.0))])
    expected = -((1 - p) ** 2 * p.log()).mean()
    assert focal_loss(logits, mask, 2.0) == pytest.approx(float(expected))
    assert focal_loss(logits, 1 - mask, 2.0) > 3 * expected


def test_the_image_score_is_the_greatest_window_mean() -> None:
    maps = torch.zeros(2, 64, 64)
    maps[0, 20:41, 10:31] = 1
    maps[1, 5, 5] = 1
    assert image_scores(maps).tolist() == pytest.approx([1.0, 1 / 441])


@pytest.mark.parametrize(("generated", "real"), [(40, 3), (3, 40), (5, 5)])
def test_real_pairs_beside_generated_ones_are_drawn_as_often_whatever_their_number(
    generated: int, real: int
) -> None:
    data, generator = _pairs(generated + real, real), torch.Generator().manual_seed(0)
    rows = torch.cat([data.drawn(4, generator) for _ in range(500)])
    assert float((rows >= generated).float().mean()) == 0.5
    assert len(rows.unique()) == generated + real, "every pair is drawn"
    counts = rows.bincount()
    for group in (counts[:generated], counts[generated:]):
        assert float(group.max()) < 2 * 1000 / len(group)
    assert len(data.drawn(5, generator)) == 5


def test_pairs_of_one_kind_are_drawn_alike() -> None:
    for data in (_pairs(10, 0), _pairs(10, 10)):
        rows = torch.cat([data.drawn(4, torch.Generator().manual_seed(seed)) for seed in range(200)])
        assert len(rows.unique()) == 10 and int(rows.max()) == 9


def _pairs(count: int, real: int) -> LocalizerData:
    none = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    return LocalizerData(none.new_zeros(count, 3, 8, 8), none.new_zeros(count, 1, 8, 8), none, real)


def test_a_localiser_learns_to_find_bright_squares_and_the_same_seed_gives_the_same_one() -> None:
    random = torch.Generator().manual_seed(0)
    normals = torch.randint(90, 130, (8, 3, 32, 32), generator=random).to(torch.uint8)
    images, masks = normals.clone(), torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    for i in range(8):
        masks[i, :, 2 * i : 2 * i + 10, 3 : 3 + 12] = 1
    images[masks.expand(-1, 3, -1, -1) > 0] = 220
    config = LocalizerConfig(size=32, width=4, steps=60, rate=1e-2, seed=1)
    data, seen = LocalizerData(images, masks, normals), []
    network = train_localizer(data, config, on_checkpoint=lambda n: seen.append(n.training))
    assert seen == [False] * 10 and not network.training
    found = network(images.float() / 127.5 - 1).argmax(1)
    assert (found == masks[:, 0]).float().mean() > 0.95
    again = train_localizer(data, config)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=False))
    with pytest.raises(ValueError, match="there are 8 and 0"):
        train_localizer(LocalizerData(images, masks, normals[:0]), config)
    with pytest.raises(ValueError, match="size 100 is no multiple of 32"):
        train_localizer(data, replace(config, size=100))
