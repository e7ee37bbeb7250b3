"""The pack in a running ComfyUI server, driven by its API as a pipeline would."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.artifact import load_artifact
from anomalydiffusion_core.dataset.layout import find_dataset

PROMPTS = Path(__file__).parent / "prompts"
WORKFLOWS = Path(__file__).parents[2] / "workflows"


def load(name: str) -> dict[str, Any]:
    return json.loads((PROMPTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def server(comfyui: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = start_server(comfyui, tmp_path_factory.mktemp("server") / "base")
    yield server
    server.close()


@pytest.fixture(scope="module")
def first_run(server: Any) -> dict[str, Any]:
    return server.run(load("all_in_one"))


def status(entry: dict[str, Any]) -> str:
    return entry["status"]["status_str"]


def executed(entry: dict[str, Any]) -> set[str]:
    """Nodes that ran, which are all that were not taken from the cache."""
    for kind, content in entry["status"]["messages"]:
        if kind == "execution_cached":
            return set(load("all_in_one")) - set(content["nodes"])
    return set()


def error(entry: dict[str, Any]) -> dict[str, Any]:
    return next(content for kind, content in entry["status"]["messages"] if kind == "execution_error")


def test_everything_in_one_graph_ends_in_a_dataset(server: Any, first_run: dict[str, Any]) -> None:
    assert status(first_run) == "success", error(first_run)["exception_message"]
    output = server.base / "output" / "anomalydiffusion"
    dataset = find_dataset(output / "dataset")
    pairs = dataset.by_type()["leather/burn"]
    assert len(pairs) == 4 and len(dataset.categories["leather"].normals) == 4
    for pair in pairs:
        image, mask = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.mask))
        assert image.shape == (128, 128, 3) and set(np.unique(mask)) == {0, 255}
    learned = load_artifact(output / "embeddings_00001_.safetensors")
    assert sorted(learned.anomaly) == sorted(learned.mask) == ["leather/burn", "leather/ink"]


def test_the_same_prompt_again_uses_the_cache(server: Any, first_run: dict[str, Any]) -> None:
    again = server.run(load("all_in_one"))
    assert status(again) == "success" and not executed(again)
    other = load("all_in_one")
    other["sampler"]["inputs"]["seed"] = 7
    assert executed(server.run(other)) == {"sampler", "gate", "export"}


def test_declared_types_are_those_of_the_links(server: Any, first_run: dict[str, Any]) -> None:
    information, prompt = server.get("/object_info"), load("all_in_one")
    for node in prompt.values():
        declared = information[node["class_type"]]["input"]
        declared = {**declared.get("required", {}), **declared.get("optional", {})}
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = information[prompt[value[0]]["class_type"]]
                assert source["output"][value[1]] == declared[name][0]
    assert len([name for name in information if name.startswith("ADiff_")]) == 14


def test_an_error_in_a_node_is_a_sentence_and_the_server_goes_on(
    server: Any, first_run: dict[str, Any]
) -> None:
    wrong = load("all_in_one")
    wrong["prompt"]["inputs"]["defect_type"] = "leather/hole"
    entry = server.run(wrong)
    assert status(entry) == "error" and error(entry)["node_id"] == "prompt"
    message = error(entry)["exception_message"]
    assert "'leather/hole': this artifact has leather/burn, leather/ink" in message
    assert status(server.run(load("all_in_one"))) == "success"


def plain_prompt() -> dict[str, Any]:
    """Core nodes alone on the embedded base."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1]}}
    return {
        "base": {"class_type": "ADiff_LoadTinyBase", "inputs": {}},
        "positive": {**text, "inputs": {**text["inputs"], "text": "a photo of a brown leather"}},
        "negative": {**text, "inputs": {**text["inputs"], "text": ""}},
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["base", 0], "positive": ["positive", 0], "negative": ["negative", 0],
                "latent_image": ["latent", 0], "seed": 3, "steps": 6, "cfg": 3.0,
                "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "plain"}},
    }  # fmt: skip


def plain_picture(server: Any, name: str) -> np.ndarray:
    prompt = plain_prompt()
    prompt["save"]["inputs"]["filename_prefix"] = name  # so that the cache does not answer
    prompt["negative"]["inputs"]["text"] = " " * len(name)
    entry = server.run(prompt)
    assert status(entry) == "success"
    saved = entry["outputs"]["save"]["images"][0]
    return np.asarray(Image.open(server.base / "output" / saved["filename"]))


@pytest.mark.parametrize("node", ["anomaly", "sampler"])
def test_cancelling_leaves_the_server_usable_and_the_model_as_it_was(
    server: Any, first_run: dict[str, Any], node: str
) -> None:
    before = plain_picture(server, f"before_{node}")
    long = copy.deepcopy(load("all_in_one"))
    long[node]["inputs"]["steps"] = 1000
    long[node]["inputs"]["seed"] = 11
    prompt_id = server.queue(long)
    _wait_for_node(server, prompt_id)
    start = time.monotonic()
    server.post("/interrupt", {})
    entry = server.finished(prompt_id, patience=60)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert time.monotonic() - start < 30
    np.testing.assert_array_equal(plain_picture(server, f"afterw_{node}"), before)


def _wait_for_node(server: Any, prompt_id: str, seconds: float = 4) -> None:
    """Until the prompt is the running one, and some seconds into it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        running = server.get("/queue")["queue_running"]
        if running and running[0][1] == prompt_id:
            time.sleep(seconds)
            return
        time.sleep(0.1)
    raise TimeoutError("The prompt did not start.")


def test_the_pack_imports_in_a_moment(server: Any) -> None:
    lines = server.log.read_text().splitlines()
    line = next(line for line in lines if "ComfyUI-AnomalyDiffusion" in line and "seconds" in line)
    assert "IMPORT FAILED" not in line


def test_the_command_line_queues_a_workflow_as_the_browser_saves_it(
    server: Any, first_run: dict[str, Any], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "anomalydiffusion_core.cli",
        "queue",
        str(WORKFLOWS / "4_all_in_one.json"),
    ]
    command += ["--server", f"http://127.0.0.1:{server.port}", "--json", str(tmp_path / "summary.json")]
    short = {"ADiff_TrainAnomaly": 4, "ADiff_TrainMasks": 4, "ADiff_GenerateMasks": 12, "ADiff_KSampler": 6}
    for node, steps in short.items():
        command += ["--set", f"{node}.steps={steps}"]
    command += ["--set", "ADiff_QualityGate.smallest_fill=0", "--set", "ADiff_SaveDataset.folder=queued"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "summary.json").read_text())["jobs"]) == 1
    assert len(find_dataset(server.base / "output" / "queued").by_type()["leather/burn"]) == 8
    wrong = subprocess.run(
        [*command[:-2], "--set", "ADiff_AnomalyConditioning.defect_type=leather/hole"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "failed: There is no anomaly embedding for 'leather/hole'" in wrong.stderr
