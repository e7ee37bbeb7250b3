"""Writes the pack's workflows and blueprints: `python tools/make_workflows.py --comfyui .comfyui/ComfyUI`.

A ComfyUI is started for its description of the nodes, so that every widget has its value in its place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

from workflow_blueprints import BLUEPRINTS, blueprint
from workflow_graphs import GRAPHS
from workflow_layout import Json, workflow

from anomalydiffusion_core.cli.comfyui_process import PACK, running_server

FOLDER, SUBGRAPHS = PACK / "workflows", PACK / "subgraphs"


def files(information: Json) -> dict[Path, str]:
    """Every file's content."""
    content = {FOLDER / f"{name}.json": workflow(steps, information) for name, steps in GRAPHS.items()}
    for name, described in BLUEPRINTS.items():
        content[SUBGRAPHS / f"{name}.json"] = blueprint(name, described, information)
    return {path: json.dumps(entry, indent=1, ensure_ascii=False) + "\n" for path, entry in content.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--comfyui", type=Path, default=Path(".comfyui/ComfyUI"), help="the folder of its main.py"
    )
    comfyui = parser.parse_args().comfyui
    with tempfile.TemporaryDirectory() as base, running_server(comfyui, Path(base)) as server:
        with urllib.request.urlopen(server.url + "/object_info") as answer:
            information = json.load(answer)
        for path, text in files(information).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
