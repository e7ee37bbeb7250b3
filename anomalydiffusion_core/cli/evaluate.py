"""The command `evaluate`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..evaluation.baselines import BASELINES
from ..evaluation.classifier import QUICK_CLASSIFIER, ClassifierConfig
from ..evaluation.config import ComparisonConfig, Protocol
from ..evaluation.localizer import QUICK, LocalizerConfig
from .console import check_writable, progress, run_command, say
from .options import Device, Json, device_of, names_in

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison

DEFAULTS = ComparisonConfig()


def evaluate(
    generated: Annotated[
        list[str],
        typer.Argument(help="Datasets of pairs, each a folder, or name=folder for the tables."),
    ],
    real: Annotated[Path, typer.Option(help="The real dataset: train/good, test/good and real pairs.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and results; a repeated call continues.")],
    against: Annotated[str, typer.Option(help=f"Baselines, comma-separated: {', '.join(BASELINES)}.")] = "",
    *,
    detectors: Annotated[
        str,
        typer.Option(help="Detectors of anomalib, comma-separated: patchcore, padim, cflow, ..."),
    ] = "",
    count: Annotated[
        int, typer.Option(min=1, help="Pairs per type, the same for all.")
    ] = DEFAULTS.pairs_per_type,
    seeds: Annotated[
        int, typer.Option(min=1, help="Localisers for each contender and category.")
    ] = DEFAULTS.seeds,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of real pairs that trained the generator: the one given to train."
        ),
    ] = DEFAULTS.share,
    with_real: Annotated[
        bool, typer.Option("--with-real", help="Add the few real pairs to those of every contender.")
    ] = DEFAULTS.with_real,
    defect: Annotated[list[str] | None, typer.Option(help="Only these defects (repeat).")] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(help="paper: the best checkpoint on the test photos, as printed tables."),
    ] = DEFAULTS.protocol,
    quick: Annotated[bool, typer.Option("--quick", help="A small localiser, for a CPU.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each localiser.")] = None,
    weights: Annotated[
        Literal["imagenet", "scratch"] | None,
        typer.Option("--classify", help="Also tell types apart by a ResNet-34 that begins there."),
    ] = None,
    published_metrics: Annotated[
        bool,
        typer.Option(
            "--published-metrics",
            help="Also Inception Score, KID and IC-LPIPS, whose networks are downloaded once.",
        ),
    ] = DEFAULTS.published_metrics,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Even where a training photo is also a test photo.")
    ] = DEFAULTS.allow_overlap,
    device: Device = None,
    json: Json = None,
) -> None:
    """Trains a localiser on each dataset's pairs and measures it on real photos that none has seen."""
    from ..evaluation.comparison import compare
    from ..evaluation.config import ComparisonRun
    from ..evaluation.contenders import named_datasets

    def command() -> dict[str, Any]:
        check_writable(out)
        config = ComparisonConfig(
            *_networks(quick, steps, weights),
            share,
            count,
            seeds,
            protocol,
            published_metrics=published_metrics,
            allow_overlap=allow_overlap,
            with_real=with_real,
            defects=tuple(defect or ()),
            detectors=names_in(detectors),
        )
        with progress() as on_stage:
            run = ComparisonRun(config, out, on_stage, device_of(device))
            comparison = compare(named_datasets(generated), real, list(names_in(against)), run)
        return _summary(comparison, config, out)

    raise typer.Exit(run_command(command, json))


def _networks(
    quick: bool, steps: int | None, weights: str | None
) -> tuple[LocalizerConfig, ClassifierConfig | None]:
    localizer = QUICK if quick else DEFAULTS.localizer
    localizer = replace(localizer, steps=steps) if steps else localizer
    classifier = QUICK_CLASSIFIER if quick else ClassifierConfig()
    return localizer, replace(classifier, pretrained=weights == "imagenet") if weights else None


def _summary(comparison: Comparison, config: ComparisonConfig, out: Path) -> dict[str, Any]:
    """Writes the tables, and says the means of the contenders that have every category."""
    from ..evaluation.tables import in_all_categories, macro, write_tables

    paths, results = write_tables(comparison, config, out), comparison.results
    means = {name: macro(results, name) for name in in_all_categories(results)}
    for name, metrics in means.items():
        figures = ", ".join(f"{key} {100 * figure.mean:.1f}" for key, figure in metrics.items())
        say(f"{name}: {figures}")
    say(f"Tables: {paths['html']}")
    return {**paths, "means": {n: {k: asdict(f) for k, f in m.items()} for n, m in means.items()}}
