"""The reference of the training benchmark: what one step of diffusers' textual_inversion.py example computes.

New tokens are rows of an ordinary token table, and the whole table is optimised: photos are read, resized and
flipped for every step, encoded with sampled latents, and after each update all other rows are put back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomHorizontalFlip

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES

LEARNING_RATE = 5e-3
REPEATS = 100  # of every photo in an epoch, the example's default


class Photos(Dataset[dict[str, Tensor]]):
    """Photo `pixels` (3,S,S) in [-1,1] and prompt `ids` (T,), both made anew at every access."""

    def __init__(self, files: list[Path], size: int, tokenizer: Any, placeholder: str) -> None:
        self.files, self.size, self.tokenizer, self.placeholder = files, size, tokenizer, placeholder
        self.flip = RandomHorizontalFlip(0.5)

    def __len__(self) -> int:
        return REPEATS * len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        photo = Image.open(self.files[index % len(self.files)]).convert("RGB")
        photo = self.flip(photo.resize((self.size, self.size), Image.Resampling.BICUBIC))
        pixels = np.array(photo, dtype=np.uint8)
        ids = self.tokenizer(
            random.choice(PHOTO_TEMPLATES).format(self.placeholder),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids[0]
        # HWC -> CHW
        return {
            "pixels": torch.from_numpy((pixels / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1),
            "ids": ids,
        }


def sampling_encoder(base: DiffusersModel) -> Callable[[Tensor], Tensor]:
    """Encodes pixels (B,3,S,S) in [-1,1] as both references do: latents drawn from their distribution, the
    autoencoder in the U-Net's precision, which it is brought to here.
    """
    if base.fingerprint.family == "tiny":  # its autoencoder has no distribution to sample
        return torch.no_grad()(base.encode)
    vae: Any = nn.Module.to(base.codec.vae, base.unet.dtype)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        posterior = vae.encode(pixels.to(base.device, vae.dtype)).latent_dist
        return posterior.sample().float() * vae.config.scaling_factor

    return encode


class TextualInversion:
    """The example's training loop, one `step` at a time; takes over the base's text encoder and tokenizer."""

    def __init__(
        self, base: DiffusersModel, files: list[Path], batch: int, size: int, *, tokens: int
    ) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.base, self.device = base, base.device
        self.dtype, self.encode = base.unet.dtype, sampling_encoder(base)
        self.scheduler: Any = DDPMScheduler(
            trained_betas=_betas(base.schedule.alphas_cumprod), prediction_type=base.schedule.prediction
        )
        # what is trained is in full precision, in the example, too
        self.text_encoder, tokenizer = base.text_encoder.float(), base.tokenizer
        self.placeholders = self._add_placeholders(tokenizer, [f"<defect_{i}>" for i in range(tokens)])
        self.text_encoder.requires_grad_(False).train()
        self.table = self.text_encoder.get_input_embeddings().requires_grad_(True)
        self.original = self.table.weight.detach().clone()
        self.optimizer = torch.optim.AdamW(self.table.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        words = " ".join(tokenizer.convert_ids_to_tokens(self.placeholders))
        photos = Photos(files, size, tokenizer, words)
        self.loader = DataLoader(photos, batch, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)

    def _add_placeholders(self, tokenizer: Any, names: list[str]) -> list[int]:
        tokenizer.add_tokens(names)
        ids = tokenizer.convert_tokens_to_ids(names)
        self.text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = self.text_encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[ids] = table[tokenizer.encode("defect", add_special_tokens=False)[0]].clone()
        return ids

    def _next_batch(self) -> dict[str, Tensor]:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)

    def step(self) -> float:
        """Trains once; returns the loss."""
        batch = self._next_batch()
        latents = self.encode(batch["pixels"])
        noise = torch.randn_like(latents)
        steps = self.scheduler.config.num_train_timesteps
        t = torch.randint(0, steps, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, t)
        context = self.text_encoder(batch["ids"].to(self.device))[0]
        prediction = self.base.unet(noisy.to(self.dtype), t, context.to(self.dtype)).sample
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, t) if velocity else noise
        loss = F.mse_loss(prediction.float(), target.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._put_back_other_rows()
        return loss.detach().item()

    def _put_back_other_rows(self) -> None:
        others = torch.ones(len(self.table.weight), dtype=torch.bool, device=self.device)
        others[min(self.placeholders) : max(self.placeholders) + 1] = False
        with torch.no_grad():
            self.table.weight[others] = self.original[others]


def _betas(alphas_cumprod: Tensor) -> list[float]:
    products = alphas_cumprod.double()
    return (1 - products / torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])).tolist()
