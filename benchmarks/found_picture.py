"""What localisers of two contenders find on the same real photos, side by side, from a finished evaluation:
photo, mark, and what each finds in orange; a column of each defect, the photo that the first finds least of.

python benchmarks/found_picture.py EVALUATION "real few shots" ours docs/found.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalydiffusion_core.evaluation.found import close_ups
from anomalydiffusion_core.report.shown_pair import GAP, TILE


def shown(evaluation: Path, contender: str) -> dict[tuple[str, str], list[np.ndarray]]:
    """Three tiles of each close-up of a contender's first seed by defect and photo, least found first."""
    for path in sorted(evaluation.glob("runs/*.json")):
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["contender"] == contender and result["seed"] == 0 and result.get("found"):
            rows = close_ups(Image.open(path.with_suffix(".png")).convert("RGB"), TILE)
            return {
                (one["defect"], one["photo"]): [
                    np.asarray(row.crop((left, 0, left + TILE, TILE)))
                    for left in range(0, row.width, TILE + GAP)
                ]
                for one, row in zip(result["found"], rows, strict=False)  # the first ones are shown
                if one["defect"]
            }
    raise ValueError(f"{evaluation} holds no close-ups of {contender!r}.")


def main() -> None:
    evaluation, first, second, out = sys.argv[1:]
    ones, others = shown(Path(evaluation), first), shown(Path(evaluation), second)
    chosen: dict[str, tuple[str, str]] = {}
    for key in ones:
        if key in others:
            chosen.setdefault(key[0], key)
    columns = [np.vstack([*ones[key], others[key][-1]]) for key in chosen.values()]
    Image.fromarray(np.hstack(columns)).save(out, quality=85)


if __name__ == "__main__":
    main()
