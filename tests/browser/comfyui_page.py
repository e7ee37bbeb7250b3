"""ComfyUI's page in a browser, used as a person uses it: templates, widgets, Run, the mask editor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyui_server import Server
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Route, sync_playwright

PACK = "ComfyUI-AnomalyDiffusion"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
VIEW = {"width": 1920, "height": 1080}  # pixels of the window
READY = "window.app?.extensionManager && window.app.vueAppReady"
STARTING = 120_000  # milliseconds until the front end is ready, on a busy machine
# Files that a fresh ComfyUI does not have, asked for by its front end; other packs' thumbnails, which are not
# loaded here to save time; and the front end's own servers.
NOT_OURS = ("/user.css", "/api/userdata", "/favicon.ico", "/templates/", "https://")
FITS = 10  # tries at showing the whole graph, until it stays as it is
LEGIBLE = 8 / 14  # smallest zoom at which the front end still draws text, unless told otherwise


class ComfyUIPage:
    """One tab of a browser with ComfyUI in it, and what went wrong there."""

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.server, self.page = server, context.new_page()
        self._said: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._said.append(str(error)))
        self.start()

    def start(self) -> None:
        """Loads the page, anew where it was loaded before."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=STARTING)
        run = self.page.get_by_role("button", name="Run", exact=True, include_hidden=True)  # below a welcome
        run.first.wait_for(timeout=STARTING)
        self._said = [
            words for words in self._said if PACK in words
        ]  # starting, the front end has faults too

    def _console(self, message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        missing = "Failed to load resource" in message.text
        if message.type == "error" and not (missing and any(part in place for part in NOT_OURS)):
            self._said.append(f"{message.text} ({place})")

    def complaints(self) -> list[str]:
        """Red nodes, errors, open dialogs, and what the console said since the last call."""
        said, self._said = self._said, []
        return [*self.page.evaluate("adiff.complaints()"), *said]

    def nodes_2(self, on: bool) -> None:
        """Draws nodes by the front end's new renderer, or by the old one."""
        change = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        self.page.evaluate(change, on)
        self.page.wait_for_timeout(500)

    def command(self, name: str) -> None:
        """One of the front end's own commands, which its menus and keys call."""
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def open_template(self, name: str) -> list[str]:
        """Opens one of the pack's workflows from the template browser, and shows all of it.

        Returns the names of all of them, in the order in which the template browser shows them.
        """
        names = self.server.get("/workflow_templates")[PACK]
        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_text(PACK, exact=True).first.click()
        self.page.wait_for_function("names => adiff.shows(names)", arg=names)
        shown = self.page.evaluate("adiff.cards()")
        self.page.wait_for_function("adiff.closeNotes()", polling=200)
        card = self.page.get_by_test_id(f"template-workflow-{name}")
        card.click()
        card.wait_for(state="detached")
        active = "name => app.extensionManager.workflow.activeWorkflow?.filename.startsWith(name)"
        self.page.wait_for_function(active, arg=name)
        self.fit()
        return shown

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a workflow in UI format, as dropping its file into the window does."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.fit()

    def fit(self) -> float:
        """Shows the whole graph; returns the zoom."""
        zooms = [0.0]
        while len(zooms) < FITS:
            self.command("Comfy.Canvas.FitView")
            self.page.wait_for_timeout(700)  # the view glides there, on a busy machine for longer
            zooms.append(float(self.page.evaluate("app.canvas.ds.scale")))
            if zooms[-1] == zooms[-2]:
                break
        return zooms[-1]

    def set(self, node: str, widgets: dict[str, Any]) -> None:
        """Sets widgets of a node, which is named by its title, type or id."""
        for widget, value in widgets.items():
            self.page.evaluate(
                "([node, name, value]) => adiff.setWidget(node, name, value)", [node, widget, value]
            )

    def inside(self, node: str) -> list[str]:
        """Types of the nodes in a subgraph, which is named by its title."""
        return self.page.evaluate("name => adiff.node(name).subgraph.nodes.map(node => node.type)", node)

    def set_inside(self, node: str, settings: dict[str, dict[str, Any]]) -> None:
        """Sets widgets of nodes in a subgraph, by their types."""
        self.page.evaluate("([node, settings]) => adiff.setInside(node, settings)", [node, settings])

    def connect(self, node_type: str, to: str, slots: dict[str, str]) -> None:
        """Adds a node, and leads outputs of it to inputs of another one."""
        self.page.evaluate("([type, to, slots]) => adiff.connect(type, to, slots)", [node_type, to, slots])

    def value(self, node: str, widget: str) -> Any:
        return self.page.evaluate("([node, name]) => adiff.widget(node, name).value", [node, widget])

    def node_types(self) -> list[str]:
        return self.page.evaluate("app.graph.nodes.map(node => node.type)")

    def covered_wires(self) -> list[str]:
        """Wires that run under a node, in the front end's own geometry."""
        return self.page.evaluate("adiff.coveredWires()")

    def overlapping_nodes(self) -> list[str]:
        return self.page.evaluate("adiff.overlappingNodes()")

    def run(self, patience: float = 600) -> dict[str, Any]:
        """Presses Run and waits for the end; returns the server's history of it.

        Raises AssertionError with the server's words where it refuses the graph.
        """
        with self.page.expect_response(
            lambda answer: answer.url.endswith("/api/prompt") and answer.request.method == "POST"
        ) as answered:
            self.page.get_by_role("button", name="Run", exact=True).first.click()
        reply = answered.value.json()
        assert "prompt_id" in reply, reply
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self.page.wait_for_timeout(300)
            history = self.server.get(f"/history/{reply['prompt_id']}")
            if history:
                self.page.wait_for_timeout(500)  # for the last messages and pictures to arrive
                return history[reply["prompt_id"]]
        raise TimeoutError(f"The run did not end in {patience} s:\n{self.server.log.read_text()[-4000:]}")

    def upload(self, node: str, file: Path) -> None:
        """Chooses a file for a node that loads a picture, by its own button."""
        with self.page.expect_file_chooser() as chooser:
            self.page.evaluate("name => adiff.pressButton(name, 'upload')", node)
        chooser.value.set_files(file)
        # the server numbers files of one name
        chosen = "([node, name]) => adiff.widget(node, 'image').value.startsWith(name)"
        self.page.wait_for_function(chosen, arg=[node, file.stem])

    def draw_mask(self, node: str, stroke: list[tuple[float, float]]) -> None:
        """Draws a stroke in the mask editor of a node that shows a picture, and saves it.

        Points are fractions of the picture's width and height.
        """
        self.page.wait_for_function("name => adiff.node(name).imgs?.length", arg=node)
        self.page.evaluate("name => app.canvas.selectNode(adiff.node(name))", node)
        self.command("Comfy.MaskEditor.OpenMaskEditor")
        editor = self.page.get_by_role("dialog")
        self.page.locator("#maskEditor_brush").wait_for(state="attached")
        self.page.wait_for_timeout(1000)  # the picture is fitted into the editor
        box = editor.locator("canvas").first.bounding_box()
        assert box, "The mask editor shows no picture."
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=8)
        self.page.mouse.up()
        editor.get_by_role("button", name="Save").click()
        editor.wait_for(state="detached")

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)


@contextmanager
def started_browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened_page(browser: Browser, server: Server) -> Iterator[ComfyUIPage]:
    """ComfyUI in a browser that reaches nothing but the server."""
    context = browser.new_context(viewport=VIEW)  # type: ignore[arg-type]
    context.add_init_script(path=Path(__file__).parent / "in_page.js")
    context.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    context.route(f"{server.url}/templates/**", _without_pictures)
    yield ComfyUIPage(context, server)
    context.close()


def _without_pictures(route: Route) -> None:
    if route.request.resource_type in ("image", "media"):
        route.abort()
    else:
        route.continue_()
