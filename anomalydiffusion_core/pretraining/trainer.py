"""Training of the embedded base's text encoder and U-Net by v-prediction, on pools of scenes.

Most steps see 128 px, some 256 px at a quarter of the batch. A share of each batch is for learning places:
scenes of large defects at the noisiest timesteps, where words alone say the place (see
`training.places.PLACE_FROM`).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..bases.tiny import architecture as arch
from ..training.places import PLACE_FROM
from .recipe import Recipe
from .scene_pool import Pool

log = logging.getLogger(__name__)
PHOTO_PLACE_FROM = 600  # the same of photos, whose defects noise hides sooner (see `PLACE_FROM`)
SMALLEST = 6  # latent cells (see `loss_weights`)


def fresh_text_encoder(vocabulary: int) -> nn.Module:
    """CLIP's initialisation, with token and position vectors large enough to be seen.

    CLIP's own start at a twentieth of what the first attention layer adds to them. Trained so at the
    U-Net's rate, the layers add one huge constant vector, beside which words, and inserted vectors, vanish.
    """
    text_encoder = arch.build_text_encoder(vocabulary)
    for name, parameter in text_encoder.named_parameters():
        for table, std in (("token_embedding", 0.4), ("position_embedding", 0.2)):
            if f"{table}.weight" in name:
                nn.init.normal_(parameter, std=std)
    return text_encoder


def loss_weights(touched: Tensor, share: float) -> Tensor:
    """Weights (B,1,h,w) of mean 1 a sample: `share` of the loss from the cells `touched` (B,1,h,w) by a
    defect, so that a scratch counts as much as a stain, the rest from all cells alike.

    Words for defects are learned sooner so. But weights that depend on what is to be predicted bias the
    estimate towards it: thin defects grow into clouds. Hence `Recipe.emphasis_until`.
    Defects below `SMALLEST` cells count as that large; without a defect all weights are 1.
    """
    area = touched.sum((1, 2, 3), keepdim=True).clamp(min=SMALLEST)
    weight = 1 - share + share * touched * touched[0].numel() / area
    return weight / weight.mean((1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class SceneBatch:
    """Clean latents `z0` (B,C,h,w), timesteps `t` (B,), rows `ids` (B,77) of the token table, and the weights
    (B,1,h,w) of the loss.
    """

    z0: Tensor
    t: Tensor
    ids: Tensor
    weight: Tensor


class Trainer:
    """Trains `model`, a U-Net and a text encoder, and keeps the running average of its weights."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.ModuleDict,
        pools: list[Pool],
        token_ids: Tensor,
        *,
        device: str,
        bf16: bool,
    ) -> None:
        self.recipe, self.model, self.device, self.bf16 = recipe, model, device, bf16
        self.pools = [pool.to(device) for pool in pools]
        self.unet = (
            torch.compile(model["unet"], dynamic=False) if device.startswith("cuda") else model["unet"]
        )
        self.average = copy.deepcopy(model).requires_grad_(False)
        groups = [
            {"params": model["unet"].parameters(), "share": 1.0},
            {"params": model["text_encoder"].parameters(), "share": recipe.text_share},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        betas = (
            torch.linspace(arch.SCHEDULE["beta_start"] ** 0.5, arch.SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
        )
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).to(device)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.sizes = np.random.default_rng(recipe.seed)
        length = len(token_ids)
        self.empty_caption = torch.full((77,), length - 1, device=device)
        self.empty_caption[0] = length - 2

    def run(self) -> Iterator[dict[str, float]]:
        """Trains until the time is up; yields the mean loss every 100 steps, and whether a save is due."""
        recipe, start, step = self.recipe, time.monotonic(), 0
        last_save, losses, mean = start, [], 0.0
        while (done := (time.monotonic() - start) / 60 / recipe.minutes) < 1:
            rate = recipe.learning_rate * min(1, (step + 1) / recipe.warmup_steps)
            rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * done))
            share = recipe.defect_share if done < recipe.emphasis_until else 0.0
            losses.append(self._step(float(rate), share, step))
            step += 1
            if step % 100 == 0:
                mean = float(torch.stack(losses).mean())
                save = time.monotonic() - last_save > 60 * recipe.save_minutes
                log.info("step %d  loss %.4f  rate %.1e  %.0f %%", step, mean, rate, 100 * done)
                yield {
                    "step": step,
                    "loss": mean,
                    "rate": float(rate),
                    "save": float(save),
                    "minutes": (time.monotonic() - start) / 60,
                }
                losses = []
                last_save = time.monotonic() if save else last_save
        yield {
            "step": step,
            "loss": float(torch.stack(losses).mean()) if losses else mean,
            "rate": 0.0,
            "save": 1.0,
            "minutes": recipe.minutes,
        }

    def _drawn(self, defect_share: float) -> SceneBatch:
        """A batch of one of the pools: its first scenes are for learning places."""
        recipe, g, device = self.recipe, self.generator, self.device
        large = self.sizes.random() < recipe.large_share
        pool, batch = (
            (self.pools[1], max(1, recipe.batch_size // 4)) if large else (self.pools[0], recipe.batch_size)
        )
        rows = torch.randint(len(pool.latents), (batch,), generator=g, device=device)
        # stratified timesteps: one in each of B equal strata
        strata = torch.arange(batch, device=device) + torch.rand(batch, generator=g, device=device)
        t = strata / batch * 1000
        t = t[torch.randperm(batch, generator=g, device=device)]
        places = round(recipe.place_share * batch)
        pictures = -(-places // 4)
        for part, from_t, choice in (
            (slice(pictures), PLACE_FROM, pool.pictures),
            (slice(pictures, places), PHOTO_PLACE_FROM, pool.photos),
        ):
            if len(choice):
                count = len(rows[part])
                rows[part] = choice[torch.randint(len(choice), (count,), generator=g, device=device)]
                t[part] = from_t + (1000 - from_t) * torch.rand(count, generator=g, device=device)
        dropped = torch.rand(batch, generator=g, device=device) < recipe.caption_dropout
        ids = torch.where(dropped[:, None], self.empty_caption, pool.ids[rows].long())
        weight = loss_weights(pool.touched[rows], defect_share)
        return SceneBatch(pool.latents[rows].float(), t.long(), ids, weight)

    def _step(self, rate: float, defect_share: float, step: int) -> Tensor:
        """One step of v-prediction (Salimans and Ho, 2022): v = alpha eps - sigma z0."""
        batch = self._drawn(defect_share)
        noise = torch.randn(batch.z0.shape, generator=self.generator, device=self.device)
        alpha = self.alphas_cumprod[batch.t].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas_cumprod[batch.t]).sqrt()[:, None, None, None]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            context = self.model["text_encoder"](batch.ids).last_hidden_state
            v = self.unet(alpha * batch.z0 + sigma * noise, batch.t, context).sample
        loss = (batch.weight * (v.float() - (alpha * noise - sigma * batch.z0)).square()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.recipe.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            average = get_ema_multi_avg_fn(decay)
            average(list(self.average.parameters()), list(self.model.parameters()), step)
        return loss.detach()
