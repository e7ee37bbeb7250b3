"""Between the runs of one server: files listed at once, a gate that stops all pairs, a run that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_inputs import SAMPLER
from PIL import Image

from anomalydiffusion_core.method.reweighting import modes_of_pixels

Prompt = dict[str, dict[str, Any]]
DEMO_FILE = "demo (comes with the pack)"
PIXEL_MODE = modes_of_pixels()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def inputs_of_a_graph() -> Prompt:
    """Base, embeddings, two normal photos and two masks."""
    sources = {"generated": 0.0, "real": 0.0, "drawn": 0.0, "procedural": 1.0}
    return {
        "base": node("ADiff_LoadTinyBase"),
        "learned": node("ADiff_LoadEmbeddings", name=DEMO_FILE),
        "data": node(
            "ADiff_LoadDataset",
            source="demo (drawn by the pack)", folder="", category="leather", defects="", normal_count=2,
        ),
        "masks": node("ADiff_MixMasks", **sources, count=2, width=128, height=128, seed=4, defect_type=""),
    }  # fmt: skip


def gated(**changed: Any) -> Prompt:
    """Photos in which nothing was changed, before the gate."""
    gate = {"images": ["data", 1], "masks": ["masks", 0], "normals": ["data", 1], "vae": ["base", 2]}
    return {
        **inputs_of_a_graph(),
        "gate": node("ADiff_QualityGate", **gate, smallest_fill=0.3, **changed),
        "save": node(
            "ADiff_SaveDataset",
            images=["gate", 0], masks=["gate", 1], normals=["gate", 2], scores=["gate", 3],
            defect_type="leather/ink", folder="none_good",
        ),
        "report": node("PreviewAny", source=["gate", 4]),
        "left_out": node("PreviewImage", images=["gate", 5]),
    }  # fmt: skip


def with_words() -> Prompt:
    """The inputs, and the conditioning of a defect."""
    base = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "embeddings": ["learned", 0]}
    about = {"mask": ["masks", 0], "defect_type": "leather/ink", "template": "a photo of a {}"}
    return {**inputs_of_a_graph(), "words": node("ADiff_AnomalyConditioning", **base, **about)}


def sampled(name: str, seed: int, *, attention_maps: bool = False) -> Prompt:
    """Defects in two photos."""
    given = {"model": ["base", 0], "vae": ["base", 2], "image": ["data", 1], "mask": ["masks", 0]}
    given |= {"positive": ["words", 0], "negative": ["words", 1], "attention_maps": attention_maps}
    settings = {"mode": "adaptive", "strength": 1.0, "feather": 1.0, "seed": seed}
    return {
        **with_words(),
        "sampler": node("ADiff_KSampler", **given, **settings, **SAMPLER),
        "save": node("SaveImage", images=["sampler", 0], filename_prefix=name),
    }


def failing_in_the_sampler(seed: int) -> Prompt:
    """A re-weighted base that lacks the VAE it needs: it is patched already when its sampler raises."""
    reweighted = {"model": ["base", 0], "positive": ["words", 0], "mode": PIXEL_MODE, "strength": 1.0}
    words = {"positive": ["words", 0], "negative": ["words", 1]}
    return {
        **with_words(),
        "latent": node("VAEEncode", pixels=["data", 1], vae=["base", 2]),
        "marked": node("SetLatentNoiseMask", samples=["latent", 0], mask=["masks", 0]),
        "patched": node("ADiff_AttentionReweighting", **reweighted),
        "sampler": node(
            "KSampler",
            **words, **SAMPLER, model=["patched", 0], latent_image=["marked", 0], seed=seed, denoise=1.0,
        ),
        "picture": node("VAEDecode", samples=["sampler", 0], vae=["base", 2]),
        "save": node("SaveImage", images=["picture", 0], filename_prefix="wrong"),
    }  # fmt: skip


def status(entry: dict[str, Any]) -> str:
    return entry["status"]["status_str"]


def pictures(server: Any, entry: dict[str, Any], name: str = "save") -> np.ndarray:
    files = entry["outputs"][name]["images"]
    return np.stack(
        [np.asarray(Image.open(server.base / f["type"] / f["subfolder"] / f["filename"])) for f in files]
    )


def test_what_is_saved_can_be_chosen_at_once_and_a_name_that_is_gone_is_told(server: Any) -> None:
    def listed() -> list[str]:
        information = server.get("/object_info/ADiff_LoadEmbeddings")["ADiff_LoadEmbeddings"]
        kind, *settings = information["input"]["required"]["name"]
        return kind if isinstance(kind, list) else settings[0]["options"]

    name = "chosen_00001_.safetensors [output]"
    assert name not in listed()
    save = node("ADiff_SaveEmbeddings", embeddings=["learned", 0], filename_prefix="chosen")
    learned = inputs_of_a_graph()["learned"]
    entry = server.run({"learned": learned, "save": save})
    assert status(entry) == "success" and name in entry["outputs"]["save"]["text"][0]
    assert name in listed()
    load = {
        "learned": node("ADiff_LoadEmbeddings", name=name),
        "types": node("PreviewAny", source=["learned", 1]),
    }
    assert "metal/rust" in server.run(load)["outputs"]["types"]["text"][0]
    (server.base / "output" / "anomalydiffusion" / "chosen_00001_.safetensors").unlink()
    assert name not in listed()
    (told,) = server.post("/prompt", {"prompt": load})["node_errors"]["learned"]["errors"]
    assert f"There is no {name} in models/anomalydiffusion or output/anomalydiffusion" in told["details"]
    assert "choose one of these" in told["details"]


def test_a_dataset_s_folder_comes_from_the_list_from_an_older_graph_or_by_a_link(server: Any) -> None:
    assert (
        status(server.run({**inputs_of_a_graph(), "look": node("PreviewImage", images=["data", 1])}))
        == "success"
    )
    information = server.get("/object_info/ADiff_LoadDataset")["ADiff_LoadDataset"]
    kind, *settings = information["input"]["required"]["folder"]
    options = kind if isinstance(kind, list) else settings[0]["options"]
    assert "anomalydiffusion_demo/leather" in options and "anomalydiffusion_demo/leather/train" not in options
    absolute = str(server.base / "input" / "anomalydiffusion_demo")
    for folder in ("anomalydiffusion_demo", absolute, ["text", 0]):
        loader = node(
            "ADiff_LoadDataset", source="folder", folder=folder, category="", defects="", normal_count=1
        )
        prompt = {"data": loader, "types": node("PreviewAny", source=["data", 2])}
        prompt["text"] = node("PrimitiveString", value="anomalydiffusion_demo")
        entry = server.run(prompt)
        assert status(entry) == "success" and "metal/rust" in entry["outputs"]["types"]["text"][0]
        assert "metal/rust: 10 pairs" in entry["outputs"]["data"]["text"][0].splitlines()
    loader["inputs"]["folder"] = ""
    entry = server.run(prompt)
    (message,) = (
        m["exception_message"] for kind, m in entry["status"]["messages"] if kind == "execution_error"
    )
    assert message.startswith("No folder is chosen: put the dataset's folder into ComfyUI's input folder")


def test_where_no_pair_passes_all_are_shown_and_nothing_is_written(server: Any, tmp_path: Path) -> None:
    entry = server.run(gated())
    assert status(entry) == "success" and "save" not in entry["outputs"]
    assert not (server.base / "output" / "none_good").exists()
    assert len(entry["outputs"]["gate"]["images"]) == 1 + 2
    text = entry["outputs"]["report"]["text"][0]
    assert text == entry["outputs"]["gate"]["text"][0]
    assert text.startswith("0 of 2 pairs accepted (2 unfilled)\n- not calibrated: connect the dataset")
    assert len(entry["outputs"]["left_out"]["images"]) == 2


def test_the_command_line_says_why_a_job_ended_without_a_pair(server: Any, tmp_path: Path) -> None:
    (tmp_path / "gated.json").write_text(json.dumps(gated(duplicate=False)))
    command = [sys.executable, "-m", "anomalydiffusion_core.cli", "queue", str(tmp_path / "gated.json")]
    done = subprocess.run(
        [*command, "--server", server.url], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stdout
    assert (
        "Node save (ADiff_SaveDataset) was left out: None of 2 pairs is good enough: 2 unfilled"
        in done.stderr
    )


def test_a_run_that_fails_among_five_leaves_the_others_as_if_they_were_alone(server: Any) -> None:
    names = ("first", "second", "wrong", "first_again", "second_again")
    prompts = [
        sampled("first", 1),
        sampled("second", 2),
        failing_in_the_sampler(3),
        sampled("first_again", 1, attention_maps=True),  # so that it is not taken from the cache
        sampled("second_again", 2, attention_maps=True),
    ]
    entries = [server.finished(prompt_id) for prompt_id in [server.queue(prompt) for prompt in prompts]]
    assert [status(entry) for entry in entries] == ["success", "success", "error", "success", "success"]
    (failure,) = (m for kind, m in entries[2]["status"]["messages"] if kind == "execution_error")
    assert failure["node_type"] == "KSampler"
    assert f"AAR mode '{PIXEL_MODE}' compares pixels: give it the normal" in failure["exception_message"]
    made = {
        name: pictures(server, entry)
        for name, entry in zip(names, entries, strict=True)
        if "save" in entry["outputs"]
    }
    assert set(made) == set(names) - {"wrong"}
    for name in ("first", "second"):
        np.testing.assert_array_equal(made[name], made[f"{name}_again"])
    assert (made["first"] != made["second"]).any()


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_failed_run_leaves_no_files_behind(server: Any, place: str) -> None:
    def files() -> set[Path]:
        return {path for path in (server.base / place).rglob("*") if path.is_file()}

    draws_the_demo_set = {**inputs_of_a_graph(), "look": node("PreviewImage", images=["data", 1])}
    server.run(draws_the_demo_set)
    before = files()
    assert status(server.run(failing_in_the_sampler(5))) == "error"
    assert files() == before
