"""One self-contained HTML page to judge a generated dataset by: pairs, figures, gate, curves, settings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..dataset.photos import replace_file
from ..method.embeddings import Learned
from ..method.progress import OnStage
from .page import data_block, data_uri, render_page
from .pairs import (
    ListedPair,
    PairPictures,
    attention_maps,
    check_directions,
    finite_numbers,
    listed_pairs,
)
from .settings import raw_settings, settings_in_words

IN_MEMORY = 1 << 24  # bytes of the page's pictures; the others wait in a temporary file
VERSIONS = ("torch", "diffusers", "transformers", "numpy")


def write_report(
    root: Path, out: Path, learned: Learned | None = None, on_stage: OnStage = lambda *_: None
) -> dict[str, Any]:
    """Reads a generated dataset's manifests and pictures, writes the page, returns its figures by type.

    Pairs are read one at a time, and their pictures do not stay in memory. Raises ValueError when there is no
    manifest, it has no rows, its rows lack what the page shows, or a picture lies outside the dataset.
    """
    pairs = listed_pairs(root)
    pictures = PairPictures(root, pairs)
    with SpooledTemporaryFile(IN_MEMORY, "w+", encoding="utf-8") as blocks:
        for number, block in enumerate(pictures.blocks(), start=1):
            blocks.write(block)
            on_stage("report", number, len(pairs), "")
        blocks.seek(0)
        figures = _figures(pairs, pictures)
        parts = render_page(
            "report/report.html.j2",
            "report.js",
            title="AnomalyDiffusion report",
            subtitle=f"Generated dataset {root.resolve().name}",
            cards=_cards(figures),
            **_of_pairs(root, out, pictures),
            pictures=_marked(blocks),
            **_of_figures(pairs, pictures, figures),
            attention=attention_maps(pairs),
            curve=_loss_curve(learned) if learned else None,
            improvement=learned.training.get("improvement") if learned else None,
            runs=_runs(pairs),
            versions=_versions(learned),
        )
        replace_file(out, parts)
    return figures


def _marked(blocks: Any) -> Any:
    from markupsafe import Markup

    return (Markup(line) for line in blocks)  # written by data_block, which escapes


def _figures(pairs: list[ListedPair], pictures: PairPictures) -> dict[str, Any]:
    types = pictures.types.values()
    return {
        "pairs": sum(figures.count for figures in types),
        "mean_fill": float(np.mean([fill for figures in types for fill in figures.fills])),
        "changed_outside": sum(figures.changed_outside for figures in types),
        "rejected": sum(not pair.accepted for pair in pairs),
        "by_type": {
            f.name: {
                "pairs": f.count,
                "mean_fill": float(f.mean_fill),
                "precision": float(f.precision),
                "boundary_iou": float(f.boundary_iou),
            }
            for f in types
        },
    }


def _cards(figures: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("accepted pairs", figures["pairs"]),
        *([("rejected pairs", figures["rejected"])] if figures["rejected"] else []),
        ("defect types", len(figures["by_type"])),
        ("mean fill", f"{figures['mean_fill']:.2f}"),
        ("pixels changed outside masks", figures["changed_outside"]),
    ]


def _of_pairs(root: Path, out: Path, pictures: PairPictures) -> dict[str, Any]:
    """What the pairs' part of the page needs: the script's index, and what there is to choose from."""
    from markupsafe import Markup

    index = pictures.index
    page = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    content = {
        "pairs": index,
        "checks": check_directions(),
        "key": f"anomalydiffusion report {page}",  # of the marks in the browser's storage
        "files": _path_between(out, root),
    }
    reasons = (word for entry in index if entry["why"] for word in entry["why"].split(", "))
    return {
        "index": Markup(data_block("index", content)),
        "types": sorted({entry["type"] for entry in index}),
        "reasons": list(dict.fromkeys(reasons)),
        "scores": list(dict.fromkeys(name for entry in index for name in entry["scores"])),
    }


def _path_between(page: Path, root: Path) -> str | None:
    """The start of a link from the page to files below `root`; None where there can be none."""
    try:
        between = os.path.relpath(root.resolve(), page.resolve().parent)
    except ValueError:  # another drive
        return None
    return quote(between.replace(os.sep, "/")) + "/"


def _of_figures(pairs: list[ListedPair], pictures: PairPictures, figures: dict[str, Any]) -> dict[str, Any]:
    accepted, rejected = (
        _by_type([pair for pair in pairs if pair.accepted is wanted]) for wanted in (True, False)
    )
    noises = [row["noise"] for rows in accepted.values() for row in rows]
    return {
        "figures": list(pictures.types.values()),
        "gate": _gate(accepted, rejected),
        "means": _score_table(accepted),
        "noise": f"{np.mean(noises):.1f}",
        "background": f"{figures['changed_outside']} changed pixels in {figures['pairs']} pairs.",
    }


def _by_type(pairs: list[ListedPair]) -> dict[str, list[dict[str, Any]]]:
    """Rows by category/defect."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in pairs:
        groups[pair.name].append(pair.row)
    return dict(groups)


def _gate(
    accepted: dict[str, list[dict[str, Any]]], rejected: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Of each type how many pairs were accepted and rejected and why; nothing where no gate has judged."""
    if not rejected and not any("scores" in row for rows in accepted.values() for row in rows):
        return []
    table = []
    for name in sorted({*accepted, *rejected}):
        reasons = Counter(str(row.get("rejected", "unknown")) for row in rejected.get(name, []))
        table.append(
            {
                "name": name,
                "accepted": len(accepted.get(name, [])),
                "rejected": reasons.total(),
                "reasons": ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
            }
        )
    return table


def _score_table(groups: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Mean scores of the accepted pairs by type, each with its threshold where the newest row has one."""
    scored = {
        name: with_scores
        for name, rows in sorted(groups.items())
        if (with_scores := [scores for row in rows if (scores := finite_numbers(row.get("scores")))])
    }
    names = list(dict.fromkeys(score for rows in scored.values() for scores in rows for score in scores))
    lines = [
        {
            "name": name,
            "cells": [
                _score_cell(scores, finite_numbers(groups[name][-1].get("thresholds")), score)
                for score in names
            ],
        }
        for name, scores in scored.items()
    ]
    return {"names": names, "lines": lines} if names else None


def _score_cell(rows: Sequence[dict[str, float]], limits: dict[str, float], score: str) -> dict[str, str]:
    values = [scores[score] for scores in rows if score in scores]
    return {
        "mean": f"{np.mean(values):.2f}" if values else "",
        "threshold": f"{limits[score]:.2f}" if score in limits else "",
    }


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


def _runs(pairs: list[ListedPair]) -> list[dict[str, Any]]:
    """How the accepted pairs were made, run by run."""
    rows = [pair.row for pair in pairs if pair.accepted]
    counts, newest = Counter(row["run"] for row in rows), {row["run"]: row for row in rows}
    return [
        {
            "name": name,
            "count": counts[name],
            "sentences": settings_in_words(row),
            "raw": raw_settings(row),
        }
        for name, row in newest.items()
    ]


def _versions(learned: Learned | None) -> list[tuple[str, str]]:
    record: Any = learned.training.get("anomaly", {}) if learned else {}
    training = [
        ("training", json.dumps(record.get("config", {}))),
        ("training data", learned.dataset_fingerprint if learned else ""),
    ]
    versions = {"anomalydiffusion": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # ComfyUI brings no diffusers
            continue
    return [*(training if learned else []), ("versions", json.dumps(versions))]
