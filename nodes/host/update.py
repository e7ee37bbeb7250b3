"""The low-rank update of a base (LoRA) that was learned with embeddings, on ComfyUI's MODEL."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...anomalydiffusion_core.method.artifact import lora_state
from ...anomalydiffusion_core.method.latent_diffusion import hash_weights

log = logging.getLogger(__name__)


def unet_keys(model: ModelPatcher) -> dict[str, str]:
    """Names of the U-Net's weights within MODEL, by diffusers' names."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {name: f"diffusion_model.{key}" for name, key in names.items()}


def has_update(model: ModelPatcher, adapter: Mapping[str, Tensor]) -> bool:
    """Whether an update is laid on MODEL, among whatever other LoRAs; at any strength."""
    keys, layers = unet_keys(model), {name.rpartition(".")[0] for name in adapter}
    return all(
        any(
            _is_of(patch[1], adapter[f"{layer}.up"], adapter[f"{layer}.down"])
            for patch in model.patches.get(keys.get(f"{layer}.weight", ""), [])
        )
        for layer in layers
    )


def _is_of(patch: Any, up: Tensor, down: Tensor) -> bool:
    """Whether a patch of one weight is that of an update's matrices."""
    matrices = getattr(patch, "weights", None)
    if not isinstance(matrices, (list, tuple)):  # no LoRA
        return False
    held = [matrix.float().cpu() for matrix in matrices[:2] if isinstance(matrix, Tensor)]
    return len(held) == 2 and torch.equal(held[0], up.float()) and torch.equal(held[1], down.float())


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
    # the same update laid on the same MODEL again: ComfyUI need not patch the weights anew
    updated.patches_uuid = uuid.uuid5(model.patches_uuid, hash_weights(adapter))
    return updated


def tell_of_update(model: ModelPatcher, adapter: Mapping[str, Tensor]) -> None:
    """Says in the log that MODEL lacks an update, before a sampler that is not the pack's."""
    if not has_update(model, adapter):
        log.warning(
            "The embeddings were learned with an update of the base, which this MODEL lacks: load the "
            ".lora.safetensors file beside them by LoraLoaderModelOnly, before the sampler, or take Generate "
            "Masks, which lays it on by itself."
        )
