"""A ComfyUI of one's own: a server started from a folder of ComfyUI on a free loopback port, with this pack
in its `custom_nodes` and its files in a folder of ours; or the pack inside this process.
"""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).parents[1]
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")
LAST_WORDS = 4000  # characters of the log that an error shows


def import_pack(comfyui: Path, name: str = "adiff_pack") -> ModuleType:
    """Imports ComfyUI and the pack into this process as ComfyUI does: its folder first, the pack by location.

    The pack's parts are then importable below `name`.
    """
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = not _has_gpu()
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec and spec.loader  # a path to a file always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class RunningServer:
    """Where it answers, where its files are, and what it has said."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def running_server(comfyui: Path, base: Path, patience: float = 180) -> Iterator[RunningServer]:
    """Starts ComfyUI's `main.py` with its base directory in `base`; ends it on leaving.

    Raises ValueError where `comfyui` holds no ComfyUI, this package is not inside the pack, or the server
    does not answer within `patience` seconds; the last of its log is in the message.
    """
    if not (comfyui / "main.py").is_file():
        raise ValueError(f"{comfyui} holds no ComfyUI (no main.py): give the folder it is installed in.")
    if not (PACK / "nodes").is_dir():
        raise ValueError(f"{PACK} has no nodes: run this from a checkout of the pack.")
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "ComfyUI-AnomalyDiffusion"
    if not link.is_symlink():
        link.symlink_to(PACK, target_is_directory=True)
    port, log = _free_port(), base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *_arguments(port, base.resolve())],
            cwd=comfyui,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", base, log, process)
    try:
        _wait(server, patience)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _arguments(port: int, base: Path) -> list[str]:
    arguments = ["main.py", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    arguments += ["--database-url", "sqlite:///:memory:", "--use-pytorch-cross-attention"]
    return arguments if _has_gpu() else [*arguments, "--cpu"]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: RunningServer, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urllib.request.urlopen(server.url + "/system_stats", timeout=30):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    said = server.log.read_text(errors="replace")[-LAST_WORDS:]
    raise ValueError(f"ComfyUI did not start (its log is {server.log}):\n{said}")
