"""The written dataset: MVTec's layout and nothing else; appended to, never overwritten, crash-proof."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import Photo, photo_of, read_photo
from anomalydiffusion_core.export import mvtec
from anomalydiffusion_core.export.mvtec import MVTecWriter, check_output, manifest_root, read_manifest

Write = Callable[[Path, np.ndarray], Path]
MASK = np.zeros((6, 9), bool)
MASK[2:4, 3:7] = True


def pixels(shade: int) -> np.ndarray:
    return np.full((6, 9, 3), shade, np.uint8)


def write_pairs(
    root: Path, count: int, run: str = "r1", gray: bool = False, defect: str = "dent"
) -> list[dict[str, Any]]:
    writer = MVTecWriter(root)
    had = len(writer.rows)
    return [
        writer.write("bolt", defect, Photo(pixels(had + i), gray), MASK, {"run": run, "index": had + i})
        for i in range(count)
    ]


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_the_tree_is_mvtecs_and_holds_nothing_else(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "out"
    writer = MVTecWriter(out)
    writer.add_normals("bolt", map(read_photo, find_dataset(dataset).categories["thing"].normals[:2]))
    write_pairs(out, 2)
    assert tree(out) == [
        "bolt/ground_truth/dent/00000_mask.png",
        "bolt/ground_truth/dent/00001_mask.png",
        "bolt/test/dent/00000.png",
        "bolt/test/dent/00001.png",
        "bolt/train/good/00000.png",
        "bolt/train/good/00001.png",
        "manifest.jsonl",
    ]
    assert {name: len(pairs) for name, pairs in find_dataset(out).by_type().items()} == {"bolt/dent": 2}


def test_pictures_are_png_with_the_exact_pixels_and_masks_of_0_and_255(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    writer = MVTecWriter(tmp_path / "out")
    row = writer.write("bolt", "dent", Photo(random, gray=False), MASK, {"run": "r"})
    image, mask = (Image.open(tmp_path / "out" / row[key]) for key in ("image", "mask"))
    assert (image.format, image.mode, mask.format, mask.mode) == ("PNG", "RGB", "PNG", "L")
    np.testing.assert_array_equal(np.asarray(image), random)
    np.testing.assert_array_equal(np.asarray(mask), np.where(MASK, 255, 0))


def test_gray_photos_stay_one_channel(tmp_path: Path, write_image: Write) -> None:
    source = write_image(tmp_path / "gray.jpg", np.full((6, 9), 77, np.uint8))
    row = write_pairs(tmp_path / "out", 1, gray=True)[0]
    writer = MVTecWriter(tmp_path / "out")
    normal = writer.add_normals("bolt", [read_photo(source)])[0]
    for name in (row["image"], normal):
        assert Image.open(tmp_path / "out" / name).mode == "L"


def test_a_row_names_its_files_their_hashes_and_what_made_them(tmp_path: Path) -> None:
    row = write_pairs(tmp_path / "out", 1)[0]
    assert row["run"] == "r1" and row["index"] == 0 and (row["category"], row["defect"]) == ("bolt", "dent")
    assert json.loads((tmp_path / "out/manifest.jsonl").read_text()) == row
    for key in ("image", "mask"):
        content = (tmp_path / "out" / row[key]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row[f"{key}_sha256"]


def test_ids_keep_image_and_mask_in_one_order_beyond_a_thousand(tmp_path: Path, write_image: Write) -> None:
    out = tmp_path / "out"
    write_pairs(out, 1)
    for number in (99, 998, 999):
        write_image(out / f"bolt/test/dent/{number:05d}.png", pixels(0))
        write_image(out / f"bolt/ground_truth/dent/{number:05d}_mask.png", pixels(0))
    write_pairs(out, 2)
    images = sorted(path.name for path in (out / "bolt/test/dent").iterdir())
    masks = sorted(path.name for path in (out / "bolt/ground_truth/dent").iterdir())
    assert images[-2:] == ["01000.png", "01001.png"]
    assert [name.replace("_mask", "") for name in masks] == images  # readers that pair sorted listings agree


def test_a_second_run_appends_and_changes_no_byte_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_pairs(out, 2)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    second = write_pairs(out, 1, run="r2")
    assert second[0]["image"] == "bolt/test/dent/00002.png"
    manifest = before.pop("manifest.jsonl")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "manifest.jsonl").read_bytes().startswith(manifest)
    writer = MVTecWriter(out)
    assert writer.done("bolt", "dent", "r1") == first and writer.done("bolt", "dent", "r2") == second
    assert writer.done("bolt", "crack", "r1") == [] and writer.done("nut", "dent", "r1") == []


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


def test_normals_are_written_once_and_named_by_what_they_show(tmp_path: Path, write_image: Write) -> None:
    shades = (10, 20, 30)
    a, b, c = (read_photo(write_image(tmp_path / f"in/{shade}.bmp", pixels(shade))) for shade in shades)
    writer = MVTecWriter(tmp_path / "out")
    assert writer.add_normals("bolt", [a, b]) == [
        "bolt/train/good/00000.png",
        "bolt/train/good/00001.png",
    ]
    writer = MVTecWriter(tmp_path / "out")  # another list, another order
    names = writer.add_normals("bolt", [b, c, a])
    assert names == [f"bolt/train/good/{number:05d}.png" for number in (1, 2, 0)]
    for name, photo in zip(names, (b, c, a), strict=True):
        np.testing.assert_array_equal(read_photo(tmp_path / "out" / name).pixels, photo.pixels)


def test_other_peoples_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.jsonl").write_text('{"text": "a manifest of another program"}\n')
    for name, what in {
        "full": "is not empty and has no manifest",
        "file": "is a file",
        "other": r"manifest\.jsonl line 1 lacks",
    }.items():
        for use in (check_output, MVTecWriter):
            with pytest.raises(ValueError, match=what) as error:
                use(tmp_path / name)
            assert "\n" not in str(error.value)
    assert tree(tmp_path) == ["file", "full/mine.txt", "other/manifest.jsonl"]


def test_opening_makes_nothing_and_an_empty_folder_serves(tmp_path: Path) -> None:
    assert MVTecWriter(tmp_path / "new").rejected("bolt", "dent", "r1") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    write_pairs(tmp_path / "empty", 1)
    assert len(read_manifest(tmp_path / "empty")) == 1


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


def write_mixed(root: Path, count: int) -> list[dict[str, Any]]:
    """Pairs of a dent and a crack that overlaps its right column."""
    crack = np.zeros_like(MASK)
    crack[0:3, 6:8] = True
    writer = MVTecWriter(root)
    photo = photo_of(np.full((6, 9), 40000, np.uint16))
    return [
        writer.write_mixed("bolt", photo, {"dent": MASK, "crack": crack}, {"run": "r1"}) for _ in range(count)
    ]


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


def test_several_defects_on_one_photo_have_one_mask_and_a_label_map(tmp_path: Path) -> None:
    out = tmp_path / "out"
    row = write_mixed(out, 1)[0]
    assert row["defect"] == "dent+crack" and row["classes"] == {"1": "dent", "2": "crack"}
    assert tree(out) == [
        "bolt/ground_truth/dent+crack/00000_mask.png",
        "bolt/test/dent+crack/00000.png",
        "labels/bolt/dent+crack/00000.png",
        "manifest.jsonl",
    ]
    labels = np.asarray(Image.open(out / row["labels"]))
    drawn = [
        "......22.",
        "......22.",
        "...11122.",
        "...1111..",
        ".........",
        ".........",
    ]
    expected = np.array([[".12".index(mark) for mark in line] for line in drawn])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask"])), (expected > 0) * 255)
    assert row["labels_sha256"] == hashlib.sha256((out / row["labels"]).read_bytes()).hexdigest()
    assert (np.asarray(Image.open(out / row["image"])) == 40000).all()
    assert {name: len(pairs) for name, pairs in find_dataset(out).by_type().items()} == {"bolt/dent+crack": 1}
    assert write_mixed(out, 1)[0]["labels"] == "labels/bolt/dent+crack/00001.png"


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


def test_rejected_pairs_lie_apart_and_no_reader_of_the_dataset_finds_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    photo, heat = Photo(pixels(9), gray=False), Image.fromarray(pixels(200))
    row = {"run": "r1", "index": 0, "rejected": "unfilled"}
    MVTecWriter(out).reject("bolt", "dent", photo, MASK, row)  # before any pair is accepted
    check_output(out)
    with pytest.raises(ValueError, match="holds no dataset"):
        find_dataset(out)
    accepted = MVTecWriter(out).write("bolt", "dent", photo, MASK, {"run": "r1", "index": 1}, heat)
    assert tree(out) == [
        "attention/bolt/dent/00000.png",
        "bolt/ground_truth/dent/00000_mask.png",
        "bolt/test/dent/00000.png",
        "manifest.jsonl",
        "rejected/bolt/ground_truth/dent/00000_mask.png",
        "rejected/bolt/test/dent/00000.png",
        "rejected/manifest.jsonl",
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(out / accepted["attention"])), pixels(200))
    assert list(find_dataset(out).categories) == ["bolt"] and len(find_dataset(out).pairs) == 1
    writer = MVTecWriter(out)
    assert [row["index"] for row in read_manifest(out)] == [1] == [row["index"] for row in writer.rows]
    assert [row["index"] for row in writer.rejected("bolt", "dent", "r1")] == [0]
    assert manifest_root(out / "bolt") == out == manifest_root(out)


def test_pairs_stay_when_the_folders_beside_the_categories_are_removed(tmp_path: Path) -> None:
    out, heat = tmp_path / "out", Image.fromarray(pixels(200))
    write_mixed(out, 1)
    MVTecWriter(out).write("bolt", "dent", Photo(pixels(9), gray=False), MASK, {"run": "r1"}, heat)
    for folder in ("attention", "labels"):
        shutil.rmtree(out / folder)
        assert len(MVTecWriter(out).rows) == len(find_dataset(out).pairs) == 2


@pytest.mark.parametrize("name", ["rejected", "labels", "attention"])
def test_a_category_cannot_take_the_name_of_a_folder_beside_it(tmp_path: Path, name: str) -> None:
    writer = MVTecWriter(tmp_path / "out")
    photo = Photo(pixels(9), gray=False)
    with pytest.raises(ValueError, match="give the category another name"):
        writer.add_normals(name, [photo])
    with pytest.raises(ValueError, match="give the category another name"):
        writer.write(name, "dent", photo, MASK, {"run": "r1"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("highest", [4095, 65535])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["gray", "colour"])
def test_pairs_and_normals_of_deep_photos_keep_every_bit(
    tmp_path: Path, highest: int, channels: tuple[int, ...], write_image: Write
) -> None:
    random = np.random.default_rng(0)
    samples = random.integers(0, highest, (37, 53, *channels), dtype=np.uint16, endpoint=True)
    samples[0, 0] = highest
    source = tmp_path / "in/a.png"
    source.parent.mkdir()
    source.write_bytes(photo_of(samples).png())
    normal, mask = read_photo(source), np.zeros((37, 53), bool)
    mask[5:20, 30:50] = True
    made = normal.pasted(np.full((37, 53, 3), 51, np.float32), mask, feather=0)
    writer = MVTecWriter(tmp_path / "out")
    other = Photo(normal.pixels, normal.gray)  # looks the same, but has lost its depth
    names = writer.add_normals("bolt", [normal, other, normal])
    assert names == [f"bolt/train/good/{number:05d}.png" for number in (0, 1, 0)]
    row = writer.write("bolt", "dent", made, mask, {"run": "r"})
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / names[0]).samples, samples)
    image = read_photo(tmp_path / "out" / row["image"]).samples
    np.testing.assert_array_equal(image[~mask], samples[~mask])
    assert (image[mask] == highest // 5).all()  # 51 of 255


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
