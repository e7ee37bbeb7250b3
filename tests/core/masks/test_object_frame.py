"""The object's frame: it turns, shifts and mirrors with the object, and says where it leaves a choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalydiffusion_core.masks.object_frame import frame_of, object_frame


def rectangle(height: int, width: int, at: tuple[int, int] = (40, 60), size: int = 200) -> np.ndarray:
    marked = np.zeros((size, size), bool)
    marked[at[0] : at[0] + height, at[1] : at[1] + width] = True
    return marked


def test_the_frame_of_a_rectangle_is_its_middle_its_sides_and_half_of_them() -> None:
    frame = frame_of(rectangle(21, 61))
    np.testing.assert_allclose(frame.centre, (50.5, 90.5))
    np.testing.assert_allclose(abs(frame.axes), [[0, 1], [1, 0]], atol=1e-9)
    np.testing.assert_allclose(frame.half, (30.5, 10.5))
    assert frame.directed == (False, False) and not frame.round


def test_each_axis_points_to_where_the_third_moment_is_positive() -> None:
    part = rectangle(20, 100) | rectangle(60, 20)  # a bar with a flag at its left end, downwards
    frame = frame_of(part)
    points = np.argwhere(part) + 0.5 - frame.centre
    assert frame.directed == (True, True)
    assert ((points @ frame.axes.T) ** 3).sum(0).min() > 0
    assert frame.axes[0, 1] > 0.8 and frame.axes[1, 0] > 0.8  # to the right; down


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_the_frame_turns_and_mirrors_with_the_object(quarters: int) -> None:
    part = rectangle(20, 100) | rectangle(60, 20)
    spot = rectangle(3, 3, at=(90, 65))
    place, angle = frame_of(part).coordinates(np.array([91.5, 66.5])), 0.4
    for change in (lambda m: np.rot90(m, quarters), lambda m: np.rot90(m, quarters)[:, ::-1]):
        frame = frame_of(change(part))
        found = np.array(ndimage.center_of_mass(change(spot))) + 0.5
        np.testing.assert_allclose(frame.coordinates(found), place, atol=1e-6)
        np.testing.assert_allclose(frame.point(place), found, atol=1e-6)
        assert frame.angle(frame.direction(angle)) == pytest.approx(angle)
        assert frame.angle(-frame.direction(angle)) == pytest.approx(angle)


def test_only_what_the_form_leaves_open_is_chosen_at_random() -> None:
    generator = torch.Generator().manual_seed(0)

    def signs(marked: np.ndarray) -> set[tuple[float, ...]]:
        frame = frame_of(marked)
        return {
            tuple(np.rint(np.diag(frame.resolved(generator).axes @ frame.axes.T)).tolist()) for _ in range(40)
        }

    assert signs(rectangle(21, 61)) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert signs(rectangle(20, 100) | rectangle(60, 20)) == {(1, 1)}
    screw = rectangle(10, 100, at=(65, 60)) | rectangle(60, 20)
    assert signs(screw) == {(1, 1), (1, -1)}


def test_a_round_object_may_be_turned_by_any_angle_and_its_distances_stay() -> None:
    y, x = np.mgrid[:200, :200]
    frame = frame_of((y - 90) ** 2 + (x - 110) ** 2 <= 50**2)
    assert frame.round and frame.half[0] == frame.half[1] == pytest.approx(50.5)
    generator, own = torch.Generator().manual_seed(0), np.array([0.6, 0.0])
    points = np.array([frame.resolved(generator).point(own) for _ in range(200)]) - frame.centre
    np.testing.assert_allclose(np.hypot(*points.T), 0.6 * 50.5)
    assert all((abs(points @ way) > 25).any() for way in np.eye(2)) and abs(points.mean(0)).max() < 6


def test_a_single_pixel_and_a_line_have_frames() -> None:
    dot = frame_of(rectangle(1, 1))
    assert dot.round and dot.half.tolist() == [0.5, 0.5] and dot.centre.tolist() == [40.5, 60.5]
    line = frame_of(rectangle(1, 30))
    assert not line.round and line.half.tolist() == [15, 0.5]


def test_a_large_photo_s_object_has_the_same_frame_as_a_small_one_s() -> None:
    small = rectangle(20, 100) | rectangle(60, 20)
    assert object_frame(np.zeros((64, 64), bool)) is None
    one, other = object_frame(small), object_frame(small.repeat(10, 0).repeat(10, 1))
    assert one is not None and other is not None
    np.testing.assert_allclose(other.centre / 10, one.centre, atol=0.2)
    np.testing.assert_allclose(other.half / 10, one.half, atol=0.3)
    np.testing.assert_allclose(other.axes, one.axes, atol=0.01)
