"""Guards evaluation/tables.py: figures are means over seeds, the best of each column is bold, files replace
one another.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run as command
from comparisons import CONFIG
from PIL import Image

from anomalydiffusion_core.evaluation.comparison import Comparison, compare
from anomalydiffusion_core.evaluation.config import ComparisonConfig, ComparisonRun
from anomalydiffusion_core.evaluation.contenders import REAL
from anomalydiffusion_core.evaluation.dataset_quality import DatasetQuality
from anomalydiffusion_core.evaluation.found import FoundDefect
from anomalydiffusion_core.evaluation.metrics import METRICS, Metric, Metrics, Rankings
from anomalydiffusion_core.evaluation.results import ContenderResult
from anomalydiffusion_core.evaluation.tables import (
    classification,
    figures,
    in_all_categories,
    macro,
    write_tables,
)
from anomalydiffusion_core.report.shown_pair import TILE


def run(contender: str, category: str, seed: int, value: float) -> ContenderResult:
    def of(figure: float) -> Metrics:
        return dict.fromkeys(METRICS, figure)

    intervals = dict.fromkeys(METRICS, (value - 0.1, value + 0.05))
    metrics = {"cut": of(value / 2), "all": of(value)}
    identity = f"{contender}-{category}-{seed}"
    confusion = [[seed]] if contender == "ours" else None
    return ContenderResult(
        identity, contender, category, seed, "honest", 40, metrics, intervals, [value] * 101, confusion
    )


RUNS = [
    run("ours", "leather", 0, 0.6),
    run("ours", "leather", 1, 0.8),
    run("ours", "screw", 0, 0.2),
    run("ours", "screw", 1, 0.3),
    run("draem", "leather", 0, 0.7),
    run("draem", "leather", 1, 0.7),
    run("draem", "screw", 0, 0.1),
    run("draem", "screw", 1, 0.1),
]

LABELLED = tuple(METRICS)  # as the table stands before a test changes it
QUALITY = {
    ("ours", "leather"): DatasetQuality(0.91, 0.0, 0.88, 0.97, 0.81, 0.25),
    ("draem", "screw"): DatasetQuality(None, None, None, None, None, 0.0),
}


def test_a_figure_is_the_mean_over_seeds_with_its_deviation_and_interval() -> None:
    found = figures(RUNS, "ours", "leather")["pro"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.7, 0.6, 0.75))
    assert found.deviation == pytest.approx(0.02**0.5)
    cut = figures(RUNS, "ours", "leather", "cut")["pro"]
    assert cut.mean == pytest.approx(0.35) and cut.low is None


def test_the_macro_mean_weighs_categories_alike_within_each_seed() -> None:
    found = macro(RUNS, "ours")["pixel_ap"]
    assert found.mean == pytest.approx((0.4 + 0.55) / 2)
    assert found.deviation == pytest.approx(abs(0.4 - 0.55) / 2**0.5)


def test_tables_are_written_and_written_anew(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    Image.fromarray(np.zeros((4, 12, 3), np.uint8)).save(tmp_path / "runs/ours-leather-0.png")
    paths = write_tables(Comparison(RUNS, QUALITY), ComparisonConfig(), tmp_path)
    with open(paths["csv"]) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * len(METRICS)
    first = next(r for r in rows if r["defect"] == "all" and r["metric"] == "pixel_ap")
    assert (first["contender"], first["category"]) == ("ours", "leather")
    assert float(first["mean"]) == pytest.approx(0.7)
    stored = json.loads(Path(paths["json"]).read_text())
    assert len(stored["runs"]) == 8 and stored["config"]["protocol"] == "honest"
    page = Path(paths["html"]).read_text()
    assert "mean of categories" in page and "leather: pixel AP by defect" in page
    assert "ours, leather" in page and "Protocol of the paper" not in page
    assert '<td class="n">0.91</td>' in page and "their normal photos are not known" in page
    assert "ours, leather: 100.0 %" in page and "draem, leather:" not in page
    assert page.count("data:image/png;base64,") == 3  # two curves, one heat map
    paper = write_tables(Comparison(RUNS[:2], {}), ComparisonConfig(protocol="paper"), tmp_path)
    assert "Protocol of the paper" in Path(paper["html"]).read_text()


def test_the_best_of_a_column_is_bold_and_equals_are_alike(tmp_path: Path) -> None:
    page = Path(write_tables(Comparison(RUNS, QUALITY), ComparisonConfig(), tmp_path)["html"]).read_text()
    table = page[page.index("<h2>leather</h2>") : page.index("<h2>leather: pixel AP")]
    assert table.count("<b>70.0</b>") == 2 * len(METRICS)
    table = page[page.index("<h2>screw</h2>") : page.index("<h2>screw: pixel AP")]
    assert table.count("<b>25.0</b>") == len(METRICS) and "<b>10.0</b>" not in table


def test_means_over_categories_are_of_those_that_have_all() -> None:
    assert in_all_categories(RUNS) == ["ours", "draem"]
    assert in_all_categories([r for r in RUNS if (r.contender, r.category) != ("ours", "screw")]) == ["draem"]


def test_confusion_matrices_add_up_over_seeds() -> None:
    found = classification(RUNS, "ours", "leather")
    assert found is not None and found.confusion.tolist() == [[1]] and found.names == ["cut"]
    assert classification(RUNS, "draem", "leather") is None


def defective_share(rankings: Rankings) -> float:
    return rankings.photos.anomalous / (rankings.photos.anomalous + rankings.photos.normal)


def test_a_metric_that_is_added_to_the_table_is_measured_and_stands_everywhere(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "defective_share", Metric("share of defective photos", defective_share))
    out, options = tmp_path / "out", ["--quick", "--steps", 1, "--count", 2, "--seeds", 1, "--share", 0.5]
    told = command("evaluate", f"ours={generated}", "--real", real, "--out", out, *options)
    assert told.exit_code == 0 and "image_f1_max" in told.stdout, told.output
    lines = [line for line in told.stdout.splitlines() if "defective_share 66.7" in line]
    assert [line.partition(":")[0] for line in lines] == ["ours", REAL]
    with open(out / "evaluation.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "defective_share"]
    # two photos of each defect, two normal ones
    shares = {(row["defect"], round(float(row["mean"]), 6), row["low"] != "") for row in rows}
    assert shares == {("scratch", 0.5, False), ("stain", 0.5, False), ("all", round(4 / 6, 6), True)}
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored["runs"][0]["intervals"]["defective_share"] == pytest.approx([4 / 6, 4 / 6])
    assert "<th>share of defective photos</th>" in (out / "evaluation.html").read_text()


def test_results_of_before_a_metric_was_added_or_after_one_was_removed_are_shown_as_they_are(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison_run = ComparisonRun(CONFIG, tmp_path / "out")
    before = compare({"ours": generated}, real, [], comparison_run)
    monkeypatch.setitem(METRICS, "defective_share", Metric("share of defective photos", defective_share))
    monkeypatch.delitem(METRICS, "pro")
    found = compare({"ours": generated}, real, [], comparison_run)
    assert found == before  # read, not measured again
    assert list(figures(found.results, "ours", "thing")) == [key for key in METRICS if key in LABELLED]
    assert "defective_share" not in macro(found.results, "ours")
    page = Path(write_tables(found, CONFIG, tmp_path / "out")["html"]).read_text()
    table = page[page.index("<h2>thing</h2>") : page.index("<h2>thing: pixel AP")]
    assert "<th>share of defective photos</th>" in table and "PRO" not in table
    assert table.count('<td class="n"></td>') == 2  # of our pairs and of the real ones


def test_seeds_that_lack_a_metric_are_left_out_of_its_means() -> None:
    lacking = replace(RUNS[0], metrics={row: {"pixel_ap": 0.9} for row in ("cut", "all")}, intervals={})
    runs = [lacking, *RUNS[1:]]
    pro, ap = (figures(runs, "ours", "leather")[key] for key in ("pro", "pixel_ap"))
    assert (pro.mean, pro.deviation, pro.low) == pytest.approx((0.8, 0, 0.7))
    assert (ap.mean, ap.low) == pytest.approx(((0.9 + 0.8) / 2, 0.7))
    assert macro(runs, "ours")["pro"].mean == pytest.approx((0.8 + 0.3) / 2)  # of the second seed alone


def test_the_page_shows_each_close_up_with_its_sentence_and_counts_all(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    Image.fromarray(np.zeros((2 * TILE, 30, 3), np.uint8)).save(tmp_path / "runs/ours-leather-0.png")
    found = [FoundDefect("a.png", "cut", 0, 0), FoundDefect("<b>.png", "cut", 0.4, 0.01)]
    result = replace(RUNS[0], found=[*found, FoundDefect("c.png", "cut", 1, 0)])
    page = Path(write_tables(Comparison([result], {}), ComparisonConfig(), tmp_path)["html"]).read_text()
    assert page.count("data:image/jpeg;base64,") == 2  # of the third there is no close-up
    assert "cut: 1 found, 1 found in part, 1 missed" in page
    assert "cut a.png: missed, 0 % of the mark; besides it nothing of the photo." in page
    assert "cut &lt;b&gt;.png: found in part, 40 % of the mark; besides it 1 % of the photo." in page
    assert "on 20 pairs of each defect" in page
