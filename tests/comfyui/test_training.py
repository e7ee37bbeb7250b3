"""Trainings in a real ComfyUI that are cancelled, go on, or go astray."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_inputs import DEMO

Run = Callable[..., tuple]
SETTINGS = {"steps": 6, "batch_size": 2, "share": 0.6, "preview_every": 0, "size": 64, "tokens": 2}


def kept(run: Any) -> list[Path]:
    return sorted((run.root / "output" / "anomalydiffusion").glob("training/*/*.safetensors"))


def finished(run: Any) -> list[Path]:
    """Those that are kept, the one used last at the end."""
    kept = (run.root / "output" / "anomalydiffusion" / "trained").glob("*.safetensors")
    return sorted(kept, key=lambda path: path.stat().st_mtime)


def forget(run: Any) -> None:
    """Deletes what finished trainings learned, so that the same one trains again."""
    shutil.rmtree(run.root / "output" / "anomalydiffusion" / "trained")


def train(run: Run, trained: Any, seed: int, **changed: Any) -> tuple:
    inputs = trained.base | {"dataset": trained.dataset, "seed": seed} | SETTINGS | changed
    return run("ADiff_TrainAnomaly", **inputs)


@pytest.fixture
def fitting_module(pack: Any) -> Any:
    """The pack's own copy of the core's module, as ComfyUI imports it."""
    return importlib.import_module(f"{pack.__name__}.anomalydiffusion_core.training.fitting")


@pytest.fixture
def cancelled(fitting_module: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses ComfyUI's cancel button in a training's step of that number."""
    import comfy.model_management  # type: ignore[import-not-found]

    take_step = fitting_module.Fitting.take_step

    def press(number: int) -> None:
        def step(self: Any) -> None:
            take_step(self)
            if self.step == number:
                comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(fitting_module.Fitting, "take_step", step)

    return press


def test_a_cancelled_training_goes_on_when_queued_again_to_the_last_bit(
    run: Run, trained: Any, cancelled: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    whole, _ = train(run, trained, 1)
    assert not kept(run)
    forget(run)
    cancelled(3)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run, trained, 1)
    assert [path.name for path in kept(run)] == ["anomaly.safetensors"]
    monkeypatch.undo()
    resumed, summary = train(run, trained, 1)
    assert not kept(run) and summary.startswith("12 pairs to train on, 8 to measure on. ")
    assert len(resumed.training["anomaly"]["loss"]) == 6
    assert resumed.training == whole.training
    for name, tokens in whole.anomaly.items():
        assert torch.equal(tokens["clip_l"], resumed.anomaly[name]["clip_l"])


def test_a_cancelled_training_gives_the_best_so_far_where_asked(
    run: Run, trained: Any, cancelled: Callable[[int], None]
) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    cancelled(4)
    embeddings, summary = train(run, trained, 2, when_stopped="best so far")
    assert summary.startswith("Cancelled. This is the best so far.")
    assert embeddings.training["anomaly"]["steps"] == 4
    assert not comfy.model_management.processing_interrupted(), "the graph goes on"


@pytest.fixture
def cancelled_within(pack: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The cancel button, pressed while a step computes: newer hosts raise within the forward pass."""
    import comfy.model_management  # type: ignore[import-not-found]

    defects = importlib.import_module(f"{pack.__name__}.anomalydiffusion_core.training.defects")
    loss, seen = defects.AnomalyTask.loss, []

    def press(number: int) -> None:
        def interrupted(self: Any, pool: Any, batch: Any) -> Any:
            if torch.is_grad_enabled():  # no measurement
                seen.append(batch)
                if len(seen) == number:
                    comfy.model_management.interrupt_current_processing()
                    comfy.model_management.throw_exception_if_processing_interrupted()
            return loss(self, pool, batch)

        monkeypatch.setattr(defects.AnomalyTask, "loss", interrupted)

    return press


def test_a_training_cancelled_within_a_step_gives_the_last_whole_one(
    run: Run, trained: Any, cancelled_within: Callable[[int], None]
) -> None:
    before = finished(run)
    cancelled_within(4)
    embeddings, summary = train(run, trained, 8, when_stopped="best so far")
    assert summary.startswith("Cancelled. This is the best so far.")
    assert embeddings.training["anomaly"]["steps"] == 3
    assert finished(run) == before  # it is not finished


def test_a_training_cancelled_within_a_step_goes_on_to_the_last_bit(
    run: Run, trained: Any, cancelled_within: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    whole, _ = train(run, trained, 9)
    forget(run)
    cancelled_within(4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run, trained, 9)
    monkeypatch.undo()
    resumed, _ = train(run, trained, 9)
    assert resumed.training == whole.training
    for name, tokens in whole.anomaly.items():
        assert torch.equal(tokens["clip_l"], resumed.anomaly[name]["clip_l"])


def test_a_finished_training_is_not_done_again(
    run: Run, trained: Any, fitting_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, told = train(run, trained, 10)

    def refuse(self: Any) -> None:
        raise AssertionError("trains again")

    monkeypatch.setattr(fitting_module.Fitting, "take_step", refuse)
    again, told_again = train(run, trained, 10)
    path = finished(run)[-1]
    assert told_again == (
        "Trained before with the same settings: taken from output/anomalydiffusion/trained/"
        f"{path.name}. {told}"
    )
    assert json.loads(again.training_json()) == json.loads(first.training_json())
    for name, tokens in first.anomaly.items():
        assert torch.equal(tokens["clip_l"], again.anomaly[name]["clip_l"])
    for other in ({"seed": 11}, {"tokens": 3}, {"model": with_other_weights(trained.base["model"])}):
        with pytest.raises(AssertionError, match="trains again"):
            train(run, trained, **{"seed": 10} | other)
    path.write_bytes(b"cut off")
    with pytest.raises(AssertionError, match="trains again"):
        train(run, trained, 10)


def with_other_weights(model: Any) -> Any:
    patched = model.clone()
    key = "diffusion_model.out.2.weight"
    patched.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))}, 0.01)
    return patched


def test_only_the_last_finished_trainings_are_kept(
    run: Run, trained: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"{pack.__name__}.nodes.host.finished")
    monkeypatch.setattr(module, "KEPT", 2)
    for seed in (12, 13, 14):
        train(run, trained, seed, steps=1)
    assert len(finished(run)) == len([*finished(run)[0].parent.glob("*.png")]) == 2


def test_a_loss_that_is_no_number_is_an_error_or_gives_the_best_so_far(
    run: Run, trained: Any, fitting_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = fitting_module.Fitting.take_step

    def diverging(self: Any) -> None:
        if self.step == 3:
            self._check(float("nan"))
        take_step(self)

    monkeypatch.setattr(fitting_module.Fitting, "take_step", diverging)
    with pytest.raises(ValueError, match="The loss became nan at step 4: lower the learning rates"):
        train(run, trained, 3)
    embeddings, summary = train(run, trained, 4, when_stopped="best so far")
    assert summary.startswith("The loss became nan at step 4") and "This is the best so far" in summary
    assert all(tokens["clip_l"].isfinite().all() for tokens in embeddings.anomaly.values())


def test_embeddings_are_extended_by_types_that_are_new(run: Run, trained: Any) -> None:
    burns = run("ADiff_LoadDataset", **{**DEMO, "defects": "burn"}, normal_count=1)[0]
    options = {"steps": 3, "batch_size": 2, "share": 0.6, "preview_every": 0, "tokens": 2, "seed": 0}
    (known, _) = train(run, trained, 5, dataset=burns)
    (known,) = run("ADiff_TrainMasks", **trained.base, dataset=burns, embeddings=known, **options)
    (more, _) = train(run, trained, 5, extend=known, size=0)
    assert set(more.anomaly) - set(known.anomaly) == {"leather/ink"}
    (both,) = run("ADiff_TrainMasks", **trained.base, dataset=trained.dataset, embeddings=more, **options)
    for before, after in ((known.anomaly, both.anomaly), (known.mask, both.mask)):
        assert set(after) == set(more.anomaly)
        assert all(torch.equal(after[name]["clip_l"], before[name]["clip_l"]) for name in before)
    state = known.spatial_encoders["clip_l"].state_dict()
    for name, tensor in both.spatial_encoders["clip_l"].state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_training_starts_from_the_encoder_of_a_file(
    run: Run, trained: Any, pack: Any, tmp_path: Path
) -> None:
    artifact = importlib.import_module(f"{pack.__name__}.anomalydiffusion_core.method.artifact")
    (own, _) = train(run, trained, 6, steps=1)
    with torch.no_grad():
        own.spatial_encoders["clip_l"].scale.fill_(3.0)  # which no training would reach in a step
    artifact.save_artifact(own, tmp_path / "encoder.safetensors")
    with torch.inference_mode():  # as ComfyUI runs nodes
        start = artifact.load_artifact(tmp_path / "encoder.safetensors")
    (embeddings, _) = train(run, trained, 6, steps=1, start=start)
    assert float(embeddings.spatial_encoders["clip_l"].scale.detach()) == pytest.approx(3.0, abs=1e-3)


def test_a_training_in_low_memory_learns_the_same(run: Run, trained: Any) -> None:
    (plain, _) = train(run, trained, 7, steps=3)
    forget(run)
    (frugal, _) = train(run, trained, 7, steps=3, low_memory=True)
    for name, tokens in plain.anomaly.items():
        torch.testing.assert_close(tokens["clip_l"], frugal.anomaly[name]["clip_l"], rtol=1e-3, atol=1e-4)
    options = {"steps": 2, "batch_size": 2, "share": 0.6, "preview_every": 0, "tokens": 2, "seed": 0}
    more = {"embeddings": frugal, "dataset": trained.dataset, "accumulate": 2, "low_memory": True}
    (masks,) = run("ADiff_TrainMasks", **trained.base, **more, **options)
    assert masks.training["mask"]["config"]["accumulate"] == 2
    assert set(masks.mask) == set(plain.anomaly)
