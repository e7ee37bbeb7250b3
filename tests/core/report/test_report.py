"""Guards report/report.py and report/pairs.py: one self-contained page whose figures and pictures follow from
the files, and from nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
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
from anomalydiffusion_core.report import pairs
from anomalydiffusion_core.report.pairs import ATTENTION_SHOWN
from anomalydiffusion_core.report.report import write_report
from anomalydiffusion_core.report.shown_pair import GAP, OUTLINE, TILE

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


def block(page: str, name: str) -> Any:
    """What an inert element of the page holds."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def entries(page: str) -> list[dict[str, Any]]:
    return block(page, "index")["pairs"]


def picture(address: str) -> Image.Image:
    kind, _, text = address.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    return Image.open(io.BytesIO(base64.b64decode(text)))


def reported(root: Path, learned: Learned | None = None) -> str:
    write_report(root, root / "report.html", learned)
    return (root / "report.html").read_text()


def images(page: str) -> list[Image.Image]:
    return [picture(address) for address in re.findall(r'src="([^"]+)"', page)]


def test_figures_follow_from_the_manifest_and_the_pixels(generated: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    figures = write_report(
        generated, tmp_path / "new" / "page.html", on_stage=lambda *stage: told.append(stage[:3])
    )
    assert told == [("report", 1, 3), ("report", 2, 3), ("report", 3, 3)]
    assert figures["pairs"] == 3 and figures["changed_outside"] == 2
    assert figures["mean_fill"] == pytest.approx(0.6)
    assert figures["by_type"] == {
        "bolt/dent": {"pairs": 2, "mean_fill": 0.7, "precision": 1.0, "boundary_iou": 1.0},
        "bolt/stain": {"pairs": 1, "mean_fill": 0.4, "precision": 1.0, "boundary_iou": 1.0},
    }
    page = (tmp_path / "new" / "page.html").read_text()
    for text in (
        "<b>3</b>accepted pairs",
        "<b>2</b>pixels changed",
        "12.5%",
        "0.50",
        "(4.0 in the mean)",
        "of the family fake",
        "0123456789abcdef</code>",
    ):
        assert text in page
    assert block(page, "index")["files"] == "../generated/"


def test_the_page_needs_nothing_but_itself_and_lets_nothing_else_run(generated: Path) -> None:
    page = reported(generated)
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    (style,), (script,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S) for tag in ("style", "script"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for rule, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    others = re.findall(r"<script([^>]+)>", page)
    assert others and all(text.startswith(' type="application/json"') for text in others)
    assert not re.search(r'\son\w+="|style="', page)


def test_every_pair_is_listed_with_its_file_type_and_scores(generated: Path) -> None:
    MVTecWriter(generated).reject(
        ExportPair(
            "bolt", Photo(NORMAL, gray=False), {"dent": MASK}, {**gate(0.1, 1.0), "rejected": "seam, faint"}
        )
    )
    listed = entries(reported(generated))
    assert [(entry["file"], entry["type"], entry["accepted"], entry["why"]) for entry in listed] == [
        ("bolt/test/dent/00000.png", "bolt/dent", True, None),
        ("bolt/test/dent/00001.png", "bolt/dent", True, None),
        ("bolt/test/stain/00000.png", "bolt/stain", True, None),
        ("rejected/bolt/test/dent/00000.png", "bolt/dent", False, "seam, faint"),
    ]
    assert [entry["scores"] for entry in listed] == [
        {"fill": 0.5}, {"fill": 0.9}, {"fill": 0.4}, {"fill": 0.1, "contrast": 1.0},
    ]  # fmt: skip
    assert listed[3]["limits"] == {"fill": 0.25} and listed[0]["size"] == "40 x 40"
    assert "The mask covers 12 % of the photo." in listed[0]["said"]


def test_a_close_up_shows_normal_outline_and_result_side_by_side(generated: Path) -> None:
    shown = block(reported(generated), "pictures-0")
    close = np.asarray(picture(shown["close"])).astype(int)
    assert close.shape == (TILE, 3 * TILE + 2 * GAP, 3)
    normal, outlined, result = (close[:, at : at + TILE] for at in range(0, close.shape[1], TILE + GAP))
    # the photo has 40 pixels, so that the mask's rows 10 to 20 and columns 10 to 30 are 5.2 times as large
    inside, corner = np.s_[60:95, 60:145], np.s_[5:40, 5:40]
    assert np.abs(normal - 100).max() < 12
    assert np.abs(result[inside] - (180, 40, 40)).max() < 12 and np.abs(result[corner] - 100).max() < 12
    assert np.abs(outlined[inside] - (180, 40, 40)).max() < 25  # the mark itself is left as it is
    ring = np.abs(outlined - OUTLINE).max(-1) < 60
    rows, columns = np.flatnonzero(ring.any(1)), np.flatnonzero(ring.any(0))
    assert rows[[0, -1]] == pytest.approx([50, 105], abs=2) and columns[[0, -1]] == pytest.approx(
        [50, 157], abs=2
    )
    assert shown["detail"] is None and picture(shown["whole"]).size == (40, 40)


def test_whole_photos_stay_out_of_a_page_of_many_pairs(
    generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MOST_WHOLE", 2)
    page = reported(generated)
    assert [block(page, f"pictures-{number}")["whole"] for number in range(3)] == [None] * 3
    assert all(block(page, f"pictures-{number}")["close"] for number in range(3))


def test_a_model_adds_its_loss_curves_and_what_was_held_out(generated: Path, learned: Learned) -> None:
    page = reported(generated, learned)
    assert len(images(page)) == 1 and "No pairs were held out" in page
    learned.training["improvement"] = {
        "before": 0.5,
        "after": 0.4,
        "relative": -0.2,
        "low": -0.25,
        "high": -0.15,
    }
    page = reported(generated, learned)
    assert re.search(r"<b>-20\.0 %</b>\s+\(95 % interval -25\.0 to -15\.0 %\)", page)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&"


def rewritten(root: Path, **changed: Any) -> None:
    """Changes the first row of a manifest by hand."""
    first, *others = (root / "manifest.jsonl").read_text().splitlines(keepends=True)
    (root / "manifest.jsonl").write_text(
        json.dumps({**json.loads(first), **changed}) + "\n" + "".join(others)
    )


def test_whatever_a_manifest_says_runs_no_script_and_ends_no_element(generated: Path) -> None:
    MVTecWriter(generated).reject(
        ExportPair("bolt", Photo(NORMAL, gray=False), {"dent": MASK}, {**gate(0.1, 1.0), "rejected": EVIL})
    )
    evil = {"defect": EVIL.replace("/", "|"), "run": EVIL, "template": EVIL, "base_family": EVIL}
    scores = {"scores": {EVIL: 0.5, "x": float("nan")}, "thresholds": {EVIL: "x"}, "masks_from": {EVIL: EVIL}}
    rewritten(
        generated,
        **evil,
        **scores,
        config={EVIL: EVIL},
        prompt={"1": {"class_type": EVIL, "inputs": {"x": EVIL}}},
    )
    page = reported(generated)
    assert "<img src=x" not in page and "<script>alert" not in page
    tags = re.findall(r"</?script[^>]*>", page)
    assert tags.count("</script>") == len(tags) // 2 == 4 + 2  # pictures of four pairs, the index, the script
    first = next(entry for entry in entries(page) if entry["type"] == f"bolt/{evil['defect']}")
    assert first["scores"] == {EVIL: 0.5} and first["limits"] == {}


@pytest.mark.parametrize("key", ["image", "mask", "normal", "attention", "labels"])
def test_only_pictures_below_the_dataset_are_read(generated: Path, tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret.png"
    Image.fromarray(np.full((40, 40, 3), 77, np.uint8)).save(secret)
    for name, problem in (
        ("../secret.png", "leads out of the dataset"),
        (str(secret), "leads out of the dataset"),
        ("manifest.jsonl", "which is no picture"),
    ):
        rewritten(generated, **{key: name, "classes": {"1": "dent"}})
        with pytest.raises(ValueError, match=problem):
            reported(generated)
    if key == "labels":  # which a page does not show
        return
    (generated / "bolt/link.png").symlink_to(secret)
    rewritten(generated, **{key: "bolt/link.png"}, labels="bolt/test/dent/00000.png")
    with pytest.raises(ValueError, match="link that leads out of the dataset"):
        reported(generated)
    assert not (generated / "report.html").exists()


def test_a_folder_that_is_a_link_out_of_the_dataset_is_refused(generated: Path, tmp_path: Path) -> None:
    os.rename(generated / "bolt/test", tmp_path / "elsewhere")
    (generated / "bolt/test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link that leads out of the dataset"):
        reported(generated)


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
    for heading in ("<h2>Quality gate", "Mean scores", "rejected before", "<h2>Attention"):
        assert heading not in page


def test_attention_is_shown_for_the_first_pairs_that_have_it(generated: Path) -> None:
    writer = MVTecWriter(generated)
    for shade in range(ATTENTION_SHOWN + 2):
        heat = Image.fromarray(np.full((10, 30, 3), shade, np.uint8))
        writer.write(ExportPair("bolt", Photo(NORMAL, gray=False), {"dent": MASK}, settings(1.0)), heat)
    part = reported(generated).split("<h2>Attention</h2>")[1].split("<h2>")[0]
    shown = images(part)
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
