"""Guards evaluation/baselines.py: each method's pairs change inside their masks alone, and continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.evaluation.baselines import BASELINES, extended_anomaly, generate_baseline, perlin
from anomalydiffusion_core.evaluation.split import split_category

Write = Callable[[Path, np.ndarray], Path]


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_changes_pixels_inside_its_masks_alone_and_continues(
    name: str, real: Path, tmp_path: Path
) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    once, twice = tmp_path / "once", tmp_path / "twice"
    generate_baseline(name, split, 4, once, seed=3)
    generate_baseline(name, split, 2, twice, seed=3)
    generate_baseline(name, split, 4, twice, seed=3)
    normals = {path.name: read_photo(path).pixels for path in (once / "thing/train/good").iterdir()}
    assert len(normals) == 3
    pairs = find_dataset(once).pairs
    assert len(pairs) == 8
    for pair in pairs:
        pixels, mask = read_photo(pair.image).pixels, np.asarray(Image.open(pair.mask)) > 0
        assert mask.any()
        outside = [np.array_equal(pixels[~mask], normal[~mask]) for normal in normals.values()]
        assert sum(outside) >= 1
    if BASELINES[name].typed:
        assert {pair.defect for pair in pairs} == {"scratch", "stain"}
        for a, b in zip(pairs, find_dataset(twice).pairs, strict=True):
            assert a.image.read_bytes() == b.image.read_bytes() and a.mask.read_bytes() == b.mask.read_bytes()


def test_crop_paste_lays_down_real_pixels(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    generate_baseline("crop-paste", split, 3, tmp_path / "out", seed=0)
    for pair in find_dataset(tmp_path / "out").pairs:
        mask = np.asarray(Image.open(pair.mask)) > 0
        assert (read_photo(pair.image).pixels[mask] == (200, 30, 30)).all()  # what the real defects are


def test_perlin_noise_is_zero_on_its_lattice_and_smooth_between() -> None:
    field = perlin(np.random.default_rng(0), 64, (4, 8))
    assert np.abs(field[::16, ::8]).max() < 1e-12
    assert 0.5 < np.abs(field).max() <= 1 + 1e-9
    assert np.abs(np.diff(field, axis=0)).max() < 0.3 and np.abs(np.diff(field, axis=1)).max() < 0.6


def test_an_unknown_baseline_is_told_which_exist(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    with pytest.raises(ValueError, match="no baseline 'gan': there are crop-paste, cutpaste, draem, prn"):
        generate_baseline("gan", split, 1, tmp_path / "out", seed=0)


def test_prn_lays_defects_on_the_object_also_where_one_photo_hides_the_ground(
    real: Path, tmp_path: Path, write_image: Write
) -> None:
    ground = np.full((64, 64, 3), 200, np.uint8)
    for number, box in enumerate((np.s_[8:40, 10:50], np.s_[:, 20:60], np.s_[4:, 2:])):
        photo = ground.copy()
        photo[box] = 40
        write_image(real / "thing/train/good" / f"{number:03d}.png", photo)
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    assert len(split.normals) == 3
    rows = generate_baseline("prn", split, 12, tmp_path / "prn", seed=0)
    assert {row["normal"] for row in rows} == {f"thing/train/good/{i:05d}.png" for i in range(3)}
    for row in rows:
        normal = read_photo(tmp_path / "prn" / row["normal"]).pixels[..., 0]
        mask = read_mask(tmp_path / "prn" / row["mask"])
        assert (normal[mask] == 40).mean() > 0.85


def test_thin_defects_are_turned_and_mirrored_too() -> None:
    normal, real = np.full((64, 64, 3), 120, np.uint8), np.full((64, 64, 3), 30, np.uint8)
    line = np.zeros((64, 64), bool)
    line[10:30, 20] = True
    widths = set()
    for seed in range(40):
        _, mask = extended_anomaly(np.random.default_rng(seed), normal, [(real, line)], None)
        assert mask.any()
        widths.add(int(np.ptp(np.nonzero(mask)[1])))
    assert len(widths) > 5  # an upright line alone has one


@pytest.mark.parametrize("name", ["crop-paste", "prn"])
def test_a_defect_larger_than_the_photo_is_shrunk(name: str) -> None:
    pixels, mask = np.full((200, 200, 3), 250, np.uint8), np.zeros((200, 200), bool)
    mask[10:190, 10:30] = mask[170:190, 10:190] = True  # an L
    normal = np.full((64, 50, 3), 90, np.uint8)
    for seed in range(5):
        made, marked = BASELINES[name].method(np.random.default_rng(seed), normal, [(pixels, mask)], None)
        assert made.shape == normal.shape and 0 < marked.sum() < marked.size
        assert (made[~marked] == 90).all()
