"""Guards the command `export`: what it writes, what it tells, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import refused, run, snapshot
from written_pairs import write_mixed, write_pairs

from anomalydiffusion_core.export.formats import FORMATS
from anomalydiffusion_core.export.mvtec import read_manifest


@pytest.mark.parametrize("name", FORMATS)
def test_a_generated_dataset_is_exported_with_a_summary(tmp_path: Path, name: str) -> None:
    write_pairs(tmp_path / "made", 2)
    write_mixed(tmp_path / "made", 1)
    options = ("--format", name, "--out", tmp_path / "out", "--json", tmp_path / "e.json")
    result = run("export", tmp_path / "made", *options)
    assert result.exit_code == 0, result.output
    assert f"{name} export: 3/3" in result.stdout and f"(3 pairs as {name})" in result.stdout
    assert json.loads((tmp_path / "e.json").read_text()) == {
        "out": str(tmp_path / "out"),
        "format": name,
        "pairs": 3,
    }
    assert any((tmp_path / "out").iterdir())


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    write_pairs(made, 1)
    (tmp_path / "file").touch()
    before = snapshot(tmp_path)
    refused(run("export", made, "--format", "gan", "--out", out), "no format 'gan': choose from mvtec")
    refused(run("export", tmp_path / "no", "--format", "mvtec", "--out", out), "no has no generated pairs")
    refused(run("export", made, "--format", "mvtec", "--out", tmp_path / "file"), "file exists already")
    refused(run("export", made, "--format", "mvtec", "--out", tmp_path / "file/below"), "file is a file")
    refused(run("export", made, "--format", "mvtec", "--out", made / "x"), "lies inside the dataset")
    assert snapshot(tmp_path) == before
    (made / read_manifest(made)[0]["image"]).write_bytes(b"damaged")
    refused(run("export", made, "--format", "mvtec", "--out", out), "00000.png cannot be read")


def test_a_list_of_rejected_pairs_is_left_out(tmp_path: Path) -> None:
    made, out, reject = tmp_path / "made", tmp_path / "out", tmp_path / "reject.txt"
    rows = write_pairs(made, 3)
    reject.write_text(f"# by me\n{rows[1]['image']}\n")
    result = run("export", made, "--format", "mvtec", "--out", out, "--reject", reject)
    assert result.exit_code == 0 and "(2 pairs as mvtec)" in result.stdout, result.output
    assert [row["index"] for row in read_manifest(out)] == [0, 2]
    reject.write_text("bolt/test/dent/00009.png\n")
    refused(
        run("export", made, "--format", "mvtec", "--out", tmp_path / "x", "--reject", reject), "no pair 'bolt"
    )
    refused(
        run("export", made, "--format", "mvtec", "--out", tmp_path / "x", "--reject", made), "list of pairs"
    )
