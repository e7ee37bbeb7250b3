"""ComfyUI and the pack inside this process, for benchmarks and tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from anomalydiffusion_core.cli.comfyui_process import PACK
from anomalydiffusion_core.cli.options import best_device


def import_pack(comfyui: Path, name: str = "adiff_pack") -> ModuleType:
    """Imports ComfyUI and the pack as ComfyUI does: its folder first, the pack by file location.

    The pack's parts are then importable below `name`.
    """
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = best_device() == "cpu"
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader  # a path to a file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
