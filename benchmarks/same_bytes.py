"""Whether a change of the code changes any number: hashes of what a fixed training, a fixed generation and a
fixed run of KSampler (Anomaly) give. Run it on two checkouts, on one machine, and compare the lines.

Training: 20 steps of embeddings and 20 of masks on the demo's dataset. Generation: three pairs of each of its
four defect types, with the embeddings that come with the pack. KSampler: three photos in a real ComfyUI, in
every mode of re-weighting. Only commands, node ids and files are used, so that the checkouts may be laid out
differently.

    .venv/bin/python benchmarks/same_bytes.py --checkout . --comfyui .comfyui/ComfyUI
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

MODES = ("off", "released", "adaptive", "paper", "masked")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, default=Path("."))
    parser.add_argument("--comfyui", type=Path, required=True)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    checkout = options.checkout.resolve()
    with tempfile.TemporaryDirectory() as folder:
        hashes = in_comfyui(checkout, options.comfyui.resolve(), Path(folder))
        dataset = Path(folder) / "input" / "anomalydiffusion_demo"
        hashes |= by_commands(checkout, dataset, Path(folder))
    print(json.dumps(hashes, indent=1))


def in_comfyui(checkout: Path, comfyui: Path, folder: Path) -> dict[str, str]:
    """Hashes of the pictures that KSampler (Anomaly) gives, by mode; draws the demo's dataset."""
    sys.argv = [sys.argv[0]]
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = True
    spec = importlib.util.spec_from_file_location(
        "checked_pack", checkout / "__init__.py", submodule_search_locations=[str(checkout)]
    )
    assert spec and spec.loader  # a path to a file always has both
    pack: Any = importlib.util.module_from_spec(spec)
    sys.modules["checked_pack"] = pack
    spec.loader.exec_module(pack)
    import folder_paths  # type: ignore[import-not-found]

    for kind in ("input", "output", "temp"):
        (folder / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(folder / kind))
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(_nodes(pack))}

    def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        with torch.inference_mode():
            return nodes[node_id].PREPARE_CLASS_CLONE({}).execute(**inputs).args

    demo = {"source": "demo (drawn by the pack)", "folder": "", "category": "leather", "defects": ""}
    model, clip, vae = run("ADiff_LoadTinyBase")
    normals = run("ADiff_LoadDataset", **demo, normal_count=3)[1]
    embeddings = run("ADiff_LoadEmbeddings", name="demo (comes with the pack)")[0]
    masks = torch.zeros(3, 128, 128)
    masks[0, 30:70, 40:80], masks[1, 90:110, 10:50], masks[2, 5:30, 100:120] = 1, 1, 1
    base = {"model": model, "clip": clip, "vae": vae}
    name = {"embeddings": embeddings, "defect_type": "leather/ink"}
    positive, negative = run(
        "ADiff_AnomalyConditioning", **base, **name, mask=masks, template="a photo of a {}"
    )
    sampler = {"seed": 1, "steps": 8, "cfg": 2.5, "sampler_name": "euler_ancestral", "scheduler": "normal"}
    inputs = {"image": normals, "mask": masks, "strength": 1.0, "feather": 1.0, **sampler}
    inputs |= {"model": model, "vae": vae, "positive": positive, "negative": negative}
    hashes = {}
    for mode in MODES:
        images = run("ADiff_KSampler", **inputs, mode=mode)[0]
        hashes[f"KSampler {mode}"] = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]
    return hashes


async def _nodes(pack: Any) -> list[Any]:
    return await (await pack.comfy_entrypoint()).get_node_list()


def by_commands(checkout: Path, dataset: Path, folder: Path) -> dict[str, str]:
    """Hashes of what `train` learns, and of the photos and masks that `generate` writes."""
    artifact, generated = folder / "trained.safetensors", folder / "generated"
    _run(checkout, "train", dataset, "--out", artifact, "--steps", 20, "--mask-steps", 20, "--size", 128)
    demo = next(checkout.glob("anomalydiffusion_core/**/demo_embeddings.safetensors"))
    _run(checkout, "generate", demo, dataset, "--out", generated, "--count", 3)
    digest = hashlib.sha256()
    with safe_open(artifact, framework="pt") as file:
        for key in sorted(file.keys()):
            digest.update(key.encode() + file.get_tensor(key).numpy().tobytes())
    hashes = {"training": digest.hexdigest()[:16]}
    pictures = sorted(path for path in generated.rglob("*.png"))
    digest = hashlib.sha256()
    for path in pictures:
        digest.update(path.relative_to(generated).as_posix().encode() + path.read_bytes())
    return hashes | {f"generation ({len(pictures)} pictures)": digest.hexdigest()[:16]}


def _run(checkout: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "anomalydiffusion_core.cli", *map(str, arguments)]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
