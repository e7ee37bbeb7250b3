"""The base-model protocol on diffusers, and loading bases: what is accepted, what is refused and how."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base
from anomalydiffusion_core.bases.families import FAMILIES, Family
from anomalydiffusion_core.bases.tiny.architecture import load_tokenizer
from anomalydiffusion_core.method.latent_diffusion import (
    Context,
    NoiseSchedule,
    fingerprint_of,
    hash_weights,
)


def make_pipeline(scheduler: Any, in_channels: int = 4, width: int = 16, text_width: int = 16) -> Any:
    """A small random Stable Diffusion pipeline in the layout of 1.x and 2.x."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            out_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            cross_attention_dim=width,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=text_width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            scaling_factor=0.5,
        )
    return StableDiffusionPipeline(
        vae.eval(),
        text.eval(),
        load_tokenizer(),
        unet.eval(),
        scheduler,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**BETAS, "steps_offset": 1, "clip_sample": False}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    pipeline = make_pipeline(PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1))
    folder = tmp_path_factory.mktemp("sd1")
    pipeline.save_pretrained(folder)
    return folder, pipeline


def test_a_folder_s_base_computes_what_its_pipeline_s_modules_compute(sd1: tuple[Path, Any]) -> None:
    folder, pipeline = sd1
    base = load_base(str(folder))
    assert (base.factor, base.latent_channels, base.native_size) == (4, 4, 32)
    assert (base.token_widths, base.schedule.prediction) == ({"clip_l": 16}, "epsilon")
    torch.testing.assert_close(base.schedule.alphas_cumprod, DDIMScheduler(**BETAS).alphas_cumprod)
    image, z, t = torch.rand(1, 3, 32, 40) * 2 - 1, torch.randn(2, 4, 8, 10), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        expected = pipeline.vae.encode(image).latent_dist.mean * 0.5
        torch.testing.assert_close(base.encode(image), expected)
        torch.testing.assert_close(base.decode(z), pipeline.vae.decode(z / 0.5).sample)
        context = base.encode_prompts(["a crack", "a dent"])
        hidden = context.hidden
        torch.testing.assert_close(hidden, pipeline.encode_prompt(["a crack", "a dent"], "cpu", 1, False)[0])
        torch.testing.assert_close(base.predict_noise(z, t, context), pipeline.unet(z, t, hidden).sample)


def test_a_v_prediction_folder_predicts_noise_all_the_same(tmp_path: Path) -> None:
    pipeline = make_pipeline(DDIMScheduler(**DDIM, prediction_type="v_prediction"))
    pipeline.save_pretrained(tmp_path)
    base = load_base(str(tmp_path))
    assert base.schedule.prediction == "v_prediction"
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 900])
    context = Context(torch.randn(2, 5, 16), slice(0))
    with torch.no_grad():
        v = pipeline.unet(z, t, context.hidden).sample
        eps = base.predict_noise(z, t, context)
    abar = base.schedule.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(eps, abar.sqrt() * v + (1 - abar).sqrt() * z)
    # and the two say the same about the clean latent: z0 = sqrt(abar) z_t - sqrt(1 - abar) v
    clean = base.schedule.clean_latent(z, eps, t)
    torch.testing.assert_close(clean, abar.sqrt() * z - (1 - abar).sqrt() * v, rtol=1e-3, atol=1e-4)


def test_a_half_precision_folder_loads_in_single_precision(sd1: tuple[Path, Any], tmp_path: Path) -> None:
    half = copy.deepcopy(sd1[1])
    for module in (half.unet, half.text_encoder, half.vae):
        module.half()
    half.save_pretrained(tmp_path)
    base = load_base(str(tmp_path))
    with torch.no_grad():
        context = base.encode_prompts(["a crack"])
        eps = base.predict_noise(torch.randn(1, 4, 8, 8), torch.tensor([5.0]), context)
        picture = base.decode(base.encode(torch.zeros(1, 3, 32, 32)))
    assert context.hidden.dtype == eps.dtype == picture.dtype == torch.float32


def test_the_embedded_base_loads_and_is_frozen() -> None:
    base = load_base("tiny")
    assert base.fingerprint.family == "tiny"
    assert not any(
        p.requires_grad for m in (base.unet, base.text_encoder, base.codec) for p in m.parameters()
    )
    with torch.no_grad():
        latent = base.encode(torch.zeros(1, 3, 64, 64))
        assert latent.shape == (1, base.latent_channels, 64 // base.factor, 64 // base.factor)
        assert base.decode(latent).shape == (1, 3, 64, 64)


# --- refusals


def refusal(base: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_base(base)
    message = str(caught.value)
    assert base in message
    assert "\n" not in message
    return message


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "no/such"), "./nowhere", "~/nowhere", "nowhere"):
        assert "does not exist: give 'tiny', a diffusers folder" in refusal(missing)


def test_a_folder_without_a_model_index_is_refused(tmp_path: Path) -> None:
    assert "it has no model_index.json" in refusal(str(tmp_path))


def test_a_folder_with_missing_parts_is_refused(sd1: tuple[Path, Any], tmp_path: Path) -> None:
    index = (sd1[0] / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index)
    assert "cannot be loaded as Stable Diffusion" in refusal(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert "cannot be loaded as Stable Diffusion" in refusal(str(tmp_path))


def test_an_inpainting_model_is_refused(tmp_path: Path) -> None:
    make_pipeline(DDIMScheduler(**DDIM), in_channels=9).save_pretrained(tmp_path)
    message = refusal(str(tmp_path))
    assert "takes 9 channels" in message
    assert "not for inpainting" in message


def test_a_model_whose_u_net_reads_wider_text_is_refused(tmp_path: Path) -> None:
    make_pipeline(DDIMScheduler(**DDIM), width=48).save_pretrained(tmp_path)
    assert "reads text of width 48 but its text encoder gives 16" in refusal(str(tmp_path))


def test_an_unknown_prediction_type_is_refused(tmp_path: Path) -> None:
    make_pipeline(DDIMScheduler(**DDIM, prediction_type="sample")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Prediction type 'sample' is not known"):
        load_base(str(tmp_path))


# --- fingerprints


def test_the_fingerprint_changes_with_weights_names_and_shapes_only() -> None:
    first, other = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    same = torch.nn.Linear(3, 4)
    same.load_state_dict(first.state_dict())
    reordered = dict(reversed(same.state_dict().items()))
    assert hash_weights(first.state_dict()) == hash_weights(same.state_dict()) == hash_weights(reordered)
    assert hash_weights(first.state_dict()) != hash_weights(other.state_dict())
    reshaped = torch.nn.Linear(6, 2, bias=False)
    reshaped.weight.data = first.weight.data.reshape(2, 6)
    unbiased = torch.nn.Linear(3, 4, bias=False)
    unbiased.weight = first.weight
    assert hash_weights(reshaped.state_dict()) != hash_weights(unbiased.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_known_again_in_whichever_precision_they_are_loaded(dtype: torch.dtype) -> None:
    first, other = torch.nn.Linear(30, 40), torch.nn.Linear(30, 40)
    saved, half = (fingerprint_of("sd1", x.state_dict()) for x in (first, copy.deepcopy(first).to(dtype)))
    assert saved.weights != half.weights and saved.same_weights(half)
    assert not saved.same_weights(fingerprint_of("sd1", other.state_dict()))
    earlier = replace(saved, signs="")  # as versions before wrote it
    assert earlier.same_weights(saved) and not earlier.same_weights(half)


def test_the_fingerprint_does_not_depend_on_how_transformers_prefixes_the_text_encoder() -> None:
    text = torch.nn.ModuleDict({"text_model": torch.nn.Linear(3, 4)})
    assert hash_weights(text.state_dict()) == hash_weights(text["text_model"].state_dict())


def test_the_same_weights_have_the_same_fingerprint_in_every_loading(sd1: tuple[Path, Any]) -> None:
    first, second = load_base(str(sd1[0])), load_base(str(sd1[0]))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint.family == "sd-16"


def test_a_base_s_device_and_dtype_do_not_leak_into_its_schedule(small_base: DiffusersModel) -> None:
    schedule: NoiseSchedule = small_base.schedule
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert schedule.steps == 1000


def test_a_family_that_is_added_to_the_table_gives_a_folder_its_name(
    sd1: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "dummy", Family({"clip_d": 16}, {"epsilon": 64}))
    base = load_base(str(sd1[0]))
    assert (base.fingerprint.family, base.token_widths) == ("dummy", {"clip_d": 16})
    assert list(base.encode_prompts(["a {}"], {"clip_d": torch.ones(1, 2, 16)}).hidden.shape) == [1, 77, 16]
