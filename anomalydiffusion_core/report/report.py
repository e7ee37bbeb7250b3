"""One self-contained HTML page on a generated dataset: pairs, fill, gate, curves, settings, versions."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..dataset.photos import png_bytes
from ..export.mvtec import ATTENTION, REJECTED, manifest_pairs
from ..method.embeddings import Learned
from .contact_sheet import CLOSE_UP, read_shown, sheet
from .page import data_uri, render_page, replace_text

COLUMNS = 8
ATTENTION_SHOWN = 4  # pairs of each type
ManifestPair = tuple[dict[str, Any], Path, Path]  # row, image, mask
ROW_KEYS = ("normal", "fill", "noise")
SETTINGS = {  # what a row may say of how it was made
    "config": "generation",
    "prompt": "ComfyUI graph",
    "base_family": "base",
    "base_weights": "weights of the base",
    "artifact_sha256": "artifact (SHA-256)",
    "learned_sha256": "embeddings (SHA-256)",
}


@dataclass(frozen=True)
class TypeSheet:
    """What the page shows of one defect type: its contact sheet, and figures of all its pairs."""

    name: str
    fills: list[float]
    areas: list[float]  # of the masks, as shares of the photos
    changed_outside: int  # pixels outside the masks that differ from the normal photos
    image: str  # a data URI, as the next ones
    attention: list[str]

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
    def area(self) -> str:
        return f"{100 * np.mean(self.areas):.3g}%"


def write_report(root: Path, out: Path, learned: Learned | None = None) -> dict[str, Any]:
    """Reads a generated dataset's manifest and pictures, writes the page, returns its figures by type.

    Raises ValueError when there is no manifest, it has no rows, or its rows lack what the page shows.
    """
    accepted, rejected = _read_groups(root), _by_type(root / REJECTED)
    sheets = [_type_sheet(root, name, pairs) for name, pairs in sorted(accepted.items())]
    rows = [row for pairs in accepted.values() for row, _, _ in pairs]
    figures = {
        "pairs": len(rows),
        "mean_fill": float(np.mean([row["fill"] for row in rows])),
        "changed_outside": sum(sheet.changed_outside for sheet in sheets),
        "rejected": sum(map(len, rejected.values())),
        "by_type": {s.name: {"pairs": s.count, "mean_fill": float(s.mean_fill)} for s in sheets},
    }
    page = render_page(
        "report/report.html.j2",
        title="AnomalyDiffusion report",
        subtitle=f"Generated dataset {root.resolve().name}",
        sheets=sheets,
        close_up=CLOSE_UP,
        gate=_gate(accepted, rejected),
        scores=_score_table(accepted),
        rejected=_rejected_sheets(root, rejected),
        cards=_cards(figures),
        noise=f"{np.mean([row['noise'] for row in rows]):.1f}",
        background=f"{figures['changed_outside']} changed pixels in {len(rows)} pairs.",
        curve=_loss_curve(learned) if learned else None,
        improvement=learned.training.get("improvement") if learned else None,
        settings=_settings(rows, learned),
    )
    replace_text(out, page)
    return figures


def _cards(figures: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("accepted pairs", figures["pairs"]),
        *([("rejected pairs", figures["rejected"])] if figures["rejected"] else []),
        ("defect types", len(figures["by_type"])),
        ("mean fill", f"{figures['mean_fill']:.2f}"),
        ("pixels changed outside masks", figures["changed_outside"]),
    ]


def _by_type(root: Path) -> dict[str, list[ManifestPair]]:
    """The manifest's pairs by category/defect."""
    groups: dict[str, list[ManifestPair]] = defaultdict(list)
    for pair in manifest_pairs(root):
        groups[f"{pair[0]['category']}/{pair[0]['defect']}"].append(pair)
    return dict(groups)


def _read_groups(root: Path) -> dict[str, list[ManifestPair]]:
    groups = _by_type(root)
    for row, _, _ in (pair for pairs in groups.values() for pair in pairs):
        if missing := [key for key in ROW_KEYS if key not in row]:
            raise ValueError(
                f"{root / 'manifest.jsonl'} has a row without {', '.join(missing)}: "
                "write the dataset with 'anomalydiffusion generate', or connect Quality Gate's normals and "
                "scores to Save Anomaly Dataset."
            )
    if not groups:
        raise ValueError(
            f"{root} has no generated pairs (no rows in manifest.jsonl): run 'anomalydiffusion generate'."
        )
    return groups


def _type_sheet(root: Path, name: str, pairs: list[ManifestPair]) -> TypeSheet:
    changed, areas, columns = 0, [], []
    for number, pair in enumerate(pairs):
        shown = read_shown(root, *pair)
        changed += shown.changed_outside()
        areas.append(float(shown.mask.mean()))
        if number < COLUMNS:
            columns.append(shown.column())
    fills = [row["fill"] for row, _, _ in pairs]
    image = data_uri(png_bytes(sheet(columns)))
    return TypeSheet(name, fills, areas, changed, image, _attention(root, pairs))


def _attention(root: Path, pairs: list[ManifestPair]) -> list[str]:
    paths = (root / ATTENTION / row["category"] / row["defect"] / image.name for row, image, _ in pairs)
    existing = [path for path in paths if path.is_file()]
    return [data_uri(path.read_bytes()) for path in existing[:ATTENTION_SHOWN]]


def _gate(
    accepted: dict[str, list[ManifestPair]], rejected: dict[str, list[ManifestPair]]
) -> list[dict[str, Any]]:
    """Of each type how many pairs were accepted and rejected and why; nothing where no gate has judged."""
    if not rejected and not any("scores" in row for pairs in accepted.values() for row, _, _ in pairs):
        return []
    table = []
    for name in sorted({*accepted, *rejected}):
        reasons = Counter(str(row["rejected"]) for row, _, _ in rejected.get(name, []))
        table.append(
            {
                "name": name,
                "accepted": len(accepted.get(name, [])),
                "rejected": reasons.total(),
                "reasons": ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
            }
        )
    return table


def _score_table(groups: dict[str, list[ManifestPair]]) -> dict[str, Any] | None:
    """Mean scores of the accepted pairs by type, each with its threshold where the newest row has one."""
    scored = {
        name: rows
        for name, pairs in sorted(groups.items())
        if (rows := [row for row, _, _ in pairs if "scores" in row])
    }
    names = list(dict.fromkeys(score for rows in scored.values() for row in rows for score in row["scores"]))
    lines = [
        {"name": name, "cells": [_score_cell(rows, score) for score in names]}
        for name, rows in scored.items()
    ]
    return {"names": names, "lines": lines} if names else None


def _score_cell(rows: Sequence[dict[str, Any]], score: str) -> dict[str, str]:
    values = [row["scores"][score] for row in rows if row["scores"].get(score) is not None]
    threshold = rows[-1].get("thresholds", {}).get(score)
    return {
        "mean": f"{np.mean(values):.2f}" if values else "",
        "threshold": "" if threshold is None else f"{threshold:.2f}",
    }


def _rejected_sheets(root: Path, rejected: dict[str, list[ManifestPair]]) -> list[dict[str, Any]]:
    """The first rejected pairs of each type with the reason of each."""
    return [
        {
            "name": name,
            "count": len(pairs),
            "pairs": [
                {
                    "image": data_uri(png_bytes(sheet([read_shown(root, *pair).column()]))),
                    "reason": pair[0]["rejected"],
                }
                for pair in pairs[:COLUMNS]
            ],
        }
        for name, pairs in sorted(rejected.items())
    ]


def _loss_curve(learned: Learned) -> str | None:
    from matplotlib.figure import Figure

    titles = {
        "normals": "Adaptation to normal photos",
        "anomaly": "Anomaly embeddings and spatial encoder",
        "mask": "Mask embeddings",
    }
    records: dict[str, Any] = {name: learned.training[name] for name in titles if name in learned.training}
    if not records:
        return None
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(records)))
    for ax, (name, record) in zip(axes, records.items(), strict=True):
        losses = np.asarray(record["loss"])
        window = max(1, len(losses) // 25)
        ax.plot(losses, alpha=0.25, linewidth=0.7)
        ax.plot(np.convolve(losses, np.ones(window) / window, "valid"), label=f"training, mean of {window}")
        if record["validation"]:
            ax.plot(*zip(*record["validation"], strict=True), "o-", label="held-out pairs")
        ax.set(title=titles[name], xlabel="step", ylabel="loss", yscale="log")
        ax.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return data_uri(buffer.getvalue())


def _settings(rows: list[dict[str, Any]], learned: Learned | None) -> list[tuple[str, str]]:
    newest = rows[-1]
    items = [
        (title, newest[key] if isinstance(newest[key], str) else json.dumps(newest[key]))
        for key, title in SETTINGS.items()
        if key in newest
    ]
    if learned:
        record: Any = learned.training.get("anomaly", {})
        items += [
            ("training", json.dumps(record.get("config", {}))),
            ("training data", learned.dataset_fingerprint),
        ]
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy")
    }
    return [
        *items,
        (
            "versions",
            json.dumps({"anomalydiffusion": __version__, "python": platform.python_version(), **versions}),
        ),
    ]
