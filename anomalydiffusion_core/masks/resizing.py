"""Masks at other sizes, and turned: thin parts stay, and what hangs together does so afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import rotate
from torch import Tensor

from ..dataset.augmentation import box_of, resize_mask
from ..gate.shape import count_parts

SAME_PROPORTIONS = 1.05  # ratio of two pictures' aspects up to which one is the other at another size
LARGEST_TURNED = 1024  # pixels per side; larger shapes are turned at that size


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h,w) bool at a photo's size (H,W), with smooth outlines where it grows; thin parts stay.

    On a photo of other proportions it is not stretched: what is marked keeps its form and its share of the
    area, as near to its place as it lies wholly inside; what runs into sides of the photo does so afterwards.
    """
    if mask.shape == size:
        return mask
    rows, columns = size[0] / mask.shape[0], size[1] / mask.shape[1]
    if mask.all() or not mask.any():
        return np.full(size, mask.all())
    if max(rows / columns, columns / rows) > SAME_PROPORTIONS:
        return _moved(mask, size, (rows, columns))
    if size[0] < mask.shape[0] or size[1] < mask.shape[1]:
        return resize_mask(torch.from_numpy(mask)[None], size)[0].numpy()
    top, bottom, left, right = box_of(mask)
    y, x = round(rows * top), round(columns * left)
    height, width = round(rows * bottom) - y, round(columns * right) - x
    fitted = np.zeros(size, bool)
    fitted[y : y + height, x : x + width] = scaled(mask[top:bottom, left:right], (height, width))
    return fitted


def _moved(mask: np.ndarray, size: tuple[int, int], factors: tuple[float, float]) -> np.ndarray:
    """What is marked in (h,w) bool with its share of a photo of `size`, about its place times `factors`; what
    reaches from side to side is as large as that asks for.
    """
    top, bottom, left, right = box_of(mask)
    marked, low, high = mask[top:bottom, left:right], np.array((top, left)), np.array((bottom, right))
    across = np.array(factors)[high - low == mask.shape]
    largest = min(whole / side for whole, side in zip(size, marked.shape, strict=True))
    extent = _sides(marked.shape, min(largest, *(across if len(across) else [np.prod(factors) ** 0.5])))
    free = np.array(size) - extent
    corner = np.clip(np.rint((np.array(factors) * (low + high) - extent) / 2).astype(int), 0, free)
    y, x = np.where(low == 0, 0, np.where(high == mask.shape, free, corner))
    moved = np.zeros(size, bool)
    moved[y : y + extent[0], x : x + extent[1]] = scaled(marked, extent)
    return moved


def turned(marked: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """What is marked in (h,w) bool, turned counter-clockwise and scaled, cut to its bounding box. It keeps
    its share of the area, and what hangs together does so afterwards.
    """
    marked = cut_out(marked)
    shrink = min(1.0, LARGEST_TURNED / max(marked.shape))
    picture = torch.from_numpy(marked.astype(np.float32))[None, None]
    if shrink < 1:
        picture = _resized(picture, _sides(marked.shape, shrink))
    # at twice the size, and with a rim, no thin line is missed between the pixels
    large = np.pad(picture[0, 0].numpy().repeat(2, 0).repeat(2, 1), 2)
    large = torch.from_numpy(rotate(large, degrees, order=1))[None, None]
    covered = _resized(large, _sides(large.shape[-2:], scale / shrink / 2))[0, 0].numpy()
    return cut_out(_most_covered(covered, round(scale**2 * float(marked.sum())), count_parts(marked), scale))


def scaled(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What is marked in (h,w) bool at a size (H,W): share of the area, thin parts and connections stay."""
    picture = torch.from_numpy(marked.astype(np.float32))[None, None]
    covered, scale = _resized(picture, size)[0, 0].numpy(), max(size) / max(marked.shape)
    return _most_covered(covered, round(float(marked.mean()) * covered.size), count_parts(marked), scale)


def _most_covered(covered: np.ndarray, count: int, parts: int, scale: float) -> np.ndarray:
    """The `count` most covered pixels of (h,w) float, or more where thin parts would break into more than
    `parts` or lose their ends. Resizing by `scale` has blurred it.
    """
    count, reach = min(max(1, count), covered.size), cut_out(covered > 1e-6).shape
    least = max(float(np.partition(covered, -count, None)[-count]), 1e-6)
    blur = 2 + 3 * max(1, scale)  # both sides together
    for part in (1, 0.7, 0.5, 0.35, 0.25, 0):
        chosen = covered >= max(part * least, 1e-6)
        whole = all(np.array(cut_out(chosen).shape) >= np.array(reach) - blur)
        if whole and count_parts(chosen) <= parts:
            break
    return chosen


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(picture, size, mode="bilinear", antialias=True)


def _sides(shape: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))


def cut_out(mask: np.ndarray) -> np.ndarray:
    """What is marked in (H,W) bool, cut to its bounding box."""
    top, bottom, left, right = box_of(mask)
    return mask[top:bottom, left:right]
