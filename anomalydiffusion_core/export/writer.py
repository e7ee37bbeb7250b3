"""The shape that the writers of all formats share: pairs one by one, then closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..dataset.photos import Photo
from ..method.artifact import check_type


@dataclass(frozen=True)
class ExportPair:
    """A photo with its defects; where there are several, their masks share it.

    Raises ValueError where a name could lead out of a folder, or a mask is not of the photo's size.
    """

    category: str
    photo: Photo  # at its own size and depth
    masks: dict[str, np.ndarray]  # (H,W) bool by defect
    row: dict[str, Any]  # what made it: its manifest row
    normal: Photo | None = None  # the photo before, where the writer is to keep it too

    def __post_init__(self) -> None:
        height, width = self.photo.size
        for defect, mask in self.masks.items():
            check_type(f"{self.category}/{defect}")
            if mask.shape != (height, width):
                raise ValueError(
                    f"The mask of {defect} is {mask.shape[1]}x{mask.shape[0]}, its photo {width}x{height}: "
                    "resize the mask or choose the matching photo."
                )

    @property
    def defect(self) -> str:
        """The defect's name; of several `a+b`."""
        return "+".join(self.masks)


class PairWriter(Protocol):
    """Writes pairs in one format."""

    def write(self, pair: ExportPair) -> object:
        """Writes one pair. Raises ValueError where the format cannot hold it, OSError where writing fails."""
        ...

    def close(self) -> None:
        """Writes what belongs to all pairs together; nothing is written afterwards."""
        ...
