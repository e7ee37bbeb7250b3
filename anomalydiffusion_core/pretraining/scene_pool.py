"""The scenes that the embedded base is pre-trained on: drawn and encoded once, then latents and captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bases.tiny import architecture as arch
from ..bases.tiny.autoencoder import LappedAutoencoder
from ..method.templates import MASK_TEMPLATES
from ..procedural.photographed import Photographs
from ..procedural.scenes import draw_scene

log = logging.getLogger(__name__)
LARGE = 0.05  # of the latent cells: smaller defects say little about their place at the noisiest timesteps
WORKERS = os.cpu_count() or 1
MASK_WORDS = MASK_TEMPLATES[0].partition("{")[0]


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
    def __init__(self, seed: int, count: int, size: int, photographs: Photographs | None) -> None:
        self.seed, self.count, self.size, self.photographs = seed, count, size, photographs

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        scene = draw_scene(self.seed, index, self.size, self.photographs)
        return torch.from_numpy(scene.image), torch.from_numpy(scene.mask), scene.caption


def scene_batches(
    seed: int, count: int, size: int, batch: int = 64, *, photographs: Photographs | None = None
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Images (B,3,n,n) in [-1,1], masks (B,1,n,n) bool and captions of the first `count` scenes."""
    loader = torch.utils.data.DataLoader(
        _Scenes(seed, count, size, photographs), batch_size=batch, num_workers=WORKERS
    )
    for images, masks, captions in loader:
        # BHWC -> BCHW
        yield images.permute(0, 3, 1, 2).float() / 127.5 - 1, masks[:, None], list(captions)


def caption_vocabulary(tokenizer: Any, captions: list[str]) -> Tensor:
    """Sorted CLIP token ids that occur, with start and end of text last."""
    ids = {i for caption in captions for i in tokenizer(caption.replace("{}", " ")).input_ids}
    return torch.tensor(sorted(ids | {49406, 49407}), dtype=torch.int32)


@dataclass(frozen=True)
class SceneEncoder:
    """What turns scenes into rows of a pool: the autoencoder, the tokenizer, and the token ids (K,) that the
    base knows: captions are kept as rows of these.
    """

    vae: LappedAutoencoder
    tokenizer: Any
    token_ids: Tensor


class _PoolRows(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """What a pool keeps of each scene, made in the workers."""

    def __init__(self, encoder: SceneEncoder, scenes: _Scenes) -> None:
        self.encoder, self.scenes = encoder, scenes
        self.rows = torch.zeros(arch.VOCABULARY, dtype=torch.int16)
        self.rows[encoder.token_ids.long()] = torch.arange(len(encoder.token_ids), dtype=torch.int16)

    def __len__(self) -> int:
        return len(self.scenes)

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, mask, caption = self.scenes[index]
        pixels = image.permute(2, 0, 1)[None].float() / 127.5 - 1  # HWC -> 1CHW
        latent = self.encoder.vae.encode(pixels)[0]
        tokens = self.encoder.tokenizer(
            caption, padding="max_length", max_length=77, truncation=True
        ).input_ids
        touched = F.max_pool2d(mask[None].float(), 8) > 0
        return latent.half(), touched, self.rows[torch.tensor(tokens)], torch.tensor(MASK_WORDS in caption)


def make_pool(
    encoder: SceneEncoder, seed: int, count: int, size: int, photographs: Photographs | None = None
) -> Pool:
    """Draws `count` scenes of `size` pixels and keeps their latents and captions."""
    rows = _PoolRows(encoder, _Scenes(seed, count, size, photographs))
    parts = []
    for part in torch.utils.data.DataLoader(rows, batch_size=64, num_workers=WORKERS):
        parts.append([tensor.clone() for tensor in part])  # out of the workers' shared memory
        if len(parts) % 100 == 0:
            log.info("pool %d px: %d of %d scenes", size, len(parts) * 64, count)
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))
