"""A mask drawn in ComfyUI's mask editor reaches the nodes that the photo's mask is wired to."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from comfyui_page import ComfyUIPage
from comfyui_server import Server
from PIL import Image


def drawn_mask_graph() -> dict[str, Any]:
    """A photo's mask, made binary by the pack and saved."""
    nodes = [
        ("LoadImage", [], [("IMAGE", "IMAGE", []), ("MASK", "MASK", [1])], ["part.png", "image"]),
        ("MaskToImage", [("mask", "MASK", 1)], [("IMAGE", "IMAGE", [2])], []),
        ("SaveImage", [("images", "IMAGE", 2)], [], ["drawn"]),
    ]
    return {
        "version": 0.4,
        "last_node_id": 3,
        "last_link_id": 2,
        "nodes": [
            {
                "id": i + 1,
                "type": node_type,
                "pos": [60 + 400 * i, 80],
                "size": [320, 300],
                "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
                "outputs": [{"name": name, "type": kind, "links": links} for name, kind, links in outputs],
                "widgets_values": values,
            }
            for i, (node_type, inputs, outputs, values) in enumerate(nodes)
        ],
        "links": [[1, 1, 1, 2, 0, "MASK"], [2, 2, 0, 3, 0, "IMAGE"]],
    }


@pytest.mark.parametrize("renderer", ["the old nodes", "Nodes 2.0"])
def test_a_stroke_in_the_mask_editor_is_the_mask_that_a_run_gets(
    page: ComfyUIPage, server: Server, own_photos: dict[str, str], renderer: str
) -> None:
    photos = server.base / "input" / own_photos["300x700 gray"] / "panel" / "train" / "good"
    shutil.copy(photos / "000.png", server.base / "input" / "part.png")
    page.command("Comfy.RefreshNodeDefinitions")
    page.nodes_2(renderer == "Nodes 2.0")
    page.load(drawn_mask_graph())
    page.draw_mask("LoadImage", [(0.4, 0.25), (0.5, 0.5), (0.6, 0.75)])
    assert "clipspace" in page.value("LoadImage", "image")
    (output,) = page.run()["outputs"].values()
    (file,) = output["images"]
    mask = np.asarray(Image.open(server.base / "output" / file["filename"]).convert("L"))
    assert mask.shape == (700, 300)
    for x, y in [(0.42, 0.3), (0.5, 0.5), (0.56, 0.65)]:  # its end is smoothed away
        assert mask[round(700 * y), round(300 * x)] > 200
    assert 0.002 < (mask > 128).mean() < 0.1  # and nowhere else
    assert page.complaints() == []
