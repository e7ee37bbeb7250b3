"""A pair in one picture: normal photo, result, a close-up with the mask's outline, and what is to be said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from .lettering import Wrapped, wrapped

WIDTH = 768  # pixels, of the whole picture
GAP, MARGIN = 8, 10
TILE = (WIDTH - 2 * MARGIN - 2 * GAP) // 3  # pixels at most per side of each of the three pictures
TITLE, TEXT, LABEL = 26, 22, 17  # heights of letters, legible at half the size too
GROUND, BRIGHT, DIM = (24, 26, 30), (240, 240, 240), (165, 170, 178)
GOOD, STOPPED = (95, 215, 130), (255, 120, 95)  # colours of titles
OUTLINE, SHADE = (0, 255, 255), (0, 0, 0)
LEAST_SIDE = 32  # pixels of the photo that a close-up shows at least
MARGIN_AROUND = 1.6  # sides of a close-up over the extent of the mask
LABELS = ("normal photo", "result", "close-up, mask outlined")


def pair_picture(
    normal: np.ndarray,
    result: np.ndarray,
    mask: np.ndarray,
    title: str,
    *,
    sentences: Sequence[str] = (),
    details: str = "",
    good: bool = True,
) -> Image.Image:
    """WIDTH pixels wide, as high as its text asks: title, the three pictures, sentences, small `details`.

    Photos (H,W,3) uint8, mask (H,W) bool; without a mask the close-up is the whole result. The title is green
    for a `good` pair, else red.
    """
    inside, box = WIDTH - 2 * MARGIN, close_up(mask)
    above = [(wrapped(title, inside, TITLE), GOOD if good else STOPPED)]
    below = [(wrapped(sentence, inside, TEXT), BRIGHT) for sentence in sentences]
    below += [(wrapped(details, inside, LABEL), DIM)] if details else []
    tiles = _row([_framed(normal, box), _tile(result), _outlined(result[box], mask[box])])
    height = tiles.height + sum(text.height + GAP for text, _ in above + below) + GAP + MARGIN
    picture = Image.new("RGB", (WIDTH, height), GROUND)
    y = _write(ImageDraw.Draw(picture), above, MARGIN)
    picture.paste(tiles, (MARGIN, y))
    _write(ImageDraw.Draw(picture), below, y + tiles.height + GAP)
    return picture


def close_up(mask: np.ndarray) -> tuple[slice, slice]:
    """A square around what mask (H,W) bool marks, with some of its surroundings, cut to the photo; all of it
    where nothing is marked.
    """
    if not mask.any():
        return np.s_[:, :]
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    extent = 1 + max(rows[-1] - rows[0], columns[-1] - columns[0])
    side = max(LEAST_SIDE, round(MARGIN_AROUND * int(extent)))
    spans = []
    for marked, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        start = int(np.clip((marked[0] + marked[-1] + 1 - side) // 2, 0, max(0, length - side)))
        spans.append(slice(start, min(length, start + side)))
    return spans[0], spans[1]


def _row(tiles: list[Image.Image]) -> Image.Image:
    """Tiles side by side, each below its label."""
    labels = [wrapped(label, TILE, LABEL) for label in LABELS]
    top, height = labels[0].spacing, max(tile.height for tile in tiles)
    row = Image.new("RGB", (WIDTH - 2 * MARGIN, top + height), GROUND)
    for column, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        x = column * (TILE + GAP)
        ImageDraw.Draw(row).text((x, 0), label.lines[0], fill=DIM, font=label.font)
        row.paste(tile, (x + (TILE - tile.width) // 2, top))
    return row


def _write(draw: ImageDraw.ImageDraw, texts: list[tuple[Wrapped, tuple[int, int, int]]], y: int) -> int:
    """Texts below each other from y on; returns where they end."""
    for lines, colour in texts:
        for line in lines.lines:
            draw.text((MARGIN, y), line, fill=colour, font=lines.font)
            y += lines.spacing
        y += GAP
    return y


def _tile(pixels: np.ndarray) -> Image.Image:
    """As large as fits a square of TILE."""
    factor = TILE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
    resampling = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize(size, resampling)


def _framed(pixels: np.ndarray, box: tuple[slice, slice]) -> Image.Image:
    """The photo with a frame where the close-up lies, unless that shows nearly all of it."""
    tile = _tile(pixels)
    rows, columns = (range(*part.indices(n)) for part, n in zip(box, pixels.shape[:2], strict=True))
    if len(rows) * len(columns) < 0.7 * pixels.shape[0] * pixels.shape[1]:
        scale = tile.width / pixels.shape[1]
        left, top = columns.start * scale, rows.start * scale
        right, bottom = (columns.stop) * scale - 1, rows.stop * scale - 1
        draw = ImageDraw.Draw(tile)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=SHADE)
        draw.rectangle((left, top, right, bottom), outline=BRIGHT)
    return tile


def _outlined(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The part of the photo with a line around what is marked: outside of it, so that it hides no defect."""
    tile = _tile(pixels)
    marked = np.asarray(Image.fromarray(mask).resize(tile.size, Image.Resampling.NEAREST))
    canvas = np.array(tile)
    ring = np.asarray(binary_dilation(marked, np.ones((3, 3)), 3)) & ~marked
    line = np.asarray(binary_dilation(marked, np.ones((3, 3)), 2)) & ~marked
    canvas[ring], canvas[line] = SHADE, OUTLINE
    return Image.fromarray(canvas)
