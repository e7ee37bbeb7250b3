"""Writing pairs in MVTec's layout with a manifest: appended to, resumed, never overwritten.

A pair's manifest row is written first, then its mask, then its image. So every file has its row, and what a
crash leaves half-done is the last row's: it is not read, and the next writer takes it back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..dataset.photos import (
    Photo,
    file_hash,
    list_images,
    png_bytes,
    read_photo,
    write_new,
)

MANIFEST = "manifest.jsonl"
ROW_KEYS = ("category", "defect", "run", "image", "mask", "image_sha256", "mask_sha256")
DIGITS = 5  # of an id: names keep their order, with or without `_mask`, as long as all are equally long


def read_manifest(root: Path) -> list[dict[str, Any]]:
    """The manifest's rows but those that a crash left half-done; an absent manifest has none.

    Raises ValueError when another program wrote the manifest or a line in it is damaged.
    """
    return _complete_rows(root)[0]


def _complete_rows(root: Path) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None]:
    """Rows whose pair is whole, how many bytes they take, and the last row if its pair is not."""
    path = root / MANIFEST
    content = path.read_bytes() if path.is_file() else b""
    lines = content.splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line, f"{path} line {number}"))
        except ValueError:
            if line.endswith(b"\n"):
                raise
            return rows, len(content) - len(line), None  # cut by a crash
    if rows and not ((root / rows[-1]["image"]).is_file() and (root / rows[-1]["mask"]).is_file()):
        return rows[:-1], len(content) - len(lines[-1]), rows[-1]
    return rows, len(content), None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError(f"{where} is no JSON: restore the manifest or use a new folder.") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ROW_KEYS):
        raise ValueError(
            f"{where} lacks some of {', '.join(ROW_KEYS)}, so it was not written by 'anomalydiffusion "
            "generate': choose a new folder."
        )
    return row


def check_output(root: Path) -> None:
    """Raises ValueError when pairs cannot be written below `root`: a file, or somebody else's folder."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file: give a folder for the generated dataset.")
    if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).is_file():
        raise ValueError(
            f"{root} is not empty and has no {MANIFEST}: choose a new folder, so that nothing is mixed."
        )
    read_manifest(root)


class MVTecWriter:
    """Appends pairs to a dataset root. Raises ValueError when the root is somebody else's dataset.

    Nothing is made on disk before the first file is written; a pair is on disk when `write` returns.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers: dict[Path, int] = {}  # next id by folder of images
        check_output(root)
        self.rows, self._size, half_done = _complete_rows(root)
        if half_done:
            _remove_if_ours(root / half_done["mask"], half_done["mask_sha256"])
            _remove_if_ours(root / half_done["image"], half_done["image_sha256"])
        for left in root.glob("*/*/*/tmp*.tmp"):
            left.unlink()
        if (root / MANIFEST).is_file():
            os.truncate(root / MANIFEST, self._size)
            if self._size and not (root / MANIFEST).read_bytes().endswith(b"\n"):
                self._append(b"\n")
                self._size += 1

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
        """Writes one pair, pixels (H,W,3) uint8 and mask (H,W) bool; returns its manifest row.

        Raises OSError where that is impossible, with nothing of the pair left.
        """
        images = self.root / category / "test" / defect
        masks = self.root / category / "ground_truth" / defect
        number = self._numbers.get(images) or _next_number(images, masks)
        name = f"{number:0{DIGITS}d}"
        mask_path, image_path = masks / f"{name}_mask.png", images / f"{name}.png"
        for path in (mask_path, image_path):
            if path.exists():  # so that what is taken back below is never another's
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        image_content = png_bytes(Photo(pixels, gray).image())
        mask_content = png_bytes(Image.fromarray(mask.astype(np.uint8) * 255))
        row = {
            "category": category,
            "defect": defect,
            "image": image_path.relative_to(self.root).as_posix(),
            "mask": mask_path.relative_to(self.root).as_posix(),
            **row,
            "image_sha256": hashlib.sha256(image_content).hexdigest(),
            "mask_sha256": hashlib.sha256(mask_content).hexdigest(),
        }
        line = json.dumps(row).encode() + b"\n"
        try:
            self._append(line)
            write_new(mask_content, mask_path)
            write_new(image_content, image_path)
        except BaseException:
            _remove_if_ours(mask_path, row["mask_sha256"])
            _remove_if_ours(image_path, row["image_sha256"])
            if (self.root / MANIFEST).is_file():
                os.truncate(self.root / MANIFEST, self._size)
            raise
        self._numbers[images] = number + 1
        self._size += len(line)
        self.rows.append(row)
        return row

    def _append(self, line: bytes) -> None:
        path = self.root / MANIFEST
        self._make_manifest()
        with path.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())

    def _make_manifest(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / MANIFEST).touch()

    def add_normals(self, category: str, normals: Iterable[Photo]) -> list[str]:
        """Puts the normal photos into train/good as PNG; returns their paths below the root, in order.

        A photo that lies there already, pixel for pixel, is not written again.
        """
        self._make_manifest()
        folder = self.root / category / "train" / "good"
        known = {_content(read_photo(path)): path for path in list_images(folder)}
        names = []
        for photo in normals:
            content = _content(photo)
            if content not in known:
                known[content] = folder / f"{_next_number(folder):0{DIGITS}d}.png"
                write_new(png_bytes(photo.image()), known[content])
            names.append(known[content].relative_to(self.root).as_posix())
        return names


def _content(photo: Photo) -> tuple[bool, tuple[int, int], bytes]:
    return photo.gray, photo.size, hashlib.sha256(photo.pixels.tobytes()).digest()


def _remove_if_ours(path: Path, sha256: str) -> None:
    if path.is_file() and file_hash(path) == sha256:
        path.unlink()


def _next_number(*folders: Path) -> int:
    numbers = [
        int(stem)
        for folder in folders
        for path in list_images(folder)
        if (stem := path.stem.removesuffix("_mask")).isdecimal()
    ]
    return max(numbers, default=-1) + 1


def manifest_root(folder: Path) -> Path:
    """Where a dataset's manifest lies: in the folder itself or, where that is one category of it, above."""
    above = folder.resolve().parent
    return above if not (folder / MANIFEST).is_file() and (above / MANIFEST).is_file() else folder


def manifest_pairs(root: Path) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """(row, image path, mask path) of every pair in the manifest."""
    for row in read_manifest(root):
        yield row, root / row["image"], root / row["mask"]
