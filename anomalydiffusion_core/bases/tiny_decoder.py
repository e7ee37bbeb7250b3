"""Tiny decoders (TAESD, github.com/madebyollin/taesd) that show a latent in a fraction of the VAE's time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..method.inpainting import Decode
from ..method.latent_diffusion import LatentDiffusion

FILES = ("taesd_decoder.safetensors", "diffusion_pytorch_model.safetensors")  # looked for in a folder
FACTOR = 8  # pixels per latent cell
DIFFUSERS = "decoder.layers."


def load_tiny_decoder(path: Path, base: LatentDiffusion) -> Decode:
    """Model latents (B,C,h,w) of `base` -> images (B,3,8h,8w), about [-1,1].

    `path` is a decoder as ComfyUI's `models/vae_approx` holds them, or a folder with one or with diffusers'
    AutoencoderTiny. Raises ValueError where it is neither, or decodes other latents.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    file = decoder_file(path)
    state = _decoder_state(file)
    channels = state["0.weight"].shape[1] if "0.weight" in state else 0
    if channels and (channels, FACTOR) != (base.latent_channels, base.factor):
        raise ValueError(
            f"The tiny decoder {file} reads {channels} latent channels at {FACTOR} pixels a cell, the base "
            f"has {base.latent_channels} at {base.factor}: choose the decoder of this base, or leave it out."
        )
    try:
        decoder = AutoencoderTiny(latent_channels=channels or base.latent_channels).decoder
        decoder.layers.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"{file} is no TAESD decoder: give one, such as {FILES[0]}.") from None
    decoder.to(base.device).eval().requires_grad_(False)
    return decoder


def decoder_file(path: Path) -> Path:
    """The file of weights that `path` names, or that lies in it."""
    return next((path / name for name in FILES if (path / name).is_file()), path)


def _decoder_state(file: Path) -> dict[str, Tensor]:
    """Weights by layer; the original names count the clamp before the first layer, diffusers' do not."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"Tiny decoder {file} cannot be read ({error}): give a .safetensors file.") from None
    state = {}
    for name, weight in weights.items():
        number, _, rest = name.removeprefix(DIFFUSERS).partition(".")
        if number.isdigit():
            state[f"{int(number) - (not name.startswith(DIFFUSERS))}.{rest}"] = weight.to(torch.float32)
    return state
