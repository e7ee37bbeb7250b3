"""The base-model protocol on diffusers and transformers: the embedded base, Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..method.artifact import load_artifact
from ..method.embeddings import Learned
from ..method.latent_diffusion import (
    Context,
    NoiseSchedule,
    common_columns,
    fingerprint_of,
    fitting_vectors,
    split_prompt,
)
from ..method.low_rank import learned_update, updated_layers
from ..method.reweighting import AttentionWeights
from ..method.spatial_encoder import SpatialEncoder
from .diffusers_attention import reweighted
from .families import encoder_names, family_of

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # endings of files
ADAPTED_ALREADY = "The base is adapted to another training already: load it again."


class DiffusersModel:
    """A `LatentDiffusion` made of a diffusers U-Net, one CLIP text encoder and an image codec; all frozen."""

    def __init__(
        self,
        family: str,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        *,
        codec: Codec,
        schedule: NoiseSchedule,
        native_size: int,
        device: torch.device | str = "cpu",
        spatial_encoder: SpatialEncoder | None = None,
    ) -> None:
        self.unet: Any = _frozen(unet)
        self.text_encoder: Any = _frozen(text_encoder)
        self.codec: Codec = _frozen(codec)
        self.tokenizer: Any = tokenizer
        self.schedule = schedule
        self.native_size = native_size
        self.latent_channels = int(self.unet.config.in_channels)
        self.factor = codec.factor
        width = int(self.text_encoder.config.hidden_size)
        (self.encoder_name,) = encoder_names([width])
        self.token_widths = {self.encoder_name: width}
        self.spatial_encoders = {self.encoder_name: spatial_encoder} if spatial_encoder else {}
        self.adapter: dict[str, Tensor] = {}
        self.length = int(self.text_encoder.config.max_position_embeddings)
        self.fingerprint = fingerprint_of(family, self.unet.state_dict(), self.text_encoder.state_dict())
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Moves it to a device."""
        self.device = torch.device(device)
        for module in (self.unet, self.text_encoder, self.codec):
            module.to(device)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def save_memory(self, bf16: bool = False, checkpointing: bool = False) -> None:
        """To be trained on in less memory: U-Net and text encoder in bfloat16, weights and activations; the
        U-Net's activations computed again for the gradient instead of kept. Best before `to`, since whole
        weights take more room on the device than a training does.
        """
        if bf16:
            nn.Module.to(self.unet, torch.bfloat16)  # diffusers' own `to` warns here, of nothing
            self.text_encoder.to(torch.bfloat16)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()

    @contextmanager
    def adapting(self, rank: int, generator: torch.Generator) -> Iterator[dict[str, nn.Parameter]]:
        """While active, a low-rank update that can be trained takes part in the U-Net's attention: at first
        zero, in float32 whatever the U-Net's precision. Gives its parameters, named as in an adapter.

        Raises ValueError where the base is adapted already.
        """
        if self.adapter:
            raise ValueError(ADAPTED_ALREADY)
        layers = updated_layers(dict(self.unet.named_modules()))
        with learned_update(layers, rank, generator, self.device) as parameters:
            yield parameters

    @torch.no_grad()
    def adapt(self, adapter: Mapping[str, Tensor]) -> None:
        """Adds an adapter to the U-Net's weights for good, W + up @ down in every layer; the fingerprint
        stays that of the plain weights.

        The same adapter again changes nothing. Raises ValueError where the base holds another one, or none
        should be there, and where layers or shapes do not fit.
        """
        held = self.adapter
        if held.keys() == adapter.keys() and all(torch.equal(held[name], adapter[name]) for name in held):
            return
        if held:
            raise ValueError(ADAPTED_ALREADY)
        layers = dict(self.unet.named_modules())
        updates = {}
        for layer in {name.rpartition(".")[0] for name in adapter}:
            update = adapter[f"{layer}.up"] @ adapter[f"{layer}.down"]
            if layer not in layers or layers[layer].weight.shape != update.shape:
                raise ValueError(
                    f"The adapter does not fit the base, whose {layer} is of another shape or absent: give "
                    "the base that it was trained on."
                )
            updates[layer] = update
        for layer, update in updates.items():
            weight = layers[layer].weight
            weight.copy_(weight.float() + update.to(weight.device))
        self.adapter = {name: tensor.detach().cpu().clone() for name, tensor in adapter.items()}

    def compile(self) -> None:
        """Faster steps, after minutes at the first: the U-Net compiled, with channels last."""
        self.unet.to(memory_format=torch.channels_last)
        self.unet.compile()

    def encode(self, image: Tensor) -> Tensor:
        return self.codec.to(self.device).encode(image.to(self.device))

    def decode(self, latent: Tensor) -> Tensor:
        return self.codec.to(self.device).decode(latent)

    def release_codec(self) -> None:
        self.codec.to("cpu")

    @property
    def _table(self) -> nn.Embedding:
        return self.text_encoder.get_input_embeddings()

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        ids = torch.tensor(self._ids(words), device=self.device)
        return {self.encoder_name: self._table.weight[ids].detach().float()}

    def _ids(self, text: str) -> list[int]:
        if not text.strip():
            return []
        return self.tokenizer(text, add_special_tokens=False, truncation=False).input_ids

    def encode_prompts(self, prompts: list[str], inserted: dict[str, Tensor] | None = None) -> Context:
        vectors = None
        if inserted is not None:
            name = self.encoder_name
            vectors = fitting_vectors(inserted, name, len(prompts), self.token_widths[name])
        count = None if vectors is None else vectors.shape[1]
        start, end, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        rows, starts = [], []
        for prompt in prompts:
            head, tail = split_prompt(prompt, self._ids, start, count, length=self.length)
            starts.append(len(head))
            row = head + [end] * (count or 0) + tail + [end]
            rows.append(row + [pad] * (self.length - len(row)))
        ids = torch.tensor(rows, device=self.device)
        with _inserting(self._table, vectors, starts):
            hidden = self.text_encoder(ids).last_hidden_state.float()
        return Context(hidden, common_columns(starts, count or 0))

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        dtype = self.unet.dtype
        output = self.unet(noisy.to(dtype), t, context.hidden.to(dtype)).sample.to(noisy.dtype)
        if self.schedule.prediction == "epsilon":
            return output
        alpha, sigma = self.schedule.alpha_sigma(t)
        return alpha * output + sigma * noisy

    def reweighted(self, weights: AttentionWeights) -> AbstractContextManager[None]:
        return reweighted(self.unet, weights)


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)


@contextmanager
def _inserting(table: nn.Embedding, vectors: Tensor | None, starts: list[int]) -> Iterator[None]:
    """While active, row b of what `table` looks up holds `vectors[b]` (k,d) from position `starts[b]` on."""
    if vectors is None:
        yield
        return

    def place(_module: nn.Module, _args: Any, looked_up: Tensor) -> Tensor:
        k = vectors.shape[1]
        return torch.stack(
            [
                torch.cat([row[:s], v.to(row.dtype), row[s + k :]])
                for row, v, s in zip(looked_up, vectors, starts, strict=True)
            ]
        )

    handle = table.register_forward_hook(place)
    try:
        yield
    finally:
        handle.remove()


class Codec(nn.Module):
    """Image <-> model latent through any autoencoder, given its two directions."""

    def __init__(
        self,
        vae: nn.Module,
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
        factor: int,
    ) -> None:
        super().__init__()
        self.vae, self.encode, self.decode, self.factor = vae, encode, decode, factor


def kl_codec(vae: Any) -> Codec:
    """diffusers' AutoencoderKL: the posterior's mean times the scaling factor."""
    scale = float(vae.config.scaling_factor)
    return Codec(
        vae,
        lambda image: vae.encode(image).latent_dist.mode() * scale,
        lambda latent: vae.decode(latent / scale).sample,
        2 ** (len(vae.config.block_out_channels) - 1),
    )


def scaled_linear_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """The schedule of a diffusers scheduler configuration; ValueError for unknown prediction types."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"Prediction type {prediction!r} is not known: choose a base with epsilon or v.")
    scheduler: Any = DDIMScheduler.from_config(config)
    return NoiseSchedule(scheduler.alphas_cumprod.float().clone(), prediction)


def load_base(base: str, device: torch.device | str = "cpu") -> DiffusersModel:
    """Loads `tiny`, a diffusers folder, a hub id, or a single-file checkpoint (.safetensors).

    Raises ValueError, in one sentence, when `base` is none of these.
    """
    from .tiny.architecture import is_tiny_base

    if base == "tiny":
        return _load_tiny(device)
    path = Path(base)
    if path.is_file() and is_tiny_base(path):
        return _load_tiny(device, path)
    if path.is_file():
        return _from_pipeline(base, _single_file_pipeline(path), device)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(
            f"{base} is no diffusers model: it has no model_index.json; name the folder that has."
        )
    if not path.is_dir() and (path.suffix in CHECKPOINTS or not HUB_ID.fullmatch(base)):
        raise ValueError(
            f"Base model {base!r} does not exist: give 'tiny', a diffusers folder, a hub id "
            "('owner/name') or a .safetensors checkpoint."
        )
    return _from_pipeline(base, _folder_pipeline(base), device)


def load_onto(base: DiffusersModel, path: Path) -> Learned:
    """Reads an artifact for use on a base, which is adapted as it was when the artifact was trained.

    Raises ValueError as `load_artifact` and `DiffusersModel.adapt` do.
    """
    learned = load_artifact(path, base.fingerprint)
    base.adapt(learned.adapter)
    return learned


def _load_tiny(device: torch.device | str, path: Path | None = None) -> DiffusersModel:
    from .tiny import architecture

    tiny = architecture.load_tiny_base(path or architecture.WEIGHTS)
    codec = Codec(tiny.vae, tiny.vae.encode, tiny.vae.decode, architecture.FACTOR)
    return DiffusersModel(
        "tiny",
        tiny.unet,
        tiny.text_encoder,
        tiny.tokenizer,
        codec=codec,
        schedule=scaled_linear_schedule(architecture.SCHEDULE),
        native_size=architecture.NATIVE_SIZE,
        device=device,
        spatial_encoder=tiny.spatial_encoder,
    )


def _folder_pipeline(base: str) -> Any:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it warns of while it looks, the error below says
    try:
        return StableDiffusionPipeline.from_pretrained(
            base, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" (")[0]
        where = "" if Path(base).is_dir() else ", which is no folder here,"
        raise ValueError(
            f"Base model {base!r}{where} cannot be loaded as Stable Diffusion 1.x or 2.x: {reason}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _single_file_pipeline(path: Path) -> Any:
    from .single_file import load_single_file

    return load_single_file(path)


def _from_pipeline(base: str, pipeline: Any, device: torch.device | str) -> DiffusersModel:
    unet, width = pipeline.unet, pipeline.text_encoder.config.hidden_size
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError(
            f"{base} has no plain text-to-image U-Net (it takes {unet.config.in_channels} channels): "
            "choose a checkpoint that is not for inpainting."
        )
    if unet.config.cross_attention_dim != width:
        raise ValueError(
            f"The U-Net of {base} reads text of width {unet.config.cross_attention_dim} but its text encoder "
            f"gives {width}: choose a Stable Diffusion 1.x or 2.x model."
        )
    for module in (unet, pipeline.text_encoder, pipeline.vae):
        module.float()
    codec = kl_codec(pipeline.vae)
    native = int(unet.config.sample_size) * codec.factor
    return DiffusersModel(
        family_of([width]),
        unet,
        pipeline.text_encoder,
        pipeline.tokenizer,
        codec=codec,
        schedule=scaled_linear_schedule(dict(pipeline.scheduler.config)),
        native_size=native,
        device=device,
    )
