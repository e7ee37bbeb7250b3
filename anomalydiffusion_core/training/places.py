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
from ..method.embeddings import Learned
from ..method.latent_diffusion import PLACEHOLDER, Context, LatentDiffusion
from ..method.spatial_encoder import SpatialEncoder
from ..method.templates import PHOTO_TEMPLATES
from ..procedural.scenes import COLUMNS, ROWS, Scene, draw_scene
from .config import EncoderTrainingConfig, PlacesConfig
from .encoders import untrained_encoders
from .history import training_record
from .stage import End, TrainingOutcome, TrainingRun
from .task import Batch, sampled_from_noise

PLACE = re.compile(rf" at the (?:{'|'.join(ROWS)}) (?:{'|'.join(sorted(COLUMNS, key=len, reverse=True))})")
# Below this timestep a noisy mask picture still shows where the defect is, so that a model ignores words and
# tokens that say it.
PLACE_FROM = 900
EARLIEST = {"photo": 200, "mask picture": PLACE_FROM}  # timesteps that are learned from
DEFECT_WEIGHT = 8.0  # of latent cells that the defect touches
SCENE_SIZE = 256  # pixels per side at most, then enlarged: drawn at 512, a scene takes four times as long


@dataclass
class PlacedScenes:
    """Scenes with one defect: `images` (N,3,n,n) in [-1,1], `masks` (N,1,n,n) uint8, `captions` with {} for
    the place, `places` in words, and `types`, as in `EARLIEST`.
    """

    images: Tensor
    masks: Tensor
    captions: list[str]
    places: list[str]
    types: list[str]


def placed_scenes(seed: int, count: int, size: int, batch: int) -> Iterator[PlacedScenes]:
    """The first `count` scenes of the stream `seed` whose caption names one place, a batch at a time."""
    scenes: list[Scene] = []
    index = taken = 0
    while taken < count:
        scene = draw_scene(seed, index, size)
        index += 1
        if len(PLACE.findall(scene.caption)) == 1:
            scenes.append(scene)
            taken += 1
        if scenes and (taken == count or len(scenes) == batch):
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
    """Scenes as views, whose types are those in `EARLIEST`; `captions` with {} for the place, and `places` in
    words.

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
    *,
    batch: int = 4,
) -> ScenePool:
    """Draws `count` scenes and encodes them at the base's native size, a batch at a time."""
    native = (base.native_size, base.native_size)
    latents, masks, captions, places, types = [], [], [], [], []
    for part in placed_scenes(seed, count, min(base.native_size, SCENE_SIZE), batch):
        latents.append(base.encode(F.interpolate(part.images, native, mode="bilinear")).cpu())
        masks.append(part.masks)
        captions += part.captions
        places += part.places
        types += part.types
        on_scene(len(captions), count)
    names = sorted(set(types))
    numbers = torch.tensor([names.index(name) for name in types])
    return ScenePool(torch.cat(latents), torch.cat(masks), numbers, names, captions, places)


class PlaceTask:
    """E: the base, told by words what the defect is and by E(mask) where, must denoise the scene."""

    def __init__(
        self,
        base: LatentDiffusion,
        pool: ScenePool,
        encoders: dict[str, SpatialEncoder],
        config: PlacesConfig,
    ) -> None:
        self.base, self.pool, self.config = base, pool, config
        self.encoders = {name: encoder.to(base.device).train() for name, encoder in encoders.items()}
        self.earliest = torch.tensor([EARLIEST[name] for name in pool.names])

    def parameter_groups(self) -> list[dict]:
        parameters = [p for encoder in self.encoders.values() for p in encoder.parameters()]
        return [{"params": parameters, "lr": self.config.encoder_rate}]

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        """Squared error of v (B,), whatever the base predicts: that of epsilon says next to nothing at the
        noisiest timesteps, where the place is decided.
        """
        schedule, views, noise = self.base.schedule, pool.part(batch.rows, self.base.device), batch.noise
        earliest = self.earliest[pool.types[batch.rows]].to(batch.t.device)
        t = (earliest + (1 - earliest / schedule.steps) * batch.t).long()
        context = self._context(batch.rows, views)
        eps_hat = self.base.predict_noise(schedule.add_noise(views.latents, noise, t), t, context)
        alpha, _ = schedule.alpha_sigma(t)
        touched = F.adaptive_max_pool2d(views.masks.float(), noise.shape[-2:])
        weight = 1 + (DEFECT_WEIGHT - 1) * touched
        error = ((eps_hat - noise) / alpha).square().mean(1, keepdim=True)
        return (weight * error).flatten(1).mean(1) / weight.flatten(1).mean(1)

    @torch.no_grad()
    def preview(self, rows: Tensor) -> Tensor:
        """The scenes invented from noise, by their captions and E(mask)."""
        context = self._context(rows, self.pool.part(rows, self.base.device))
        return sampled_from_noise(self.base, context, self.pool)

    def _context(self, rows: Tensor, views: ViewPool) -> Context:
        captions = [self.pool.captions[row] for row in rows.tolist()]
        return self.base.encode_prompts(captions, spatial_tokens(self.encoders, views.masks))


class WordsTask(PlaceTask):
    """E imitates the token vectors of the words for the place, the last ones where these are more."""

    def __init__(
        self,
        base: LatentDiffusion,
        pool: ScenePool,
        encoders: dict[str, SpatialEncoder],
        config: PlacesConfig,
    ) -> None:
        super().__init__(base, pool, encoders, config)
        words = {place: base.word_vectors(place) for place in set(pool.places)}
        self.vectors = {
            name: torch.stack([words[place][name][-encoder.config.tokens :] for place in pool.places])
            for name, encoder in encoders.items()
        }

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        """Squared error (B,) relative to the vectors' mean square."""
        masks = pool.part(batch.rows, self.base.device).masks
        errors = [
            (tokens - self.vectors[name][batch.rows]).square().flatten(1).mean(1)
            / self.vectors[name].square().mean()
            for name, tokens in spatial_tokens(self.encoders, masks).items()
        ]
        return torch.stack(errors).mean(0)


def train_encoder(
    base: LatentDiffusion,
    config: EncoderTrainingConfig = EncoderTrainingConfig(),
    run: TrainingRun = TrainingRun(),
) -> TrainingOutcome:
    """Learns E alone, from procedural scenes: first the words for places, then places.

    The outcome's model has no defect types; a `TrainingJob` can start from it. It ends as that does, but a
    KeyboardInterrupt while scenes are drawn, when nothing is learned yet, is passed on.
    """

    def on_scene(done: int, total: int) -> None:
        run.on_stage("scenes", done, total, "drawn and encoded")

    seed = config.places.seed
    pool = make_scenes(base, seed, config.scenes, on_scene)
    encoders = untrained_encoders(base, seed)
    learned = Learned(base.fingerprint, base.native_size, PHOTO_TEMPLATES)
    end = End()
    trainings = ("words", WordsTask, config.words), ("places", PlaceTask, config.places)
    for name, task_class, settings in trainings:
        if end.finished:
            stage = run.stage(name)
            end = stage.train(task_class(base, pool, encoders, settings), settings)
            learned.training[name] = training_record(settings, stage.monitor.history)
    learned.spatial_encoders = {name: encoder.eval() for name, encoder in encoders.items()}
    return TrainingOutcome(learned, None, end)
