"""The command `generate`: its options, what it refuses in one line, and what it leaves on disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import generate_quickly, refused, run, snapshot
from PIL import Image
from safetensors.torch import save_file

from anomalydiffusion_core.dataset.photos import write_png
from anomalydiffusion_core.export.mvtec import read_manifest
from anomalydiffusion_core.gate.checks import CHECKS, Check
from anomalydiffusion_core.masks.sources import SOURCES, MaskRequest, MaskSource, Source, SourcedMask
from anomalydiffusion_core.method.artifact import load_artifact, save_artifact
from anomalydiffusion_core.method.embeddings import Tuning
from anomalydiffusion_core.method.latent_diffusion import Fingerprint

MIXED = "thing/scratch+stain"


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A folder of masks: scratches on the left, stains on the right."""
    for defect, column in (("scratch", 6), ("stain", 40)):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:32, column : column + 14] = 255
        write_png(Image.fromarray(mask), tmp_path / "apart" / defect / "0_mask.png")
    return tmp_path / "apart"


def test_tuned_settings_are_taken_told_and_not_silently_overruled(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    learned = load_artifact(trained)
    learned.tunings["thing/stain"] = Tuning("noise", 0.3, 2.0, "off", 1.0, 7, 8)
    save_artifact(learned, trained)
    quick, out = ("--checks", "", "--count", 1), tmp_path / "out"
    assert generate_quickly(trained, dataset, out, *quick).exit_code == 0
    rows = {row["defect"]: row for row in read_manifest(out)}
    assert rows["stain"]["guidance"] == 2.0 and rows["scratch"]["guidance"] == 2.5  # nothing to paste: noise
    assert rows["stain"]["tunings"] == {"thing/stain": vars(learned.tunings["thing/stain"])}
    for option in (("--denoise", 0.5), ("--guidance", 3), ("--aar", "off"), ("--aar-strength", 2)):
        refused(
            generate_quickly(trained, dataset, out, *quick, *option),
            f"{option[0]} would be of no effect on thing/stain",
            "--start pasted",
        )
    for option, why in (("--denoise", "starts from noise"), ("--aar-strength", "without attention")):
        refused(
            generate_quickly(trained, dataset, out, *quick, option, "thing/stain=0.5"),
            "of no effect on thing/stain, which",
            why,
            "by its tuned settings",
        )
    of_types = ("--denoise", "thing/scratch=0.5", "--aar-strength", "thing/scratch=2")
    for more in (
        of_types,
        ("--guidance", 3, "--type", "thing/scratch"),
        ("--guidance", 3, "--start", "noise"),
    ):
        result = generate_quickly(trained, dataset, tmp_path / "more", *quick, *more)
        assert result.exit_code == 0, result.output
    assert not any(
        "tunings" in row for row in read_manifest(tmp_path / "more") if row["config"]["start"] == "noise"
    )


def test_generation_refuses_what_does_not_fit(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"emb_params": torch.zeros(2, 16)}, tmp_path / "embedding.safetensors")
    (tmp_path / "empty").mkdir()
    other = load_artifact(trained)
    other.base = Fingerprint("sd1", "0" * 16)
    save_artifact(other, tmp_path / "sd1.safetensors")
    other.base, other.anomaly = base.fingerprint, {}
    save_artifact(other, tmp_path / "hollow.safetensors")
    before, out = snapshot(tmp_path), tmp_path / "out"
    refused(generate_quickly(tmp_path / "text.safetensors", dataset, out), "cannot be read as an artifact")
    refused(
        generate_quickly(tmp_path / "embedding.safetensors", dataset, out),
        "is no anomalydiffusion/1 artifact",
    )
    refused(
        generate_quickly(tmp_path / "absent.safetensors", dataset, out), "absent.safetensors does not exist"
    )
    refused(generate_quickly(tmp_path / "sd1.safetensors", dataset, out), "'sd1'", "say with --base")
    refused(
        generate_quickly(tmp_path / "sd1.safetensors", dataset, out, "--base", "tiny"),
        "'sd1' but the base given is 'tiny'",
    )
    refused(generate_quickly(tmp_path / "hollow.safetensors", dataset, out), "holds no anomaly embedding")
    refused(
        generate_quickly(trained, dataset, out, "--type", "thing/dent"),
        "this artifact has thing/scratch, thing/stain",
    )
    refused(generate_quickly(trained, tmp_path / "empty", out), "holds no dataset")
    refused(generate_quickly(trained, dataset, dataset / "out"), "lies inside the dataset")
    refused(
        generate_quickly(trained, dataset, out, "--masks", tmp_path / "empty"),
        "holds no masks for thing/scratch",
    )
    refused(generate_quickly(trained, dataset, out, "--scheduler", "fast"), "no scheduler 'fast'")
    assert snapshot(tmp_path) == before


def test_generation_refuses_a_dataset_without_normal_photos(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    for path in (dataset / "thing/train/good").iterdir():
        path.unlink()
    before = snapshot(tmp_path)
    refused(
        generate_quickly(trained, dataset, tmp_path / "out"),
        "no normal photos of thing",
        f"into {dataset / 'thing/train/good'}",
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (("--checks", "fill,looks"), ("no check 'looks': choose from fill, contrast",)),
        (("--mask-sources", "gan=1"), ("of invented, real, given, procedural: got gan=1",)),
        (("--mask-sources", "given=much"), ("got given=nan",)),
        (("--mask-sources", "drawn=-1"), ("got given=-1",)),  # a former name
        (("--mask-sources", "given=0"), ("got none with a weight",)),
        (("--mask-sources", "real"), ("Masks were given, but the mask sources leave them out",)),
        (
            ("--mask-sources", "real,given"),
            ("thing/scratch cannot come from source 'real', since no training",),
        ),
        (("--aar-strength", "much"), ("'much' is no number from 0 up, nor category/defect=number",)),
        (("--aar-strength", "-0.5"), ("'-0.5' is no number",)),
        (("--aar-strength", "nan"), ("'nan' is no number",)),
        (("--aar-strength", "inf"), ("'inf' is no number",)),
        (("--aar-strength", "thing/stain="), ("'thing/stain=' is no number",)),
        (
            ("--aar-strength", "thing/dent=0"),
            ("'thing/dent'", "artifact has thing/scratch, thing/stain"),
        ),
        (("--denoise", "0"), ("'0' is no number over 0 and up to 1, nor category/defect=number",)),
        (("--denoise", "thing/stain=1.1"), ("'thing/stain=1.1' is no number over 0",)),
        (("--denoise", "thing/dent=0.5"), ("'thing/dent'", "artifact has thing/scratch, thing/stain")),
        (("--aar-start", 0.5, "--aar-end", 0.2), ("starts at 0.5 and ends at 0.2",)),
        (("--foreground", "/absent/model"), ("Segmentation model /absent/model cannot be loaded",)),
        (("--type", "thing/scratch+dent"), ("'thing/dent'", "artifact has thing/scratch, thing/stain")),
        (("--type", "thing/stain+stain"), ("names a defect twice",)),
        (("--type", "thing/scratch+thing/stain"), ("names a category twice: write thing/scratch+stain",)),
    ],
)
def test_options_that_mean_nothing_are_refused(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, options: tuple, texts: tuple[str, ...]
) -> None:
    before = snapshot(tmp_path)
    refused(generate_quickly(trained, dataset, tmp_path / "out", *options), *texts)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["given", "drawn"])  # the latter in scripts of before
def test_given_masks_must_be_given(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, name: str
) -> None:
    result = run("generate", trained, dataset, "--out", tmp_path / "out", "--mask-sources", name)
    refused(result, "thing/scratch cannot come from source 'given', since none were given")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_while_generating_keeps_what_was_finished(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, out = os.link, tmp_path / "out"

    def nearly_full(source: str, target: Path) -> None:
        if target.name == "00001.png" and target.parent.name == "scratch":
            raise OSError(errno.ENOSPC, "No space left on device")
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", nearly_full)
        result = generate_quickly(trained, dataset, out, "--count", 2)
    refused(result, "scratch/00001.png: No space left on device")
    assert [row["image"] for row in read_manifest(out)] == ["thing/test/scratch/00000.png"]
    assert [path.name for path in (out / "thing/ground_truth/scratch").iterdir()] == ["00000_mask.png"]
    assert generate_quickly(trained, dataset, out, "--count", 2).exit_code == 0
    assert len(read_manifest(out)) == 4


def test_generation_continues_and_reports(base: Any, trained: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert generate_quickly(trained, dataset, out, "--count", 1).exit_code == 0
    before = snapshot(out)
    result = generate_quickly(trained, dataset, out, "--count", 3, "--json", tmp_path / "g.json")
    assert result.exit_code == 0 and json.loads((tmp_path / "g.json").read_text())["pairs"] == 6
    after = snapshot(out)
    assert all(after[name] == before[name] for name in before if name != "manifest.jsonl")
    assert after["manifest.jsonl"].startswith(before["manifest.jsonl"])
    rows = read_manifest(out)
    assert len({(row["defect"], row["index"]) for row in rows}) == len(rows) == 6
    for row in rows:
        normal, image = (np.asarray(Image.open(out / row[key])) for key in ("normal", "image"))
        outside = np.asarray(Image.open(out / row["mask"])) == 0
        np.testing.assert_array_equal(image[outside], normal[outside])
    result = run("report", out, "--artifact", trained, "--json", tmp_path / "r.json")
    assert result.exit_code == 0 and (out / "report.html").is_file()
    assert json.loads((tmp_path / "r.json").read_text())["changed_outside"] == 0


def test_two_defects_in_each_image(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, apart: Path
) -> None:
    options = ("--count", 2, "--type", MIXED, "--checks", "", "--masks", apart, "--foreground", "none")
    result = generate_quickly(trained, dataset, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    rows = read_manifest(tmp_path / "out")
    assert [row["defect"] for row in rows] == ["scratch+stain"] * 2
    for row in rows:
        labels = np.asarray(Image.open(tmp_path / "out" / row["labels"]))
        for number, defect in row["classes"].items():
            given = np.asarray(Image.open(apart / defect / "0_mask.png")) > 0
            assert np.array_equal(labels == int(number), given)


def test_a_shortfall_is_told_and_what_was_made_is_counted(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, apart: Path
) -> None:
    (apart / "stain/0_mask.png").write_bytes((apart / "scratch/0_mask.png").read_bytes())
    summary, out = tmp_path / "new/summary.json", tmp_path / "out"
    options = ("--type", "thing/scratch", "--type", MIXED, "--count", 2, "--tries", 1, "--checks", "")
    more = ("--masks", apart, "--foreground", "none", "--json", summary)
    result = generate_quickly(trained, dataset, out, *options, *more)
    refused(result, f"Only 0 of 2 pairs of {MIXED} were accepted in 0 tries", "overlapping")
    told = json.loads(summary.read_text())
    assert told["pairs"] == len(read_manifest(out)) == 2
    assert list(told["shortfalls"]) == [MIXED]
    assert told["shortfalls"][MIXED] == told["shortfall"] and told["shortfall"] in result.stderr


def test_rejected_pairs_are_kept_where_asked(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalydiffusion_core.generation.generator.visible", lambda noise: noise)
    for number, path in enumerate(sorted((dataset / "thing/train/good").iterdir())):
        path.unlink()  # so noisy that not every change shows
        grain = np.random.default_rng(number).integers(0, 256, (64, 64, 3))
        write_png(Image.fromarray(grain.astype(np.uint8)), path)
    options = ("--type", "thing/stain", "--count", 2, "--tries", 2, "--checks", "fill", "--smallest-fill", 1)
    for name, more in (("kept", ("--keep-rejected",)), ("gone", ())):
        result = generate_quickly(trained, dataset, tmp_path / name, *options, *more)
        refused(result, "pairs of thing/stain were accepted in 4 tries", "unfilled")
    kept = read_manifest(tmp_path / "kept/rejected")
    assert len(kept) + len(read_manifest(tmp_path / "kept")) == 4
    for row in kept:
        assert row["rejected"] == "unfilled" and row["scores"]["fill"] < row["thresholds"]["fill"] == 1
        assert (tmp_path / "kept/rejected" / row["image"]).is_file()
    assert not (tmp_path / "gone/rejected").exists()


def test_options_reach_the_manifest(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, apart: Path
) -> None:
    options = ("--count", 1, "--masks", apart, "--foreground", "none", "--checks", "fill,seam", "--seed", 3)
    more = ("--aar-strength", 0.5, "--aar-strength", "thing/stain=0", "--aar-start", 0.25, "--aar", "paper")
    varied = ("--vary-strength", 0.1, "--vary-guidance", 0.2, "--guidance", 2, "--placement", "free")
    start = ("--start", "mixed", "--denoise", 0.3, "--denoise", "thing/stain=0.7", "--pasted-guidance", 1.5)
    result = generate_quickly(trained, dataset, tmp_path / "out", *options, *more, *varied, *start)
    assert result.exit_code == 0, result.output
    for row in read_manifest(tmp_path / "out"):
        config = row["config"]
        aar = config["sampling"]["aar"]
        assert (aar["mode"], aar["strength"], aar["start"]) == ("paper", 0.5, 0.25)
        assert config["aar_strengths"] == [["thing/stain", 0.0]]
        assert (config["start"], config["pasted_guidance"]) == ("mixed", 1.5)
        assert config["sampling"]["denoise"] == 0.3 and config["denoises"] == [["thing/stain", 0.7]]
        assert config["gate"]["checks"] == ["fill", "seam"] and config["seed"] == 3
        assert config["placement"] == "free" and config["foreground"] == "none"
        assert 0.9 <= row["strength"] <= 1.1 and 1.6 <= row["guidance"] <= 2.4
        assert row["masks_from"] == {f"thing/{row['defect']}": "given"}


def test_every_batch_of_denoising_is_one_stage_that_is_told_once(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    options = ("--type", "thing/scratch", "--count", 3, "--batch", 1, "--checks", "")
    result = generate_quickly(trained, dataset, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    lines = [line.partition("] ")[2].strip() for line in result.stdout.splitlines()]
    assert [line for line in lines if line.startswith("denoising")] == ["denoising: 2/2"]


def test_a_mask_source_added_to_the_table_is_generated_with_and_told(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squares(request: MaskRequest) -> MaskSource:
        shape = np.ones((12, 12), bool)
        return lambda number: SourcedMask(np.pad(shape, 20 + number % 3), "squares", placed=True)

    monkeypatch.setitem(SOURCES, "squares", Source(squares, "plain squares"))
    out, options = tmp_path / "out", ("--count", 2, "--checks", "", "--foreground", "none", "--steps", 2)
    result = run("generate", trained, dataset, "--out", out, "--mask-sources", "squares", *options)
    assert result.exit_code == 0, result.output
    rows = read_manifest(out)
    assert len(rows) == 4 and all(row["mask_sources"] == "squares=1" for row in rows)
    assert all(set(row["masks_from"].values()) == {"squares"} for row in rows)


def test_a_check_added_to_the_table_scores_limits_stops_and_is_reported(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Check(
        "too large",
        "pairs that mark too much",
        at_most=True,
        score=lambda gate, view, changed: float(view.mask.mean()),
        limit=lambda gate, known: 0.03,
        fault="marks {score} of the photo, more than {limit}",
        remedy="Give smaller masks.",
    )
    monkeypatch.setitem(CHECKS, "area", check)
    for name, side in (("scratch", 10), ("stain", 12)):  # 100 and 144 of 4096 pixels
        mask = np.zeros((64, 64), np.uint8)
        mask[20 : 20 + side, 20 : 20 + side] = 255
        write_png(Image.fromarray(mask), tmp_path / "masks" / name / "0_mask.png")
    out, options = tmp_path / "out", ("--count", 1, "--tries", 2, "--foreground", "none", "--keep-rejected")
    more = ("--masks", tmp_path / "masks", "--steps", 2, "--checks")
    result = run("generate", trained, dataset, "--out", out, *options, *more, "area")
    refused(result, "Only 0 of 1 pairs of thing/stain were accepted in 2 tries (2 too large)")
    (row,) = read_manifest(out)
    assert row["defect"] == "scratch" and row["config"]["gate"]["checks"] == ["area"]
    assert row["scores"]["area"] == round(100 / 4096, 4) and row["thresholds"]["area"] == 0.03
    assert [r["scores"]["area"] for r in read_manifest(out / "rejected")] == [round(144 / 4096, 4)] * 2
    assert run("report", out).exit_code == 0
    assert ">area<" in (out / "report.html").read_text()
    refused(run("generate", trained, dataset, "--out", out, *more, "looks"), "shape, area.")


def test_help_lists_what_the_tables_hold() -> None:
    script = """
from anomalydiffusion_core.export import formats
from anomalydiffusion_core.gate import checks
from anomalydiffusion_core.masks import sources
checks.CHECKS["area"] = checks.CHECKS["fill"]
sources.SOURCES["squares"] = sources.Source(sources.procedural_masks, "plain squares")
formats.FORMATS["cards"] = formats.MVTecWriter
from typer.testing import CliRunner
from anomalydiffusion_core.cli import app
for command in ("generate", "export"):
    print(CliRunner().invoke(app, [command, "--help"]).stdout)
"""
    wide = os.environ | {"COLUMNS": "2000"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=wide
    )
    shown = " ".join(done.stdout.split())
    assert "all of fill,contrast,seam,plausibility,duplicate,tone,shape,area; give fewer" in shown
    assert "procedural, scratches, cracks, blobs, specks, threads and folds, drawn; squares, plain" in shown
    assert "Write one of these formats: mvtec, cards." in shown


def test_starting_the_command_line_loads_neither_diffusers_nor_torchvision() -> None:
    script = """
import sys
import anomalydiffusion_core.cli
late = {"diffusers", "transformers", "torchvision", "scipy.stats", "matplotlib"}
assert not late & set(sys.modules), late & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
