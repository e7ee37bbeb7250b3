"""Guards export/mvtec.py: whatever stops a writer, a dataset is left, and the next one goes on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_pairs import pixels, tree, write_mixed, write_pairs

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.export import mvtec
from anomalydiffusion_core.export.mvtec import MVTecWriter, read_manifest

Write = Callable[[Path, np.ndarray], Path]


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_pairs(out, 1)
    monkeypatch.setattr(mvtec, "_next_number", lambda *_: 0)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    with pytest.raises(FileExistsError):
        write_pairs(out, 1)
    assert {name: (out / name).read_bytes() for name in tree(out)} == before


def test_a_manifest_cut_anywhere_in_its_last_line_is_repaired(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pairs(out, 1)
    manifest = out / "manifest.jsonl"
    whole = manifest.read_bytes()
    line = json.dumps(
        {
            "category": "bolt",
            "defect": "dent",
            "run": "r1",
            "config": {"a": {"b": 1}},
            "image": "x",
            "mask": "y",
        }
    ).encode()
    for length in range(1, len(line)):  # some of these end in a closing brace
        manifest.write_bytes(whole + line[:length])
        assert len(read_manifest(out)) == 1
        writer = MVTecWriter(out)
        assert manifest.read_bytes() == whole and len(writer.rows) == 1
    manifest.write_bytes(whole + line[:20])
    write_pairs(out, 1)
    assert [row["image"] for row in read_manifest(out)] == [
        "bolt/test/dent/00000.png",
        "bolt/test/dent/00001.png",
    ]


def test_a_manifest_that_lost_only_its_last_line_break_keeps_its_row(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pairs(out, 2)
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().rstrip(b"\n"))
    assert len(read_manifest(out)) == 2
    write_pairs(out, 1)
    assert [row["index"] for row in read_manifest(out)] == [0, 1, 2]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pairs(out, 2)
    lines = (out / "manifest.jsonl").read_bytes().splitlines()
    (out / "manifest.jsonl").write_bytes(lines[0][:30] + b"\n" + lines[1] + b"\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl line 1 is no JSON"):
        MVTecWriter(out)


def write_and_die(write: Callable[[], object], moment: int) -> None:
    """Writes in this process, which ends without any clean-up at its `moment`-th system call."""
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                os._exit(9)
            return function(*arguments)

        return call

    mvtec.write_new, os.fsync, os.link = (counted(f) for f in (mvtec.write_new, os.fsync, os.link))
    write()
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("moment", range(11))
def test_a_run_killed_between_any_two_files_leaves_a_dataset_and_goes_on(tmp_path: Path, moment: int) -> None:
    out = tmp_path / "out"
    write_pairs(out, 1)
    if not (child := os.fork()):
        write_and_die(lambda: write_pairs(out, 2), moment)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if moment < 10 else 0)
    rows = read_manifest(out)
    assert len(find_dataset(out).pairs) == len(rows) == 1 + moment // 5  # five calls a pair
    assert all((out / row[key]).is_file() for row in rows for key in ("image", "mask"))
    write_pairs(out, 1)
    expected = [name for row in read_manifest(out) for name in (row["image"], row["mask"])]
    assert tree(out) == sorted([*expected, "manifest.jsonl"]) and len(expected) == 2 * (len(rows) + 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("moment", range(8))
def test_a_pair_with_labels_is_written_whole_or_not_at_all(tmp_path: Path, moment: int) -> None:
    out = tmp_path / "out"
    write_mixed(out, 1)
    if not (child := os.fork()):
        write_and_die(lambda: write_mixed(out, 1), moment)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if moment < 7 else 0)
    rows = read_manifest(out)
    assert len(find_dataset(out).pairs) == len(rows) == 1 + moment // 7  # a row and three files of two calls
    write_mixed(out, 1)
    names = [row[key] for row in read_manifest(out) for key in ("image", "mask", "labels")]
    assert tree(out) == sorted([*names, "manifest.jsonl"]) and len(names) == 3 * (len(rows) + 1)


def test_a_label_map_in_the_way_is_not_overwritten_and_nothing_is_written(
    tmp_path: Path, write_image: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_mixed(out, 1)
    write_image(out / "labels/bolt/dent+crack/00007.png", pixels(1))
    assert write_mixed(out, 1)[0]["image"] == "bolt/test/dent+crack/00008.png"
    monkeypatch.setattr(mvtec, "_next_number", lambda *_: 7)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    with pytest.raises(FileExistsError):
        write_mixed(out, 1)
    assert {name: (out / name).read_bytes() for name in tree(out)} == before


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_pair_that_cannot_be_written_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    out = tmp_path / "out"
    write_pairs(out, 1)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    link, calls = os.link, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > failing:
            raise error
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(type(error)):
            write_pairs(out, 1)
    assert len(calls) == failing + 1
    assert {name: (out / name).read_bytes() for name in tree(out)} == before
    write_pairs(out, 1)
    assert len(find_dataset(out).pairs) == len(read_manifest(out)) == 2
