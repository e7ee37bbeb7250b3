"""A ComfyUI server of one's own: started from a folder of ComfyUI on a free loopback port, with this pack in
its `custom_nodes` and its files in a folder of ours.
"""

from __future__ import annotations

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

from .options import best_device

PACK = Path(__file__).parents[2]
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")
LAST_WORDS = 4000  # characters of the log that an error shows


@dataclass(frozen=True)
class RunningServer:
    """Where it answers, where its files are, and what it has said."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def running_server(
    comfyui: Path, base: Path, patience: float = 180, *, python: str = sys.executable
) -> Iterator[RunningServer]:
    """Starts ComfyUI's `main.py` by `python` with its base directory in `base`; ends it on leaving.

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
    if not link.exists():
        _link(link, PACK)
    port, log = _free_port(), base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, *_arguments(port, base.resolve())],
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


def _link(link: Path, folder: Path) -> None:
    if sys.platform == "win32":  # where a symbolic link takes a privilege, and a junction none
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)


def _arguments(port: int, base: Path) -> list[str]:
    arguments = ["main.py", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    arguments += ["--database-url", "sqlite:///:memory:", "--use-pytorch-cross-attention"]
    return [*arguments, "--cpu"] if best_device() == "cpu" else arguments


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
    said = server.log.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:]
    raise ValueError(f"ComfyUI did not start (its log is {server.log}):\n{said}")
