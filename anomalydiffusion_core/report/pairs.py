"""The pairs of a report: what its script shows of each one, and the figures that need all of their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..dataset.layout import picture_file
from ..dataset.photos import png_bytes, read_photo
from ..export.mvtec import ATTENTION, REJECTED, read_manifest
from ..gate.checks import CHECKS
from ..gate.fidelity import MaskFidelity
from .page import data_block, data_uri
from .settings import pair_in_words
from .shown_pair import WHOLE_QUALITY, ShownPair, jpeg, pair_reader, strip

MOST_WHOLE = 1000  # pairs up to which whole photos lie in the page; beyond, only close-ups do
ATTENTION_SHOWN = 4  # pairs of each type
ROW_KEYS = ("normal", "fill", "noise")


@dataclass(frozen=True)
class ListedPair:
    """A manifest row, the folder of its manifest, and whether it is among the accepted pairs."""

    row: dict[str, Any]
    folder: Path
    accepted: bool

    @property
    def name(self) -> str:
        """The defect type."""
        return f"{self.row['category']}/{self.row['defect']}"

    @property
    def reason(self) -> str:
        return str(self.row.get("rejected", "unknown"))

    @property
    def file(self) -> str:
        """The image's path below the dataset's root."""
        return self.row["image"] if self.accepted else f"{REJECTED}/{self.row['image']}"


@dataclass
class TypeFigures:
    """What all accepted pairs of a defect type come to."""

    name: str
    fills: list[float] = field(default_factory=list)
    fidelities: list[MaskFidelity] = field(default_factory=list)  # within the close-ups
    areas: list[float] = field(default_factory=list)  # of the masks, as shares of the photos
    changed_outside: int = 0  # pixels outside the masks that differ from the normal photos

    @property
    def count(self) -> int:
        return len(self.fills)

    @property
    def mean_fill(self) -> str:
        return f"{np.mean(self.fills):.2f}"

    @property
    def least_fill(self) -> str:
        return f"{min(self.fills):.2f}"

    @property
    def precision(self) -> str:
        return f"{np.mean([one.precision for one in self.fidelities]):.2f}"

    @property
    def boundary_iou(self) -> str:
        return f"{np.mean([one.boundary_iou for one in self.fidelities]):.2f}"

    @property
    def area(self) -> str:
        return f"{100 * np.mean(self.areas):.3g}%"


def listed_pairs(root: Path) -> list[ListedPair]:
    """The accepted pairs by type, then the rejected ones.

    Raises ValueError where there is no accepted one, or a row lacks what the page shows.
    """
    accepted = [ListedPair(row, root, True) for row in read_manifest(root)]
    rejected = [ListedPair(row, root / REJECTED, False) for row in read_manifest(root / REJECTED)]
    if not accepted:
        raise ValueError(
            f"{root} has no generated pairs (no rows in manifest.jsonl): run 'anomalydiffusion generate'."
        )
    for pair in (*accepted, *rejected):
        if missing := [key for key in ROW_KEYS if key not in pair.row]:
            raise ValueError(
                f"{pair.folder / 'manifest.jsonl'} has a row without {', '.join(missing)}: "
                "write the dataset with 'anomalydiffusion generate', or connect Quality Gate's normals and "
                "scores to Save Anomaly Dataset."
            )
    return sorted(accepted, key=lambda pair: pair.name) + sorted(rejected, key=lambda pair: pair.name)


class PairPictures:
    """Reads pairs one at a time; their figures are complete when all were shown."""

    def __init__(self, root: Path, pairs: list[ListedPair]) -> None:
        self.root, self.pairs = root, pairs
        self.types = {pair.name: TypeFigures(pair.name) for pair in pairs if pair.accepted}
        self.index: list[dict[str, Any]] = []
        self._read = pair_reader(root)
        self._whole = len(pairs) <= MOST_WHOLE

    def blocks(self) -> Iterator[str]:
        """Each pair's pictures, as an element of the page that its script reads when it shows them."""
        for number, pair in enumerate(self.pairs):
            files = (picture_file(pair.folder, pair.row[key]) for key in ("image", "mask"))
            shown = self._read(pair.row, *files)
            if pair.accepted:
                figures = self.types[pair.name]
                figures.fills.append(pair.row["fill"])
                figures.areas.append(float(shown.mask.mean()))
                figures.changed_outside += shown.changed_outside()
                figures.fidelities.append(shown.fidelity())
            self.index.append(_entry(pair, shown))
            yield data_block(f"pictures-{number}", self._pictures(shown))

    def _pictures(self, shown: ShownPair) -> dict[str, str | None]:
        detail = shown.detail()
        whole = jpeg(shown.whole(), WHOLE_QUALITY) if self._whole else None
        return {
            "close": data_uri(jpeg(strip(shown.tiles(shown.close_up()))), "jpeg"),
            "detail": data_uri(jpeg(strip(shown.tiles(detail))), "jpeg") if detail else None,
            "whole": data_uri(whole, "jpeg") if whole else None,
        }


def _entry(pair: ListedPair, shown: ShownPair) -> dict[str, Any]:
    """What the page's script knows of a pair without its pictures."""
    height, width = shown.mask.shape
    return {
        "file": pair.file,
        "link": quote(pair.file),
        "type": pair.name,
        "accepted": pair.accepted,
        "why": None if pair.accepted else pair.reason,
        "scores": finite_numbers(pair.row.get("scores")) or {"fill": pair.row["fill"]},
        "limits": finite_numbers(pair.row.get("thresholds")),
        "size": f"{width} x {height}",
        "place": shown.place(),
        "said": [*pair_in_words(pair.row), f"The mask covers {100 * shown.mask.mean():.2g} % of the photo."],
    }


def finite_numbers(scores: object) -> dict[str, float]:
    """What a row says of scores or limits, without anything that is no number."""
    if not isinstance(scores, dict):
        return {}
    return {
        name: float(value)
        for name, value in scores.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
    }


def check_directions() -> dict[str, dict[str, object]]:
    """Of each check of the gate whether its limit is a greatest value, for the page's script."""
    return {name: {"most": check.at_most} for name, check in CHECKS.items()}


def attention_maps(pairs: list[ListedPair]) -> list[tuple[str, list[str]]]:
    """By type the pictures of what the tokens looked at, of the first accepted pairs that have one."""
    by_type: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if pair.accepted and ATTENTION in pair.row and len(by_type[pair.name]) < ATTENTION_SHOWN:
            photo = read_photo(picture_file(pair.folder, pair.row[ATTENTION]))
            by_type[pair.name].append(data_uri(png_bytes(photo.image())))
    return [(name, images) for name, images in by_type.items() if images]
