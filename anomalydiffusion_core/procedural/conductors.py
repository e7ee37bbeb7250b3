"""Defects of printed conductors: copper that is missing, or too much of it.

Source of the kinds: Tang et al., Online PCB defect detector on a new PCB defect dataset, arXiv 1902.06197.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, label

from .materials import Surface
from .noise import Rng, blob, stroke

SHORTEST = 0.2  # quantile of the distances of a conductor's pixels to others at which bridges are laid


def _at(rng: Rng, cells: np.ndarray) -> tuple[float, float]:
    """The centre (y, x) of a random one of the true pixels."""
    ys, xs = np.nonzero(cells)
    chosen = int(rng.integers(len(ys)))
    return float(ys[chosen]) + 0.5, float(xs[chosen]) + 0.5


def _spot(rng: Rng, n: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    return blob(
        rng, n, centre, radius, roughness=0.35, aspect=rng.uniform(1, 1.6), angle=rng.uniform(0, np.pi)
    )


def open_circuit(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """A conductor cut through."""
    depth = np.asarray(distance_transform_edt(copper))
    centre = _at(rng, copper & (depth >= np.median(depth[copper])))
    half_width = float(depth[int(centre[0]), int(centre[1])])
    return _spot(rng, len(copper), centre, 1.3 * half_width + 0.2 * reach), False


def mouse_bite(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """A bite out of a conductor's edge."""
    edge = copper & ~np.asarray(binary_erosion(copper), bool)
    return _spot(rng, len(copper), _at(rng, edge), 0.35 * reach + 1), False


def pin_hole(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """A hole within a conductor."""
    return _spot(rng, len(copper), _at(rng, copper), 0.25 * reach + 1), False


def short_circuit(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """A bridge of copper from one conductor to the nearest point of another; nothing where there is one."""
    parts = np.asarray(label(copper)[0])  # type: ignore[index]
    count = int(parts.max())
    if count < 2:
        return np.zeros(copper.shape, np.float32), True
    own = parts == 1 + int(rng.integers(count))
    others = copper & ~own
    away = np.asarray(distance_transform_edt(~others))
    nearest = np.asarray(distance_transform_edt(~others, return_distances=False, return_indices=True))
    near = own & (away <= np.quantile(away[own], SHORTEST))
    y, x = _at(rng, near)
    to_y, to_x = nearest[:, int(y), int(x)] + 0.5
    return stroke(len(copper), [[(x, y), (to_x, to_y)]], [1.5 + 0.25 * reach]), True


def spur(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """Copper that sticks out of a conductor's edge."""
    edge = binary_dilation(copper) & ~copper
    return _spot(rng, len(copper), _at(rng, edge), 0.35 * reach + 1), True


def spurious_copper(rng: Rng, copper: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """Copper where none belongs."""
    return _spot(rng, len(copper), _at(rng, ~copper), 0.35 * reach + 1), True


CONDUCTOR_DEFECTS: dict[str, Callable[[Rng, np.ndarray, float], tuple[np.ndarray, bool]]] = {
    "open": open_circuit,
    "mouse bite": mouse_bite,
    "pin hole": pin_hole,
    "short": short_circuit,
    "spur": spur,
    "copper": spurious_copper,
}


def apply_conductor_defect(rng: Rng, surface: Surface, family: str, reach: float) -> np.ndarray:
    """Draws a defect of half extent `reach`, in pixels, into the conductors of a surface; returns its region
    (n, n) bool: the pixels that were of the other kind.
    """
    assert surface.conductor is not None
    copper = surface.conductor > 0.5
    alpha, filled = CONDUCTOR_DEFECTS[family](rng, copper, reach)
    kind = copper == filled  # what the pixels become, where it is now
    surface.albedo = surface.albedo + alpha[..., None] * (
        np.median(surface.albedo[kind], axis=0) - surface.albedo
    )
    surface.height = surface.height + alpha * (np.median(surface.height[kind]) - surface.height)
    return (alpha > 0.3) & ~kind
