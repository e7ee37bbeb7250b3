"""The frame of an object or of a mask: where its middle is, its main directions, and how far it reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

ROUND = 0.9  # ratio of the deviations along and across from which on there is no main direction
# skewness below which both ends of an axis are alike (real screws lying anyhow: 0.13 to 0.25)
SYMMETRY = 0.05
POINTS = 1 << 18  # pixels that a frame is read from, at most
LONGEST = 512  # pixels per side that an object's frame is read from, at most


@dataclass(frozen=True)
class Frame:
    """Principal axes of what is marked in a picture, in pixels.

    Each axis points to where its third moment is positive, so that a screw's head is told from its tip, and
    a part on its other face gets a mirrored frame. Ends that are alike (`directed` False) may be exchanged;
    a round object has no main direction: its axes may be turned, and its half extents are equal.
    """

    centre: np.ndarray  # (2,) (y, x) of the centroid
    axes: np.ndarray  # (2,2) rows: unit vectors (y, x) along and across
    half: np.ndarray  # (2,) half extents along and across
    directed: tuple[bool, bool]
    round: bool

    def coordinates(self, point: np.ndarray) -> np.ndarray:
        """A point (y, x) of the picture, as (along, across) in half extents from the centre."""
        return self.axes @ (point - self.centre) / self.half

    def point(self, coordinates: np.ndarray) -> np.ndarray:
        """The inverse of `coordinates`."""
        return self.centre + (coordinates * self.half) @ self.axes

    def angle(self, direction: np.ndarray) -> float:
        """A direction (y, x) of the picture, in radians from along towards across; either way is the same."""
        along, across = self.axes @ direction
        return float(np.arctan2(across, along) % np.pi)

    def direction(self, angle: float) -> np.ndarray:
        """The inverse of `angle`: a unit vector (y, x)."""
        return np.array([np.cos(angle), np.sin(angle)]) @ self.axes

    def resolved(self, generator: torch.Generator) -> Frame:
        """The frame with what its form leaves open chosen at random."""
        turn, *flips = torch.rand(3, generator=generator).tolist()
        axes = self.axes
        if self.round:
            c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
            axes = np.array([[c, s], [-s, c]]) @ axes
        signs = [
            -1 if flip < 0.5 and not one_end else 1
            for flip, one_end in zip(flips, self.directed, strict=True)
        ]
        return replace(self, axes=axes * np.array(signs)[:, None])


def frame_of(marked: np.ndarray, step: int = 1) -> Frame:
    """The frame of what is marked in (h,w) bool, of which each pixel stands for `step` x `step`.

    Something must be marked.
    """
    pixels = np.flatnonzero(marked)
    pixels = pixels[:: -(-len(pixels) // POINTS)]
    points = (np.stack(np.divmod(pixels, marked.shape[1]), 1) + 0.5) * step
    centre = points.mean(0)
    offsets = points - centre
    # a pixel's own variance, so that a line one pixel wide has a width
    variances, vectors = np.linalg.eigh(offsets.T @ offsets / len(offsets) + np.eye(2) * step**2 / 12)
    axes = vectors.T[::-1]
    along = offsets @ axes.T
    skewness = (along**3).mean(0) / variances[::-1] ** 1.5
    axes = axes * np.where(skewness < 0, -1, 1)[:, None]
    half = (along.max(0) - along.min(0) + step) / 2
    round_ = bool(variances[0] > ROUND**2 * variances[1])
    directed = tuple(bool(value) for value in abs(skewness) > SYMMETRY)
    return Frame(centre, axes, np.full(2, half.mean()) if round_ else half, directed, round_)  # type: ignore[arg-type]


def object_frame(foreground: np.ndarray) -> Frame | None:
    """The frame of the object in a photo's foreground (H,W) bool; None where there is none."""
    step = -(-max(foreground.shape) // LONGEST)
    small = foreground[::step, ::step]
    return frame_of(small, step) if small.any() else None
