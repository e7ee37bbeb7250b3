"""Guards evaluation/results.py: what a result depends on, and the file that keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from comparisons import CONFIG

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation.comparison import compare
from anomalydiffusion_core.evaluation.config import ComparisonConfig, ComparisonRun
from anomalydiffusion_core.evaluation.contenders import Contender
from anomalydiffusion_core.evaluation.localization import read_test_photos
from anomalydiffusion_core.evaluation.results import Trial
from anomalydiffusion_core.evaluation.split import Split, split_category


def test_a_moved_or_renamed_photo_is_another_run(real: Path, generated: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    test = read_test_photos(split, 32)
    contender = Contender("ours", {"thing": list(find_dataset(generated).pairs)})

    def identity(changed: Split, config: ComparisonConfig = CONFIG) -> str:
        return Trial(contender, changed, test, 0).identity(config)

    first, last = split.normals[:-1], split.normals[-1:]
    moved = replace(split, normals=first, test_normals=(*last, *split.test_normals))
    renamed = replace(split, test_pairs=tuple(replace(p, defect="dent") for p in split.test_pairs))
    fewer = replace(split, normals=first)
    found = {identity(s) for s in (split, moved, renamed, fewer)} | {
        identity(split, replace(CONFIG, resamples=9))
    }
    assert len(found) == 5 and identity(split) in found


def test_a_damaged_result_is_named(real: Path, generated: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, seeds=1)
    compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
    damaged = sorted((tmp_path / "out" / "runs").glob("*.json"))[0]
    damaged.write_text("{}")
    with pytest.raises(ValueError, match=rf"{damaged.name} is damaged .*: remove it"):
        compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
