"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import check_writable, progress, run_command, say
from .options import Device, Json, device_of, names_in


def evaluate(
    generated: Annotated[
        list[str],
        typer.Argument(help="Datasets of pairs, each a folder, or name=folder for the tables."),
    ],
    real: Annotated[Path, typer.Option(help="The real dataset: train/good, test/good and real pairs.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and results; a repeated call continues.")],
    against: Annotated[
        str, typer.Option(help="Baselines, comma-separated: crop-paste, cutpaste, draem, prn.")
    ] = "",
    detectors: Annotated[
        str,
        typer.Option(help="Detectors of anomalib, comma-separated: patchcore, padim, cflow, ..."),
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="Pairs per type, the same for all.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Localisers for each contender and category.")] = 3,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of real pairs that trained the generator: the one given to train."
        ),
    ] = 1 / 3,
    with_real: Annotated[
        bool, typer.Option("--with-real", help="Add the few real pairs to those of every contender.")
    ] = False,
    defect: Annotated[list[str] | None, typer.Option(help="Only these defects (repeat).")] = None,
    protocol: Annotated[
        Literal["honest", "paper"],
        typer.Option(help="paper: the best checkpoint on the test photos, as printed tables."),
    ] = "honest",
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
    ] = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Even where a training photo is also a test photo.")
    ] = False,
    device: Device = None,
    json: Json = None,
) -> None:
    """Trains a localiser on each dataset's pairs and measures it on real photos that none has seen."""
    from dataclasses import asdict, replace

    from ..evaluation.classifier import QUICK_CLASSIFIER, ClassifierConfig
    from ..evaluation.comparison import ComparisonConfig, compare, named_datasets
    from ..evaluation.localizer import QUICK, LocalizerConfig
    from ..evaluation.tables import in_all_categories, macro, write_tables

    def command() -> dict[str, Any]:
        check_writable(out)
        localizer = QUICK if quick else LocalizerConfig()
        localizer = replace(localizer, steps=steps) if steps else localizer
        classifier = QUICK_CLASSIFIER if quick else ClassifierConfig()
        classifier = replace(classifier, pretrained=weights == "imagenet") if weights else None
        config = ComparisonConfig(
            localizer,
            classifier,
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
            comparison = compare(
                named_datasets(generated),
                real,
                list(names_in(against)),
                out,
                config,
                on_stage,
                device_of(device),
            )
        paths, runs = write_tables(comparison, config, out), comparison.runs
        means = {name: macro(runs, name) for name in in_all_categories(runs)}
        for name, metrics in means.items():
            figures = ", ".join(f"{key} {100 * figure.mean:.1f}" for key, figure in metrics.items())
            say(f"{name}: {figures}")
        say(f"Tables: {paths['html']}")
        return {**paths, "means": {n: {k: asdict(f) for k, f in m.items()} for n, m in means.items()}}

    raise typer.Exit(run_command(command, json))
