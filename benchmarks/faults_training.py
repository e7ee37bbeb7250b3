"""Faults that a training must survive, and how many it did, of how many.

- kill: kill -9 at random moments, each time resumed. Survived where what is on disk loads and goes on; and in
  the end the same must be learned, to the last bit, as without any of it.
- writer: a second training to the same artifact while the first runs. Survived where it is refused with exit
  code 2, and the first is not disturbed.
- disk: no space left for a checkpoint (a small tmpfs; none where it may not be mounted). Survived where the
  training ends with one line and exit code 2, and the last checkpoint is whole.
- loss: a loss that is no number from some step on. Survived where it ends with one line and exit code 2, and
  an artifact of finite numbers.

    .venv/bin/python benchmarks/faults_training.py --kills 20
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from anomalydiffusion_core.method.artifact import learned_hash, load_artifact
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

SIZE, STEPS, MASK_STEPS = 128, 40, 20
CHECKPOINT_MINUTES = 0.005  # a third of a second: some kills hit the writing itself
DIVERGING = """
import sys, torch
from anomalydiffusion_core.training import defects
loss, calls = defects.masked_loss, []
def diverging(*arguments, **options):
    calls.append(1)
    diverged = torch.is_grad_enabled() and len(calls) > 20
    return loss(*arguments, **options) * (float("nan") if diverged else 1.0)
defects.masked_loss = diverging
from anomalydiffusion_core.cli import app
app(sys.argv[1:])
"""


def command(data: Path, out: Path, *more: str, program: tuple[str, ...] = ()) -> list[str]:
    """A short training, as one types it."""
    start = [sys.executable, *(program or ("-m", "anomalydiffusion_core.cli"))]
    options = ["--size", SIZE, "--steps", STEPS, "--mask-steps", MASK_STEPS, "--batch", 2, "--device", "cpu"]
    options += ["--checkpoint-minutes", CHECKPOINT_MINUTES]
    return [str(part) for part in (*start, "train", data, "--out", out, *options, *more)]


def finished(arguments: list[str]) -> tuple[int, list[str]]:
    """Exit code, and lines on stderr, of a command that runs to its end."""
    ended = subprocess.run(arguments, capture_output=True, text=True)
    return ended.returncode, ended.stderr.splitlines()


def checkpoints(out: Path) -> list[Path]:
    """What is kept of a training."""
    return list(out.with_suffix(".training").glob("*.safetensors"))


def whole(paths: list[Path]) -> bool:
    """Whether every tensor of every file can be read."""
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
    return True


def resumed(out: Path) -> list[str]:
    """The option that a training needs to go on, if there is anything to go on with."""
    return ["--resume"] if checkpoints(out) else []


def killed(data: Path, folder: Path, kills: int, moments: random.Random) -> dict[str, object]:
    """Trains once in one go, and once with kills in between."""
    start, one_go, parts = time.monotonic(), folder / "one_go.safetensors", folder / "parts.safetensors"
    code, _ = finished(command(data, one_go))
    if code:
        raise RuntimeError(f"The training without faults ended with {code}.")
    seconds = time.monotonic() - start
    survived, with_checkpoint = 0, 0
    for _ in range(kills):
        process = subprocess.Popen(command(data, parts, *resumed(parts)), stdout=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.4, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        ended = process.wait()
        if parts.exists() and not checkpoints(parts):  # it was done: begin anew, so that the next hits it
            parts.unlink()
        survived += ended in (0, -signal.SIGKILL) and whole(checkpoints(parts))
        with_checkpoint += bool(checkpoints(parts))
    code, _ = finished(command(data, parts, *resumed(parts)))
    same = code == 0 and learned_hash(load_artifact(parts)) == learned_hash(load_artifact(one_go))
    return {
        "survived": survived,
        "faults": kills,
        "with_checkpoint": with_checkpoint,
        "same_in_the_end": same,
    }


def second_writer(data: Path, folder: Path) -> dict[str, object]:
    """Starts a second training while the first runs."""
    out = folder / "two.safetensors"
    first = subprocess.Popen(command(data, out), stdout=subprocess.DEVNULL)
    while first.poll() is None and not out.with_suffix(".training").exists():
        time.sleep(0.05)
    code, lines = finished(command(data, out))
    refused = code == 2 and len(lines) == 1 and "Another training is writing" in lines[0]
    return {"survived": int(refused and first.wait() == 0), "faults": 1}


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[bool]:
    """Mounts a tmpfs of that size on `folder`; False where that is not allowed."""
    folder.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(arguments, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(data: Path, folder: Path) -> dict[str, object]:
    """Trains where one checkpoint fits, and a second beside it, as it is written, does not."""
    survived, faults = 0, 0
    with small_disk(folder / "disk", 80) as mounted:
        if mounted:
            out, faults = folder / "disk" / "a.safetensors", 1
            code, lines = finished(command(data, out))
            survived = int(code == 2 and len(lines) == 1 and whole(checkpoints(out)))
    return {"survived": survived, "faults": faults}


def diverging_loss(data: Path, folder: Path) -> dict[str, object]:
    """Trains with a loss that becomes NaN."""
    out = folder / "nan.safetensors"
    code, lines = finished(command(data, out, program=("-c", DIVERGING)))
    told = code == 2 and len(lines) == 1 and "The loss became nan" in lines[0]
    finite = told and all(
        vector.isfinite().all() for type_ in load_artifact(out).anomaly.values() for vector in type_.values()
    )
    return {"survived": int(finite), "faults": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_few_shot_dataset(folder / "data", SIZE, pairs=3, normals=1)
        result = {
            "kill": killed(folder / "data", folder, options.kills, random.Random(options.seed)),
            "writer": second_writer(folder / "data", folder),
            "disk": full_disk(folder / "data", folder),
            "loss": diverging_loss(folder / "data", folder),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
