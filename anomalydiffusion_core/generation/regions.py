"""Making defect regions in their windows, and laying what was decoded into the photo, restricted to the mask
and feathered.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..dataset.augmentation import resize_mask
from ..dataset.layout import Pair
from ..dataset.photos import Photo, photo_of
from ..dataset.views import read_pair
from ..dataset.windows import Region, Window, regions_of
from ..gate.region_view import RegionView
from ..gate.scores import NOISE_QUANTILE, change, labelled_fills, seam, visible
from ..method.attention_maps import AttentionMaps, heat_over_photo
from ..method.blending import latent_mask, restore_detail, soft_mask
from ..method.conditioning import anomaly_context, empty_context
from ..method.embeddings import Learned
from ..method.inpainting import Inpainting
from ..method.latent_diffusion import Context, LatentDiffusion
from ..method.progress import OnStep
from ..method.sampling import Decode, SamplingConfig, SamplingRequest, inpaint
from .pasting import RealDefect, contrast_kept, pasted

LEAST_SHOWN = 0.8  # of a mask's area: parts that do not show are left out of it while so much stays
MOST_GAIN = 1.25  # by which a pasted defect is strengthened for what its feather takes
LEAST_SOFTER = 0.95  # a wider feather must weaken the outline to this, else it only wears the defect off


@dataclass(frozen=True)
class RegionJob:
    """A region that is to become a defect: `photo` is the normal photo in its window. Denoising starts from
    a real `defect` laid into it, else from noise.
    """

    defect_type: str
    template: str
    region: Region
    photo: Photo
    generator: torch.Generator
    strength: float = 1.0  # of the anomaly embedding
    guidance: float = 1.0
    defect: RealDefect | None = None
    contrast: float = 1.0  # of that


@dataclass(frozen=True)
class DecodedRegion:
    """A window with the defect in it: `values` (side,side,3) float in [0,255], and the `noise` of the
    autoencoder there, in grey levels. `heat` (R,S,S,3) uint8 shows what the tokens looked at, where it was
    recorded. `from_defect`: it started from a real one, whose contrast it is to keep.
    """

    region: Region
    values: np.ndarray
    noise: float
    heat: np.ndarray | None = None
    from_defect: bool = False

    def faded_in(self, before: Photo, feather: float) -> np.ndarray:
        """The values (side,side,3) to lay into its window's photo with this feather. A defect that started
        from a real one is strengthened by what the feather takes from its mean contrast, at most by
        `MOST_GAIN`: a real one fades out beside its mask, where nothing may change here.
        """
        if not self.from_defect:
            return self.values
        mask = self.region.mask
        photo = before.levels().astype(np.float32)
        change = (self.values - photo)[mask].mean(-1)
        left = (soft_mask(mask, feather)[mask] * change).mean()
        gain = np.clip(change.mean() / left, 1, MOST_GAIN) if left else 1.0
        return photo + np.float32(gain) * (self.values - photo)

    def laid_into(self, before: Photo, feather: float) -> Photo:
        """Its window's photo with it."""
        return before.pasted(self.faded_in(before, feather), self.region.mask, feather=feather)


@dataclass(frozen=True)
class Watch:
    """What is told of the denoising: every step, and (`heat`) what the tokens looked at."""

    on_step: OnStep | None = None
    heat: bool = False


@dataclass(frozen=True)
class RegionMaker:
    """Makes regions with a base and what was learned on it, `batch_size` at a time. AAR modes
    see pixels through `decode`, where it is given, else through the base's own decoder.
    """

    base: LatentDiffusion
    learned: Learned
    batch_size: int
    decode: Decode | None = None

    def make(
        self, jobs: list[RegionJob], sampling: dict[str, SamplingConfig], watch: Watch = Watch()
    ) -> list[DecodedRegion]:
        """Makes every job's region, those of one defect type and start together, with the type's own
        `sampling`.

        Nothing of a result depends on what else is made.
        """
        decoded: dict[int, DecodedRegion] = {}
        alike: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for number, job in enumerate(jobs):
            alike[job.defect_type, job.defect is None].append(number)
        for (defect_type, _), numbers in alike.items():
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                results = self._batch([jobs[i] for i in batch], sampling[defect_type], watch)
                decoded |= dict(zip(batch, results, strict=True))
        return [decoded[number] for number in range(len(jobs))]

    @torch.no_grad()
    def _batch(self, jobs: list[RegionJob], sampling: SamplingConfig, watch: Watch) -> list[DecodedRegion]:
        base, size = self.base, self.learned.image_size
        images = torch.stack([to_image(job.photo.levels(), size) for job in jobs]).to(base.device)
        masks = torch.stack([_small_mask(job.region.mask, size) for job in jobs]).to(base.device)
        normal, starts = base.encode(images), _starts(jobs, images, masks)
        start = None if starts is None else base.encode(starts)
        maps = AttentionMaps(len(jobs), (normal.shape[-2], normal.shape[-1])) if watch.heat else None
        latent = inpaint(
            base,
            Inpainting(
                normal,
                latent_mask(masks, base.factor),
                images,
                masks.float(),
                start,
            ),
            SamplingRequest(
                self._context(jobs, masks),
                empty_context(base, len(jobs)),
                [job.generator for job in jobs],
                guidance=torch.tensor([job.guidance for job in jobs], device=base.device),
                decode=self.decode,
                maps=maps,
                on_step=watch.on_step,
            ),
            sampling,
        )
        # what lies beyond black and white is cut off by some hosts, and by none after this
        generated, reconstruction = (base.decode(z).clamp(-1, 1) for z in (latent, normal))
        detail = torch.zeros_like(generated)
        if starts is not None and start is not None:
            # the more was denoised, the less of the real defect is to be left
            share = 1 - sampling.denoise
            generated = contrast_kept(generated, reconstruction, starts, images, masks, share=share)
            detail = share * (starts - base.decode(start).clamp(-1, 1))
        pictures = zip(jobs, generated.cpu(), reconstruction.cpu(), detail.cpu(), strict=True)
        regions = [_restored(*picture) for picture in pictures]
        if maps is None:
            return regions
        return [replace(r, heat=self._heat(r, shares)) for r, shares in zip(regions, maps.mean, strict=True)]

    def _context(self, jobs: list[RegionJob], masks: Tensor) -> Context:
        strength = torch.tensor([job.strength for job in jobs])[:, None, None]
        tokens = self.learned.anomaly_tokens(jobs[0].defect_type)
        return anomaly_context(
            self.base,
            [job.template for job in jobs],
            {name: e_a.cpu() * strength for name, e_a in tokens.items()},
            self.learned.spatial_encoders,
            mask=masks,
        )

    def _heat(self, decoded: DecodedRegion, shares: Tensor) -> np.ndarray:
        view = on_canvas(decoded.values, decoded.region.mask, self.learned.image_size)
        return heat_over_photo(shares, view.pixels, self.base.factor)


def _starts(jobs: list[RegionJob], images: Tensor, masks: Tensor) -> Tensor | None:
    """Images (B,3,S,S) with the jobs' real defects in masks (B,1,S,S); None where they start from noise."""
    starts = []
    for job, image, mask in zip(jobs, images.cpu(), masks.cpu(), strict=True):
        if job.defect is None:
            return None
        pixels = to_pixels(image, (image.shape[-2], image.shape[-1]))
        laid = pasted(pixels, mask[0].numpy() > 0, job.defect, job.generator, job.contrast)
        starts.append(to_image(laid, len(pixels)))
    return torch.stack(starts).to(images)


def _restored(
    job: RegionJob, generated: Tensor, reconstruction: Tensor, start_detail: Tensor
) -> DecodedRegion:
    side, photo = (job.region.window.side, job.region.window.side), job.photo.levels()
    before, after = to_pixels(reconstruction, side), to_pixels(generated, side)
    # a difference of images: no offset
    detail = to_pixels(start_detail, side) - 127.5
    noise = autoencoder_noise(photo, before)
    values = restored(photo, before, after, noise, detail)
    return DecodedRegion(job.region, values, noise, from_defect=job.defect is not None)


def in_window(photo: Photo, window: Window) -> Photo:
    """What a window shows of a photo, at the photo's depth."""
    return photo_of(window.cut(photo.samples), photo.white)


def restored(
    photo: np.ndarray,
    reconstruction: np.ndarray,
    generated: np.ndarray,
    noise: float,
    start_detail: np.ndarray | float = 0.0,
) -> np.ndarray:
    """What was generated, with the detail that the autoencoder lost (`restore_detail`); all (H,W,3).

    Raises ValueError where base or autoencoder gave no numbers.
    """
    if not (np.isfinite(generated).all() and np.isfinite(reconstruction).all()):
        raise ValueError(
            "The decoded picture holds values that are no numbers, as half precision can give: run the model "
            "or its VAE in bfloat16 or float32."
        )
    return restore_detail(photo, reconstruction, generated, noise, start_detail)


def stitched(photo: Photo, decoded: DecodedRegion, feather: float) -> Photo:
    """The photo with a region laid into it; outside the region's mask nothing changes."""
    window = decoded.region.window
    within = window.within(photo.size)
    values = decoded.faded_in(in_window(photo, window), feather)
    return photo.pasted(values[within], decoded.region.mask[within], window.box(photo.size), feather)


def shown_parts(photo: Photo, decoded: DecodedRegion, feather: float, least_fill: float) -> DecodedRegion:
    """The region without those connected parts of its mask of which less than `least_fill` shows in its
    window's photo: the mask follows what is seen. As it is, where more than specks would go.
    """
    mask = decoded.region.mask
    after = decoded.laid_into(photo, feather)
    parts, fills = labelled_fills(photo.levels(), after.levels(), mask, visible(decoded.noise))
    shown = np.isin(parts, [number for number, fill in enumerate(fills, start=1) if fill >= least_fill])
    if shown.sum() < LEAST_SHOWN * mask.sum():
        return decoded
    return replace(decoded, region=replace(decoded.region, mask=shown))


def softened(
    photo: Photo,
    decoded: DecodedRegion,
    feather: float,
    softest: float,
    *,
    usual_seam: float | None,
    size: int,
) -> tuple[Photo, float]:
    """The photo with a region laid into it, and the feather of that: from `feather` up to `softest`, the
    least at which the outline shows no more than `usual_seam` on a canvas of `size`, or as little as it can.
    """
    before = in_window(photo, decoded.region.window)
    shown = 0.0 if usual_seam is None else _seam(before, decoded, feather, size)
    while usual_seam is not None and shown > usual_seam and feather < softest:
        softer = min(softest, max(1.0, 2 * feather))
        weaker = _seam(before, decoded, softer, size)
        if weaker > LEAST_SOFTER * shown:
            break
        feather, shown = softer, weaker
    return stitched(photo, decoded, feather), feather


def _seam(before: Photo, decoded: DecodedRegion, feather: float, size: int) -> float:
    """The seam of a region that is laid into its window's photo."""
    after = decoded.laid_into(before, feather)
    view = on_canvas(after.levels(), decoded.region.mask, size)
    return seam(view.pixels, view.mask)


def regions_on_canvas(photo: Photo, mask: np.ndarray, size: int) -> list[RegionView]:
    """The regions of a photo's mask (H,W) bool, each in its window at the canvas's size."""
    return [region_on_canvas(photo, region, size) for region in regions_of(mask, size)]


def pair_on_canvas(pair: Pair, size: int) -> list[RegionView]:
    """The regions of a pair's files alike."""
    photo, mask = read_pair(pair)
    return regions_on_canvas(photo, mask[0].numpy() > 0, size)


def region_on_canvas(photo: Photo, region: Region, size: int) -> RegionView:
    """A region of a photo in its window at the canvas's size."""
    return on_canvas(in_window(photo, region.window).levels(), region.mask, size)


def on_canvas(pixels: np.ndarray, mask: np.ndarray, size: int) -> RegionView:
    """A window's pixels (side,side,3) and mask (side,side) bool at the canvas's size."""
    if len(pixels) == size:
        return RegionView(pixels, mask)
    image = to_pixels(to_image(pixels, size), (size, size))
    return RegionView(image, mask_on_canvas(mask, size))


def to_image(pixels: np.ndarray, size: int) -> Tensor:
    """(H,W,3) in [0,255] -> (3,S,S) in [-1,1], antialiased."""
    # HWC -> CHW
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    return fit_image(image, size)


def fit_image(image: Tensor, size: int) -> Tensor:
    """(3,H,W) -> (3,S,S), antialiased."""
    if tuple(image.shape[-2:]) == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def mask_on_canvas(mask: np.ndarray, size: int) -> np.ndarray:
    """A window's mask (side,side) bool at the canvas's size, (S,S) bool."""
    return _small_mask(mask, size)[0].numpy() > 0


def _small_mask(mask: np.ndarray, size: int) -> Tensor:
    return resize_mask(torch.from_numpy(mask.astype(np.uint8))[None], (size, size))


def to_pixels(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(3,h,w) in [-1,1] -> (H,W,3) float32 in [0,255] at `size` (H,W)."""
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]
    # CHW -> HWC
    return ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()


def autoencoder_noise(photo: np.ndarray, reconstruction: np.ndarray) -> float:
    """The difference (grey levels) of a photo (H,W,3) and its reconstruction that 5 % of pixels exceed, at
    least 1.
    """
    return max(1.0, float(np.quantile(change(photo, reconstruction), NOISE_QUANTILE)))
