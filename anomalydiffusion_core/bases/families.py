"""The families of base models: everything that differs between them is one entry of a table.

A family is told by the widths of its text encoders in both hosts, and in a single file by the names of its
tensors. Configurations are those of diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..method.spatial_encoder import SpatialEncoderConfig
from .tiny import architecture

UNKNOWN_SIZE = 512  # pixels per side of a family that the table lacks


@dataclass(frozen=True)
class Checkpoint:
    """What a single file of a family holds, in the configurations that diffusers needs to read it."""

    text_mark: str  # a tensor by whose name its text encoder is known
    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    pad_token: str
    # an epsilon model at 64 latent cells has tensors of the same names and shapes
    has_epsilon_twin: bool = False

    def predicting_epsilon(self) -> Checkpoint:
        """That twin."""
        return replace(
            self,
            unet={**self.unet, "sample_size": 64},
            scheduler={**self.scheduler, "prediction_type": "epsilon"},
        )


@dataclass(frozen=True)
class Family:
    """One generation of base models."""

    token_widths: dict[str, int]  # by ComfyUI's names of its text encoders, in the order of the context
    native_sizes: dict[str, int]  # pixels per side, by what the U-Net predicts
    checkpoint: Checkpoint | None = None  # None: its single files are read by ComfyUI alone
    spatial_encoder: SpatialEncoderConfig | None = None  # E's size; None: the paper's


TEXT_SD1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
TEXT_SD2 = "cond_stage_model.model.token_embedding.weight"
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

FAMILIES: dict[str, Family] = {
    "tiny": Family(
        architecture.TOKEN_WIDTHS,
        {"v_prediction": architecture.NATIVE_SIZE},
        spatial_encoder=architecture.SPATIAL_ENCODER,
    ),
    "sd1": Family(
        {"clip_l": 768},
        {"epsilon": 512},
        Checkpoint(TEXT_SD1, UNET_SD1, TEXT_ENCODER_SD1, VAE, SCHEDULER, "<|endoftext|>"),
    ),
    "sd2": Family(
        {"clip_h": 1024},
        {"epsilon": 512, "v_prediction": 768},
        Checkpoint(
            TEXT_SD2,
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
            has_epsilon_twin=True,
        ),
    ),
    "sdxl": Family({"clip_l": 768, "clip_g": 1280}, {"epsilon": 1024, "v_prediction": 1024}),
}


def family_of(widths: Sequence[int]) -> str:
    """The family whose text encoders have these widths, in this order; `sd-<their sum>` where none has."""
    for name, family in FAMILIES.items():
        if [*family.token_widths.values()] == [*widths]:
            return name
    return f"sd-{sum(widths)}"


def encoder_names(widths: Sequence[int]) -> list[str]:
    """ComfyUI's names of text encoders with these widths; `clip_l` and so on where no family has them."""
    for family in FAMILIES.values():
        if [*family.token_widths.values()] == [*widths]:
            return list(family.token_widths)
    return known_encoders()[: len(widths)]


def known_encoders() -> list[str]:
    """The names of all families' text encoders, in the order of the context."""
    return list(dict.fromkeys(name for family in FAMILIES.values() for name in family.token_widths))


def native_size(family: str, prediction: str) -> int:
    """Pixels per side that bases of a family were trained at."""
    known = FAMILIES[family].native_sizes if family in FAMILIES else {}
    return known.get(prediction, UNKNOWN_SIZE)
