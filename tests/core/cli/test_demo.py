"""The demo, shortened: to its end, continued, and interrupted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from anomalydiffusion_core.cli import demo
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.masks.invention import MaskConfig
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.method.sampling import SamplingConfig
from anomalydiffusion_core.pretraining import demo as demo_training
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig


@pytest.fixture(autouse=True)
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    defects, masks = DefectConfig(steps=2, views_per_pair=2), MaskEmbeddingConfig(steps=1, views_per_pair=2)
    monkeypatch.setattr(demo_training, "DEMO", replace(demo_training.DEMO, defects=defects, masks=masks))
    quick = SamplingConfig(steps=6)
    masks = MaskConfig(replace(quick, guidance=3.0), largest=0.9, border=1.0)
    lenient = partial(GenerationConfig, quick, masks, gate=GateConfig((), 0.0), tries_per_pair=30)
    monkeypatch.setattr(demo, "GenerationConfig", lenient)


def test_it_ends_with_the_asked_pairs_and_a_report_and_continues_where_it_was(tmp_path: Path) -> None:
    stages: list[str] = []
    summary = demo.run_demo(tmp_path, 1, 0, lambda stage, *_: stages.append(stage))
    assert summary["pairs"] == 4 and summary["changed_outside"] == 0 and "anomaly" in stages
    assert "data:image/png" in Path(summary["report"]).read_text()
    stages.clear()
    again = demo.run_demo(tmp_path, 2, 0, lambda stage, *_: stages.append(stage))
    assert again["pairs"] == 8 and "anomaly" not in stages


def test_an_interrupt_keeps_what_was_learned_beside_the_finished_artifact(tmp_path: Path) -> None:
    def interrupt(stage: str, *_: object) -> None:
        if stage == "anomaly":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path, 1, 0, interrupt)
    assert not (tmp_path / "demo.safetensors").exists()
    assert load_artifact(tmp_path / "interrupted.safetensors").training["anomaly"]["steps"] == 1  # type: ignore[index]
