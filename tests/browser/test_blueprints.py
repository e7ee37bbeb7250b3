"""subgraphs/*.json: nodes of several nodes, as ComfyUI lists them and its front end opens them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from comfyui_page import ComfyUIPage
from comfyui_server import Server
from make_workflows import SUBGRAPHS

from anomalydiffusion_core.dataset.layout import find_dataset

PATHS = sorted(SUBGRAPHS.glob("*.json"))
ENDS = (-10, -20)  # numbers of a subgraph's own inputs and outputs


def described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outer node of a blueprint, and its subgraph."""
    content = json.loads(path.read_text())
    (node,), (subgraph,) = content["nodes"], content["definitions"]["subgraphs"]
    return node, subgraph


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_link_of_a_blueprint_leads_from_a_slot_to_one_of_its_type(path: Path) -> None:
    node, subgraph = described(path)
    assert uuid.UUID(node["type"]) == uuid.UUID(subgraph["id"]) and subgraph["name"] == path.stem
    assert subgraph["description"] and subgraph["category"] == "AnomalyDiffusion"
    nodes = {inner["id"]: inner for inner in subgraph["nodes"]}
    outs = {number: inner["outputs"] for number, inner in nodes.items()} | {ENDS[0]: subgraph["inputs"]}
    ins = {number: inner["inputs"] for number, inner in nodes.items()} | {ENDS[1]: subgraph["outputs"]}
    for link in subgraph["links"]:
        origin = outs[link["origin_id"]][link["origin_slot"]]
        target = ins[link["target_id"]][link["target_slot"]]
        assert origin["type"] == target["type"] == link["type"]
        assert link["id"] in origin.get("links", origin.get("linkIds"))
        assert link["id"] == target["link"] if "link" in target else link["id"] in target["linkIds"]
    assert len({link["id"] for link in subgraph["links"]}) == len(subgraph["links"])
    assert [x["name"] for x in node["inputs"]] == [x["name"] for x in subgraph["inputs"]]
    for number, widget in node["properties"]["proxyWidgets"]:
        assert widget in [x["name"] for x in nodes[int(number)]["inputs"] if "widget" in x]


def test_the_server_offers_them(server: Server) -> None:
    offered = server.get("/global_subgraphs").values()
    ours = [entry["name"] for entry in offered if entry["info"]["node_pack"].endswith("AnomalyDiffusion")]
    assert sorted(ours) == [path.stem for path in PATHS]


def test_a_blueprint_opens_as_one_node_and_runs_to_a_dataset(page: ComfyUIPage, server: Server) -> None:
    name = "Train and Generate Pairs"
    page.load(json.loads((SUBGRAPHS / f"{name}.json").read_text()))
    assert page.complaints() == [] and page.inside(name) == [
        *("ADiff_TrainAnomaly", "ADiff_TrainMasks", "ADiff_TuneSettings"),
        *("ADiff_SaveEmbeddings", "ADiff_GeneratePairs"),
    ]
    page.connect("ADiff_LoadTinyBase", name, {"MODEL": "model", "CLIP": "clip", "VAE": "vae"})
    page.connect("ADiff_LoadDataset", name, {"dataset": "dataset"})
    short = {"ADiff_TrainAnomaly": {"steps": 2}, "ADiff_TrainMasks": {"steps": 2}}
    short |= {
        "ADiff_TuneSettings": {"tries": 1},
        "ADiff_GeneratePairs": {
            "steps": 4,
            "checks": "",
            "defect_type": "leather/ink",
            "mask_sources": "procedural=1",
        },
    }
    page.set_inside(name, short)
    page.set(name, {"count": 1, "folder": "by_a_blueprint"})  # as shown outside
    assert page.run()["status"]["status_str"] == "success" and page.complaints() == []
    assert len(find_dataset(server.base / "output" / "by_a_blueprint").pairs) == 1
