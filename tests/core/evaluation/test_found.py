"""Guards evaluation/found.py: what was found on each test photo is told rightly, and shown enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.dataset.layout import Pair
from anomalydiffusion_core.evaluation.found import (
    SHOWN_OF_EACH,
    FoundDefect,
    close_ups,
    found_defects,
    tally,
)
from anomalydiffusion_core.evaluation.localization import read_test_photos
from anomalydiffusion_core.evaluation.localizer import Predictions
from anomalydiffusion_core.evaluation.split import Split
from anomalydiffusion_core.report.shown_pair import GAP, TILE

SIZE = 32
GREY = np.full((64, 64, 3), 100, np.uint8)
MARK = np.zeros((64, 64), bool)
MARK[20:40, 10:30] = True


def split(folder: Path, dents: int) -> Split:
    """A category of `dents` grey photos, marked in the same place, and two normal ones."""
    pairs, normals = [], []
    folder.mkdir()
    for number in range(dents):
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        Image.fromarray(GREY).save(image)
        Image.fromarray(MARK.astype(np.uint8) * 255).save(mask)
        pairs.append(Pair("bolt", "dent", str(number), image, mask))
    for name in ("good0.png", "good1.png"):
        Image.fromarray(GREY).save(folder / name)
        normals.append(folder / name)
    return Split("bolt", {"dent": []}, (), tuple(pairs), tuple(normals))


def predictions(shares: list[float], alarm: float) -> Predictions:
    """Maps that are 1 on the first so many rows of the mark, and on so many of the second normal photo's."""
    maps = torch.zeros(len(shares) + 2, SIZE, SIZE)
    for scores, share in zip(maps, shares, strict=False):
        scores[10 : 10 + round(10 * share), 5:15] = 1  # half the photo's size
    maps[-1, : round(SIZE * alarm)] = 1
    return Predictions(maps, maps.amax((1, 2)))


def test_photos_are_found_in_part_or_missed_by_the_share_of_their_mark(tmp_path: Path) -> None:
    parts = split(tmp_path / "bolt", 4)
    test = read_test_photos(parts, SIZE)
    found, picture = found_defects(predictions([1.0, 0.5, 0.2, 0.0], alarm=0.25), test, parts)
    by_name = {one.photo: one for one in found}
    assert [by_name[f"{n}.png"].verdict for n in range(4)] == ["found", "found", "found in part", "missed"]
    assert [by_name[f"{n}.png"].share for n in range(4)] == [1, 0.5, 0.2, 0]
    assert tally(found) == [("dent", "2 found, 1 found in part, 1 missed")]
    assert by_name["good0.png"].beside == 0 and by_name["good1.png"].beside == 0.25
    # the least found first, then the normal photo with an alarm; the other one has nothing to show
    assert [one.photo for one in found] == ["3.png", "2.png", "1.png", "0.png", "good1.png", "good0.png"]
    assert picture.size == (3 * TILE + 2 * GAP, 5 * TILE) and len(close_ups(picture, TILE)) == 5


def test_a_close_up_shows_the_mark_large_and_what_was_found_in_orange(tmp_path: Path) -> None:
    parts = split(tmp_path / "bolt", 1)
    found, picture = found_defects(predictions([1.0], alarm=0), read_test_photos(parts, SIZE), parts)
    assert found[0].sentence == "dent 0.png: found, 100 % of the mark; besides it nothing of the photo."
    plain, outlined, coloured = (
        np.asarray(picture)[:, start : start + TILE] for start in range(0, picture.width, TILE + GAP)
    )
    middle = TILE // 2
    assert plain[middle, middle].tolist() == [100, 100, 100] == outlined[middle, middle].tolist()
    assert coloured[middle, middle].tolist() == [193, 124, 40]  # 0.4 of 100 and 0.6 of (255, 140, 0)
    assert (outlined != plain).any(-1).mean() > 0.01
    orange = (coloured[..., 2] < 70).mean()
    assert orange == pytest.approx((20 / 52) ** 2, abs=0.03)  # the mark in a close-up of at least 52 pixels


def test_many_photos_are_all_counted_and_some_shown(tmp_path: Path) -> None:
    count = SHOWN_OF_EACH + 3
    parts = split(tmp_path / "bolt", count)
    shares = [1.0] * count
    shares[-1] = 0.0
    found, picture = found_defects(predictions(shares, alarm=0), read_test_photos(parts, SIZE), parts)
    assert len(found) == count + 2 and picture.height == SHOWN_OF_EACH * TILE
    assert found[0].photo == f"{count - 1}.png" and tally(found) == [("dent", f"{count - 1} found, 1 missed")]


def test_normal_photos_are_told_apart_in_words() -> None:
    assert FoundDefect("a.png", None, 0, 0.0123).sentence == (
        "Normal photo a.png: 1.2 % of it was taken for a defect."
    )
    assert FoundDefect("a.png", None, 0, 0).sentence.endswith("nothing of it was taken for a defect.")
