"""ComfyUI in a headless Chromium: the pack as a person meets it. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfyui_page import ComfyUIPage, opened_page, started_browser
from comfyui_server import Server, comfyui_folder, started_server
from own_photos import write_own_photos
from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
SETTINGS = {  # of a person who has seen the welcome
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="a folder for a picture of each workflow after its run")
    parser.addoption("--newcomer", type=Path, help="a dataset for the newcomer's clock, by full settings")


def found_chromium() -> str | None:
    """A browser's program on this machine."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def write_settings(base: Path) -> None:
    """Settings of a person who has used this ComfyUI before, which hide the front end's welcome."""
    user = base / "user" / "default"
    user.mkdir(parents=True)
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    found = found_chromium()
    if not found:
        pytest.skip("There is no Chromium: install it ('apt-get install chromium'), or set CHROMIUM.")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with started_browser(chromium) as browser:
        yield browser


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI server with the pack in it, and settings that hide the front end's welcome."""
    comfyui, base = comfyui_folder(), tmp_path_factory.mktemp("browser") / "base"
    write_settings(base)
    with started_server(comfyui, base) as server:
        yield server


@pytest.fixture(scope="session")
def opened(browser: Browser, server: Server, own_photos: dict[str, str]) -> Iterator[ComfyUIPage]:
    """The page, loaded once: that takes longer than most tests. It lists the folders of photos."""
    with opened_page(browser, server) as page:
        yield page


@pytest.fixture
def page(opened: ComfyUIPage) -> Iterator[ComfyUIPage]:
    """The page, with the old renderer; the test fails where a node or the console complains."""
    if opened.complaints():
        opened.start()
    opened.nodes_2(False)
    yield opened
    assert opened.complaints() == []


@pytest.fixture(scope="session")
def own_photos(server: Server) -> dict[str, str]:
    """Folders below ComfyUI's input that hold a user's photos, by what is special in them."""
    write_own_photos(server.base / "input" / "large", (512, 512), "RGB")
    write_own_photos(server.base / "input" / "narrow", (300, 700), "L")
    return {"512 px": "large", "300x700 gray": "narrow"}
