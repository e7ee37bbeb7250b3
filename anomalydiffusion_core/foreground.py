"""Where the object is, in photos with a plain ground: what differs in colour from the picture's border."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_filter

PLAIN_GROUND = 12.0  # grey levels: a border that varies more is no plain ground


def object_foreground(pixels: np.ndarray) -> np.ndarray | None:
    """(H,W,3) uint8 -> (H,W) bool, True on the object; None where the photo is a full-frame texture.

    The ground's colour is the border's median; the cut between ground and object is Otsu's (1979).
    """
    smooth = gaussian_filter(pixels.astype(np.float32), (*(2 * [max(pixels.shape) / 256]), 0))
    border = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    if np.median(np.abs(border - np.median(border, 0))) > PLAIN_GROUND:
        return None
    distance = np.abs(smooth - np.median(border, 0)).max(-1)
    cut = otsu_threshold(distance)
    foreground = np.asarray(binary_fill_holes(distance > cut))
    on_border = np.concatenate([foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]]).mean()
    separated = distance[foreground].mean() > 2 * PLAIN_GROUND if foreground.any() else False
    return foreground if separated and on_border < 0.2 and foreground.mean() > 0.01 else None


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The cut of values (any shape) that maximises the variance between the two classes."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.sum(counts * centres) - np.cumsum(counts * centres)) / np.maximum(above, 1)
    return float(centres[np.argmax(below * above * (mean_below - mean_above) ** 2)])
