"""From a folder of photos to the first own pair with the mouse alone, in a ComfyUI that nobody has used yet.

With `--newcomer FOLDER`, a dataset of one's own, the settings stay as the workflow has them, as for a person;
clicks, seconds and a picture after each click are kept in `--screenshots`.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from comfyui_page import PACK, ComfyUIPage, opened_page
from comfyui_server import comfyui_folder, started_server
from own_photos import write_own_photos
from playwright.sync_api import Browser, Locator

MOST_CLICKS = 12
PATIENCE = 1800  # seconds until the first pair, on a busy machine
WORKFLOW, FOLDER = "1_your_photos", "my_photos"
SHORT = {
    "ADiff_TrainAnomaly": {"steps": 4, "batch_size": 2, "preview_every": 4},
    "ADiff_TrainMasks": {"steps": 2, "batch_size": 2, "preview_every": 2},
    "ADiff_TuneSettings": {"tries": 1},
    "ADiff_GeneratePairs": {"count": 1, "steps": 4, "checks": "", "mask_sources": "procedural=1"},
}


@dataclass
class Hand:
    """A mouse, the clicks that were made with it, and where pictures of them go."""

    page: ComfyUIPage
    pictures: Path | None
    clicks: list[str] = field(default_factory=list)

    def click(self, what: str, target: Locator | tuple[float, float]) -> None:
        """Clicks on an element, or on a point of the window."""
        if isinstance(target, tuple):
            self.page.page.mouse.click(*target)
        else:
            target.click()
        self.clicks.append(what)
        self.page.page.wait_for_timeout(1500)  # what it opens is drawn
        self.look(f"{len(self.clicks):02}")

    def choose(self, node: str, widget: str, value: str) -> None:
        """Opens a list in a node and chooses from it."""
        x, y = self.page.page.evaluate("([node, widget]) => adiff.place(node, widget)", [node, widget])
        self.click(f"{widget}, in the node", (x, y))
        entry = self.page.page.locator(".litemenu-entry").filter(has_text=value)
        self.click(f"{value}, in the list", entry.last)

    def look(self, name: str) -> None:
        if self.pictures:
            self.page.screenshot(self.pictures / f"{name}.png")


@pytest.fixture
def photos(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """A dataset that a person brings along."""
    given = pytestconfig.getoption("--newcomer")
    if not given:
        write_own_photos(tmp_path / "own", (128, 128), "RGB")
    return given or tmp_path / "own"


def test_the_first_own_pair_is_a_few_clicks_away(
    browser: Browser, photos: Path, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    as_a_person = pytestconfig.getoption("--newcomer") is not None
    pictures = pytestconfig.getoption("--screenshots") if as_a_person else None
    shutil.copytree(photos, tmp_path / "base" / "input" / FOLDER)
    begun = time.monotonic()
    with (
        started_server(comfyui_folder(), tmp_path / "base") as server,  # with no settings of anybody's
        opened_page(browser, server) as page,
    ):
        hand = Hand(page, pictures)
        page.page.wait_for_timeout(3000)  # the welcome
        hand.look("00")
        pack = page.page.get_by_text(PACK, exact=True).first
        if not pack.count():  # hosts differ in what they show first
            hand.click("Templates", page.page.get_by_role("button", name="Templates").first)
        hand.click(PACK, pack)
        hand.click(WORKFLOW, page.page.get_by_test_id(f"template-workflow-{WORKFLOW}"))
        assert page.page.evaluate("adiff.outside()") == []  # all is seen without a move
        if not as_a_person:
            for node, settings in SHORT.items():
                page.set(node, settings)
        hand.choose("ADiff_LoadDataset", "source", "folder")
        hand.choose("ADiff_LoadDataset", "folder", FOLDER)
        hand.click("Run", page.page.get_by_role("button", name="Run", exact=True).first)
        ready = time.monotonic()
        seen = "adiff.node('ADiff_GeneratePairs').imgs?.length"
        page.page.wait_for_function(seen, timeout=1000 * PATIENCE, polling=500)
        manifest = server.base / "output" / "anomalydiffusion" / "dataset" / "manifest.jsonl"
        while not manifest.is_file() or not manifest.read_text():  # till then masks are shown
            assert page.complaints() == []
            page.page.wait_for_timeout(500)
        first = time.monotonic()
        page.page.wait_for_timeout(1000)
        hand.look("first_pair")
        pair = json.loads(manifest.read_text().splitlines()[0])
        assert pair["category"] not in ("leather", "metal")  # of the demo set
        assert len(hand.clicks) <= MOST_CLICKS and page.complaints() == []
    told = {"clicks": hand.clicks, "to_run_s": round(ready - begun), "to_first_pair_s": round(first - begun)}
    if pictures:
        (pictures / "newcomer.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told))
