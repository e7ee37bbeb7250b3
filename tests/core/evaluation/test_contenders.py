"""Guards evaluation/contenders.py: who takes part, with how many pairs, and who is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run as command
from comparisons import CONFIG

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo, short_hash
from anomalydiffusion_core.evaluation.baselines import BASELINES, Baseline, MarkedPhoto
from anomalydiffusion_core.evaluation.comparison import compare
from anomalydiffusion_core.evaluation.config import ComparisonRun
from anomalydiffusion_core.evaluation.contenders import (
    REAL,
    all_contenders,
    find_datasets,
    mixture_weights,
    named_datasets,
    shared_out,
    split_categories,
)
from anomalydiffusion_core.evaluation.split import split_category
from anomalydiffusion_core.evaluation.tables import write_tables
from anomalydiffusion_core.export.mvtec import read_manifest


def test_datasets_are_named_by_their_folder_or_as_asked(tmp_path: Path) -> None:
    found = named_datasets([str(tmp_path / "made"), "plain=made/without aar"])
    assert found == {"made": tmp_path / "made", "plain": Path("made/without aar")}
    with pytest.raises(ValueError, match="'made' is taken: give each dataset its own"):
        named_datasets(["a/made", "b/made"])
    with pytest.raises(ValueError, match="'real few shots' is taken"):
        named_datasets(["real few shots=a"])
    (tmp_path / "lr=0.1").mkdir()
    assert named_datasets([str(tmp_path / "lr=0.1")]) == {"lr=0.1": tmp_path / "lr=0.1"}


def test_two_contenders_of_one_name_are_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    for name, against in (("draem", ["draem"]), ("ours", ["prn", "prn"])):
        with pytest.raises(ValueError, match="There are two contenders '(draem|prn)'"):
            compare({name: generated}, real, against, ComparisonRun(CONFIG, tmp_path / "out"))


def test_what_cannot_be_compared_is_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="There is no baseline 'gan': there are crop-paste, "):
        compare({"ours": generated}, real, ["draem", "gan"], ComparisonRun(CONFIG, out))
    assert not (out / "baselines").exists()
    shutil.copytree(generated / "thing/train/good", tmp_path / "empty/thing/train/good")
    with pytest.raises(ValueError, match="empty holds no pairs with usable masks"):
        compare({"ours": tmp_path / "empty"}, real, [], ComparisonRun(CONFIG, out))
    with pytest.raises(ValueError, match="has 3 pairs of thing/scratch, but 9 are compared: generate more"):
        compare({"ours": generated}, real, [], ComparisonRun(replace(CONFIG, pairs_per_type=9), out))
    shutil.copy(real / "thing/test/stain/002.png", generated / "thing/test/stain/00000.png")
    with pytest.raises(ValueError, match=r"stain/00000\.png trains and .*stain/002\.png measures"):
        compare({"ours": generated}, real, [], ComparisonRun(CONFIG, out))
    (generated / "thing/test/stain").rename(generated / "thing/test/dent")
    (generated / "thing/ground_truth/stain").rename(generated / "thing/ground_truth/dent")
    with pytest.raises(ValueError, match="Generated defects dent of thing are not in .* scratch, stain"):
        compare({"ours": generated}, real, [], ComparisonRun(CONFIG, out))
    (generated / "thing").rename(generated / "bolt")
    with pytest.raises(ValueError, match="Generated category 'bolt' is not in .* which has thing"):
        compare({"ours": generated}, real, [], ComparisonRun(CONFIG, out))


def test_baselines_of_other_real_photos_are_not_mixed_in(real: Path, tmp_path: Path, generated: Path) -> None:
    out, config = tmp_path / "out", replace(CONFIG, seeds=1)
    first = compare({"ours": generated}, real, ["crop-paste"], ComparisonRun(config, out))
    fewer = compare(
        {"ours": generated},
        real,
        ["crop-paste"],
        ComparisonRun(replace(config, share=0.25, pairs_per_type=1), out),
    )
    assert [run.pairs for run in first.results] == [4, 3, 4] and [run.pairs for run in fewer.results] == [
        2,
        2,
        2,
    ]
    rows = read_manifest(out / "baselines/crop-paste")
    assert len({row["run"] for row in rows}) == 2 and len(rows) == 4 + 2


def test_pairs_made_on_test_photos_are_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    shutil.copy(real / "thing/test/good/001.png", generated / "thing/train/good/00077.png")
    with pytest.raises(ValueError, match=r"00077\.png trains and .*test/good/001\.png measures"):
        compare({"ours": generated}, real, [], ComparisonRun(CONFIG, tmp_path / "out"))
    allowed = replace(CONFIG, seeds=1, allow_overlap=True)
    assert compare({"ours": generated}, real, [], ComparisonRun(allowed, tmp_path / "out")).results


def test_a_generator_that_was_trained_on_test_photos_is_found_out(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    manifest = generated / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    split = split_category(find_dataset(real).categories["thing"], 0.5)

    def trained_on(photo: Path) -> None:
        last = {**rows[-1], "trained_on": [short_hash(photo)]}
        manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:-1], last]))

    one = replace(CONFIG, seeds=1)
    trained_on(split.few_shot_pairs[0].image)
    assert compare({"ours": generated}, real, [], ComparisonRun(one, tmp_path / "out")).results
    trained_on(split.test_pairs[0].image)
    for folder in (generated, generated / "thing"):  # whose manifest lies above it
        with pytest.raises(
            ValueError, match=r"generated.* comes from .* trained on .*/scratch/.*: give the share"
        ):
            compare({"ours": folder}, real, [], ComparisonRun(one, tmp_path / "out"))
    allowed = replace(one, allow_overlap=True)
    assert compare({"ours": generated}, real, [], ComparisonRun(allowed, tmp_path / "out")).results


def test_categories_without_the_defects_asked_for_are_left_out(
    real: Path, tmp_path: Path, generated: Path
) -> None:
    shutil.copytree(real / "thing", real / "bolt")
    for folder in ("test", "ground_truth"):
        (real / "bolt" / folder / "scratch").rename(real / "bolt" / folder / "dent")
    shutil.copytree(generated / "thing", generated / "bolt")
    for folder in ("test", "ground_truth"):
        (generated / "bolt" / folder / "scratch").rename(generated / "bolt" / folder / "dent")
    config = replace(CONFIG, seeds=1, defects=("scratch",))
    found = compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
    assert {run.category for run in found.results} == {"thing"}


def painted_corner(
    rng: np.random.Generator, normal: np.ndarray, real: list[MarkedPhoto], foreground: np.ndarray | None
) -> MarkedPhoto:
    """A black square in the corner."""
    pixels, mask = normal.copy(), np.zeros(normal.shape[:2], bool)
    pixels[:8, :8], mask[:8, :8] = 0, True
    return pixels, mask


def test_a_baseline_that_is_added_to_the_table_takes_part(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "corner", Baseline(painted_corner, typed=True))
    run = ComparisonRun(replace(CONFIG, seeds=1), tmp_path / "out")
    comparison = compare({"ours": generated}, real, ["corner"], run)
    assert [(r.contender, r.pairs) for r in comparison.results] == [("ours", 4), (REAL, 3), ("corner", 4)]
    for pair in find_dataset(tmp_path / "out/baselines/corner").pairs:
        assert read_mask(pair.mask).sum() == 64 and not read_photo(pair.image).pixels[:8, :8].any()
    page = Path(write_tables(comparison, run.config, tmp_path / "out")["html"]).read_text()
    assert "<td>corner</td>" in page
    with pytest.raises(ValueError, match="no baseline 'gan': there are .*, corner"):
        compare({"ours": generated}, real, ["gan"], run)


def test_the_command_s_help_names_every_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # of the box that options are told in
    told = " ".join(command("evaluate", "--help").stdout.split())
    assert f"Compare with these baselines, separated by commas: {', '.join(BASELINES)}." in told


@pytest.mark.parametrize(
    ("count", "weights", "parts"),
    [(10, [2, 1], [7, 3]), (10, [1, 1, 1], [4, 3, 3]), (3, [1, 1], [2, 1]), (4, [1, 3], [1, 3])],
)
def test_pairs_are_shared_out_by_weights_and_add_up(
    count: int, weights: list[float], parts: list[int]
) -> None:
    assert shared_out(count, weights) == parts


@pytest.mark.parametrize(("count", "weights"), [(20, [50, 1]), (10, [1, 1, 30]), (1, [1, 1])])
def test_no_contender_of_a_mixture_goes_without_a_pair(count: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"Of {count} pairs a mixture .* takes none of one contender"):
        shared_out(count, weights)


def test_a_mixture_names_contenders_that_there_are() -> None:
    assert mixture_weights("ours=2, draem", ["ours", REAL, "draem"]) == {"ours": 2.0, "draem": 1.0}
    for wrong in ("ours", "ours=1,gan=1", f"ours=1,{REAL}=1", "ours=0,draem=1", "ours=x,draem=1", ""):
        with pytest.raises(ValueError, match="A mixture is two contenders or more .* there are ours, draem"):
            mixture_weights(wrong, ["ours", REAL, "draem"])


def test_a_mixture_has_as_many_pairs_as_others_from_each_by_weight(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, pairs_per_type=3, mixtures=("ours=2,draem=1",), with_real=True)
    truth = find_dataset(real)
    datasets = find_datasets({"ours": generated}, truth, config)
    splits = split_categories(datasets.values(), truth, config)
    run = ComparisonRun(config, tmp_path / "out")
    *_, mixture = contenders = all_contenders(datasets, ["draem"], splits, run)
    ours, _, draem, _ = contenders
    assert mixture.name == "ours=2,draem=1"
    (split,) = splits.values()
    mixed, others = mixture.pairs[split.category], ours.pairs[split.category]
    assert len(mixed) == len(others) == len(draem.pairs[split.category]) == 3 * len(split.defects)
    for defect in split.defects:
        assert sum(pair in others and pair.defect == defect for pair in mixed) == 2
    assert sum(pair in draem.pairs[split.category] for pair in mixed) == len(split.defects)
    assert mixture.real_beside(split, config) == split.few_shot_pairs == ours.real_beside(split, config)
