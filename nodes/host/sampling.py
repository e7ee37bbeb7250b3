"""From normal photos and masks to pictures with ComfyUI's samplers: encoding, noise, pasting back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
import latent_preview
import numpy as np
import torch
import torch.nn.functional as F
from comfy.k_diffusion.sampling import BrownianTreeNoiseSampler
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...anomalydiffusion_core.dataset.photos import Photo
from ...anomalydiffusion_core.dataset.windows import regions_of
from ...anomalydiffusion_core.generation.config import GenerationConfig
from ...anomalydiffusion_core.generation.regions import DecodedRegion, autoencoder_noise, restored, softened
from ...anomalydiffusion_core.method.attention_maps import AttentionMaps, heat_over_photo
from ...anomalydiffusion_core.method.blending import latent_mask
from ...anomalydiffusion_core.method.reweighting import MODES, AARConfig
from ...anomalydiffusion_core.method.sampling import SamplingConfig, image_generator
from .conditioning import COLUMNS, Conditioning, learned_in
from .pixels import latent_factor, pixels_of, to_core
from .reweighting import Pixels, Reweighting
from .update import with_update

if TYPE_CHECKING:
    from .pasting import PastedDefects


@dataclass(frozen=True)
class SamplerSettings:
    """ComfyUI's KSampler as its user sets it."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float = 1.0


@dataclass(frozen=True)
class Outlines:
    """How defects fade into their photos: over `feather` pixels, or more where on a canvas of `size` pixels
    their outlines show more than `usual_seam`.
    """

    feather: float
    size: int
    usual_seam: float | None = None


@dataclass(frozen=True)
class MaskedPhotos:
    """Photos (B,H,W,3) in [0,1] and masks (B,1,H,W) in {0,1}, one of each for an image, with the latents
    (B,C,h,w) of the photos, in the scale of `vae`; sides are padded by mirroring to whole latent cells.
    """

    image: Tensor
    mask: Tensor
    vae: VAE
    latent: Tensor

    @classmethod
    def encoded(cls, image: Tensor, mask: Tensor, vae: VAE) -> MaskedPhotos:
        """A single photo serves all masks, a single mask all photos; ValueError where they do not fit."""
        image, mask = match_batch(image.float(), mask)
        latent: Any = vae.encode(padded(image, latent_factor(vae)))
        return cls(image, mask, vae, latent.float())

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return latent_factor(self.vae)


def match_batch(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Photos (B,H,W,3) and masks (B,1,H,W) of equal count and size: photos are taken in turn, and a single
    mask serves all.

    Raises ValueError, saying what differs and which node mends it, when they do not fit.
    """
    count = max(len(image), len(mask))
    if len(mask) not in (1, count):
        raise ValueError(
            f"There are {len(mask)} masks for {count} photos: give one for each, or one for all."
        )
    height, width = image.shape[1:3]
    if mask.shape[-2:] != (height, width):
        raise ValueError(
            f"The mask is {mask.shape[-1]}x{mask.shape[-2]}, the photo {width}x{height}: insert Place Masks "
            "on Objects before, which brings masks to the size of their photos, or choose the matching photo."
        )
    turns = torch.arange(count) % len(image)
    return image[turns.to(image.device)][..., :3], mask.expand(count, -1, -1, -1)


def match_images(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B,H,W,3) that show a defect each and their masks (B,1,H,W): unlike normal photos, none serves
    twice; a single mask serves all.

    Raises ValueError, saying what differs, when they do not fit.
    """
    matched, mask = match_batch(images, mask)
    if len(images) != len(mask):
        raise ValueError(f"There are {len(images)} images for {len(mask)} masks: give one for each.")
    return matched, mask


def reweighted(
    model: ModelPatcher,
    positive: Conditioning,
    aar: AARConfig,
    maps: AttentionMaps | None = None,
    *,
    pixels: Pixels | None = None,
) -> ModelPatcher:
    """A MODEL clone with AAR for the learned vectors of `positive`, and with the update of the base that was
    learned with them; some modes need `pixels`.
    """
    columns = next((options[COLUMNS] for _, options in positive if COLUMNS in options), None)
    if columns is None:
        raise ValueError("This conditioning has no learned vectors: take that of Anomaly Conditioning.")
    learned, _ = learned_in(positive)
    updated = with_update(model, learned.adapter) if learned else model
    return Reweighting(aar, columns, SamplingConfig.widening, pixels, maps).patch(updated)


def pixels_to_compare(model: ModelPatcher, vae: VAE, image: Tensor, mask: Tensor) -> Pixels:
    """What AAR modes of pixels compare, from photos (B,H,W,3) in [0,1] and masks (B,1,H,W).

    Raises ValueError where `vae` reads other latents than the model's.
    """
    device, channels = model.load_device, int(model.model.latent_format.latent_channels)
    if vae.latent_channels != channels:
        raise ValueError(
            f"The VAE of re-weighting reads {vae.latent_channels} latent channels, the model has "
            f"{channels}: connect the VAE, or a tiny one (taesd), that belongs to the model."
        )

    def decode(latent: Tensor) -> Tensor:
        return to_core(vae.decode(model.model.process_latent_out(latent))).to(device)

    return Pixels(to_core(image).to(device), mask.to(device), decode)


def sample_images(
    model: ModelPatcher,
    generators: list[torch.Generator],
    settings: SamplerSettings,
    positive: Conditioning,
    *,
    negative: Conditioning,
    latent: Tensor,
    noise_mask: Tensor | None = None,
    start: Tensor | None = None,
    callback: Callable[..., None] | None = None,
) -> Tensor:
    """Latents (B,C,h,w) of one of ComfyUI's samplers by name; all noise of an image is its generator's.
    Within `noise_mask` (B,1,h,w) a `start` (B,C,h,w), where there is one, takes the place of `latent`.

    ComfyUI's own node draws the noise between steps for the batch as a whole: with an ancestral sampler a
    picture would depend on its neighbours.
    """
    noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in generators])
    sigmas = comfy.samplers.KSampler(
        model,
        settings.steps,
        model.load_device,
        settings.sampler_name,
        settings.scheduler,
        denoise=settings.denoise,
        model_options=model.model_options,
    ).sigmas
    sampler = comfy.samplers.sampler_object(settings.sampler_name)
    sampler.inpaint_options = {}  # "ddim" would draw another noise for the outside, for the batch as a whole
    if "noise_sampler" in inspect.signature(sampler.sampler_function).parameters:
        seeds = [int(torch.randint(2**63 - 1, (), generator=generator)) for generator in generators]
        # increments of steps are independent; those within a step belong together, as DPM++ SDE needs them
        noise_sampler = BrownianTreeNoiseSampler(noise, 0.0, float(sigmas.max()) + 1, seeds, cpu=True)
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": noise_sampler}
    if start is not None and noise_mask is not None:
        noise = noise + noise_mask.cpu() * _as_noise(model, float(sigmas[0]), start - latent)
    return comfy.sample.sample_custom(
        model,
        noise,
        settings.cfg,
        sampler,
        sigmas,
        positive,
        negative,
        latent,
        noise_mask=noise_mask,
        callback=callback,
        seed=settings.seed,
    )


def _as_noise(model: ModelPatcher, sigma: float, difference: Tensor) -> Tensor:
    """The unit noise (B,C,h,w) that moves where a sampler starts by a difference of latents. ComfyUI has no
    other way in: it blends with the latent that it starts from, which is to be the photo's.
    """
    schedule: Any = model.get_model_object("model_sampling")
    level = torch.tensor([sigma])
    nothing = torch.zeros(1)
    # of latents in the model's scale, which differ from the VAE's by a factor and a shift
    shifted = (model.model.process_latent_in(part) for part in (difference, torch.zeros_like(difference)))
    moved = torch.sub(*shifted).cpu()
    of_noise = schedule.noise_scaling(level, torch.ones(1), nothing, False)
    return moved * schedule.noise_scaling(level, nothing, torch.ones(1), False) / of_noise


def sample_latents(
    photos: MaskedPhotos,
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    *,
    settings: SamplerSettings,
    aar: AARConfig,
    aar_vae: VAE | None = None,
    maps: AttentionMaps | None = None,
    defects: PastedDefects | None = None,
) -> Tensor:
    """Latents (B,C,h,w): the defect inside m_z, outside the photo. It starts from noise, or from `defects`.

    AAR modes see pixels through `aar_vae`, or without one through the photos' own VAE.
    """
    mask, pixels = _padded_mask(photos.mask, photos.factor), None
    if MODES[aar.mode].pixels:
        image = padded(photos.image, photos.factor)
        pixels = pixels_to_compare(model, aar_vae or photos.vae, image, mask)
    patched = reweighted(model, positive, aar, maps, pixels=pixels)
    return sample_images(
        patched,
        [image_generator(settings.seed, i) for i in range(len(photos.latent))],
        settings,
        positive,
        negative=negative,
        latent=photos.latent,
        noise_mask=latent_mask(mask, photos.factor),
        start=defects.latent if defects else None,
        callback=latent_preview.prepare_callback(patched, settings.steps),
    )


def paste_back(
    photos: MaskedPhotos, latent: Tensor, outlines: Outlines, defects: PastedDefects | None = None
) -> Tensor:
    """Decodes latents and lays them into the photos (B,H,W,3) in [0,1]; outside the masks nothing changes.
    They keep the contrast of the `defects` that they started from.
    """
    height, width = photos.image.shape[1:3]
    generated, reconstruction = (
        photos.vae.decode(z)[:, :height, :width].float().cpu() for z in (latent, photos.latent)
    )
    details = torch.zeros_like(generated)
    if defects:
        generated = defects.contrast_kept(photos, generated, reconstruction)
        details = defects.detail(photos)
    decoded, reconstructions = (255 * part.clamp(0, 1).numpy() for part in (generated, reconstruction))
    marked = photos.mask[:, 0].cpu().numpy() > 0
    results = []
    for photo, before, after, mask, detail in zip(
        pixels_of(photos.image), reconstructions, decoded, marked, 255 * details.numpy(), strict=True
    ):
        noise = autoencoder_noise(photo, before)
        values = restored(photo, before, after, noise, detail)
        regions = [
            DecodedRegion(region, region.window.cut(values), noise, from_defect=defects is not None)
            for region in regions_of(mask, outlines.size)
        ]
        results.append(_laid(photo, regions, outlines))
    pasted = torch.from_numpy(np.stack(results)).float() / 255
    # photos from elsewhere need not lie on whole grey levels: outside, they stay what they were
    return torch.where(torch.from_numpy(marked)[..., None], pasted, photos.image.cpu())


def _laid(photo: np.ndarray, regions: list[DecodedRegion], outlines: Outlines) -> np.ndarray:
    """Photo (H,W,3) uint8 with its regions laid into it."""
    result, softest = Photo(photo, gray=False), GenerationConfig.softest
    for region in regions:
        result, _ = softened(
            result, region, outlines.feather, softest, usual_seam=outlines.usual_seam, size=outlines.size
        )
    return result.pixels


def attention_pictures(photos: MaskedPhotos, maps: AttentionMaps | None) -> Tensor:
    """Photos (B,H,W,3) under the heat maps of each range of steps, side by side; the photos as they are
    where no maps were recorded.
    """
    if maps is None:
        return photos.image
    rows = [
        np.hstack([*heat_over_photo(ranges, photo, photos.factor)])
        for ranges, photo in zip(maps.mean, pixels_of(photos.image), strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).float() / 255


def padded(image: Tensor, factor: int) -> Tensor:
    """(B,H,W,3) with sides rounded up to whole latent cells."""
    height, width = image.shape[1:3]
    edges = (0, -width % factor, 0, -height % factor)
    # BHWC -> BCHW and back
    return F.pad(image.movedim(-1, 1), edges, mode="reflect").movedim(1, -1) if any(edges) else image


def _padded_mask(mask: Tensor, factor: int) -> Tensor:
    height, width = mask.shape[-2:]
    return F.pad(mask, (0, -width % factor, 0, -height % factor))
