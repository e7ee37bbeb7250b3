"""Seconds per accepted pair, from the dataset's folder to the written pairs, and what they are spent on.

The job is `generate_all` at its defaults, on the demo's few-shot dataset with its shipped embeddings unless
told otherwise; loading the base is left out. It runs twice: plainly, for the seconds, which are CPU time of
one thread, and watched, for each stage's share. `calibrated` counts the types whose embeddings know the pairs
that trained them: of others the gate asks for fill alone, and takes less time.

    .venv/bin/python benchmarks/end_to_end.py --count 4
    .venv/bin/python benchmarks/end_to_end.py --artifact leather.safetensors --dataset data/leather
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from measurement import busy_seconds, use_one_thread

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base, load_onto
from anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS
from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.dataset.photos import file_hash
from anomalydiffusion_core.export.mvtec import MVTecWriter, read_manifest
from anomalydiffusion_core.generation.calibration import calibrated_gate
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.drafting import Drafter
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.runs import GenerationOutcome, GenerationRun, generate_all
from anomalydiffusion_core.masks.foreground import object_finder
from anomalydiffusion_core.masks.invention import invent_shapes
from anomalydiffusion_core.method.conditioning import anomaly_context, empty_context
from anomalydiffusion_core.method.sampling import inpaint
from anomalydiffusion_core.pretraining.demo import SIZE
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset

STAGES: dict[str, tuple[Callable[..., object], ...]] = {
    "masks": (invent_shapes,),
    "drafting": (object_finder, Drafter.draft),  # with reading normal photos, foreground and placement
    "prompts": (anomaly_context, empty_context),
    "encode": (DiffusersModel.encode,),
    "denoise": (inpaint,),
    "decode": (DiffusersModel.decode,),
    "stitch": (PairGenerator.make,),  # with cutting windows, restoring detail and choosing feathers
    "gate": (calibrated_gate, PairGenerator.judged, PairGenerator.remember),
    "write": (MVTecWriter.write, MVTecWriter.add_normals, file_hash),
}
OTHER = "other"  # such as finding the pairs that trained the model
OPEN = (OTHER, "drafting", "stitch")  # what these call may be another stage; the rest is all their own


@contextmanager
def watched(seconds: dict[str, float]) -> Iterator[None]:
    """While active, adds up the seconds of each stage."""
    stages = {inspect.unwrap(f).__code__: name for name, calls in STAGES.items() for f in calls}
    running: list[str | None] = []  # a stage per call of a stage's function, None where it stays in another's
    now, since = OTHER, busy_seconds("cpu")

    def on_event(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal now, since
        if event not in ("call", "return") or frame.f_code not in stages:
            return
        moment = busy_seconds("cpu")
        seconds[now] += moment - since
        if event == "call":
            running.append(now if now in OPEN else None)
            now = stages[frame.f_code] if now in OPEN else now
        else:
            now = running.pop() or now
        since = moment

    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)
        seconds[now] += busy_seconds("cpu") - since


def generate(run: GenerationRun, dataset: Dataset, count: int) -> tuple[GenerationOutcome, int]:
    """The accepted pairs, and how many were rejected."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = generate_all(run, dataset, count, out=Path(folder) / "out")
        return outcome, len(read_manifest(Path(folder) / "out" / "rejected"))


def measure(artifact: Path, dataset: Path, base: DiffusersModel, count: int) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    learned = load_onto(base, artifact)
    run, photos = (
        GenerationRun(learned, GenerationConfig(), base, artifact, keep_rejected=True),
        find_dataset(dataset),
    )
    start = busy_seconds("cpu")
    outcome, rejected = generate(run, photos, count)
    plain, seconds = busy_seconds("cpu") - start, defaultdict[str, float](float)
    with watched(seconds):
        generate(run, photos, count)
    accepted = len(outcome.rows)
    total = sum(seconds.values())
    shares = {name: seconds[name] / total for name in (*STAGES, OTHER)}
    return {
        "seconds_per_pair": round(plain / accepted, 3),
        "seconds_per_try": round(plain / (accepted + rejected), 3),
        "share": {name: round(share, 4) for name, share in shares.items()},
        "seconds_per_pair_by_stage": {
            name: round(share * plain / accepted, 4) for name, share in shares.items()
        },
        "watched_over_plain": round(total / plain, 3),
        "accepted": accepted,
        "rejected": rejected,
        "shortfalls": outcome.shortfalls,
        "calibrated": len(learned.trained_on),
        "types": len(learned.anomaly),
        "size": learned.image_size,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, default=DEMO_EMBEDDINGS)
    parser.add_argument("--dataset", type=Path, help="that trained the artifact; default: the demo's")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--count", type=int, default=4, help="accepted pairs per defect type")
    options = parser.parse_args()
    use_one_thread()
    base = load_base(options.base)
    with tempfile.TemporaryDirectory() as folder:
        if options.dataset is None:
            write_few_shot_dataset(Path(folder), SIZE)
        print(json.dumps(measure(options.artifact, options.dataset or Path(folder), base, options.count)))


if __name__ == "__main__":
    main()
