"""The spatial encoder: a mask's tokens depend on that mask alone, and on where it is."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig


def make(backbone: Literal["resnet50", "resnet10"] = "resnet10", **sizes: int) -> SpatialEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpatialEncoder(SpatialEncoderConfig(16, backbone=backbone, **{"mask_size": 64, **sizes}))


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int] = (64, 64)) -> torch.Tensor:
    mask = torch.zeros(1, 1, *size)
    mask[..., top : top + height, left : left + width] = 1
    return mask


MASKS = torch.cat([rectangle(4, 6, 10, 20), rectangle(40, 30, 3, 3), rectangle(0, 0, 64, 30)])


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50"])
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_a_mask_has_the_same_tokens_whatever_lies_beside_it(
    backbone: Literal["resnet50", "resnet10"], training: bool
) -> None:
    encoder = make(backbone).train(training)
    together = encoder(MASKS)
    alone = torch.cat([encoder(mask[None]) for mask in MASKS])
    among_others = encoder(torch.cat([MASKS[2:], 1 - MASKS, MASKS[:2]]))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(among_others[[4, 5, 0]], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_training_and_evaluation_mode_give_the_same_tokens() -> None:
    encoder = make()
    assert torch.equal(encoder.train()(MASKS), encoder.eval()(MASKS))


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50"])
@torch.no_grad()
def test_masks_at_different_places_have_different_tokens(
    backbone: Literal["resnet50", "resnet10"],
) -> None:
    encoder = make(backbone)
    here, there = encoder(rectangle(4, 4, 12, 12)), encoder(rectangle(44, 40, 12, 12))
    assert (here - there).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (37, 51), (200, 40), (300, 301), (1, 1)])
@torch.no_grad()
def test_masks_of_any_size_give_one_row_per_token(size: tuple[int, int]) -> None:
    tokens = make(tokens=5)(torch.ones(2, 1, *size, dtype=torch.uint8))
    assert tokens.shape == (2, 5, 16)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("size", [(512, 512), (512, 60), (60, 512)])
@torch.no_grad()
def test_a_one_pixel_line_is_seen_in_a_mask_larger_than_the_encoder(size: tuple[int, int]) -> None:
    encoder = make()
    line = torch.zeros(1, 1, *size)
    line[..., :, 13] = 1
    line[..., 13, :] = 1
    only_column, only_row = line.clone(), line.clone()
    only_column[..., 13, :], only_row[..., :, 13] = 0, 0
    blank = encoder(torch.zeros(1, 1, *size))
    for thin in (only_column, only_row):
        assert (encoder(thin) - blank).abs().max() > 1e-4


@torch.no_grad()
def test_tokens_start_at_the_scale_of_the_base_s_token_table() -> None:
    encoder = make()
    encoder.set_scale(0.3)
    rms = encoder(MASKS).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full((3, 4), 0.3), rtol=1e-3, atol=1e-3)


def test_gradients_reach_every_parameter() -> None:
    encoder = make()
    encoder(MASKS).pow(3).sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the pyramid's coarser outputs are not read
    assert all(name.startswith("pyramid.layer_blocks.") for name in without), without
