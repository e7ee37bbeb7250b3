"""The pack inside a real ComfyUI, loaded as ComfyUI loads it: by file location, ComfyUI's folder first."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
PACK = "adiff_pack"
Run = Callable[..., tuple]


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of a real ComfyUI."""
    if not (COMFYUI / "comfy").is_dir():
        pytest.skip(f"There is no ComfyUI in {COMFYUI}: run 'make test', or set COMFYUI_PATH.")
    return COMFYUI


@pytest.fixture(scope="session")
def start_server() -> type:
    """`tests/comfyui/server.py`'s Server, which pytest's import mode keeps off the path."""
    spec = importlib.util.spec_from_file_location("adiff_server", Path(__file__).parent / "server.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Server


@pytest.fixture(scope="session")
def pack(comfyui: Path) -> ModuleType:
    """The pack's root module; its parts are imported below the name `adiff_pack`."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Executes a node by its id, as ComfyUI does, in folders of its own; returns its outputs."""
    import folder_paths  # type: ignore[import-not-found]

    root = tmp_path_factory.mktemp("comfyui")
    for kind in ("input", "output", "temp"):
        (root / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(root / kind))
    folder_paths.folder_names_and_paths["anomalydiffusion"] = ([str(root / "configured")], set())
    extension = asyncio.run(pack.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}

    def execute(node_id: str, **inputs: Any) -> tuple:
        with torch.inference_mode():
            return nodes[node_id].PREPARE_CLASS_CLONE({}).execute(**inputs).args

    execute.nodes, execute.root = nodes, root  # type: ignore[attr-defined]
    return execute
