"""A ComfyUI server of the tests' own, on a free loopback port, with the pack in its `custom_nodes`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Server:
    """Starts on construction; `close` ends it. Raises RuntimeError with its log when it does not come up."""

    def __init__(self, comfyui: Path, base: Path, patience: float = 180) -> None:
        for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "ComfyUI-AnomalyDiffusion").symlink_to(ROOT)
        self.base, self.log = base, base / "server.log"
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "main.py", "--cpu", "--use-pytorch-cross-attention"]
        command += ["--port", str(self.port), "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT)
        self._wait(patience)

    def _wait(self, patience: float) -> None:
        end = time.monotonic() + patience
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        self.close()
        raise RuntimeError(f"ComfyUI did not come up:\n{self.log.read_text()[-4000:]}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, content: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def queue(self, prompt: dict[str, Any]) -> str:
        return self.post("/prompt", {"prompt": prompt})["prompt_id"]

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

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
