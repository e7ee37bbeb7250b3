"""What the benchmarks of a trained artifact are given: the artifact, its base, and a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base, load_onto
from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.method.embeddings import Learned


def trained_parser(description: str, guidance: float, steps: int | None = None) -> argparse.ArgumentParser:
    """A command line with artifact, dataset, base, guidance, and a number of steps where there is one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--guidance", type=float, default=guidance)
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps)
    return parser


def load_trained(arguments: argparse.Namespace) -> tuple[DiffusersModel, Learned, Dataset]:
    """Base, trained model and dataset that `trained_parser`'s arguments name."""
    base = load_base(arguments.base)
    return base, load_onto(base, arguments.artifact), find_dataset(arguments.dataset)
