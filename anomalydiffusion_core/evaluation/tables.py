"""The comparison's results as tables like the paper's: JSON, CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..report.page import data_uri, render_page, replace_text
from .classifier import Classification
from .comparison import Comparison, ComparisonConfig, ContenderResult
from .dataset_quality import DatasetQuality

METRICS = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "pro": "PRO",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
}
MEAN = "mean of categories"


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation over seeds, and the mean bounds of the 95 % interval over test photos."""

    mean: float
    deviation: float
    low: float | None = None
    high: float | None = None


def figures(
    runs: list[ContenderResult], contender: str, category: str, row: str = "all"
) -> dict[str, Figure]:
    """Each metric of a contender on a category; `row` is a defect, or "all", which has intervals."""
    chosen = [run for run in runs if (run.contender, run.category) == (contender, category)]
    found = {}
    for metric in METRICS:
        values = [getattr(run.metrics[row], metric) for run in chosen]
        bounds = np.mean([run.intervals[metric] for run in chosen], 0) if row == "all" else (None, None)
        found[metric] = Figure(float(np.mean(values)), _deviation(values), *_floats(bounds))
    return found


def macro(runs: list[ContenderResult], contender: str) -> dict[str, Figure]:
    """Each metric's mean over the contender's categories, by seed, then over seeds."""
    seeds = sorted({run.seed for run in runs})
    found = {}
    for metric in METRICS:
        values = [
            float(
                np.mean(
                    [
                        getattr(run.metrics["all"], metric)
                        for run in runs
                        if (run.contender, run.seed) == (contender, seed)
                    ]
                )
            )
            for seed in seeds
        ]
        found[metric] = Figure(float(np.mean(values)), _deviation(values))
    return found


def in_all_categories(runs: list[ContenderResult]) -> list[str]:
    """Contenders that have every category, whose means over categories can be compared."""
    found = {
        name: {r.category for r in runs if r.contender == name}
        for name in dict.fromkeys(r.contender for r in runs)
    }
    return [name for name, categories in found.items() if categories == {run.category for run in runs}]


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _floats(bounds: Any) -> tuple[float | None, float | None]:
    low, high = bounds
    return (None, None) if low is None else (float(low), float(high))


def classification(runs: list[ContenderResult], contender: str, category: str) -> Classification | None:
    """A contender's confusion matrix on a category, all seeds together; None where there is none."""
    chosen = [run for run in runs if (run.contender, run.category) == (contender, category)]
    matrices = [np.array(run.confusion) for run in chosen if run.confusion]
    if not matrices:
        return None
    return Classification(sorted(set(chosen[0].metrics) - {"all"}), np.sum(matrices, 0))


def write_tables(comparison: Comparison, config: ComparisonConfig, out: Path) -> dict[str, str]:
    """Writes evaluation.json, .csv and .html below `out`, replacing earlier ones; returns their paths."""
    runs = comparison.runs
    rows = _rows(runs)
    result = {
        "package_version": __version__,
        "config": asdict(config),
        "rows": rows,
        "runs": [asdict(run) for run in runs],
        "quality": [
            {"contender": contender, "category": category, **asdict(quality)}
            for (contender, category), quality in comparison.quality.items()
        ],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        "json": json.dumps(result, indent=1) + "\n",
        "csv": table.getvalue(),
        "html": _page(runs, comparison.quality, config, out),
    }
    for kind, text in contents.items():
        replace_text(out / f"evaluation.{kind}", text)
    return {kind: str(out / f"evaluation.{kind}") for kind in contents}


def _rows(runs: list[ContenderResult]) -> list[dict[str, Any]]:
    return [
        {"contender": contender, "category": category, "defect": row, "metric": metric, **asdict(figure)}
        for contender, category in dict.fromkeys((run.contender, run.category) for run in runs)
        for row in next(r for r in runs if (r.contender, r.category) == (contender, category)).metrics
        for metric, figure in figures(runs, contender, category, row).items()
    ]


def _page(
    runs: list[ContenderResult],
    quality: dict[tuple[str, str], DatasetQuality],
    config: ComparisonConfig,
    out: Path,
) -> str:
    categories = list(dict.fromkeys(run.category for run in runs))
    contenders = list(dict.fromkeys(run.contender for run in runs))
    columns, tables = list(METRICS.values()), []
    if len(categories) > 1:
        tables.append(
            _table(MEAN, columns, {c: list(macro(runs, c).values()) for c in in_all_categories(runs)})
        )
    for category in categories:
        here = list(dict.fromkeys(run.contender for run in runs if run.category == category))
        rows = {c: list(figures(runs, c, category).values()) for c in here}
        tables.append(_table(category, columns, rows))
        defects = [name for name in next(r for r in runs if r.category == category).metrics if name != "all"]
        rows = {c: [figures(runs, c, category, d)["pixel_ap"] for d in defects] for c in here}
        tables.append(_table(f"{category}: pixel AP by defect", defects, rows))
    return render_page(
        "evaluation/evaluation.html.j2",
        title="AnomalyDiffusion evaluation",
        subtitle="A localiser trained on each contender's pairs, measured on real photos",
        overlap=config.allow_overlap,
        with_real=config.with_real,
        cards=[
            ("contenders", len(contenders)),
            ("seeds", config.seeds),
            ("pairs per type", config.pairs_per_type),
            ("protocol", config.protocol),
        ],
        tables=tables,
        calibrations=_calibrations(runs),
        classifications=[
            (contender, category, found)
            for contender, category in dict.fromkeys((run.contender, run.category) for run in runs)
            if (found := classification(runs, contender, category))
        ],
        quality=quality,
        published=config.published_metrics,
        curves=[(category, _curves(runs, category)) for category in categories],
        heat_maps=_heat_maps(runs, out),
        paper=config.protocol == "paper",
        localizer=config.localizer,
        pairs=list(dict.fromkeys((run.contender, run.category, run.pairs) for run in runs)),
        version=__version__,
    )


def _table(title: str, columns: list[str], found: dict[str, list[Figure]]) -> dict[str, Any]:
    """Rows by contender; the best of each column is marked, equal ones alike."""
    best = [max(round(row[i].mean, 3) for row in found.values()) for i in range(len(columns))]
    rows = [
        (contender, [(figure, round(figure.mean, 3) == top) for figure, top in zip(row, best, strict=True)])
        for contender, row in found.items()
    ]
    return {"title": title, "columns": columns, "rows": rows}


def _calibrations(runs: list[ContenderResult]) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Of each detector and category: F1 of pixels and photos, means over seeds, by what calibrated it."""
    found = []
    for contender, category in dict.fromkeys((run.contender, run.category) for run in runs if run.calibrated):
        chosen = [run for run in runs if (run.contender, run.category) == (contender, category)]
        rows = [
            (name, *(float(mean) for mean in np.mean([run.calibrated[name] for run in chosen], 0)))
            for name in chosen[0].calibrated
        ]
        best = figures(runs, contender, category)
        rows.append(("in hindsight", best["pixel_f1_max"].mean, best["image_f1_max"].mean))
        found.append((f"{contender}, {category}", rows))
    return found


def _curves(runs: list[ContenderResult], category: str) -> str:
    """Precision over recall of pixels, each contender's mean over seeds, as a data URI."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(6, 4), layout="constrained")
    ax = plot.subplots()
    for contender in dict.fromkeys(run.contender for run in runs if run.category == category):
        chosen = [r.precision for r in runs if (r.contender, r.category) == (contender, category)]
        ax.plot(np.linspace(0, 1, 101), np.mean(chosen, 0), label=contender)
    ax.set(xlabel="recall of pixels", ylabel="precision", title=category, ylim=(0, 1.02))
    ax.legend(fontsize=8)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110)
    return data_uri(buffer.getvalue())


def _heat_maps(runs: list[ContenderResult], out: Path) -> list[tuple[str, str]]:
    return [
        (f"{run.contender}, {run.category}", data_uri(path.read_bytes()))
        for run in runs
        if (path := out / "runs" / f"{run.identity}.png").is_file()
    ]
