"""From normal photos and masks to pictures with ComfyUI's samplers: encoding, noise, pasting back."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...anomalydiffusion_core.dataset.photos import Photo
from ...anomalydiffusion_core.dataset.windows import regions_of
from ...anomalydiffusion_core.generation.config import GenerationConfig
from ...anomalydiffusion_core.generation.regions import DecodedRegion, autoencoder_noise, restored, softened
from ...anomalydiffusion_core.method.attention_maps import AttentionMaps, heat_over_photo
from ...anomalydiffusion_core.method.blending import latent_mask
from ...anomalydiffusion_core.method.reweighting import AARConfig
from ...anomalydiffusion_core.method.sampling import SamplingConfig, image_generator
from .conditioning import COLUMNS
from .pixels import pixels_of, to_core
from .reweighting import Reweighting

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


def sample_images(
    model: ModelPatcher,
    generators: list[torch.Generator],
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent: Tensor,
    **sampling: Any,
) -> Tensor:
    """Latents (B,C,h,w) of one of ComfyUI's samplers by name; all noise of an image is its generator's.

    ComfyUI's own node draws the noise between steps for the batch as a whole: with an ancestral sampler a
    picture would depend on its neighbours.
    """
    noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in generators])
    device, options = model.load_device, model.model_options
    sigmas = comfy.samplers.KSampler(
        model, steps, device, sampler_name, scheduler, denoise=1.0, model_options=options
    ).sigmas
    sampler = comfy.samplers.sampler_object(sampler_name)
    sampler.inpaint_options = {}  # "ddim" would draw another noise for the outside, for the batch as a whole
    if "noise_sampler" in inspect.signature(sampler.sampler_function).parameters:
        seeds = [int(torch.randint(2**63 - 1, (), generator=generator)) for generator in generators]
        # increments of steps are independent; those within a step belong together, as DPM++ SDE needs them
        noise_sampler = BrownianTreeNoiseSampler(noise, 0.0, float(sigmas.max()) + 1, seeds, cpu=True)
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": noise_sampler}
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, latent, **sampling
    )


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
    if aar.mode == "paper":
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
        made = DecodedRegion(region, region.window.cut(values), noise)
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
        np.hstack(heat_over_photo(ranges, photo, factor))
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
