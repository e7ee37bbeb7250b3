"""Pre-training of the spatial encoder: where a defect is, from its mask alone, learned on procedural scenes.

The base is frozen. E first imitates the token vectors of the words for the place. Then captions of the scenes
say what the defect is, E(mask) is inserted in place of the words for where, and E learns to make the base put
the defect there. Half of each batch is pictures of masks at the noisiest timesteps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..dataset.views import ViewPool
from ..method.conditioning import spatial_tokens
from ..method.latent_diffusion import PLACEHOLDER, Context, LatentDiffusion
from ..method.spatial_encoder import SpatialEncoder
from ..procedural.scenes import COLUMNS, ROWS, Scene, draw_scene
from .defects import TrainingConfig, drawn_from_noise

PLACE = re.compile(rf" at the (?:{'|'.join(ROWS)}) (?:{'|'.join(sorted(COLUMNS, key=len, reverse=True))})")
# Below this timestep a noisy mask picture still shows where the defect is, so that a model ignores words and
# tokens that say it.
PLACE_FROM = 900
EARLIEST = {"photo": 200, "mask picture": PLACE_FROM}  # timesteps that are learned from
DEFECT_WEIGHT = 8.0  # of latent cells that the defect touches
SCENE_SIZE = (
    256  # pixels per side at most; drawn at 512 a scene takes four times as long, so that it is enlarged
)
PLACES = TrainingConfig(steps=2000, batch_size=12, encoder_rate=5e-4, warmup_steps=100)
WORDS = TrainingConfig(steps=600, encoder_rate=1e-3)


@dataclass
class PlacedScenes:
    """Scenes with one defect: `images` (N,3,n,n) in [-1,1], `masks` (N,1,n,n) uint8, `captions` with {} for
    the place, `places` in words, and `kinds`, as in `EARLIEST`.
    """

    images: Tensor
    masks: Tensor
    captions: list[str]
    places: list[str]
    kinds: list[str]


def placed_scenes(seed: int, count: int, size: int, batch: int) -> Iterator[PlacedScenes]:
    """The first `count` scenes of the stream `seed` whose caption names one place, a batch at a time."""
    scenes: list[Scene] = []
    index = made = 0
    while made < count:
        scene = draw_scene(seed, index, size)
        index += 1
        if len(PLACE.findall(scene.caption)) == 1:
            scenes.append(scene)
            made += 1
        if scenes and (made == count or len(scenes) == batch):
            yield _stacked(scenes)
            scenes = []


def _stacked(scenes: list[Scene]) -> PlacedScenes:
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return PlacedScenes(
        pixels.permute(0, 3, 1, 2).float() / 127.5 - 1,  # BHWC -> BCHW
        torch.from_numpy(np.stack([scene.mask for scene in scenes]).astype(np.uint8))[:, None],
        [PLACE.sub(f" {PLACEHOLDER}", scene.caption) for scene in scenes],
        [PLACE.findall(scene.caption)[0] for scene in scenes],
        ["mask picture" if scene.is_mask_picture else "photo" for scene in scenes],
    )


@dataclass
class ScenePool(ViewPool):
    """Scenes as views, their kind as type; `captions` with {} for the place, and `places` in words.

    Masks are as large as scenes are drawn, (N,1,n,n), which the base may see enlarged.
    """

    captions: list[str]
    places: list[str]


@torch.no_grad()
def make_scenes(
    base: LatentDiffusion,
    seed: int,
    count: int,
    on_scene: Callable[[int, int], None] = lambda done, total: None,
    batch: int = 4,
) -> ScenePool:
    """Draws `count` scenes and encodes them at the base's native size, a batch at a time."""
    native = (base.native_size, base.native_size)
    latents, masks, captions, places, kinds = [], [], [], [], []
    for part in placed_scenes(seed, count, min(base.native_size, SCENE_SIZE), batch):
        latents.append(base.encode(F.interpolate(part.images, native, mode="bilinear")).cpu())
        masks.append(part.masks)
        captions += part.captions
        places += part.places
        kinds += part.kinds
        on_scene(len(captions), count)
    names = sorted(set(kinds))
    types = torch.tensor([names.index(kind) for kind in kinds])
    return ScenePool(torch.cat(latents), torch.cat(masks), types, names, captions, places)


class PlaceTask:
    """E: the base, told by words what the defect is and by E(mask) where, must denoise the scene."""

    def __init__(self, base: LatentDiffusion, pool: ScenePool, encoders: dict[str, SpatialEncoder]) -> None:
        self.base, self.pool = base, pool
        self.encoders = {name: encoder.to(base.device).train() for name, encoder in encoders.items()}
        self.earliest = torch.tensor([EARLIEST[name] for name in pool.names])

    def parameter_groups(self, config: TrainingConfig) -> list[dict]:
        parameters = [p for encoder in self.encoders.values() for p in encoder.parameters()]
        return [{"params": parameters, "lr": config.encoder_rate}]

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        """Squared error of v (B,), whatever the base predicts: that of epsilon says next to nothing at the
        noisiest timesteps, where the place is decided.
        """
        schedule, views = self.base.schedule, pool.part(rows, self.base.device)
        earliest = self.earliest[pool.types[rows]].to(t.device)
        t = (earliest + (1 - earliest / schedule.steps) * t).long()
        eps_hat = self.base.predict_noise(
            schedule.add_noise(views.latents, noise, t), t, self._context(rows, views)
        )
        alpha, _ = schedule.alpha_sigma(t)
        touched = F.adaptive_max_pool2d(views.masks.float(), noise.shape[-2:])
        weight = 1 + (DEFECT_WEIGHT - 1) * touched
        error = ((eps_hat - noise) / alpha).square().mean(1, keepdim=True)
        return (weight * error).flatten(1).mean(1) / weight.flatten(1).mean(1)

    @torch.no_grad()
    def redraw(self, rows: Tensor) -> Tensor:
        """The scenes drawn anew from noise, by their captions and E(mask)."""
        context = self._context(rows, self.pool.part(rows, self.base.device))
        return drawn_from_noise(self.base, context, self.pool)

    def _context(self, rows: Tensor, views: ViewPool) -> Context:
        captions = [self.pool.captions[row] for row in rows.tolist()]
        return self.base.encode_prompts(captions, spatial_tokens(self.encoders, views.masks))


class WordsTask(PlaceTask):
    """E imitates the token vectors of the words for the place, the last ones where these are more."""

    def __init__(self, base: LatentDiffusion, pool: ScenePool, encoders: dict[str, SpatialEncoder]) -> None:
        super().__init__(base, pool, encoders)
        words = {place: base.word_vectors(place) for place in set(pool.places)}
        self.vectors = {
            name: torch.stack([words[place][name][-encoder.config.tokens :] for place in pool.places])
            for name, encoder in encoders.items()
        }

    def loss(self, pool: ViewPool, rows: Tensor, t: Tensor, noise: Tensor, template: int) -> Tensor:
        """Squared error (B,) relative to the vectors' mean square."""
        masks = pool.part(rows, self.base.device).masks
        errors = [
            (tokens - self.vectors[name][rows]).square().flatten(1).mean(1)
            / self.vectors[name].square().mean()
            for name, tokens in spatial_tokens(self.encoders, masks).items()
        ]
        return torch.stack(errors).mean(0)
