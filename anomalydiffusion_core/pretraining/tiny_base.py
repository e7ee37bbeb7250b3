"""Pre-training of the embedded base: autoencoder by least squares, then text encoder and U-Net, then the
spatial encoder.

Latents of a pool of procedural scenes are computed once. Runs are bounded by wall-clock time, save every few
minutes, and resume.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..bases.diffusers_model import load_base
from ..bases.tiny import architecture as arch
from ..bases.tiny.autoencoder import LappedAutoencoder, train_autoencoder
from ..method.artifact import save_artifact, write_atomically
from ..method.latent_diffusion import hash_weights
from ..procedural.photographed import Photographs
from ..procedural.scenes import SCENES, caption_words
from ..training.config import EncoderTrainingConfig, PlacesConfig, WordsConfig
from .recipe import Recipe
from .sample_sheet import sample_sheet
from .scene_pool import Pool, SceneEncoder, caption_vocabulary, make_pool, scene_batches
from .trainer import Trainer, fresh_text_encoder

log = logging.getLogger(__name__)


def pretrain(
    recipe: Recipe,
    out: Path,
    resume: Path | None = None,
    device: str = "cpu",
    *,
    textures: Path | None = None,
) -> Path:
    """Trains a base and writes `out/tiny_base.safetensors` (averaged weights, float16) with its loss curve,
    its spatial encoder, and a sample sheet.

    Of `textures`, a folder of photographs (`procedural.photographed`), a share of the surfaces is made. With
    `resume`, all weights and the autoencoder are taken from that base file (its latent space stays).
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = arch.load_tokenizer()
    photographs = Photographs.of(textures) if textures else None
    token_ids = caption_vocabulary(tokenizer, caption_words(photographs))
    vae = arch.load_autoencoder(resume) if resume else _cached_autoencoder(recipe, out, photographs)
    scene_encoder = SceneEncoder(vae, tokenizer, token_ids)
    pools = _cached_pools(recipe, out, scene_encoder, photographs)
    model = _new_model(token_ids, resume, device)
    # most processors take longer for bfloat16 than for float32
    trainer = Trainer(recipe, model.to(device), pools, token_ids, device=device, bf16=device != "cpu")
    spatial_encoder = arch.read_weights(resume, "spatial_encoder") if resume else {}
    path, curve = out / "tiny_base.safetensors", list[dict[str, float]]()
    for row in trainer.run():
        curve.append(row)
        if row["save"]:
            save_base(
                path,
                trainer.average,
                scene_encoder,
                recipe,
                step=int(row["step"]),
                spatial_encoder=spatial_encoder,
            )
            (out / "curve.json").write_text(
                json.dumps({"recipe": asdict(recipe), "curve": curve}), encoding="utf-8"
            )
    finish(out, recipe, device)
    return path


def _new_model(token_ids: Tensor, resume: Path | None, device: str) -> nn.ModuleDict:
    """U-Net and text encoder, fresh or those of the base file `resume`."""
    from diffusers.models.attention_processor import AttnProcessor

    model = nn.ModuleDict({"unet": arch.build_unet(), "text_encoder": fresh_text_encoder(len(token_ids))})
    if resume:
        model["unet"].load_state_dict(arch.read_weights(resume, "unet"))
        words = arch.select_vocabulary(arch.read_weights(resume, "text_encoder"), token_ids)
        arch.load_text_state(model["text_encoder"], words)  # type: ignore
    if device == "cpu":  # the fused kernel's backward is slow there: a step takes 0.83 of the time without it
        model["unet"].set_attn_processor(AttnProcessor())  # type: ignore[operator]
    return model


def finish(out: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Trains the spatial encoder of `out/tiny_base.safetensors`, learns the demo's embeddings on it, and
    draws loss curve and sample sheet beside it.
    """
    from ..training.places import train_encoder
    from .demo import demo_embeddings

    path = out / "tiny_base.safetensors"
    base = load_base(str(path), device)
    if recipe.place_minutes:
        minutes, seed = recipe.place_minutes, recipe.seed + 100
        words = WordsConfig(minutes=minutes, seed=seed)
        places = PlacesConfig(steps=10**6, minutes=minutes, seed=seed)
        config = EncoderTrainingConfig(words, places, recipe.place_scenes)
        outcome = train_encoder(base, config)
        outcome.end.check()
        record: Any = outcome.learned.training["places"]
        log.info("places: %d steps, loss %.4f", record["steps"], np.mean(record["loss"][-100:]))
        arch.add_spatial_encoder(path, next(iter(outcome.learned.spatial_encoders.values())))
        learned = demo_embeddings(load_base(str(path), device))
        save_artifact(learned, out / arch.DEMO_EMBEDDINGS.name, torch.float16)
    draw_curve(json.loads((out / "curve.json").read_text(encoding="utf-8"))["curve"], out / "curve.png")
    sample_sheet(base, arch.NATIVE_SIZE).save(out / "sheet.png")


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """The training loss over steps as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    ax = figure.subplots()
    ax.plot([row["step"] for row in curve[:-1]], [row["loss"] for row in curve[:-1]])
    ax.set(xlabel="step", ylabel="weighted v-prediction loss", title=f"{curve[-1]['minutes']:.0f} minutes")
    figure.savefig(path, dpi=110)


def _cached_autoencoder(recipe: Recipe, out: Path, photographs: Photographs | None) -> LappedAutoencoder:
    vae = LappedAutoencoder(arch.LATENT_CHANNELS)
    amount = f"{recipe.autoencoder_scenes}_{recipe.autoencoder_steps}{_marked(photographs)}"
    path = out / f"autoencoder_{recipe.seed}_{amount}.safetensors"
    if path.exists():
        vae.load_state_dict(load_file(path))
        return vae
    count = recipe.autoencoder_scenes
    batches = list(scene_batches(recipe.seed + 1, count, 128, photographs=photographs))
    generator = torch.Generator().manual_seed(recipe.seed)
    losses = train_autoencoder(vae, torch.cat([b[0] for b in batches]), recipe.autoencoder_steps, generator)
    log.info("autoencoder: %.2f dB", 10 * np.log10(4 / np.mean(losses[-50:])))
    save_file({key: tensor.contiguous() for key, tensor in vae.state_dict().items()}, path)
    return vae


def _marked(photographs: Photographs | None) -> str:
    """What tells kept files of these photographs from others, by name."""
    if photographs is None:
        return ""
    names = [f"{material}/{path.name}" for material, files in photographs.files.items() for path in files]
    return "_" + hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]


def _cached_pools(
    recipe: Recipe, out: Path, encoder: SceneEncoder, photographs: Photographs | None
) -> list[Pool]:
    # of another autoencoder, other words or other scenes they are of no use
    known = encoder.vae.state_dict() | {"token_ids": encoder.token_ids, SCENES: torch.zeros(1)}
    pools, space = [], hash_weights(known)[:8]
    for size, count in ((128, recipe.scenes), (256, recipe.large_scenes)):
        path = out / f"pool_{size}_{recipe.seed}_{count}_{space}{_marked(photographs)}.safetensors"
        if not path.exists():
            save_file(vars(make_pool(encoder, recipe.seed, count, size, photographs)), path)
        pools.append(Pool(**load_file(path)))
    return pools


def save_base(
    path: Path,
    model: nn.ModuleDict,
    scene_encoder: SceneEncoder,
    recipe: Recipe,
    *,
    step: int,
    spatial_encoder: dict[str, Tensor],
) -> None:
    """Writes a base file atomically; `spatial_encoder` is the state of one, or empty."""
    state = {f"unet.{k}": v for k, v in model["unet"].state_dict().items()}
    state |= {f"text_encoder.{k}": v for k, v in arch.text_state(model["text_encoder"]).items()}  # type: ignore
    state |= {f"vae.{k}": v for k, v in scene_encoder.vae.state_dict().items()}
    state |= {f"spatial_encoder.{k}": v for k, v in spatial_encoder.items()}
    half = {key: value.detach().cpu().half().contiguous() for key, value in state.items()}
    half["text_encoder.token_ids"] = scene_encoder.token_ids
    metadata = {"format": arch.FORMAT, "step": str(step), "recipe": json.dumps(asdict(recipe))}
    write_atomically(path, half, metadata)
