"""Re-weighting: weight maps against loops written from the formulas, attention against full matrices.

The sampler as a whole: test_aar_sampling.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.attention import Columns, attend, attend_all, attend_logits, to_queries
from anomalydiffusion_core.method.inpainting import Inpainting
from anomalydiffusion_core.method.latent_diffusion import Context
from anomalydiffusion_core.method.reweighting import (
    MODES,
    AARConfig,
    AttentionWeights,
    Moment,
    adaptive_weight,
    paper_weight,
    released_blend_mask,
    released_weight,
    strengthened,
)

WEIGHTED = [mode for mode in MODES if mode != "off"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_masks(height: int = 5, width: int = 6) -> Tensor:
    mask = torch.zeros(2, 1, height, width)
    mask[0, 0, 1:4, 2:5], mask[1, 0, 0, :3] = 1, 1
    return mask


# --- weight maps


@pytest.mark.parametrize("temperature", [1.0, 0.5, 20.0])
def test_paper_s_weights_are_a_softmax_of_one_over_the_difference_times_the_mask_s_area(
    temperature: float,
) -> None:
    y, x0, m = randn(2, 3, 5, 6), randn(2, 3, 5, 6, seed=1), two_masks()
    w = paper_weight(y, x0, m, temperature)
    for b in range(2):
        inverse = {}
        for i in range(5):
            for j in range(6):
                if m[b, 0, i, j] > 0:
                    d = sum(float(y[b, c, i, j] - x0[b, c, i, j]) ** 2 for c in range(3))
                    inverse[i, j] = 1 / (d * temperature)
        top = max(inverse.values())
        total = sum(math.exp(v - top) for v in inverse.values())
        for i in range(5):
            for j in range(6):
                expected = 1.0
                if (i, j) in inverse:
                    expected = len(inverse) * math.exp(inverse[i, j] - top) / total
                assert float(w[b, 0, i, j]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_paper_s_weights_stay_finite_where_nothing_changed() -> None:
    y, m = randn(1, 3, 5, 6), two_masks()[:1]
    x0 = y + 1
    x0[..., 2, 3] = y[..., 2, 3]
    w = paper_weight(y, x0, m)
    assert float(w[0, 0, 2, 3]) == pytest.approx(9.0)  # one pixel takes the whole ||m||_1 = 9
    assert float(w[m > 0].sum()) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("t", "fifty_steps", "radius"), [(0, False, 0), (25, False, 1), (999, False, 8), (525, True, 10)]
)
def test_the_released_region_is_the_mask_dilated_by_a_square_that_shrinks_with_t(
    t: int, fifty_steps: bool, radius: int
) -> None:
    mask = torch.zeros(1, 1, 24, 21)
    mask[..., 11, 4] = mask[..., 12, 5] = 1
    expected = torch.zeros_like(mask)
    for i in range(24):
        for j in range(21):
            near = any(max(abs(i - a), abs(j - b)) <= radius for a, b in ((11, 4), (12, 5)))
            expected[..., i, j] = float(near)
    assert torch.equal(released_blend_mask(mask, t, fifty_steps), expected)


def test_released_weights_are_shares_of_one_over_the_difference_clipped_to_one_and_a_half() -> None:
    z_t, z_y, region = randn(2, 4, 5, 6), randn(2, 4, 5, 6, seed=1), two_masks()
    w = released_weight(z_t, z_y, region)
    seen = set()
    for b in range(2):
        inverse = {}
        for i in range(5):
            for j in range(6):
                if region[b, 0, i, j] > 0:
                    d = sum(float(z_t[b, c, i, j] - z_y[b, c, i, j]) ** 2 for c in range(4)) / 4
                    inverse[i, j] = 1 / d
        for i in range(5):
            for j in range(6):
                share = len(inverse) * inverse.get((i, j), 0.0) / sum(inverse.values())
                expected = min(max(share or 1.0, 1.0), 1.5)
                seen.add("low" if 0 < share < 1 else "high" if share > 1.5 else "between" if share else "out")
                assert float(w[b, 0, i, j]) == pytest.approx(expected, rel=1e-4)
    assert seen == {"low", "high", "between", "out"}  # the example exercises every branch


def test_released_weights_stay_finite_where_nothing_changed() -> None:
    z, region = randn(1, 4, 5, 6), two_masks()[:1]
    assert torch.equal(released_weight(z, z, region), torch.ones(1, 1, 5, 6))


def test_adaptive_weights_are_one_outside_and_between_one_and_the_maximum_inside() -> None:
    m = two_masks()
    for seed in range(5):
        w = adaptive_weight(randn(2, 4, 5, 6, seed=seed), randn(2, 4, 5, 6, seed=seed + 50), m, 3.0)
        assert (w[m == 0] == 1).all()
        assert w.min() >= 1
        assert w.max() <= 3
        assert w[m > 0].max() > 1


def test_adaptive_weights_are_larger_where_the_change_is_smaller() -> None:
    m, z = two_masks()[:1], torch.zeros(1, 4, 5, 6)
    size = torch.linspace(0.2, 2, 9)
    clean_hat = z.clone()
    clean_hat[0, :, 1:4, 2:5] = size.view(3, 3) * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1)
    w = adaptive_weight(clean_hat, z, m, 100.0)[0, 0, 1:4, 2:5].flatten()
    assert (w.diff() <= 0).all()
    assert w[0] > w[4] >= w[8]


def test_adaptive_weights_do_not_depend_on_the_other_images_or_on_what_lies_outside() -> None:
    m, hat, z = two_masks(), randn(2, 4, 5, 6), randn(2, 4, 5, 6, seed=1)
    hat[1] *= 30
    together = adaptive_weight(hat, z, m, 3.0)
    for b in range(2):
        alone = adaptive_weight(hat[b : b + 1], z[b : b + 1], m[b : b + 1], 3.0)
        torch.testing.assert_close(together[b : b + 1], alone)
    elsewhere = torch.where(m > 0, hat, hat + 100)
    torch.testing.assert_close(adaptive_weight(elsewhere, z, m, 3.0), together)


def test_adaptive_weights_stay_finite_where_nothing_changed_at_all() -> None:
    z = randn(2, 4, 5, 6)
    w = adaptive_weight(z, z, two_masks(), 3.0)
    assert torch.isfinite(w).all()
    assert w.min() >= 1


def test_mask_attention_sees_tokens_inside_the_mask_alone_from_the_first_step_on() -> None:
    m_z = torch.zeros(1, 1, 3, 4)
    m_z[..., 1, 1:3] = 1
    target, z = Inpainting(randn(1, 4, 3, 4), m_z), randn(1, 4, 3, 4, seed=1)
    moment = Moment(target, z, None, m_z, lambda latent: latent)
    w = AARConfig("masked").weight_map(moment)
    assert w is not None and torch.equal(w, m_z)
    half = AARConfig("masked", strength=0.5).weight_map(moment)
    assert half is not None and torch.equal(half, 0.5 + 0.5 * m_z)


def test_strength_scales_the_distance_from_one_and_never_makes_weights_negative() -> None:
    w = torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert torch.equal(strengthened(w, 0.5), torch.tensor([0.5, 0.75, 1.0, 2.0]))
    assert torch.equal(strengthened(w, 0.0), torch.ones(4))
    assert torch.equal(strengthened(w, 3.0), torch.tensor([0.0, 0.0, 1.0, 7.0]))


def test_aar_acts_between_its_start_and_its_end() -> None:
    config = AARConfig(start=0.2, end=0.6)
    assert [config.acts(p) for p in (0.0, 0.19, 0.2, 0.5, 0.6, 0.99)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert not replace(config, strength=0.0).acts(0.3)
    assert not replace(config, mode="off").acts(0.3)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_a_start_that_is_not_before_its_end_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"AAR starts at {start} and ends at {end} of the steps"):
        AARConfig(start=start, end=end)


# --- queries


def test_queries_of_a_level_get_the_area_average_of_the_map() -> None:
    w = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(to_queries(w, 16)[..., 0], torch.arange(16.0)[None])
    # averages of the 2x2 blocks: (0+1+4+5)/4, ...
    assert torch.equal(to_queries(w, 4)[0, :, 0], torch.tensor([2.5, 4.5, 10.5, 12.5]))
    assert torch.equal(to_queries(w, 1)[0, :, 0], torch.tensor([7.5]))


def test_queries_of_odd_sizes_are_halved_rounding_up() -> None:
    w = randn(2, 1, 7, 9)
    assert to_queries(w, 63).shape == (2, 63, 1)
    assert to_queries(w, 4 * 5).shape == (2, 20, 1)
    assert to_queries(w, 2 * 3).shape == (2, 6, 1)


def test_a_query_count_that_is_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="12 attention queries do not fit a latent of 8x8"):
        to_queries(torch.ones(1, 1, 8, 8), 12)


# --- attention against full matrices

Q, K, V = randn(2, 3, 10, 4, seed=3), randn(2, 3, 7, 4, seed=4), randn(2, 3, 7, 4, seed=5)
W = 0.5 + 2 * torch.rand((2, 10, 1), generator=torch.Generator().manual_seed(6))
COLUMNS: list[Columns] = [slice(2, 5), (slice(1, 3), slice(4, 6)), slice(0, 2)]


def chosen(columns: Columns, row: int) -> list[int]:
    part = columns if isinstance(columns, slice) else columns[row]
    return list(range(7))[part]


def attention(b: int, logits_of: Callable[[Tensor], Tensor], map_of: Callable[[Tensor], Tensor]) -> Tensor:
    """One image's attention (H,N,c) with its logits and its map altered on the way."""
    logits = torch.einsum("hnc,htc->hnt", Q[b], K[b]) / 4**0.5
    return map_of(logits_of(logits).softmax(-1)) @ V[b]


@pytest.mark.parametrize("columns", COLUMNS)
def test_attend_scales_the_attention_map_in_the_chosen_columns_after_the_softmax(columns: Columns) -> None:
    out = attend(Q, K, V, W, columns=columns)
    for b in range(2):

        def scaled(a: Tensor, b: int = b) -> Tensor:
            a = a.clone()
            for column in chosen(columns, b):
                a[:, :, column] *= W[b, :, 0]
            return a

        torch.testing.assert_close(out[b], attention(b, lambda x: x, scaled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", COLUMNS)
def test_attend_logits_scales_logits_of_the_chosen_columns_and_of_the_first_before_the_softmax(
    columns: Columns,
) -> None:
    out = attend_logits(Q, K, V, W, columns=columns)
    for b in range(2):

        def scaled(logits: Tensor, b: int = b) -> Tensor:
            logits = logits.clone()
            for column in {0, *chosen(columns, b)}:
                logits[:, :, column] *= W[b, :, 0]
            return logits

        torch.testing.assert_close(out[b], attention(b, scaled, lambda a: a), rtol=1e-4, atol=1e-5)


def test_attend_all_scales_the_whole_attention_map() -> None:
    out = attend_all(Q, K, V, W, columns=slice(0, 0))
    for b in range(2):
        expected = attention(b, lambda x: x, lambda a, b=b: a * W[b][None])
        torch.testing.assert_close(out[b], expected, rtol=1e-4, atol=1e-5)


# --- in a diffusers U-Net


class ExplicitAttention:
    """An attention processor with the full map, for cross-attention alone; `site` says where w enters."""

    def __init__(self, w: Tensor, columns: slice, site: str) -> None:
        self.w, self.columns, self.site = w, columns, site

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        batch, count, width = hidden_states.shape
        heads = attn.heads

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, heads, x.shape[-1] // heads).permute(0, 2, 1, 3)

        w = to_queries(self.w, count)[:, None]
        q, k, v = (
            split(x)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        logits = torch.einsum("bhnc,bhtc->bhnt", q, k) * q.shape[-1] ** -0.5
        if self.site == "released":
            logits[..., [0, *range(self.columns.start, self.columns.stop)]] *= w
        a = logits.softmax(-1)
        if self.site in ("adaptive", "masked"):
            a[..., self.columns] *= w
        if self.site == "paper":
            a = a * w
        out = attn.to_out[0]((a @ v).permute(0, 2, 1, 3).reshape(batch, count, -1))
        return out * w[:, 0] if self.site == "after projection" else out


def explicit_noise(
    base: DiffusersModel, z: Tensor, t: Tensor, context: Context, w: Tensor, columns: slice, site: str
) -> Tensor:
    former = dict(base.unet.attn_processors)
    explicit = ExplicitAttention(w, columns, site)
    base.unet.set_attn_processor({k: explicit if ".attn2." in k else p for k, p in former.items()})
    try:
        return base.predict_noise(z, t, context)
    finally:
        base.unet.set_attn_processor(former)


def reweighted_noise(
    base: DiffusersModel, z: Tensor, t: Tensor, context: Context, weights: AttentionWeights
) -> Tensor:
    with base.reweighted(weights):
        return base.predict_noise(z, t, context)


@pytest.fixture
def scene(small_base: DiffusersModel) -> tuple[Tensor, Tensor, Context, Tensor, slice]:
    """(z_t, t, context, w, columns) of two images at an odd latent size."""
    context = small_base.encode_prompts(["a photo of a {}"] * 2, {"clip_l": randn(2, 3, 16)})
    w = 1 + 2 * torch.rand((2, 1, 7, 9), generator=torch.Generator().manual_seed(1))
    assert isinstance(context.columns, slice)
    return randn(2, 4, 7, 9), torch.tensor([300.0, 300.0]), context, w, context.columns


@pytest.mark.parametrize("mode", WEIGHTED)
@torch.no_grad()
def test_a_u_net_s_cross_attention_equals_full_maps_altered_at_the_mode_s_site(
    small_base: DiffusersModel, scene: tuple[Tensor, Tensor, Context, Tensor, slice], mode: str
) -> None:
    z, t, context, w, columns = scene
    eps = reweighted_noise(small_base, z, t, context, AttentionWeights(mode, columns, w))
    expected = explicit_noise(small_base, z, t, context, w, columns, mode)
    torch.testing.assert_close(eps, expected, rtol=1e-3, atol=1e-5)
    assert (eps - small_base.predict_noise(z, t, context)).abs().max() > 1e-2


@torch.no_grad()
def test_scaling_after_the_output_projection_would_be_another_result(
    small_base: DiffusersModel, scene: tuple[Tensor, Tensor, Context, Tensor, slice]
) -> None:
    z, t, context, w, columns = scene
    eps = reweighted_noise(small_base, z, t, context, AttentionWeights("paper", columns, w))
    wrong = explicit_noise(small_base, z, t, context, w, columns, "after projection")
    assert (eps - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("mode", WEIGHTED)
@torch.no_grad()
def test_every_image_has_its_own_map(
    small_base: DiffusersModel, scene: tuple[Tensor, Tensor, Context, Tensor, slice], mode: str
) -> None:
    z, t, context, w, columns = scene
    eps = reweighted_noise(small_base, z, t, context, AttentionWeights(mode, columns, w))
    flipped = Context(context.hidden.flip(0), columns)
    weights = AttentionWeights(mode, columns, w.flip(0))
    swapped = reweighted_noise(small_base, z.flip(0), t, flipped, weights)
    torch.testing.assert_close(swapped.flip(0), eps, rtol=1e-4, atol=1e-5)
    wrong = reweighted_noise(small_base, z, t, context, AttentionWeights(mode, columns, w.flip(0)))
    assert (wrong - eps).abs().max() > 1e-3


@torch.no_grad()
def test_without_weights_the_u_net_is_left_exactly_as_it_is(
    small_base: DiffusersModel, scene: tuple[Tensor, Tensor, Context, Tensor, slice]
) -> None:
    z, t, context, _, columns = scene
    eps = reweighted_noise(small_base, z, t, context, AttentionWeights("adaptive", columns, None))
    assert torch.equal(eps, small_base.predict_noise(z, t, context))


def test_the_u_net_s_own_attention_comes_back_even_after_an_error(small_base: DiffusersModel) -> None:
    before = dict(small_base.unet.attn_processors)
    weights = AttentionWeights("adaptive", slice(1, 3), torch.ones(1, 1, 8, 8))
    with pytest.raises(RuntimeError, match="boom"), small_base.reweighted(weights):
        assert small_base.unet.attn_processors != before
        raise RuntimeError("boom")
    after = small_base.unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
