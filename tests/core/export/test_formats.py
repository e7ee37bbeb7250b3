"""Guards export/formats.py: every writer of the table, and the export of a dataset into each format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_pairs import MASK, pixels, tree, write_mixed, write_pairs

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.export.formats import FORMATS, export_dataset
from anomalydiffusion_core.export.mvtec import MVTecWriter, read_manifest, written_pair
from anomalydiffusion_core.export.writer import ExportPair

OTHER = np.zeros((6, 9), bool)
OTHER[0:2, 0:2] = True
NORMAL = Photo(pixels(200), gray=False)
PAIRS = [
    ExportPair("bolt", Photo(pixels(10), gray=False), {"dent": MASK}, {"run": "r1", "index": 0}, NORMAL),
    ExportPair(
        "bolt", Photo(pixels(20), gray=True), {"dent": MASK, "crack": OTHER}, {"run": "r1", "index": 1}
    ),
]


def read_mvtec(root: Path) -> list[ExportPair]:
    return [written_pair(root, row) for row in read_manifest(root)]


READERS: dict[str, Callable[[Path], list[ExportPair]]] = {"mvtec": read_mvtec}  # what a format holds


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_the_pairs_that_were_written(tmp_path: Path, name: str) -> None:
    writer = FORMATS[name](tmp_path / "out")
    for pair in PAIRS:
        writer.write(pair)
    writer.close()
    for wrote, read in zip(PAIRS, READERS[name](tmp_path / "out"), strict=True):
        assert (read.category, read.defect) == (wrote.category, wrote.defect)
        np.testing.assert_array_equal(read.photo.pixels, wrote.photo.pixels)
        assert list(read.masks) == list(wrote.masks)
        for defect, mask in wrote.masks.items():
            np.testing.assert_array_equal(read.masks[defect], mask)


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_is_exported_to_every_format_and_stays_as_it_is(tmp_path: Path, name: str) -> None:
    root = tmp_path / "made"
    write_pairs(root, 2)
    write_mixed(root, 1)
    before, stages = {path: (root / path).read_bytes() for path in tree(root)}, []
    count = export_dataset(root, name, tmp_path / "out", lambda *stage: stages.append(stage))
    assert count == 3 and stages == [(f"{name} export", number, 3, "") for number in (1, 2, 3)]
    for wrote, read in zip(read_mvtec(root), READERS[name](tmp_path / "out"), strict=True):
        assert read.defect == wrote.defect
        np.testing.assert_array_equal(read.photo.pixels, wrote.photo.pixels)
    assert {path: (root / path).read_bytes() for path in tree(root)} == before


def test_an_export_to_mvtec_holds_the_same_files_and_the_normal_photos_that_pairs_were_made_on(
    tmp_path: Path,
) -> None:
    root, out = tmp_path / "made", tmp_path / "out"
    writer = MVTecWriter(root)
    normals = writer.add_normals("bolt", [Photo(pixels(shade), gray=False) for shade in (1, 2, 3)])
    for shade, normal in ((10, normals[2]), (20, normals[0]), (30, normals[2])):
        row = {"run": "r1", "index": shade, "normal": normal, "normal_sha256": "0" * 64}
        writer.write(ExportPair("bolt", Photo(pixels(shade), gray=False), {"dent": MASK}, row))
    export_dataset(root, "mvtec", out)
    assert [path for path in tree(out) if "good" in path] == [
        "bolt/train/good/00000.png",
        "bolt/train/good/00001.png",
    ]
    assert len(find_dataset(out).pairs) == 3
    for old, new in zip(read_manifest(root), read_manifest(out), strict=True):
        assert (out / new["normal"]).read_bytes() == (root / old["normal"]).read_bytes()
        assert {**new, "normal": old["normal"]} == old


def test_a_format_added_to_the_table_is_exported_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cards:
        """A text file with a line for each pair."""

        def __init__(self, folder: Path) -> None:
            self.folder, self.lines = folder, list[str]()

        def write(self, pair: ExportPair) -> None:
            self.lines.append(f"{pair.category}/{pair.defect} {sum(m.sum() for m in pair.masks.values())}")

        def close(self) -> None:
            self.folder.mkdir()
            (self.folder / "cards.txt").write_text("\n".join(self.lines))

    monkeypatch.setitem(FORMATS, "cards", Cards)
    write_pairs(tmp_path / "made", 1)
    write_mixed(tmp_path / "made", 1)
    assert export_dataset(tmp_path / "made", "cards", tmp_path / "out") == 2
    # the crack's six pixels hide one of the dent's eight
    assert (tmp_path / "out/cards.txt").read_text() == "bolt/dent 8\nbolt/dent+crack 13"


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root = tmp_path / "made"
    write_pairs(root, 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "hollow").mkdir()
    before = tree(tmp_path)
    cases: list[tuple[Any, ...]] = [
        (root, "gan", tmp_path / "out", "no format 'gan': choose from mvtec"),
        (tmp_path / "hollow", "mvtec", tmp_path / "out", "hollow has no generated pairs"),
        (root, "mvtec", tmp_path / "full", "full exists already: choose a new folder"),
        (root, "mvtec", root / "out", "lies inside the dataset"),
        (root, "mvtec", root, "lies inside the dataset"),
    ]
    for *arguments, text in cases:
        with pytest.raises(ValueError, match=text):
            export_dataset(*arguments)
    assert tree(tmp_path) == before


def test_a_mask_of_another_size_than_its_photo_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of dent is 9x6, its photo 12x10: resize the mask or choose"):
        ExportPair("bolt", Photo(np.zeros((10, 12, 3), np.uint8), gray=False), {"dent": MASK}, {})


@pytest.mark.parametrize(("key", "name"), [("category", "../up"), ("defect", ".."), ("defect", "a/b")])
def test_names_in_a_manifest_that_lead_out_of_the_folder_are_refused(
    tmp_path: Path, key: str, name: str
) -> None:
    (row,) = write_pairs(tmp_path / "made", 1)
    (tmp_path / "made/manifest.jsonl").write_text(json.dumps({**row, key: name}) + "\n")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=f"line 1 has {name!r} as its {key}, which "):
        export_dataset(tmp_path / "made", "mvtec", tmp_path / "out")
    assert tree(tmp_path) == before


def test_an_export_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    made, out = tmp_path / "made", tmp_path / "to" / "out"
    row = write_pairs(made, 3)[1]
    (made / row["image"]).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        export_dataset(made, "mvtec", out)
    assert list((tmp_path / "to").iterdir()) == []
    out.mkdir()  # an empty folder serves
    shutil.copy(made / write_pairs(made, 1)[0]["image"], made / row["image"])
    assert export_dataset(made, "mvtec", out) == 4 and len(read_manifest(out)) == 4
