"""The pack inside a real ComfyUI, loaded as ComfyUI loads it: by file location, ComfyUI's folder first."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_server import Server, comfyui_folder, started_server
from graph_inputs import DEMO, SAMPLER
from real_comfyui import import_pack
from torch import Tensor

Run = Callable[..., tuple]


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of a real ComfyUI."""
    return comfyui_folder()


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI server with the pack in it."""
    base = tmp_path_factory.mktemp("server") / "base"
    with started_server(comfyui, base) as server:
        yield server


@pytest.fixture(scope="session")
def pack(comfyui: Path) -> ModuleType:
    """The pack's root module; its parts are imported below the name `adiff_pack`."""
    return import_pack(comfyui)


@pytest.fixture(scope="session")
def run(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Executes a node by its id, as ComfyUI does, in folders of its own; returns its outputs."""
    import folder_paths  # type: ignore[import-not-found]

    root = tmp_path_factory.mktemp("comfyui")
    for kind in ("input", "output", "temp"):
        (root / kind).mkdir()
        getattr(folder_paths, f"set_{kind}_directory")(str(root / kind))
    folder_paths.folder_names_and_paths["anomalydiffusion"] = ([str(root / "configured")], set())
    extension = asyncio.run(pack.comfy_entrypoint())
    nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}

    def execute(node_id: str, **inputs: Any) -> tuple:
        with torch.inference_mode():
            return nodes[node_id].PREPARE_CLASS_CLONE({}).execute(**inputs).args

    execute.nodes, execute.root = nodes, root  # type: ignore[attr-defined]
    return execute


@pytest.fixture(autouse=True)
def no_training_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What trainings kept goes after each test, so that no test depends on those before it."""
    yield
    if "run" in request.fixturenames:
        output = request.getfixturevalue("run").root / "output" / "anomalydiffusion"
        for kept in ("training", "trained"):
            shutil.rmtree(output / kept, ignore_errors=True)


@pytest.fixture(scope="session")
def trained(run: Run) -> SimpleNamespace:
    """The embedded base, the demo's leather, and embeddings after a few steps."""
    model, clip, vae = run("ADiff_LoadTinyBase")
    dataset, normals, _ = run("ADiff_LoadDataset", **DEMO, normal_count=3)
    base = {"model": model, "clip": clip, "vae": vae}
    steps = {"steps": 6, "batch_size": 2, "share": 0.6, "seed": 0, "preview_every": 4}
    embeddings, summary = run("ADiff_TrainAnomaly", **base, dataset=dataset, **steps, size=128, tokens=8)
    assert "12 pairs to train on, 8 to measure on. " in summary and "the loss went from" in summary
    (embeddings,) = run("ADiff_TrainMasks", **base, dataset=dataset, embeddings=embeddings, **steps, tokens=4)
    return SimpleNamespace(base=base, dataset=dataset, normals=normals, embeddings=embeddings)


@pytest.fixture(scope="session")
def masks() -> Tensor:
    masks = torch.zeros(3, 128, 128)
    masks[0, 30:70, 40:80], masks[1, 90:110, 10:50], masks[2, 5:30, 100:120] = 1, 1, 1
    return masks


@pytest.fixture(scope="session")
def generated(run: Run, trained: SimpleNamespace) -> Run:
    """Runs KSampler (Anomaly) on masks and photos, with changed inputs; returns its outputs."""

    def execute(masks: Tensor, normals: Tensor = trained.normals, **changed: Any) -> tuple:
        positive, negative = run(
            "ADiff_AnomalyConditioning",
            **trained.base,
            embeddings=trained.embeddings,
            mask=masks,
            defect_type="leather/ink",
            template="a photo of a {}",
        )
        inputs = {"image": normals, "mask": masks, "mode": "adaptive", "strength": 1.0, "feather": 1.0}
        model, vae = trained.base["model"], trained.base["vae"]
        return run(
            "ADiff_KSampler",
            **{"model": model, "vae": vae, "positive": positive, "negative": negative, "seed": 1}
            | SAMPLER
            | inputs
            | changed,
        )

    return execute
