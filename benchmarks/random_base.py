"""A base of Stable Diffusion 1.x's layout with random weights: what it costs, without a download.

U-Net, autoencoder and text encoder are of true size.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from anomalydiffusion_core.bases.diffusers_model import (
    DiffusersModel,
    kl_codec,
    load_base,
    scaled_linear_schedule,
)
from anomalydiffusion_core.bases.tiny.architecture import SCHEDULE, TEXT_ENCODER, VOCABULARY, load_tokenizer

RANDOM_SD = "random-sd"
WIDTHS = (128, 256, 512, 512)  # of the autoencoder


def load_base_or_random(name: str, device: str) -> DiffusersModel:
    """The base that `load_base` gives, or for `random-sd` one of random weights."""
    return random_sd(device) if name == RANDOM_SD else load_base(name, device)


def random_sd(device: str = "cpu") -> DiffusersModel:
    """Stable Diffusion 1.5's U-Net (860 M parameters) and autoencoder with random weights."""
    torch.manual_seed(0)
    text = {**TEXT_ENCODER, "hidden_size": 768, "intermediate_size": 3072}
    text |= {"num_hidden_layers": 12, "num_attention_heads": 12}
    start, end = VOCABULARY - 2, VOCABULARY - 1
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, bos_token_id=start, eos_token_id=end, pad_token_id=end, **text
    )
    blocks: dict[str, Any] = {
        "block_out_channels": WIDTHS,
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device(device):  # drawn there, which takes a GPU no time
        unet = UNet2DConditionModel(cross_attention_dim=768)  # all else is Stable Diffusion 1.5's by default
        text_encoder = CLIPTextModel(config)
        vae = AutoencoderKL(**blocks)
    schedule = scaled_linear_schedule({**SCHEDULE, "prediction_type": "epsilon"})
    return DiffusersModel(
        "sd1",
        unet,
        text_encoder,
        load_tokenizer(),
        codec=kl_codec(vae),
        schedule=schedule,
        native_size=512,
        device=device,
    )
