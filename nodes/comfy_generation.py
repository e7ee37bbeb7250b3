"""From normal photos and masks to finished pictures with ComfyUI's samplers."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..anomalydiffusion_core import __version__
from ..anomalydiffusion_core.dataset.photos import Photo, file_hash
from ..anomalydiffusion_core.dataset.windows import regions_of
from ..anomalydiffusion_core.export.mvtec import MVTecWriter
from ..anomalydiffusion_core.generation.config import GenerationConfig
from ..anomalydiffusion_core.generation.regions import MadeRegion, autoencoder_noise, restored, softened
from ..anomalydiffusion_core.masks.invention import (
    DrawnMasks,
    MaskConfig,
    mask_picture_size,
    masks_from_pictures,
    usable_for,
)
from ..anomalydiffusion_core.masks.placement import placing
from ..anomalydiffusion_core.method.artifact import check_type, learned_hash
from ..anomalydiffusion_core.method.attention_maps import AttentionMaps, heat_maps
from ..anomalydiffusion_core.method.blending import latent_mask
from ..anomalydiffusion_core.method.conditioning import empty_context, mask_context
from ..anomalydiffusion_core.method.embeddings import AnomalyModel
from ..anomalydiffusion_core.method.reweighting import AARConfig, AARMode
from ..anomalydiffusion_core.method.sampling import SamplingConfig, image_generator
from ..anomalydiffusion_core.method.templates import MASK_TEMPLATES
from .comfy_model import conditioning, load_for
from .comfy_sampling import Reweighting, sample_images
from .conditioning import COLUMNS
from .folders import graph_folder
from .pixels import pixels_of, to_core

WIDENING = SamplingConfig().widening


@dataclass(frozen=True)
class Outlines:
    """How defects fade into their photos: over `feather` pixels, or more where on a canvas of `size` pixels
    their outlines show more than `usual_seam`.
    """

    feather: float
    size: int
    usual_seam: float | None = None


def reweighted(
    model: Any, positive: Any, aar: AARConfig, maps: AttentionMaps | None = None, **pixels: Any
) -> Any:
    """A MODEL clone with AAR for the learned vectors of `positive`; `pixels` are those of mode `paper`."""
    columns = next((options[COLUMNS] for _, options in positive if COLUMNS in options), None)
    if columns is None:
        raise ValueError("This conditioning has no learned vectors: take that of Anomaly Conditioning.")
    return Reweighting(aar, columns, WIDENING, maps=maps, **pixels).patch(model)


def paper_pixels(model: Any, vae: Any, image: Any, mask: Any) -> dict[str, Any]:
    """What mode `paper` compares: photos in [-1,1], masks (B,1,H,W), and a decoder of latents.

    Raises ValueError where `vae` reads other latents than the model's.
    """
    device, channels = model.load_device, int(model.model.latent_format.latent_channels)
    if vae.latent_channels != channels:
        raise ValueError(
            f"The VAE of mode paper reads {vae.latent_channels} latent channels, the model has {channels}: "
            "connect the VAE, or a tiny one (taesd), that belongs to the model."
        )

    def decode(latent: Any) -> Any:
        return to_core(vae.decode(model.model.process_latent_out(latent))).to(device)

    return {"image": to_core(image).to(device), "mask": mask.to(device), "decode": decode}


def match_batch(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Photos (B,H,W,3) and masks (B,1,H,W) of equal count and size; a single one serves all of the other.

    Raises ValueError, saying what differs, when they do not fit.
    """
    count = max(len(image), len(mask))
    for what, batch in (("photos", image), ("masks", mask)):
        if len(batch) not in (1, count):
            raise ValueError(f"There are {len(batch)} {what} for {count}: give one for each, or one for all.")
    height, width = image.shape[1:3]
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"The mask is {mask.shape[-1]}x{mask.shape[-2]}, the photo {width}x{height}: resize the mask or "
            "choose the matching photo."
        )
    return image.expand(count, -1, -1, -1)[..., :3], mask.expand(count, -1, -1, -1)


def encode_photos(image: Tensor, vae: Any) -> Tensor:
    """Photos (B,H,W,3) -> latents in the VAE's scale; sides are padded by mirroring to whole cells."""
    return vae.encode(_padded(image, int(vae.spacial_compression_decode())))


def sample_latents(
    image: Tensor,
    mask: Tensor,
    normal: Tensor,
    vae: Any,
    model: Any,
    positive: Any,
    negative: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    aar: AARConfig,
    aar_vae: Any = None,
    maps: AttentionMaps | None = None,
) -> Tensor:
    """Latents (B,C,h,w): the defect inside m_z, outside the photo, `normal` as of `encode_photos`.

    AAR mode `paper` sees pixels through `aar_vae`, or without one through `vae`.
    """
    factor = int(vae.spacial_compression_decode())
    mask = _padded_mask(mask, factor)
    pixels = {}
    if aar.mode is AARMode.PAPER:
        pixels = paper_pixels(model, aar_vae or vae, _padded(image, factor), mask)
    patched = reweighted(model, positive, aar, maps, **pixels)
    return sample_images(
        patched,
        [image_generator(seed, i) for i in range(len(normal))],
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        normal,
        noise_mask=latent_mask(mask, factor),
        callback=latent_preview.prepare_callback(patched, steps),
        seed=seed,
    )


def paste_back(
    image: Tensor, mask: Tensor, normal: Tensor, vae: Any, latent: Tensor, outlines: Outlines
) -> Tensor:
    """Decodes latents and lays them into the photos (B,H,W,3) in [0,1]; outside the masks nothing changes."""
    height, width = image.shape[1:3]
    decoded, again = (255 * vae.decode(z)[:, :height, :width].cpu().numpy() for z in (latent, normal))
    photos = pixels_of(image)
    marked = mask[:, 0].cpu().numpy() > 0
    results = []
    for photo, reconstruction, generated, m in zip(photos, again, decoded, marked, strict=True):
        noise = autoencoder_noise(photo, reconstruction)
        values = restored(photo, reconstruction, generated, noise)
        results.append(_laid(photo, values, m, noise, outlines))
    made = torch.from_numpy(np.stack(results)).float() / 255
    # photos from elsewhere need not lie on whole grey levels: outside, they stay what they were
    return torch.where(torch.from_numpy(marked)[..., None], made, image.cpu())


def _laid(
    photo: np.ndarray, values: np.ndarray, mask: np.ndarray, noise: float, outlines: Outlines
) -> np.ndarray:
    """Photo (H,W,3) uint8 with values (H,W,3) float laid into it, region by region."""
    result, softest = Photo(photo, gray=False), GenerationConfig().softest
    for region in regions_of(mask, outlines.size):
        made = MadeRegion(region, region.window.cut(values), noise)
        result, _ = softened(result, made, outlines.feather, softest, outlines.usual_seam, outlines.size)
    return result.pixels


def attention_pictures(image: Tensor, vae: Any, maps: AttentionMaps | None) -> Tensor:
    """Photos (B,H,W,3) under the heat maps of each range of steps, side by side; the photos as they are
    where no maps were recorded.
    """
    if maps is None:
        return image
    factor = int(vae.spacial_compression_decode())
    rows = [
        np.hstack(heat_maps(ranges, photo, factor))
        for ranges, photo in zip(maps.mean, pixels_of(image), strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).float() / 255


def _padded(image: Tensor, factor: int) -> Tensor:
    """(B,H,W,3) with sides rounded up to whole latent cells."""
    height, width = image.shape[1:3]
    edges = (0, -width % factor, 0, -height % factor)
    # BHWC -> BCHW and back
    return F.pad(image.movedim(-1, 1), edges, mode="reflect").movedim(1, -1) if any(edges) else image


def _padded_mask(mask: Tensor, factor: int) -> Tensor:
    height, width = mask.shape[-2:]
    return F.pad(mask, (0, -width % factor, 0, -height % factor))


def invented_masks(
    model: Any,
    clip: Any,
    vae: Any,
    learned: AnomalyModel,
    defect_type: str,
    count: int,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
) -> Tensor:
    """`count` accepted masks (B,S,S) in {0,1} of one type, drawn with ComfyUI's samplers.

    Raises TriesExhausted, saying what was wrong how often, when too few are usable.
    """
    base = load_for(learned, model, clip, vae)
    config = usable_for(MaskConfig(), learned, defect_type)
    tokens = learned.mask_tokens(defect_type)
    cells = mask_picture_size(base, learned.image_size) // base.factor
    bar = comfy.utils.ProgressBar(count)

    def draw(tries: list[int]) -> list[np.ndarray]:
        with torch.no_grad():
            context = mask_context(base, MASK_TEMPLATES[0], tokens, len(tries))
            empty = empty_context(base, len(tries))
        latent = sample_images(
            model,
            [image_generator(seed, i, f"{defect_type} masks") for i in tries],
            steps,
            cfg,
            sampler_name,
            scheduler,
            conditioning(context),
            conditioning(empty),
            torch.zeros(len(tries), base.latent_channels, cells, cells),
            seed=seed,
        )
        return masks_from_pictures(to_core(vae.decode(latent)), config)

    def on_mask(accepted: int, tries: int) -> None:
        bar.update_absolute(min(accepted, count), count)

    place = placing(learned, defect_type, seed)
    masks = DrawnMasks(draw, place, defect_type, config, batch=min(8, count), on_mask=on_mask)
    return torch.from_numpy(np.stack([masks(number) for number in range(count)])).float()


def save_pairs(
    images: Tensor,
    masks: Tensor,
    defect_type: str,
    folder: str,
    normals: Tensor | None,
    scores: list[dict[str, Any]] | None,
    learned: AnomalyModel | None,
    prompt: Any,
) -> Path:
    """Appends pairs to the dataset `folder` below the output folder; returns its path.

    Each manifest row holds the graph that made the pair, and what is known of its normal photo, scores, base
    and artifact. Raises ValueError where counts differ.
    """
    for what, batch in (("masks", masks), ("normals", normals), ("scores", scores)):
        if batch is not None and len(batch) != len(images) and not (what == "normals" and len(batch) == 1):
            raise ValueError(f"There are {len(batch)} {what} for {len(images)} images: give one for each.")
    check_type(defect_type.strip())
    category, _, defect = defect_type.strip().partition("/")
    root = graph_folder(os.path.join(folder_paths.get_output_directory(), folder))
    writer = MVTecWriter(root)
    about: list[dict[str, Any]] = [dict(row) for row in scores or [{}] * len(images)]
    if normals is not None:
        names = writer.add_normals(category, (Photo(pixels, gray=False) for pixels in pixels_of(normals)))
        for row, name in zip(about, names * (len(images) // len(names)), strict=True):
            row |= {"normal": name, "normal_sha256": file_hash(root / name)}
    settings: dict[str, Any] = {"package_version": __version__, "torch": torch.__version__, "prompt": prompt}
    if learned is not None:
        settings |= {
            "learned_sha256": learned_hash(learned),
            "base_family": learned.base.family,
            "base_weights": learned.base.weights,
            "trained_on": learned.trained_on.get(f"{category}/{defect}", []),
        }
    run = hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:12]
    marked = masks.cpu().numpy() > 0.5
    for index, (pixels, mask) in enumerate(zip(pixels_of(images), marked, strict=True)):
        row = {"run": run, "index": index, **about[index], **settings}
        writer.write(category, defect, Photo(pixels, gray=False), mask, row)
    return root
