"""From normal photos and masks to accepted image-mask pairs: sample, decode, paste back, check, retry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .blending import paste, restore_detail
from .conditioning import anomaly_context, empty_context
from .dataset.augmentation import resize_mask
from .dataset.photos import Photo, read_photo
from .embeddings import AnomalyModel
from .foreground import ground_of, object_foreground
from .latent_diffusion import LatentDiffusion
from .masks import OFF_OBJECT, MaskConfig, MaskSource, TriesExhausted, mask_problem, usable_for
from .placement import moved_onto
from .quality import NOISE_QUANTILE, change, fill
from .sampling import OnStep, SamplingConfig, image_generator, sample_into

NOISE_PHOTOS = 16  # normal photos that the autoencoder's noise is measured on, at most


@dataclass(frozen=True)
class GenerationConfig:
    """How pairs are made and which are accepted."""

    sampling: SamplingConfig = SamplingConfig(guidance=2.5)
    masks: MaskConfig = MaskConfig()
    seed: int = 0
    feather: float = 1.0  # pixels over which the paste ramps up, inside the mask
    smallest_fill: float = 0.3  # share of the mask that must show a change
    on_object: bool = True  # where the photos have a plain ground, masks are moved onto the object
    tries_per_pair: int = 8
    batch_size: int = 4


@dataclass(frozen=True)
class GeneratedPair:
    """One result at the photo's own size: `pixels` (H,W,3) uint8, `mask` (H,W) bool, and what made it."""

    defect_type: str
    index: int  # of the try; with the run seed it fixes everything random
    normal: int  # which normal photo
    template: str
    photo: Photo
    pixels: np.ndarray
    mask: np.ndarray
    fill: float
    noise: float  # grey levels a change must exceed to count for fill


@dataclass(frozen=True)
class _Draft:
    index: int
    normal: int
    template: str
    mask: np.ndarray
    generator: torch.Generator


@dataclass(frozen=True)
class _Normal:
    photo: Photo
    small: Tensor  # (3,S,S) in [-1,1]
    reconstruction: np.ndarray  # the photo through the autoencoder, (H,W,3) float in [0,255]
    foreground: np.ndarray | None


class PairGenerator:
    """Makes pairs of one category; normal photos are read as they are needed, and only some are kept."""

    def __init__(
        self, base: LatentDiffusion, model: AnomalyModel, normals: list[Path], config: GenerationConfig
    ) -> None:
        if not normals:
            raise ValueError("There are no normal photos: give a folder with photos of good parts.")
        self.base, self.model, self.config, self.normals = base, model, config, normals
        self._normal = lru_cache(maxsize=4 * config.batch_size)(self._read_normal)
        self.ground = ground_of(normals) if config.on_object else None
        measured = [self._normal(i) for i in range(0, len(normals), -(-len(normals) // NOISE_PHOTOS))]
        self.noise = autoencoder_noise([(n.photo.pixels, n.reconstruction) for n in measured])

    def _read_normal(self, number: int) -> _Normal:
        photo = read_photo(self.normals[number])
        small = fit_image(photo.tensor(), self.model.image_size)
        with torch.no_grad():
            decoded = self.base.decode(self.base.encode(small[None]))[0].cpu()
        foreground = object_foreground(photo.pixels, self.ground) if self.ground else None
        return _Normal(photo, small, to_pixels(decoded, photo.size), foreground)

    def accepted(
        self,
        defect_type: str,
        masks: MaskSource,
        count: int,
        first_index: int = 0,
        on_pair: Callable[[int, int], None] = lambda accepted, tries: None,
        on_step: OnStep | None = None,
    ) -> Iterator[GeneratedPair]:
        """Yields exactly `count` accepted pairs, trying indices from `first_index` on.

        Try i takes mask number i. Raises TriesExhausted, saying what failed how often, when tries run out.
        """
        done, tries, index = 0, 0, first_index
        problems: Counter[str] = Counter()
        limit = self.config.tries_per_pair * count
        while done < count and tries < limit:
            drafts: list[_Draft] = []
            while len(drafts) < self.config.batch_size and tries < limit:
                draft, problem = self._draft(defect_type, index, masks)
                index, tries = index + 1, tries + (draft is not None)
                if draft:
                    drafts.append(draft)
                else:
                    problems[str(problem)] += 1
                if problems.total() > 50 * limit:
                    break
            if not drafts:
                break
            for pair in self.make(defect_type, drafts, on_step):
                if pair.fill < self.config.smallest_fill:
                    problems["unfilled"] += 1
                elif done < count:
                    done += 1
                    yield pair
            on_pair(done, tries)
        if done < count:
            reasons = ", ".join(f"{n} {problem}" for problem, n in problems.most_common())
            raise TriesExhausted(
                f"Only {done} of {count} pairs of {defect_type} were accepted ({reasons}): train "
                "longer, raise the AAR strength, lower the smallest fill, or give other masks."
            )

    def try_indices(self, defect_type: str, indices: range, masks: MaskSource) -> list[GeneratedPair]:
        """One pair per index whose mask is usable, whatever its fill: for comparing settings."""
        drafts = [draft for index in indices if (draft := self._draft(defect_type, index, masks)[0])]
        size = self.config.batch_size
        return [
            pair
            for start in range(0, len(drafts), size)
            for pair in self.make(defect_type, drafts[start : start + size])
        ]

    def _draft(self, defect_type: str, index: int, masks: MaskSource) -> tuple[_Draft | None, str | None]:
        generator = image_generator(self.config.seed, index, defect_type)

        def pick(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        normal, template = pick(len(self.normals)), pick(len(self.model.templates))
        known = self._normal(normal)
        mask = _fit_mask(masks(index), known.photo.size)
        usable = usable_for(self.config.masks, self.model, defect_type)
        problem = mask_problem(mask, usable, known.foreground)
        if problem == OFF_OBJECT and known.foreground is not None:
            moved = moved_onto(mask, known.foreground, usable.on_object, generator)
            if moved is not None:
                mask, problem = moved, mask_problem(moved, usable, known.foreground)
        if problem:
            return None, problem
        return _Draft(index, normal, self.model.templates[template], mask, generator), None

    def make(
        self, defect_type: str, drafts: list[_Draft], on_step: OnStep | None = None
    ) -> list[GeneratedPair]:
        """Generates a batch of drafts, accepted or not."""
        base, size = self.base, self.model.image_size
        images = torch.stack([self._normal(d.normal).small for d in drafts]).to(base.device)
        masks = torch.stack(
            [resize_mask(torch.from_numpy(d.mask.astype(np.uint8))[None], (size, size)) for d in drafts]
        )
        masks = masks.to(base.device)
        with torch.no_grad():
            context = anomaly_context(
                base,
                [d.template for d in drafts],
                self.model.anomaly_tokens(defect_type),
                self.model.spatial_encoders,
                masks,
            )
            guided = self.config.sampling.guidance != 1
            latent = sample_into(
                base,
                images,
                masks.float(),
                context,
                empty_context(base, len(drafts)) if guided else None,
                self.config.sampling,
                [d.generator for d in drafts],
                on_step,
            )
            decoded = base.decode(latent).cpu()
        return [self._finish(defect_type, draft, image) for draft, image in zip(drafts, decoded, strict=True)]

    def _finish(self, defect_type: str, draft: _Draft, decoded: Tensor) -> GeneratedPair:
        known = self._normal(draft.normal)
        photo = known.photo
        pixels = finished(
            photo.pixels,
            known.reconstruction,
            to_pixels(decoded, photo.size),
            draft.mask,
            self.noise,
            self.config.feather,
            photo.gray,
        )
        shown = fill(photo.pixels, pixels, draft.mask, self.noise)
        return GeneratedPair(
            defect_type,
            draft.index,
            draft.normal,
            draft.template,
            photo,
            pixels,
            draft.mask,
            shown,
            self.noise,
        )


def finished(
    photo: np.ndarray,
    reconstruction: np.ndarray,
    generated: np.ndarray,
    mask: np.ndarray,
    noise: float,
    feather: float,
    gray: bool = False,
) -> np.ndarray:
    """Lays what was generated into the photo: the autoencoder's lost detail restored, outside bit-identical.

    photo (H,W,3) uint8; reconstruction (the photo through the autoencoder) and generated (H,W,3) float in
    [0,255]; mask (H,W) bool; `noise` the autoencoder's in grey levels; `gray` keeps the channels equal.
    Raises ValueError where base or autoencoder gave no numbers.
    """
    if not (np.isfinite(generated).all() and np.isfinite(reconstruction).all()):
        raise ValueError(
            "The decoded picture holds values that are no numbers, as half precision can give: run the model "
            "or its VAE in bfloat16 or float32."
        )
    if gray:
        generated = np.repeat(generated.mean(-1, keepdims=True), 3, axis=-1)
    return paste(photo, restore_detail(photo, reconstruction, generated, noise), mask, feather)


def fit_image(image: Tensor, size: int) -> Tensor:
    """(3,H,W) -> (3,S,S), antialiased."""
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def _fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the photo's size, with smooth outlines where it grows."""
    if mask.shape == size:
        return mask
    tensor = torch.from_numpy(mask.astype(np.float32))[None]
    if size[0] > mask.shape[0] and size[1] > mask.shape[1]:
        return (F.interpolate(tensor[None], size, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()
    return resize_mask(tensor, size)[0].numpy() > 0


def to_pixels(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(3,h,w) in [-1,1] -> (H,W,3) float32 in [0,255] at `size` (H,W)."""
    if tuple(image.shape[-2:]) != size:
        image = F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]
    # CHW -> HWC
    return ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()


def autoencoder_noise(photos: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The difference (grey levels) between photo and reconstruction that 5 % of pixels exceed, at least 1."""
    levels = [np.quantile(change(photo, reconstruction), NOISE_QUANTILE) for photo, reconstruction in photos]
    return max(1.0, float(np.mean(levels)))
