"""nodes/generation.py: accepted pairs on disk by one node, as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from graph_inputs import DEMO
from PIL import Image

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.export.mvtec import read_manifest
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig, Start
from anomalydiffusion_core.generation.runs import GenerationRun, generate_all
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig

TYPE = "leather/burn"
QUICK = {
    "defect_type": TYPE, "seed": 3, "steps": 4, "cfg": 2.5, "mode": "adaptive", "strength": 1.0, "checks": "",
    "tries": 4, "batch_size": 4,
}  # fmt: skip
GREY_LEVEL = 1  # hosts differ in the last bit of a float, which rounding may show as one grey level


class Demo(SimpleNamespace):
    """The embedded base, the embeddings that come with the pack, and the demo's leather."""

    def generate(self, folder: str, count: int, **changed: Any) -> Any:
        """What Generate Pairs gives back."""
        node = self.run.nodes["ADiff_GeneratePairs"].PREPARE_CLASS_CLONE({})
        inputs = self.base | QUICK | {"count": count, "folder": folder, "dataset": self.dataset} | changed
        with torch.inference_mode():
            return node.execute(embeddings=self.embeddings, **inputs)

    def output(self, folder: str) -> Path:
        return self.run.root / "output" / folder

    @property
    def dataset_root(self) -> Path:
        return Path(self.dataset.root)


@pytest.fixture(scope="module")
def demo(run: Any) -> Demo:
    model, clip, vae = run("ADiff_LoadTinyBase")
    dataset = run("ADiff_LoadDataset", **DEMO, normal_count=1)[0]
    embeddings = run("ADiff_LoadEmbeddings", name="demo (comes with the pack)")[0]
    base = {"model": model, "clip": clip, "vae": vae}
    return Demo(run=run, base=base, dataset=dataset, embeddings=embeddings)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def text(result: Any) -> str:
    return result.ui["text"][0]


@pytest.mark.parametrize("start", ["noise", "pasted"])
def test_the_node_makes_what_the_command_makes_with_the_same_settings(
    demo: Demo, tmp_path: Path, start: Start
) -> None:
    demo.generate(f"same_{start}", 3, start=start)
    config = GenerationConfig(
        SamplingConfig(steps=4, guidance=2.5, aar=AARConfig("adaptive", 1.0)),
        gate=GateConfig(()),
        seed=3,
        tries_per_pair=4,
        start=start,
    )
    run = GenerationRun(load_artifact(DEMO_EMBEDDINGS), config, load_base("tiny"))
    generate_all(
        run, find_dataset(demo.dataset_root, "leather"), 3, out=tmp_path / "out", defect_types=[TYPE]
    )
    ours, theirs = (read_manifest(root) for root in (demo.output(f"same_{start}"), tmp_path / "out"))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        for key in (
            "run",
            "index",
            "mask_number",
            "normal",
            "normal_sha256",
            "template",
            "mask_sha256",
            "pasted_from",
        ):
            assert a[key] == b[key], key
        photos = pixels(demo.output(f"same_{start}") / a["image"]), pixels(tmp_path / "out" / b["image"])
        difference = np.abs(photos[0] - photos[1])
        assert difference.max() <= GREY_LEVEL and (difference > 0).mean() < 1e-3


def test_a_run_goes_on_from_what_is_there_and_makes_nothing_twice(demo: Demo) -> None:
    demo.generate("more", 2)
    first = [row["image_sha256"] for row in read_manifest(demo.output("more"))]
    result = demo.generate("more", 3)
    again = read_manifest(demo.output("more"))
    assert [row["image_sha256"] for row in again[:2]] == first and len(again) == 3
    assert f"{TYPE}: 3 of 3 pairs accepted" in text(result) and "Made now: 1 in 1 tries" in text(result)
    assert "The folder holds" not in text(result)
    result = demo.generate("more", 1, seed=4)
    assert "The folder holds 3 more pairs, of other settings" in text(result)
    for row in again:
        assert (demo.output("more") / row["image"]).is_file()
    result = demo.generate("more", 3)
    assert len(read_manifest(demo.output("more"))) == 4 and "Nothing had to be made" in text(result)
    assert len(result.ui["images"]) == 1 + 3  # the report, and the pairs that are there


def test_a_shortfall_is_told_with_pictures_of_what_was_refused_and_why(demo: Demo) -> None:
    hard = {"checks": "plausibility", "start": "noise", "mask_sources": "invented=1"}
    result = demo.generate("short", 1, steps=1, strength=0.0, tries=2, **hard)
    assert not read_manifest(demo.output("short"))
    assert "Only 0 of 1 pairs of leather/burn were accepted in 2 tries (2 implausible" in text(result)
    assert "unlike the real defects: " in text(result) and "Train longer" in text(result)
    assert result.args[0].message == text(result)  # later nodes have nothing to read
    assert len(result.ui["images"]) == 1 + 2


def test_own_photos_of_another_size_and_own_masks_are_used_as_they_are(demo: Demo) -> None:
    photos = torch.rand(2, 300, 700, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3)
    masks = torch.zeros(1, 300, 700)
    masks[0, 100:140, 600:660] = 1
    demo.generate("own", 2, dataset=None, images=photos, masks=masks)
    rows = read_manifest(demo.output("own"))
    assert len({row["normal"] for row in rows}) == 2 and {row["mask_sources"][:7] for row in rows} == {
        "given=1"
    }
    for row in rows:
        image, mask = pixels(demo.output("own") / row["image"]), pixels(demo.output("own") / row["mask"])
        normal = pixels(demo.output("own") / row["normal"])
        assert image.shape == (300, 700, 3) and np.array_equal(mask > 0, masks[0].numpy() > 0)
        assert np.array_equal(image[mask == 0], normal[mask == 0]) and (image != normal).any()


def test_each_photo_of_the_dataset_is_used_equally_often(demo: Demo, monkeypatch: Any) -> None:
    demo.generate("turns", 27, steps=1, mode="off", batch_size=8)
    used = [row["normal"] for row in read_manifest(demo.output("turns"))]
    counts = {name: used.count(name) for name in set(used)}
    normals = len(demo.dataset.categories["leather"].normals)
    assert len(counts) == min(27, normals) and set(counts.values()) <= {27 // normals, 27 // normals + 1}


def test_cancel_keeps_what_was_made_and_the_next_run_goes_on(demo: Demo, monkeypatch: Any) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]
    import comfy.utils  # type: ignore[import-not-found]

    update = comfy.utils.ProgressBar.update_absolute

    def cancel(self: Any, value: int, *rest: Any) -> None:
        update(self, value, *rest)
        if value == 1:
            management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", cancel)
    with pytest.raises(management.InterruptProcessingException):
        demo.generate("cut", 3, batch_size=1)
    monkeypatch.undo()
    cut = [row["image_sha256"] for row in read_manifest(demo.output("cut"))]
    assert len(cut) == 1
    demo.generate("cut", 3, batch_size=1)
    rows = read_manifest(demo.output("cut"))
    assert len(rows) == 3 and rows[0]["image_sha256"] == cut[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dataset": None}, "There are no normal photos: connect a dataset"),
        (
            {"defect_type": "leather/hole"},
            "no anomaly embedding for 'leather/hole': this artifact has leather",
        ),
        ({"defect_type": "wood/knot"}, "no anomaly embedding for 'wood/knot'"),
        ({"folder": "../elsewhere"}, "lies outside ComfyUI's output folder .* give one below it"),
        ({"folder": "../input/more"}, "lies outside ComfyUI's output folder"),
        ({"folder": " "}, "The folder has no name"),
        ({"masks": torch.zeros(1, 128, 128)}, "Mask 0 is empty"),
        ({"checks": "fill,beauty"}, "beauty"),
        ({"mask_sources": "drawn"}, "none were given"),
        ({"mask_sources": "wings=1"}, "Mask sources are given as weights"),
        (
            {"masks": torch.ones(1, 128, 128), "mask_sources": "procedural=1"},
            "Masks were given, but the mask sources leave them out",
        ),
        (
            {"images": torch.zeros(1, 128, 128, 3), "defect_type": ""},
            r"get defects of several categories \(leather, metal\): name the types wanted .* leather/burn",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(demo: Demo, changed: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        demo.generate(changed.pop("folder", "refused"), 1, **changed)
    assert not demo.output("refused").exists()


def test_the_stamp_changes_with_the_dataset_so_that_a_run_goes_on(demo: Demo) -> None:
    node = demo.run.nodes["ADiff_GeneratePairs"]
    before = node.fingerprint_inputs(folder="stamped", count=1)
    demo.generate("stamped", 1)
    after = node.fingerprint_inputs(folder="stamped", count=1)
    assert before != after == node.fingerprint_inputs(folder="stamped", count=1)
    assert node.fingerprint_inputs(folder=None) == ""
