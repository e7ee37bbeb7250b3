"""Writes the pack's workflows: `python tools/make_workflows.py --comfyui .comfyui/ComfyUI`.

A ComfyUI is started for its description of the nodes, so that every widget has its value in its place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

from workflow_graphs import GRAPHS
from workflow_layout import workflow

from anomalydiffusion_core.cli.comfyui_process import PACK, running_server

FOLDER = PACK / "workflows"


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
