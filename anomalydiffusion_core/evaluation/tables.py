"""The comparison's results as tables like the paper's: JSON, CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..dataset.photos import png_bytes, read_photo, replace_file
from ..report.page import data_uri, render_page
from ..report.shown_pair import TILE, jpeg
from .classifier import Classification
from .comparison import Comparison
from .config import ComparisonConfig
from .error_left import ErrorLeft, error_left
from .found import close_ups, tally
from .metrics import METRICS
from .results import ContenderResult

MEAN = "mean of categories"
# of a category: each contender's name, and by the other's name what it leaves of that one's error
ErrorsLeft = tuple[str, list[tuple[str, list[tuple[str, ErrorLeft | None]]]]]
BY_DEFECT = "pixel_ap"  # the metric that each category shows defect by defect


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation over seeds, and the mean bounds of the 95 % interval over test photos."""

    mean: float
    deviation: float
    low: float | None = None
    high: float | None = None


def figures(
    results: list[ContenderResult], contender: str, category: str, row: str = "all"
) -> dict[str, Figure]:
    """Each metric of a contender on a category, over the seeds that have it; a metric that no seed has is
    left out. `row` is a defect, or "all", which has intervals.
    """
    chosen = _of(results, contender, category)
    by_metric = {}
    for key in METRICS:
        values = [result.metrics[row][key] for result in chosen if key in result.metrics[row]]
        bounds = [result.intervals[key] for result in chosen if row == "all" and key in result.intervals]
        if values:
            low, high = (float(bound) for bound in np.mean(bounds, 0)) if bounds else (None, None)
            by_metric[key] = Figure(float(np.mean(values)), _deviation(values), low, high)
    return by_metric


def macro(results: list[ContenderResult], contender: str) -> dict[str, Figure]:
    """Each metric's mean over the contender's categories, by seed, then over seeds. Seeds that lack it in
    some category are left out, and so is a metric that no seed has.
    """
    by_metric = {}
    for key in METRICS:
        values = []
        for seed in sorted({result.seed for result in results}):
            chosen = [r.metrics["all"] for r in results if (r.contender, r.seed) == (contender, seed)]
            if chosen and all(key in metrics for metrics in chosen):
                values.append(float(np.mean([metrics[key] for metrics in chosen])))
        if values:
            by_metric[key] = Figure(float(np.mean(values)), _deviation(values))
    return by_metric


def _of(results: list[ContenderResult], contender: str, category: str) -> list[ContenderResult]:
    return [result for result in results if (result.contender, result.category) == (contender, category)]


def in_all_categories(results: list[ContenderResult]) -> list[str]:
    """Contenders that have every category, whose means over categories can be compared."""
    categories = {
        name: {r.category for r in results if r.contender == name}
        for name in dict.fromkeys(r.contender for r in results)
    }
    everywhere = {result.category for result in results}
    return [name for name, evaluated in categories.items() if evaluated == everywhere]


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def classification(results: list[ContenderResult], contender: str, category: str) -> Classification | None:
    """A contender's confusion matrix on a category, all seeds together; None where there is none."""
    chosen = _of(results, contender, category)
    matrices = [np.array(result.confusion) for result in chosen if result.confusion]
    if not matrices:
        return None
    return Classification(sorted(set(chosen[0].metrics) - {"all"}), np.sum(matrices, 0))


def write_tables(comparison: Comparison, config: ComparisonConfig, out: Path) -> dict[str, str]:
    """Writes evaluation.json, .csv and .html below `out`, replacing earlier ones; returns their paths."""
    rows, left_of = _rows(comparison.results), errors_left(comparison.results)
    content = {
        "package_version": __version__,
        "config": asdict(config),
        "rows": rows,
        "runs": [asdict(result) for result in comparison.results],
        "errors_left": [
            {"contender": name, "than": than, "category": category, **asdict(left)}
            for category, contenders in left_of
            for name, cells in contenders
            for than, left in cells
            if left
        ],
        "quality": [
            {"contender": contender, "category": category, **asdict(quality)}
            for (contender, category), quality in comparison.quality.items()
        ],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {
        "json": [(json.dumps(content, indent=1) + "\n").encode()],
        "csv": [table.getvalue().encode()],
        "html": _page(comparison, config, out, left_of),
    }
    for ending, parts in files.items():
        replace_file(out / f"evaluation.{ending}", parts)
    return {ending: str(out / f"evaluation.{ending}") for ending in files}


def errors_left(results: list[ContenderResult]) -> list[ErrorsLeft]:
    """By category, and for all where there are several: of each contender what it leaves of the error of each
    other one; None of itself. Left out where there is one contender alone.
    """
    categories = list(dict.fromkeys(result.category for result in results))
    groups = [(MEAN, categories)] if len(categories) > 1 else []
    tables = []
    for title, chosen in [*groups, *((category, [category]) for category in categories)]:
        names = in_all_categories([result for result in results if result.category in chosen])
        rows = [
            (
                name,
                [(than, error_left(results, name, than, chosen) if than != name else None) for than in names],
            )
            for name in names
        ]
        tables += [(title, rows)] if len(names) > 1 else []
    return tables


def _rows(results: list[ContenderResult]) -> list[dict[str, Any]]:
    return [
        {"contender": contender, "category": category, "defect": row, "metric": key, **asdict(figure)}
        for contender, category in dict.fromkeys((result.contender, result.category) for result in results)
        for row in _of(results, contender, category)[0].metrics
        for key, figure in figures(results, contender, category, row).items()
    ]


def _page(
    comparison: Comparison, config: ComparisonConfig, out: Path, left_of: list[ErrorsLeft]
) -> Iterator[bytes]:
    results = comparison.results
    categories = list(dict.fromkeys(result.category for result in results))
    return render_page(
        "evaluation/evaluation.html.j2",
        title="AnomalyDiffusion evaluation",
        subtitle="A localiser trained on each contender's pairs, measured on real photos",
        overlap=config.allow_overlap,
        with_real=config.with_real,
        cards=[
            ("contenders", len({result.contender for result in results})),
            ("seeds", config.seeds),
            ("pairs per type", config.pairs_per_type),
            ("protocol", config.protocol),
        ],
        tables=_tables(results, categories),
        errors_left=left_of,
        calibrations=_calibrations(results),
        classifications=[
            (contender, category, told_apart)
            for contender, category in dict.fromkeys((r.contender, r.category) for r in results)
            if (told_apart := classification(results, contender, category))
        ],
        quality=comparison.quality,
        published=config.published_metrics,
        curves=[(category, _curves(results, category)) for category in categories],
        found=_found(results, out),
        paper=config.protocol == "paper",
        localizer=config.localizer,
        settings=_settings(config),
        pairs=list(dict.fromkeys((r.contender, r.category, r.pairs) for r in results)),
        version=__version__,
    )


def _tables(results: list[ContenderResult], categories: list[str]) -> list[dict[str, Any]]:
    """The means of all categories where there are several; of each, all metrics and one by defect."""
    labels, tables = {key: metric.label for key, metric in METRICS.items()}, []
    if len(categories) > 1:
        tables.append(_table(MEAN, labels, {c: macro(results, c) for c in in_all_categories(results)}))
    for category in categories:
        of_category = [result for result in results if result.category == category]
        contenders = list(dict.fromkeys(result.contender for result in of_category))
        tables.append(_table(category, labels, {c: figures(results, c, category) for c in contenders}))
        defects = {name: name for name in of_category[0].metrics if name != "all"}
        rows = {}
        for contender in contenders:
            by_defect = {name: figures(results, contender, category, name) for name in defects}
            rows[contender] = {name: f[BY_DEFECT] for name, f in by_defect.items() if BY_DEFECT in f}
        if BY_DEFECT in METRICS:
            tables.append(_table(f"{category}: {METRICS[BY_DEFECT].label} by defect", defects, rows))
    return tables


def _table(title: str, columns: dict[str, str], rows: dict[str, dict[str, Figure]]) -> dict[str, Any]:
    """Rows by contender of cells: a figure or None, and whether it is the best of its column; equal ones are
    all best. `columns` are titles by key.
    """
    best = {
        key: max((round(row[key].mean, 3) for row in rows.values() if key in row), default=None)
        for key in columns
    }
    cells = {
        contender: [(row.get(key), key in row and round(row[key].mean, 3) == best[key]) for key in columns]
        for contender, row in rows.items()
    }
    return {"title": title, "columns": list(columns.values()), "rows": list(cells.items())}


def _calibrations(
    results: list[ContenderResult],
) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    """Of each detector and category: F1 of pixels and photos, means over seeds, by what calibrated it."""
    tables = []
    for contender, category in dict.fromkeys((r.contender, r.category) for r in results if r.calibrated):
        chosen = _of(results, contender, category)
        rows = [
            (name, *(float(mean) for mean in np.mean([result.calibrated[name] for result in chosen], 0)))
            for name in chosen[0].calibrated
        ]
        best = figures(results, contender, category)
        hindsight = (best[key].mean if key in best else None for key in ("pixel_f1_max", "image_f1_max"))
        tables.append((f"{contender}, {category}", [*rows, ("in hindsight", *hindsight)]))
    return tables


def _curves(results: list[ContenderResult], category: str) -> str:
    """Precision over recall of pixels, each contender's mean over seeds, as a data URI."""
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(6, 4), layout="constrained")
    ax = plot.subplots()
    for contender in dict.fromkeys(result.contender for result in results if result.category == category):
        precisions = [result.precision for result in _of(results, contender, category)]
        ax.plot(np.linspace(0, 1, 101), np.mean(precisions, 0), label=contender)
    ax.set(xlabel="recall of pixels", ylabel="precision", title=category, ylim=(0, 1.02))
    ax.legend(fontsize=8)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110)
    return data_uri(buffer.getvalue())


@dataclass(frozen=True)
class FoundByContender:
    """The close-ups of one contender on a category, as data URIs with a sentence each, and in words how many
    of each defect were found; of a result that was kept before there were any, one picture.
    """

    title: str
    tally: list[tuple[str, str]]
    pictures: list[tuple[str, str]]


def _found(results: list[ContenderResult], out: Path) -> list[FoundByContender]:
    shown = []
    for result in results:
        path = out / "runs" / f"{result.identity}.png"
        if not path.is_file():
            continue
        title, image = f"{result.contender}, {result.category}", read_photo(path).image()
        pictures = [(data_uri(png_bytes(image)), "Photo, truth, and what was found.")]
        if result.found:
            strips = close_ups(image, TILE)
            pictures = [
                (data_uri(jpeg(strip), "jpeg"), one.sentence)
                for strip, one in zip(strips, result.found, strict=False)
            ]
        shown.append(FoundByContender(title, tally(result.found), pictures))
    return shown


def _settings(config: ComparisonConfig) -> list[str]:
    """How contenders were trained and measured, in sentences."""
    net = config.localizer
    begun = ", its encoder ImageNet's EfficientNet-Lite0" if net.pretrained else ""
    sentences = [
        f"Every contender trained {config.seeds} localisers (DRAEM's U-Net{begun}, {net.width} channels at "
        f"its first level) on {config.pairs_per_type} pairs of each defect, for {net.steps} steps of "
        f"{net.batch_size} photos at {net.size} px, at a learning rate of {net.rate:g}.",
        "Of the real pairs of each defect those with the lowest numbers trained the generator and the "
        "contender “real few shots”; the others measure.",
        f"Intervals come from {config.resamples} draws of test photos.",
    ]
    if config.detectors:
        sentences.append(f"Detectors of anomalib: {', '.join(config.detectors)}.")
    if config.classifier:
        start = "ImageNet's weights" if config.classifier.pretrained else "scratch"
        sentences.append(
            f"Types were told apart by a ResNet-34 from {start}, {config.classifier.steps} steps."
        )
    return sentences
