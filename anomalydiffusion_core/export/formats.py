"""The formats that generated datasets are exported to, and the export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..dataset.layout import check_outside
from ..method.progress import OnStage
from .mvtec import (
    MANIFEST,
    MVTecWriter,
    accepted_among,
    read_manifest,
    rejected_by_hand,
    written_pair,
)
from .writer import PairWriter

FORMATS: dict[str, Callable[[Path], PairWriter]] = {  # a writer, made with the folder to write
    "mvtec": MVTecWriter,
}


def export_dataset(
    root: Path,
    format_name: str,
    out: Path,
    on_stage: OnStage = lambda *_: None,
    *,
    without: Iterable[str] = (),
) -> int:
    """Writes the pairs that a generated dataset's manifest names, but for those `without` (by their images'
    paths below `root`), into the new folder `out`, in a format of the table; returns their number. The folder
    is there when all is written, and else not at all.

    Raises ValueError where the format is unknown, there are no pairs or not those left out, a file is
    unusable, or `out` is not empty.
    """
    if format_name not in FORMATS:
        raise ValueError(f"There is no format {format_name!r}: choose from {', '.join(FORMATS)}.")
    rows = read_manifest(root)
    if not rows:
        raise ValueError(
            f"{root} has no generated pairs (no rows in {MANIFEST}): give a folder that 'anomalydiffusion "
            "generate' wrote."
        )
    left_out = accepted_among(without, {row["image"] for row in rows}, rejected_by_hand(root), root)
    rows = [row for row in rows if row["image"] not in left_out]
    if not rows:
        raise ValueError(f"All pairs of {root} are left out: nothing remains to export.")
    check_outside(out, root)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists already: choose a new folder, nothing is overwritten.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / out.name
        writer = FORMATS[format_name](part)
        for number, row in enumerate(rows, start=1):
            writer.write(written_pair(root, row))
            on_stage(f"{format_name} export", number, len(rows), "")
        writer.close()
        if out.exists():
            out.rmdir()
        part.rename(out)
    return len(rows)
