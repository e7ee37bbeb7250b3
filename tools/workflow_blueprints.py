"""Subgraph blueprints, which front ends list among the nodes: a workflow of one node, and what is in it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow_layout import Json, Node, Out, Step, workflow

INPUTS, OUTPUTS = -10, -20  # numbers of a subgraph's own ends
ROW, SIDE = 20, 120  # pixels of the ends


@dataclass(frozen=True)
class Blueprint:
    """`inputs` lead to inputs of nodes, as (node, input); `outputs` come from them; `widgets` are shown
    outside.
    """

    description: str
    steps: Sequence[Step]
    inputs: Mapping[str, Sequence[tuple[str, str]]]
    outputs: Mapping[str, Out]
    widgets: Sequence[tuple[str, str]]


def blueprint(name: str, described: Blueprint, information: Json) -> Json:
    """A blueprint's file; `information` is a server's /object_info."""
    inner = workflow(described.steps, information)
    keys = [key for step in described.steps for key in step.nodes]
    nodes = dict(zip(keys, inner["nodes"], strict=True))
    identity = _identity(name)
    links = _inner_links(inner)
    inputs = _inputs(name, described, nodes, links)
    outputs = _outputs(name, described, nodes, links)
    right = max(node["pos"][0] + node["size"][0] for node in inner["nodes"])
    top = inner["nodes"][0]["pos"][1]
    subgraph = {
        "id": identity,
        "version": 1,
        "revision": 0,
        "state": {
            "lastGroupId": len(inner["groups"]),
            "lastNodeId": inner["last_node_id"],
            "lastLinkId": len(links),
            "lastRerouteId": len(inner["extra"]["reroutes"]),
        },
        "config": {},
        "name": name,
        "category": "AnomalyDiffusion",
        "description": described.description,
        "inputNode": {"id": INPUTS, "bounding": [-2 * SIDE, top, SIDE, ROW * (len(inputs) + 2)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + SIDE, top, SIDE, ROW * (len(outputs) + 2)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": inner["groups"],
        "links": links,
        "reroutes": inner["extra"]["reroutes"],
        "extra": {},
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(name, identity, subgraph, [(str(nodes[k]["id"]), w) for k, w in described.widgets])],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
    }


def _identity(*parts: str) -> str:
    """A UUID that is the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("comfyui-anomalydiffusion", *parts))))


def _inner_links(inner: Json) -> list[Json]:
    parents = {entry["id"]: entry["parentId"] for entry in inner["extra"]["linkExtensions"]}
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in inner["links"]]
    return [link | ({"parentId": parents[link["id"]]} if link["id"] in parents else {}) for link in links]


def _inputs(
    name: str, described: Blueprint, nodes: Mapping[str, Json], links: list[Json]
) -> list[dict[str, Any]]:
    """The subgraph's inputs; adds their links to `links` and to the nodes."""
    inputs = []
    for slot, (own, ends) in enumerate(described.inputs.items()):
        numbers, kind = [], ""
        for key, inner_name in ends:
            target = nodes[key]
            target_slot = [entry["name"] for entry in target["inputs"]].index(inner_name)
            entry = target["inputs"][target_slot]
            kind = entry["type"]
            links.append(_link(len(links) + 1, (INPUTS, slot), (target["id"], target_slot), kind))
            entry["link"] = len(links)
            numbers.append(len(links))
        inputs.append({"id": _identity(name, "in", own), "name": own, "type": kind, "linkIds": numbers})
    return inputs


def _outputs(
    name: str, described: Blueprint, nodes: Mapping[str, Json], links: list[Json]
) -> list[dict[str, Any]]:
    """The subgraph's outputs, likewise."""
    outputs = []
    for slot, (own, out) in enumerate(described.outputs.items()):
        source = nodes[out.node]
        source_slot = [entry["name"] for entry in source["outputs"]].index(out.name)
        entry = source["outputs"][source_slot]
        links.append(_link(len(links) + 1, (source["id"], source_slot), (OUTPUTS, slot), entry["type"]))
        entry["links"].append(len(links))
        outputs.append(
            {"id": _identity(name, "out", own), "name": own, "type": entry["type"], "linkIds": [len(links)]}
        )
    return outputs


def _link(number: int, origin: tuple[int, int], target: tuple[int, int], kind: str) -> Json:
    return {
        "id": number,
        "origin_id": origin[0],
        "origin_slot": origin[1],
        "target_id": target[0],
        "target_slot": target[1],
        "type": kind,
    }


def _outer(name: str, identity: str, subgraph: Json, widgets: list[tuple[str, str]]) -> Json:
    """The one node that stands for the subgraph."""
    return {
        "id": 1,
        "type": identity,
        "title": name,
        "pos": [0, 0],
        "size": [300, 60 + ROW * (len(subgraph["inputs"]) + 2 * len(widgets))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": x["name"], "type": x["type"], "link": None} for x in subgraph["inputs"]],
        "outputs": [{"name": x["name"], "type": x["type"], "links": []} for x in subgraph["outputs"]],
        "properties": {"proxyWidgets": [list(widget) for widget in widgets]},
        "widgets_values": [],
    }


CROPPED = Out("crops", "crop masks")
BLUEPRINTS = {
    "Train and Generate Pairs": Blueprint(
        "Learns the defects of a few-shot dataset, their masks and settings, saves them, and puts such "
        "defects into its normal photos until the asked number of pairs is accepted.",
        [
            Step("1 · Learn the defects", {"defects": Node("ADiff_TrainAnomaly")}),
            Step(
                "2 · Learn their masks",
                {"masks": Node("ADiff_TrainMasks", {"embeddings": Out("defects", "embeddings")})},
            ),
            Step(
                "3 · Find settings",
                {"tuned": Node("ADiff_TuneSettings", {"embeddings": Out("masks", "embeddings")})},
            ),
            Step(
                "4 · Keep, make pairs",
                {
                    "saved": Node("ADiff_SaveEmbeddings", {"embeddings": Out("tuned", "embeddings")}),
                    "pairs": Node("ADiff_GeneratePairs", {"embeddings": Out("tuned", "embeddings")}),
                },
            ),
        ],
        {
            name: [(node, name) for node in ("defects", "masks", "tuned", "pairs")]
            for name in ("model", "clip", "vae", "dataset")
        },
        {
            "dataset": Out("pairs", "dataset"),
            "embeddings": Out("tuned", "embeddings"),
            "report": Out("pairs", "report"),
        },
        [("pairs", "count"), ("pairs", "folder"), ("defects", "steps"), ("masks", "steps")],
    ),
    "Defect in a Drawn Mask": Blueprint(
        "Puts a learned defect into a photo of any size, inside a mask: cuts its regions out, denoises them, "
        "and lays them back.",
        [
            Step("1 · Cut out", {"crops": Node("ADiff_CropRegions", {"canvas": 0})}),
            Step("2 · Words", {"words": Node("ADiff_AnomalyConditioning", {"mask": CROPPED})}),
            Step(
                "3 · Put the defect in",
                {
                    "sampler": Node(
                        "ADiff_KSampler",
                        {
                            "positive": Out("words", "positive"),
                            "negative": Out("words", "negative"),
                            "image": Out("crops", "crops"),
                            "mask": CROPPED,
                        },
                    )
                },
            ),
            Step(
                "4 · Put back",
                {
                    "stitched": Node(
                        "ADiff_StitchRegions",
                        {"crops": Out("sampler", "images"), "regions": Out("crops", "regions")},
                    )
                },
            ),
        ],
        {
            "model": [("words", "model"), ("sampler", "model")],
            "clip": [("words", "clip")],
            "vae": [("words", "vae"), ("sampler", "vae")],
            "embeddings": [("crops", "embeddings"), ("words", "embeddings")],
            "image": [("crops", "images")],
            "mask": [("crops", "masks")],
        },
        {"image": Out("stitched", "images"), "mask": Out("stitched", "masks")},
        [("words", "defect_type"), ("sampler", "seed"), ("sampler", "steps"), ("sampler", "strength")],
    ),
}
