"""Single-file checkpoints of Stable Diffusion 1.x and 2.x, loaded offline.

The family is read from names and shapes in the file's header; diffusers gets the family's configuration
from a temporary folder, so that nothing is fetched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .families import FAMILIES, Checkpoint

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

TOKENIZER = Path(__file__).parent / "tiny" / "tokenizer"  # CLIP's vocabulary, which SD 1.x and 2.x share
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

UNET = "model.diffusion_model."
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"
FIRST_KEYS = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CLASS_EMBEDDING = UNET + "label_emb.0.0.weight"
AUTOENCODER = "first_stage_model.decoder.conv_in.weight"
TEXT_SDXL = "conditioner.embedders."


def load_single_file(path: Path) -> StableDiffusionPipeline:
    """Loads an SD 1.x or 2.x checkpoint (.safetensors) in float32, without any download.

    SD 2.x exists as an epsilon model (base, 512 px) and as a v-prediction model (768 px) with tensors of
    equal names and shapes: it is taken for v-prediction unless metadata, or else its name, say otherwise.
    Raises ValueError for pickles and for whatever is no plain text-to-image checkpoint of these families.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    checkpoint = detect_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        write_config(checkpoint, Path(folder))
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


def detect_checkpoint(path: Path) -> Checkpoint:
    """What a file is, from its header alone: no tensor is loaded. Raises ValueError as above."""
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
    width = shapes.get(FIRST_KEYS, (0, 0))[1]
    family, checkpoint = _known_checkpoint(path, names, width)
    _check_plain(path, family, checkpoint, names, shapes)
    if checkpoint.has_epsilon_twin and _is_epsilon(path.stem, metadata):
        return checkpoint.predicting_epsilon()
    return checkpoint


def _known_checkpoint(path: Path, names: set[str], width: int) -> tuple[str, Checkpoint]:
    """The family that a file's names tell, of several the one whose cross-attention is that wide."""
    if any(name.startswith(TEXT_SDXL) for name in names):
        raise ValueError(f"{path} is an SDXL checkpoint: choose one of Stable Diffusion 1.x or 2.x.")
    known = {name: family.checkpoint for name, family in FAMILIES.items() if family.checkpoint}
    marked = {name: checkpoint for name, checkpoint in known.items() if checkpoint.text_mark in names}
    if marked and FIRST_CONVOLUTION in names:
        fitting = [name for name in marked if marked[name].unet["cross_attention_dim"] == width]
        family = [*fitting, *marked][0]
        return family, marked[family]
    parts = {"U-Net": FIRST_CONVOLUTION in names, "text encoder": bool(marked)}
    absent = " and ".join(part for part, there in parts.items() if not there)
    raise ValueError(
        f"{path} is no Stable Diffusion 1.x or 2.x checkpoint, it has no {absent} under the usual names: "
        "give a full checkpoint, not a LoRA, a VAE or another model."
    )


def _check_plain(
    path: Path, family: str, checkpoint: Checkpoint, names: set[str], shapes: dict[str, tuple[int, ...]]
) -> None:
    channels, wanted = shapes[FIRST_CONVOLUTION][1], checkpoint.unet["in_channels"]
    if channels != wanted or CLASS_EMBEDDING in names:
        reason = f"takes {channels} channels" if channels != wanted else "is conditioned on images"
        raise ValueError(
            f"{path} is no plain text-to-image checkpoint, its U-Net {reason}: "
            "choose the plain one, not one for inpainting, depth, editing or unclip."
        )
    width, expected = shapes.get(FIRST_KEYS, (0, 0))[1], checkpoint.unet["cross_attention_dim"]
    if width != expected:
        raise ValueError(
            f"{path} looks like {family}, but its cross-attention is {width} wide instead of {expected}: "
            "choose a checkpoint of Stable Diffusion 1.x or 2.x."
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


def write_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes what diffusers needs besides weights: the index, a config per component, the tokenizer."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", checkpoint.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    tokenizer = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    files = {
        "model_index.json": index,
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **checkpoint.unet},
        "vae/config.json": {"_class_name": "AutoencoderKL", **checkpoint.vae},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], **checkpoint.text_encoder},
        "scheduler/scheduler_config.json": checkpoint.scheduler,
        "tokenizer/tokenizer_config.json": {**tokenizer, "pad_token": checkpoint.pad_token},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
