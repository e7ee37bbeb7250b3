"""The embedded base as ComfyUI's MODEL, CLIP and VAE, from the same file as headless use.

Everything runs in float32 and is loaded whole: the model is small, and both hosts then give the same numbers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...anomalydiffusion_core.bases.tiny import architecture as arch
from ...anomalydiffusion_core.bases.tiny.autoencoder import LappedAutoencoder


def unet_config() -> dict[str, Any]:
    """`architecture.UNET`, which is in diffusers' terms, in those of ComfyUI's U-Net."""
    widths, layers = arch.UNET["block_out_channels"], arch.UNET["layers_per_block"]
    attends = [int("CrossAttn" in block) for block in arch.UNET["down_block_types"]]
    return {
        "image_size": arch.UNET["sample_size"],
        "in_channels": arch.UNET["in_channels"],
        "out_channels": arch.UNET["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in attends for _ in range(layers)],
        "transformer_depth_output": [depth for depth in attends for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "context_dim": arch.UNET["cross_attention_dim"],
        "num_head_channels": widths[0] // arch.UNET["attention_head_dim"][0],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
    }


class TinyLatent(comfy.latent_formats.LatentFormat):
    """Latents as they are (scale 1), with the linear decoder's colours for previews (`with_colours_of`)."""

    scale_factor = 1.0
    latent_channels = arch.LATENT_CHANNELS

    def with_colours_of(self, vae: LappedAutoencoder) -> TinyLatent:
        """Fills in what one latent cell of each channel adds, on average, to its 8x8 pixels."""
        # a cell's kernel covers 16x16 pixels; summed and spread over its own 64
        colours = vae.synthesis.weight.detach().sum((2, 3)) / arch.FACTOR**2
        self.latent_rgb_factors = colours.tolist()
        return self


class TinyModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model: Stable Diffusion's noise schedule, v-prediction."""

    unet_extra_config: dict[str, Any] = {"num_heads": -1}
    latent_format = TinyLatent
    memory_usage_factor = 1.0

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        return False  # eight latent channels are no inpainting inputs


class TinyTextEncoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={**arch.TEXT_ENCODER, "eos_token_id": arch.VOCABULARY - 1},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class TinyClip(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None) -> None:
        encoder: Any = TinyTextEncoder
        super().__init__(device, dtype, model_options or {}, clip_model=encoder)


class TinyTokens(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(
            str(arch.FOLDER / "tokenizer"),
            embedding_directory=embedding_directory,
            embedding_size=arch.TOKEN_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class TinyTokenizer(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=TinyTokens)


def load_model(path: Path, vae: LappedAutoencoder) -> ModelPatcher:
    """The U-Net as a MODEL."""
    config = TinyModelConfig(unet_config())
    latent_format: Any = config.latent_format  # an object, since the host makes one of the class
    latent_format.with_colours_of(vae)
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = arch.read_weights(path, "unet")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = config.get_model({}, device=offload_device)
    model.diffusion_model.load_state_dict({names[key]: tensor for key, tensor in weights.items()})
    patcher = ModelPatcher(model, load_device=load_device, offload_device=offload_device)
    return _reloadable(patcher, lambda: load_model(path, vae))


def load_clip(path: Path, embeddings: list[str]) -> comfy.sd.CLIP:
    """The text encoder as a CLIP that reads textual inversions of width 192 from the folders `embeddings`."""
    target, host = comfy.supported_models_base.ClipTarget(TinyTokenizer, TinyClip), comfy.sd.CLIP
    whole = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(host).parameters else {}
    clip = host(target, embedding_directory=embeddings, model_options={"dtype": torch.float32}, **whole)
    state = arch.expand_vocabulary(arch.read_weights(path, "text_encoder"))
    # the pooled output, which this family does not use, passes unchanged
    clip.load_sd({**state, "text_projection.weight": torch.eye(arch.TOKEN_WIDTH)})
    _reloadable(clip.patcher, lambda: load_clip(path, embeddings).patcher)
    return clip


def as_vae(autoencoder: LappedAutoencoder) -> comfy.sd.VAE:
    """The autoencoder as a VAE.

    ComfyUI recognises autoencoders by their weights and has no way to pass one in, so that a small one of a
    kind that it knows is loaded, and its module exchanged.
    """
    vae: Any = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=arch.LATENT_CHANNELS).state_dict())
    vae.first_stage_model = autoencoder.to(vae.vae_dtype)
    patcher = vae.patcher
    vae.patcher = ModelPatcher(autoencoder, patcher.load_device, patcher.offload_device)
    _reloadable(vae.patcher, lambda: as_vae(copy.deepcopy(autoencoder)).patcher)
    return vae


def _reloadable(patcher: ModelPatcher, load: Callable[[], ModelPatcher]) -> ModelPatcher:
    """Tells the host how to get the same weights once more, for its nodes that need weights of their own."""

    def reload(disable_dynamic: bool = False) -> ModelPatcher:
        return load()

    host: Any = patcher
    host.cached_patcher_init = (reload, ())
    return patcher
