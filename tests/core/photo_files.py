"""Small pictures and PNG files by the letter, for tests of reading photos."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

RAMP = np.add.outer(np.arange(6) * 40, np.arange(9) * 5).astype(np.uint8)  # (6,9), 0..240
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file by the specification's letter; `rows` without filter bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * length : (i + 1) * length] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered))
        + chunk(b"IEND", b"")
    )


def one_sentence(error: pytest.ExceptionInfo[ValueError], path: Path) -> str:
    text = str(error.value)
    assert str(path) in text and "\n" not in text and ": " in text and text.endswith(".")
    return text
