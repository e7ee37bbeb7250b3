"""Generators that need no training, for comparison: Crop&Paste, CutPaste, DRAEM's textures, PRN's extended
anomalies. Each makes a pair from a normal photo and, where its method uses them, the few real pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from ..dataset.augmentation import box_of, resize_mask
from ..dataset.photos import Photo, file_hash, read_photo
from ..dataset.views import read_pair
from ..export.mvtec import MVTecWriter
from ..export.writer import ExportPair
from ..masks.foreground import ground_of, object_foreground
from ..masks.placement import ON_OBJECT, moved_onto
from ..method.sampling import image_generator
from ..procedural.scenes import draw_scene
from .split import Split

Rng = np.random.Generator
MarkedPhoto = tuple[np.ndarray, np.ndarray]  # pixels (H,W,3) uint8, mask (H,W) bool
# normal pixels, real pairs of one type, where the object is (H,W) bool if known -> a pair
Method = Callable[[Rng, np.ndarray, list[MarkedPhoto], np.ndarray | None], MarkedPhoto]
METHOD = "baselines/2"  # raise the number when the same seed makes other pairs
UNTYPED = "any"  # the defect of methods that know no types


def crop_paste(
    rng: Rng, normal: np.ndarray, real: list[MarkedPhoto], foreground: np.ndarray | None
) -> MarkedPhoto:
    """Crop&Paste (Lin et al., 2021): a real defect, cut out along its mask, laid anywhere on a photo."""
    return _lay(rng, normal, _cut(*real[rng.integers(len(real))]), None)


def extended_anomaly(
    rng: Rng, normal: np.ndarray, real: list[MarkedPhoto], foreground: np.ndarray | None
) -> MarkedPhoto:
    """PRN's extended anomalies (Zhang et al., 2023): a real defect, turned, mirrored, scaled and made lighter
    or darker, laid on the object.
    """
    pixels, mask = _cut(*real[rng.integers(len(real))])
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    pixels, mask = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge"), np.pad(mask, 2)  # room to turn in
    angle, zoom = rng.uniform(0, 360), rng.uniform(0.7, 1.4)
    factors = (zoom, zoom)
    soft = ndimage.rotate(ndimage.zoom(mask.astype(np.float32), factors, order=1), angle, order=1)
    turned = soft > min(0.5, soft.max() / 2)  # a thin defect is never above one half
    picture = ndimage.zoom(pixels.astype(np.float32), (*factors, 1), order=1)
    picture = ndimage.rotate(picture, angle, order=1, mode="nearest")
    picture = (picture - 127.5) * rng.uniform(0.8, 1.2) + 127.5 + rng.uniform(-20, 20)
    return _lay(rng, normal, _cut(picture.clip(0, 255).astype(np.uint8), turned), foreground)


def cut_paste(
    rng: Rng, normal: np.ndarray, real: list[MarkedPhoto], foreground: np.ndarray | None
) -> MarkedPhoto:
    """CutPaste (Li et al., 2021): a rectangle of the normal photo, its colours jittered, laid elsewhere on
    it; 2 to 15 % of the photo, sides 0.3 to 3.3 to each other.
    """
    height, width = normal.shape[:2]
    area, aspect = rng.uniform(0.02, 0.15) * height * width, np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    h = int(np.clip(np.sqrt(area / aspect), 1, height - 1))
    w = int(np.clip(np.sqrt(area * aspect), 1, width - 1))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    patch = normal[y : y + h, x : x + w].astype(np.float32)
    patch = (patch - 127.5) * rng.uniform(0.9, 1.1) + 127.5 * rng.uniform(0.9, 1.1)
    return _lay(rng, normal, (patch.clip(0, 255).astype(np.uint8), np.ones((h, w), bool)), None)


def draem_texture(
    rng: Rng, normal: np.ndarray, real: list[MarkedPhoto], foreground: np.ndarray | None
) -> MarkedPhoto:
    """DRAEM (Zavrtanik et al., 2021): another texture blended in where Perlin noise exceeds 0.5, with an
    opacity of 0.2 to 1. Textures are this package's procedural surfaces, in place of the DTD photos.
    """
    height, width = normal.shape[:2]
    side = 1 << int(np.ceil(np.log2(max(height, width))))
    mask = np.zeros((height, width), bool)
    while not mask.any():
        cells = [2 ** int(rng.integers(0, 6)) for _ in range(2)]
        field = ndimage.rotate(perlin(rng, side, (cells[0], cells[1])), rng.uniform(-90, 90), reshape=False)
        mask = field[:height, :width] > 0.5
    scenes = (draw_scene(int(rng.integers(1 << 31)), 0, 256) for _ in range(1000))
    scene = next(scene for scene in scenes if not scene.is_mask_picture)
    texture = torch.from_numpy(scene.image.astype(np.float32)).permute(2, 0, 1)[None]
    texture = (
        F.interpolate(texture, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    )
    opacity = 1 - rng.uniform(0, 0.8)
    blended = normal + opacity * (texture - normal.astype(np.float32))
    return np.where(mask[..., None], blended.clip(0, 255).astype(np.uint8), normal), mask


@dataclass(frozen=True)
class Baseline:
    """How a method makes pairs, whether it uses the real pairs of a type, and whether it seeks the object."""

    method: Method
    typed: bool
    on_object: bool = False


BASELINES: dict[str, Baseline] = {
    "crop-paste": Baseline(crop_paste, True),
    "cutpaste": Baseline(cut_paste, False),
    "draem": Baseline(draem_texture, False),
    "prn": Baseline(extended_anomaly, True, on_object=True),
}


def perlin(rng: Rng, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Perlin's gradient noise (side,side), about [-1,1], over a lattice of `cells` that divide `side`."""
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.cos(angles), np.sin(angles)], -1)
    y, x = (np.arange(side) * count / side for count in cells)
    row, column = y.astype(int)[:, None], x.astype(int)[None]
    dy, dx = (y - y.astype(int))[:, None], (x - x.astype(int))[None]

    def corner(down: int, right: int) -> np.ndarray:
        gradient = gradients[row + down, column + right]
        return gradient[..., 0] * (dy - down) + gradient[..., 1] * (dx - right)

    fade_y, fade_x = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (dy, dx))
    upper = corner(0, 0) + fade_x * (corner(0, 1) - corner(0, 0))
    lower = corner(1, 0) + fade_x * (corner(1, 1) - corner(1, 0))
    return np.sqrt(2) * (upper + fade_y * (lower - upper))


def find_baseline(name: str) -> Baseline:
    """The baseline of this name. Raises ValueError naming the known ones."""
    if name not in BASELINES:
        raise ValueError(f"There is no baseline {name!r}: there are {', '.join(BASELINES)}.")
    return BASELINES[name]


def generate_baseline(
    name: str,
    split: Split,
    count: int,
    out: Path,
    *,
    seed: int,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Brings `out` to `count` pairs of each defect type, exported as ours are, and returns their manifest
    rows; methods without types make as many in all.

    A repeated call continues; pair i of a seed, from the same real photos, is always the same.

    Raises ValueError naming the known methods.
    """
    baseline, writer = find_baseline(name), MVTecWriter(out)
    counts = dict.fromkeys(split.defects, count) if baseline.typed else {UNTYPED: count * len(split.defects)}
    total, rows = sum(counts.values()), []
    ground = ground_of(split.normals) if baseline.on_object else None
    hashes = [file_hash(path) for path in split.normals]
    run = _run_id(name, seed, split, hashes)
    normals = writer.add_normals(split.category, map(read_photo, split.normals))
    for defect, wanted in counts.items():
        real = [
            (photo.pixels, mask[0].numpy() > 0)
            for photo, mask in map(read_pair, split.few_shot.get(defect, []))
        ]
        rows += writer.done(split.category, defect, run)[:wanted]
        for index in range(len(writer.done(split.category, defect, run)), wanted):
            rng = np.random.default_rng(image_generator(seed, index, f"{name} {defect}").initial_seed())
            number = int(rng.integers(len(split.normals)))
            photo = read_photo(split.normals[number])
            foreground = object_foreground(photo.pixels, ground) if ground else None
            pixels, mask = baseline.method(rng, photo.pixels, real, foreground)
            row = {"run": run, "index": index, "seed": seed, "method": name}
            row |= {"normal": normals[number], "normal_sha256": hashes[number]}
            pair = ExportPair(split.category, Photo(pixels, photo.gray), {defect: mask}, row)
            rows.append(writer.write(pair))
            on_pair(len(rows), total)
    return rows


def _run_id(name: str, seed: int, split: Split, normal_hashes: list[str]) -> str:
    """Of what the pairs depend on: the method, the seed, and every photo they are made from."""
    files = [path for pair in split.few_shot_pairs for path in (pair.image, pair.mask)]
    origin = json.dumps(
        [METHOD, name, seed, split.defects, normal_hashes, [file_hash(path) for path in files]]
    )
    return hashlib.sha256(origin.encode()).hexdigest()[:12]


def _cut(pixels: np.ndarray, mask: np.ndarray) -> MarkedPhoto:
    top, bottom, left, right = box_of(mask)
    return pixels[top:bottom, left:right], mask[top:bottom, left:right]


def _lay(rng: Rng, normal: np.ndarray, defect: MarkedPhoto, foreground: np.ndarray | None) -> MarkedPhoto:
    """A cut-out defect (h,w) laid on the photo at a random place, on the foreground where one is given."""
    pixels, mask = defect
    height, width = normal.shape[:2]
    shrink = min(1.0, 0.9 * height / mask.shape[0], 0.9 * width / mask.shape[1])
    if shrink < 1:
        size = [max(1, int(shrink * side)) for side in mask.shape]
        pixels = np.asarray(Image.fromarray(pixels).resize((size[1], size[0])))
        mask = resize_mask(torch.from_numpy(mask.astype(np.uint8))[None], (size[0], size[1]))[0].numpy() > 0
    h, w = mask.shape
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    where = np.zeros((height, width), bool)
    where[y : y + h, x : x + w] = mask
    if foreground is not None:
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
        moved = moved_onto(where, foreground, ON_OBJECT, generator)
        where = where if moved is None else moved
    result = normal.copy()
    result[where] = pixels[mask]  # both in reading order
    return result, where
