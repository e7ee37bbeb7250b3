"""Single-file checkpoints of Stable Diffusion 1.x and 2.x, loaded offline.

The family is read from names and shapes in the file's header; diffusers gets the family's configuration
from a temporary folder, so that nothing is fetched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

TOKENIZER = Path(__file__).parent / "tiny" / "tokenizer"  # CLIP's vocabulary, which SD 1.x and 2.x share
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

UNET = "model.diffusion_model."
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"
FIRST_KEYS = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CLASS_EMBEDDING = UNET + "label_emb.0.0.weight"
AUTOENCODER = "first_stage_model.decoder.conv_in.weight"
TEXT_SD1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
TEXT_SD2 = "cond_stage_model.model.token_embedding.weight"
TEXT_SDXL = "conditioner.embedders."


@dataclass(frozen=True)
class Family:
    """Configurations, in diffusers' and transformers' terms, of one generation of Stable Diffusion."""

    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    pad_token: str

    def predicting(self, prediction: str, sample_size: int) -> Family:
        """The family with another prediction type and latent size."""
        return replace(
            self,
            unet={**self.unet, "sample_size": sample_size},
            scheduler={**self.scheduler, "prediction_type": prediction},
        )


UNET_SD1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' name for the number of heads
}
TEXT_ENCODER_SD1: dict[str, Any] = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FAMILIES = {
    "sd1": Family(UNET_SD1, TEXT_ENCODER_SD1, VAE, SCHEDULER, "<|endoftext|>"),
    "sd2": Family(
        {
            **UNET_SD1,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        {
            **TEXT_ENCODER_SD1,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,  # of OpenCLIP's 24: SD 2.x reads the last but one
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
            "pad_token_id": 0,
        },
        {**VAE, "sample_size": 768},
        {**SCHEDULER, "prediction_type": "v_prediction"},
        "!",  # OpenCLIP pads with 0
    ),
}


def load_single_file(path: Path) -> StableDiffusionPipeline:
    """Loads an SD 1.x or 2.x checkpoint (.safetensors) in float32, without any download.

    SD 2.x exists as an epsilon model (base, 512 px) and as a v-prediction model (768 px) with tensors of
    equal names and shapes: it is taken for v-prediction unless metadata, or else its name, say otherwise.
    Raises ValueError for pickles and for whatever is no plain text-to-image checkpoint of these families.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    family = detect_family(path)
    with tempfile.TemporaryDirectory() as folder:
        write_config(family, Path(folder))
        try:
            pipeline: Any = StableDiffusionPipeline.from_single_file(
                str(path), config=folder, local_files_only=True
            )
        except NotImplementedError as error:  # what torch raises for parameters that got no data
            raise ValueError(_incomplete(path)) from error
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(f"{path} cannot be loaded as Stable Diffusion: {reason}.") from error
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(_incomplete(path))
        module.float()
    return pipeline


def _incomplete(path: Path) -> str:
    return (
        f"{path} is incomplete, tensors of U-Net, VAE or text encoder are missing: get the full checkpoint."
    )


def detect_family(path: Path) -> Family:
    """The family of a checkpoint, from its header alone: no tensor is loaded. Raises ValueError as above."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is a pickle, which may run code when opened: convert it to .safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            shapes = {
                name: tuple(file.get_slice(name).get_shape())
                for name in (FIRST_CONVOLUTION, FIRST_KEYS)
                if name in names
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}): give a .safetensors checkpoint."
        ) from error
    name = _family_name(path, names)
    family = FAMILIES[name]
    _check_plain(path, name, names, shapes)
    if name == "sd2" and _is_epsilon(path.stem, metadata):
        return family.predicting("epsilon", 64)
    return family


def _family_name(path: Path, names: set[str]) -> str:
    if any(name.startswith(TEXT_SDXL) for name in names):
        raise ValueError(f"{path} is an SDXL checkpoint: choose one of Stable Diffusion 1.x or 2.x.")
    if FIRST_CONVOLUTION in names and TEXT_SD1 in names:
        return "sd1"
    if FIRST_CONVOLUTION in names and TEXT_SD2 in names:
        return "sd2"
    parts = {"U-Net": FIRST_CONVOLUTION in names, "text encoder": bool({TEXT_SD1, TEXT_SD2} & names)}
    absent = " and ".join(part for part, there in parts.items() if not there)
    raise ValueError(
        f"{path} is no Stable Diffusion 1.x or 2.x checkpoint, it has no {absent} under the usual names: "
        "give a full checkpoint, not a LoRA, a VAE or another model."
    )


def _check_plain(path: Path, name: str, names: set[str], shapes: dict[str, tuple[int, ...]]) -> None:
    unet = FAMILIES[name].unet
    channels, wanted = shapes[FIRST_CONVOLUTION][1], unet["in_channels"]
    if channels != wanted or CLASS_EMBEDDING in names:
        kind = f"takes {channels} channels" if channels != wanted else "is conditioned on images"
        raise ValueError(
            f"{path} is no plain text-to-image checkpoint, its U-Net {kind}: "
            "choose the plain one, not one for inpainting, depth, editing or unclip."
        )
    width = shapes.get(FIRST_KEYS, (0, 0))[1]
    if width != unet["cross_attention_dim"]:
        raise ValueError(
            f"{path} looks like {name}, but its cross-attention is {width} wide instead of "
            f"{unet['cross_attention_dim']}: choose a checkpoint of Stable Diffusion 1.x or 2.x."
        )
    if AUTOENCODER not in names:
        raise ValueError(f"{path} holds no autoencoder ({AUTOENCODER}): choose a checkpoint with its VAE.")


def _is_epsilon(stem: str, metadata: dict[str, str]) -> bool:
    """Whether metadata (ModelSpec's or kohya's fields) or else the file name marks an SD 2.x base model."""
    prediction = metadata.get("modelspec.prediction_type", "").lower()
    if prediction:
        return prediction.startswith("eps")
    if "ss_v_parameterization" in metadata:
        return metadata["ss_v_parameterization"].lower() != "true"
    architecture = metadata.get("modelspec.architecture", "").lower()
    if architecture.startswith("stable-diffusion-v2"):
        return "768" not in architecture
    return any(hint in stem.lower() for hint in ("512", "base", "epsilon"))


def write_config(family: Family, folder: Path) -> None:
    """Writes what diffusers needs besides weights: the index, a config per component, the tokenizer."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", family.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    tokenizer = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    files = {
        "model_index.json": index,
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **family.unet},
        "vae/config.json": {"_class_name": "AutoencoderKL", **family.vae},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], **family.text_encoder},
        "scheduler/scheduler_config.json": family.scheduler,
        "tokenizer/tokenizer_config.json": {**tokenizer, "pad_token": family.pad_token},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
