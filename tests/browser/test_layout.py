"""tools/workflow_layout.py: graphs that can be read when all of them is shown."""

from __future__ import annotations

import pytest
from comfyui_page import LEGIBLE, ComfyUIPage
from comfyui_server import Server
from workflow_graphs import GRAPHS
from workflow_layout import workflow


@pytest.mark.parametrize("renderer", ["the old nodes", "Nodes 2.0"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_legible_as_a_whole_and_no_wire_runs_under_a_node(
    page: ComfyUIPage, server: Server, name: str, renderer: str, pytestconfig: pytest.Config
) -> None:
    page.load(workflow(GRAPHS[name], server.get("/object_info")))
    page.nodes_2(renderer == "Nodes 2.0")
    zoom = page.fit()
    pictures = pytestconfig.getoption("--screenshots")
    if pictures:
        page.screenshot(pictures / f"{name}, {renderer}.png")
    assert page.complaints() == [] and page.covered_wires() == [] and page.overlapping_nodes() == []
    assert zoom >= LEGIBLE
