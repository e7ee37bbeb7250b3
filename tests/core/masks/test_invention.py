"""Masks: what is refused and why, and that exactly the asked number comes back or an error with reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.masks import invention as masks_module
from anomalydiffusion_core.masks.invention import (
    MaskConfig,
    TriesExhausted,
    clean_mask,
    invent_for_types,
    invent_masks,
    invent_shapes,
    invented_masks,
    mask_picture_size,
    mask_problem,
    usable_for,
)
from anomalydiffusion_core.method.embeddings import Learned, Placement
from anomalydiffusion_core.method.sampling import SamplingConfig

CONFIG = MaskConfig(sampling=SamplingConfig(steps=2))


def rectangle(top: int, left: int, height: int, width: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (rectangle(0, 0, 0, 0), "empty"),
        (rectangle(50, 50, 1, 9), "tiny"),  # 9 of 10,000 pixels; a thousandth is 10
        (rectangle(50, 50, 1, 10), None),
        (rectangle(10, 10, 75, 80), "full"),  # 60 %
        (rectangle(20, 20, 50, 60), None),
        (rectangle(0, 10, 10, 34), "border"),  # 34 of the top line's 100 pixels
        (rectangle(90, 10, 10, 34), "border"),
        (rectangle(10, 0, 34, 10), "border"),
        (rectangle(10, 90, 34, 10), "border"),
        (rectangle(0, 10, 10, 33), None),
        (~rectangle(0, 0, 0, 0), "full"),
    ],
)
def test_empty_tiny_full_and_border_filling_masks_are_refused(mask: np.ndarray, problem: str | None) -> None:
    assert mask_problem(mask, MaskConfig()) == problem


def test_small_defects_have_small_masks(learned: Learned) -> None:
    learned.mask_areas = {"toy/speck": 0.0008, "toy/patch": 0.03}
    speck = usable_for(MaskConfig(), learned, "toy/speck")
    assert mask_problem(rectangle(50, 50, 1, 4), speck) is None  # 4 of 10,000 pixels, half the smallest
    assert mask_problem(rectangle(50, 50, 1, 3), speck) == "tiny"
    for name in ("toy/patch", "toy/unknown"):
        assert usable_for(MaskConfig(), learned, name) == MaskConfig()


def test_sizes_are_those_in_the_photos_not_in_enlarged_views(learned: Learned) -> None:
    learned.mask_areas = {"toy/hairline": 0.001, "toy/flood": 0.6}
    learned.mask_placements = {
        "toy/hairline": [Placement(0.5, 0.0002, None), Placement(0.5, 0.0004, None)],
        "toy/flood": [Placement(0.9, 0.3, None), Placement(0.9, 0.65, None)],
    }
    hairline, flood = (usable_for(MaskConfig(), learned, name) for name in learned.mask_areas)
    assert (hairline.smallest, hairline.largest) == (0.0001, 0.5)
    assert (flood.smallest, flood.largest) == (0.001, 0.65)


def test_a_mask_must_lie_on_the_object_where_there_is_one() -> None:
    foreground = rectangle(0, 0, 100, 50)
    assert mask_problem(rectangle(40, 40, 10, 10), MaskConfig(), foreground) is None  # wholly on it
    assert mask_problem(rectangle(40, 41, 10, 10), MaskConfig(), foreground) is None  # nine tenths
    assert mask_problem(rectangle(40, 42, 10, 10), MaskConfig(), foreground) == "off the object"
    assert mask_problem(rectangle(40, 70, 10, 10), MaskConfig(), foreground) == "off the object"


def test_types_that_overhang_the_object_may_do_so_a_little_further(learned: Learned) -> None:
    learned.mask_placements = {
        "thing/tip": [Placement(0.1, 0.01, None, on_object=0.6), Placement(0.1, 0.01, None, on_object=0.8)],
        "thing/gone": [Placement(0.1, 0.01, None, on_object=0.02)],
        "thing/on": [Placement(0.1, 0.01, None)],
    }
    foreground = rectangle(0, 0, 100, 50)
    tip = usable_for(MaskConfig(), learned, "thing/tip")
    assert mask_problem(rectangle(40, 45, 10, 10), tip, foreground) is None  # half of it, 0.1 below the least
    assert mask_problem(rectangle(40, 46, 10, 10), tip, foreground) == "off the object"
    gone = usable_for(MaskConfig(), learned, "thing/gone")
    assert mask_problem(rectangle(40, 70, 10, 10), gone, foreground) is None
    assert usable_for(MaskConfig(), learned, "thing/on") == MaskConfig()


def test_thresholding_closes_pin_holes_and_drops_specks() -> None:
    wanted = rectangle(10, 10, 20, 20)
    values = np.where(wanted, 0.4, -0.4)
    values[20, 20] = -1  # a pin hole
    values[60, 60] = 1  # a speck, 1 of 400 pixels
    assert np.array_equal(clean_mask(values, CONFIG), wanted)
    assert not clean_mask(values, replace(CONFIG, threshold=0.5))[wanted].any()
    second = rectangle(60, 60, 5, 8)  # exactly a tenth of the largest
    assert np.array_equal(clean_mask(np.where(wanted | second, 1.0, -1.0), CONFIG), wanted | second)


@pytest.fixture
def painter(fake_base):  # type: ignore[no-untyped-def]
    """A fake base that decodes a latent to a white rectangle; every other one on average is empty."""

    class Painter(type(fake_base)):  # type: ignore[misc]
        def decode(self, latent: Tensor) -> Tensor:
            picture = torch.full((len(latent), 3, 64, 64), -1.0)
            for row, z in zip(picture, latent, strict=True):
                number = int(z.abs().sum() * 1000)
                top, left, side = 4 + number % 31, 5 + number // 7 % 29, 6 + number // 3 % 9
                if number % 2:
                    row[:, top : top + side, left : left + side] = 1
            return picture

    return Painter()


def test_shapes_are_invented_at_the_base_s_own_size_and_laid_into_the_photo_s(
    painter,  # type: ignore[no-untyped-def]
    learned: Learned,
) -> None:
    assert [mask_picture_size(painter, size) for size in (32, 64, 256)] == [32, 64, 64]
    learned.image_size, learned.mask_placements = 160, {"thing/stain": [Placement(0.1, 1.0, (0.5, 0.5))]}
    masks = invent_masks(painter, learned, "thing/stain", 6, seed=3, config=CONFIG)
    assert all(mask.shape == (160, 160) for mask in masks)
    for mask in masks:
        assert 0.08 * 160 - 1 <= mask.any(0).sum() <= 0.125 * 160 + 1
        assert mask[64:96, 64:96].sum() == mask.sum() > 0
    again = invented_masks(painter, learned, "thing/stain", 3, config=CONFIG, batch=1)
    assert all(np.array_equal(again(i), mask) for i, mask in enumerate(masks))


@pytest.mark.parametrize("count", [0, 1, 5, 11])
def test_exactly_the_asked_number_of_usable_masks_comes_back(painter, learned: Learned, count: int) -> None:  # type: ignore[no-untyped-def]
    masks = invent_masks(painter, learned, "thing/stain", count, seed=3, config=CONFIG)
    assert len(masks) == count
    assert all(mask_problem(mask, CONFIG) is None for mask in masks)


def test_masks_are_the_first_usable_ones_in_the_order_of_tries(painter, learned: Learned) -> None:  # type: ignore[no-untyped-def]
    tries = [invent_shapes(painter, learned, "thing/stain", [i], seed=3, config=CONFIG)[0] for i in range(20)]
    usable = [mask for mask in tries if mask.any()]
    assert 0 < len(usable) < 20
    masks = invent_masks(painter, learned, "thing/stain", 4, seed=3, config=CONFIG)
    assert all(np.array_equal(a, b) for a, b in zip(masks, usable, strict=False))


def test_mask_number_i_is_the_same_whatever_the_batch_and_whatever_was_asked_before(
    painter,  # type: ignore[no-untyped-def]
    learned: Learned,
) -> None:
    one, other = (
        invented_masks(painter, learned, "thing/stain", 3, config=CONFIG, batch=batch) for batch in (1, 5)
    )
    sixth = other(6)
    assert [np.array_equal(one(i), other(i)) for i in range(7)] == [True] * 7
    assert np.array_equal(one(6), sixth)
    elsewhere = invented_masks(painter, learned, "thing/stain", 4, config=CONFIG)
    assert not all(np.array_equal(elsewhere(i), one(i)) for i in range(3))


def test_masks_go_on_after_a_known_one_without_those_before(painter, learned: Learned) -> None:  # type: ignore[no-untyped-def]
    whole = invented_masks(painter, learned, "thing/stain", 3, config=CONFIG, batch=3)
    masks = [whole(number) for number in range(8)]
    known = whole.attempt_of(5)
    told: list[tuple[int, int]] = []
    on = invented_masks(
        painter,
        learned,
        "thing/stain",
        3,
        config=CONFIG,
        batch=3,
        after=(5, known),
        on_mask=lambda *numbers: told.append(numbers),
    )
    assert known > 5  # some tries before it were useless
    assert np.array_equal(on(6), masks[6]) and on.attempt_of(6) == whole.attempt_of(6)
    first = (known + 1) // 3 * 3  # of the batch that the next try is in
    assert told[0][1] == first + 3 and told[-1][0] >= 7
    assert np.array_equal(on(2), masks[2]) and np.array_equal(on(7), masks[7])


def test_unplaced_shapes_stay_where_they_were_invented(painter, learned: Learned) -> None:  # type: ignore[no-untyped-def]
    learned.mask_placements = {"thing/stain": [Placement(0.1, 1.0, (0.5, 0.5))]}
    shapes = invented_masks(painter, learned, "thing/stain", 3, config=CONFIG, in_frame=False)
    tries = [invent_shapes(painter, learned, "thing/stain", [i], seed=3, config=CONFIG)[0] for i in range(20)]
    usable = [shape for shape in tries if shape.any()]
    assert all(np.array_equal(shapes(i), usable[i]) for i in range(4))


def test_when_tries_run_out_the_error_says_how_many_were_usable_and_what_was_wrong(
    painter,  # type: ignore[no-untyped-def]
    learned: Learned,
) -> None:
    strict = replace(CONFIG, smallest=0.9, tries_per_mask=8)
    with pytest.raises(TriesExhausted, match=r"Only 0 of 1 masks of thing/stain .* after 8 tries") as caught:
        invent_masks(painter, learned, "thing/stain", 2, seed=3, config=strict)
    message = str(caught.value)
    empty = sum(
        not m.any()
        for m in invent_shapes(painter, learned, "thing/stain", list(range(8)), seed=3, config=strict)
    )
    assert f"{empty} empty" in message
    assert f"{8 - empty} tiny" in message


def test_an_unknown_type_is_told_which_exist(painter, learned: Learned) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no mask embedding for 'thing/dent'.*thing/scratch, thing/stain"):
        invent_masks(painter, learned, "thing/dent", 1, seed=3, config=CONFIG)


def test_types_that_fall_short_do_not_cost_the_others_their_masks(
    painter,  # type: ignore[no-untyped-def]
    learned: Learned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blank_stains(base, learned, defect_type, indices, **settings):  # type: ignore[no-untyped-def]
        shapes = invent_shapes(base, learned, defect_type, indices, **settings)
        return [shape & (defect_type != "thing/stain") for shape in shapes]

    monkeypatch.setattr(masks_module, "invent_shapes", blank_stains)
    few, types = replace(CONFIG, tries_per_mask=8), ["thing/stain", "thing/scratch"]
    invention = invent_for_types(painter, learned, types, 3, seed=3, config=few, on_stage=lambda *_: None)
    assert list(invention.masks) == ["thing/scratch"] and len(invention.masks["thing/scratch"]) == 3
    assert list(invention.shortfalls) == ["thing/stain"]
    assert "Only 0 of 1 masks of thing/stain were usable" in invention.shortfalls["thing/stain"]
    with pytest.raises(TriesExhausted, match="thing/stain"):
        invent_for_types(painter, learned, ["thing/stain"], 1, seed=3, config=few, on_stage=lambda *_: None)
