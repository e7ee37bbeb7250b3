"""Guards export/mvtec.py: MVTec's layout and nothing else, appended to, never overwritten."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_pairs import MASK, pixels, tree, write_mixed, write_pairs

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import Photo, file_hash, photo_of, read_photo
from anomalydiffusion_core.export.mvtec import MVTecWriter, check_output, manifest_root, read_manifest
from anomalydiffusion_core.export.writer import ExportPair

Write = Callable[[Path, np.ndarray], Path]


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
    row = writer.write(ExportPair("bolt", Photo(random, gray=False), {"dent": MASK}, {"run": "r"}))
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


@pytest.mark.parametrize("key", ["image", "mask", "normal", "labels", "attention", "category", "defect"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../secret.png", "C:\\x", "..\\x", ""])
def test_a_manifest_that_leads_out_of_its_dataset_is_refused_before_a_file_is_touched(
    tmp_path: Path, key: str, name: str
) -> None:
    out, secret = tmp_path / "out", tmp_path / "secret.png"
    (row,) = write_pairs(out, 1)
    secret.write_bytes(b"secret")
    row |= {key: name, f"{key}_sha256": file_hash(secret)}  # by which a half-done pair would be taken back
    (out / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    before = tree(tmp_path)
    for use in (read_manifest, MVTecWriter):
        with pytest.raises(ValueError, match=rf"line 1 has .* as its {key}, which leads out of the dataset"):
            use(out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("index", "x"), ("index", True), ("fill", "high"), ("scores", "x"), ("classes", ["dent"])],
)
def test_a_manifest_with_values_that_nothing_wrote_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    (row,) = write_pairs(tmp_path, 1)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({**row, key: value}) + "\n")
    with pytest.raises(ValueError, match=f"line 1 has .* as its {key}, which nothing wrote: restore the"):
        read_manifest(tmp_path)


def test_labels_need_the_classes_that_they_stand_for(tmp_path: Path) -> None:
    (row,) = write_mixed(tmp_path, 1)
    for classes in ({}, {"classes": {"x": "dent"}}):
        plain = {key: value for key, value in row.items() if key != "classes"}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(plain | classes) + "\n")
        with pytest.raises(ValueError, match="line 1 has no classes for its labels"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        read_manifest(tmp_path)


def test_opening_makes_nothing_and_an_empty_folder_serves(tmp_path: Path) -> None:
    assert MVTecWriter(tmp_path / "new").rejected("bolt", "dent", "r1") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    write_pairs(tmp_path / "empty", 1)
    assert len(read_manifest(tmp_path / "empty")) == 1


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


def test_rejected_pairs_lie_apart_and_no_reader_of_the_dataset_finds_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    photo, heat = Photo(pixels(9), gray=False), Image.fromarray(pixels(200))
    row = {"run": "r1", "index": 0, "rejected": "unfilled"}
    MVTecWriter(out).reject(ExportPair("bolt", photo, {"dent": MASK}, row))  # before any pair is accepted
    check_output(out)
    with pytest.raises(ValueError, match="holds no dataset"):
        find_dataset(out)
    accepted = MVTecWriter(out).write(
        ExportPair("bolt", photo, {"dent": MASK}, {"run": "r1", "index": 1}), heat
    )
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
    MVTecWriter(out).write(
        ExportPair("bolt", Photo(pixels(9), gray=False), {"dent": MASK}, {"run": "r1"}), heat
    )
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
        writer.write(ExportPair(name, photo, {"dent": MASK}, {"run": "r1"}))
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
    row = writer.write(ExportPair("bolt", made, {"dent": mask}, {"run": "r"}))
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / names[0]).samples, samples)
    image = read_photo(tmp_path / "out" / row["image"]).samples
    np.testing.assert_array_equal(image[~mask], samples[~mask])
    assert (image[mask] == highest // 5).all()  # 51 of 255
