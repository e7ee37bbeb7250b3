"""A pair in one picture: normal photo, result, a close-up with the mask's outline, and what is to be said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from .lettering import BRIGHT, DIM, GAP, GOOD, GROUND, LABEL, MARGIN, STOPPED, TITLE, Paragraph, written

WIDTH = 768  # pixels, of the whole picture
TILE = (WIDTH - 2 * MARGIN - 2 * GAP) // 3  # pixels at most per side of each of the three pictures
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
    box = close_up(mask)
    above = [Paragraph(title, TITLE, GOOD if good else STOPPED)]
    below = [Paragraph(sentence) for sentence in sentences]
    below += [Paragraph(details, LABEL, DIM)] if details else []
    tiles = [_framed(normal, box), _tile(result), _outlined(result[box], mask[box])]
    return stacked([written(above, WIDTH), _row(tiles), written(below, WIDTH)])


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Below each other."""
    width, height = max(one.width for one in pictures), sum(one.height for one in pictures)
    whole, y = Image.new("RGB", (width, height), GROUND), 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole


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
    labels = [written([Paragraph(label, LABEL, DIM)], TILE) for label in LABELS]
    top = labels[0].height
    row = Image.new("RGB", (WIDTH, top + max(tile.height for tile in tiles)), GROUND)
    for number, (label, tile) in enumerate(zip(labels, tiles, strict=True)):
        x = number * (TILE + GAP)
        row.paste(label, (x, 0))  # it has a margin of its own
        row.paste(tile, (MARGIN + x, top))
    return row


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
        right, bottom = columns.stop * scale - 1, rows.stop * scale - 1
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
