"""Generate Pairs in a ComfyUI: its cost over the chain of single nodes, and whether its memory stays flat.

python benchmarks/generate_pairs.py --comfyui COMFYUI cost --tries 24
python benchmarks/generate_pairs.py --comfyui COMFYUI memory --pairs 1000 --photos 300

`cost` makes the same number of tries both ways, in turn, on the embedded base and the demo's leather: by
Generate Pairs, and by Generate Masks, Anomaly Conditioning, KSampler (Anomaly), Quality Gate and Save Anomaly
Dataset; CPU seconds per try. `memory` asks for many pairs in few steps on many photos, and gives the resident
memory after 50 pairs, at its most after them, and at the end, and how often each photo was used; then cancels
eleven runs, each after another time, and gives the seconds until they end, and how many pairs there are after
a last run that goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measurement import busy_seconds, use_one_thread
from PIL import Image
from real_comfyui import import_pack

TYPE = "leather/burn"
DEMO = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather", "defects": ""}
SAMPLER = {"steps": 25, "cfg": 2.5}
AAR = {"mode": "adaptive", "strength": 1.0}
CANCELLED_AFTER = 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0  # seconds
AS_CHAIN = {"mask_sources": "invented=1", "start": "noise"}  # its masks are invented, and none is pasted
CHECKS = "fill,contrast,seam,plausibility,duplicate"


class Nodes:
    """The pack's nodes in a ComfyUI, in folders of their own."""

    def __init__(self, comfyui: Path, root: Path) -> None:
        pack = import_pack(comfyui)
        import folder_paths  # type: ignore[import-not-found]

        for kind in ("input", "output", "temp"):
            (root / kind).mkdir(parents=True)
            getattr(folder_paths, f"set_{kind}_directory")(str(root / kind))
        extension = asyncio.run(pack.comfy_entrypoint())
        self.nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
        self.root = root
        model, clip, vae = self.run("ADiff_LoadTinyBase")
        self.base = {"model": model, "clip": clip, "vae": vae}
        self.embeddings = self.run("ADiff_LoadEmbeddings", name="demo (comes with the pack)")[0]

    def run(self, node_id: str, **inputs: Any) -> tuple:
        """A node's outputs."""
        import torch

        with torch.inference_mode():
            return self.nodes[node_id].PREPARE_CLASS_CLONE({}).execute(**inputs).args

    def generate(self, folder: str, count: int, **changed: Any) -> list[dict[str, Any]]:
        """Generate Pairs; the manifest's rows."""
        inputs = {
            "defect_type": TYPE, "seed": 0, "checks": CHECKS, "tries": 1, "batch_size": 4, "mask_sources": "",
        } | SAMPLER | AAR | changed  # fmt: skip
        self.run(
            "ADiff_GeneratePairs",
            **self.base,
            embeddings=self.embeddings,
            count=count,
            folder=folder,
            **inputs,
        )
        manifest = self.root / "output" / folder / "manifest.jsonl"
        return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def by_single_nodes(nodes: Nodes, dataset: Any, normals: Any, count: int, seed: int) -> None:
    """As many tries by the chain of nodes, four at a time, each kept whether the gate likes it or not."""
    base, known = nodes.base, {"embeddings": nodes.embeddings, "defect_type": TYPE}
    sampler = SAMPLER | {"sampler_name": "ddim", "scheduler": "normal"}
    for start in range(0, count, 4):
        photos = normals[start % len(normals) :][:4]
        number = seed + start
        (masks,) = nodes.run(
            "ADiff_GenerateMasks", **base, **known, count=4, **sampler, seed=number, normals=photos
        )
        positive, negative = nodes.run(
            "ADiff_AnomalyConditioning", **base, **known, mask=masks, template="a photo of a {}"
        )
        images, masks, *_ = nodes.run(
            "ADiff_KSampler", model=base["model"], positive=positive, negative=negative, vae=base["vae"],
            image=photos, mask=masks, seed=number, **sampler, **AAR, feather=1.0, dataset=dataset,
        )  # fmt: skip
        nodes.run(
            "ADiff_QualityGate", images=images, masks=masks, normals=photos, vae=base["vae"],
            smallest_fill=0.3, dataset=dataset, **known,
        )  # fmt: skip
        nodes.run(
            "ADiff_SaveDataset", images=images, masks=masks, defect_type=TYPE, folder="chain", normals=photos,
            embeddings=nodes.embeddings,
        )  # fmt: skip


def cost(nodes: Nodes, tries: int, rounds: int) -> dict[str, Any]:
    """CPU seconds per try both ways, in turn."""
    dataset, normals, _ = nodes.run("ADiff_LoadDataset", **DEMO, normal_count=24)
    seconds: dict[str, list[float]] = {"pairs": [], "chain": []}
    for number in range(rounds):
        start = busy_seconds("cpu")
        nodes.generate(f"pairs{number}", tries, seed=number, checks="", dataset=dataset, **AS_CHAIN)
        seconds["pairs"].append((busy_seconds("cpu") - start) / tries)
        start = busy_seconds("cpu")
        by_single_nodes(nodes, dataset, normals, tries, number)
        seconds["chain"].append((busy_seconds("cpu") - start) / tries)
    ratios = [a / b for a, b in zip(seconds["pairs"], seconds["chain"], strict=True)]
    return {"seconds_per_try": seconds, "pairs_over_chain": round(statistics.median(ratios), 3)}


def memory(nodes: Nodes, pairs: int, photos: int, size: int) -> dict[str, Any]:
    """Resident MiB after 50 pairs and at the end, and how many photos were used how often."""
    rng, root = np.random.default_rng(0), nodes.root / "input" / "many" / "leather"
    for number in range(photos):
        path = root / "train" / "good" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(90, 160, (size, size, 3), dtype=np.uint8)).save(path)
    folder = {"source": "folder", "folder": "many"}
    dataset = nodes.run("ADiff_LoadDataset", **DEMO | folder, normal_count=0)[0]
    few = {"steps": 2, "mode": "off", "checks": "", "tries": 2, "dataset": dataset}
    nodes.generate("many", 50, **few)
    early, most = resident(), Most(resident)
    with most:
        rows = nodes.generate("many", pairs, **few)
    used = Counter(Counter(row["normal"] for row in rows).values())
    result = {"pairs": len(rows), "photos_by_uses": dict(used)}
    result |= {"mib_after_50": early, "mib_at_most": most.value, "mib_at_end": resident()}
    late = [
        cancelled(partial(nodes.generate, "many", pairs + 400, **few), after) for after in CANCELLED_AFTER
    ]
    return result | {
        "seconds_to_cancel": late,
        "pairs_after_going_on": len(nodes.generate("many", pairs + 20, **few)),
    }


class Most:
    """The most that a figure reaches while this is open, looked at five times a second."""

    def __init__(self, figure: Callable[[], float]) -> None:
        self.figure, self.value, self.done = figure, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.done.wait(0.2):
            self.value = max(self.value, self.figure())

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def cancelled(run: Callable[[], object], after: float) -> float:
    """Seconds from Cancel, pressed `after` seconds from the start, to the end of a run."""
    from comfy import model_management  # type: ignore[import-not-found]

    pressed = 0.0

    def press() -> None:
        nonlocal pressed
        pressed = time.perf_counter()
        model_management.interrupt_current_processing(True)

    timer = threading.Timer(after, press)
    timer.start()
    try:
        run()
    except model_management.InterruptProcessingException:
        return round(time.perf_counter() - pressed, 2)
    raise SystemExit("A run ended before it could be cancelled: ask for more pairs.")


def resident() -> float:
    """Resident memory of this process, MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cost", "memory"))
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--tries", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI reads it
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        nodes = Nodes(options.comfyui, Path(folder))
        if options.what == "cost":
            result = cost(nodes, options.tries, options.rounds)
        else:
            result = memory(nodes, options.pairs, options.photos, options.size)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
