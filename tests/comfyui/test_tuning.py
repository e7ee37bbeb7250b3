"""nodes/tuning.py: settings of each type, kept with the embeddings, and taken by Generate Pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graph_inputs import DEMO

from anomalydiffusion_core.export.mvtec import read_manifest
from anomalydiffusion_core.generation.tuning import in_words
from anomalydiffusion_core.method.artifact import load_artifact, save_artifact


@pytest.fixture(scope="module")
def base(run: Any) -> dict[str, Any]:
    return dict(zip(("model", "clip", "vae"), run("ADiff_LoadTinyBase"), strict=True))


@pytest.fixture(scope="module")
def burns(run: Any) -> dict[str, Any]:
    """The demo's burns, which trained the embeddings that come with the pack."""
    return {
        "dataset": run("ADiff_LoadDataset", **DEMO | {"defects": "burn"}, normal_count=1)[0],
        "embeddings": run("ADiff_LoadEmbeddings", name="demo (comes with the pack)")[0],
    }


def test_settings_come_out_with_the_embeddings_and_make_the_pairs(
    run: Any, base: dict[str, Any], burns: dict[str, Any], tmp_path: Path
) -> None:
    learned, report = run("ADiff_TuneSettings", **base, **burns, tries=4)
    assert not burns["embeddings"].tunings and list(learned.tunings) == ["leather/burn"]
    tuning = learned.tunings["leather/burn"]
    lines = report.splitlines()
    assert lines[0] == f"leather/burn: {in_words(tuning)}" and tuning.tries == 4
    assert lines[1].startswith("leather/ink: as usual, since fewer than three")
    assert len(lines[lines.index("Tried:") + 1 :]) == 8
    save_artifact(learned, tmp_path / "tuned.safetensors")
    loaded = load_artifact(tmp_path / "tuned.safetensors").tunings
    assert {name: vars(one) for name, one in loaded.items()} == {"leather/burn": vars(tuning)}
    run(
        "ADiff_GeneratePairs", **base, dataset=burns["dataset"], embeddings=learned, count=1,
        defect_type="leather/burn", folder="tuned", seed=0, steps=4, cfg=2.5, mode="adaptive", strength=1.0,
        checks="", tries=4, batch_size=4,
    )  # fmt: skip
    (row,) = read_manifest(Path(run.root) / "output" / "tuned")
    assert row["config"]["start"] == "tuned" and row["guidance"] == tuning.guidance
    assert row["tunings"] == {"leather/burn": vars(tuning)}


def test_cancel_ends_it_within_a_step(
    run: Any, base: dict[str, Any], burns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy import model_management  # type: ignore[import-not-found]

    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 4:  # the gate, a stage, then steps
            raise model_management.InterruptProcessingException

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(model_management.InterruptProcessingException):
        run("ADiff_TuneSettings", **base, **burns, tries=1)
    assert len(asked) == 4 and not burns["embeddings"].tunings
