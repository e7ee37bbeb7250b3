"""Reading and writing photos and masks at the files' own depth, problems told in one sentence.

A file of 16 bits per sample keeps them. Work is done on an 8-bit view of it, whose white is the highest value
of the fewest bits (8, 10, 12, 14 or 16) that hold all samples: 10- and 12-bit cameras write 16-bit files too.
Colours keep 16 bits in PNG files without transparency only; all other formats give theirs at 8 bits.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..method.blending import paste
from .deep_png import deep_png, is_deep_png, read_deep_png
from .windows import Box

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I")
USED_BITS = (8, 10, 12, 14, 16)  # of the samples in a 16-bit file
# exFAT and some network drives; EINVAL on Windows
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
SHORT_HASH = 16  # digits


class UnusableMask(ValueError):
    """A mask that can be read, but marks nothing, or everything."""


WHOLE: Box = (slice(None), slice(None))


@dataclass(frozen=True)
class Photo:
    """`pixels` (H,W,3) uint8 RGB, which all work is done on; `gray` tells that the file had one channel.

    `deep`, of a file of 16 bits only, is what it held: (H,W) or (H,W,3) uint16, 0 to `white`.
    """

    pixels: np.ndarray
    gray: bool
    deep: np.ndarray | None = None
    white: int = 255

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def samples(self) -> np.ndarray:
        """What the file holds, in [0,white]: (H,W) of one channel, else (H,W,3), uint8 or uint16."""
        if self.deep is not None:
            return self.deep
        return self.pixels[..., 0] if self.gray else self.pixels

    def levels(self) -> np.ndarray:
        """(H,W,3) float32 in [0,255], with the fractions that a file of 16 bits tells."""
        if self.deep is None:
            return self.pixels.astype(np.float32)
        return _three_channels(self.deep * np.float32(255 / self.white))

    def tensor(self) -> Tensor:
        """(3,H,W) float32 in [-1,1], of `pixels`."""
        # HWC -> CHW
        return torch.from_numpy(self.pixels.astype(np.float32)).permute(2, 0, 1).div_(127.5).sub_(1)

    def window(self, box: Box) -> Photo:
        """The part in `box`, not copied."""
        return replace(self, pixels=self.pixels[box], deep=None if self.deep is None else self.deep[box])

    def pasted(
        self, generated: np.ndarray, mask: np.ndarray, box: Box = WHOLE, feather: float = 1.0
    ) -> Photo:
        """This photo with generated (h,w,3) float in [0,255] laid into its `box` inside mask (h,w) bool.

        As `blending.paste` does, at the file's own depth; in a gray photo the channels' mean.
        """
        samples = self.samples.copy()
        values = generated.mean(-1) if self.gray else generated
        samples[box] = paste(samples[box], values, mask, feather, white=self.white)
        return photo_of(samples, self.white)

    def image(self) -> Image.Image:
        """A PIL image of the file's kind and depth; of 16-bit colours, which PIL lacks, at 8 bits."""
        return Image.fromarray(self.pixels if self._deep_colour else self.samples)

    def png(self) -> bytes:
        """A PNG file of the photo's kind and depth."""
        return deep_png(self.samples) if self._deep_colour else png_bytes(self.image())

    @property
    def _deep_colour(self) -> bool:
        return self.deep is not None and not self.gray


def photo_of(samples: np.ndarray, white: int = 255) -> Photo:
    """The photo of samples (H,W) or (H,W,3), uint8 or uint16.

    Of uint16, what is seen as 255 is the highest value of the fewest bits (8, 10, 12, 14 or 16) that hold all
    samples and `white`.
    """
    gray = samples.ndim == 2
    if samples.dtype == np.uint8:
        return Photo(_three_channels(samples), gray)
    highest = max(int(samples.max(initial=0)), white)
    bits = next(bits for bits in USED_BITS if highest < 1 << bits)
    seen = np.empty(samples.shape, np.uint8)
    np.right_shift(samples, bits - 8, out=seen, casting="unsafe")
    return Photo(_three_channels(seen), gray, samples, (1 << bits) - 1)


def _three_channels(samples: np.ndarray) -> np.ndarray:
    """(H,W,3); of one channel a view, so that a gray photo takes no memory for colours."""
    return samples if samples.ndim == 3 else np.broadcast_to(samples[..., None], (*samples.shape, 3))


def _read(path: Path, what: str, white: int = 255) -> Photo:
    """A file's picture, upright."""
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{what} {path} is empty (0 bytes): replace or remove the file.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{what} {path} does not exist: check the path.") from None
    except OSError as error:
        raise _unreadable(path, what, error) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage that it then either reads or refuses
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return photo_of(_samples(image, content), white)
    except UnidentifiedImageError:
        raise _unreadable(path, what, "no known picture format") from None
    except Exception as error:  # on damaged files Pillow raises anything: struct.error, IndexError, ...
        raise _unreadable(path, what, error) from None


def _samples(image: Image.Image, content: bytes) -> np.ndarray:
    """(H,W) gray or (H,W,3), uint8 or uint16; transparency is laid on black."""
    if image.mode in MODES_16_BIT:
        values = np.asarray(image)
        return (values.clip(0, 65535) if values.itemsize > 2 else values).astype(np.uint16, copy=False)
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, convert it to 8 or 16 bit")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        laid = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
        return np.asarray(laid.convert(mode))
    if is_deep_png(content):
        return read_deep_png(content)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _unreadable(path: Path, what: str, reason: Exception | str) -> ValueError:
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    why = lines[0].rstrip(".")
    return ValueError(f"{what} {path} cannot be read ({why}): replace or remove the file.")


def read_photo(path: Path, white: int = 255) -> Photo:
    """Reads a photo upright; `white` of a 16-bit file as `photo_of` has it.

    Raises ValueError naming the file when it cannot be read.
    """
    return _read(path, "Image", white)


def pixel_hash(photo: Photo) -> str:
    """SHA-256 (hex) over size and 8-bit pixels, the same whatever format the file has."""
    digest = hashlib.sha256(str(photo.size).encode())
    for row in photo.pixels:
        digest.update(row.tobytes())
    return digest.hexdigest()


def short_hash(path: Path) -> str:
    """The first digits of a photo's `pixel_hash`, by which it is known in artifacts and manifests."""
    return pixel_hash(read_photo(path))[:SHORT_HASH]


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a mask as (H,W) bool, True = defect: values over half range, or above 0 in a 0/1 file.

    Of a coloured mask the brightest channel counts, so that marks of any full colour are seen.
    Raises ValueError when it cannot be read or is not `size` (height, width), UnusableMask when it marks
    nothing or everything.
    """
    photo = _read(path, "Mask")
    values = photo.pixels[..., 0] if photo.gray else photo.pixels.max(-1)
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


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file whole, in place of an earlier one, from parts that need not all be in memory; raises
    OSError where that is impossible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
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
