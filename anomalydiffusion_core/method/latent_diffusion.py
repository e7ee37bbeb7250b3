"""What the method asks of a frozen base model: latents, prompts with inserted vectors, noise prediction.

The package talks to a base through `LatentDiffusion`, and learns updates of it through `Adaptable`; each host
implements both once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .attention import Columns
from .reweighting import AttentionWeights
from .spatial_encoder import SpatialEncoder

PLACEHOLDER = "{}"


@dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving schedule: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps.

    `alphas_cumprod` is (T,) float32 on CPU; `prediction` is what the U-Net was trained to output.
    """

    alphas_cumprod: Tensor
    prediction: Literal["epsilon", "v_prediction"]

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise factors (B,1,1,1) at timesteps t (B,), fractional ones interpolated in log SNR."""
        table = self.alphas_cumprod.double()
        log_snr = (table / (1 - table)).log().float().to(t.device)
        position = t.float().clamp(0, self.steps - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=self.steps - 1)
        mixed = torch.lerp(log_snr[low], log_snr[high], position - low)[:, None, None, None]
        return torch.sigmoid(mixed).sqrt(), torch.sigmoid(-mixed).sqrt()

    def add_noise(self, latent: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """q(z_t | z_0) with the given noise; shapes (B,C,h,w), t (B,)."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * latent + sigma * noise

    def clean_latent(self, noisy: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z0_hat from z_t and predicted noise."""
        alpha, sigma = self.alpha_sigma(t)
        return (noisy - sigma * eps) / alpha

    def loss_weight(self, t: Tensor) -> Tensor:
        """Factor (B,1,1,1) from squared noise error to squared error of what the base predicts.

        1 for epsilon; 1 / abar_t for v, since v_hat - v = (eps_hat - eps) / sqrt(abar_t) at equal z_t.
        """
        alpha, _ = self.alpha_sigma(t)
        return torch.ones_like(alpha) if self.prediction == "epsilon" else alpha**-2


@dataclass(frozen=True)
class Fingerprint:
    """Which base an artifact was trained on: architecture family, and a hash of the weights. `signs` is a
    hash of theirs, which stay whatever precision a host loads the weights in; "" where an earlier version
    wrote none.
    """

    family: str
    weights: str
    signs: str = ""

    def same_weights(self, other: Fingerprint) -> bool:
        """Whether both are of the same weights, in whichever precision they were loaded."""
        return self.weights == other.weights or bool(self.signs and self.signs == other.signs)


def fingerprint_of(family: str, *states: Mapping[str, Tensor]) -> Fingerprint:
    """That of state dicts in diffusers' and transformers' names."""
    return Fingerprint(family, hash_weights(*states), _hash_sampled(states, signs=True))


def hash_weights(*states: Mapping[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) over names, shapes and a thin sample of values of state dicts in diffusers' and
    transformers' names: quick, and the same in every host.
    """
    return _hash_sampled(states, signs=False)


def _hash_sampled(states: tuple[Mapping[str, Tensor], ...], signs: bool) -> str:
    digest, count = hashlib.sha256(), 256 if signs else 64  # a sign tells less than a value
    for state in states:
        # transformers 5 dropped the prefix
        for name, tensor in sorted((key.removeprefix("text_model."), value) for key, value in state.items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // count)].float().cpu()
            values = sample.signbit() if signs else sample  # that of a value which became zero stays
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def fitting_vectors(inserted: dict[str, Tensor], encoder: str, rows: int, width: int) -> Tensor:
    """The vectors (B,k,d) of one text encoder; raises ValueError when they do not fit `rows` and `width`."""
    shapes = {name: tuple(vectors.shape) for name, vectors in inserted.items()}
    shape = shapes.get(encoder, ())
    if len(shape) != 3 or shape[0] != rows or shape[2] != width:
        raise ValueError(f"Vectors {shapes} do not fit: {encoder!r} of this base takes ({rows}, k, {width}).")
    return inserted[encoder]


def split_prompt(
    prompt: str, ids: Callable[[str], list[int]], start: int, count: int | None, *, length: int
) -> tuple[list[int], list[int]]:
    """Token ids before and after `count` inserted vectors (None: none), cut so that an end token still fits.

    `ids` tokenises words; `start` begins the prompt; `length` is the text encoder's. Raises ValueError when
    the prompt lacks `{}`, has it without vectors, or leaves no room.
    """
    before, placeholder, after = prompt.partition(PLACEHOLDER)
    if bool(placeholder) != (count is not None):
        raise ValueError(f"Prompt {prompt!r} must hold {PLACEHOLDER} exactly when vectors are inserted.")
    head, room = [start, *ids(before)], length - 1 - (count or 0)
    if count is not None and len(head) > room:
        raise ValueError(f"Prompt {prompt!r} leaves no room for {count} vectors in {length} tokens.")
    return head[:room], ids(after)[: max(0, room - len(head))]


def common_columns(starts: list[int], count: int) -> Columns:
    """Where `count` inserted vectors stand: row by row, or one slice where that is the same in all rows."""
    slices = tuple(slice(start, start + count) for start in starts)
    return slices[0] if len(set(starts)) == 1 else slices


@dataclass(frozen=True)
class Context:
    """Cross-attention input `hidden` (B,T,D), and the columns [start, stop) that inserted vectors occupy.

    `columns` is one slice, or one per row where the prompts put the vectors at different places. `pooled`
    (B,d) is the prompt as a whole, for bases that ask for it (SDXL).
    """

    hidden: Tensor
    columns: Columns
    pooled: Tensor | None = None


class LatentDiffusion(Protocol):
    """A frozen text-conditional latent diffusion model. Images are (B,3,H,W) in [-1,1]."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def token_widths(self) -> dict[str, int]:
        """Per text encoder, by ComfyUI's names: {"clip_l": 768}."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        ...

    @property
    def native_size(self) -> int:
        """Pixels per side that the base was trained at."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """What the U-Net computes in."""
        ...

    @property
    def spatial_encoders(self) -> dict[str, SpatialEncoder]:
        """Pre-trained E of the base per text encoder, or none."""
        ...

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The low-rank update that its weights hold (`Learned.adapter`), or none."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> model latent (B,C,H/f,W/f); the distribution's mean, no sampling."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Model latent (B,C,h,w) -> (B,3,H,W), about [-1,1]."""
        ...

    def release_codec(self) -> None:
        """Takes the autoencoder off the device, until `encode` or `decode` needs it again."""
        ...

    def word_vectors(self, words: str) -> dict[str, Tensor]:
        """The token table's rows (n,d) of some words, per text encoder."""
        ...

    def encode_prompts(self, prompts: list[str], inserted: dict[str, Tensor] | None = None) -> Context:
        """Prompts -> context (B,T,D), differentiable in `inserted`.

        `inserted` holds vectors (B,k,d) per text encoder. They take the place of `{}` in each prompt before
        positions are added; what follows shifts right and is cut at the encoder's length.
        Raises ValueError when a prompt lacks `{}` or the vectors do not fit.
        """
        ...

    def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        """eps_theta (B,C,h,w), differentiable in `context`; timesteps t (B,) may be fractional."""
        ...

    def reweighted(self, weights: AttentionWeights) -> AbstractContextManager[None]:
        """While active, cross-attention obeys `weights` as they stand at each evaluation."""
        ...


@runtime_checkable
class Adaptable(LatentDiffusion, Protocol):
    """A base that a low-rank update of its attention can be learned for (`method.low_rank`)."""

    def adapting(
        self, rank: int, generator: torch.Generator
    ) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """While active, an update that can be trained takes part in the U-Net's attention, at first zero:
        its parameters. Raises ValueError where the base is adapted already.
        """
        ...

    def adapt(self, adapter: Mapping[str, Tensor]) -> None:
        """Lays an update on the base; none, or the same one again, changes nothing. Raises ValueError where
        it does not fit, or the base holds another.
        """
        ...
