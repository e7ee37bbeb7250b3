"""The low-rank update of a base (LoRA) that was learned with embeddings, on ComfyUI's MODEL."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...anomalydiffusion_core.method.artifact import lora_state


def unet_keys(model: ModelPatcher) -> dict[str, str]:
    """Names of the U-Net's weights within MODEL, by diffusers' names."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {name: f"diffusion_model.{key}" for name, key in names.items()}


def has_update(model: ModelPatcher, adapter: Mapping[str, Tensor]) -> bool:
    """Whether some LoRA is laid on every layer of an update."""
    keys, layers = unet_keys(model), {name.rpartition(".")[0] for name in adapter}
    return all(keys.get(f"{layer}.weight") in model.patches for layer in layers)


def with_update(model: ModelPatcher, adapter: Mapping[str, Tensor]) -> ModelPatcher:
    """MODEL with an update, which the graph may have laid on it already.

    Raises ValueError where the update has layers that MODEL lacks.
    """
    if has_update(model, adapter):
        return model
    updated = comfy.sd.load_lora_for_models(model, None, lora_state(adapter), 1.0, 0.0)[0]
    if updated is None or not has_update(updated, adapter):
        raise ValueError(
            "The embeddings were learned with an update of the base, which does not fit this MODEL: connect "
            "the base that they were trained on."
        )
    return updated
