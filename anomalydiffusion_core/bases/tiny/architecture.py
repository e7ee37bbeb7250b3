"""The embedded base model's parts: a small U-Net, text encoder and autoencoder in Stable Diffusion's layout.

One safetensors file holds all of them, in float16, under `unet.`, `text_encoder.`, `vae.` and
`spatial_encoder.`. The text encoder's table keeps only the rows of words the base was trained on
(`token_ids`); every other word
of CLIP's vocabulary shares their mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...method.artifact import write_atomically
from ...method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from .autoencoder import FACTOR, LappedAutoencoder

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "tiny_base.safetensors"
DEMO_EMBEDDINGS = FOLDER / "demo_embeddings.safetensors"  # learned on these weights from the demo's dataset
FORMAT = "anomalydiffusion-tiny-base/1"
TOKEN_WIDTH = 192
TOKEN_WIDTHS = {"clip_l": TOKEN_WIDTH}  # by ComfyUI's names of text encoders
VOCABULARY = 49408
LATENT_CHANNELS = 8
NATIVE_SIZE = 128

UNET: dict[str, Any] = dict(  # noqa: C408
    sample_size=NATIVE_SIZE // FACTOR,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    block_out_channels=(96, 192, 192),
    layers_per_block=1,
    cross_attention_dim=TOKEN_WIDTH,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(3, 6, 6),  # diffusers' name for the number of heads: 32 channels each
)
TEXT_ENCODER: dict[str, Any] = dict(  # noqa: C408
    hidden_size=TOKEN_WIDTH,
    intermediate_size=4 * TOKEN_WIDTH,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
)
SPATIAL_ENCODER = SpatialEncoderConfig(
    width=TOKEN_WIDTH, tokens=4, backbone="resnet10", mask_size=64, pyramid_channels=32, grid=8
)
SCHEDULE: dict[str, Any] = dict(  # noqa: C408
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


@dataclass
class TinyBase:
    """The modules of the embedded base, on CPU in float32, not yet frozen."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: LappedAutoencoder
    spatial_encoder: SpatialEncoder | None


def build_unet() -> UNet2DConditionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def build_text_encoder(vocabulary: int = VOCABULARY) -> CLIPTextModel:
    """The text encoder with a token table of `vocabulary` rows, the last two being start and end of text."""
    from transformers import CLIPTextConfig, CLIPTextModel

    start, end = vocabulary - 2, vocabulary - 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, bos_token_id=start, eos_token_id=end, pad_token_id=end, **TEXT_ENCODER
        )
    )


def load_tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")


def is_tiny_base(path: Path) -> bool:
    """Whether a file is a base written by `pretrain-tiny`."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def read_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.` of a base file, as float32 (integers as they are)."""
    with safe_open(path, framework="pt") as file:
        tensors = {
            key.removeprefix(prefix + "."): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 (safe_open is no dict)
            if key.startswith(prefix + ".")
        }
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def load_tiny_base(path: Path = WEIGHTS) -> TinyBase:
    """Builds the modules and fills them from `path`."""
    unet = build_unet()
    unet.load_state_dict(read_weights(path, "unet"))
    text_encoder = build_text_encoder()
    load_text_state(text_encoder, expand_vocabulary(read_weights(path, "text_encoder")))
    return TinyBase(
        unet.eval(),
        text_encoder.eval(),
        load_tokenizer(),
        load_autoencoder(path),
        load_spatial_encoder(path),
    )


def load_autoencoder(path: Path) -> LappedAutoencoder:
    """The autoencoder of a base file."""
    vae = LappedAutoencoder(LATENT_CHANNELS)
    vae.load_state_dict(read_weights(path, "vae"))
    return vae.eval()


def load_spatial_encoder(path: Path) -> SpatialEncoder | None:
    """E as pre-trained with the base, or None where the file has none."""
    state = read_weights(path, "spatial_encoder")
    if not state:
        return None
    encoder = SpatialEncoder(SPATIAL_ENCODER)
    encoder.load_state_dict(state)
    return encoder.eval()


def add_spatial_encoder(path: Path, encoder: SpatialEncoder) -> None:
    """Puts a spatial encoder into a base file, in float16, replacing one that it has."""
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("spatial_encoder.")}
    tensors |= {f"spatial_encoder.{k}": v.detach().cpu().half() for k, v in encoder.state_dict().items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["spatial_encoder"] = json.dumps(json.loads(encoder.config.to_json()))
    write_atomically(path, tensors, metadata)


TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


def expand_vocabulary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the short token table and its `token_ids` by the full one, (49408, d)."""
    ids, short = state["token_ids"].long(), state[TOKEN_TABLE]
    table = short.mean(0, keepdim=True).repeat(VOCABULARY, 1)
    table[ids] = short
    return {**{key: tensor for key, tensor in state.items() if key != "token_ids"}, TOKEN_TABLE: table}


def select_vocabulary(state: dict[str, Tensor], token_ids: Tensor) -> dict[str, Tensor]:
    """Makes the short token table hold the rows of `token_ids`; words it lacked start as all unknown ones."""
    full = expand_vocabulary(state)
    return {**full, TOKEN_TABLE: full[TOKEN_TABLE][token_ids.long()]}


def load_text_state(text_encoder: CLIPTextModel, state: dict[str, Tensor]) -> None:
    """Loads keys named as in CLIP's releases; transformers 5 dropped the `text_model.` prefix."""
    text_encoder.load_state_dict(
        {key: state["text_model." + key.removeprefix("text_model.")] for key in text_encoder.state_dict()}
    )


def text_state(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The state dict named as in CLIP's releases."""
    return {
        "text_model." + key.removeprefix("text_model."): tensor
        for key, tensor in text_encoder.state_dict().items()
    }
