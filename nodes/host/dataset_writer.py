"""Pairs from ComfyUI's batches into a dataset below its output folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...anomalydiffusion_core import __version__
from ...anomalydiffusion_core.dataset.photos import Photo, file_hash
from ...anomalydiffusion_core.export.mvtec import MVTecWriter
from ...anomalydiffusion_core.export.writer import ExportPair
from ...anomalydiffusion_core.method.artifact import check_type, learned_hash
from ...anomalydiffusion_core.method.embeddings import Learned
from .conditioning import binary_masks
from .folders import output_folder
from .pixels import pixels_of


def save_pairs(
    images: Tensor,
    masks: Tensor,
    defect_type: str,
    folder: str,
    *,
    normals: Tensor | None,
    scores: list[dict[str, Any]] | None,
    learned: Learned | None,
    prompt: Any,
) -> Path:
    """Appends pairs to the dataset `folder` below the output folder; returns its path.

    Each manifest row holds the graph that made the pair, and what is known of its normal photo, scores, base
    and artifact. Raises ValueError where counts differ.
    """
    for what, batch in (("masks", masks), ("normals", normals), ("scores", scores)):
        if batch is not None and len(batch) != len(images) and not (what == "normals" and len(batch) == 1):
            raise ValueError(f"There are {len(batch)} {what} for {len(images)} images: give one for each.")
    if masks.shape[-2:] != images.shape[1:3]:
        raise ValueError(
            f"The masks are {masks.shape[-1]}x{masks.shape[-2]}, the images "
            f"{images.shape[2]}x{images.shape[1]}: connect the masks that the images were made with."
        )
    check_type(defect_type.strip())
    category, _, defect = defect_type.strip().partition("/")
    root = output_folder(folder)
    writer = MVTecWriter(root)
    about: list[dict[str, Any]] = [dict(row) for row in scores or [{}] * len(images)]
    if normals is not None:
        names = writer.add_normals(category, (Photo(pixels, gray=False) for pixels in pixels_of(normals)))
        for row, name in zip(about, names * (len(images) // len(names)), strict=True):
            row |= {"normal": name, "normal_sha256": file_hash(root / name)}
    settings: dict[str, Any] = {"package_version": __version__, "torch": torch.__version__, "prompt": prompt}
    if learned is not None:
        settings |= {
            "learned_sha256": learned_hash(learned),
            "base_family": learned.base.family,
            "base_weights": learned.base.weights,
            "trained_on": learned.trained_on.get(f"{category}/{defect}", []),
        }
    run = hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:12]
    marked = binary_masks(masks)[:, 0].cpu().numpy() > 0
    for index, (pixels, mask) in enumerate(zip(pixels_of(images), marked, strict=True)):
        row = {"run": run, "index": index, **about[index], **settings}
        writer.write(ExportPair(category, Photo(pixels, gray=False), {defect: mask}, row))
    return root
