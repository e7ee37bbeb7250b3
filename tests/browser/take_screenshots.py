"""Takes the documentation's screenshots: `python tests/browser/take_screenshots.py`.

Every workflow is opened and run in a browser as the template browser gives it, and each node photographed
with what it shows then; docs/workflow.jpg is the whole of the first. It takes half an hour, in the ComfyUI of
the tests; names of workflows take only the nodes in these.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from anomalydiffusion_core.cli.comfyui_process import PACK
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

sys.path += [str(PACK / folder) for folder in ("tests/comfyui", "tools", "benchmarks")]

from comfyui_page import ComfyUIPage, opened_page, started_browser
from comfyui_server import comfyui_folder, started_server
from conftest import found_chromium, write_settings
from make_workflows import FOLDER
from test_workflows import STROKE

HELP = PACK / "nodes" / "web" / "docs"
DOCS = PACK / "docs"
PATIENCE = 3600  # seconds for a workflow
WIDTH = 1600  # pixels of docs/workflow.jpg
QUALITY = 85  # of JPEG
AROUND = 8  # pixels of ground around a node


def photographed(page: ComfyUIPage, node: str) -> Image.Image:
    """A node at full size, named by its type, title or id."""
    x, y, width, height = page.page.evaluate("name => adiff.show(name)", node)
    page.page.wait_for_timeout(700)
    clip = {
        "x": x - AROUND,
        "y": y - AROUND,
        "width": width + 2 * AROUND,
        "height": height + 2 * AROUND,
    }
    return Image.open(io.BytesIO(page.page.screenshot(clip=clip))).convert("RGB")  # type: ignore[arg-type]


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=QUALITY)
    print(path.relative_to(PACK), picture.size)


def main() -> None:
    every = sorted(path.stem for path in FOLDER.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflows", nargs="*", metavar="NAME", help="of a workflow, such as 4_draw_a_mask")
    names = parser.parse_args().workflows
    if unknown := set(names) - set(every):
        parser.error(f"there is no workflow {min(unknown)}: choose from {', '.join(every)}")
    chromium = found_chromium()
    if not chromium:
        raise SystemExit("There is no Chromium: install it, or set CHROMIUM.")
    wanted = {path.stem for path in HELP.glob("ADiff_*.md")}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_settings(base)
        write_few_shot_dataset(base / "drawn", 128)
        photo = min((base / "drawn" / "leather" / "train" / "good").iterdir())
        with (
            started_server(comfyui_folder(), base) as server,
            started_browser(chromium) as browser,
            opened_page(browser, server) as page,
        ):
            for name in names or every:
                page.open_template(name)
                if "LoadImage" in page.node_types():
                    page.upload("LoadImage", photo)
                    page.draw_mask("LoadImage", STROKE)
                if page.run(PATIENCE)["status"]["status_str"] != "success":
                    raise SystemExit(f"{name} failed: {page.complaints()}")
                if name == "1_your_photos":
                    page.fit()
                    whole = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
                    save(whole.resize((WIDTH, WIDTH * whole.height // whole.width)), DOCS / "workflow.jpg")
                for node in sorted(wanted & set(page.node_types())):
                    save(photographed(page, node), HELP / f"{node}.jpg")
                    wanted.discard(node)
            page.command("Comfy.NewBlankWorkflow")
            for node in [] if names else sorted(wanted):  # in no workflow
                page.page.evaluate("type => adiff.only(type)", node)
                page.page.wait_for_timeout(700)  # it has no size until it is drawn
                save(photographed(page, node), HELP / f"{node}.jpg")


if __name__ == "__main__":
    main()
