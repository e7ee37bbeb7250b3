"""The pack in a running ComfyUI server, driven by its API as a pipeline would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.export.mvtec import read_manifest
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.report.report import write_report

WORKFLOWS = Path(__file__).parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SHORT_TRAINING = [
    "ADiff_TrainAnomaly.steps=8", "ADiff_TrainAnomaly.batch_size=2", "ADiff_TrainAnomaly.preview_every=4",
    "ADiff_TrainMasks.steps=6", "ADiff_TrainMasks.batch_size=2", "ADiff_TrainMasks.preview_every=3",
    "ADiff_TuneSettings.tries=1",
]  # fmt: skip
FEW_PAIRS = [
    f"ADiff_GeneratePairs.{x}" for x in ("steps=8", "count=4", "checks=", "defect_type=leather/burn")
]
FEW_MASKS = ["ADiff_GenerateMasks.count=4", "ADiff_GenerateMasks.steps=12"]
CHECKS = ("fill", "contrast", "seam", "plausibility", "duplicate", "tone", "shape")
NO_GATE = [f"ADiff_QualityGate.{check}=false" for check in CHECKS]
FEW_PHOTOS = ["Large normal photos.normal_count=4", "Large normal photos.demo_size=128"]
FEW_DEFECTS = [*FEW_MASKS, *FEW_PHOTOS, "ADiff_KSampler.steps=8"]


def your_photos(server: Any, *changes: str) -> dict[str, Any]:
    """Training and pairs by Generate Pairs."""
    return server.workflow("1_your_photos", *SHORT_TRAINING, *FEW_PAIRS, *changes)


def node_by_node(server: Any, *changes: str) -> dict[str, Any]:
    """Pairs by single nodes, from the embeddings that come with the pack."""
    return server.workflow("7_large_photos", *FEW_DEFECTS, *NO_GATE, *changes)


@pytest.fixture(scope="module")
def first_run(server: Any) -> dict[str, Any]:
    return server.run(your_photos(server))


def status(entry: dict[str, Any]) -> str:
    return entry["status"]["status_str"]


def error(entry: dict[str, Any]) -> dict[str, Any]:
    return next(content for kind, content in entry["status"]["messages"] if kind == "execution_error")


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    assert status(entry) == "success", error(entry)["exception_message"]
    return entry


def executed(entry: dict[str, Any], prompt: dict[str, Any]) -> set[str]:
    """Types of the nodes that ran, which are all that were not taken from the cache."""
    cached = next(
        content["nodes"] for kind, content in entry["status"]["messages"] if kind == "execution_cached"
    )
    return {node["class_type"] for node_id, node in prompt.items() if node_id not in cached}


def number_of(prompt: dict[str, Any], node_type: str) -> str:
    (number,) = (number for number, node in prompt.items() if node["class_type"] == node_type)
    return number


def saved_pictures(server: Any, entry: dict[str, Any]) -> list[np.ndarray]:
    files = [f for output in entry["outputs"].values() for f in output.get("images", [])]
    kept = [f for f in files if f["type"] == "output"]
    return [np.asarray(Image.open(server.base / "output" / f["subfolder"] / f["filename"])) for f in kept]


def test_one_graph_leads_from_a_few_shot_set_to_a_dataset(server: Any, first_run: dict[str, Any]) -> None:
    succeeded(first_run)
    output = server.base / "output" / "anomalydiffusion"
    pairs = find_dataset(output / "dataset").by_type()["leather/burn"]
    assert len(pairs) == 4
    for pair in pairs:
        image, mask = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.mask))
        assert image.shape == (128, 128, 3) and set(np.unique(mask)) == {0, 255}
    learned = load_artifact(output / "embeddings_00001_.safetensors")
    types = ["leather/burn", "leather/ink", "metal/rust", "metal/weld_spatter"]
    assert sorted(learned.anomaly) == sorted(learned.mask) == types


def test_the_manifest_says_how_each_pair_was_made_and_the_report_reads_it(
    server: Any, first_run: dict[str, Any], tmp_path: Path
) -> None:
    root = server.base / "output" / "anomalydiffusion" / "dataset"
    rows = [row for row in read_manifest(root) if row["run"] == read_manifest(root)[0]["run"]]
    learned = load_artifact(root.parent / "embeddings_00001_.safetensors")
    assert len({row["normal"] for row in rows[:4]}) == 4
    for row in rows:
        assert (row["base_family"], row["base_weights"]) == ("tiny", learned.base.weights)
        assert 0 <= row["fill"] <= 1 and row["noise"] >= 1 and len(row["learned_sha256"]) == 64
    figures = write_report(root, tmp_path / "report.html", learned)
    assert figures["changed_outside"] == 0 and "leather/burn" in figures["by_type"]


def test_asked_for_more_the_graph_goes_on_without_a_new_training(
    server: Any, first_run: dict[str, Any]
) -> None:
    root = server.base / "output" / "anomalydiffusion" / "dataset"
    before = read_manifest(root)
    prompt = your_photos(server, "ADiff_GeneratePairs.count=6")
    assert executed(succeeded(server.run(prompt)), prompt) == {"ADiff_GeneratePairs"}
    assert read_manifest(root)[: len(before)] == before and len(read_manifest(root)) == 6


def test_trained_embeddings_are_saved_and_masks_invented_from_the_demo_s(server: Any) -> None:
    succeeded(server.run(server.workflow("2_train", *SHORT_TRAINING)))
    entry = succeeded(server.run(server.workflow("3_masks", *FEW_MASKS, "ADiff_MixMasks.count=8")))
    masks = saved_pictures(server, entry)
    assert len(masks) == 8  # as many as photos
    assert all(mask.shape[:2] == (128, 128) and set(np.unique(mask)) == {0, 255} for mask in masks)
    assert [x.name for x in (server.base / "output").rglob("embeddings_*.safetensors")]


def test_pairs_are_made_from_the_embeddings_that_come_with_the_pack(server: Any) -> None:
    changes = ["ADiff_SaveDataset.folder=synthesised", "Defect type.value=leather/ink"]
    succeeded(server.run(node_by_node(server, *changes)))
    root = server.base / "output" / "synthesised"
    dataset, rows = find_dataset(root), read_manifest(root)
    assert len(dataset.by_type()["leather/ink"]) == 4 and len(dataset.categories["leather"].normals) == 4
    assert len({row["normal"] for row in rows}) == 4 and np.mean([row["fill"] for row in rows]) > 0.3
    for row in rows:
        assert "ADiff_KSampler" in {node["class_type"] for node in row["prompt"].values()}


def test_a_calibrated_gate_says_so_in_its_report_and_the_manifest(server: Any) -> None:
    changes = ["Defect type.value=leather/ink", "ADiff_SaveDataset.folder=gated"]
    prompt = server.workflow("7_large_photos", *FEW_DEFECTS, *changes, "ADiff_QualityGate.plausibility=false")
    gate, photos = number_of(prompt, "ADiff_QualityGate"), number_of(prompt, "ADiff_LoadDataset")
    for node in (gate, number_of(prompt, "ADiff_KSampler")):
        prompt[node]["inputs"]["dataset"] = [photos, 0]
    text = succeeded(server.run(prompt))["outputs"][gate]["text"][0]
    lines = text.splitlines()
    assert lines[0].endswith(" of 4 pairs accepted") or " of 4 pairs accepted (" in lines[0]
    assert lines[1].startswith("- calibrated on ") and "leather/ink" in lines[1]
    assert all(f"{check} at " in lines[2] for check in CHECKS if check not in ("plausibility", "shape"))
    assert [line.split(":")[0] for line in lines[-4:]] == [f"- pair {number}" for number in range(4)]
    rows = read_manifest(server.base / "output" / "gated")
    assert len(rows) == int(lines[0].split()[0]) == 4 - text.count("left out")
    for row in rows:
        assert set(row["scores"]) == set(row["thresholds"]) == set(CHECKS)
        assert row["scores"]["contrast"] >= row["thresholds"]["contrast"]


def test_defects_are_made_at_native_resolution_in_large_photos(server: Any) -> None:
    short = ["ADiff_KSampler.steps=4", "ADiff_GenerateMasks.count=2", "Large normal photos.normal_count=2"]
    prompt = server.workflow("7_large_photos", *short, *NO_GATE, "ADiff_SaveDataset.folder=native")
    succeeded(server.run(prompt))
    root = server.base / "output" / "native"
    for row in read_manifest(root):
        image, normal, mask = (np.asarray(Image.open(root / row[k])) for k in ("image", "normal", "mask"))
        assert image.shape == normal.shape == (512, 512, 3) and mask.shape == (512, 512)
        changed = (image != normal).any(-1)
        assert not changed[mask == 0].any() and changed[mask > 0].mean() > 0.5


def test_a_mask_is_invented_until_one_is_drawn(server: Any) -> None:
    short = ["ADiff_GenerateMasks.steps=12", "ADiff_KSampler.steps=4", *NO_GATE]
    prompt = server.workflow("4_draw_a_mask", *short, "ADiff_SaveDataset.folder=undrawn")
    assert "ADiff_GenerateMasks" in executed(succeeded(server.run(prompt)), prompt)
    (row,) = read_manifest(server.base / "output" / "undrawn")
    assert Image.open(server.base / "output" / "undrawn" / row["mask"]).size == (768, 768)
    drawn = np.zeros((90, 140), bool)
    drawn[30:50, 60:100] = True
    photo = Image.new("RGB", (140, 90), "gray")
    photo.putalpha(Image.fromarray(np.where(drawn, 0, 255).astype(np.uint8)))  # as the mask editor saves it
    photo.save(server.base / "input" / "drawn.png")
    changes = ["Photo of a good part.image=drawn.png", "ADiff_SaveDataset.folder=drawn"]
    prompt = server.workflow("4_draw_a_mask", *short, "ADiff_GenerateMasks.seed=9", *changes)
    entry = succeeded(server.run(prompt))
    assert number_of(prompt, "ADiff_GenerateMasks") not in entry["outputs"]  # it was not asked for
    (row,) = read_manifest(server.base / "output" / "drawn")
    mask = np.asarray(Image.open(server.base / "output" / "drawn" / row["mask"]))
    np.testing.assert_array_equal(mask > 0, drawn)


def write_lora(path: Path) -> None:
    """A LoRA for one self-attention of the embedded base, in ComfyUI's own key names."""
    generator = torch.Generator().manual_seed(0)
    layer = "diffusion_model.output_blocks.4.1.transformer_blocks.0.attn1.to_out.0"
    up, down = torch.randn((96, 4), generator=generator), torch.randn((4, 96), generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}, path)


def test_reweighting_works_on_the_plain_sampler_with_and_without_a_lora(server: Any) -> None:
    write_lora(server.base / "models" / "loras" / "odd.safetensors")
    short = [*FEW_MASKS, "KSampler.steps=6", "ADiff_AttentionReweighting.strength=5"]
    prompt = server.workflow("6_reweighting_and_lora", *short)
    assert "LoraLoaderModelOnly" not in {node["class_type"] for node in prompt.values()}  # bypassed
    plain = saved_pictures(server, succeeded(server.run(prompt)))
    reweighting = next(n for n in prompt.values() if n["class_type"] == "ADiff_AttentionReweighting")
    inputs = {"model": reweighting["inputs"]["model"], "lora_name": "odd.safetensors", "strength_model": 0.2}
    prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    reweighting["inputs"]["model"] = ["lora", 0]
    with_lora = saved_pictures(server, succeeded(server.run(prompt)))
    reweighting["inputs"]["strength"] = 0.0
    unweighted = saved_pictures(server, succeeded(server.run(prompt)))
    assert len(plain) == len(with_lora) == 4
    for first, second in ((plain, with_lora), (with_lora, unweighted)):
        difference = np.abs(np.stack(first).astype(int) - np.stack(second))
        assert difference.max() > 8


def test_the_same_prompt_again_uses_the_cache(server: Any) -> None:
    prompt = node_by_node(server, "ADiff_SaveDataset.folder=cached")
    succeeded(server.run(prompt))
    assert not executed(succeeded(server.run(prompt)), prompt)
    other = node_by_node(server, "ADiff_SaveDataset.folder=cached", "ADiff_KSampler.seed=7")
    expected = {"ADiff_KSampler", "ADiff_StitchRegions", "ADiff_QualityGate", "ADiff_SaveDataset"}
    assert executed(server.run(other), other) == expected


def test_changed_files_are_read_again(server: Any) -> None:
    models = server.base / "models" / "anomalydiffusion"
    models.mkdir(parents=True, exist_ok=True)
    file = models / "mine.safetensors"
    file.write_bytes(DEMO_EMBEDDINGS.read_bytes())
    prompt = server.workflow("3_masks", *FEW_MASKS, "ADiff_LoadEmbeddings.name=mine.safetensors")
    assert "ADiff_LoadEmbeddings" in executed(succeeded(server.run(prompt)), prompt)
    assert not executed(succeeded(server.run(prompt)), prompt)
    os.utime(file, ns=(1, 1))
    assert "ADiff_LoadEmbeddings" in executed(succeeded(server.run(prompt)), prompt)


def test_the_evaluation_s_graph_ends_in_figures_and_heat_maps(server: Any) -> None:
    short = ["ADiff_GenerateMasks.count=4", "Real dataset.normal_count=4", "ADiff_KSampler.steps=8"]
    short += ["ADiff_TrainLocalizer.steps=4", "ADiff_TrainLocalizer.size=64"]
    prompt = server.workflow("5_evaluate", *short)
    outputs = succeeded(server.run(prompt))["outputs"]
    nodes = {node["class_type"]: outputs.get(number, {}) for number, node in prompt.items()}
    assert "copies of training defects" in nodes["ADiff_GenerationMetrics"]["text"][0]
    assert "all: pixel_auroc" in nodes["ADiff_EvaluateLocalizer"]["text"][0]
    _figures, picture = nodes["ADiff_EvaluateLocalizer"]["images"]
    assert Image.open(server.base / "temp" / picture["filename"]).size == (3 * 64, 1 * 64)


@pytest.mark.parametrize(
    ("changes", "node", "words"),
    [
        (
            ["Defect type.value=leather/hole"],
            "ADiff_GenerateMasks",
            "no mask embedding for 'leather/hole': this artifact has leather/burn, leather/ink, metal",
        ),
        (
            ["Large normal photos.source=folder", "Large normal photos.folder=/etc"],
            "ADiff_LoadDataset",
            "Folder '/etc' lies outside ComfyUI's input and output folders: move or link it into",
        ),
        (
            ["Large normal photos.source=folder", "Large normal photos.folder=missing"],
            "ADiff_LoadDataset",
            "missing",
        ),
    ],
)
def test_an_error_in_a_node_is_a_sentence_and_the_server_goes_on(
    server: Any, changes: list[str], node: str, words: str
) -> None:
    entry = server.run(node_by_node(server, *changes))
    assert status(entry) == "error" and error(entry)["node_type"] == node
    assert words in error(entry)["exception_message"]
    assert "Traceback" not in error(entry)["exception_message"]
    assert status(server.run(node_by_node(server))) == "success"


def test_a_missing_artifact_is_told_with_where_it_belongs(server: Any) -> None:
    prompt = server.workflow("3_masks", "ADiff_LoadEmbeddings.name=none.safetensors")
    (refused,) = server.post("/prompt", {"prompt": prompt})["node_errors"].values()
    assert refused["class_type"] == "ADiff_LoadEmbeddings"
    message = refused["errors"][0]["details"]
    assert "There is no none.safetensors in models/anomalydiffusion or output/anomalydiffusion" in message
    assert "put the file there and press R" in message


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
    (picture,) = saved_pictures(server, succeeded(server.run(prompt)))
    return picture


@pytest.mark.parametrize(
    ("graph", "node"),
    [
        (your_photos, "ADiff_TrainAnomaly"),
        (your_photos, "ADiff_GeneratePairs"),
        (node_by_node, "ADiff_KSampler"),
    ],
)
def test_cancelling_leaves_the_server_usable_and_the_model_as_it_was(
    server: Any, first_run: dict[str, Any], graph: Callable[..., dict[str, Any]], node: str
) -> None:
    before = plain_picture(server, f"before_{node}")
    prompt_id = server.queue(graph(server, f"{node}.steps=1000", f"{node}.seed=11"))
    _wait_for_node(server, prompt_id)
    start = time.monotonic()
    server.post("/interrupt", {})
    entry = server.finished(prompt_id, patience=60)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert time.monotonic() - start < 30
    np.testing.assert_array_equal(plain_picture(server, f"afterw_{node}"), before)


def test_an_error_in_a_training_leaves_the_model_as_it_was(server: Any, first_run: dict[str, Any]) -> None:
    before = plain_picture(server, "before_an_error")
    entry = server.run(your_photos(server, "ADiff_TrainAnomaly.size=100"))  # no whole number of latent cells
    assert error(entry)["node_type"] == "ADiff_TrainAnomaly"
    assert "no multiple of 8 pixels" in error(entry)["exception_message"]
    np.testing.assert_array_equal(plain_picture(server, "afterw_an_error"), before)


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


def test_the_command_line_queues_a_workflow_as_the_browser_saves_it(server: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "anomalydiffusion_core.cli",
        "queue",
        str(WORKFLOWS / "7_large_photos.json"),
    ]
    command += ["--server", server.url, "--count", "2", "--json", str(tmp_path / "summary.json")]
    for change in [*FEW_DEFECTS, *NO_GATE, "ADiff_SaveDataset.folder=queued"]:
        command += ["--set", change]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    jobs = json.loads((tmp_path / "summary.json").read_text())["jobs"]
    histories = [server.get(f"/history/{job['id']}")[job["id"]] for job in jobs]
    again = executed(histories[1], histories[1]["prompt"][2])
    assert "ADiff_GenerateMasks" in again and "ADiff_LoadEmbeddings" not in again  # loaded once for both
    rows = read_manifest(server.base / "output" / "queued")
    assert len(rows) == len({row["mask_sha256"] for row in rows}) == 8
    wrong = subprocess.run(
        [*command, "--set", "Defect type.value=leather/hole"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "failed: There is no mask embedding for 'leather/hole'" in wrong.stderr
