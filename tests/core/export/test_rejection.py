"""Guards export/pair_list.py and what export/mvtec.py does with a list: pairs move apart, nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from written_pairs import MASK, pixels, tree, write_mixed, write_pairs

from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.export import mvtec
from anomalydiffusion_core.export.formats import export_dataset
from anomalydiffusion_core.export.mvtec import (
    BY_HAND,
    WAS,
    MVTecWriter,
    read_manifest,
    rejected_by_hand,
    written_masks,
)
from anomalydiffusion_core.export.pair_list import pairs_in, read_pair_list
from anomalydiffusion_core.export.writer import ExportPair


def name(number: int, defect: str = "dent") -> str:
    return f"bolt/test/{defect}/{number:05d}.png"


def contents(root: Path) -> dict[str, bytes]:
    return {file: (root / file).read_bytes() for file in tree(root)}


def test_a_list_holds_a_pair_a_line_beside_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "reject.txt"
    path.write_text(f"\ufeff# of leather\n\n  {name(1)}  \r\nbolt\\test\\dent\\00002.png", encoding="utf-8")
    assert read_pair_list(path) == [name(1), name(2)] == pairs_in(f"{name(1)}\n{name(2)}\n")


def test_a_list_that_cannot_be_used_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for file, problem in (
        ("absent.txt", "does not exist"),
        ("empty.txt", "lists no pairs"),
        ("picture.png", "cannot be read as a list"),
        (".", "cannot be read as a list"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_pair_list(tmp_path / file)


def test_a_rejected_pair_moves_apart_with_its_bytes_and_says_where_it_was(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    before, rows = contents(tmp_path), read_manifest(tmp_path)
    assert MVTecWriter(tmp_path).reject_by_hand([name(1), name(1)]) == 1
    assert [row["image"] for row in read_manifest(tmp_path)] == [name(0), name(2)]
    (moved,) = read_manifest(tmp_path / "rejected")
    assert moved["rejected"] == BY_HAND and moved["index"] == 1
    assert moved[WAS] == {"image": name(1), "mask": rows[1]["mask"]}
    after = contents(tmp_path)
    assert after["rejected/" + moved["image"]] == before[name(1)]
    assert after["rejected/" + moved["mask"]] == before[rows[1]["mask"]]
    assert set(before) - set(after) == {name(1), rows[1]["mask"]}
    lines = before["manifest.jsonl"].splitlines(keepends=True)
    assert after["manifest.jsonl"] == lines[0] + lines[2]  # the others' rows are the same bytes


def test_several_defects_and_attention_move_along(tmp_path: Path) -> None:
    (row,) = write_mixed(tmp_path, 1)
    heat = Photo(pixels(200), gray=False).image()
    MVTecWriter(tmp_path).write(
        ExportPair("bolt", Photo(pixels(1), gray=False), {"dent": MASK}, {"run": "r1"}), heat
    )
    masks = written_masks(tmp_path, row)
    MVTecWriter(tmp_path).reject_by_hand([row["image"], name(0)])
    apart = tmp_path / "rejected"
    mixed, single = read_manifest(apart)
    assert {key: mask.tolist() for key, mask in written_masks(apart, mixed).items()} == {
        key: mask.tolist() for key, mask in masks.items()
    }
    assert (apart / single["attention"]).is_file() and tree(tmp_path / "attention") == []
    assert tree(tmp_path / "labels") == tree(tmp_path / "bolt") == []


def test_a_number_is_never_given_again(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    writer = MVTecWriter(tmp_path)
    writer.reject_by_hand([name(2)])
    (row,) = write_pairs(tmp_path, 1)
    assert row["image"] == name(3)
    writer = MVTecWriter(tmp_path)
    assert writer.reject_by_hand([name(2)]) == 0  # the same list again
    assert [row["image"] for row in writer.rows] == [name(0), name(1), name(3)]


def test_an_unknown_pair_is_told_before_anything_moves(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    before = contents(tmp_path)
    for other in (name(7), "../bolt.png", "rejected/" + name(0)):
        with pytest.raises(ValueError, match="There is no pair"):
            MVTecWriter(tmp_path).reject_by_hand([name(0), other])
    assert contents(tmp_path) == before


def test_a_mask_corrected_by_hand_moves_as_it_is(tmp_path: Path) -> None:
    rows = write_pairs(tmp_path, 1)
    (tmp_path / rows[0]["mask"]).write_bytes(b"corrected")
    MVTecWriter(tmp_path).reject_by_hand([name(0)])
    (moved,) = read_manifest(tmp_path / "rejected")
    assert (tmp_path / "rejected" / moved["mask"]).read_bytes() == b"corrected"
    assert tree(tmp_path / "bolt") == []


def move_and_die(root: Path, moment: int) -> None:
    """Rejects two pairs in this process, which ends without any clean-up at its `moment`-th step on disk."""
    calls = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > moment:
                os._exit(9)
            return function(*arguments)

        return call

    mvtec.write_new, mvtec.replace_file = counted(mvtec.write_new), counted(mvtec.replace_file)
    os.fsync, mvtec._remove_if_ours = counted(os.fsync), counted(mvtec._remove_if_ours)
    MVTecWriter(root).reject_by_hand([name(0), name(2)])
    os._exit(0)


# 2 pairs of a row and two files, the new manifest (itself and its fsync), 4 files to remove
STEPS = 2 * 3 + 2 + 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("moment", range(STEPS + 1))
def test_a_move_killed_at_any_step_loses_nothing_and_is_finished_by_the_same_list(
    tmp_path: Path, moment: int
) -> None:
    write_pairs(tmp_path, 3)
    before = contents(tmp_path)
    if not (child := os.fork()):
        move_and_die(tmp_path, moment)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if moment < STEPS else 0)
    rows = read_manifest(tmp_path)
    assert all((tmp_path / row[key]).is_file() for row in rows for key in ("image", "mask"))
    moved = rejected_by_hand(tmp_path)
    for number in (0, 2):  # each pair is here, or there, or in both places: never nowhere
        places = [tmp_path / row["image"] for row in rows if row["image"] == name(number)]
        if row := moved.get(name(number)):
            places.append(tmp_path / "rejected" / row["image"])
        assert places and all(place.read_bytes() == before[name(number)] for place in places)
    writer = MVTecWriter(tmp_path)
    writer.reject_by_hand([name(0), name(2)])
    assert [row["image"] for row in read_manifest(tmp_path)] == [name(1)]
    assert tree(tmp_path / "bolt") == ["ground_truth/dent/00001_mask.png", "test/dent/00001.png"]
    assert sorted(rejected_by_hand(tmp_path)) == [name(0), name(2)]
    assert len(tree(tmp_path / "rejected")) == 2 * 2 + 1


def test_the_next_writer_finishes_a_move_without_the_list(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    before = (tmp_path / "manifest.jsonl").read_bytes()
    files = contents(tmp_path)
    MVTecWriter(tmp_path).reject_by_hand([name(1)])
    (tmp_path / "manifest.jsonl").write_bytes(before)  # as a crash before the new manifest leaves it
    (tmp_path / name(1)).write_bytes(files[name(1)])
    (tmp_path / "bolt/ground_truth/dent/00001_mask.png").write_bytes(
        files["bolt/ground_truth/dent/00001_mask.png"]
    )
    assert [row["image"] for row in MVTecWriter(tmp_path).rows] == [name(0)]
    assert [row["image"] for row in read_manifest(tmp_path)] == [name(0)]
    assert not (tmp_path / name(1)).exists()


@pytest.mark.parametrize("was", [5, {}, {"image": "../x.png"}, {"image": "/etc/x.png"}, {"else": "a.png"}])
def test_a_rejected_row_that_says_nonsense_of_where_it_was_is_refused(tmp_path: Path, was: object) -> None:
    write_pairs(tmp_path, 1)
    MVTecWriter(tmp_path).reject_by_hand([name(0)])
    path = tmp_path / "rejected/manifest.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), WAS: was}) + "\n")
    with pytest.raises(ValueError, match="as its accepted_as, which nothing wrote"):
        MVTecWriter(tmp_path)


def test_an_export_leaves_listed_pairs_out_and_knows_those_moved_before(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_pairs(made, 4)
    MVTecWriter(made).reject_by_hand([name(3)])
    before = contents(made)
    assert export_dataset(made, "mvtec", tmp_path / "out", without=[name(1), name(3)]) == 2
    assert [row["index"] for row in read_manifest(tmp_path / "out")] == [0, 2]
    with pytest.raises(ValueError, match="There is no pair 'bolt/test/dent/00009.png'"):
        export_dataset(made, "mvtec", tmp_path / "other", without=[name(9)])
    with pytest.raises(ValueError, match="All pairs of .* are left out"):
        export_dataset(made, "mvtec", tmp_path / "other", without=[name(0), name(1), name(2)])
    assert not (tmp_path / "other").exists() and contents(made) == before


def test_an_export_takes_no_picture_from_outside_the_dataset(tmp_path: Path) -> None:
    made, secret = tmp_path / "made", tmp_path / "secret.png"
    write_pairs(made, 1)
    os.replace(made / name(0), secret)
    (made / name(0)).symlink_to(secret)
    with pytest.raises(ValueError, match="link that leads out of the dataset"):
        export_dataset(made, "mvtec", tmp_path / "out")
    assert not (tmp_path / "out").exists()
