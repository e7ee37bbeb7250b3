"""Single-file checkpoints: a small random model written in the original key layout loads to equal outputs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from anomalydiffusion_core.bases import single_file
from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.families import FAMILIES, TEXT_SD1, TEXT_SD2, Checkpoint, Family
from anomalydiffusion_core.bases.single_file import detect_checkpoint, load_single_file

LAYERS = 1  # resnets per U-Net and autoencoder level of the reduced models
LEVELS = 4


CHECKPOINTS = {name: family.checkpoint for name, family in FAMILIES.items() if family.checkpoint}


def reduced(name: str) -> Checkpoint:
    """The family with few channels and layers and all else as it is."""
    family = CHECKPOINTS[name]
    unet = {
        **family.unet,
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": LAYERS,
        "cross_attention_dim": 32,
        "attention_head_dim": 4 if name == "sd1" else [2, 2, 4, 4],
    }
    text = {
        **family.text_encoder,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vae = {**family.vae, "block_out_channels": [32] * LEVELS, "layers_per_block": LAYERS}
    return replace(family, unet=unet, text_encoder=text, vae=vae)


def build(family: Checkpoint) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    text = CLIPTextModel(CLIPTextConfig(**family.text_encoder))
    modules = UNet2DConditionModel(**family.unet), text, AutoencoderKL(**family.vae)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # no norm or bias at its initial value
    return tuple(module.eval() for module in modules)  # type: ignore[return-value]


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


def original_unet_name(name: str) -> str:
    """diffusers' U-Net parameter name -> CompVis': blocks counted through, levels and layers flattened."""
    for new, old in UNET_ENDS.items():
        if name.startswith(new + "."):
            return name.replace(new, old, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = found.groups()
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{_resnet(kind, rest)}"
    found = re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name
    )
    assert found, name
    way, level, kind, layer, rest = found.groups()
    first = int(level) * (LAYERS + 1) + (way == "down")
    stem = f"{'input' if way == 'down' else 'output'}_blocks"
    if kind == "downsamplers":
        return f"{stem}.{first + LAYERS}.0.{rest.replace('conv', 'op')}"
    if (
        kind == "upsamplers"
    ):  # beside a resnet, and attention where the level has it (all but the first going up)
        return f"{stem}.{first + LAYERS}.{1 if level == '0' else 2}.{rest}"
    return f"{stem}.{first + int(layer)}.{0 if kind == 'resnets' else 1}.{_resnet(kind, rest)}"


def _resnet(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    part, _, leaf = rest.rpartition(".")
    return f"{RESNET[part]}.{leaf}"


def original_autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' AutoencoderKL -> CompVis': decoder levels count down, attention is 1x1 convolutions."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    result = {}
    for name, tensor in state.items():
        if found := re.match(r"(.+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
            side, part, leaf = found.groups()
            name = f"{side}.mid.attn_1.{attention[part]}.{leaf}"
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        elif found := re.match(r"(.+)\.mid_block\.resnets\.(\d)\.(.+)", name):
            name = f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
        elif found := re.match(r"encoder\.down_blocks\.(\d)\.(.+)", name):
            name = f"encoder.down.{found[1]}.{found[2]}"
        elif found := re.match(r"decoder\.up_blocks\.(\d)\.(.+)", name):
            name = f"decoder.up.{LEVELS - 1 - int(found[1])}.{found[2]}"
        for new, old in (
            (".resnets.", ".block."),
            (".downsamplers.0.", ".downsample."),
            (".upsamplers.0.", ".upsample."),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
        ):
            name = name.replace(new, old)
        result[name] = tensor
    return result


def original_text_sd2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' text encoder -> OpenCLIP's: q, k and v in one matrix."""
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
    }
    parts = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for name, tensor in state.items():
        if found := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, leaf = found.groups()
            block = f"transformer.resblocks.{layer}"
            if part in parts:
                result[f"{block}.{parts[part]}.{leaf}"] = tensor
            elif part == "self_attn.q_proj":
                several = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                result[f"{block}.attn.in_proj_{leaf}"] = torch.cat(several)
        elif name.startswith("final_layer_norm."):
            result[name.replace("final_layer_norm", "ln_final")] = tensor
    return result


def original_layout(name: str, unet: Any, text: Any, vae: Any) -> dict[str, Tensor]:
    text_state = {key.removeprefix("text_model."): tensor for key, tensor in text.state_dict().items()}
    if name == "sd1":
        texts = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text_state.items()}
    else:
        texts = {f"cond_stage_model.model.{k}": v for k, v in original_text_sd2(text_state).items()}
    unets = {f"model.diffusion_model.{original_unet_name(k)}": v for k, v in unet.state_dict().items()}
    vaes = {f"first_stage_model.{k}": v for k, v in original_autoencoder(vae.state_dict()).items()}
    assert len(unets) == len(unet.state_dict())
    return {k: v.contiguous().clone() for k, v in {**unets, **texts, **vaes}.items()}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, tuple[Any, Any, Any]]:
    """(family, file in the original layout, the diffusers modules it was written from)."""
    modules = build(reduced(request.param))
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(original_layout(request.param, *modules), path)
    return request.param, path, modules


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHECKPOINTS:
        monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], checkpoint=reduced(name)))


@pytest.mark.usefixtures("small_families")
def test_a_checkpoint_in_the_original_layout_gives_the_same_outputs_as_its_diffusers_modules(
    checkpoint: tuple[str, Path, tuple[Any, Any, Any]],
) -> None:
    name, path, (unet, text, vae) = checkpoint
    loaded: Any = load_single_file(path)
    noisy, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 32)
    ids, image = torch.tensor([[49406, 320, 1125, 49407]]), torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        close(loaded.unet(noisy, t, context).sample, unet(noisy, t, context).sample)
        close(loaded.text_encoder(ids).last_hidden_state, text(ids).last_hidden_state)
        close(loaded.vae.encode(image).latent_dist.mode(), vae.encode(image).latent_dist.mode())
        close(loaded.vae.decode(noisy).sample, vae.decode(noisy).sample)
    prompt = loaded.tokenizer("a photo of a cat", padding="max_length", max_length=10).input_ids
    # CLIP's ids; SD 1.x pads with the end of text, SD 2.x with 0
    assert prompt == [49406, 320, 1125, 539, 320, 2368, 49407] + [49407 if name == "sd1" else 0] * 3
    assert loaded.scheduler.config.prediction_type == ("epsilon" if name == "sd1" else "v_prediction")


@pytest.mark.usefixtures("small_families")
def test_a_half_precision_checkpoint_loads_as_a_float32_base(
    checkpoint: tuple[str, Path, tuple[Any, Any, Any]], tmp_path: Path
) -> None:
    name, _, modules = checkpoint
    half = {key: value.half() for key, value in original_layout(name, *modules).items()}
    save_file(half, tmp_path / "half.safetensors")
    base = load_base(str(tmp_path / "half.safetensors"))
    assert {p.dtype for m in (base.unet, base.text_encoder, base.codec) for p in m.parameters()} == {
        torch.float32
    }
    assert base.schedule.prediction == ("epsilon" if name == "sd1" else "v_prediction")
    assert base.factor == 8
    assert base.native_size == (512 if name == "sd1" else 768)


@pytest.mark.usefixtures("small_families")
def test_a_checkpoint_with_missing_tensors_is_refused(
    checkpoint: tuple[str, Path, tuple[Any, Any, Any]], tmp_path: Path
) -> None:
    name, _, modules = checkpoint
    tensors = original_layout(name, *modules)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="is incomplete.*get the full checkpoint"):
        load_single_file(tmp_path / "part.safetensors")


HEADER_SD1 = {
    single_file.FIRST_CONVOLUTION: (320, 4, 3, 3),
    single_file.FIRST_KEYS: (320, 768),
    single_file.AUTOENCODER: (1,),
    TEXT_SD1: (77, 768),
}
HEADER_SD2 = {
    **{key: shape for key, shape in HEADER_SD1.items() if key != TEXT_SD1},
    single_file.FIRST_KEYS: (320, 1024),
    TEXT_SD2: (1, 1024),
}


def write_header(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None
) -> Path:
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("file_name", "metadata", "prediction", "latent_size"),
    [
        ("v2-1_768-ema-pruned", None, "v_prediction", 96),
        ("something", None, "v_prediction", 96),
        ("v2-1_512-ema-pruned", None, "epsilon", 64),
        ("stable-diffusion-2-base", None, "epsilon", 64),
        ("something", {"modelspec.prediction_type": "epsilon"}, "epsilon", 64),
        ("my-512-base", {"modelspec.prediction_type": "v"}, "v_prediction", 96),
        ("something", {"ss_v_parameterization": "False"}, "epsilon", 64),
        ("something", {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon", 64),
        ("my-base", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction", 96),
    ],
)
def test_sd2_predicts_v_unless_metadata_or_else_the_file_name_says_otherwise(
    file_name: str, metadata: dict[str, str] | None, prediction: str, latent_size: int, tmp_path: Path
) -> None:
    family = detect_checkpoint(write_header(tmp_path / f"{file_name}.safetensors", HEADER_SD2, metadata))
    assert family.scheduler["prediction_type"] == prediction
    assert family.unet["sample_size"] == latent_size


def test_sd1_predicts_noise_whatever_its_file_is_called(tmp_path: Path) -> None:
    assert detect_checkpoint(write_header(tmp_path / "768-v.safetensors", HEADER_SD1)) is CHECKPOINTS["sd1"]


def without(shapes: dict[str, tuple[int, ...]], key: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name != key}


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (
            {**HEADER_SD1, single_file.FIRST_CONVOLUTION: (320, 9, 3, 3)},
            "takes 9 channels.*choose the plain one",
        ),
        ({**HEADER_SD2, single_file.CLASS_EMBEDDING: (1,)}, "conditioned on images"),
        ({"conditioner.embedders.0.x": (1,), **HEADER_SD1}, "SDXL checkpoint: choose"),
        (without(HEADER_SD1, TEXT_SD1), "has no text encoder"),
        ({"lora.weight": (1,)}, "has no U-Net and text encoder.*full checkpoint"),
        (without(HEADER_SD2, single_file.AUTOENCODER), "holds no autoencoder"),
        ({**HEADER_SD1, single_file.FIRST_KEYS: (320, 2048)}, "2048 wide instead of 768"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    shapes: dict[str, tuple[int, ...]], told: str, tmp_path: Path
) -> None:
    path = write_header(tmp_path / "other.safetensors", shapes)
    with pytest.raises(ValueError, match=told) as caught:
        load_single_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_unopened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"never read")
    with pytest.raises(ValueError, match="is a pickle.*convert it to .safetensors"):
        load_base(str(path))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_base(str(path))


@pytest.mark.parametrize(
    ("name", "unet_size", "text_size"),
    [
        ("sd1", 859_520_964, 123_060_480),
        ("sd2", 865_910_724, 340_387_840),
    ],
)
def test_the_families_have_the_published_numbers_of_parameters(
    name: str, unet_size: int, text_size: int
) -> None:
    family = CHECKPOINTS[name]
    with torch.device("meta"):
        modules = (
            UNet2DConditionModel(**family.unet),
            CLIPTextModel(CLIPTextConfig(**family.text_encoder)),
            AutoencoderKL(**family.vae),
        )
    assert [sum(p.numel() for p in m.parameters()) for m in modules] == [unet_size, text_size, 83_653_863]


def test_a_family_that_is_added_to_the_table_loads_from_a_single_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The recipe of docs/architecture.md: one entry, and nothing else."""
    dummy = Family({"clip_d": 32}, {"epsilon": 64}, reduced("sd1"))
    unet, text, vae = build(reduced("sd1"))
    path = tmp_path / "dummy.safetensors"
    save_file(original_layout("sd1", unet, text, vae), path)
    with pytest.raises(ValueError, match="looks like sd1, but its cross-attention is 32 wide instead of 768"):
        load_base(str(path))
    monkeypatch.setitem(FAMILIES, "dummy", dummy)
    base = load_base(str(path))
    assert (base.fingerprint.family, base.token_widths) == ("dummy", {"clip_d": 32})
    vectors = {"clip_d": torch.ones(1, 3, 32)}
    context, noisy, t = base.encode_prompts(["a {}"], vectors), torch.ones(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        close(base.predict_noise(noisy, t, context), unet(noisy, t, context.hidden).sample)
