"""A checkpoint of ComfyUI's folder models/checkpoints as MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import folder_paths

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

FOLDER = "checkpoints"  # key in ComfyUI's model folders


def checkpoint_names() -> list[str]:
    """All files of models/checkpoints, as ComfyUI's own loader lists them."""
    return folder_paths.get_filename_list(FOLDER)


def checkpoint_file(name: str) -> str:
    """The path of a name in `checkpoint_names`; ValueError where there is none."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(
            f"There is no {name} in models/{FOLDER} (it has {', '.join(checkpoint_names()) or 'none'}): "
            "choose one of these, or put the file there and press R."
        )
    return path


def load_checkpoint(name: str) -> tuple[ModelPatcher, CLIP, VAE]:
    """MODEL, CLIP and VAE of Stable Diffusion 1.x, 2.x or XL.

    Raises ValueError where the file holds something else, or not all three.
    """
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors import SafetensorError

    from .base_model import PREDICTIONS

    path, embeddings = checkpoint_file(name), folder_paths.get_folder_paths("embeddings")
    try:
        loaded: Any = comfy.sd.load_checkpoint_guess_config(path, embedding_directory=embeddings)
    except (RuntimeError, SafetensorError) as error:  # it is no model, or is cut off
        raise ValueError(f"{_needed(name)}: this one cannot be read ({_first_line(error)}).") from None
    model, clip, vae, *_ = loaded
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel) or model.model.model_type not in PREDICTIONS:
        raise ValueError(f"{_needed(name)}: this one holds a {type(network).__name__}.")
    if clip is None or getattr(vae, "first_stage_model", None) is None:
        lacking = "text encoder" if clip is None else "autoencoder"
        raise ValueError(f"{_needed(name)}, with everything in one file: this one has no {lacking}.")
    return model, clip, vae


def _needed(name: str) -> str:
    return f"Choose a checkpoint of Stable Diffusion 1.x, 2.x or XL in place of {name}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
