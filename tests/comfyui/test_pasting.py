"""nodes/host/pasting.py: KSampler (Anomaly) from a real defect instead of noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

Run = Any


@pytest.fixture
def real(trained: Any) -> dict[str, Any]:
    """What lets a node start from a real defect."""
    return {"dataset": trained.dataset, "denoise": 0.3, "cfg": 1.0}


def tone(images: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """How much brighter each image (B,H,W,3) is than its photo inside its mask (B,H,W)."""
    return ((images - photos).mean(-1) * masks).sum((1, 2)) / masks.sum((1, 2))


def test_a_pasted_defect_keeps_its_tone_where_noise_makes_another(
    generated: Any, trained: Any, masks: Tensor, real: dict[str, Any]
) -> None:
    images = generated(masks, **real)[0]
    assert torch.equal(images[masks == 0], trained.normals[masks == 0])
    pasted = tone(images, trained.normals, masks)
    assert (pasted < -0.1).all(), "ink is dark"
    nearly = tone(generated(masks, **real | {"denoise": 0.05})[0], trained.normals, masks)
    assert (pasted - nearly).abs().max() < 0.1


def test_an_image_is_the_same_whatever_the_batch(generated: Any, masks: Tensor, real: dict[str, Any]) -> None:
    both, alone = generated(masks, **real)[0], generated(masks[:1], **real)[0]
    assert (both[:1] - alone[:1]).abs().max() < 1.5 / 255


def test_a_denoise_of_one_is_what_it_was_before(generated: Any, masks: Tensor, trained: Any) -> None:
    assert torch.equal(generated(masks)[0], generated(masks, denoise=1.0)[0])


def test_without_real_pairs_it_says_what_to_do(
    generated: Any, trained: Any, masks: Tensor, real: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="starts from a real defect: connect the dataset that the"):
        generated(masks, denoise=0.3)
    bare = replace(trained.dataset, categories={})
    with pytest.raises(ValueError, match="and there is no pairs? that trained leather/ink: connect"):
        generated(masks, **real | {"dataset": bare})


def test_the_noise_that_stands_for_a_start_begins_there_inside_the_mask_alone(run: Run, trained: Any) -> None:
    from adiff_pack.nodes.host.sampling import _as_noise  # type: ignore[import-not-found]

    model, generator = trained.base["model"], torch.Generator().manual_seed(0)
    noise, latent, start = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    schedule, sigma = model.get_model_object("model_sampling"), torch.tensor([2.5])
    photo, defect = (model.model.process_latent_in(z) for z in (latent, start))
    moved = noise + _as_noise(model, 2.5, start - latent)
    torch.testing.assert_close(
        schedule.noise_scaling(sigma, moved, photo, False),
        schedule.noise_scaling(sigma, noise, defect, False),
    )
