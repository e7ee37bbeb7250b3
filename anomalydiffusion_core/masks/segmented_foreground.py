"""The foreground by a segmentation model of transformers, where the ground's colour does not tell."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .foreground import FindObject, enlarged, reduced

BACKGROUND = "background"


def segmented_foreground(model: str, device: str = "cpu") -> FindObject:
    """How a semantic segmentation model (a folder, or an id on the hub) finds the object: everything that it
    does not label "background" counts.

    Raises ValueError where it cannot be loaded, or knows no label "background".
    """
    from transformers import pipeline

    try:
        segment = pipeline("image-segmentation", model=model, device=device)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"Segmentation model {model} cannot be loaded ({reason}): give a folder or an id of a semantic "
            "segmentation model that transformers knows."
        ) from error
    labels = sorted((segment.model.config.id2label or {}).values())
    if BACKGROUND not in map(str.lower, labels):
        raise ValueError(
            f"Segmentation model {model} has no label {BACKGROUND!r} but {', '.join(labels[:10])}: choose "
            "one that tells objects from the background."
        )

    def find(pixels: np.ndarray) -> np.ndarray:
        small = reduced(pixels)
        foreground = np.zeros(small.shape[:2], bool)
        for part in segment(Image.fromarray(small), subtask="semantic"):  # type: ignore[union-attr]
            if part["label"].lower() != BACKGROUND:
                foreground |= np.asarray(part["mask"]) > 0
        return enlarged(foreground, pixels.shape)

    return find
