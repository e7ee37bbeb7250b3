"""A ComfyUI server for tests: which ComfyUI and which Python, and its API."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.cli.comfyui_client import as_prompt, changed, read_workflow
from anomalydiffusion_core.cli.comfyui_process import RunningServer, running_server

ROOT = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
PYTHON = os.environ.get("COMFYUI_PYTHON") or sys.executable  # of the environment that the server runs in


def comfyui_folder() -> Path:
    """The folder of a real ComfyUI; skips the test where there is none."""
    if not (COMFYUI / "comfy").is_dir():
        pytest.skip(f"There is no ComfyUI in {COMFYUI}: run 'make test', or set COMFYUI_PATH.")
    return COMFYUI


class Server:
    """A running ComfyUI, asked by its API alone, as a pipeline in any language would."""

    def __init__(self, running: RunningServer) -> None:
        self.url, self.base, self.log = running.url, running.base, running.log

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, content: Any) -> Any:
        body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, kind), timeout=30) as x:
                return json.loads(x.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def workflow(self, name: str, *assignments: str) -> dict[str, Any]:
        """One of the pack's workflows in API format, changed by `node.input=value`."""
        content = read_workflow(ROOT / "workflows" / f"{name}.json")
        return changed(as_prompt(content, self.get("/object_info")), list(assignments))

    def queue(self, prompt: dict[str, Any]) -> str:
        reply = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in reply, reply
        return reply["prompt_id"]

    def finished(self, prompt_id: str, patience: float = 300) -> dict[str, Any]:
        """The history of a prompt once it has ended, however it did."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.2)
        raise TimeoutError(f"Prompt {prompt_id} did not end in {patience} s:\n{self.log.read_text()[-4000:]}")

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        return self.finished(self.queue(prompt))


@contextmanager
def started_server(comfyui: Path, base: Path) -> Iterator[Server]:
    """A ComfyUI server with the pack in it, its files in `base`, run by COMFYUI_PYTHON where that is set.

    Its input folder has the picture that a new ComfyUI comes with.
    """
    (base / "input").mkdir(parents=True, exist_ok=True)
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    with running_server(comfyui, base, python=PYTHON) as running:
        yield Server(running)
