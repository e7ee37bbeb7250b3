"""Stable Diffusion 1.x, 2.x and XL: small models of their architectures with random weights, in the graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

FAMILIES = ("sd1", "sd2", "sdxl")
ENCODERS = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}
WORDS = "a photo of a deep scratch on wood"


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(pack: Any, request: pytest.FixtureRequest) -> SimpleNamespace:
    """MODEL, CLIP and VAE of a family: its widths of text, but few and narrow layers."""
    import comfy.sd  # type: ignore[import-not-found]
    import comfy.sdxl_clip  # type: ignore[import-not-found]
    import comfy.supported_models as models  # type: ignore[import-not-found]
    import comfy.supported_models_base  # type: ignore[import-not-found]
    import comfy.taesd.taesd  # type: ignore[import-not-found]
    import comfy.text_encoders.sd2_clip as sd2  # type: ignore[import-not-found]
    from comfy.model_patcher import ModelPatcher  # type: ignore[import-not-found]

    kind, width, tokenizer, text = {
        "sd1": (models.SD15, 768, comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sd2": (models.SD20, 1024, sd2.SD2Tokenizer, sd2.SD2ClipModel),
        "sdxl": (models.SDXL, 2048, comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }[request.param]
    config = kind(
        {
            "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
            "channel_mult": [1, 2], "num_res_blocks": [1, 1], "transformer_depth": [1, 1],
            "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1,
            "context_dim": width, "use_spatial_transformer": True,
            "use_linear_in_transformer": request.param != "sd1", "num_head_channels": 16, "num_heads": -1,
            "legacy": False, "adm_in_channels": 2816 if request.param == "sdxl" else None,
        }
        | ({"num_classes": "sequential"} if request.param == "sdxl" else {})
    )  # fmt: skip
    config.unet_config |= {"num_heads": -1, "num_head_channels": 16}
    config.set_inference_dtype(torch.float32, None)
    few = {"num_hidden_layers": 3, "intermediate_size": 64}
    options = {f"{name}_model_config": few for name in ("clip_l", "clip_h", "clip_g")}
    target = comfy.supported_models_base.ClipTarget(tokenizer, text)
    with torch.inference_mode():
        model = config.get_model({}, device="cpu")
        clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **options})
        vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD().state_dict())
        generator = torch.Generator().manual_seed(0)
        for module in (model.diffusion_model, clip.cond_stage_model, vae.first_stage_model):
            for parameter in module.parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(fan_in, 4) ** 0.5)
    patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    return SimpleNamespace(family=request.param, model=patcher, clip=clip, vae=vae)


@pytest.fixture
def base(checkpoint: Any) -> Any:
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    return ComfyModel(checkpoint.model, checkpoint.clip, checkpoint.vae)


@torch.no_grad()
def test_words_are_encoded_as_comfyui_encodes_them(checkpoint: Any, base: Any) -> None:
    assert base.fingerprint.family == checkpoint.family
    assert list(base.token_widths) == ENCODERS[checkpoint.family]
    hidden, pooled = checkpoint.clip.encode_from_tokens(checkpoint.clip.tokenize(WORDS), return_pooled=True)
    ours = base.encode_prompts([WORDS])
    torch.testing.assert_close(ours.hidden, hidden)
    if checkpoint.family == "sdxl":
        torch.testing.assert_close(ours.pooled, pooled)
    else:
        assert ours.pooled is None


@torch.no_grad()
def test_vectors_stand_where_words_would_in_every_text_encoder(checkpoint: Any, base: Any) -> None:
    vectors = {name: rows[None] for name, rows in base.word_vectors("deep scratch").items()}
    inserted = base.encode_prompts(["a photo of a {} on wood"], vectors)
    written = base.encode_prompts([WORDS])
    assert inserted.columns == slice(5, 7)
    torch.testing.assert_close(inserted.hidden, written.hidden)
    for name in vectors:
        other = {**vectors, name: vectors[name].flip(1)}
        assert not torch.allclose(
            base.encode_prompts(["a photo of a {} on wood"], other).hidden, written.hidden
        )
    if checkpoint.family == "sdxl":
        torch.testing.assert_close(inserted.pooled, written.pooled)


@torch.no_grad()
def test_noise_is_predicted_as_in_comfyui_s_own_sampler(checkpoint: Any, base: Any) -> None:
    import comfy.sample  # type: ignore[import-not-found]
    import comfy.samplers  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.conditioning import conditioning  # type: ignore[import-not-found]

    noise = torch.randn((2, 4, 10, 8), generator=torch.Generator().manual_seed(1))
    context = base.encode_prompts([WORDS, "a hole"])
    sigma = base.model.get_model_object("model_sampling").sigmas[600].cpu()
    with torch.inference_mode():
        clean = comfy.sample.sample_custom(  # one Euler step to zero is the estimate of the clean latent
            checkpoint.model, noise, 1.0, comfy.samplers.sampler_object("euler"),
            torch.stack([sigma, torch.zeros(())]), conditioning(context), conditioning(context),
            torch.zeros_like(noise), disable_pbar=True,
        ).clone()  # fmt: skip
    alpha = (1 / (1 + sigma**2)).sqrt()
    z_t = alpha * sigma * noise
    eps = base.predict_noise(z_t, torch.tensor([600, 600]), context)
    ours = checkpoint.model.model.process_latent_out((z_t - alpha * sigma * eps) / alpha)
    assert float(clean.std()) > 1e-2
    torch.testing.assert_close(ours, clean, rtol=1e-3, atol=1e-3 * float(clean.std()))


def test_training_reaches_the_vectors_of_every_text_encoder(checkpoint: Any, base: Any) -> None:
    from adiff_pack.nodes.host.trainable import trainable  # type: ignore[import-not-found]

    with torch.inference_mode(), trainable(base):
        vectors = {
            name: rows[None].clone().requires_grad_(True) for name, rows in base.word_vectors("hole").items()
        }
        context = base.encode_prompts(["a photo of a {}"], vectors)
        base.predict_noise(torch.randn(1, 4, 8, 8), torch.tensor([500]), context).square().mean().backward()
        gradients = {name: rows.grad for name, rows in vectors.items()}
    assert list(gradients) == ENCODERS[checkpoint.family]
    assert all(g is not None and float(g.norm()) > 0 for g in gradients.values())


def generated(checkpoint: Any, run: Any, mask: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Photos before and after a defect, with embeddings that were only begun."""
    from adiff_pack.anomalydiffusion_core.method.embeddings import (  # type: ignore[import-not-found]
        Learned,
        starting_tokens,
    )
    from adiff_pack.anomalydiffusion_core.training.encoders import starting_encoders  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    base = ComfyModel(checkpoint.model, checkpoint.clip, checkpoint.vae)
    tokens = starting_tokens(base.word_vectors("defect"), 4, torch.Generator().manual_seed(0))
    learned = Learned(
        base.fingerprint, 64, ("a photo of a {}",), {"wood/hole": tokens},
        spatial_encoders=starting_encoders(base),
    )  # fmt: skip
    photos = torch.rand((2, 64, 64, 3), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        positive, negative = run(
            "ADiff_AnomalyConditioning", model=checkpoint.model, clip=checkpoint.clip, vae=checkpoint.vae,
            embeddings=learned, mask=mask, defect_type="", template="a photo of a {}",
        )  # fmt: skip
        images, *_ = run(
            "ADiff_KSampler", model=checkpoint.model, vae=checkpoint.vae, positive=positive,
            negative=negative, image=photos, mask=mask, seed=1, steps=3, cfg=2.0, sampler_name="euler",
            scheduler="normal", mode=mode, strength=1.0, feather=1.0,
        )  # fmt: skip
    return photos, images


def test_defects_are_put_into_photos(checkpoint: Any, run: Any) -> None:
    mask = torch.zeros(2, 64, 64)
    mask[0, 8:40, 16:48], mask[1, 40:60, 4:30] = 1, 1
    photos, images = generated(checkpoint, run, mask, "released")
    changed = (photos != images).any(-1)
    assert not changed[mask == 0].any() and changed[mask > 0].float().mean() > 0.5
    assert torch.equal(images, generated(checkpoint, run, mask, "released")[1])
    assert not torch.equal(images, generated(checkpoint, run, mask, "off")[1])


def test_a_clip_of_another_model_is_refused_in_a_sentence(checkpoint: Any, pack: Any) -> None:
    from adiff_pack.nodes.base_models import LoadTinyBase  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    with torch.inference_mode():
        _, tiny_clip, _ = LoadTinyBase.execute().args
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[checkpoint.family]
    with pytest.raises(ValueError, match=rf"reads text of width {width}, .*'clip_l'\] give 192: connect"):
        ComfyModel(checkpoint.model, tiny_clip, checkpoint.vae)


def test_a_model_without_cross_attention_is_refused_in_a_sentence(checkpoint: Any) -> None:
    import comfy.supported_models  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]
    from comfy.ldm.flux.model import FluxParams  # type: ignore[import-not-found]
    from comfy.model_patcher import ModelPatcher  # type: ignore[import-not-found]

    later = {"txt_ids_dims": []}  # what newer versions ask for as well
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "patch_size": 2,
            "context_in_dim": 8, "hidden_size": 16, "mlp_ratio": 1.0, "num_heads": 1, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10, "qkv_bias": True,
            "guidance_embed": True,
        }
        | {name: value for name, value in later.items() if name in FluxParams.__annotations__}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    flux = ModelPatcher(config.get_model({}), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="This MODEL is a Flux .*: AnomalyDiffusion needs a U-Net"):
        ComfyModel(flux, checkpoint.clip, checkpoint.vae)
