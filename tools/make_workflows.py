"""Writes the pack's workflows: `python tools/make_workflows.py --comfyui .comfyui/ComfyUI`.

A ComfyUI is started for its description of the nodes, so that every widget has its value in its place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

from workflow_layout import Node, Out, Step, workflow

from anomalydiffusion_core.cli.comfyui_process import PACK, running_server

FOLDER = PACK / "workflows"
PICTURE = 220  # pixels that a node keeps free for a picture of its result

BASE = {"model": Out("base", "MODEL"), "clip": Out("base", "CLIP"), "vae": Out("base", "VAE")}

GRAPHS: dict[str, list[Step]] = {
    "2_train": [
        Step(
            "1 · What to learn",
            {
                "base": Node("ADiff_LoadTinyBase"),
                "photos": Node("ADiff_LoadDataset", {"normal_count": 0}, "Defect photos and their masks"),
            },
            note="1. **source**: folder\n2. **folder**: yours, below ComfyUI's input folder\n"
            "3. **steps**: 500 or more",
        ),
        Step(
            "2 · Defects",
            {
                "defects": Node(
                    "ADiff_TrainAnomaly", {**BASE, "dataset": Out("photos", "dataset")}, picture=PICTURE
                )
            },
        ),
        Step(
            "3 · Masks",
            {
                "masks": Node(
                    "ADiff_TrainMasks",
                    {**BASE, "dataset": Out("photos", "dataset"), "embeddings": Out("defects", "embeddings")},
                    picture=PICTURE,
                )
            },
        ),
        Step("4 · Keep", {"saved": Node("ADiff_SaveEmbeddings", {"embeddings": Out("masks", "embeddings")})}),
    ],
}


def text(name: str, information: dict) -> str:
    """The file's content."""
    return json.dumps(workflow(GRAPHS[name], information), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--comfyui", type=Path, default=Path(".comfyui/ComfyUI"), help="the folder of its main.py"
    )
    comfyui = parser.parse_args().comfyui
    with tempfile.TemporaryDirectory() as base, running_server(comfyui, Path(base)) as server:
        with urllib.request.urlopen(server.url + "/object_info") as answer:
            information = json.load(answer)
        for name in GRAPHS:
            (FOLDER / f"{name}.json").write_text(text(name, information), encoding="utf-8")


if __name__ == "__main__":
    main()
