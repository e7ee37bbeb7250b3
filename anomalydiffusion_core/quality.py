"""Does the defect show? Fill: the share of a mask whose change exceeds the autoencoder's own noise."""

from __future__ import annotations

import numpy as np

NOISE_QUANTILE = 0.95


def change(normal: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Largest absolute difference over the channels, (H,W) float32 in grey levels 0-255."""
    return np.abs(normal.astype(np.float32) - generated.astype(np.float32)).max(-1)


def fill(normal: np.ndarray, generated: np.ndarray, mask: np.ndarray, noise: float) -> float:
    """Share of mask (H,W) bool whose change exceeds `noise` grey levels."""
    return float((change(normal, generated) > noise)[mask].mean())
