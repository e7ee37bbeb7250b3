"""Pre-training of the embedded base: autoencoder by least squares, then text encoder and U-Net by
v-prediction.

Latents of a pool of procedural scenes are computed once; most steps see 128 px, some 256 px at a quarter of
the batch. A share of each batch is for learning places (see `location.PLACE_FROM`). Runs are bounded by
wall-clock time, save every few minutes, and resume.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..bases.diffusers_model import load_base
from ..bases.tiny import architecture as arch
from ..bases.tiny.autoencoder import LappedAutoencoder, train_autoencoder
from ..method.artifact import save_artifact, write_atomically
from ..method.latent_diffusion import hash_weights
from ..method.templates import MASK_TEMPLATES
from ..procedural.scenes import caption_words, draw_scene
from ..training.config import EncoderTrainingConfig, PlacesConfig, WordsConfig
from ..training.places import PLACE_FROM
from .sample_sheet import sample_sheet

log = logging.getLogger(__name__)
LARGE = 0.05  # of the latent cells: smaller defects say little about their place at the noisiest timesteps
PHOTO_PLACE_FROM = 600  # the same of photos, whose defects noise hides sooner (see `PLACE_FROM`)
SMALLEST = 6  # latent cells (see `loss_weights`)
WORKERS = os.cpu_count() or 1
MASK_WORDS = MASK_TEMPLATES[0].partition("{")[0]


@dataclass(frozen=True)
class Recipe:
    """How long and on how much: one for 2 CPU cores, one for a GPU."""

    minutes: float = 120.0  # of U-Net training
    scenes: int = 40_000  # 128 px scenes in the pool
    large_scenes: int = 10_000  # 256 px scenes in the pool
    large_share: float = 0.4  # of steps at 256 px, with a quarter of the batch
    batch_size: int = 16
    learning_rate: float = 8e-4
    text_share: float = 0.2  # of that rate for the text encoder (see `fresh_text_encoder`)
    warmup_steps: int = 300
    ema_decay: float = 0.999
    caption_dropout: float = 0.1  # share of empty captions, for classifier-free guidance
    place_share: float = 0.5  # of each batch: large defects, a quarter pictures of masks, at noisy timesteps
    defect_share: float = 0.5  # of the loss in the defect's cells, at first (see `loss_weights`)
    emphasis_until: float = 0.6  # share of the run after which all cells weigh alike
    autoencoder_scenes: int = 4_000
    autoencoder_steps: int = 1_800
    save_minutes: float = 5.0
    location_minutes: float = 12.0  # of training the spatial encoder on places, after the rest
    location_scenes: int = 6_000
    seed: int = 1


RECIPES = {
    "cpu": Recipe(),
    "gpu": Recipe(
        minutes=12,
        scenes=200_000,
        large_scenes=20_000,
        batch_size=256,
        warmup_steps=1_000,
        ema_decay=0.9995,
        place_share=0.25,
        save_minutes=3,
        location_minutes=1.5,
    ),
}


@dataclass
class Pool:
    """`latents` (N,C,h,w) half, `touched` (N,1,h,w) bool = cells a defect touches, `ids` (N,77) rows of
    `token_ids`, `pictured` (N,) bool = mask pictures.
    """

    latents: Tensor
    touched: Tensor
    ids: Tensor
    pictured: Tensor

    def to(self, device: str) -> Pool:
        """The pool on a device."""
        return Pool(*(getattr(self, field.name).to(device) for field in fields(self)))

    @cached_property
    def pictures(self) -> Tensor:
        """Rows (K,) of pictures of large masks."""
        return torch.nonzero(self.pictured & self._large)[:, 0]

    @cached_property
    def photos(self) -> Tensor:
        """Rows (K,) of photos of large defects."""
        return torch.nonzero(~self.pictured & self._large)[:, 0]

    @property
    def _large(self) -> Tensor:
        return self.touched.float().mean((1, 2, 3)) > LARGE


class _Scenes(torch.utils.data.Dataset[tuple[Tensor, Tensor, str]]):
    def __init__(self, seed: int, count: int, size: int) -> None:
        self.seed, self.count, self.size = seed, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        scene = draw_scene(self.seed, index, self.size)
        return torch.from_numpy(scene.image), torch.from_numpy(scene.mask), scene.caption


def scene_batches(
    seed: int, count: int, size: int, batch: int = 64
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Images (B,3,n,n) in [-1,1], masks (B,1,n,n) bool and captions of the first `count` scenes."""
    loader = torch.utils.data.DataLoader(_Scenes(seed, count, size), batch_size=batch, num_workers=WORKERS)
    for images, masks, captions in loader:
        # BHWC -> BCHW
        yield images.permute(0, 3, 1, 2).float() / 127.5 - 1, masks[:, None], list(captions)


def caption_vocabulary(tokenizer: Any, captions: list[str]) -> Tensor:
    """Sorted CLIP token ids that occur, with start and end of text last."""
    ids = {i for caption in captions for i in tokenizer(caption.replace("{}", " ")).input_ids}
    return torch.tensor(sorted(ids | {49406, 49407}), dtype=torch.int32)


class _PoolRows(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """What a pool keeps of each scene, made in the workers."""

    def __init__(self, vae: LappedAutoencoder, tokenizer: Any, token_ids: Tensor, scenes: _Scenes) -> None:
        self.vae, self.tokenizer, self.scenes = vae, tokenizer, scenes
        self.rows = torch.zeros(arch.VOCABULARY, dtype=torch.int16)
        self.rows[token_ids.long()] = torch.arange(len(token_ids), dtype=torch.int16)

    def __len__(self) -> int:
        return len(self.scenes)

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, mask, caption = self.scenes[index]
        latent = self.vae.encode(image.permute(2, 0, 1)[None].float() / 127.5 - 1)[0]  # HWC -> CHW
        tokens = self.tokenizer(caption, padding="max_length", max_length=77, truncation=True).input_ids
        touched = F.max_pool2d(mask[None].float(), 8) > 0
        return latent.half(), touched, self.rows[torch.tensor(tokens)], torch.tensor(MASK_WORDS in caption)


def make_pool(
    vae: LappedAutoencoder, tokenizer: Any, token_ids: Tensor, seed: int, count: int, size: int
) -> Pool:
    """Draws `count` scenes of `size` pixels and keeps their latents and captions."""
    rows = _PoolRows(vae, tokenizer, token_ids, _Scenes(seed, count, size))
    parts = []
    for part in torch.utils.data.DataLoader(rows, batch_size=64, num_workers=WORKERS):
        parts.append([tensor.clone() for tensor in part])  # out of the workers' shared memory
        if len(parts) % 100 == 0:
            log.info("pool %d px: %d of %d scenes", size, len(parts) * 64, count)
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))


def pretrain(
    recipe: Recipe, out: Path, resume: Path | None = None, device: str = "cpu", bf16: bool = True
) -> Path:
    """Trains a base and writes `out/tiny_base.safetensors` (averaged weights, float16) with its loss curve,
    its spatial encoder, and a sample sheet.

    With `resume`, all weights and the autoencoder are taken from that base file (its latent space stays).
    """
    from diffusers.models.attention_processor import AttnProcessor

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = arch.load_tokenizer()
    token_ids = caption_vocabulary(tokenizer, caption_words())
    vae = arch.load_autoencoder(resume) if resume else _cached_autoencoder(recipe, out)
    pools = _cached_pools(recipe, out, vae, tokenizer, token_ids)
    model = nn.ModuleDict({"unet": arch.build_unet(), "text_encoder": fresh_text_encoder(len(token_ids))})
    if resume:
        model["unet"].load_state_dict(arch.read_weights(resume, "unet"))
        words = arch.select_vocabulary(arch.read_weights(resume, "text_encoder"), token_ids)
        arch.load_text_state(model["text_encoder"], words)  # type: ignore
    if device == "cpu":  # the fused kernel's backward is slow there: a step takes 0.83 of the time without it
        model["unet"].set_attn_processor(AttnProcessor())  # type: ignore[operator]
    trainer = _Trainer(recipe, model.to(device), pools, token_ids, device, bf16)
    encoder = arch.read_weights(resume, "spatial_encoder") if resume else {}
    curve: list[dict[str, float]] = []
    for row in trainer.run():
        curve.append(row)
        if row["save"]:
            path = out / "tiny_base.safetensors"
            save_base(path, trainer.average, vae, token_ids, recipe, int(row["step"]), encoder)
            (out / "curve.json").write_text(json.dumps({"recipe": asdict(recipe), "curve": curve}))
    finish(out, recipe, device)
    return out / "tiny_base.safetensors"


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


def finish(out: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Trains the spatial encoder of `out/tiny_base.safetensors`, learns the demo's embeddings on it, and
    draws loss curve and sample sheet beside it.
    """
    from ..training.places import train_encoder
    from .demo import demo_embeddings

    path = out / "tiny_base.safetensors"
    base = load_base(str(path), device)
    if recipe.location_minutes:
        minutes, seed = recipe.location_minutes, recipe.seed + 100
        words = WordsConfig(minutes=minutes, seed=seed)
        places = PlacesConfig(steps=10**6, minutes=minutes, seed=seed)
        config = EncoderTrainingConfig(words, places, recipe.location_scenes)
        outcome = train_encoder(base, config)
        outcome.end.check()
        record: Any = outcome.learned.training["places"]
        log.info("location: %d steps, loss %.4f", record["steps"], np.mean(record["loss"][-100:]))
        arch.add_spatial_encoder(path, next(iter(outcome.learned.spatial_encoders.values())))
        learned = demo_embeddings(load_base(str(path), device))
        save_artifact(learned, out / arch.DEMO_EMBEDDINGS.name, torch.float16)
    draw_curve(json.loads((out / "curve.json").read_text())["curve"], out / "curve.png")
    sample_sheet(base, arch.NATIVE_SIZE).save(out / "sheet.png")


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """The training loss over steps as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    ax = figure.subplots()
    ax.plot([row["step"] for row in curve[:-1]], [row["loss"] for row in curve[:-1]])
    ax.set(xlabel="step", ylabel="weighted v-prediction loss", title=f"{curve[-1]['minutes']:.0f} minutes")
    figure.savefig(path, dpi=110)


def _cached_autoencoder(recipe: Recipe, out: Path) -> LappedAutoencoder:
    vae = LappedAutoencoder(arch.LATENT_CHANNELS)
    path = (
        out / f"autoencoder_{recipe.seed}_{recipe.autoencoder_scenes}_{recipe.autoencoder_steps}.safetensors"
    )
    if path.exists():
        vae.load_state_dict(load_file(path))
        return vae
    batches = list(scene_batches(recipe.seed + 1, recipe.autoencoder_scenes, 128))
    generator = torch.Generator().manual_seed(recipe.seed)
    losses = train_autoencoder(vae, torch.cat([b[0] for b in batches]), recipe.autoencoder_steps, generator)
    log.info("autoencoder: %.2f dB", 10 * np.log10(4 / np.mean(losses[-50:])))
    save_file({key: tensor.contiguous() for key, tensor in vae.state_dict().items()}, path)
    return vae


def _cached_pools(
    recipe: Recipe, out: Path, vae: LappedAutoencoder, tokenizer: Any, token_ids: Tensor
) -> list[Pool]:
    pools, space = [], hash_weights(vae.state_dict())[:8]  # latents of another autoencoder are of no use
    for size, count in ((128, recipe.scenes), (256, recipe.large_scenes)):
        path = out / f"pool_{size}_{recipe.seed}_{count}_{space}.safetensors"
        if not path.exists():
            save_file(vars(make_pool(vae, tokenizer, token_ids, recipe.seed, count, size)), path)
        pools.append(Pool(**load_file(path)))
    return pools


def save_base(
    path: Path,
    model: nn.ModuleDict,
    vae: LappedAutoencoder,
    token_ids: Tensor,
    recipe: Recipe,
    step: int,
    encoder: dict[str, Tensor],
) -> None:
    """Writes a base file atomically; `encoder` is the state of a spatial encoder, or empty."""
    state = {f"unet.{k}": v for k, v in model["unet"].state_dict().items()}
    state |= {f"text_encoder.{k}": v for k, v in arch.text_state(model["text_encoder"]).items()}  # type: ignore
    state |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    state |= {f"spatial_encoder.{k}": v for k, v in encoder.items()}
    half = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    half["text_encoder.token_ids"] = token_ids
    metadata = {"format": arch.FORMAT, "step": str(step), "recipe": json.dumps(asdict(recipe))}
    write_atomically(path, half, metadata)


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


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        model: nn.ModuleDict,
        pools: list[Pool],
        token_ids: Tensor,
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

    def _step(self, rate: float, defect_share: float, step: int) -> Tensor:
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
        z0 = pool.latents[rows].float()
        weight = loss_weights(pool.touched[rows], defect_share)
        t = t.long()
        noise = torch.randn(z0.shape, generator=g, device=device)
        alpha = self.alphas_cumprod[t].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas_cumprod[t]).sqrt()[:, None, None, None]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.bf16):
            context = self.model["text_encoder"](ids).last_hidden_state
            v = self.unet(alpha * z0 + sigma * noise, t, context).sample
        loss = (weight * (v.float() - (alpha * noise - sigma * z0)).square()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            average = get_ema_multi_avg_fn(decay)
            average(list(self.average.parameters()), list(self.model.parameters()), step)
        return loss.detach()
