"""The command line: exit codes, one line for every bad input, and nothing half-written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import generate_quickly, refused, run, snapshot, train_quickly
from PIL import Image
from safetensors import SafetensorError

from anomalydiffusion_core.bases import diffusers_model
from anomalydiffusion_core.cli import app
from anomalydiffusion_core.cli.console import check_writable
from anomalydiffusion_core.method import artifact as artifact_module
from anomalydiffusion_core.method.artifact import load_artifact, save_artifact

COMMANDS = sorted(
    command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]
    for command in app.registered_commands
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"Example: anomalydiffusion {command}" in result.stdout


def test_importing_the_core_brings_no_diffusers_and_the_package_alone_no_torch() -> None:
    script = """
import importlib, pkgutil, sys
import anomalydiffusion_core as core
assert not {"torch", "PIL", "numpy", "diffusers"} & set(sys.modules), sorted(sys.modules)
for module in pkgutil.walk_packages(core.__path__, "anomalydiffusion_core."):
    if ".tiny_base" not in module.name:
        importlib.import_module(module.name)
        assert not {"diffusers", "transformers", "matplotlib", "comfy"} & set(sys.modules), module.name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# what is wrong with the dataset -> what the line says
def mask_missing(data: Path) -> str:
    (data / "thing/ground_truth/stain/001_mask.png").unlink()
    return "stain/001.png has no mask"


def two_masks(data: Path) -> str:
    Image.new("L", (64, 64)).save(data / "thing/ground_truth/stain/001.bmp")
    return "stain/001.png has several masks"


def mask_of_another_size(data: Path) -> str:
    mask = np.zeros((32, 48), np.uint8)
    mask[3:8, 3:8] = 255
    Image.fromarray(mask).save(data / "thing/ground_truth/stain/002_mask.png")
    return "002_mask.png is 48x32 but its image is 64x64"


def empty_mask(data: Path) -> str:
    Image.new("L", (64, 64)).save(data / "thing/ground_truth/stain/000_mask.png")
    return "stain/000_mask.png is empty"


def white_mask(data: Path) -> str:
    Image.new("L", (64, 64), 255).save(data / "thing/ground_truth/scratch/003_mask.png")
    return "scratch/003_mask.png is all white"


def truncated_image(data: Path) -> str:
    path = data / "thing/test/scratch/000.png"
    path.write_bytes(path.read_bytes()[:200])
    return "scratch/000.png cannot be read"


def empty_image(data: Path) -> str:
    (data / "thing/test/scratch/001.png").write_bytes(b"")
    return "scratch/001.png is empty (0 bytes)"


def text_for_a_mask(data: Path) -> str:
    (data / "thing/ground_truth/scratch/001_mask.png").write_text("mask")
    return "001_mask.png cannot be read"


def no_pairs(data: Path) -> str:
    for path in (data / "thing/test").rglob("*.png"):
        path.unlink()
    return "holds no defect pairs"


@pytest.mark.parametrize(
    "spoil",
    [
        mask_missing,
        two_masks,
        mask_of_another_size,
        empty_mask,
        white_mask,
        truncated_image,
        empty_image,
        text_for_a_mask,
        no_pairs,
    ],
)
def test_training_refuses_a_spoilt_dataset(
    base: Any, dataset: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    text = spoil(dataset)
    before = snapshot(tmp_path)
    refused(train_quickly(dataset, tmp_path / "new/a.safetensors"), text)
    assert snapshot(tmp_path) == before


def test_training_refuses_what_is_not_there(base: Any, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    before, out = snapshot(tmp_path), tmp_path / "new/a.safetensors"
    refused(train_quickly(tmp_path / "absent", out), "absent is no folder")
    refused(train_quickly(tmp_path / "empty", out), "holds no dataset")
    refused(train_quickly(dataset, out, "--category", "bolt"), "no category 'bolt'", "it has thing")
    refused(train_quickly(dataset, out, "--defect", "dent"), "no defect 'dent'", "it has scratch, stain")
    refused(train_quickly(dataset, out, "--size", 100), "100 is no multiple of 8")
    refused(train_quickly(dataset, out, "--device", "abacus"), "'abacus' cannot be used")
    wrong = train_quickly(dataset, out, "--loss", "least")
    assert wrong.exit_code == 2 and "'least' is not one of 'mask', 'released', 'unmasked'" in wrong.stderr
    assert snapshot(tmp_path) == before


def test_training_refuses_a_base_that_is_no_model(base: Any, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.safetensors").write_text("no checkpoint")
    before, out = snapshot(tmp_path), tmp_path / "new/a.safetensors"
    refused(train_quickly(dataset, out, "--base", tmp_path / "folder"), "folder is no diffusers model")
    refused(train_quickly(dataset, out, "--base", tmp_path / "absent"), "absent' does not exist")
    refused(train_quickly(dataset, out, "--base", tmp_path / "file.safetensors"), "file.safetensors")
    for path in (
        "folder/absent.safetensors",
        "C:/models/sd15",
        "C:\\models\\sd15.safetensors",
        "a/b/c",
        "./a",
    ):
        refused(train_quickly(dataset, out, "--base", path), f"Base model {path!r} does not exist")
    assert snapshot(tmp_path) == before


def test_outputs_are_refused_before_any_work(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(diffusers_model, "load_base", work)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").touch()
    before, under = snapshot(tmp_path), tmp_path / "file/below/out"
    refused(train_quickly(dataset, trained), "thing.safetensors exists already")
    refused(train_quickly(dataset, under), f"{tmp_path / 'file'} is a file")
    refused(run("masks", trained, "--out", tmp_path / "full"), "full exists already")
    refused(run("masks", trained, "--out", under), f"{tmp_path / 'file'} is a file")
    refused(generate_quickly(trained, dataset, tmp_path / "full"), "is not empty and has no manifest")
    refused(generate_quickly(trained, dataset, tmp_path / "file"), "is a file")
    refused(generate_quickly(trained, dataset, under), f"{tmp_path / 'file'} is a file")
    refused(run("report", dataset, "--out", under), f"{tmp_path / 'file'} is a file")
    refused(train_quickly(dataset, tmp_path / "new", "--json", under), f"{tmp_path / 'file'} is a file")
    refused(generate_quickly(trained, dataset, tmp_path / "new", "--json", dataset), f"{dataset} is a folder")
    refused(run("report", dataset, "--out", dataset), f"{dataset} is a folder: name a file in it")
    refused(
        generate_quickly(trained, dataset, tmp_path / "new", "--scheduler", "fast"), "no scheduler 'fast'"
    )
    refused(generate_quickly(trained, dataset, tmp_path / "new", "--guidance", "inf"), "Guidance of inf")
    refused(run("masks", trained, "--out", tmp_path / "new", "--guidance", "inf"), "Guidance of inf")
    lcm = generate_quickly(trained, dataset, tmp_path / "new", "--scheduler", "lcm", "--steps", 51)
    refused(lcm, "Scheduler lcm takes at most 50 steps, not 51")
    assert snapshot(tmp_path) == before


def test_a_drive_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)  # as of Z:\\ on Windows, down to its root
    with pytest.raises(ValueError, match="there is no /; choose another place"):
        check_writable(tmp_path / "out")


def test_a_read_only_folder_is_refused_before_any_work(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, access = tmp_path / "locked", os.access
    locked.mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: (mode != os.W_OK or Path(path) != locked) and access(path, mode)
    )
    refused(train_quickly(dataset, locked / "new/a.safetensors"), f"{locked} is read-only")
    refused(run("masks", trained, "--out", locked / "m"), f"{locked} is read-only")
    refused(generate_quickly(trained, dataset, locked), f"{locked} is read-only")
    assert list(locked.iterdir()) == []


def test_masks_need_a_mask_embedding(base: Any, trained: Path, tmp_path: Path) -> None:
    refused(
        run("masks", trained, "--out", tmp_path / "m", "--type", "thing/dent"),
        "this artifact has thing/scratch",
    )
    learned = load_artifact(trained)
    learned.mask = {}
    save_artifact(learned, tmp_path / "none.safetensors")
    refused(
        run("masks", tmp_path / "none.safetensors", "--out", tmp_path / "m"),
        "train with --mask-steps above 0",
    )
    assert not (tmp_path / "m").exists()


def test_a_folder_without_a_manifest_has_no_report(dataset: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    refused(run("report", dataset), "has no generated pairs")
    assert snapshot(tmp_path) == before


def test_a_full_disk_is_one_line_and_leaves_no_artifact(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifact_module, "save_file", full)
    refused(
        train_quickly(dataset, tmp_path / "a.safetensors"), "a.safetensors", "No space left", "free space"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_training_writes_an_artifact_and_a_summary(base: Any, dataset: Path, tmp_path: Path) -> None:
    out, summary = tmp_path / "new/a.safetensors", tmp_path / "new/summary.json"
    result = train_quickly(dataset, out, "--json", summary)
    assert result.exit_code == 0 and result.stderr == "" and f"Artifact: {out}" in result.stdout
    learned = load_artifact(out, base.fingerprint)
    assert sorted(learned.anomaly) == sorted(learned.mask) == ["thing/scratch", "thing/stain"]
    told = json.loads(summary.read_text())
    assert told["artifact"] == str(out) and told["pairs"] == {"thing/scratch": 4, "thing/stain": 3}
    assert told["interrupted"] is False and told["improvement"]["before"] > 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["a.safetensors", "summary.json"]


def test_evaluation_compares_and_writes_tables(dataset: Path, tmp_path: Path) -> None:
    (dataset / "thing/test/good").mkdir()
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(dataset / "thing/test/good/000.png")
    made, out = tmp_path / "made", tmp_path / "evaluation"
    shutil.copytree(dataset, made)
    shutil.rmtree(made / "thing/test/good")
    for number, path in enumerate(sorted((made / "thing/test").rglob("*.png"))):
        Image.fromarray(np.full((64, 64, 3), 50 + number, np.uint8)).save(path)
    arguments = ["evaluate", made, "--real", dataset, "--out", out, "--count", 3, "--seeds", 1]
    arguments += ["--share", 0.5, "--quick", "--steps", 1]
    result = run(*arguments, "--against", "cutpaste", "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.output
    assert {f.name for f in out.iterdir()} == {
        "runs",
        "baselines",
        "evaluation.json",
        "evaluation.csv",
        "evaluation.html",
    }
    assert set(json.loads((tmp_path / "e.json").read_text())["means"]) == {
        "made",
        "real few shots",
        "cutpaste",
    }
    wrong = run(*arguments, "--protocol", "best")
    assert wrong.exit_code == 2 and "'best' is not one of 'honest', 'paper'" in wrong.stderr
    refused(run(*arguments, "--against", "gan"), "no baseline 'gan'")
    refused(run(*arguments[:5], made, *arguments[6:]), "holds no earlier evaluation")


@pytest.mark.parametrize("moment", ["first step", "measuring", "views of masks", "mask steps"])
def test_an_interrupted_training_keeps_what_was_learned(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Interrupts at a call of the base, counted in a run without interruption."""
    calls = {"predict_noise": 0, "encode": 0}
    stop = {"predict_noise": 10**6, "encode": 10**6}

    def counted(name: str) -> Any:
        function = getattr(base, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            if calls[name] > stop[name]:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(base, name, counted(name))
    assert train_quickly(dataset, tmp_path / "whole.safetensors").exit_code == 0
    # 3 + 2 pairs are held out, 2 + 1 train; a measurement is 4 draws of each of the held-out in parts of 8
    held_out, training = 4, 3
    measure = -(-4 * held_out // 8)
    assert calls["predict_noise"] == measure + 3 + measure + 2
    name, number = {
        "first step": ("predict_noise", measure + 1),
        "measuring": ("predict_noise", measure + 3 + 1),
        "views of masks": ("encode", calls["encode"] - training),
        "mask steps": ("predict_noise", calls["predict_noise"] - 1),
    }[moment]
    calls.update(predict_noise=0, encode=0)
    stop[name] = number
    result = train_quickly(dataset, tmp_path / "cut.safetensors")
    assert result.exit_code == 130 and "Traceback" not in result.output
    learned, whole = (load_artifact(tmp_path / f"{which}.safetensors") for which in ("cut", "whole"))
    steps = 1 if moment == "first step" else 3
    assert learned.training["anomaly"]["steps"] == steps  # type: ignore[index]
    same = torch.equal(learned.anomaly["thing/stain"]["clip_l"], whole.anomaly["thing/stain"]["clip_l"])
    assert same is (moment != "first step")
    assert sorted(learned.mask) == (["thing/scratch", "thing/stain"] if moment == "mask steps" else [])


def test_an_interrupt_before_anything_was_learned_leaves_nothing(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "encode", interrupt)
    result = train_quickly(dataset, tmp_path / "a.safetensors")
    assert result.exit_code == 130
    said, again = result.stderr.splitlines()
    assert said == "Interrupted; nothing new was learned. Start again with:"
    assert shlex.split(again)[:3] == ["anomalydiffusion", "train", str(dataset)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
