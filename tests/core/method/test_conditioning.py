"""Inserted vectors take the placeholder's place before positions are added; the rest shifts and is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.conditioning import anomaly_context, empty_context, joined, mask_context
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig


@pytest.fixture(params=["fake_base", "small_base"])
def base(request: pytest.FixtureRequest) -> LatentDiffusion:
    return request.getfixturevalue(request.param)


def vectors(count: int, rows: int = 1, seed: int = 0) -> dict[str, Tensor]:
    return {"clip_l": torch.randn((rows, count, 16), generator=torch.Generator().manual_seed(seed))}


def columns_of(context, row: int = 0) -> slice:  # type: ignore[no-untyped-def]
    return context.columns if isinstance(context.columns, slice) else context.columns[row]


@pytest.mark.parametrize("template", ["a photo of a {}", "a photo of a {} on metal", "{}", "{} here"])
@torch.no_grad()
def test_inserting_the_vectors_of_words_equals_writing_the_words(
    base: LatentDiffusion, template: str
) -> None:
    words = "long red scratch"
    inserted = {name: rows[None] for name, rows in base.word_vectors(words).items()}
    context = base.encode_prompts([template], inserted)
    written = base.encode_prompts([template.replace("{}", words)])
    torch.testing.assert_close(context.hidden, written.hidden, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_plain_prompt_is_encoded_as_transformers_does(small_base: DiffusersModel) -> None:
    for prompt in ("", "a photo of a hazelnut", "crack " * 100):
        ids = small_base.tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
        expected = small_base.text_encoder(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(small_base.encode_prompts([prompt]).hidden, expected)


@torch.no_grad()
def test_what_follows_shifts_right_and_is_cut_at_77_tokens(small_base: DiffusersModel) -> None:
    inserted = {"clip_l": small_base.word_vectors("red " * 10)["clip_l"][None]}
    context = small_base.encode_prompts(["a {} " + "dent " * 90], inserted)
    ids = small_base.tokenizer("a " + "red " * 10 + "dent " * 90, truncation=True, max_length=77).input_ids
    assert context.hidden.shape == (1, 77, 16)
    expected = small_base.text_encoder(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(context.hidden, expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_inserted_vectors_and_nothing_of_the_base(base: LatentDiffusion) -> None:
    inserted = {name: v.requires_grad_(True) for name, v in vectors(3).items()}
    base.encode_prompts(["a photo of a {}"], inserted).hidden.square().sum().backward()
    grad = inserted["clip_l"].grad
    assert grad is not None
    assert (grad.abs().sum(-1) > 0).all()
    if isinstance(base, DiffusersModel):
        assert all(p.grad is None for p in base.text_encoder.parameters())


@torch.no_grad()
def test_columns_are_where_the_vectors_stand(base: LatentDiffusion) -> None:
    first, second = (base.encode_prompts(["a photo of a {} here"], vectors(3, seed=s)) for s in (0, 1))
    assert columns_of(first) == slice(5, 8)  # start of text and four words come before
    # attention is causal: what stands before the vectors does not change with them
    changed = (first.hidden - second.hidden).abs().amax((0, 2)) > 1e-5
    assert not changed[:5].any()
    assert changed[5:8].all()


@torch.no_grad()
def test_prompts_of_different_lengths_in_a_batch_have_columns_of_their_own(base: LatentDiffusion) -> None:
    prompts, inserted = ["a {}", "a cropped photo of the {}"], vectors(3, rows=2)
    context = base.encode_prompts(prompts, inserted)
    assert columns_of(context, 0) == slice(2, 5)
    assert columns_of(context, 1) == slice(6, 9)
    for row, prompt in enumerate(prompts):
        alone = base.encode_prompts([prompt], {"clip_l": inserted["clip_l"][row : row + 1]})
        torch.testing.assert_close(context.hidden[row], alone.hidden[0], rtol=1e-5, atol=1e-5)
        assert columns_of(alone) == columns_of(context, row)


@torch.no_grad()
def test_nothing_stays_inserted_after_a_prompt(small_base: DiffusersModel) -> None:
    before = small_base.encode_prompts(["a photo of a scratch"]).hidden
    small_base.encode_prompts(["a photo of a {}"], vectors(3))
    assert torch.equal(small_base.encode_prompts(["a photo of a scratch"]).hidden, before)


def test_vectors_need_a_placeholder_and_a_placeholder_vectors(base: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="'a photo' must hold {}"):
        base.encode_prompts(["a photo"], vectors(3))
    with pytest.raises(ValueError, match="'a {}' must hold {}"):
        base.encode_prompts(["a {}"])


def test_vectors_that_exactly_fill_the_encoder_fit_and_one_more_does_not(small_base: DiffusersModel) -> None:
    context = small_base.encode_prompts(["a {} here"], vectors(74))  # 77 less start, "a" and end of text
    assert columns_of(context) == slice(2, 76)
    with pytest.raises(ValueError, match="leaves no room for 75 vectors in 77 tokens"):
        small_base.encode_prompts(["a {} here"], vectors(75))


@pytest.mark.parametrize(
    "inserted",
    [vectors(3, rows=2), {"clip_l": torch.zeros(1, 3, 8)}, {"clip_g": torch.zeros(1, 3, 16)}],
    ids=["rows", "width", "encoder"],
)
def test_vectors_of_another_base_are_refused(small_base: DiffusersModel, inserted: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"do not fit: 'clip_l' of this base takes \(1, k, 16\)"):
        small_base.encode_prompts(["a {}"], inserted)


def test_anomaly_tokens_come_before_spatial_tokens_for_shared_and_for_own_rows() -> None:
    e_s = vectors(2, rows=3, seed=1)["clip_l"]
    shared, own = torch.arange(64.0).view(4, 16), torch.randn(3, 4, 16)
    for e_a in (shared, own):
        rows = joined({"clip_l": e_a}, {"clip_l": e_s}, 3)["clip_l"]
        assert rows.shape == (3, 6, 16)
        for b in range(3):
            assert torch.equal(rows[b, :4], e_a if e_a.ndim == 2 else e_a[b])
            assert torch.equal(rows[b, 4:], e_s[b])
        alone = joined({"clip_l": e_a}, {}, 3)["clip_l"]
        assert torch.equal(alone, rows[:, :4])


@torch.no_grad()
def test_an_anomaly_s_context_is_its_template_with_both_kinds_of_tokens(base: LatentDiffusion) -> None:
    encoders = {"clip_l": SpatialEncoder(SpatialEncoderConfig(16, backbone="resnet10", mask_size=32))}
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:20, 8:20], masks[1, :, 40:, 40:60] = 1, 1
    e_a = vectors(3)["clip_l"][0]
    context = anomaly_context(base, ["the {}", "a dark {}"], {"clip_l": e_a}, encoders, mask=masks)
    for row, template in enumerate(("the {}", "a dark {}")):
        tokens = torch.cat([e_a, encoders["clip_l"](masks[row : row + 1])[0]])
        expected = base.encode_prompts([template], {"clip_l": tokens[None]})
        torch.testing.assert_close(context.hidden[row], expected.hidden[0], rtol=1e-4, atol=1e-5)
        assert columns_of(context, row) == columns_of(expected)


@torch.no_grad()
def test_mask_and_empty_contexts_have_a_row_per_sample(base: LatentDiffusion, learned: Learned) -> None:
    tokens = learned.mask_tokens("thing/stain")
    context = mask_context(base, "a mask of a {}", tokens, 3)
    expected = base.encode_prompts(["a mask of a {}"], {"clip_l": tokens["clip_l"][None]})
    torch.testing.assert_close(context.hidden, expected.hidden.expand(3, -1, -1))
    empty = empty_context(base, 2).hidden
    torch.testing.assert_close(empty, base.encode_prompts([""]).hidden.expand(2, -1, -1))
