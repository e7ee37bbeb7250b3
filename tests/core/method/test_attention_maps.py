"""Attention maps: shares computed entry by entry, per range of steps; heat maps over the photo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.attention_maps import HEAT, OPACITY, AttentionMaps, heat_over_photo
from anomalydiffusion_core.method.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.method.reweighting import MODES, AARConfig, AttentionWeights
from anomalydiffusion_core.method.sampling import (
    SamplingConfig,
    SamplingRequest,
    image_generator,
    sample_into,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def share(query: Tensor, key: Tensor, columns: list[int]) -> float:
    """A query's attention (c,) to the chosen of the keys (T,c), entry by entry."""
    logits = [sum(float(a * b) for a, b in zip(query, k, strict=True)) / len(query) ** 0.5 for k in key]
    exponentials = [math.exp(value) for value in logits]
    return sum(exponentials[column] for column in columns) / sum(exponentials)


def test_a_map_is_the_columns_share_of_attention_a_mean_over_heads_of_each_row_s_own_columns() -> None:
    query, key = randn(2, 3, 6, 4), randn(2, 3, 5, 4, seed=1)
    maps = AttentionMaps(2, (2, 3), ranges=1)
    maps.record(query, key, (slice(1, 3), slice(2, 5)))
    assert maps.mean.shape == (2, 1, 2, 3)
    for b, columns in enumerate(([1, 2], [2, 3, 4])):
        for i in range(6):
            expected = sum(share(query[b, head, i], key[b, head], columns) for head in range(3)) / 3
            assert float(maps.mean[b, 0, i // 3, i % 3]) == pytest.approx(expected, abs=1e-5)


def test_layers_of_all_levels_count_alike_and_ranges_are_kept_apart() -> None:
    key = torch.zeros(1, 1, 4, 2)
    key[..., 0, 0] = 50.0  # who asks for it sees column 0 alone, who does not sees all four alike
    seeing, blind = torch.tensor([1.0, 0.0]), torch.zeros(2)
    fine = torch.stack([seeing if i % 4 < 2 else blind for i in range(16)])[None, None]
    coarse = torch.stack([seeing] * 4)[None, None]
    maps = AttentionMaps(1, (4, 4), ranges=4)
    maps.begin(0.0)
    maps.record(fine, key, slice(0, 1))
    maps.begin(0.24)
    maps.record(coarse, key, slice(0, 1))
    maps.begin(0.75)
    maps.record(coarse, key, slice(1, 4))
    left, right = (1 + 1) / 2, (0.25 + 1) / 2
    expected = torch.tensor([left, left, right, right]).expand(4, 4)
    torch.testing.assert_close(maps.mean[0, 0], expected)
    assert torch.equal(maps.mean[0, 1:3], torch.zeros(2, 4, 4))
    torch.testing.assert_close(maps.mean[0, 3], torch.zeros(4, 4))


def scene(base: LatentDiffusion) -> tuple[Tensor, Tensor, Context, Context]:
    photo, mask = randn(2, 3, 56, 72).clamp(-1, 1), torch.zeros(2, 1, 56, 72)
    mask[0, 0, 10:30, 20:40], mask[1, 0, 40:50, 8:30] = 1, 1
    with torch.no_grad():
        context = base.encode_prompts(["a photo of a {}", "a {}"], {"clip_l": randn(2, 3, 16)})
        return photo, mask, context, base.encode_prompts(["", ""])


def generate(base: LatentDiffusion, config: SamplingConfig, maps: AttentionMaps | None) -> Tensor:
    photo, mask, context, empty = scene(base)
    generators = [image_generator(0, i) for i in range(2)]
    return sample_into(
        base, photo, mask, SamplingRequest(context, empty, generators, maps=maps), config=config
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_recording_changes_nothing_of_the_picture(
    small_base: DiffusersModel, mode: str, guidance: float
) -> None:
    config = SamplingConfig(steps=4, guidance=guidance, aar=AARConfig(mode))
    maps = AttentionMaps(2, (7, 9), ranges=2)
    assert torch.equal(generate(small_base, config, maps), generate(small_base, config, None))
    assert ((maps.mean > 0) & (maps.mean < 1)).all()
    assert not torch.allclose(maps.mean[:, 0], maps.mean[:, 1], atol=1e-4)


@torch.no_grad()
def test_a_u_net_s_maps_are_those_of_its_layers_inputs(small_base: DiffusersModel) -> None:
    _, _, context, _ = scene(small_base)
    z, t = randn(2, 4, 7, 9, seed=3), torch.tensor([400.0, 400.0])
    seen: list[Tensor] = []

    def remember(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = kwargs["encoder_hidden_states"]
        inputs = module.to_q(args[0]), module.to_k(hidden)  # type: ignore[operator]
        query, key = (x.unflatten(-1, (module.heads, -1)) for x in inputs)
        # BNHc, BThc
        attention = torch.einsum("bnhc,bthc->bhnt", query, key) * query.shape[-1] ** -0.5
        attention = attention.softmax(-1)
        assert isinstance(context.columns, tuple)
        rows = [row[..., part].sum(-1).mean(0) for row, part in zip(attention, context.columns, strict=True)]
        seen.append(torch.stack(rows))

    crossing = [module for name, module in small_base.unet.named_modules() if name.endswith("attn2")]
    hooks = [module.register_forward_pre_hook(remember, with_kwargs=True) for module in crossing]
    try:
        small_base.predict_noise(z, t, context)
    finally:
        for hook in hooks:
            hook.remove()
    maps = AttentionMaps(2, (7, 9), ranges=1)
    with small_base.reweighted(AttentionWeights("off", context.columns, maps=maps)):
        small_base.predict_noise(z, t, context)
    sizes = {63: (7, 9), 20: (4, 5)}
    assert {x.shape[1] for x in seen} == set(sizes)
    levels = [x.unflatten(1, sizes[x.shape[1]])[:, None] for x in seen]
    expected = sum(torch.nn.functional.interpolate(x, (7, 9), mode="bilinear") for x in levels) / len(levels)
    torch.testing.assert_close(maps.mean, expected, rtol=1e-4, atol=1e-6)


def test_only_conditional_predictions_are_recorded_before_any_reweighting(fake_base: LatentDiffusion) -> None:
    # one step: the first evaluation is the same whatever mode and guidance
    recorded = []
    for mode, guidance in (("off", 1.0), ("masked", 1.0), ("off", 4.0)):
        maps = AttentionMaps(2, (7, 9), ranges=1)
        generate(fake_base, SamplingConfig(steps=1, guidance=guidance, aar=AARConfig(mode)), maps)
        recorded.append(maps.mean)
    assert torch.equal(recorded[0], recorded[1])
    assert torch.equal(recorded[0], recorded[2])


def test_heat_maps_show_the_plain_photo_where_least_was_looked_and_the_brightest_colour_where_most() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (14, 22, 3), dtype=np.uint8)  # 2 x 3 cells, cut short
    maps = torch.full((2, 2, 3), 0.1)
    maps[1, 0, 0] = 0.3  # ranges share one scale
    pictures = heat_over_photo(maps, photo, 8)
    assert pictures.shape == (2, 14, 22, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures[0], photo)
    hottest = (1 - OPACITY) * photo[0, 0] + OPACITY * HEAT[-1]
    assert np.abs(pictures[1, 0, 0] - hottest).max() <= 0.51
    assert np.array_equal(pictures[1, 13, 21], photo[13, 21])


def test_heat_maps_of_equal_shares_are_the_plain_photo() -> None:
    photo = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(heat_over_photo(torch.full((4, 1, 1), 0.2), photo, 8), np.stack([photo] * 4))
