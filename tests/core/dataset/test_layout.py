"""Finding pairs: by name and never by position, with every fault of a folder told in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalydiffusion_core.dataset.layout import LEAST_TRAINING, Pair, find_dataset, split_pairs
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.gate.checks import ENOUGH

Write = Callable[[Path, np.ndarray], Path]
PICTURE = np.zeros((4, 4), np.uint8)


def pair(stem: str) -> Pair:
    return Pair("thing", "scratch", stem, Path(f"{stem}.png"), Path(f"{stem}_mask.png"))


def test_an_mvtec_tree_gives_its_normals_and_pairs(dataset: Path) -> None:
    found = find_dataset(dataset)
    thing = found.categories["thing"]
    assert list(found.categories) == ["thing"] and thing.defects == ["scratch", "stain"]
    assert [path.name for path in thing.normals] == ["000.png", "001.png", "002.png"]
    assert {name: [p.stem for p in pairs] for name, pairs in found.by_type().items()} == {
        "thing/scratch": ["000", "001", "002", "003"],
        "thing/stain": ["000", "001", "002"],
    }
    for p in found.pairs:
        assert p.image == dataset / "thing/test" / p.defect / f"{p.stem}.png"
        assert p.mask == dataset / "thing/ground_truth" / p.defect / f"{p.stem}_mask.png"


def test_one_category_alone_is_a_dataset_too(dataset: Path) -> None:
    whole, alone = find_dataset(dataset), find_dataset(dataset / "thing")
    assert [(p.defect_type, p.image) for p in alone.pairs] == [(p.defect_type, p.image) for p in whole.pairs]


def test_normal_photos_of_the_test_set_are_kept_apart(dataset: Path, write_image: Write) -> None:
    kept = write_image(dataset / "thing/test/good/000.png", PICTURE)
    thing = find_dataset(dataset, defects=["stain"]).categories["thing"]
    assert [path.parent.parent.name for path in thing.normals] == ["train"] * 3
    assert thing.test_normals == (kept,) and thing.defects == ["stain"]
    shutil.rmtree(dataset / "thing/train")
    assert find_dataset(dataset).categories["thing"].normals == (kept,)  # better than none


def test_plain_folders_pair_by_equal_stems_of_any_format(tmp_path: Path, write_image: Write) -> None:
    root = tmp_path / "mine"
    for name in ("images/a.bmp", "images/b_mask.png", "images/c.jpg", "good/ok.png"):
        write_image(root / name, PICTURE)
    for name in ("masks/c.png", "masks/a_mask.tif", "masks/b_mask.png", "masks/unused.png"):
        write_image(root / name, PICTURE)
    found = find_dataset(root)
    assert [(p.image.name, p.mask.name) for p in found.pairs] == [
        ("a.bmp", "a_mask.tif"),
        ("b_mask.png", "b_mask.png"),
        ("c.jpg", "c.png"),
    ]
    assert list(found.by_type()) == ["mine/defect"]
    assert [path.name for path in found.categories["mine"].normals] == ["ok.png"]


def test_a_missing_mask_is_an_error_and_never_shifts_the_others(dataset: Path) -> None:
    (dataset / "thing/ground_truth/scratch/001_mask.png").unlink()
    (dataset / "thing/test/scratch/003.png").unlink()  # as many masks as images again
    with pytest.raises(ValueError, match=r"scratch/001\.png has no mask.*scratch/001_mask\.png"):
        find_dataset(dataset)


def test_several_masks_for_one_image_are_an_error_that_names_them(dataset: Path, write_image: Write) -> None:
    write_image(dataset / "thing/ground_truth/scratch/001.bmp", PICTURE)
    with pytest.raises(ValueError, match=r"001\.png has several masks.*001_mask\.png, 001\.bmp"):
        find_dataset(dataset)


def test_two_images_of_one_name_are_an_error(dataset: Path, write_image: Write) -> None:
    write_image(dataset / "thing/test/scratch/001.bmp", PICTURE)
    with pytest.raises(ValueError, match=r"001\.bmp and 001\.png share a name"):
        find_dataset(dataset)


def test_an_unknown_category_or_defect_lists_those_there_are(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"no category 'bolt'.*: it has thing\.$"):
        find_dataset(dataset, "bolt")
    with pytest.raises(ValueError, match=r"no defect 'crack'.*: it has scratch, stain\.$"):
        find_dataset(dataset, None, ["stain", "crack"])


def test_asking_for_one_defect_leaves_the_others_out(dataset: Path) -> None:
    found = find_dataset(dataset, "thing", ["stain"])
    assert list(found.by_type()) == ["thing/stain"] and len(found.categories["thing"].normals) == 3


def test_folders_without_a_dataset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="holds no dataset: expected <category>/test/<defect>"):
        find_dataset(tmp_path / "empty")
    for name in ("file", "absent"):
        with pytest.raises(ValueError, match=f"{name} is no folder"):
            find_dataset(tmp_path / name)


def test_what_lacks_to_a_dataset_is_said(tmp_path: Path, write_image: Write) -> None:
    for number in range(3):
        write_image(tmp_path / f"loose/{number}.png", PICTURE)
    write_image(tmp_path / "bare/images/0.png", PICTURE)
    write_image(tmp_path / "open/test/cut/0.png", PICTURE)
    with pytest.raises(ValueError, match="loose holds no dataset: it has 3 photos and no masks; put good"):
        find_dataset(tmp_path / "loose")
    with pytest.raises(ValueError, match="it has a folder images and none named masks; add it, with a mask"):
        find_dataset(tmp_path / "bare")
    with pytest.raises(ValueError, match="it has a folder test and none named ground_truth"):
        find_dataset(tmp_path / "open")


def test_hidden_folders_are_no_defects(dataset: Path, write_image: Write) -> None:
    write_image(dataset / "thing/test/.thumbnails/000.png", PICTURE)
    (dataset / ".cache/train/good").mkdir(parents=True)
    assert find_dataset(dataset).categories["thing"].defects == ["scratch", "stain"]
    assert list(find_dataset(dataset).categories) == ["thing"]


def test_the_fingerprint_follows_every_byte_of_the_pairs_and_no_folder_name(
    dataset: Path, tmp_path: Path
) -> None:
    before = find_dataset(dataset).fingerprint()
    dataset.rename(tmp_path / "moved")
    assert find_dataset(tmp_path / "moved").fingerprint() == before and len(before) == 16
    mask = tmp_path / "moved/thing/ground_truth/stain/002_mask.png"
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert find_dataset(tmp_path / "moved").fingerprint() != before


@given(st.integers(2, 60), st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_lowest_ids_train_at_least_one_and_none_is_in_both(n: int, percent: int, random: object) -> None:
    stems = [f"{i:03d}" for i in range(n)]
    shuffled = [pair(stem) for stem in stems]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    training, held_out = split_pairs(shuffled, percent / 100)
    count = max(1, n * percent // 100)
    assert [p.stem for p in training] == stems[:count] and [p.stem for p in held_out] == stems[count:]


def test_shares_that_are_no_exact_binary_number_lose_no_pair() -> None:
    assert 50 * 0.58 < 29  # in floating point
    assert len(split_pairs([pair(f"{i:03d}") for i in range(50)], 0.58)[0]) == 29


@given(st.integers(2, 400))
def test_a_third_is_rounded_down(n: int) -> None:
    training, held_out = split_pairs([pair(f"{i:04d}") for i in range(n)], 1 / 3)
    assert len(training) == max(1, int(Fraction(n, 3))) and len(training) + len(held_out) == n


@pytest.mark.parametrize(
    ("pairs", "measuring"),
    [(2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (9, 3), (10, 3), (12, 4), (15, 5), (18, 5), (100, 5)],
)
def test_without_a_share_a_third_measures_at_most_five_and_at_least_three_train(
    pairs: int, measuring: int
) -> None:
    training, held_out = split_pairs([pair(f"{i:04d}") for i in range(pairs)])
    assert (len(training), len(held_out)) == (pairs - measuring, measuring)
    assert [p.stem for p in training + held_out] == [f"{i:04d}" for i in range(pairs)]


def test_photos_that_come_later_take_no_training_pair_for_measuring() -> None:
    trained = [len(split_pairs([pair(f"{i:04d}") for i in range(n)])[0]) for n in range(2, 60)]
    assert trained == sorted(trained)


def test_a_split_leaves_what_the_gate_needs_to_tell_how_much_pairs_differ() -> None:
    assert LEAST_TRAINING == ENOUGH


def test_ids_count_as_numbers() -> None:
    training, held_out = split_pairs([pair(stem) for stem in ("10", "9", "1", "11", "2", "100")], 0.5)
    assert [p.stem for p in training + held_out] == ["1", "2", "9", "10", "11", "100"]
    mixed, _ = split_pairs([pair(stem) for stem in ("b2", "a10", "7", "a9", "x")], 1.0)
    assert [p.stem for p in mixed] == ["7", "a9", "a10", "b2", "x"]


@pytest.mark.parametrize("share", [None, 1 / 3, 1.0])
def test_one_sample_alone_trains(share: float | None) -> None:
    assert split_pairs([pair("000")], share) == ([pair("000")], [])


def test_the_real_photos_pair_up(shared_data: Path) -> None:
    for root, category, count in (("mvtec", "leather", 25), ("mvtec", "screw", 45), ("deeppcb", "pcb", 240)):
        pairs = find_dataset(shared_data / root, category).pairs
        assert len(pairs) == count
        assert all(
            p.mask.stem in (p.stem, f"{p.stem}_mask") and p.mask.parent.name == p.defect for p in pairs
        )
        photo = read_photo(pairs[-1].image)
        assert 0 < read_mask(pairs[-1].mask, photo.size).mean() < 0.3
        assert photo.gray is (category != "leather")
