"""ComfyUI's MODEL, CLIP and VAE as the core's `LatentDiffusion`, for training and for mask tokens.

All of ComfyUI's training quirks live here: tensors made in inference mode, weights that are offloaded or half
precision, text encoders that add in place, attention kernels without a backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..anomalydiffusion_core.artifact import check_base
from ..anomalydiffusion_core.embeddings import AnomalyModel
from ..anomalydiffusion_core.latent_diffusion import (
    Context,
    Fingerprint,
    NoiseSchedule,
    common_columns,
    fitting_vectors,
    hash_weights,
    split_prompt,
)
from ..anomalydiffusion_core.reweighting import AttentionWeights
from ..anomalydiffusion_core.spatial_encoder import SpatialEncoder
from ..anomalydiffusion_core.tiny_base import architecture as arch
from .comfy_sampling import WEIGHTS, with_reweighted_attention
from .comfy_tiny_base import TinyModelConfig
from .pixels import from_core, to_core

PREDICTIONS = {ModelType.EPS: "epsilon", ModelType.V_PREDICTION: "v_prediction"}
FAMILIES = {768: "sd1", 1024: "sd2"}  # by the width of the context
ENCODERS = ("clip_l", "clip_h")


class ComfyModel:
    """A `LatentDiffusion` on what ComfyUI's loaders give. Use `trainable` around anything with gradients."""

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        unet = model.model.diffusion_model
        kind = type(unet).__name__
        if not isinstance(unet, UNetModel) or model.model.model_type not in PREDICTIONS:
            raise ValueError(
                f"This MODEL is a {kind} ({model.model.model_type.name}): AnomalyDiffusion needs a U-Net "
                "with cross-attention that predicts noise or v: load Stable Diffusion 1.x or 2.x."
            )
        found = [name for name in ENCODERS if hasattr(clip.cond_stage_model, name)]
        if not found:
            raise ValueError(
                "This CLIP has no text encoder of Stable Diffusion 1.x or 2.x: connect the CLIP that belongs "
                "to the MODEL."
            )
        self.encoder_name = found[0]
        self.text_encoder = getattr(clip.cond_stage_model, self.encoder_name)
        self.tokens = getattr(clip.tokenizer, self.encoder_name)
        width = int(self._table.weight.shape[1])
        self.token_widths = {self.encoder_name: width}
        tiny = isinstance(model.model.model_config, TinyModelConfig)
        sampling = model.get_model_object("model_sampling")
        self.schedule = NoiseSchedule(
            (1 / (1 + sampling.sigmas.double() ** 2)).float().cpu().clone(),
            PREDICTIONS[model.model.model_type],  # type: ignore[arg-type]
        )
        self.latent_channels = int(model.model.latent_format.latent_channels)
        self.factor = int(vae.spacial_compression_decode())
        self.native_size = int(model.model.model_config.unet_config["image_size"]) * self.factor
        self.device = model.load_device
        family = "tiny" if tiny else FAMILIES.get(width, f"sd-{width}")
        self.fingerprint = Fingerprint(family, hash_weights(self._unet_state(), self._text_state()))
        self._options: dict[str, Any] = {}

    @cached_property
    def spatial_encoders(self) -> dict[str, SpatialEncoder]:
        """E as it comes with the embedded base, by text encoder; read from disk only where training asks."""
        tiny = self.fingerprint.family == "tiny"
        encoder = arch.load_spatial_encoder(arch.WEIGHTS) if tiny else None
        return {self.encoder_name: encoder} if encoder else {}

    def _unet_state(self) -> dict[str, Tensor]:
        names = comfy.utils.unet_to_diffusers(self.model.model.model_config.unet_config)
        state = self.model.model.diffusion_model.state_dict()
        return {name: state[key] for name, key in names.items() if key in state}

    def _text_state(self) -> dict[str, Tensor]:
        state = self.text_encoder.transformer.state_dict()
        return {key: value for key, value in state.items() if key.startswith("text_model.")}

    @property
    def _table(self) -> nn.Embedding:
        return self.text_encoder.transformer.get_input_embeddings()

    def encode(self, image: Tensor) -> Tensor:
        return self.model.model.process_latent_in(self.vae.encode(from_core(image))).to(self.device)

    def decode(self, latent: Tensor) -> Tensor:
        return to_core(self.vae.decode(self.model.model.process_latent_out(latent)))

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        return {self.encoder_name: self._table.weight[self._ids(words)].detach().float().clone()}

    def _ids(self, text: str) -> list[int]:
        return self.tokens.tokenizer(text)["input_ids"][1:-1] if text.strip() else []

    def encode_prompts(self, prompts: list[str], inserted: dict[str, Tensor] | None = None) -> Context:
        vectors = None
        if inserted is not None:
            name = self.encoder_name
            vectors = fitting_vectors(inserted, name, len(prompts), self.token_widths[name])
        count = None if vectors is None else vectors.shape[1]
        tokens, rows, starts = self.tokens, [], []
        for number, prompt in enumerate(prompts):
            head, tail = split_prompt(prompt, self._ids, tokens.start_token, count, tokens.max_length)
            starts.append(len(head))
            row: list[int | Tensor] = [*head, *tail, tokens.end_token]
            row += [tokens.pad_token] * (tokens.max_length - len(row) - (count or 0))
            if vectors is not None:
                row.insert(len(head), vectors[number])  # one entry holds all vectors of a prompt
            rows.append(row)
        self.text_encoder.reset_clip_options()
        if self.clip.layer_idx is not None:
            self.text_encoder.set_clip_options({"layer": self.clip.layer_idx})
        hidden = self.text_encoder(rows)[0]
        return Context(hidden.to(self.device), common_columns(starts, count or 0))

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t)
        # the host's x has unit signal: z_t / alpha at noise level sigma / alpha
        x, level = noisy / alpha, (sigma / alpha)
        options = {"optimized_attention_override": _differentiable_attention, **self._options}
        options["cond_or_uncond"] = [0]
        clean_hat = self.model.model.apply_model(
            x, level.flatten(), c_crossattn=context, transformer_options=options
        )
        return (x - clean_hat) / level

    @contextmanager
    def reweighted(self, weights: AttentionWeights) -> Iterator[None]:
        self._options = with_reweighted_attention(self.model).model_options["transformer_options"] | {
            WEIGHTS: weights
        }
        try:
            yield
        finally:
            self._options = {}


def _differentiable_attention(kernel: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


@contextmanager
def trainable(base: ComfyModel) -> Iterator[None]:
    """While active, gradients flow through MODEL and CLIP, loaded in full, in float32 or bfloat16.

    Weights are replaced by equal copies for good, since those made in inference mode cannot be trained
    through; half-precision weights are float32 meanwhile. Raises ValueError for quantised weights.
    """
    unet, text = base.model.model.diffusion_model, base.clip.cond_stage_model
    for module, name in ((unet, "MODEL"), (text, "CLIP")):
        _refuse_quantised(module, name)
    comfy.model_management.load_models_gpu([base.model, base.clip.patcher], force_full_load=True)
    dtype = unet.dtype
    half = (base.model.model.manual_cast_dtype or dtype) == torch.float16
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # ComfyUI's CLIP layers add in place
        stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        try:
            _copy_weights(text, None)
            _copy_weights(unet, torch.float32 if half else None)
            unet.dtype = torch.float32 if half else dtype
            yield
        finally:
            if unet.dtype != dtype:
                _copy_weights(unet, dtype)
                unet.dtype = dtype


def _refuse_quantised(module: nn.Module, name: str) -> None:
    for parameter in module.parameters():
        if parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(
                f"{name} holds {parameter.dtype} weights, through which nothing can be trained: load it with "
                "fp16, bf16 or fp32 weights."
            )


def _copy_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    for name, parameter in list(module.named_parameters()):
        comfy.utils.set_attr_param(module, name, parameter.detach().clone().to(dtype or parameter.dtype))


def load_for(
    learned: AnomalyModel, model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE
) -> ComfyModel:
    """The base for using what was learned. Raises ValueError where it was learned on another family; other
    weights of the same family only give a warning.
    """
    base = ComfyModel(model, clip, vae)
    check_base(learned.base, base.fingerprint, "The artifact", "connect that base or train again")
    comfy.model_management.load_models_gpu([clip.patcher])
    return base
