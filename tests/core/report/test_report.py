"""The report: one self-contained page whose figures follow from the files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.dataset.photos import Photo, photo_of
from anomalydiffusion_core.export.mvtec import MVTecWriter
from anomalydiffusion_core.export.writer import ExportPair
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.report.contact_sheet import CLOSE_UP, THUMBNAIL, close_up
from anomalydiffusion_core.report.report import ATTENTION_SHOWN, COLUMNS, write_report

Write = Callable[[Path, np.ndarray], Path]
NORMAL = np.full((40, 40, 3), 100, np.uint8)
MASK = np.zeros((40, 40), bool)
MASK[10:20, 10:30] = True  # an eighth of the picture


def settings(fill: float) -> dict[str, Any]:
    return {
        "run": "r1",
        "normal": "bolt/train/good/00000.png",
        "fill": fill,
        "noise": 4.0,
        "config": {"seed": 3},
        "base_family": "fake",
        "base_weights": "0123456789abcdef",
        "artifact_sha256": "f" * 64,
    }


@pytest.fixture
def generated(tmp_path: Path, write_image: Write) -> Path:
    """Two dents of fill 0.5 and 0.9, and one stain of fill 0.4 with two pixels changed outside its mask."""
    root = tmp_path / "generated"
    defective = NORMAL.copy()
    defective[MASK] = (180, 40, 40)
    leaking = defective.copy()
    leaking[0, 0] = leaking[39, 5] = 101
    writer = MVTecWriter(root)
    writer.add_normals("bolt", [Photo(NORMAL, gray=False)])
    for defect, pixels, fill in (
        ("dent", defective, 0.5),
        ("dent", defective, 0.9),
        ("stain", leaking, 0.4),
    ):
        writer.write(ExportPair("bolt", Photo(pixels, gray=False), {defect: MASK}, settings(fill)))
    return root


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_figures_follow_from_the_manifest_and_the_pixels(generated: Path, tmp_path: Path) -> None:
    figures = write_report(generated, tmp_path / "new" / "page.html")
    assert figures["pairs"] == 3 and figures["changed_outside"] == 2
    assert figures["mean_fill"] == pytest.approx(0.6)
    assert figures["by_type"] == {
        "bolt/dent": {"pairs": 2, "mean_fill": 0.7},
        "bolt/stain": {"pairs": 1, "mean_fill": 0.4},
    }
    page = (tmp_path / "new" / "page.html").read_text()
    for text in (
        "<b>3</b>accepted pairs",
        "<b>2</b>pixels changed",
        "12.5%",
        "0.50",
        "4.0 grey levels",
        "fake</code>",
        "0123456789abcdef</code>",
    ):
        assert text in page


def test_the_page_needs_nothing_but_itself(generated: Path) -> None:
    write_report(generated, generated / "report.html")
    page = (generated / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page and "<script" not in page


def test_a_sheet_shows_normal_mask_result_and_change_of_each_pair(generated: Path) -> None:
    write_report(generated, generated / "report.html")
    dents, stains = pictures((generated / "report.html").read_text())
    tile = THUMBNAIL + 2
    assert dents.size == (2 * tile, 4 * tile) and stains.size == (tile, 4 * tile)
    at = (tile // 2, int(tile * 0.375))  # inside the mask
    colours = [dents.getpixel((at[0], at[1] + row * tile)) for row in range(4)]
    assert colours == [(100, 100, 100), (255, 255, 255), (180, 40, 40), (160, 160, 160)]


def test_sheets_show_the_first_pairs_and_figures_count_all(generated: Path) -> None:
    writer = MVTecWriter(generated)
    for _ in range(COLUMNS + 1):
        writer.write(ExportPair("bolt", Photo(NORMAL, gray=False), {"dent": MASK}, settings(1.0)))
    figures = write_report(generated, generated / "report.html")
    assert figures["pairs"] == 3 + COLUMNS + 1
    assert pictures((generated / "report.html").read_text())[0].width == COLUMNS * (THUMBNAIL + 2)


def test_a_model_adds_its_loss_curves_and_what_was_held_out(generated: Path, learned: Learned) -> None:
    page = generated / "report.html"
    write_report(generated, page, learned)
    assert len(pictures(page.read_text())) == 3 and "No pairs were held out" in page.read_text()
    learned.training["improvement"] = {
        "before": 0.5,
        "after": 0.4,
        "relative": -0.2,
        "low": -0.25,
        "high": -0.15,
    }
    write_report(generated, page, learned)
    assert re.search(r"<b>-20\.0 %</b>\s+\(95 % interval -25\.0 to -15\.0 %\)", page.read_text())


def test_names_are_escaped(generated: Path) -> None:
    writer = MVTecWriter(generated)
    writer.write(ExportPair("bolt", Photo(NORMAL, gray=False), {"<b>bad": MASK}, settings(1.0)))
    write_report(generated, generated / "report.html")
    page = (generated / "report.html").read_text()
    assert "bolt/&lt;b&gt;bad" in page and "<b>bad" not in page


def test_what_cannot_be_reported_is_told_in_one_sentence(generated: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="has no generated pairs"):
            write_report(root, page)
    image = generated / "bolt/test/dent/00001.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"00001\.png cannot be read"):
        write_report(generated, page)
    image.unlink()
    with pytest.raises(ValueError, match=r"00001\.png does not exist"):
        write_report(generated, page)
    writer = MVTecWriter(tmp_path / "foreign")
    writer.write(ExportPair("bolt", Photo(NORMAL, gray=False), {"dent": MASK}, {"run": "by hand"}))
    with pytest.raises(ValueError, match="has a row without normal, fill"):
        write_report(tmp_path / "foreign", page)
    assert not page.exists() and not list(tmp_path.glob("*.tmp"))


def gate(fill: float, contrast: float) -> dict[str, Any]:
    scores = {"fill": fill, "contrast": contrast}
    return {**settings(fill), "scores": scores, "thresholds": {"fill": 0.25}}


def cells(page: str, first: str) -> list[str]:
    """The texts of the first table row with this first cell, but that one."""
    row = re.search(rf"<tr><td>{first}</td>(.*?)</tr>", page, re.S)
    assert row
    return [
        " ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall("<td.*?</td>", row[1], re.S)
    ]


def test_the_gate_is_told_by_type_with_reasons_and_mean_scores(generated: Path) -> None:
    writer = MVTecWriter(generated)
    photo = Photo(NORMAL, gray=False)
    for fill, contrast in ((0.5, 2.0), (0.75, 5.0)):
        writer.write(ExportPair("bolt", photo, {"dent": MASK}, gate(fill, contrast)))
    for defect, reason in (("dent", "unfilled"), ("dent", "seam"), ("dent", "seam"), ("nick", "duplicate")):
        writer.reject(ExportPair("bolt", photo, {defect: MASK}, {**gate(0.1, 1.0), "rejected": reason}))
    figures = write_report(generated, generated / "report.html")
    assert figures["pairs"] == 5 and figures["rejected"] == 4
    page = (generated / "report.html").read_text()
    assert "<b>4</b>rejected pairs" in page
    judged, _, scores = page.split("<h2>Quality gate</h2>")[1].partition("Mean scores")
    assert cells(judged, "bolt/dent") == ["4", "3", "2 seam, 1 unfilled"]
    assert cells(judged, "bolt/stain") == ["1", "0", ""]
    assert cells(judged, "bolt/nick") == ["0", "1", "1 duplicate"]
    assert cells(scores, "bolt/dent") == ["0.62 0.25", "3.50"]  # means of accepted pairs that have scores
    assert "bolt/stain</td>" not in scores.partition("</table>")[0]


def test_without_a_gate_the_page_has_nothing_on_it(generated: Path) -> None:
    write_report(generated, generated / "report.html")
    page = (generated / "report.html").read_text()
    for heading in ("Quality gate", "Mean scores", "Rejected", "Attention"):
        assert heading not in page


def test_each_rejected_pair_is_shown_with_its_reason(generated: Path) -> None:
    writer = MVTecWriter(generated)
    red = NORMAL.copy()
    red[MASK] = (240, 10, 10)
    for index in range(COLUMNS + 2):
        row = {**settings(0.1), "rejected": f"reason <{index}>"}
        writer.reject(ExportPair("bolt", Photo(red, gray=False), {"dent": MASK}, row))
    write_report(generated, generated / "report.html")
    page = (generated / "report.html").read_text()
    captions = re.findall(r"<figcaption>(reason .*?)</figcaption>", page)
    assert captions == [f"reason &lt;{index}&gt;" for index in range(COLUMNS)]
    assert f"the first {COLUMNS} shown" in page
    tile = THUMBNAIL + 2
    shown = pictures(page.split("<h2>Rejected pairs</h2>")[1])
    assert len(shown) == COLUMNS and shown[0].size == (tile, 4 * tile)
    assert shown[0].getpixel((tile // 2, int(tile * 2.375))) == (240, 10, 10)


def test_attention_is_shown_for_the_first_pairs_that_have_it(generated: Path) -> None:
    writer = MVTecWriter(generated)
    for shade in range(ATTENTION_SHOWN + 2):
        heat = Image.fromarray(np.full((10, 30, 3), shade, np.uint8))
        writer.write(ExportPair("bolt", Photo(NORMAL, gray=False), {"dent": MASK}, settings(1.0)), heat)
    write_report(generated, generated / "report.html")
    part = (generated / "report.html").read_text().split("<h2>Attention</h2>")[1]
    shown = pictures(part)
    assert [picture.size for picture in shown] == [(30, 10)] * ATTENTION_SHOWN
    assert [picture.getpixel((0, 0)) for picture in shown] == [(n, n, n) for n in range(ATTENTION_SHOWN)]
    assert "<b>bolt/dent</b>" in part and "<b>bolt/stain</b>" not in part


@pytest.mark.parametrize("highest", [4095, 65535])
def test_a_change_outside_of_a_single_step_of_16_bits_counts(tmp_path: Path, highest: int) -> None:
    samples = np.full((37, 53), 1000, np.uint16)
    samples[0, 0] = highest
    mask = np.zeros((37, 53), bool)
    mask[4:9, 4:9] = True
    leaking = photo_of(samples).pasted(np.zeros((37, 53, 3), np.float32), mask).samples.copy()
    leaking[30, 30:33] += 1
    writer = MVTecWriter(tmp_path)
    row = {**settings(1.0), "normal": writer.add_normals("bolt", [photo_of(samples)])[0]}
    writer.write(ExportPair("bolt", photo_of(leaking), {"dent": mask}, row))
    assert write_report(tmp_path, tmp_path / "report.html")["changed_outside"] == 3


def test_a_defect_that_covers_all_highlights_does_not_change_how_bright_its_photo_is_shown(
    tmp_path: Path,
) -> None:
    samples = np.full((40, 40), 4000, np.uint16)
    samples[MASK] = 60000
    made = photo_of(samples).pasted(np.zeros((40, 40, 3), np.float32), MASK, feather=0)
    assert made.samples.max() == 4000
    writer = MVTecWriter(tmp_path)
    row = {**settings(1.0), "normal": writer.add_normals("bolt", [photo_of(samples)])[0]}
    writer.write(ExportPair("bolt", made, {"dent": MASK}, row))
    write_report(tmp_path, tmp_path / "report.html")
    sheet = pictures((tmp_path / "report.html").read_text())[0]
    tile = THUMBNAIL + 2
    outside = [sheet.getpixel((tile // 2, int(tile * (row + 0.9)))) for row in range(4)]
    assert outside == [(15, 15, 15), (0, 0, 0), (15, 15, 15), (0, 0, 0)]


def test_a_large_photo_is_shown_around_its_defect(tmp_path: Path) -> None:
    side = 8 * THUMBNAIL
    mask = np.zeros((side, side + 100), bool)
    mask[700:710, 20:50] = True
    pixels = np.full((*mask.shape, 3), 100, np.uint8)
    defective = pixels.copy()
    defective[mask] = (250, 0, 0)
    writer = MVTecWriter(tmp_path)
    row = {**settings(1.0), "normal": writer.add_normals("bolt", [Photo(pixels, gray=False)])[0]}
    writer.write(ExportPair("bolt", Photo(defective, gray=False), {"dent": mask}, row))
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"larger than {CLOSE_UP} px" in page
    sheet = np.asarray(pictures(page)[0])
    tile = THUMBNAIL + 2
    shown = sheet[tile + 1 : 2 * tile - 1, 1:-1, 0] > 127
    # a window of THUMBNAIL pixels at full resolution, its middle in row 704, its left edge the photo's
    top = 704 - THUMBNAIL // 2
    np.testing.assert_array_equal(shown, mask[top : top + THUMBNAIL, :THUMBNAIL])
    assert (sheet[2 * tile + 1 : 3 * tile - 1, 1:-1][shown] == (250, 0, 0)).all()


def test_close_ups_grow_with_the_defect_and_show_a_marked_place_of_one_that_is_too_long() -> None:
    mask = np.zeros((900, 1200), bool)
    mask[400:500, 600:700] = True
    assert close_up(mask) == np.s_[349:549, 549:749]
    ring = np.zeros((2000, 3000), bool)
    ring[200, 100:2900] = ring[1800, 100:2900] = True
    ring[200:1801, 100] = ring[200:1801, 2899] = True
    rows, columns = close_up(ring)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (CLOSE_UP, CLOSE_UP)
    assert ring[rows, columns].any()


def test_a_photo_that_is_not_square_keeps_its_shape(tmp_path: Path) -> None:
    pixels, mask = np.full((20, 40, 3), 100, np.uint8), np.zeros((20, 40), bool)
    mask[5:10, 5:10] = True
    writer = MVTecWriter(tmp_path)
    row = {**settings(1.0), "normal": writer.add_normals("bolt", [Photo(pixels, gray=False)])[0]}
    writer.write(ExportPair("bolt", Photo(pixels, gray=False), {"dent": mask}, row))
    write_report(tmp_path, tmp_path / "report.html")
    tile = np.asarray(pictures((tmp_path / "report.html").read_text())[0])[1 : THUMBNAIL + 1, 1:-1, 0]
    quarter = THUMBNAIL // 4
    assert (tile[quarter:-quarter] == 100).all() and not tile[:quarter].any() and not tile[-quarter:].any()
