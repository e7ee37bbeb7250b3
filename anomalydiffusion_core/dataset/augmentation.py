"""Views of a pair (supplement B): flipped, rotated and cropped together, the whole defect kept inside."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

MAX_ROTATION = 20.0  # degrees either way
SMALLEST_CROP = 0.5  # of each side
CLOSE_UP = (1.5, 3.0)  # crops of a close-up, in multiples of the defect's own extent


def whole_view(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pair as it is, at size x size: image (3,S,S), mask (1,S,S) in {0,1} with thin defects kept."""
    return _resized(image, (size, size)), resize_mask(mask, (size, size))


def random_view(
    image: Tensor, mask: Tensor, size: int, generator: torch.Generator, close_up: bool = False
) -> tuple[Tensor, Tensor]:
    """One random view of image (3,H,W) in [-1,1] and mask (1,H,W) in {0,1}, both at size x size.

    It shows at least half of each side, or (close-up) little more than the defect, however small that is.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if uniform(0, 1) < 0.5:
        image, mask = image.flip(-1), mask.flip(-1)
    if uniform(0, 1) < 0.5:
        image, mask = image.flip(-2), mask.flip(-2)
    image, mask = rotate_whole(image, mask, uniform(-MAX_ROTATION, MAX_ROTATION))
    height, width = mask.shape[-2:]
    top, bottom, left, right = bounding_box(mask)
    extent = max((bottom - top) / height, (right - left) / width)
    closest, widest = (min(1.0, factor * extent) for factor in CLOSE_UP)
    scale = uniform(closest, widest) if close_up else uniform(max(SMALLEST_CROP, extent), 1.0)
    crop_h = _at_least(scale * height, bottom - top, height)
    crop_w = _at_least(scale * width, right - left, width)
    y = round(uniform(max(0, bottom - crop_h), min(top, height - crop_h)))
    x = round(uniform(max(0, right - crop_w), min(left, width - crop_w)))
    crop = (..., slice(y, y + crop_h), slice(x, x + crop_w))
    return whole_view(image[crop], mask[crop], size)


def rotate_whole(image: Tensor, mask: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Rotates about the centre with mirrored borders, image (3,H,W) and mask (1,H,W) alike.

    Turns by less, or not at all, where part of the defect would leave the frame or a speck would vanish.
    Photos too elongated to be mirrored that far stay as they are.
    """
    height, width = mask.shape[-2:]
    pad = int(0.2 * max(height, width)) + 1
    if pad >= min(height, width):
        return image, mask
    parts = np.zeros((height, width), np.int32)
    label(mask[0].numpy(), structure=np.ones((3, 3)), output=parts)
    padding = [pad, pad, pad, pad]
    wide_parts = T.pad(torch.from_numpy(parts)[None].float(), padding)
    inside = (..., slice(pad, pad + height), slice(pad, pad + width))
    for angle in (degrees, degrees / 2, degrees / 4):
        turned = T.rotate(wide_parts, angle)
        kept = turned[inside]
        if (turned > 0).sum() > (kept > 0).sum() or len(kept[kept > 0].unique()) < parts.max():
            continue
        wide = T.rotate(T.pad(image, padding, padding_mode="reflect"), angle, v2.InterpolationMode.BILINEAR)
        wide_mask = T.rotate(T.pad(mask, padding, padding_mode="reflect"), angle)
        return wide[inside], wide_mask[inside]
    return image, mask


def bounding_box(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is marked in (1,H,W), ends exclusive."""
    rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _at_least(wanted: float, needed: int, available: int) -> int:
    return min(max(round(wanted), needed), available)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return T.resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(…,H,W) in {0,1} to another size: every target pixel that the defect touches, nearest when growing."""
    height, width = mask.shape[-2:]
    four = mask.reshape(-1, 1, height, width).float()
    small = F.adaptive_max_pool2d(four, (min(size[0], height), min(size[1], width)))
    grown = F.interpolate(small, size, mode="nearest-exact")
    return grown.reshape(*mask.shape[:-2], *size).to(mask.dtype)
