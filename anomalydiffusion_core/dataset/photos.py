"""Reading and writing photos and masks: every common format to 8-bit pixels, problems told in one sentence."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True)
class Photo:
    """`pixels` (H,W,3) uint8 RGB; `gray` tells that the file had one channel."""

    pixels: np.ndarray
    gray: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def tensor(self) -> Tensor:
        """(3,H,W) float32 in [-1,1]."""
        # HWC -> CHW
        return torch.from_numpy(self.pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def image(self) -> Image.Image:
        """A PIL image of the file's kind: one channel where the file had one."""
        return Image.fromarray(self.pixels[..., 0] if self.gray else self.pixels)


def _open(path: Path, what: str) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{what} {path} is empty (0 bytes): replace or remove the file.")
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ValueError(f"{what} {path} does not exist: check the path.") from None
    except ValueError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{what} {path} cannot be read ({_first_line(error)}): replace or remove the file."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits by its high byte; transparency is laid on black; palettes become RGB."""
    if image.mode in MODES_16_BIT:
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("holds floating-point pixels: convert it to 8 or 16 bit.")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def read_photo(path: Path) -> Photo:
    """Reads a photo upright. Raises ValueError naming the file when it cannot be read."""
    image = _open(path, "Image")
    try:
        image = _to_8_bit(image)
    except ValueError as error:
        raise ValueError(f"Image {path} {error}") from None
    return Photo(np.asarray(image.convert("RGB")), gray=image.mode == "L")


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a mask as (H,W) bool, True = defect; values over half range count, and any above 0 in a 0/1 file.

    Raises ValueError when it cannot be read, is not `size` (height, width), marks nothing or marks everything.
    """
    image = _open(path, "Mask")
    try:
        values = np.asarray(_to_8_bit(image).convert("L"))
        if image.mode in MODES_16_BIT and values.max(initial=0) == 0:
            values = np.asarray(image)
    except ValueError as error:
        raise ValueError(f"Mask {path} {error}") from None
    mask = values > (127 if values.max(initial=0) > 1 else 0)
    if size and mask.shape != size:
        raise ValueError(
            f"Mask {path} is {mask.shape[1]}x{mask.shape[0]} but its image is {size[1]}x{size[0]}: "
            "resize the mask or choose the matching file."
        )
    if not mask.any():
        raise ValueError(f"Mask {path} is empty (nothing is marked): mark the defect or remove the pair.")
    if mask.all():
        raise ValueError(
            f"Mask {path} is all white (everything is marked): mark only the defect or remove the pair."
        )
    return mask


def list_images(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name; an absent folder has none."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def write_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG through a temporary file; refuses to replace an existing one (FileExistsError)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, format="PNG")
        os.chmod(temporary, 0o644)
        os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )
