"""What can be told of a pair by looking: does the defect show, fit in, look like real ones, and is it new?

Scores are taken in a region's window, at the canvas's size, of generated pairs, of real ones and of spots on
normal photos alike, so that `gate` can learn from the latter two what to ask of the first. Only fill needs
the photo as it was before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_gradient_magnitude
from scipy.ndimage import label as label_parts

VISIBLE = 5.0  # grey levels, 2 % of the range: less is hardly seen
NOISE_QUANTILE = 0.95
RING = 0.5  # width of a region's surroundings, in multiples of the region's mean width
LEAST_RING = 4  # pixels
SEAM_BAND = 4  # pixels on either side of an outline that its edge is compared with
LOOK = 24  # pixels per side at which the looks of two defects are compared
EIGHT = np.ones((3, 3))


def change(normal: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Largest absolute difference over the channels, (H,W) float32 in grey levels 0-255."""
    return np.abs(normal.astype(np.float32) - generated.astype(np.float32)).max(-1)


def visible(noise: float) -> float:
    """Grey levels that a change must exceed to show: the autoencoder's `noise`, or `VISIBLE` where that is
    less, since of small changes the photo keeps its detail (`blending.restore_detail`).
    """
    return min(noise, VISIBLE)


def fill(normal: np.ndarray, generated: np.ndarray, mask: np.ndarray, noise: float) -> float:
    """Share of mask (H,W) bool whose change exceeds `noise` grey levels."""
    return float((change(normal, generated) > noise)[mask].mean())


def component_fills(normal: np.ndarray, generated: np.ndarray, mask: np.ndarray, noise: float) -> list[float]:
    """`fill` of each connected component of mask (H,W) bool, eight neighbours counting."""
    return labelled_fills(normal, generated, mask, noise)[1]


def labelled_fills(
    normal: np.ndarray, generated: np.ndarray, mask: np.ndarray, noise: float
) -> tuple[np.ndarray, list[float]]:
    """The components of mask (H,W) bool, numbered from 1 on in (H,W), and the `fill` of each."""
    parts = np.asarray(label_parts(mask, structure=EIGHT)[0])  # type: ignore[index]
    count = int(parts.max())
    changed = change(normal, generated) > noise
    inside = np.bincount(parts.ravel(), minlength=count + 1)
    shown = np.bincount(parts[changed], minlength=count + 1)
    return parts, [float(value) for value in shown[1:] / inside[1:]]


def contrast(pixels: np.ndarray, mask: np.ndarray) -> float:
    """How well mask (H,W) bool can be told from its surroundings in pixels (H,W,3), 0 to 1.

    The largest Kolmogorov-Smirnov distance between inside and `surroundings`, over the three channels and
    the strength of edges.
    """
    from scipy.stats import ks_2samp

    around = surroundings(mask)
    if not around.any():
        return 1.0
    channels = [*np.moveaxis(pixels.astype(np.float32), -1, 0), edges(pixels)]
    return max(float(ks_2samp(c[mask], c[around], method="asymp")[0]) for c in channels)  # type: ignore[index]


def tone(pixels: np.ndarray, mask: np.ndarray) -> float:
    """How much brighter (above 0) or darker what is in mask (H,W) bool is than its `surroundings`, in grey
    levels: mean against median, of the mean of the channels of pixels (H,W,3).
    """
    gray, around = pixels.astype(np.float32).mean(-1), surroundings(mask)
    return float(gray[mask].mean() - np.median(gray[around])) if around.any() else 0.0


def seam(pixels: np.ndarray, mask: np.ndarray) -> float:
    """How sharply pixels (H,W,3) change along the outline of mask (H,W) bool, over how they do beside it.

    Mean strength of edges on the outline, by that within `SEAM_BAND` pixels; 1 = the outline does not show.
    """
    grown, core = np.ones_like(mask), np.ones_like(mask)
    binary_dilation(mask, EIGHT, output=grown)
    binary_erosion(mask, EIGHT, border_value=1, output=core)
    outline = np.logical_and(grown, ~core)
    band = np.logical_and(np.asarray(binary_dilation(outline, EIGHT, SEAM_BAND)), ~outline)
    if not outline.any() or not band.any():
        return 1.0
    strength = edges(pixels)
    return float(strength[outline].mean() / max(strength[band].mean(), 1e-3))


def surroundings(mask: np.ndarray) -> np.ndarray:
    """The ring (H,W) bool around mask (H,W) bool that shows what is normal there."""
    inside = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    width = max(LEAST_RING, RING * 4 * float(inside[mask].mean()))  # of a band, the mean is a fourth
    outside = np.asarray(distance_transform_edt(~mask))
    return (outside >= 2) & (outside <= 1 + width)


def edges(pixels: np.ndarray) -> np.ndarray:
    """Strength of edges (H,W) in pixels (H,W,3), the largest over the channels, at one pixel's scale."""
    channels = np.moveaxis(pixels.astype(np.float32), -1, 0)
    return np.max([gaussian_gradient_magnitude(channel, 1.0) for channel in channels], 0)


@dataclass(frozen=True)
class Look:
    """A defect with what lies around it, scaled to its longer side: `pixels` (n,n,3), `mask` (n,n) bool."""

    pixels: np.ndarray
    mask: np.ndarray


def look_of(pixels: np.ndarray, mask: np.ndarray) -> Look:
    """The look of what is marked in mask (H,W) bool of pixels (H,W,3), whatever its size, in the middle."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    y, x = (_sampled(at, side, length) for at, length in zip((rows, columns), mask.shape, strict=True))
    marked = mask[np.ix_(y, x)]
    # of a thin line every sample may miss
    return Look(pixels[np.ix_(y, x)].astype(np.float32), marked if marked.any() else ~marked)


def _sampled(marked: np.ndarray, side: int, length: int) -> np.ndarray:
    """LOOK indices into an axis of `length`, spread over `side` pixels around the middle of `marked` ones."""
    offsets = (np.arange(LOOK) + 0.5 - LOOK / 2) * side / LOOK
    at = (marked[0] + marked[-1]) / 2 + offsets
    # halves go towards the middle, so that a mirrored defect is sampled alike
    nearest = np.where(offsets < 0, np.floor(at + 0.5), np.ceil(at - 0.5))
    return np.clip(nearest.astype(int), 0, length - 1)


def look_distance(a: Look, b: Look) -> float:
    """How much two defects differ, in grey levels: root mean square over both shapes, in the best of the
    eight ways to turn and mirror one.
    """
    turned = zip(_turned(a.pixels), _turned(a.mask), strict=True)
    return min(_difference(Look(pixels, mask), b) for pixels, mask in turned)


def _turned(picture: np.ndarray) -> list[np.ndarray]:
    quarters = [np.rot90(picture, k) for k in range(4)]
    return quarters + [quarter[:, ::-1] for quarter in quarters]


def _difference(a: Look, b: Look) -> float:
    either = a.mask | b.mask
    return float(np.sqrt(np.square(a.pixels - b.pixels)[either].mean()))


def filled_in(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels (H,W,3) with every one in mask (H,W) bool replaced by the nearest outside: a guess at what was
    there before a defect, for real pairs.
    """
    nearest = distance_transform_edt(mask, return_distances=False, return_indices=True)
    return pixels[tuple(np.asarray(nearest))]
