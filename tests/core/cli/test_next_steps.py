"""Guards what commands say at their end: what was done, whether it helped, and a next command that runs."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import generate_quickly, refused, run, train_quickly

from anomalydiffusion_core.dataset.photos import short_hash
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.method.artifact import load_artifact, save_artifact

QUICK = ("--steps", 3, "--mask-steps", 2, "--size", 64)
GENERATED_QUICKLY = ("--count", 1, "--steps", 2, "--checks", "", "--mask-sources", "real")


def next_command(output: str) -> list[str]:
    """The arguments of the command that the last line names."""
    program, *words = shlex.split(output.splitlines()[-1])
    assert program == "anomalydiffusion", output
    return words


def test_a_training_says_how_many_pairs_train_and_the_next_command_generates(
    base: Any, dataset: Path, tmp_path: Path
) -> None:
    summary = tmp_path / "s.json"
    done = run("train", dataset, "--out", tmp_path / "my a.safetensors", *QUICK, "--json", summary)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "thing/scratch: 3 pairs to train on, 1 only to measure"
    assert lines[1] == "thing/stain: 3 pairs to train on, none only to measure"
    assert "6 pairs to train on, 1 to measure on. One pair says little about whether" in done.stdout
    told = json.loads(summary.read_text())
    assert told["training_pairs"] == {"thing/scratch": 3, "thing/stain": 3}
    trained_on = load_artifact(tmp_path / "my a.safetensors").trained_on
    assert {name: len(photos) for name, photos in trained_on.items()} == told["training_pairs"]
    words = next_command(done.stdout)
    assert words[:3] == ["generate", str(tmp_path / "my a.safetensors"), str(dataset)]
    made = run(*words, *GENERATED_QUICKLY)
    assert made.exit_code == 0 and (tmp_path / "generated/manifest.jsonl").is_file(), made.output
    reported = next_command(made.stdout)
    assert run(*reported).exit_code == 0 and (tmp_path / "generated/report.html").is_file()


def test_an_interrupted_training_names_the_command_that_goes_on(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_noise, calls = base.predict_noise, []

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return predict_noise(*arguments)

    monkeypatch.setattr(base, "predict_noise", interrupt)
    cut = train_quickly(dataset, tmp_path / "a.safetensors")
    monkeypatch.setattr(base, "predict_noise", predict_noise)
    assert cut.exit_code == 130 and "Interrupted; this is the best so far. Go on with:" in cut.stdout
    wanted = "so train again with --resume; 'generate' also takes masks of your own (--masks FOLDER)"
    refused(
        run("masks", tmp_path / "a.safetensors", "--out", tmp_path / "m"), "holds no mask embedding", wanted
    )
    words = ("generate", tmp_path / "a.safetensors", dataset, "--out", tmp_path / "g")
    invented = run(*words, "--mask-sources", "invented=1")
    refused(invented, "thing/scratch, thing/stain: its training was cut off before", wanted)
    assert run(*words, *GENERATED_QUICKLY).exit_code == 0  # by the real masks
    again = run(*next_command(cut.stdout))
    assert again.exit_code == 0 and load_artifact(tmp_path / "a.safetensors").mask, again.output


def test_masks_that_were_never_trained_are_told_apart_from_those_that_were_cut_off(
    base: Any, trained: Path, tmp_path: Path
) -> None:
    learned = load_artifact(trained)
    del learned.mask["thing/stain"]
    save_artifact(learned, tmp_path / "some.safetensors")
    wrong = run("masks", tmp_path / "some.safetensors", "--out", tmp_path / "m", "--type", "thing/stain")
    refused(wrong, "no mask embedding for thing/stain: train with --mask-steps above 0")


@pytest.mark.parametrize(
    ("pairs", "unasked"),
    [
        (0, "contrast (1), seam (3), plausibility (3), duplicate (2), tone (3), shape (3)"),
        (1, "seam (3), plausibility (3), duplicate (2), tone (3), shape (3)"),
        (2, "seam (3), plausibility (3), tone (3), shape (3)"),
    ],
)
def test_generate_says_what_its_gate_could_not_learn_to_ask(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, pairs: int, unasked: str
) -> None:
    learned = load_artifact(trained)
    photos = sorted((dataset / "thing/test/scratch").iterdir())[:pairs]
    learned.trained_on = {"thing/scratch": [short_hash(photo) for photo in photos]}
    save_artifact(learned, tmp_path / "a.safetensors")
    options = ("--type", "thing/scratch", "--count", 1, "--tries", 1, "--json", tmp_path / "s.json")
    made = generate_quickly(tmp_path / "a.safetensors", dataset, tmp_path / "g", *options)
    note = f"Not checked, for want of real pairs (known: {pairs}; needed: {unasked})."
    assert f"thing/scratch: {note} Look at the pairs.\n" in made.stdout
    asked, *left_out = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["gate"]["thing/scratch"]
    assert asked.startswith("Asked for: fill at least ") and note in left_out


def test_folders_of_images_and_masks_are_told_where_normal_photos_go(
    base: Any, dataset: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(dataset / "thing/test/scratch", flat / "images")
    shutil.copytree(dataset / "thing/ground_truth/scratch", flat / "masks")
    done = run("train", flat, "--out", tmp_path / "a.safetensors", *QUICK)
    assert done.exit_code == 0
    assert f"Pairs are made on photos of good parts: put some into {flat / 'good'}.\n" in done.stdout
    words = next_command(done.stdout)
    refused(run(*words, *GENERATED_QUICKLY), f"put photos of good parts into {flat / 'good'}")
    shutil.copytree(dataset / "thing/train/good", flat / "good")
    assert run(*words, *GENERATED_QUICKLY).exit_code == 0


def test_the_dataset_of_a_next_command_lies_outside_the_one_that_was_trained_on(
    base: Any, dataset: Path, tmp_path: Path
) -> None:
    done = train_quickly(dataset, dataset / "a.safetensors")
    words = next_command(done.stdout)
    assert words[words.index("--out") + 1] == str(tmp_path / "generated")


def test_masks_are_counted_to_the_asked_number(base: Any, trained: Path, tmp_path: Path) -> None:
    done = run("masks", trained, "--out", tmp_path / "m", "--count", 1, "--steps", 2)
    counted = [
        line.split("] ")[1].split("  ")[0] for line in done.stdout.splitlines() if line.startswith("[")
    ]
    assert counted and all(line.endswith(("0/1", "1/1")) for line in counted), counted


def test_pairs_of_other_settings_in_the_folder_are_told_and_where_none_was_made_none_are_shown(
    base: Any, trained: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    alone = generate_quickly(trained, dataset, out, "--checks", "", "--count", 1)
    assert alone.exit_code == 0 and "more pair" not in alone.stdout
    beside = generate_quickly(trained, dataset, out, "--checks", "", "--count", 1, "--seed", 1)
    assert "The folder holds 2 more pairs, of other settings, photos or types" in beside.stdout
    monkeypatch.setattr(PairGenerator, "judged", lambda self, pair: replace(pair, problems=("unfilled",)))
    none = generate_quickly(trained, dataset, tmp_path / "none", "--count", 1, "--tries", 1)
    assert none.exit_code == 2 and not (tmp_path / "none").exists()
    assert "Dataset:" not in none.stdout and "Next" not in none.stdout
