"""Guards report/report.js: the page in a browser, opened from disk. Skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.export.mvtec import MVTecWriter
from anomalydiffusion_core.export.writer import ExportPair
from anomalydiffusion_core.report.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
PAIRS = 30  # of dents and stains in turn, their fills rising; three more are rejected


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("made")
    grey, mask = np.full((64, 64, 3), 100, np.uint8), np.zeros((64, 64), bool)
    mask[20:30, 20:40] = True
    writer = MVTecWriter(root)
    (normal,) = writer.add_normals("bolt", [Photo(grey, gray=False)])
    for number in range(PAIRS + 3):
        row = {"run": "r1", "index": number, "normal": normal, "fill": number / 100, "noise": 3.0}
        row |= {"scores": {"fill": number / 100}, "thresholds": {"fill": 0.1}}
        defect, photo = (
            ("dent", "stain")[number % 2],
            Photo(grey + np.uint8(mask[..., None]) * 50, gray=False),
        )
        if number < PAIRS:
            writer.write(ExportPair("bolt", photo, {defect: mask}, row))
        else:
            writer.reject(ExportPair("bolt", photo, {defect: mask}, {**row, "rejected": "faint, seam"}))
    write_report(root, root / "report.html")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1300, "height": 900})
        shown.problems, shown.requests = [], []
        shown.on("console", lambda message: shown.problems.append(message.text))
        shown.on("pageerror", lambda error: shown.problems.append(str(error)))
        shown.on("request", lambda request: shown.requests.append(request.url))
        shown.goto((root / "report.html").as_uri())
        yield shown
        browser.close()


@pytest.fixture(autouse=True)
def fresh(page: Any) -> None:
    page.evaluate("localStorage.clear()")
    page.reload()
    page.wait_for_selector("article")


def found(page: Any) -> str:
    return page.text_content("#found")


def listed(page: Any) -> list[str]:
    return page.input_value("#list").split()


def name(number: int) -> str:
    return f"bolt/test/dent/{number:05d}.png"


def test_all_pairs_are_there_in_pages_and_filters_leave_those_asked_for(page: Any) -> None:
    assert found(page) == "33 of 33 pairs" and page.locator("article").count() == 24
    page.click("#next")
    assert page.text_content("#page") == "Page 2 of 2" and page.locator("article").count() == 9
    page.select_option("#type", "bolt/stain")
    assert found(page) == "16 of 33 pairs"
    page.select_option("#show", "why:seam")
    assert found(page) == "1 of 33 pairs"
    page.click("button[type=reset]")
    page.fill("#from", "0.05")
    page.fill("#to", "0.1")
    assert found(page) == "6 of 33 pairs"
    page.select_option("#order", "highest")
    assert "fill 0.10" in page.locator("article").first.text_content()
    page.click("button[type=reset]")
    page.select_option("#order", "closest")
    assert "fill 0.10" in page.locator("article").first.text_content()


def test_pairs_are_rejected_by_click_and_by_key_and_marks_outlive_the_page(page: Any) -> None:
    page.locator("article").nth(1).get_by_role("button", name="Reject").click()
    assert listed(page) == [name(1)]
    page.locator("article .zoom").nth(3).focus()
    for key in "rra":  # each goes on to the next pair
        page.keyboard.press(key)
    assert listed(page) == [name(1), name(3), name(4)]
    assert "3 rejected, 1 accepted, 26 not judged yet." in page.text_content("#marked")
    page.locator("article").nth(1).get_by_role("button", name="Reject").click()  # takes it back
    page.reload()
    page.wait_for_selector("article")
    assert listed(page) == [name(3), name(4)]
    page.select_option("#show", "mark:accepted")
    assert found(page) == "1 of 33 pairs"
    page.select_option("#show", "stopped")
    assert page.get_by_role("button", name="Reject", exact=True).count() == 0  # the gate did so already


def test_a_pair_is_looked_at_closely_with_its_whole_photo_and_judged_there(page: Any) -> None:
    page.locator("article .zoom").first.click()
    assert page.locator("#zoom").evaluate("dialog => dialog.open")
    widths = page.locator("#zoom img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert widths == [632, 64]
    box = page.locator(".whole span").bounding_box()
    whole = page.locator(".whole").bounding_box()
    assert box["width"] / whole["width"] == pytest.approx(52 / 64, abs=0.02)
    assert page.locator("#zoom a").get_attribute("href") == "./" + name(0)
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    assert listed(page) == [name(0)] and not page.locator("#zoom").evaluate("dialog => dialog.open")


def test_the_list_is_downloaded_as_generate_reads_it(page: Any) -> None:
    page.locator("article").nth(2).get_by_role("button", name="Reject").click()
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "reject.txt"
    assert Path(download.value.path()).read_text() == name(2) + "\n"


def test_nothing_is_asked_of_the_network_and_nothing_is_blocked(page: Any) -> None:
    page.locator("article .zoom").first.click()
    page.keyboard.press("Escape")
    assert not page.problems
    assert all(address.startswith(("file:", "data:", "blob:")) for address in page.requests)
