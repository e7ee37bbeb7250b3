"""Writing pairs in MVTec's layout with a manifest: appended to, resumed, never overwritten.

A pair is written mask first, then image, then its manifest row; what a crash leaves half-done is not in the manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalydiffusion_core.dataset.photos import Photo, file_hash, list_images, read_photo, write_png

MANIFEST = "manifest.jsonl"


def read_manifest(root: Path) -> list[dict[str, Any]]:
    """The manifest's rows; a last line cut short by a crash is left out, an absent manifest has none."""
    path = root / MANIFEST
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(
                    f"{path} line {number} is no JSON: restore the manifest or use a new folder."
                ) from None
    return rows


class MVTecWriter:
    """Appends pairs to a dataset root. Raises ValueError when the root is somebody else's dataset."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root} is a file: give a folder for the generated dataset.")
        if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).is_file():
            raise ValueError(
                f"{root} is not empty and has no {MANIFEST}: choose a new folder, so that nothing is mixed."
            )
        self.rows = read_manifest(root)
        root.mkdir(parents=True, exist_ok=True)
        self._repair_last_line()
        self.file = (root / MANIFEST).open("a", encoding="utf-8")

    def _repair_last_line(self) -> None:
        path = self.root / MANIFEST
        if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n" if text.splitlines()[-1].endswith(b"}") else b"")
                file.truncate(
                    len(text) + 1 if text.splitlines()[-1].endswith(b"}") else text.rfind(b"\n") + 1
                )

    def done(self, category: str, defect: str, run: str) -> list[dict[str, Any]]:
        """Rows of one type that a run (by its identity) has written already."""
        return [
            row
            for row in self.rows
            if (row["category"], row["defect"], row["run"]) == (category, defect, run)
        ]

    def write(
        self,
        category: str,
        defect: str,
        pixels: np.ndarray,
        mask: np.ndarray,
        gray: bool,
        row: dict[str, Any],
    ) -> dict[str, Any]:
        """Writes one pair, pixels (H,W,3) uint8 and mask (H,W) bool; returns its manifest row."""
        images = self.root / category / "test" / defect
        masks = self.root / category / "ground_truth" / defect
        number = _next_number(images, masks)
        mask_path, image_path = masks / f"{number:03d}_mask.png", images / f"{number:03d}.png"
        write_png(Image.fromarray(mask.astype(np.uint8) * 255), mask_path)
        write_png(Photo(pixels, gray).image(), image_path)
        row = {
            "category": category,
            "defect": defect,
            "image": image_path.relative_to(self.root).as_posix(),
            "mask": mask_path.relative_to(self.root).as_posix(),
            **row,
            "image_sha256": file_hash(image_path),
            "mask_sha256": file_hash(mask_path),
        }
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows.append(row)
        return row

    def add_normals(self, category: str, normals: list[Path]) -> list[str]:
        """Puts the normal photos into train/good as PNG; returns their paths below the root, in order."""
        folder = self.root / category / "train" / "good"
        names = []
        for number, source in enumerate(normals):
            target = folder / f"{number:03d}.png"
            if not target.exists():
                write_png(read_photo(source).image(), target)
            names.append(target.relative_to(self.root).as_posix())
        return names

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> MVTecWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _next_number(*folders: Path) -> int:
    numbers = [
        int(stem)
        for folder in folders
        for path in list_images(folder)
        if (stem := path.stem.removesuffix("_mask")).isdigit()
    ]
    return max(numbers, default=-1) + 1


def manifest_pairs(root: Path) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """(row, image path, mask path) of every pair in the manifest."""
    for row in read_manifest(root):
        yield row, root / row["image"], root / row["mask"]
