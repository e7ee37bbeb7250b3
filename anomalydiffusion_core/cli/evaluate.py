"""The command `evaluate`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..evaluation.baselines import BASELINES
from ..evaluation.classifier import QUICK_CLASSIFIER, ClassifierConfig
from ..evaluation.config import ComparisonConfig, Protocol
from ..evaluation.detectors import PATCHCORE_LITE0
from ..evaluation.localizer import QUICK, LocalizerConfig
from .console import check_writable, progress, run_command, say
from .invocation import same_command
from .options import DATA, Device, Json, device_of, names_in, share_in

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison

DEFAULTS = ComparisonConfig()
Weights = Literal["imagenet", "scratch"]  # that a network begins with
COMPARED, NETWORKS = "Compared with", "Networks"  # groups of options in the help


def evaluate(
    context: typer.Context,
    generated: Annotated[
        list[str],
        typer.Argument(
            help="Each dataset of pairs is a folder, or name=folder to be called so in the tables."
        ),
    ],
    real: Annotated[
        Path, typer.Option(help="Measure on this real dataset, with train/good, test/good and real pairs.")
    ],
    out: Annotated[
        Path, typer.Option(help="Write tables and results into this folder; a repeated call continues.")
    ],
    against: Annotated[
        str,
        typer.Option(
            help=f"Compare with these baselines, separated by commas: {', '.join(BASELINES)}.",
            rich_help_panel=COMPARED,
        ),
    ] = "",
    *,
    detectors: Annotated[
        str,
        typer.Option(
            help="Compare with these detectors of anomalib, separated by commas, such as patchcore,padim; "
            f"{PATCHCORE_LITE0} downloads nothing, and needs the extra 'features'.",
            rich_help_panel=COMPARED,
        ),
    ] = "",
    mix: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with a mixture of contenders, too: as many pairs, from each by weights, such as "
            "ours=2,draem=1; repeat it for more.",
            rich_help_panel=COMPARED,
        ),
    ] = None,
    with_real: Annotated[
        bool,
        typer.Option(
            "--with-real",
            help="Add the few real pairs to those of every contender; both are drawn equally often.",
            rich_help_panel=COMPARED,
        ),
    ] = DEFAULTS.with_real,
    count: Annotated[
        int,
        typer.Option(
            min=1, help="Train on so many pairs of each type, the same for all.", rich_help_panel=DATA
        ),
    ] = DEFAULTS.pairs_per_type,
    share: Annotated[
        float | None,
        typer.Option(
            parser=share_in,
            metavar="<0.6 or 1/3>",
            help="This share of the real pairs trained the generator: give the one that 'train' was given, "
            "or none where that was given none.",
            rich_help_panel=DATA,
        ),
    ] = DEFAULTS.share,
    defect: Annotated[
        list[str] | None,
        typer.Option(help="Measure only this defect; repeat it for more.", rich_help_panel=DATA),
    ] = None,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap",
            help="Go on even where a training photo is also a test photo.",
            rich_help_panel=DATA,
        ),
    ] = DEFAULTS.allow_overlap,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train so many localisers for each contender and category.",
            rich_help_panel=NETWORKS,
        ),
    ] = DEFAULTS.seeds,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="Take the last checkpoint (honest), or the best one on the test photos, as printed tables "
            "have it (paper).",
            rich_help_panel=NETWORKS,
        ),
    ] = DEFAULTS.protocol,
    quick: Annotated[
        bool, typer.Option("--quick", help="Take a small localiser, for a CPU.", rich_help_panel=NETWORKS)
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Train each localiser for so many steps.", rich_help_panel=NETWORKS),
    ] = None,
    localizer: Annotated[
        Weights,
        typer.Option(
            help="Let localisers begin with random weights (scratch), or with ImageNet's in their encoder "
            "(imagenet), as detectors that people use do; the extra 'features' has these.",
            rich_help_panel=NETWORKS,
        ),
    ] = "scratch",
    weights: Annotated[
        Weights | None,
        typer.Option(
            "--classify",
            help="Also tell types apart by a ResNet-34 that begins there.",
            rich_help_panel=NETWORKS,
        ),
    ] = None,
    published_metrics: Annotated[
        bool,
        typer.Option(
            "--published-metrics",
            help="Also compute Inception Score, KID and IC-LPIPS, whose networks are downloaded once.",
            rich_help_panel=NETWORKS,
        ),
    ] = DEFAULTS.published_metrics,
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
            *_networks(quick, steps, localizer, weights),
            share,
            count,
            seeds,
            protocol,
            published_metrics=published_metrics,
            allow_overlap=allow_overlap,
            with_real=with_real,
            defects=tuple(defect or ()),
            detectors=names_in(detectors),
            mixtures=tuple(mix or ()),
        )
        with progress() as on_stage:
            run = ComparisonRun(config, out, on_stage, device_of(device))
            comparison = compare(named_datasets(generated), real, list(names_in(against)), run)
        return _summary(comparison, config, out)

    kept = f"what was measured so far is kept in {out}. Go on with:\n  {same_command(context)}"
    raise typer.Exit(run_command(command, json, kept=kept))


def _networks(
    quick: bool, steps: int | None, begins: Weights, weights: Weights | None
) -> tuple[LocalizerConfig, ClassifierConfig | None]:
    localizer = replace(QUICK if quick else DEFAULTS.localizer, pretrained=begins == "imagenet")
    localizer = replace(localizer, steps=steps) if steps else localizer
    classifier = QUICK_CLASSIFIER if quick else ClassifierConfig()
    return localizer, replace(classifier, pretrained=weights == "imagenet") if weights else None


def _summary(comparison: Comparison, config: ComparisonConfig, out: Path) -> dict[str, Any]:
    """Writes the tables, and says the means of the contenders that have every category."""
    from ..evaluation.contenders import REAL
    from ..evaluation.error_left import error_left
    from ..evaluation.tables import in_all_categories, macro, write_tables

    paths, results = write_tables(comparison, config, out), comparison.results
    means = {name: macro(results, name) for name in in_all_categories(results)}
    for name, metrics in means.items():
        figures = ", ".join(f"{key} {100 * figure.mean:.1f}" for key, figure in metrics.items())
        say(f"{name}: {figures}")
    categories = list(dict.fromkeys(result.category for result in results))
    for name in means:
        if name != REAL and (left := error_left(results, name, REAL, categories)):
            say(f"{name} leaves {left} of the error of the {REAL}")
    say(f"Tables: {paths['html']}")
    return {**paths, "means": {n: {k: asdict(f) for k, f in m.items()} for n, m in means.items()}}
