"""Crop-and-stitch: each defect region is made in a square window of the photo, at the base's own resolution.

A window shows its region with context. It is as large as the model's canvas, so that a pixel stays a pixel,
and larger only where the region asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, label

CONTEXT = 1.5  # a window is at least so many times as long as its region
MAX_SHRINK = 8  # pixels of the photo for one of the canvas: what is coarser would come out as a blur
LABEL_SIZE = 1024  # cells per side at which regions are told apart, at most
EIGHT = np.ones((3, 3))  # neighbours

Box = tuple[slice, slice]  # rows and columns of a photo


@dataclass(frozen=True)
class Window:
    """A square of a photo, in its pixels; where it reaches beyond the photo, the photo is mirrored."""

    top: int
    left: int
    side: int

    @staticmethod
    def around(centre: tuple[int, int], side: int, size: tuple[int, int]) -> Window:
        """The window around a place of a photo of `size` (H,W), moved inside where it can be."""
        top, left = (
            (length - side) // 2 if side > length else min(max(0, at - side // 2), length - side)
            for at, length in zip(centre, size, strict=True)
        )
        return Window(top, left, side)

    def box(self, size: tuple[int, int]) -> Box:
        """The part of the window that lies in a photo of `size` (H,W)."""
        rows, columns = (
            slice(max(0, start), min(start + self.side, length))
            for start, length in zip((self.top, self.left), size, strict=True)
        )
        return rows, columns

    def within(self, size: tuple[int, int]) -> Box:
        """That part in the window's own rows and columns."""
        rows, columns = self.box(size)
        return (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """(H,W) or (H,W,C) -> (side,side) or (side,side,C), mirrored beyond the picture's edges; a copy, so
        that whoever keeps it does not keep the whole picture.
        """
        height, width = picture.shape[:2]
        part = picture[self.box((height, width))]
        before = (max(0, -self.top), max(0, -self.left))
        missing = (self.side - part.shape[0], self.side - part.shape[1])
        if not any(missing):
            return part.copy()
        padding = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        return np.pad(part, padding + [(0, 0)] * (picture.ndim - 2), mode="symmetric")

    def cut_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H,W) bool -> (side,side) bool, nothing marked beyond the photo's edges."""
        result = np.zeros((self.side, self.side), bool)
        result[self.within(mask.shape)] = mask[self.box(mask.shape)]
        return result


@dataclass(frozen=True)
class Region:
    """A part of a mask, or several that lie together, made in one window: `mask` (side,side) bool in the
    window's own pixels.
    """

    window: Window
    mask: np.ndarray


def regions_of(mask: np.ndarray, canvas: int) -> list[Region]:
    """The windows in which a mask (H,W) bool is made on a canvas of that many pixels per side.

    Connected parts that fit into one window of the canvas's size together, with context, share it. A part
    that does not fit gets a larger window, up to the photo's longer side. Nothing marked gives no region.
    """
    boxes, parts = _components(mask)
    groups = [[i] for i in range(len(boxes))]
    if max(mask.shape) <= canvas:
        groups = [sum(groups, [])] if groups else []
    else:
        groups = _merged(groups, boxes, canvas)
    regions = []
    for group in groups:
        window = _window(_union([boxes[i] for i in group]), mask.shape, canvas)
        inside = window.cut_mask(mask)
        if len(groups) > 1:
            inside &= window.cut_mask(parts.chosen(group))
        regions.append(Region(window, inside))
    return regions


@dataclass(frozen=True)
class _Parts:
    labels: np.ndarray  # (H/n,W/n), 1.. where a part is
    block: int  # n
    size: tuple[int, int]

    def chosen(self, group: list[int]) -> np.ndarray:
        """(H,W) bool, True in the blocks of these parts."""
        blocks = np.isin(self.labels, [i + 1 for i in group])
        return blocks.repeat(self.block, 0).repeat(self.block, 1)[: self.size[0], : self.size[1]]


def _components(mask: np.ndarray) -> tuple[list[Box], _Parts]:
    """Boxes of the mask's connected parts, told apart block by block where the mask is large."""
    block = -(-max(mask.shape) // LABEL_SIZE)
    edges = [(0, -length % block) for length in mask.shape]
    rows, columns = ((length + pad) // block for length, (_, pad) in zip(mask.shape, edges, strict=True))
    coarse = np.pad(mask, edges).reshape(rows, block, columns, block).any((1, 3))
    labels = np.asarray(label(coarse, structure=EIGHT)[0])  # type: ignore[index]
    boxes: list[Box] = []
    for blocks in find_objects(labels):
        rows, columns = (
            slice(part.start * block, min(part.stop * block, length))
            for part, length in zip(blocks, mask.shape, strict=True)
        )
        boxes.append((rows, columns))
    return boxes, _Parts(labels, block, mask.shape)


def _merged(groups: list[list[int]], boxes: list[Box], canvas: int) -> list[list[int]]:
    """Joins groups, nearest neighbours in reading order first, while they fit a window of the canvas."""
    done: list[list[int]] = []
    for group in groups:
        for other in done:
            if CONTEXT * _extent(_union([boxes[i] for i in (*other, *group)])) <= canvas:
                other += group
                break
        else:
            done.append(list(group))
    return done


def _union(boxes: list[Box]) -> Box:
    rows, columns = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in (0, 1)
    )
    return rows, columns


def _extent(box: Box) -> int:
    return max(part.stop - part.start for part in box)


def _window(box: Box, size: tuple[int, int], canvas: int) -> Window:
    side = min(max(canvas, round(CONTEXT * _extent(box))), max(size))
    rows, columns = ((part.start + part.stop) // 2 for part in box)
    return Window.around((rows, columns), side, size)
