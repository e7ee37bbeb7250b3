"""Views of a pair (supplement B): flipped, rotated and cropped together, the whole defect kept inside."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from .windows import CONTEXT, Window

MAX_ROTATION = 20.0  # degrees either way
SMALLEST_CROP = 0.5  # of the longer side, or less where that is still the view's own resolution
CLOSE_UP = (1.5, 3.0)  # crops of a close-up, in multiples of the defect's own extent


def whole_view(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pair as it is, mirrored to a square, at size x size: image (3,S,S), mask (1,S,S) in {0,1} with thin
    defects kept.
    """
    height, width = mask.shape[-2:]
    return _view(
        image, mask, Window.around((height // 2, width // 2), max(height, width), (height, width)), size
    )


def random_view(
    image: Tensor, mask: Tensor, size: int, generator: torch.Generator, *, close_up: bool = False
) -> tuple[Tensor, Tensor]:
    """One random view of image (3,H,W) in [-1,1] and mask (1,H,W) in {0,1}, both at size x size.

    Its scale is that of the windows in which defects are generated, or up to twice as coarse; a close-up
    shows little more than the defect, however small that is.
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
    longer = max(height, width)
    extent = max(bottom - top, right - left) / longer
    if close_up:
        closest, widest = (min(1.0, factor * extent) for factor in CLOSE_UP)
    else:
        native = min(SMALLEST_CROP, size / longer)
        closest, widest = max(native, extent), max(2 * native, min(1.0, CONTEXT * extent))
    side = min(longer, max(round(uniform(closest, widest) * longer), bottom - top, right - left))
    y, x = (
        _corner(uniform(0, 1), first, last, side, length)
        for first, last, length in ((top, bottom, height), (left, right, width))
    )
    return _view(image, mask, Window(y, x, side), size)


def rotate_whole(image: Tensor, mask: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Rotates about the centre with mirrored borders, image (3,H,W) and mask (1,H,W) alike.

    Turns by less, or not at all, where part of the defect would leave the frame or a speck would vanish.
    Photos too elongated to be mirrored that far stay as they are.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as T

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
        wide = T.rotate(T.pad(image, padding, padding_mode="reflect"), angle, InterpolationMode.BILINEAR)
        wide_mask = T.rotate(T.pad(mask, padding, padding_mode="reflect"), angle)
        return wide[inside], wide_mask[inside]
    return image, mask


def bounding_box(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is marked in (1,H,W), ends exclusive."""
    rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The same of (H,W) bool."""
    return bounding_box(torch.from_numpy(mask)[None])


def _corner(share: float, first: int, last: int, side: int, length: int) -> int:
    """Where a crop begins that holds all from `first` to `last`; centred where the photo is shorter."""
    if side >= length:
        return (length - side) // 2
    low, high = max(0, last - side), min(first, length - side)
    return round(low + (high - low) * share)


def _view(image: Tensor, mask: Tensor, window: Window, size: int) -> tuple[Tensor, Tensor]:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    # CHW -> HWC and back; what is mirrored is marked too
    cut, marked = (
        torch.from_numpy(window.cut(part.permute(1, 2, 0).numpy())).permute(2, 0, 1) for part in (image, mask)
    )
    view = T.resize(cut, [size, size], InterpolationMode.BILINEAR, antialias=True)
    return view, resize_mask(marked, (size, size))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(…,H,W) in {0,1} to another size: every target pixel that the defect touches, nearest when growing."""
    height, width = mask.shape[-2:]
    four = mask.reshape(-1, 1, height, width).float()
    small = F.adaptive_max_pool2d(four, (min(size[0], height), min(size[1], width)))
    grown = F.interpolate(small, size, mode="nearest-exact")
    return grown.reshape(*mask.shape[:-2], *size).to(mask.dtype)
