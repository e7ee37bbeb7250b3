"""Mask sources: what each hands out, and that a mixture is drawn by its weights whatever was asked before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mask_sources import given
from scipy import ndimage

from anomalydiffusion_core.masks.edges import touched_sides
from anomalydiffusion_core.masks.invention import TriesExhausted
from anomalydiffusion_core.masks.sources import (
    PROCEDURAL,
    REAL,
    SOURCES,
    MaskRequest,
    Source,
    SourcedMask,
    in_turn,
    invented_in_turn,
    known_placements,
    mask_source,
    masks_in_frame,
    mixed,
    onto_photo,
    parse_weights,
    procedural_masks,
    real_masks,
    usual_weights,
)
from anomalydiffusion_core.method.embeddings import Placement

HOOK = np.zeros((60, 90), bool)
HOOK[20:24, 30:60], HOOK[20:40, 56:60] = True, True
ALL = dict.fromkeys(SOURCES, 1.0)
DENT = MaskRequest("thing/dent", 1)


def numbered(name: str) -> Any:
    return lambda number: SourcedMask(np.full((1, number + 1), True), name)


def test_a_mixture_follows_its_weights_and_asks_each_source_for_its_next_number() -> None:
    weights = {"invented": 3.0, "real": 1.0, "given": 0.0}
    source = mixed({name: numbered(name) for name in SOURCES}, weights, 5, "thing/dent")
    asked = [source(number) for number in range(400)]
    counts = Counter(mask.source for mask in asked)
    assert set(counts) == {"invented", "real"} and counts["invented"] == pytest.approx(300, abs=30)
    for name in counts:
        own = [mask.shape.size - 1 for mask in asked if mask.source == name]
        assert own == list(range(len(own)))
    again = mixed({name: numbered(name) for name in SOURCES}, weights, 5, "thing/dent")
    for number in (399, 7, 0, 120):
        mask = again(number)
        assert (mask.source, mask.shape.size) == (asked[number].source, asked[number].shape.size)
    other = mixed({name: numbered(name) for name in SOURCES}, weights, 6, "thing/dent")
    assert [other(number).source for number in range(40)] != [mask.source for mask in asked[:40]]


def test_where_a_source_of_a_mixture_has_no_more_another_takes_its_turn() -> None:
    def three(number: int) -> SourcedMask:
        if number >= 3:
            raise TriesExhausted("no more")
        return numbered("invented")(number)

    weights = {"invented": 1.0, "real": 1.0}
    source = mixed({"invented": three, "real": numbered("real")}, weights, 5, "thing/dent")
    asked = [source(number) for number in range(20)]
    assert [mask.source for mask in asked].count("invented") == 3
    sizes = [mask.shape.size for mask in asked if mask.source == "real"]
    assert len(set(sizes)) == 17, "none comes twice"
    alone = mixed({"invented": three}, {"invented": 1.0}, 5, "thing/dent")
    with pytest.raises(TriesExhausted, match="no more"):
        alone(3)


USUAL = {"real": 2.0, "invented": 1.0, "procedural": 1.0}


@pytest.mark.parametrize(
    ("real", "invented", "judged", "weights"),
    [
        (True, True, True, USUAL),
        (True, False, True, {"real": 2.0, "procedural": 1.0}),
        (True, True, False, {"real": 2.0, "invented": 1.0}),
        (False, True, True, {"invented": 1.0, "procedural": 1.0}),
        (False, False, True, {"invented": 1.0}),
    ],
)
def test_the_usual_mixture_is_of_what_there_is_and_drawn_masks_only_where_shapes_are_judged(
    real: bool, invented: bool, judged: bool, weights: dict[str, float]
) -> None:
    request = replace(
        DENT,
        real=(lambda: [HOOK]) if real else tuple,
        invented=numbered("invented") if invented else None,
    )
    assert usual_weights(request, judged=judged) == weights
    assert usual_weights(replace(request, given=[HOOK]), judged=judged) == {"given": 1.0}


def test_real_masks_are_cut_out_flipped_turned_and_bent_a_little() -> None:
    source = real_masks(MaskRequest("thing/dent", 3, real=lambda: [HOOK, HOOK[:, ::-1]]))
    corners = set()
    for number in range(40):
        mask = source(number)
        assert mask.source == "real" and not mask.placed
        assert np.array_equal(mask.shape, source(number).shape)
        assert mask.shape.sum() == pytest.approx(HOOK.sum(), rel=0.25)
        assert mask.shape.any(0).all() and mask.shape.any(1).all()
        height, width = mask.shape.shape
        assert 17 <= height <= 33 and 25 <= width <= 40
        middle = np.array(ndimage.center_of_mass(mask.shape)) / mask.shape.shape
        corners.add(tuple((middle > 0.5).tolist()))
    assert len(corners) == 4  # all flips


def test_a_real_mask_that_lay_inside_is_not_laid_at_the_edge() -> None:
    at_edge, generator = [Placement(0.2, 0.02, None, sides=(2,))], torch.Generator().manual_seed(0)
    for source, sides in ((REAL, []), (PROCEDURAL, [2])):
        placed = onto_photo(SourcedMask(HOOK, source), at_edge, None, (90, 90), generator=generator)
        assert placed is not None and touched_sides(placed) == sides


def test_real_masks_that_run_into_the_photo_s_edge_stay_there() -> None:
    mask = np.zeros((60, 90), bool)
    mask[:20, 40:46] = True
    source = real_masks(MaskRequest("thing/dent", 3, real=lambda: [mask]))
    sides = set()
    for number in range(20):
        made = source(number)
        assert made.placed and made.shape.shape == mask.shape
        sides |= {name for name, line in (("top", made.shape[0]), ("bottom", made.shape[-1])) if line.any()}
        assert made.shape[0].any() != made.shape[-1].any()
        placed = onto_photo(made, [], None, (120, 180), generator=torch.Generator())
        assert placed is not None and (placed[0].any() or placed[-1].any())
    assert sides == {"top", "bottom"}  # flipped


def test_given_masks_are_used_as_they_are_in_turn() -> None:
    masks = [HOOK, ~HOOK]
    exact, loose = given(masks), given(masks, placed=False)
    assert all(exact(n).shape is masks[n % 2] and exact(n).placed and not loose(n).placed for n in range(5))
    generator = torch.Generator().manual_seed(0)
    foreground = np.zeros((60, 90), bool)
    assert onto_photo(exact(0), [], foreground, (60, 90), generator=generator) is HOOK  # even off the object
    assert onto_photo(loose(0), [], foreground, (60, 90), generator=generator) is None
    fitted = onto_photo(exact(0), [], None, (120, 180), generator=generator)
    assert fitted is not None and (fitted ^ HOOK.repeat(2, 0).repeat(2, 1)).mean() < 0.01


def test_procedural_masks_need_no_training_and_vary() -> None:
    source = procedural_masks(DENT)
    shapes = [source(number).shape for number in range(12)]
    assert all(shape.any() and shape.dtype == bool for shape in shapes)
    assert np.array_equal(procedural_masks(DENT)(7).shape, shapes[7])
    areas = np.array([shape.mean() for shape in shapes])
    assert areas.max() > 3 * areas.min()  # lines and blobs
    sized = procedural_masks(replace(DENT, area=0.02))
    for number in range(12):
        assert 0.6 * 0.02 <= sized(number).shape.mean() <= 1.25**2 * 0.02 * 1.2


def test_shapes_get_the_size_of_the_type_s_training_masks() -> None:
    placements = [Placement(0.2, 0.01, None)]
    for number in range(6):
        mask = procedural_masks(DENT)(number)
        laid = onto_photo(mask, placements, None, (300, 200), generator=torch.Generator().manual_seed(number))
        assert laid is not None and laid.shape == (300, 200)
        height, width = laid.any(1).sum() / 300, laid.any(0).sum() / 200
        assert max(height, width) <= 0.2 * 1.25 + 0.01
        assert laid.mean() <= 0.01 * 1.25**2 * 1.2


def test_places_come_from_the_artifact_or_from_real_masks() -> None:
    learned = [Placement(0.5, 0.1, (0.5, 0.5))]
    assert known_placements(learned, [HOOK]) == learned
    (place,) = known_placements([], [HOOK, np.zeros_like(HOOK)])
    assert place.extent == pytest.approx(30 / 90) and place.centre is None
    assert known_placements([], []) == []


def test_masks_without_photos_are_placed_in_the_frame() -> None:
    source = mask_source({"given": 1.0, "procedural": 1.0}, MaskRequest("thing/dent", 4, given=[HOOK]))
    masks = masks_in_frame(
        source, 12, [Placement(0.1, 0.004, (0.25, 0.75))], (120, 180), seed=4, defect_type="thing/dent"
    )
    assert len(masks) == 12 and all(mask.shape == (120, 180) and mask.any() for mask in masks)
    for number, mask in enumerate(masks):
        middle = np.array(ndimage.center_of_mass(mask)) / mask.shape
        if source(number).placed:
            assert np.array_equal(
                mask, onto_photo(source(number), [], None, (120, 180), generator=torch.Generator())
            )  # type: ignore[arg-type]
        else:
            assert abs(middle - (0.25, 0.75)).max() < 0.11


def test_a_source_that_cannot_be_served_says_why() -> None:
    for name, reason in (
        ("invented", "none were invented"),
        ("real", "no training masks"),
        ("given", "none were given"),
    ):
        with pytest.raises(ValueError, match=f"thing/dent cannot .* source '{name}', since .*{reason}"):
            mask_source({name: 1.0, "procedural": 1.0}, DENT)
    mask_source({"invented": 0.0, "procedural": 1.0}, DENT)


def test_all_sources_serve_together() -> None:
    request = MaskRequest("thing/dent", invented=invented_in_turn([HOOK]), real=lambda: [HOOK], given=[HOOK])
    source = mask_source(ALL, request)
    masks = [source(number) for number in range(40)]
    assert {mask.source for mask in masks} == set(SOURCES)
    assert all(mask.placed == (mask.source == "given") for mask in masks)


def test_weights_are_read_from_text() -> None:
    assert parse_weights("invented=2, real=0.5") == {"invented": 2, "real": 0.5}
    assert parse_weights("procedural") == {"procedural": 1}
    for wrong in (
        "imagined=1",
        "real=x",
        "real=-1",
        "real=nan",
        "real=inf",
        "real=1e7",
        "real=1e-50",
        "real=0",
        "",
        "=1",
    ):
        with pytest.raises(ValueError, match="of invented, real, given, procedural: got"):
            parse_weights(wrong)


def test_former_names_of_sources_are_still_read() -> None:
    assert parse_weights("generated=2,drawn") == {"invented": 2, "given": 1}
    assert parse_weights("generated=2,invented=1") == {"invented": 3}


def test_masks_in_turn_come_over_and_over_again() -> None:
    masks = [HOOK, ~HOOK, HOOK[::-1]]
    mask = in_turn(masks)
    assert [next(i for i, one in enumerate(masks) if one is mask(n)) for n in range(7)] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]


def test_training_masks_are_not_read_where_no_source_asks_for_them() -> None:
    def unreadable() -> list[np.ndarray]:
        raise AssertionError("the training masks were read")

    mask_source({"procedural": 1.0, "real": 0.0}, replace(DENT, real=unreadable))


def test_a_source_that_is_added_to_the_table_is_mixed_by_its_weight_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dots(request: MaskRequest) -> Any:
        def source(number: int) -> SourcedMask:
            shape = np.zeros((8, 8), bool)
            shape[request.seed, number % 8] = True
            return SourcedMask(shape, "dots")

        return source

    monkeypatch.setitem(SOURCES, "dots", Source(dots, "single dots"))
    weights = parse_weights("dots=1,procedural=1")
    source = mask_source(weights, replace(DENT, seed=5))
    masks = [mask for mask in map(source, range(20)) if mask.source == "dots"]
    assert 4 <= len(masks) <= 16
    for number, mask in enumerate(masks):  # it is asked for its own first, second, ...
        assert np.argwhere(mask.shape).tolist() == [[5, number % 8]]
    with pytest.raises(ValueError, match="of invented, real, given, procedural, dots: got"):
        parse_weights("dashes=1")
