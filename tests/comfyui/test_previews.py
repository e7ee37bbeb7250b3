"""What trainings and Generate Masks show while they run: host/training_preview.py, host/mask_invention.py."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_inputs import SAMPLER
from PIL import Image

Run = Callable[..., tuple]
Shown = list[tuple[int, int, Image.Image | None]]
REAL, LEARNED = (200, 40, 40), (40, 200, 40)


@pytest.fixture
def shown(pack: Any, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What progress bars tell the host, in their order: value, total and picture."""
    import comfy.utils  # type: ignore[import-not-found]

    told: Shown = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        if preview is not None:
            assert preview[2] == max(preview[1].size)  # else the host would shrink its text
        told.append((value, total, preview[1] if preview else None))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return told


def host(pack: Any, name: str) -> Any:
    return importlib.import_module(f"{pack.__name__}.nodes.host.{name}")


def extent(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """First row, first column, rows and columns of a colour, which is to fill a rectangle."""
    alike = (np.asarray(picture) == colour).all(-1)
    rows, columns = np.flatnonzero(alike.any(1)), np.flatnonzero(alike.any(0))
    return rows[0], columns[0], 1 + rows[-1] - rows[0], 1 + columns[-1] - columns[0]


@pytest.mark.parametrize(("count", "side"), [(1, 244), (2, 244), (3, 160), (4, 118)])
def test_views_are_as_large_as_the_width_allows_real_ones_first(pack: Any, count: int, side: int) -> None:
    real, learned = ([Image.new("RGB", (16, 16), colour)] * count for colour in (REAL, LEARNED))
    picture = host(pack, "training_preview").views_picture(real, learned)
    (y, x, height, width), (below, right, *_) = extent(picture, REAL), extent(picture, LEARNED)
    assert picture.width == 512 and height == side and width == count * side + (count - 1) * 8
    assert (below == y and right > x + width) if count == 1 else (below > y + height and right == x)
    label = np.asarray(picture)[:y, x : x + 60]
    assert label.max() > 200  # it says "real"


def test_a_training_of_one_type_shows_views_that_can_be_seen(run: Run, trained: Any, shown: Shown) -> None:
    source = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather"}
    one = run("ADiff_LoadDataset", **source, defects="ink", normal_count=1)[0]
    inputs = {"steps": 10, "batch_size": 1, "share": 0.6, "seed": 3, "preview_every": 5, "tokens": 2}
    run("ADiff_TrainAnomaly", **trained.base, dataset=one, **inputs, size=64)
    pictures = [picture for _, _, picture in shown if picture]
    assert pictures and all(picture.width == 512 for picture in pictures)
    assert 244 + 150 < pictures[-1].height < 480  # one row of two views below words and curve
    assert shown[-1][:2] == (10, 10)


def test_generating_masks_counts_masks_and_shows_those_accepted(run: Run, trained: Any, shown: Shown) -> None:
    inputs = {"defect_type": "leather/burn", "count": 3, "seed": 0}
    sampler = {**SAMPLER, "steps": 12, "cfg": 5.0}
    (masks,) = run("ADiff_GenerateMasks", **trained.base, embeddings=trained.embeddings, **inputs, **sampler)
    assert len(masks) == 3 and shown[-1][:2] == (3 * 12, 3 * 12)
    values = [value for value, _, _ in shown]
    assert values[:12] == [3 * step for step in range(12)]  # three hoped for, as the first batch is sampled
    pictures = [picture for _, _, picture in shown if picture]
    assert pictures[-1].width == 512
    below = np.asarray((np.asarray(pictures[-1])[40:] > 200).all(-1))
    white = [below[:, left : left + 118].any() for left in (8, 134, 260, 386)]
    assert white == [True, True, True, False]


def test_generating_masks_can_be_cancelled_within_a_batch(
    run: Run, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]
    import comfy.utils  # type: ignore[import-not-found]

    seen: list[int] = []

    def cancel_at_the_third(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append(value)
        if len(seen) == 3:
            management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel_at_the_third)
    inputs = {"defect_type": "leather/burn", "count": 3, "seed": 0, **SAMPLER, "steps": 12}
    with pytest.raises(management.InterruptProcessingException):
        run("ADiff_GenerateMasks", **trained.base, embeddings=trained.embeddings, **inputs)
    assert len(seen) == 3
    assert torch.is_inference_mode_enabled() is False


def test_masks_are_told_with_what_was_wrong_with_the_others(pack: Any) -> None:
    from collections import Counter

    words = host(pack, "mask_invention").masks_in_words
    assert words(5, 8, 16, Counter({"empty": 3, "full": 1})) == "5 of 8 masks, 16 tried (3 empty, 1 full)"
    assert words(0, 8, 0, Counter()) == "0 of 8 masks, 0 tried"
