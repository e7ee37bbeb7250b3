"""Reading and writing photos and masks: common formats to 8-bit pixels, problems told in one sentence."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I")
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # exFAT and some network drives


SHORT_HASH = 16  # digits


class UnusableMask(ValueError):
    """A mask that can be read, but marks nothing, or everything."""


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
    """A file's picture, upright, in the file's own mode."""
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{what} {path} is empty (0 bytes): replace or remove the file.")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{what} {path} does not exist: check the path.") from None
    except OSError as error:
        raise _unreadable(path, what, error) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage that it then either reads or refuses
            with Image.open(io.BytesIO(raw)) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise _unreadable(path, what, "no known picture format") from None
    except Exception as error:  # on damaged files Pillow raises anything: struct.error, IndexError, ...
        raise _unreadable(path, what, error) from None


def _unreadable(path: Path, what: str, reason: Exception | str) -> ValueError:
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    why = lines[0].rstrip(".")
    return ValueError(f"{what} {path} cannot be read ({why}): replace or remove the file.")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits by its high byte; transparency is laid on black; gray is L, all else RGB."""
    if image.mode in MODES_16_BIT:
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, convert it to 8 or 16 bit")
    kind = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert(kind)
    return image.convert(kind)


def read_photo(path: Path) -> Photo:
    """Reads a photo upright. Raises ValueError naming the file when it cannot be read."""
    image = _open(path, "Image")
    try:
        image = _to_8_bit(image)
    except ValueError as error:
        raise _unreadable(path, "Image", error) from None
    return Photo(np.asarray(image.convert("RGB")), gray=image.mode == "L")


def pixel_hash(photo: Photo) -> str:
    """SHA-256 (hex) over size and pixels, the same whatever format the file has."""
    return hashlib.sha256(str(photo.size).encode() + photo.pixels.tobytes()).hexdigest()


def short_hash(path: Path) -> str:
    """The first digits of a photo's `pixel_hash`, by which it is known in artifacts and manifests."""
    return pixel_hash(read_photo(path))[:SHORT_HASH]


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a mask as (H,W) bool, True = defect: values over half range, or above 0 in a 0/1 file.

    Of a coloured mask the brightest channel counts, so that marks of any full colour are seen.
    Raises ValueError when it cannot be read or is not `size` (height, width), UnusableMask when it marks
    nothing or everything.
    """
    image = _open(path, "Mask")
    try:
        values = np.asarray(_to_8_bit(image).convert("RGB")).max(-1)
    except ValueError as error:
        raise _unreadable(path, "Mask", error) from None
    if image.mode in MODES_16_BIT and values.max(initial=0) == 0:
        values = np.asarray(image)
    mask = values > (127 if values.max(initial=0) > 1 else 0)
    if size and mask.shape != size:
        raise ValueError(
            f"Mask {path} is {mask.shape[1]}x{mask.shape[0]} but its image is {size[1]}x{size[0]}: "
            "resize the mask or choose the matching file."
        )
    if not mask.any():
        raise UnusableMask(f"Mask {path} is empty (nothing is marked): mark the defect or remove the pair.")
    if mask.all():
        raise UnusableMask(
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
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG as `write_new` does."""
    write_new(png_bytes(image), path)


def write_new(content: bytes, path: Path) -> None:
    """Writes a new file, whole or not at all; refuses to replace an existing one (FileExistsError).

    Raises OSError naming `path` where it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        _rename_new(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _rename_new(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        os.replace(source, target)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
