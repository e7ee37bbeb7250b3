"""The photo's edge: which masks run into it, and how others are made to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

SIDES = range(4)  # top, right, bottom, left: so many quarter turns bring a side to the top
OVERLAP = 0.25  # of its extent, that a mask lies beyond the edge at most


@dataclass(frozen=True)
class RealEdges:
    """How a type's real masks lie at the photo's edge: the `sides` that each runs into, and the greatest
    share of a border line that one of them covers.
    """

    sides: list[list[int]]
    cover: float

    @classmethod
    def of(cls, masks: Sequence[np.ndarray]) -> RealEdges:
        """Of masks (H,W) bool."""
        return cls([touched_sides(mask) for mask in masks], max(map(border_cover, masks), default=0.0))


def touched_sides(mask: np.ndarray) -> list[int]:
    """The sides of the photo that what is marked in (H,W) bool runs into, where it was cut off."""
    return [side for side in SIDES if along_side(mask, side).any()]


def along_side(mask: np.ndarray, side: int) -> np.ndarray:
    """The border line of (H,W) at a side, a view."""
    return np.rot90(mask, side)[0]


def border_cover(mask: np.ndarray) -> float:
    """The greatest share of one of its border lines that a mask (H,W) bool covers."""
    return max(float(along_side(mask, side).mean()) for side in SIDES)


def run_off(mask: np.ndarray, side: int, generator: torch.Generator) -> np.ndarray:
    """What is marked in (H,W) bool, moved until it runs into a side of the photo, where a part of it, at most
    `OVERLAP`, is cut off.
    """
    facing = np.rot90(mask, side)
    rows = np.flatnonzero(facing.any(1))
    beyond = OVERLAP * float(torch.rand((), generator=generator)) * (rows[-1] + 1 - rows[0])
    shift = int(rows[0] + beyond)
    moved = np.zeros_like(facing)
    moved[: len(facing) - shift] = facing[shift:]
    return np.rot90(moved, -side).copy()
