"""PNG files of 16 bits per colour, which Pillow reads at 8 bits and cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch

SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH_AND_KIND = slice(24, 26)  # of a PNG file's bytes: bits per sample, colour type
RGB_16_BIT = bytes([16, 2])
UP = 2  # the filter that stores a row as its difference from the row above


def is_deep_png(content: bytes) -> bool:
    """Whether a file's bytes are a PNG of 16-bit RGB without an alpha channel."""
    return content.startswith(SIGNATURE) and content[DEPTH_AND_KIND] == RGB_16_BIT


def read_deep_png(content: bytes) -> np.ndarray:
    """(H,W,3) of a 16-bit RGB PNG, turned upright: uint16, or uint8 where torchvision is older than 0.21.

    Raises RuntimeError on a damaged file.
    """
    from torchvision.io import decode_png

    decoded = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), apply_exif_orientation=True)
    # CHW -> HWC
    return np.ascontiguousarray(decoded.permute(1, 2, 0).numpy())


def deep_png(samples: np.ndarray) -> bytes:
    """The PNG file of samples (H,W,3) uint16."""
    height, width = samples.shape[:2]
    # HWC, two bytes each, the high one first -> one row of bytes per line
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    rows[1:] -= rows[:-1].copy()
    lines = np.pad(rows, ((0, 0), (1, 0)), constant_values=UP)
    header = struct.pack(">IIBBBBB", width, height, *RGB_16_BIT, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
