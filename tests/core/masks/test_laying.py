"""Laying masks onto objects: where the training masks lay on theirs, however the object is turned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomalydiffusion_core.masks.edges import touched_sides
from anomalydiffusion_core.masks.object_frame import frame_of
from anomalydiffusion_core.masks.placement import (
    OVERHANG,
    lay,
    lay_on_photos,
    needed_share,
    placement_of,
)
from anomalydiffusion_core.masks.resizing import fit_mask, turned
from anomalydiffusion_core.method.embeddings import Placement

Vector = tuple[float, float]


def screw(degrees: float, at: Vector = (100, 100), size: tuple[int, int] = (200, 200)) -> np.ndarray:
    """A shaft 100 x 16 that points to the right at 0 degrees, with a head 20 x 48 at its left end."""
    along, across = screw_axes(degrees, at, size)
    shaft = (abs(along) <= 50) & (abs(across) <= 8)
    return shaft | ((along >= -70) & (along <= -50) & (abs(across) <= 24))


def screw_axes(
    degrees: float, at: Vector = (100, 100), size: tuple[int, int] = (200, 200)
) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's coordinates along the shaft and across it, in pixels from the shaft's middle."""
    y, x = np.mgrid[: size[0], : size[1]] - np.array(at)[:, None, None]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return c * x - s * y, s * x + c * y


def disc(diameter: float, at: Vector, size: tuple[int, int] = (200, 200)) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 <= (diameter / 2) ** 2


def laid(
    shape: np.ndarray, placements: list[Placement], foreground: np.ndarray | None, seed: int = 0, **more
):  # type: ignore[no-untyped-def]
    size = foreground.shape if foreground is not None else (200, 200)
    return lay(shape, placements, foreground, size, generator=torch.Generator().manual_seed(seed), **more)


SHAPE = disc(40, (64, 64), (128, 128))
LINE = np.zeros((64, 64), bool)
LINE[32, 8:56] = True


@pytest.mark.parametrize("degrees", [0, 37, 90, 161, 180, 250, 305])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_learned_at_the_head_is_laid_at_the_head_however_the_screw_lies(
    degrees: float, mirrored: bool
) -> None:
    placements = [placement_of(disc(11, (100, 40)), screw(0))]
    at = (90, 112)
    foreground, along = screw(degrees, at), screw_axes(degrees, at)[0]
    if mirrored:
        foreground, along = foreground[:, ::-1], along[:, ::-1]
    for seed in range(8):
        mask = laid(SHAPE, placements, foreground, seed)
        assert mask is not None and foreground[mask].mean() >= 0.9
        assert along[mask].mean() == pytest.approx(-60, abs=6 * 1.25 + 3)
        assert 0.8**2 * 95 - 10 <= mask.sum() <= 1.25**2 * 95 + 10


def test_a_part_on_its_other_face_gets_its_masks_at_the_mirrored_place() -> None:
    flag = np.zeros((200, 200), bool)
    flag[90:110, 40:160], flag[110:160, 40:70] = True, True
    corner = disc(14, (150, 55))
    placements = [placement_of(corner, flag)]
    for foreground, near in (
        (flag[::-1], corner[::-1]),
        (flag.T, corner.T),
        (flag[:, ::-1], corner[:, ::-1]),
    ):
        mask = laid(SHAPE, placements, foreground)
        assert mask is not None
        wanted, found = (np.array(ndimage.center_of_mass(marked)) for marked in (near, mask))
        assert abs(wanted - found).max() <= 7 * 1.25 + 2


@pytest.mark.parametrize("degrees", [0, 50, 130, 270])
def test_a_line_along_the_shaft_stays_along_the_shaft(degrees: float) -> None:
    along, across = screw_axes(0)
    placements = [placement_of((abs(along) < 30) & (abs(across) < 1.5), screw(0))]
    foreground = screw(degrees)
    shaft = np.array([-np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    turns = []
    for seed in range(12):
        mask = laid(LINE.T if seed % 2 else LINE, placements, foreground, seed)
        assert mask is not None
        turns.append(np.degrees(np.arccos(abs(frame_of(mask).axes[0] @ shaft))))
        assert 0.75 * 60 <= 2 * frame_of(mask).half[0] <= 1.3 * 60
    assert max(turns) <= 21 and max(turns) > 5


def test_types_that_overhang_the_object_keep_their_overhang() -> None:
    along, across = screw_axes(0)
    tip = (abs(along - 50) < 8) & (abs(across) < 6)  # half of it beyond the tip
    (place,) = placements = [placement_of(tip, screw(0))]
    assert 0.45 < place.on_object < 0.6
    shares = []
    for seed in range(40):
        foreground = screw(20 * seed)
        mask = laid(SHAPE, placements, foreground, seed)
        assert mask is not None
        shares.append(foreground[mask].mean())
    assert min(shares) >= place.on_object - OVERHANG
    assert np.mean(shares) < 0.8 and np.std(shares) > 0.05
    assert not np.allclose(shares, 1)


def test_on_round_objects_the_distance_from_the_middle_counts_at_any_angle() -> None:
    wheel = disc(120, (90, 100))
    placements = [placement_of(disc(10, (90, 145)), wheel)]  # 45 from the middle
    other = disc(120, (110, 80))
    ways = []
    for seed in range(60):
        mask = laid(SHAPE, placements, other, seed)
        assert mask is not None
        way = np.array(ndimage.center_of_mass(mask)) - (110, 80)
        assert np.hypot(*way) == pytest.approx(45, abs=1.25 * 10 / 2**0.5 + 1)
        ways.append(way)
    assert abs(np.mean(ways, 0)).max() < 15 and np.std(ways, 0).min() > 25


def test_places_carry_over_to_photos_of_other_sizes_and_sides() -> None:
    placements = [placement_of(disc(11, (100, 40)), screw(0))]
    wide = screw(30, (75, 200), (150, 400))  # another share of a photo of another form
    mask = laid(SHAPE, placements, wide)
    assert mask is not None and mask.shape == (150, 400)
    area = placements[0].area * 150 * 400
    assert 0.8**2 * area - 15 <= mask.sum() <= 1.25**2 * area + 15
    assert screw_axes(30, (75, 200), (150, 400))[0][mask].mean() == pytest.approx(-60, abs=15)
    double = screw(30).repeat(2, 0).repeat(2, 1)
    small, large = laid(SHAPE, placements, screw(30)), laid(SHAPE, placements, double)
    assert small is not None and large is not None
    assert large.sum() / small.sum() == pytest.approx(4, rel=0.05)
    middles = [np.array(ndimage.center_of_mass(mask)) for mask in (small, large)]
    np.testing.assert_allclose(middles[1] / 2, middles[0], atol=4)


def test_textures_need_no_foreground() -> None:
    placements = [placement_of(disc(20, (50, 50)), None)]
    masks = [laid(SHAPE, placements, None, seed) for seed in range(60)]
    middles = np.array([ndimage.center_of_mass(mask) for mask in masks])
    assert middles.std(0).min() > 40
    turns = [frame_of(laid(LINE, placements, None, seed, mode="free")).axes[0] for seed in range(20)]
    assert np.std([np.arctan2(*turn) for turn in turns]) > 0.3
    assert all(
        frame_of(laid(LINE, placements, None, seed)).axes[0][1] ** 2 == 1 for seed in range(3)
    )  # as drawn


def test_free_masks_lie_anywhere_on_the_object_turned_anyhow() -> None:
    along, across = screw_axes(0)
    placements = [placement_of((abs(along + 60) < 6) & (abs(across) < 2), screw(0))]
    foreground, seen, turns = screw(60), np.zeros((200, 200), bool), []
    for seed in range(300):
        mask = laid(LINE, placements, foreground, seed, mode="free")
        assert mask is not None and foreground[mask].mean() >= 0.9
        seen |= mask
        turns.append(np.arctan2(*frame_of(mask).axes[0]))
    assert seen[foreground].mean() > 0.6  # not where a line would hang over the edge
    assert np.std(turns) > 0.3


def test_without_a_frame_masks_lie_as_in_the_photo_or_are_moved_onto_the_object() -> None:
    old = Placement(0.1, 0.01, (0.5, 0.5))
    on, off = disc(80, (100, 100)), disc(60, (40, 150))
    mask = laid(SHAPE, [old], on)
    assert mask is not None
    assert abs(np.array(ndimage.center_of_mass(mask)) - 100).max() <= 11
    moved = laid(SHAPE, [old], off)
    assert moved is not None and off[moved].mean() >= 0.9


def test_without_places_a_mask_stays_as_it_is_or_is_moved_onto_the_object() -> None:
    mask = laid(SHAPE, [], disc(150, (100, 100)))
    assert mask is not None and np.array_equal(mask, fit_mask(SHAPE, (200, 200)))
    assert np.array_equal(laid(SHAPE, [], None), fit_mask(SHAPE, (200, 200)))  # type: ignore[arg-type]
    corner = disc(80, (42, 42))
    moved = laid(SHAPE, [], corner)
    assert moved is not None and moved.sum() == mask.sum() and corner[moved].mean() >= 0.9
    free = laid(SHAPE, [], None, mode="free")
    assert free is not None and 0.6 * mask.sum() < free.sum() < 1.6 * mask.sum()


def test_nothing_is_laid_where_there_is_no_object_or_too_small_a_one() -> None:
    placements = [placement_of(disc(60, (100, 100)), disc(100, (100, 100)))]
    for mode in ("learned", "free"):
        for foreground in (np.zeros((200, 200), bool), disc(12, (100, 100))):
            assert laid(SHAPE, placements, foreground, mode=mode) is None
    empty = laid(np.zeros((9, 9), bool), placements, screw(0))
    assert empty is not None and not empty.any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    degrees=st.floats(0, 360),
    where=st.tuples(st.floats(-75, 60), st.floats(-28, 28)),
    radius=st.floats(2, 15),
    share=st.sampled_from([0.5, 0.9, 1.0]),
    mode=st.sampled_from(["learned", "free"]),
    line=st.booleans(),
)
def test_every_laid_mask_is_marked_and_on_the_object_by_the_asked_share(
    seed: int, degrees: float, where: Vector, radius: float, share: float, mode: str, line: bool
) -> None:
    along, across = screw_axes(0)
    mask = (along - where[0]) ** 2 + (across - where[1]) ** 2 <= radius**2
    placements = [placement_of(mask, screw(0)), Placement(0.2, 0.01, (0.5, 0.5))]
    foreground = screw(degrees, (95, 105), (190, 210))
    shape = LINE if line else SHAPE
    found = laid(shape, placements, foreground, seed, share=share, mode=mode)
    again = laid(shape, placements, foreground, seed, share=share, mode=mode)
    assert (found is None and again is None) or np.array_equal(found, again)
    if found is None:
        return
    asked = min(share, placements[0].on_object - 0.1) if placements[0].on_object < 1 else share
    assert needed_share(share, placements) == pytest.approx(max(0, asked))
    assert found.shape == foreground.shape and found.any()
    assert foreground[found].mean() >= asked


def test_the_same_generator_gives_the_same_mask_and_another_another() -> None:
    placements = [placement_of(disc(20, (100, 60)), screw(0))]
    one, other = laid(SHAPE, placements, screw(70), 1), laid(SHAPE, placements, screw(70), 2)
    assert np.array_equal(one, laid(SHAPE, placements, screw(70), 1))  # type: ignore[arg-type]
    assert not np.array_equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.3, 0.55, 1.0, 3.3])
def test_turned_lines_one_pixel_wide_hang_together(scale: float) -> None:
    line = np.zeros((50, 90), bool)
    line[np.arange(50), np.arange(50)] = True
    line[49, 50:90] = True
    for degrees in np.arange(0, 360, 11.5):
        piece = turned(line, degrees, scale)
        assert ndimage.label(piece, np.ones((3, 3)))[1] == 1
        assert piece.sum() <= max(2.2 * scale, 1.6 * scale**2) * line.sum() + 3
        assert 2 * frame_of(piece).half[0] == pytest.approx(scale * 2 * frame_of(line).half[0], abs=3)


def test_turning_is_counter_clockwise_and_keeps_the_area() -> None:
    marked = np.zeros((20, 60), bool)
    marked[8:12], marked[:, :10] = True, True
    quarter = turned(marked, 90, 1)
    assert (quarter ^ np.rot90(marked)).mean() < 0.03
    for degrees, scale in ((33, 1.0), (70, 0.5), (110, 4.0)):
        assert turned(marked, degrees, scale).sum() == pytest.approx(scale**2 * marked.sum(), rel=0.1)


def test_large_shapes_are_turned_too() -> None:
    marked = disc(2800, (1500, 1500), (3000, 3000))
    assert turned(marked, 30, 0.05).sum() == pytest.approx(np.pi * 70**2, rel=0.02)


def test_a_fitted_mask_keeps_its_thin_parts_its_share_and_its_place() -> None:
    assert fit_mask(LINE, (64, 64)) is LINE
    for size in ((64, 90), (77, 80), (300, 200), (20, 200)):
        fitted = fit_mask(LINE, size)
        assert fitted.shape == size and ndimage.label(fitted, np.ones((3, 3)))[1] == 1
        assert np.array(ndimage.center_of_mass(fitted))[1] / size[1] == pytest.approx(0.5, abs=0.02)
    assert fit_mask(SHAPE, (300, 200)).mean() == pytest.approx(SHAPE.mean(), rel=0.02)
    assert not fit_mask(np.zeros((9, 9), bool), (20, 20)).any()


@pytest.mark.parametrize("size", [(300, 700), (128, 640), (900, 200), (200, 209)])
def test_a_mask_on_a_photo_of_other_proportions_keeps_its_form(size: tuple[int, int]) -> None:
    """20 x 21 pixels of a square frame are no 78 x 206 of a wide photo."""
    mask = np.zeros((128, 128), bool)
    mask[64:84, 20:41] = True
    fitted = fit_mask(mask, size)
    rows, columns = np.flatnonzero(fitted.any(1)), np.flatnonzero(fitted.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height / width == pytest.approx(20 / 21, rel=0.06)
    assert fitted.mean() == pytest.approx(mask.mean(), rel=0.06)
    middle = np.array(ndimage.center_of_mass(fitted)) / size
    np.testing.assert_allclose(middle, (73.5 / 128, 30 / 128), atol=0.01)


@pytest.mark.parametrize("size", [(500, 500), (100, 100), (125, 50), (400, 200)])
@pytest.mark.parametrize("kind", ["crack", "across", "corner", "bottom", "full"])
def test_what_runs_into_sides_does_so_on_a_photo_of_other_proportions(
    kind: str, size: tuple[int, int]
) -> None:
    y, x = np.mgrid[:100, :250]
    mask = {
        "crack": (y < 40) & (abs(x - 90 - y // 2) < 2),
        "across": abs(x - 100 - y // 9) < 3,
        "corner": y**2 + x**2 < 400,
        "bottom": (y > 80) & (abs(x - 30) < 9),
        "full": y >= 0,
    }[kind]
    assert touched_sides(fit_mask(mask, size)) == touched_sides(mask)


def test_what_is_too_long_for_a_photo_of_other_proportions_becomes_smaller_and_lies_inside() -> None:
    mask = np.zeros((100, 100), bool)
    mask[5:95, 90:96] = True
    fitted = fit_mask(mask, (60, 240))
    assert fitted.any(1).all() and fitted.any(0).sum() == 4  # 6 * 60 / 90
    assert not fit_mask(np.zeros((9, 9), bool), (20, 90)).any()


def test_a_place_says_how_its_mask_lies_on_the_object() -> None:
    along, across = screw_axes(0)
    foreground = screw(0)
    mask = (abs(along - 20) < 15) & (abs(across - 5) < 1)
    place = placement_of(mask, foreground)
    assert place.pose and place.on_object == 1
    middle = along[foreground].mean()
    assert place.pose.centre[0] == pytest.approx((20 - middle) / 60, abs=0.02)
    assert abs(place.pose.centre[1]) == pytest.approx(5 / 24, abs=0.02)
    assert place.pose.direction is not None and np.sin(place.pose.direction) == pytest.approx(0, abs=0.02)
    assert place.pose.length == pytest.approx(29 / 200)
    assert placement_of(disc(9, (100, 100)), foreground).pose.direction is None  # type: ignore[union-attr]
    nothing = placement_of(mask, np.zeros((200, 200), bool))
    assert nothing == replace(placement_of(mask, None), centre=nothing.centre) and nothing.centre is not None


def test_masks_are_laid_on_photos_of_one_category() -> None:
    photos = [np.where(screw(40 * i)[..., None], 60, 200).astype(np.uint8).repeat(3, 2) for i in range(3)]
    placements = [placement_of(disc(11, (100, 40)), screw(0))]
    masks = lay_on_photos([SHAPE], photos, placements, 5, defect_type="screw/dent")
    for number, mask in enumerate(masks):
        assert screw_axes(40 * number)[0][mask].mean() == pytest.approx(-60, abs=12)
    assert np.array_equal(
        lay_on_photos([SHAPE] * 3, photos, placements, 5, defect_type="screw/dent")[2], masks[2]
    )
    free = lay_on_photos([SHAPE, LINE], photos[:1], placements, 5, defect_type="screw/dent", mode="free")
    assert len(free) == 2 and all(screw(0)[mask].mean() >= 0.9 for mask in free)
    with pytest.raises(ValueError, match="There are 2 masks for 3 photos"):
        lay_on_photos([SHAPE] * 2, photos, placements, 5, defect_type="screw/dent")
    empty = np.full((200, 200, 3), 200, np.uint8)
    with pytest.raises(ValueError, match="Mask 4 was not placed, since the photo shows no object"):
        lay_on_photos([SHAPE], [*photos, empty], placements, 5, defect_type="screw/dent")
    with pytest.raises(ValueError, match="Mask 1 was not placed, since no place on the object"):
        lay_on_photos(
            [SHAPE],
            photos,
            [replace(placements[0], area=0.5, pose=None, extent=0.9)],
            5,
            defect_type="screw/dent",
        )
