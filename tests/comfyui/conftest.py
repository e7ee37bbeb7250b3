"""The pack inside a real ComfyUI, loaded as ComfyUI loads it: by file location, ComfyUI's folder first."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
PACK = "adiff_pack"


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
