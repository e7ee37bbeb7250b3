"""Draws the workflows' pictures for the template browser: `python tools/make_thumbnails.py`.

Each shows a photo of the demo set, a mask, and the defect that the embedded base put there, also close up.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from make_workflows import FOLDER
from PIL import Image

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.export.mvtec import read_manifest
from anomalydiffusion_core.gate.lettering import GROUND, Paragraph, written
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.runs import GenerationRun, generate_all
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

TILE, GAP, CAPTION = 252, 8, 15  # pixels
SHOWN = {  # workflow -> size of the photos, defect type, which of its pairs
    "1_your_photos": (128, "metal/rust", 0),
    "2_train": (128, "leather/burn", 0),
    "3_masks": (128, "metal/weld_spatter", 0),
    "4_draw_a_mask": (128, "leather/ink", 0),
    "5_evaluate": (128, "leather/burn", 1),
    "6_reweighting_and_lora": (128, "metal/rust", 1),
    "7_large_photos": (512, "leather/ink", 0),
}


def generated(root: Path, size: int, defect_types: list[str], count: int) -> None:
    """Pairs on photos of the demo set, with the embeddings that come with the pack."""
    write_few_shot_dataset(root / "few_shot", size)
    run = GenerationRun(load_artifact(DEMO_EMBEDDINGS), GenerationConfig(), load_base("tiny"))
    photos = find_dataset(root / "few_shot")
    generate_all(run, photos, count, out=root / "pairs", defect_types=defect_types)


def close_up(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A square around the mask."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    side = min(max(right - left, bottom - top) * 3 // 2, *mask.size)
    x = int(np.clip((left + right - side) // 2, 0, mask.width - side))
    y = int(np.clip((top + bottom - side) // 2, 0, mask.height - side))
    return picture.crop((x, y, x + side, y + side))


def thumbnail(normal: Image.Image, mask: Image.Image, result: Image.Image) -> Image.Image:
    """Four tiles with their names, in a square."""
    side = 2 * TILE + GAP
    sheet = Image.new("RGB", (side, side), GROUND)
    tiles = {"photo": normal, "mask": mask, "with the defect": result, "close up": close_up(result, mask)}
    for number, (name, tile) in enumerate(tiles.items()):
        x, y = (i * (TILE + GAP) for i in (number % 2, number // 2))
        sheet.paste(tile.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        sheet.paste(written([Paragraph(name, CAPTION)], 130 if " " in name else 80), (x, y))
    return sheet


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted({size for size, _, _ in SHOWN.values()}):
            shown = {name: (kind, pair) for name, (own, kind, pair) in SHOWN.items() if own == size}
            types = sorted({defect_type for defect_type, _ in shown.values()})
            root = Path(folder) / str(size)
            generated(root, size, types, 1 + max(number for _, number in shown.values()))
            rows = read_manifest(root / "pairs")
            for name, (defect_type, number) in shown.items():
                row = [r for r in rows if f"{r['category']}/{r['defect']}" == defect_type][number]
                parts = [Image.open(root / "pairs" / row[key]) for key in ("normal", "mask", "image")]
                thumbnail(*parts).save(FOLDER / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
