"""ComfyUI's MODEL, CLIP and VAE as the core's `LatentDiffusion`; what training needs is in `trainable.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...anomalydiffusion_core.bases.families import family_of, known_encoders, native_size
from ...anomalydiffusion_core.bases.tiny import architecture as arch
from ...anomalydiffusion_core.method.artifact import check_base
from ...anomalydiffusion_core.method.attention import Columns
from ...anomalydiffusion_core.method.embeddings import Learned
from ...anomalydiffusion_core.method.latent_diffusion import (
    Context,
    NoiseSchedule,
    common_columns,
    fingerprint_of,
    fitting_vectors,
    split_prompt,
)
from ...anomalydiffusion_core.method.low_rank import learned_update, updated_layers
from ...anomalydiffusion_core.method.reweighting import AttentionWeights
from ...anomalydiffusion_core.method.spatial_encoder import SpatialEncoder
from .pixels import from_core, latent_factor, to_core
from .reweighting import WEIGHTS, with_reweighted_attention
from .update import unet_keys, with_update

PREDICTIONS = {ModelType.EPS: "epsilon", ModelType.V_PREDICTION: "v_prediction"}


class ComfyModel:
    """A `LatentDiffusion` on what ComfyUI's loaders give. Use `trainable` around anything with gradients;
    else let the host load the MODEL before its noise is predicted, as its samplers do.
    """

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> None:
        self.model, self.clip, self.vae, self.checkpointing = model, clip, vae, False
        self._network: Any = model.model  # what computes, the host's or a copy to train through
        self._text: Any = clip.cond_stage_model
        unet = model.model.diffusion_model
        if not isinstance(unet, UNetModel) or model.model.model_type not in PREDICTIONS:
            raise ValueError(
                f"This MODEL is a {type(unet).__name__} ({model.model.model_type.name}): "
                "AnomalyDiffusion needs a U-Net with cross-attention that predicts noise or v: load Stable "
                "Diffusion 1.x, 2.x or XL."
            )
        encoders = [name for name in known_encoders() if hasattr(clip.cond_stage_model, name)]
        self.tokenizers = {name: getattr(clip.tokenizer, name) for name in encoders}
        self.token_widths = {name: int(self._table(name).weight.shape[1]) for name in encoders}
        width = sum(self.token_widths.values())
        expected = model.model.model_config.unet_config.get("context_dim")
        if width != expected:
            raise ValueError(
                f"The MODEL reads text of width {expected}, this CLIP's encoders {encoders} give {width}: "
                "connect the CLIP that belongs to the MODEL."
            )
        sampling: Any = model.get_model_object("model_sampling")
        self.schedule = NoiseSchedule(
            (1 / (1 + sampling.sigmas.double() ** 2)).float().cpu().clone(),
            PREDICTIONS[model.model.model_type],  # type: ignore[arg-type]
        )
        self.latent_channels = int(model.model.latent_format.latent_channels)
        self.factor = latent_factor(vae)
        self.device = model.load_device
        computing = model.model.manual_cast_dtype or unet.dtype
        self.dtype = torch.float32 if computing == torch.float16 else computing  # as `trainable` has it
        family = family_of(list(self.token_widths.values()))
        self.native_size = native_size(family, self.schedule.prediction)
        states = (self._text_state(self._encoder(name)) for name in encoders)
        self.fingerprint = fingerprint_of(family, self._unet_state(), *states)
        self.adapter: dict[str, Tensor] = {}  # the update that is laid on MODEL
        self._options: dict[str, Any] = {}

    def save_memory(self) -> None:
        """To be trained on in less memory: the U-Net in bfloat16 where the card does that well, its
        activations computed again for the gradient instead of kept.
        """
        self.checkpointing = True
        if comfy.model_management.should_use_bf16(self.device):
            self.dtype = torch.bfloat16

    @property
    def spatial_encoders(self) -> dict[str, SpatialEncoder]:
        """E as it comes with the embedded base, by text encoder; read from disk only where training asks."""
        tiny = self.fingerprint.family == "tiny"
        encoder = arch.load_spatial_encoder(arch.WEIGHTS) if tiny else None
        return dict.fromkeys(self.token_widths, encoder) if encoder else {}

    def _unet_state(self) -> dict[str, Tensor]:
        """Weights by diffusers' names, without the LoRA that may be laid on them at the moment."""
        state, plain = self.model.model.state_dict(), self.model.backup
        return {
            name: plain[key].weight if key in plain else state[key]
            for name, key in unet_keys(self.model).items()
            if key in state
        }

    @staticmethod
    def _text_state(encoder: Any) -> dict[str, Tensor]:
        state = encoder.transformer.state_dict()
        return {key: value for key, value in state.items() if key.startswith("text_model.")}

    def _encoder(self, name: str) -> Any:
        return getattr(self._text, name)

    def _table(self, name: str) -> nn.Embedding:
        return self._encoder(name).transformer.get_input_embeddings()

    def encode(self, image: Tensor) -> Tensor:
        latent: Any = self.vae.encode(from_core(image))  # half precision, where the host is told so
        return self.model.model.process_latent_in(latent.float()).to(self.device)

    def decode(self, latent: Tensor) -> Tensor:
        return to_core(self.vae.decode(self.model.model.process_latent_out(latent)))

    def release_codec(self) -> None:
        """Nothing: ComfyUI moves the VAE off where it needs the room."""

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        return {
            name: self._table(name).weight[_ids(tokenizer, words)].detach().float().clone()
            for name, tokenizer in self.tokenizers.items()
        }

    def encode_prompts(self, prompts: list[str], inserted: dict[str, Tensor] | None = None) -> Context:
        if self._text is self.clip.cond_stage_model:
            comfy.model_management.load_models_gpu([self.clip.patcher])
        encoded = [self._encode(name, prompts, inserted) for name in self.token_widths]
        hidden = torch.cat([hidden for hidden, _, _ in encoded], -1)
        _, pooled, columns = encoded[-1]  # SDXL's pooled text is clip_g's; columns are alike in all encoders
        asked = self.model.model.adm_channels > 0
        return Context(hidden.to(self.device), columns, pooled.to(self.device) if asked else None)

    def _encode(
        self, name: str, prompts: list[str], inserted: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor, Columns]:
        """Hidden states (B,T,d) and pooled text (B,d) of one text encoder, and the vectors' columns."""
        encoder, tokenizer, vectors = self._encoder(name), self.tokenizers[name], None
        if inserted is not None:
            vectors = fitting_vectors(inserted, name, len(prompts), self.token_widths[name])
        count, length = None if vectors is None else vectors.shape[1], tokenizer.max_length
        rows, starts = [], []
        for number, prompt in enumerate(prompts):
            head, tail = split_prompt(
                prompt, partial(_ids, tokenizer), tokenizer.start_token, count, length=length
            )
            starts.append(len(head))
            row: list[int | Tensor] = [*head, *tail, tokenizer.end_token]
            row += [tokenizer.pad_token] * (length - len(row) - (count or 0))
            if vectors is not None:
                row.insert(len(head), vectors[number])  # one entry holds all vectors of a prompt
            rows.append(row)
        encoder.reset_clip_options()
        options: dict[str, Any] = {
            "execution_device": self.clip.patcher.load_device
        }  # else that of its weights
        if self.clip.layer_idx is not None:
            options["layer"] = self.clip.layer_idx
        encoder.set_clip_options(options)
        hidden, pooled = encoder(rows)[:2]
        return hidden, pooled, common_columns(starts, count or 0)

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t)
        # the host's x has unit signal: z_t / alpha at noise level sigma / alpha
        x, level = noisy / alpha, (sigma / alpha)
        options = {"optimized_attention_override": _differentiable_attention, **self._options}
        options["cond_or_uncond"] = [0]
        clean_hat = self._network.apply_model(
            x,
            level.flatten(),
            c_crossattn=context.hidden,
            transformer_options=options,
            **self._size_conditioning(noisy, context),
        )
        return (x - clean_hat) / level

    def _size_conditioning(self, noisy: Tensor, context: Context) -> dict[str, Tensor]:
        """SDXL's pooled text with the picture's size, as ComfyUI's samplers give it."""
        if context.pooled is None:
            return {}
        height, width = (self.factor * side for side in noisy.shape[-2:])
        pooled = context.pooled
        return {
            "y": self._network.encode_adm(
                pooled_output=pooled, width=width, height=height, device=pooled.device
            )
        }

    @contextmanager
    def adapting(self, rank: int, generator: torch.Generator) -> Iterator[dict[str, nn.Parameter]]:
        """While active, an update is learned for the network that is trained through."""
        modules = dict(self._network.named_modules())
        names = {key.removesuffix(".weight"): name for name, key in unet_keys(self.model).items()}
        layers = {name.removesuffix(".weight"): modules[key] for key, name in names.items() if key in modules}
        with learned_update(updated_layers(layers), rank, generator, self.device) as parameters:
            yield parameters

    def adapt(self, adapter: Mapping[str, Tensor]) -> None:
        """Takes a MODEL with the update, unless this one has it."""
        self.model, self.adapter = with_update(self.model, adapter), dict(adapter)

    @contextmanager
    def computing_with(self, network: Any, text: Any) -> Iterator[None]:
        """While active, these predict noise and encode prompts, not the host's networks."""
        hosts = self._network, self._text
        self._network, self._text = network, text
        try:
            yield
        finally:
            self._network, self._text = hosts

    @contextmanager
    def reweighted(self, weights: AttentionWeights) -> Iterator[None]:
        self._options = with_reweighted_attention(self.model).model_options["transformer_options"] | {
            WEIGHTS: weights
        }
        try:
            yield
        finally:
            self._options = {}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.tokenizer(text)["input_ids"][1:-1] if text.strip() else []


def _differentiable_attention(kernel: Any, *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


Base = TypeVar("Base", bound=ComfyModel)


def load_for(
    learned: Learned,
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    kind: type[Base] = ComfyModel,
) -> Base:
    """The base for using what was learned, with its update. Raises ValueError where it was learned on another
    family; other weights of the same family only give a warning.
    """
    base = kind(model, clip, vae)
    check_base(learned.base, base.fingerprint, "The artifact", "connect that base or train again")
    base.adapt(learned.adapter)
    return base
