"""Photos of any size and depth: regions are made pixel for pixel where they fit the canvas, thin ones too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_sources import given
from torch import Tensor

from anomalydiffusion_core.dataset.photos import Photo, photo_of, write_new
from anomalydiffusion_core.dataset.windows import Region, Window
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.gate.scores import change, seam
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.generation.regions import LEAST_SOFTER, DecodedRegion, in_window, softened
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.sampling import SamplingConfig

KIND = "thing/scratch"
CONFIG = GenerationConfig(
    SamplingConfig(steps=2, guidance=2.0),
    gate=GateConfig((), 0.0),
    foreground="none",
    feather=0.0,
    tries_per_pair=1,
)


def grain(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def rectangles(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """(H,W) bool with rectangles of (top, left, height, width)."""
    mask = np.zeros(size, bool)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


def pair_of(
    base: LatentDiffusion, learned: Learned, folder: Path, photo: Photo, mask: np.ndarray
) -> GeneratedPair:
    write_new(photo.png(), folder / "n.png")
    generator = PairGenerator(base, learned, [folder / "n.png"], CONFIG)
    return next(generator.accepted(KIND, {KIND: given([mask])}, 1))


@pytest.fixture
def exact_base(make_fake_base: Any) -> Any:
    """A base whose autoencoder loses nothing, one latent cell for a pixel. It keeps what it encoded, and
    what it decoded: batches of (B,3,S,S) in turn generated and as they were.
    """

    class ExactBase(make_fake_base):
        factor = 1

        def __init__(self) -> None:
            super().__init__()
            self.encoded: list[Tensor] = []
            self.decoded: list[Tensor] = []

        def encode(self, image: Tensor) -> Tensor:
            self.encoded.append(image)
            return super().encode(image)

        def decode(self, latent: Tensor) -> Tensor:
            self.decoded.append(super().decode(latent))
            return self.decoded[-1]

    base = ExactBase()
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(base.decode(base.encode(image)), image)
    base.encoded.clear()
    base.decoded.clear()
    return base


def test_distant_defects_are_made_each_in_a_window_of_its_own_pixel_for_pixel(
    exact_base: Any, learned: Learned, tmp_path: Path
) -> None:
    photo = photo_of(grain(150, 333, 3))
    mask = rectangles((150, 333), (10, 20, 5, 6), (100, 300, 8, 3), (140, 5, 4, 9))
    pair = pair_of(exact_base, replace(learned, image_size=32), tmp_path, photo, mask)
    # middles (12, 23), (104, 301), (142, 9), each less half a window, moved inside the photo
    corners = [(0, 7), (88, 285), (118, 0)]
    encoded = exact_base.encoded[0]  # the gate encodes afterwards
    generated, _ = exact_base.decoded
    assert len(encoded) == len(generated) == 3
    expected = photo.pixels.astype(np.float64)
    for (top, left), before, after in zip(corners, encoded, generated, strict=True):
        box = np.s_[top : top + 32, left : left + 32]
        # CHW -> HWC
        assert np.array_equal(before.permute(1, 2, 0), photo.pixels[box].astype(np.float32) / 127.5 - 1)
        values = (after.permute(1, 2, 0).numpy().clip(-1, 1) + 1) * 127.5
        expected[box][mask[box]] = values[mask[box]]
    assert np.array_equal(pair.pixels[~mask], photo.pixels[~mask])
    assert np.abs(pair.pixels - expected).max() <= 0.51  # rounded, that is all
    assert (change(photo.pixels, pair.pixels)[mask] > 0).mean() > 0.9


@pytest.mark.parametrize("shape", [(150, 333), (333, 150, 3)])
@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_a_photo_of_any_depth_keeps_every_bit_outside_the_mask(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, shape: tuple[int, ...], white: int
) -> None:
    dtype = np.uint8 if white == 255 else np.uint16
    samples = np.random.default_rng(0).integers(0, white, shape, dtype, endpoint=True)
    mask = rectangles((shape[0], shape[1]), (3, 4, 9, 30), (shape[0] - 30, shape[1] - 40, 20, 11))
    pair = pair_of(fake_base, learned, tmp_path, photo_of(samples), mask)
    result = pair.result.samples
    assert result.dtype == dtype and result.shape == shape and pair.result.white == white
    assert np.array_equal(result[~mask], samples[~mask])
    assert np.mean(result[mask] != samples[mask]) > 0.5
    if dtype == np.uint16:  # what is made uses the depth too
        assert np.any(result[mask] % 256)


@pytest.mark.parametrize("width", [1, 2, 8, 16])
@pytest.mark.parametrize("lying", [True, False])
def test_a_thin_defect_is_made_along_its_whole_length(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, width: int, lying: bool
) -> None:
    """The latent cell is 8 pixels wide."""
    mask = rectangles((97, 113), (31, 13, width, 50))
    photo, mask = grain(97, 113, 3) // 8 + 100, mask
    if not lying:
        photo, mask = photo.swapaxes(0, 1), mask.T
    pair = pair_of(fake_base, learned, tmp_path, photo_of(np.ascontiguousarray(photo)), mask)
    shown = change(pair.photo.pixels, pair.pixels) > pair.noise
    along = shown.any(0 if lying else 1)[13:63]
    assert along.all() and not shown[~mask].any()


def test_a_hair_longer_than_the_canvas_is_made_along_its_whole_length(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path
) -> None:
    """Its window is more than six times as coarse as the photo."""
    mask = np.zeros((400, 420), bool)
    for step in range(300):  # one pixel wide, aslant
        mask[40 + step, 60 + step // 3] = True
    photo = photo_of((grain(400, 420, 3) // 8 + 100).astype(np.uint8))
    pair = pair_of(fake_base, learned, tmp_path, photo, mask)
    assert pair.regions[0][1].before.shape == (420, 420, 3)
    shown = change(photo.pixels, pair.pixels) > pair.noise
    # a few pixels may equal the photo by chance, no run of them
    rows = shown.any(1)[40:340]
    assert rows.mean() > 0.9 and all(rows[start : start + 8].any() for start in range(293))


# --- outlines


def laid(values: float = 250.0, feather: float = 0.0) -> tuple[Photo, DecodedRegion, float]:
    """A photo, a bright square to be laid into it, and the seam that it has then."""
    photo = photo_of((grain(64, 64, 3) // 8 + 100).astype(np.uint8))
    region = Region(Window(0, 0, 64), rectangles((64, 64), (16, 16, 30, 30)))
    made = DecodedRegion(region, np.full((64, 64, 3), values, np.float32), 1.0)
    return photo, made, seam(photo.pasted(made.values, region.mask, feather=feather).pixels, region.mask)


@pytest.mark.parametrize("usual", [2.0, 4.0, 6.0, 8.0, 100.0])
def test_an_outline_is_softened_no_more_than_to_the_usual_one(usual: float) -> None:
    photo, made, _ = laid()
    feathers = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    seams = [laid(feather=feather)[2] for feather in feathers]
    assert seams == sorted(seams, reverse=True)
    enough = [f for f, strength in zip(feathers, seams, strict=True) if strength <= usual]
    result, feather = softened(photo, made, 0.5, 16.0, usual_seam=usual, size=64)
    ends = [
        f for f, a, b in zip(feathers, seams, seams[1:], strict=False) if b > LEAST_SOFTER * a
    ]  # a wider one would only wear the defect off
    assert feather == min([*enough, *ends, 16.0])
    assert np.array_equal(result.pixels, photo.pasted(made.values, made.region.mask, feather=feather).pixels)


def test_an_outline_is_softened_within_its_limits() -> None:
    photo, made, hard = laid()
    assert softened(photo, made, 1.0, 3.0, usual_seam=0.0, size=64)[1] == 3.0
    assert softened(photo, made, 5.0, 3.0, usual_seam=0.0, size=64)[1] == 5.0
    assert softened(photo, made, 0.0, 16.0, usual_seam=None, size=64)[1] == 0.0
    assert softened(photo, made, 0.0, 16.0, usual_seam=hard, size=64)[1] == 0.0
    same = replace(made, values=in_window(photo, made.region.window).levels())
    assert (
        softened(photo, same, 1.0, 16.0, usual_seam=0.0, size=64)[1] == 1.0
    )  # it has no outline that could be softened
