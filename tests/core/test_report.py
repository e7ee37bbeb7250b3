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

from anomalydiffusion_core.contact_sheet import THUMBNAIL
from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.embeddings import AnomalyModel
from anomalydiffusion_core.export.mvtec import MVTecWriter
from anomalydiffusion_core.report import COLUMNS, write_report

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
        writer.write("bolt", defect, Photo(pixels, gray=False), MASK, settings(fill))
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
        writer.write("bolt", "dent", Photo(NORMAL, gray=False), MASK, settings(1.0))
    figures = write_report(generated, generated / "report.html")
    assert figures["pairs"] == 3 + COLUMNS + 1
    assert pictures((generated / "report.html").read_text())[0].width == COLUMNS * (THUMBNAIL + 2)


def test_a_model_adds_its_loss_curves_and_what_was_held_out(generated: Path, model: AnomalyModel) -> None:
    page = generated / "report.html"
    write_report(generated, page, model)
    assert len(pictures(page.read_text())) == 3 and "No pairs were held out" in page.read_text()
    model.training["improvement"] = {
        "before": 0.5,
        "after": 0.4,
        "relative": -0.2,
        "low": -0.25,
        "high": -0.15,
    }
    write_report(generated, page, model)
    assert re.search(r"<b>-20\.0 %</b>\s+\(95 % interval -25\.0 to -15\.0 %\)", page.read_text())


def test_names_are_escaped(generated: Path) -> None:
    writer = MVTecWriter(generated)
    writer.write("bolt", "<b>bad", Photo(NORMAL, gray=False), MASK, settings(1.0))
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
    writer.write("bolt", "dent", Photo(NORMAL, gray=False), MASK, {"run": "by hand"})
    with pytest.raises(ValueError, match="has a row without normal, fill"):
        write_report(tmp_path / "foreign", page)
    assert not page.exists() and not list(tmp_path.glob("*.tmp"))
