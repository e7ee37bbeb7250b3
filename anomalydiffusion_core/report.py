"""One self-contained HTML page on a generated dataset: contact sheets, fill, curves, settings, versions."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import __version__
from .dataset.photos import png_bytes, read_mask, read_photo
from .embeddings import AnomalyModel
from .export.mvtec import manifest_pairs
from .page import data_uri, render_page, replace_text
from .quality import change

THUMBNAIL = 128  # pixels
COLUMNS = 8
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


def write_report(root: Path, out: Path, model: AnomalyModel | None = None) -> dict[str, Any]:
    """Reads a generated dataset's manifest and pictures, writes the page, returns its figures by type.

    Raises ValueError when there is no manifest, it has no rows, or its rows lack what the page shows.
    """
    groups = _read_groups(root)
    changed = 0
    sheets = []
    for name, pairs in sorted(groups.items()):
        image, outside = _contact_sheet(root, pairs)
        changed += outside
        fills = [row["fill"] for row, _, _ in pairs]
        sheets.append(
            {
                "name": name,
                "count": len(pairs),
                "fill": f"{np.mean(fills):.2f}",
                "least": f"{min(fills):.2f}",
                "area": f"{_mean_area(pairs):.1%}",
                "image": image,
            }
        )
    rows = [row for pairs in groups.values() for row, _, _ in pairs]
    background = f"{changed} changed pixels in {len(rows)} pairs."
    mean_fill = float(np.mean([row["fill"] for row in rows]))
    page = render_page(
        "report.html.j2",
        title="AnomalyDiffusion report",
        subtitle=f"Generated dataset {root.resolve().name}",
        sheets=sheets,
        cards=[
            ("accepted pairs", len(rows)),
            ("defect types", len(groups)),
            ("mean fill", f"{mean_fill:.2f}"),
            ("pixels changed outside masks", changed),
        ],
        noise=f"{np.mean([row['noise'] for row in rows]):.1f}",
        background=background,
        curve=_loss_curve(model) if model else None,
        improvement=(model.training.get("improvement") if model else None),
        settings=_settings(rows, model),
    )
    replace_text(out, page)
    return {
        "pairs": len(rows),
        "mean_fill": mean_fill,
        "changed_outside": changed,
        "by_type": {s["name"]: {"pairs": s["count"], "mean_fill": float(s["fill"])} for s in sheets},
    }


def _read_groups(root: Path) -> dict[str, list[ManifestPair]]:
    """The manifest's pairs by category/defect."""
    groups: dict[str, list[ManifestPair]] = defaultdict(list)
    for row, image, mask in manifest_pairs(root):
        if missing := [key for key in ROW_KEYS if key not in row]:
            raise ValueError(
                f"{root / 'manifest.jsonl'} has a row without {', '.join(missing)}: "
                "write the dataset with 'anomalydiffusion generate', or connect Quality Gate's normals and "
                "scores to Save Anomaly Dataset."
            )
        groups[f"{row['category']}/{row['defect']}"].append((row, image, mask))
    if not groups:
        raise ValueError(
            f"{root} has no generated pairs (no rows in manifest.jsonl): run 'anomalydiffusion generate'."
        )
    return groups


def _contact_sheet(root: Path, pairs: list[ManifestPair]) -> tuple[str, int]:
    """The sheet of the first pairs as a data URI, and how many pixels changed outside masks in all pairs."""
    outside, columns = 0, []
    for number, (row, image_path, mask_path) in enumerate(pairs):
        normal, image = read_photo(root / row["normal"]).pixels, read_photo(image_path).pixels
        mask = read_mask(mask_path, image.shape[:2])
        difference = change(normal, image)
        outside += int((difference[~mask] > 0).sum())
        if number < COLUMNS:
            amplified = np.clip(difference * 2, 0, 255).astype(np.uint8)
            tiles = [normal, mask.astype(np.uint8) * 255, image, amplified]
            columns.append(np.concatenate([_thumbnail(tile) for tile in tiles]))
    return data_uri(png_bytes(Image.fromarray(np.concatenate(columns, axis=1)))), outside


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels).convert("RGB")
    return np.pad(
        np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)), ((1, 1), (1, 1), (0, 0))
    )


def _mean_area(pairs: list[ManifestPair]) -> float:
    return float(np.mean([read_mask(mask).mean() for _, _, mask in pairs]))


def _loss_curve(model: AnomalyModel) -> str | None:
    from matplotlib.figure import Figure

    records: dict[str, Any] = {
        name: model.training[name] for name in ("anomaly", "mask") if name in model.training
    }
    if not records:
        return None
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(records)))
    titles = {"anomaly": "Anomaly embeddings and spatial encoder", "mask": "Mask embeddings"}
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


def _settings(rows: list[dict[str, Any]], model: AnomalyModel | None) -> list[tuple[str, str]]:
    newest = rows[-1]
    items = [
        (title, newest[key] if isinstance(newest[key], str) else json.dumps(newest[key]))
        for key, title in SETTINGS.items()
        if key in newest
    ]
    if model:
        record: Any = model.training.get("anomaly", {})
        items += [
            ("training", json.dumps(record.get("config", {}))),
            ("training data", model.dataset_fingerprint),
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
