"""What localisers of two contenders find on the same real photos, side by side, from a finished evaluation:
photo, mark, and what each finds in orange; a row of each defect, the photo that the first finds least of.

python benchmarks/found_picture.py EVALUATION "real few shots" ours docs/found.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TILE, GAP = 200, 16  # pixels of the close-ups that `evaluate` writes, and between them
ROW = TILE + GAP // 2


def shown(evaluation: Path, contender: str) -> dict[tuple[str, str], np.ndarray]:
    """The close-ups (200,632,3) of a contender's first seed by defect and photo, least found first."""
    for path in sorted(evaluation.glob("runs/*.json")):
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["contender"] == contender and result["seed"] == 0 and result.get("found"):
            rows = np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"))
            defects = [one for one in result["found"][: len(rows) // ROW] if one["defect"]]
            return {
                (one["defect"], one["photo"]): rows[number * ROW : number * ROW + TILE]
                for number, one in enumerate(defects)
            }
    raise ValueError(f"{evaluation} holds no close-ups of {contender!r}.")


def main() -> None:
    evaluation, first, second, out = sys.argv[1:]
    ones, others = shown(Path(evaluation), first), shown(Path(evaluation), second)
    chosen: dict[str, tuple[str, str]] = {}
    for key in ones:
        if key in others:
            chosen.setdefault(key[0], key)
    columns = []
    for key in chosen.values():
        photo, mark, found = (
            ones[key][:, x : x + TILE] for x in range(0, 3 * (TILE + GAP) - GAP, TILE + GAP)
        )
        columns.append(np.vstack([photo, mark, found, others[key][:, -TILE:]]))
    Image.fromarray(np.hstack(columns)).save(out, quality=85)


if __name__ == "__main__":
    main()
