"""A sheet of close-ups, real defects and generated ones mixed, without names: can people tell them apart?

Writes SHEET, numbered tiles of `--count` generated and as many real pairs, types in equal parts, and KEY, a
JSON object that says which numbers are generated. Show somebody the sheet alone, and let them say of each
number whether it is real.

    .venv/bin/python benchmarks/blind_sheet.py ours D/mvtec/leather sheet.png key.json
"""

from __future__ import annotations

import argparse
import json
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.dataset.photos import write_png
from anomalydiffusion_core.dataset.views import read_pair
from anomalydiffusion_core.dataset.windows import Window, regions_of

TILE, COLUMNS, LABEL = 192, 6, 18  # pixels, tiles, pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", type=Path, help="a dataset that 'generate' wrote")
    parser.add_argument("real", type=Path, help="the dataset of real pairs")
    parser.add_argument("sheet", type=Path, help="PNG file to write")
    parser.add_argument("key", type=Path, help="JSON file to write, not to be shown")
    parser.add_argument("--count", type=int, default=12, help="close-ups of each kind")
    parser.add_argument("--size", type=int, default=96, help="pixels of the photo in a close-up, at least")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    shown = [
        (_close_up(pair, arguments.size, rng), kind)
        for kind, root in (("generated", arguments.generated), ("real", arguments.real))
        for pair in _chosen(list(find_dataset(root).pairs), arguments.count, rng)
    ]
    order = rng.permutation(len(shown))
    write_png(_sheet([shown[i][0] for i in order]), arguments.sheet)
    generated = [number for number, i in enumerate(order, start=1) if shown[i][1] == "generated"]
    arguments.key.write_text(
        json.dumps({"generated": generated, "shown": len(shown)}) + "\n", encoding="utf-8"
    )


def _chosen(pairs: list[Pair], count: int, rng: np.random.Generator) -> list[Pair]:
    """That many pairs at random, the types in turn."""
    by_type: dict[str, list[Pair]] = {}
    for i in rng.permutation(len(pairs)):
        by_type.setdefault(pairs[i].defect, []).append(pairs[i])
    rounds = zip_longest(*(by_type[name] for name in sorted(by_type)))
    return [pair for pair in chain.from_iterable(rounds) if pair][:count]


def _close_up(pair: Pair, size: int, rng: np.random.Generator) -> Image.Image:
    """A tile of a pair's largest region, not quite in the middle."""
    photo, mask = read_pair(pair)
    region = max(regions_of(mask[0].numpy() > 0, size), key=lambda one: one.mask.sum())
    window, shift = region.window, rng.integers(-size // 8, size // 8 + 1, 2)
    centre = (int(window.top + window.side // 2 + shift[0]), int(window.left + window.side // 2 + shift[1]))
    pixels = Window.around(centre, window.side, photo.size).cut(photo.pixels)
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        x, y = number % COLUMNS * TILE, number // COLUMNS * (TILE + LABEL)
        sheet.paste(tile, (x, y + LABEL))
        draw.text((x + 4, y + 3), str(number + 1), fill="black")
    return sheet


if __name__ == "__main__":
    main()
