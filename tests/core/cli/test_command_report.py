"""Guards the command `report`, and that `generate --reject` makes others in place of what a list rejects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import generate_quickly, refused, run, snapshot

from anomalydiffusion_core.export.mvtec import read_manifest, rejected_by_hand


def test_rejected_pairs_are_replaced_and_the_same_command_again_changes_nothing(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    out, reject, told = tmp_path / "out", tmp_path / "reject.txt", tmp_path / "told.json"
    options = ("--count", 3, "--type", "thing/scratch", "--json", told)
    assert generate_quickly(trained, dataset, out, *options).exit_code == 0
    first = read_manifest(out)
    reject.write_text(f"{first[0]['image']}\n{first[2]['image']}\n")
    result = generate_quickly(trained, dataset, out, *options, "--reject", reject)
    assert result.exit_code == 0, result.output
    assert "Rejected by hand: 2 pairs, now in" in result.stdout
    assert json.loads(told.read_text())["rejected_by_hand"] == 2
    rows = read_manifest(out)
    assert [row["image"] for row in rows] == [first[1]["image"]] + [
        f"thing/test/scratch/{number:05d}.png" for number in (3, 4)
    ]
    assert rows[0] == first[1] and [row["index"] for row in rows[1:]] == [
        3,
        4,
    ]  # tries that were not made yet
    assert sorted(rejected_by_hand(out)) == [first[0]["image"], first[2]["image"]]
    before = snapshot(out)
    again = generate_quickly(trained, dataset, out, *options, "--reject", reject)
    assert again.exit_code == 0 and "Rejected by hand: 0 pairs" in again.stdout
    assert generate_quickly(trained, dataset, out, *options).exit_code == 0
    assert snapshot(out) == before
    page = run("report", out)
    assert page.exit_code == 0 and "report: 5/5" in page.stdout
    assert "by hand" in (out / "report.html").read_text()


def test_a_list_that_names_no_pair_is_refused_and_nothing_is_made(
    base: Any, trained: Path, dataset: Path, tmp_path: Path
) -> None:
    out, reject = tmp_path / "out", tmp_path / "reject.txt"
    options = ("--count", 1, "--type", "thing/scratch")
    generate_quickly(trained, dataset, out, *options)
    reject.write_text("thing/test/scratch/00007.png\n")
    before = snapshot(tmp_path)
    refused(
        generate_quickly(trained, dataset, out, *options, "--reject", reject),
        "no pair 'thing/test/scratch/00007.png'",
    )
    refused(
        generate_quickly(trained, dataset, out, *options, "--reject", tmp_path / "no.txt"),
        "no.txt does not exist",
    )
    assert snapshot(tmp_path) == before
