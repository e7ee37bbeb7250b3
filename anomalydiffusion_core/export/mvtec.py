"""Writing pairs in MVTec's layout with a manifest: appended to, resumed, never overwritten.

A pair's manifest row is written first, then its files, the image last. So every file has its row, and what a
crash leaves half-done is the last row's: it is not read, and the next writer takes it back.

Beside the categories there may be `labels/<category>/<defect>/<id>.png` (the classes of pairs with several
defects), `attention/...` alike (what the tokens looked at), and `rejected`, which is laid out as a dataset.

An accepted pair that somebody rejects later is moved there: copied with a row of its own, which says where it
was, then its row here goes, then its files. What a crash leaves of that, the next writer finishes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from ..dataset.layout import picture_file
from ..dataset.photos import (
    IMAGE_SUFFIXES,
    Photo,
    file_hash,
    list_images,
    png_bytes,
    read_mask,
    read_photo,
    replace_file,
    write_new,
)
from .pair_list import accepted_among
from .writer import ExportPair

MANIFEST = "manifest.jsonl"
LABELS, ATTENTION, REJECTED = BESIDE = ("labels", "attention", "rejected")  # folders that are no categories
FILES = (LABELS, ATTENTION, "mask", "image")  # of a pair, by their key in its row, in order of writing
WRITTEN_KEYS = ("category", "defect", "classes", *FILES, *(f"{key}_sha256" for key in FILES))
ROW_KEYS = ("category", "defect", "run", "image", "mask", "image_sha256", "mask_sha256")
BY_HAND = "by hand"  # why such a pair is rejected
WAS = "accepted_as"  # in its row: the paths that its files had among the accepted ones, by their key
# of what is computed with; any other key holds what it likes
ROW_TYPES = {
    **dict.fromkeys(("index", "mask_number"), int),
    **dict.fromkeys(("fill", "noise"), (int, float)),
    **dict.fromkeys(("scores", "classes", "inventions"), dict),
}
PhotoContent = tuple[tuple[int, ...], str, bytes]  # of a photo: shape and type of its samples, and their hash
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
    if rows and not all((root / rows[-1][key]).is_file() for key in ("mask", "image")):
        return rows[:-1], len(content) - len(lines[-1]), rows[-1]
    return rows, len(content), None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is no JSON: restore the manifest or use a new folder.") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ROW_KEYS):
        raise ValueError(
            f"{where} lacks some of {', '.join(ROW_KEYS)}, so it was not written by 'anomalydiffusion "
            "generate': choose a new folder."
        )
    for key, value in row.items():
        problem = ""
        if key in ("category", "defect", *FILES, "normal") and not _is_below(value):
            problem = "which leads out of the dataset"
        elif key in ("category", "defect") and "/" in value:
            problem = "which is no folder's name"
        elif key in (*FILES, "normal") and Path(value).suffix.lower() not in IMAGE_SUFFIXES:
            problem = "which is no picture"
        elif (key in ROW_TYPES and (not isinstance(value, ROW_TYPES[key]) or isinstance(value, bool))) or (
            key == WAS and not _are_files_of_a_pair(value)
        ):
            problem = "which nothing wrote"
        if problem:
            raise ValueError(
                f"{where} has {value!r} as its {key}, {problem}: restore the manifest or use a new folder."
            )
    if LABELS in row and not ("classes" in row and all(number.isdecimal() for number in row["classes"])):
        raise ValueError(f"{where} has no classes for its labels: restore the manifest or use a new folder.")
    return row


def _are_files_of_a_pair(names: object) -> bool:
    return (
        isinstance(names, dict)
        and "image" in names
        and all(key in FILES and _is_below(name) for key, name in names.items())
    )


def _is_below(name: object) -> bool:
    """Whether what a row names, a file or a folder, stays below the dataset's root, on any system."""
    if not isinstance(name, str) or not name:
        return False
    paths = PurePosixPath(name), PureWindowsPath(name)
    return not any(path.anchor or ".." in path.parts for path in paths)


def rejected_by_hand(root: Path) -> dict[str, dict[str, Any]]:
    """The rows of the pairs that were moved to `rejected`, by the paths that their images had before."""
    return {row[WAS]["image"]: row for row in read_manifest(root / REJECTED) if WAS in row}


def check_output(root: Path) -> None:
    """Raises ValueError when pairs cannot be written below `root`: a file, or somebody else's folder."""
    _check_folder(root)
    read_manifest(root)


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file: give a folder for the generated dataset.")
    if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).is_file():
        raise ValueError(
            f"{root} is not empty and has no {MANIFEST}: choose a new folder, so that nothing is mixed."
        )


class MVTecWriter:
    """Appends pairs to a dataset root. Raises ValueError when the root is somebody else's dataset.

    Nothing is made on disk before the first file is written; a pair is on disk when `write` returns.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers: dict[Path, int] = {}  # next id by folder of images
        self._normals: dict[str, dict[PhotoContent, Path]] = {}  # files in train/good by category and content
        _check_folder(root)
        self.rows, self._size, half_done = _complete_rows(root)
        if half_done:
            self._take_back(half_done)
        for left in root.glob("*/*/*/tmp*.tmp"):
            left.unlink()
        self._moved = rejected_by_hand(root)
        if (root / MANIFEST).is_file():
            os.truncate(root / MANIFEST, self._size)
            if self._size and not (root / MANIFEST).read_bytes().endswith(b"\n"):
                self._append(b"\n")
                self._size += 1
        self._finish_moves()

    def done(self, category: str, defect: str, run: str) -> list[dict[str, Any]]:
        """Rows of one type that a run (by its identity) has written already."""
        return [
            row
            for row in self.rows
            if (row["category"], row["defect"], row["run"]) == (category, defect, run)
        ]

    @cached_property
    def _apart(self) -> MVTecWriter:
        return MVTecWriter(self.root / REJECTED)

    def rejected(self, category: str, defect: str, run: str) -> list[dict[str, Any]]:
        """Rows of one type's pairs that a run has written as rejected already."""
        return self._apart.done(category, defect, run)

    def reject(self, pair: ExportPair) -> dict[str, Any]:
        """Writes a rejected pair as `write` does, below `rejected`, where no reader of the dataset looks."""
        self._make_manifest()  # without it the next writer would find somebody else's folder
        return self._apart.write(pair)

    def reject_by_hand(self, names: Iterable[str]) -> int:
        """Moves accepted pairs, named by their images' paths below the root, to `rejected`; returns how many.

        Those that were moved before are passed over. Raises ValueError where there is no such pair, with
        nothing moved.
        """
        rows = {row["image"]: row for row in self.rows}
        chosen = accepted_among(names, rows, self._moved, self.root)
        for name in chosen:
            pictures = {
                key: picture_file(self.root, rows[name][key]).read_bytes()
                for key in FILES
                if key in rows[name]
            }
            about = {k: v for k, v in rows[name].items() if k not in WRITTEN_KEYS or k == "classes"}
            about |= {"rejected": BY_HAND, WAS: {key: rows[name][key] for key in pictures}}
            self._moved[name] = self._apart._write(
                rows[name]["category"], rows[name]["defect"], pictures, about
            )
        self._finish_moves()
        return len(chosen)

    def _finish_moves(self) -> None:
        """Drops what was copied to `rejected` from the accepted pairs: all rows at once, then the files."""
        if any(row["image"] in self._moved for row in self.rows):
            self.rows = [row for row in self.rows if row["image"] not in self._moved]
            content = b"".join(json.dumps(row).encode() + b"\n" for row in self.rows)
            replace_file(self.root / MANIFEST, [content])
            self._size = len(content)
        for row in self._moved.values():
            for key, name in row[WAS].items():
                _remove_if_ours(self.root / name, row.get(f"{key}_sha256"))

    def write(self, pair: ExportPair, attention: Image.Image | None = None) -> dict[str, Any]:
        """Writes one pair, the photo at its own depth; returns its manifest row.

        The mask is that of all defects. Of several, a label map (H,W) uint8 tells them apart: 0 is normal, 1
        the first defect and so on, as the row's `classes` say; where masks overlap, the last. `attention`
        shows what the defect's tokens looked at. Raises ValueError where the category's name is that of
        another folder of ours, OSError where writing is impossible, with nothing of the pair left.
        """
        row = {key: value for key, value in pair.row.items() if key not in WRITTEN_KEYS}
        labels = np.zeros(pair.photo.size, np.uint8)
        for number, mask in enumerate(pair.masks.values(), start=1):
            labels[mask] = number
        pictures = {
            "image": pair.photo.png(),
            "mask": png_bytes(Image.fromarray((labels > 0).astype(np.uint8) * 255)),
        }
        if len(pair.masks) > 1:
            pictures[LABELS] = png_bytes(Image.fromarray(labels))
            row = {
                "classes": {str(number): defect for number, defect in enumerate(pair.masks, start=1)},
                **row,
            }
        if attention:
            pictures[ATTENTION] = png_bytes(attention)
        _check_category(pair.category)
        if pair.normal:
            row["normal"] = self.add_normals(pair.category, [pair.normal])[0]
        return self._write(pair.category, pair.defect, pictures, row)

    def close(self) -> None:
        """Nothing is left to do: every pair is whole when it is written."""

    def _write(
        self, category: str, defect: str, pictures: dict[str, bytes], row: dict[str, Any]
    ) -> dict[str, Any]:
        folders = {
            "image": self.root / category / "test" / defect,
            "mask": self.root / category / "ground_truth" / defect,
            LABELS: self.root / LABELS / category / defect,
            ATTENTION: self.root / ATTENTION / category / defect,
        }
        images = folders["image"]
        number = self._numbers.get(images) or max(
            _next_number(*folders.values()), self._number_after_moved(images)
        )
        name = f"{number:0{DIGITS}d}"
        paths = {
            key: folders[key] / (f"{name}_mask.png" if key == "mask" else f"{name}.png")
            for key in FILES
            if key in pictures
        }
        for path in paths.values():
            if path.exists():  # so that what is taken back below is never another's
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        row = {
            "category": category,
            "defect": defect,
            **{key: paths[key].relative_to(self.root).as_posix() for key in reversed(paths)},
            **row,
            **{f"{key}_sha256": hashlib.sha256(pictures[key]).hexdigest() for key in reversed(paths)},
        }
        line = json.dumps(row).encode() + b"\n"
        try:
            self._append(line)
            for key, path in paths.items():
                write_new(pictures[key], path)
        except BaseException:
            self._take_back(row)
            if (self.root / MANIFEST).is_file():
                os.truncate(self.root / MANIFEST, self._size)
            raise
        self._numbers[images] = number + 1
        self._size += len(line)
        self.rows.append(row)
        return row

    def _number_after_moved(self, images: Path) -> int:
        """An id is given once: a list of rejected pairs must never name the one made in its place."""
        names = [Path(name) for name in self._moved if (self.root / name).parent == images]
        return max((int(name.stem) for name in names if name.stem.isdecimal()), default=-1) + 1

    def _take_back(self, row: dict[str, Any]) -> None:
        for key in FILES:
            if key in row:
                _remove_if_ours(self.root / row[key], row[f"{key}_sha256"])

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

        A photo that lies there already, pixel for pixel, is not written again. Raises as `write` does.
        """
        _check_category(category)
        self._make_manifest()
        folder = self.root / category / "train" / "good"
        if category not in self._normals:
            self._normals[category] = {_content(read_photo(path)): path for path in list_images(folder)}
        known, names = self._normals[category], []
        for photo in normals:
            content = _content(photo)
            if content not in known:
                path = folder / f"{_next_number(folder):0{DIGITS}d}.png"
                write_new(photo.png(), path)
                known[content] = path
            names.append(known[content].relative_to(self.root).as_posix())
        return names


def _check_category(name: str) -> None:
    if name in BESIDE:
        raise ValueError(f"{name!r} is a folder beside the categories: give the category another name.")


def _content(photo: Photo) -> PhotoContent:
    samples = photo.samples
    return samples.shape, samples.dtype.name, hashlib.sha256(np.ascontiguousarray(samples).data).digest()


def _remove_if_ours(path: Path, sha256: str | None) -> None:
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


def written_masks(root: Path, row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Masks (H,W) bool of a manifest row's pair by defect."""
    if LABELS not in row:
        return {row["defect"]: read_mask(picture_file(root, row["mask"]))}
    labels = np.asarray(Image.open(picture_file(root, row[LABELS])))
    return {defect: labels == int(number) for number, defect in row["classes"].items()}


def written_pair(root: Path, row: dict[str, Any]) -> ExportPair:
    """The pair of a manifest row. Raises ValueError naming a file that cannot be read, or lies elsewhere."""
    normal = read_photo(picture_file(root, row["normal"])) if "normal" in row else None
    photo = read_photo(picture_file(root, row["image"]))
    return ExportPair(row["category"], photo, written_masks(root, row), row, normal)
