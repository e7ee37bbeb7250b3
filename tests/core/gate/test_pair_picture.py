"""gate/pair_picture.py and gate/lettering.py: a pair in one picture, with text that can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.gate import lettering
from anomalydiffusion_core.gate.lettering import GOOD, STOPPED, wrapped
from anomalydiffusion_core.gate.pair_picture import OUTLINE, WIDTH, close_up, pair_picture


def photos(height: int, width: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A gray photo, and the same with a white defect."""
    normal = np.full((height, width, 3), 90, np.uint8)
    result = normal.copy()
    result[mask] = 255
    return normal, result


def marked(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


@pytest.mark.parametrize(("height", "width"), [(128, 128), (300, 700), (700, 300), (37, 1024), (8, 8)])
def test_a_pair_of_any_size_becomes_a_picture_of_one_width(height: int, width: int) -> None:
    mask = marked(height, width, slice(2, 6), slice(3, 7))
    picture = pair_picture(*photos(height, width, mask), mask, "pair 0")
    assert picture.width == WIDTH and picture.mode == "RGB" and 100 < picture.height < 400
    assert count(picture, OUTLINE) > 50


def test_the_outline_lies_outside_the_defect_and_the_close_up_enlarges_it() -> None:
    mask = marked(512, 512, slice(200, 208), slice(100, 108))
    picture = pair_picture(*photos(512, 512, mask), mask, "pair 0")
    third = np.asarray(picture)[:, -WIDTH // 3 :]
    line = (third == OUTLINE).all(-1)
    rows, columns = np.flatnonzero(line.any(1)), np.flatnonzero(line.any(0))
    inside = third[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]
    assert not (inside == OUTLINE).all(-1).any()
    # 8 of the 32 pixels shown are a fourth of the tile
    assert len(inside) == pytest.approx((WIDTH / 3) / 4, abs=6) and inside.mean() > 230


def test_a_close_up_is_a_square_around_the_mask_that_stays_within_the_photo() -> None:
    assert close_up(marked(512, 512, slice(100, 200), slice(150, 170))) == np.s_[70:230, 80:240]
    assert close_up(marked(512, 512, slice(0, 4), slice(508, 512))) == np.s_[0:32, 480:512]
    assert close_up(marked(40, 300, slice(0, 40), slice(10, 210))) == np.s_[0:40, 0:300]
    assert close_up(np.zeros((20, 30), bool)) == np.s_[:, :]


def test_the_frame_in_the_normal_photo_says_where_the_close_up_lies() -> None:
    mask = marked(512, 512, slice(400, 420), slice(50, 70))
    far, near = (
        np.asarray(pair_picture(*photos(512, 512, m), m, ""))[:, : WIDTH // 3]
        for m in (mask, marked(512, 512, slice(50, 70), slice(400, 420)))
    )
    differs = (far != near).any(-1)
    middle = far.shape[0] // 2
    assert differs[middle:, : WIDTH // 6].any() and differs[:middle, WIDTH // 6 :].any()
    assert not differs[:middle, : WIDTH // 6].any()


def test_titles_tell_good_from_stopped_by_colour_and_long_sentences_make_the_picture_higher() -> None:
    mask = marked(64, 64, slice(20, 30), slice(20, 30))
    good = pair_picture(*photos(64, 64, mask), mask, "accepted")
    bad = pair_picture(*photos(64, 64, mask), mask, "left out", sentences=["word " * 100], good=False)
    assert count(good, GOOD) > 20 and not count(good, STOPPED)
    assert count(bad, STOPPED) > 20 and not count(bad, GOOD)
    assert bad.height > good.height + 150


def test_no_line_is_wider_than_the_picture_and_no_word_is_lost() -> None:
    text = "a sentence of some length " * 5 + "x" * 300 + " end"
    lines = wrapped(text, 400, 20)
    assert all(lines.font.getlength(line) <= 400 for line in lines.lines) and len(lines.lines) > 5
    assert "".join("".join(lines.lines).split()) == "".join(text.split())
    assert wrapped("one\ntwo", 400, 20).lines == ["one", "two"] and wrapped("", 400, 20).lines == [""]
    assert lines.height == len(lines.lines) * 27


def drawn(text: str, missing: str = lettering.NOWHERE) -> tuple[list[str], bool]:
    """The lines, and whether the font lacks one of their letters."""
    lines = wrapped(text, 700, 20)
    letters = set("".join(lines.lines)) - {" "}
    return lines.lines, any(shape(lines.font, x) == shape(lines.font, missing) for x in letters)


def shape(font: Any, letter: str) -> list[int]:
    return np.array(font.getmask(letter)).tolist()


@pytest.mark.parametrize("text", ["Prägung/Lötstörung", "rayé, fêlé", "皮革/切口", "smørekop Łódź ß"])
def test_no_letter_is_drawn_as_a_box(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not drawn(text)[1]
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())  # as on a machine without fonts
    lines, missing = drawn(text)
    assert not missing and len(lines[0]) >= len(text)


def test_without_fonts_accents_go_and_what_remains_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lettering, "SYSTEM_FONTS", ())
    assert wrapped("Lötstörung ß 皮", 700, 20).lines == ["Lotstorung ss ?"]
