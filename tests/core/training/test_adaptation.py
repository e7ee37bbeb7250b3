"""Adaptation to normal photos: what is learned, what it is fused into, and that nothing else changes."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, train_quickly
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomalydiffusion_core.bases import diffusers_model
from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_onto
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_normal_views
from anomalydiffusion_core.method.artifact import export_lora, learned_hash, load_artifact, save_artifact
from anomalydiffusion_core.method.latent_diffusion import Fingerprint
from anomalydiffusion_core.method.reweighting import AttentionWeights
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.adaptation import (
    AdaptationTask,
    adapt_to_normals,
    train_adapted,
    training_normals,
)
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.defects import TrainingConfig
from anomalydiffusion_core.training.fitting import Fitting, Validation, fit
from anomalydiffusion_core.training.jobs import train_model
from anomalydiffusion_core.training.stage import TrainingRun

QUICK = TrainingConfig(
    steps=3, batch_size=2, image_size=64, views_per_pair=2, warmup_steps=1, spatial_encoder=False
)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture
def own_base(small_base: DiffusersModel) -> DiffusersModel:
    """A copy of the small base, to be adapted."""
    base = copy.deepcopy(small_base)
    base.unet.float().disable_gradient_checkpointing()
    base.fingerprint = Fingerprint("tiny", "0123456789abcdef")
    return base


@pytest.fixture
def commanded(own_base: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> DiffusersModel:
    """The base of which commands load a fresh copy each."""
    monkeypatch.setattr(diffusers_model, "load_base", lambda name, device="cpu": copy.deepcopy(own_base))
    return own_base


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def weights(base: DiffusersModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def predicted(base: DiffusersModel) -> Tensor:
    random, t = torch.Generator().manual_seed(5), torch.tensor([120, 700])
    context = base.encode_prompts(["a photo of a thing", ""])
    return base.predict_noise(torch.randn(2, 4, 8, 8, generator=random), t, context)


@torch.no_grad()
def some_adapter(base: DiffusersModel, active: list[Tensor] | None = None) -> dict[str, Tensor]:
    """An adapter that matters; what the base predicts while it is active is added to `active`."""
    random = torch.Generator().manual_seed(3)
    with base.adapting(4, seeded()) as parameters:
        for parameter in parameters.values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
        if active is not None:
            active.append(predicted(base))
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def train_adapting(data: Path, out: Path, *more: object) -> Any:
    steps = ("--adapt", "normals", "--adapt-steps", 4, "--no-spatial-encoder", "--batch", 2)
    return train_quickly(data, out, *steps, *more)


def test_an_adapter_begins_at_zero_and_goes_without_a_trace(own_base: DiffusersModel) -> None:
    before, plain = predicted(own_base), weights(own_base)
    with own_base.adapting(4, seeded()) as parameters:
        assert torch.equal(predicted(own_base), before)
        layers = {name.rpartition(".")[0] for name in parameters}
        assert {p.shape for p in (parameters[f"{LAYER}.down"], parameters[f"{LAYER}.up"])} == {
            (4, 16),
            (32, 4),
        }
        assert parameters.keys() == {f"{layer}.{matrix}" for layer in layers for matrix in ("down", "up")}
        expected = {name.removesuffix(".weight") for name in plain if ".attn" in name and "norm" not in name}
        assert layers == {name for name in expected if not name.endswith(".bias")}
        downs = [p.detach().clone() for name, p in parameters.items() if name.endswith(".down")]
    with own_base.adapting(4, seeded()) as parameters:
        again = [p for name, p in parameters.items() if name.endswith(".down")]
        assert all(torch.equal(a, b) and a.any() for a, b in zip(downs, again, strict=True))
    assert same(weights(own_base), plain) and torch.equal(predicted(own_base), before)


def test_the_fused_base_predicts_what_the_active_adapter_did(own_base: DiffusersModel) -> None:
    plain, before, fingerprint = weights(own_base), predicted(own_base), own_base.fingerprint
    active: list[Tensor] = []
    adapter = some_adapter(own_base, active)
    assert float((active[0] - before).abs().max()) > 0.01
    own_base.adapt(adapter)
    torch.testing.assert_close(predicted(own_base), active[0], atol=1e-5, rtol=0)
    fused = weights(own_base)
    for name, tensor in plain.items():
        layer = name.removesuffix(".weight")
        expected = tensor
        if f"{layer}.up" in adapter:
            expected = tensor + (adapter[f"{layer}.up"].double() @ adapter[f"{layer}.down"].double()).float()
            assert not torch.equal(fused[name], tensor)
        torch.testing.assert_close(fused[name], expected, atol=1e-6, rtol=0)
    assert own_base.fingerprint == fingerprint


def test_an_adapter_is_fused_once_and_no_other_after_it(own_base: DiffusersModel) -> None:
    adapter = some_adapter(own_base)
    own_base.adapt({})
    own_base.adapt(adapter)
    once = weights(own_base)
    own_base.adapt({name: tensor.clone() for name, tensor in adapter.items()})
    assert same(weights(own_base), once)
    other = adapter | {f"{LAYER}.up": adapter[f"{LAYER}.up"] + 1}
    for another in (other, {}):
        with pytest.raises(ValueError, match="adapted to the normal photos of another training: load it"):
            own_base.adapt(another)
    with pytest.raises(ValueError, match="another training"), own_base.adapting(4, seeded()):
        pass
    assert same(weights(own_base), once)


def test_an_adapter_of_another_architecture_is_refused_and_changes_nothing(own_base: DiffusersModel) -> None:
    plain, adapter = weights(own_base), some_adapter(own_base)
    moved = {name.replace("mid_block", "middle"): tensor for name, tensor in adapter.items()}
    wider = adapter | {f"{LAYER}.down": torch.zeros(4, 17)}
    for wrong, layer in ((moved, "middle.attentions"), (wider, LAYER)):
        with pytest.raises(ValueError, match=f"does not fit the base, whose {layer}.* give the base"):
            own_base.adapt(wrong)
    assert same(weights(own_base), plain) and not own_base.adapter


def test_training_changes_the_adapter_alone_and_lowers_the_loss(
    own_base: DiffusersModel, dataset: Path
) -> None:
    photos = training_normals(find_dataset(dataset))
    pool = make_normal_views(own_base, photos, 2, 64, seeded())
    plain, text = weights(own_base), copy.deepcopy(own_base.text_encoder.state_dict())
    with own_base.adapting(4, seeded()) as parameters:
        start = {name: p.detach().clone() for name, p in parameters.items()}
        task = AdaptationTask(own_base, pool, parameters)
        measured = fit(task, replace(QUICK, steps=30), Validation(pool)).validation
        assert all(not torch.equal(start[name], p) for name, p in parameters.items())
        assert {p.dtype for p in parameters.values()} == {torch.float32}
    (_, before), (_, after) = measured
    assert float((after < before).float().mean()) > 0.8
    assert same(weights(own_base), plain) and same(own_base.text_encoder.state_dict(), text)


def test_the_loss_is_the_base_s_own_with_every_second_prompt_empty(
    own_base: DiffusersModel, dataset: Path
) -> None:
    pool = make_normal_views(
        own_base, {"metal_nut": training_normals(find_dataset(dataset))["thing"]}, 1, 64, seeded()
    )
    task, rows, t = AdaptationTask(own_base, pool, {}), torch.arange(2), torch.tensor([300, 800])
    noise = torch.randn(2, 4, 8, 8, generator=seeded())
    named = PHOTO_TEMPLATES[3].replace("{}", "metal nut")
    with torch.no_grad():
        for template, prompts in ((6, [named, ""]), (7, ["", named])):
            alpha = own_base.schedule.alphas_cumprod[t].sqrt()[:, None, None, None]
            noisy = alpha * pool.latents[:2] + (1 - alpha**2).sqrt() * noise
            eps_hat = own_base.predict_noise(noisy, t, own_base.encode_prompts(prompts))
            expected = (eps_hat - noise).square().mean((1, 2, 3))
            torch.testing.assert_close(task.loss(pool, rows, t, noise, template), expected)


def test_views_show_parts_of_training_normals_of_all_categories(
    fake_base: Any, dataset: Path, write_image: Any
) -> None:
    for number in range(2):
        write_image(dataset / "thing/test/good" / f"{number}.png", np.full((64, 64, 3), 255, np.uint8))
    write_image(dataset / "gray/train/good/0.png", np.full((64, 64, 3), 51, np.uint8))
    write_image(dataset / "gray/test/cut/0.png", np.full((64, 64, 3), 51, np.uint8))
    marked = np.zeros((64, 64), np.uint8)
    marked[5:9, 5:9] = 255
    write_image(dataset / "gray/ground_truth/cut/0_mask.png", marked)
    write_image(dataset / "whole/train/good/0.png", np.zeros((64, 64, 3), np.uint8))  # has no pairs
    photos = training_normals(find_dataset(dataset))
    assert {name: len(paths) for name, paths in photos.items()} == {"thing": 3, "gray": 1}
    pool = make_normal_views(fake_base, photos, 3, 64, seeded())
    assert pool.names == ["gray", "thing"] and pool.types.tolist() == [0] * 3 + [1] * 9
    assert pool.masks.shape == (12, 1, 64, 64) and not pool.masks.any()
    torch.testing.assert_close(pool.latents[:3], torch.full((3, 4, 8, 8), 51 / 127.5 - 1))
    thing = pool.latents[3:]
    assert float(thing.abs().max()) < 0.5 and len({float(view.mean()) for view in thing}) == 9


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_dataset_without_training_normals_is_refused(
    own_base: DiffusersModel, dataset: Path, write_image: Any, folder: str
) -> None:
    for path in (dataset / "thing/train/good").iterdir():
        path.unlink()
    if folder == "test":  # kept for measuring
        write_image(dataset / "thing/test/good/0.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="no normal photos to adapt the base to: add some under train/good"):
        adapt_to_normals(own_base, find_dataset(dataset), QUICK)


def test_a_saved_adapter_makes_a_fresh_base_the_adapted_one(
    own_base: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    plain = copy.deepcopy(own_base)
    outcome = train_adapted(own_base, find_dataset(dataset), QUICK, 2, 0.5, adapt_steps=4)
    save_artifact(outcome.learned, tmp_path / "a.safetensors")
    learned = load_onto(plain, tmp_path / "a.safetensors")
    assert same(weights(plain), weights(own_base)) and learned_hash(learned) == learned_hash(outcome.learned)
    assert torch.equal(predicted(plain), predicted(own_base))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["adapter"]) == {"rank": 8, "alpha": 8}
        kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
    assert kinds == {"anomaly", "mask", "adapter"}
    assert load_onto(plain, tmp_path / "a.safetensors").adapter.keys() == learned.adapter.keys()


def test_defects_are_learned_on_the_adapted_base(own_base: DiffusersModel, dataset: Path) -> None:
    plain, found = copy.deepcopy(own_base), find_dataset(dataset)
    outcome = train_adapted(own_base, found, QUICK, 0, 0.5, adapt_steps=4)
    record: Any = outcome.learned.training["normals"]
    assert record["steps"] == 4 and outcome.end.finished
    again = train_model(plain, found, QUICK, 0, 0.5).learned  # not adapted
    assert again.training["anomaly"]["loss"] != outcome.learned.training["anomaly"]["loss"]  # type: ignore[index]
    plain.adapt(outcome.learned.adapter)
    again = train_model(plain, found, QUICK, 0, 0.5).learned
    assert learned_hash(again) == learned_hash(outcome.learned)


def test_bf16_and_checkpointing_learn_nearly_the_same(own_base: DiffusersModel, dataset: Path) -> None:
    half, found = copy.deepcopy(own_base), find_dataset(dataset)
    half.economise(bf16=True, checkpointing=True)
    adapt_to_normals(own_base, found, QUICK)
    adapt_to_normals(half, found, QUICK)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    exact, near = (torch.cat([v.flatten() for v in base.adapter.values()]) for base in (own_base, half))
    assert near.dtype == torch.float32 and 0 < (near - exact).norm() < 0.2 * exact.norm()


def test_attention_is_reweighted_on_the_adapted_base_as_on_any(own_base: DiffusersModel) -> None:
    own_base.adapt(some_adapter(own_base))
    plain = predicted(own_base)
    weights_map = AttentionWeights("adaptive", slice(2, 5))
    for value, equal in ((1.0, True), (3.0, False)):
        weights_map.w = torch.full((2, 1, 8, 8), value)
        with own_base.reweighted(weights_map):
            assert torch.allclose(predicted(own_base), plain, atol=1e-5) == equal


def test_the_exported_lora_holds_every_layer_in_kohya_s_names(
    own_base: DiffusersModel, learned: Any, tmp_path: Path
) -> None:
    learned.adapter = some_adapter(own_base)
    export_lora(learned, tmp_path / "a.lora.safetensors")
    tensors = load_file(tmp_path / "a.lora.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    assert torch.equal(tensors[f"{key}.lora_down.weight"], learned.adapter[f"{LAYER}.down"])
    assert torch.equal(tensors[f"{key}.lora_up.weight"], learned.adapter[f"{LAYER}.up"])
    assert tensors[f"{key}.alpha"] == 4.0
    assert len(tensors) == len(learned.adapter) * 3 // 2


@pytest.mark.parametrize(("stop_at", "kept"), [(2, ["normals"]), (6, ["anomaly", "normals"])])
def test_a_training_cut_off_in_either_stage_goes_on_bit_for_bit(
    commanded: DiffusersModel,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    kept: list[str],
) -> None:
    whole, cut, lora = (tmp_path / f"{name}.safetensors" for name in ("whole", "cut", "cut.lora"))
    assert train_adapting(dataset, whole).exit_code == 0
    take_step, taken = Fitting.take_step, []

    def interrupt(self: Fitting) -> None:
        taken.append(1)
        if len(taken) == stop_at:
            raise KeyboardInterrupt
        take_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Fitting, "take_step", interrupt)
        assert train_adapting(dataset, cut).exit_code == 130
    assert sorted(path.stem for path in (tmp_path / "cut.training").glob("*.safetensors")) == kept
    assert load_artifact(cut).adapter and lora.exists()
    plainly = train_quickly(dataset, cut, "--resume", "--no-spatial-encoder", "--batch", 2)
    refused(plainly, "was begun with --adapt: give the same again")
    refused(train_adapting(dataset, cut, "--resume", "--seed", 1), "was begun with seed 0, not 1")
    assert train_adapting(dataset, cut, "--resume").exit_code == 0
    assert learned_hash(load_artifact(cut)) == learned_hash(load_artifact(whole))
    assert same(load_file(lora), load_file(tmp_path / "whole.lora.safetensors"))


def test_other_normal_photos_are_no_resumption(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path, write_image: Any
) -> None:
    found, checkpoints = find_dataset(dataset), Checkpoints(tmp_path / "a.training")

    def stop(stage: str, done: int, _total: int, _note: str) -> None:
        if (stage, done) == ("normals", 2):
            raise KeyboardInterrupt

    cut = train_adapted(copy.deepcopy(commanded), found, QUICK, 0, 0.5, 4, TrainingRun(stop, checkpoints))
    assert cut.end.interrupted and not cut.learned.anomaly and cut.learned.adapter
    write_image(dataset / "thing/train/good/000.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="was begun with normals '"):
        train_adapted(commanded, found, QUICK, 0, 0.5, 4, TrainingRun(checkpoints=checkpoints))


def test_the_command_generates_on_the_adapted_base(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out, summary = tmp_path / "a.safetensors", tmp_path / "summary.json"
    result = train_adapting(dataset, out, "--json", summary)
    assert result.exit_code == 0 and "normals: 4/4" in result.stdout, result.output
    assert json.loads(summary.read_text())["lora"] == str(tmp_path / "a.lora.safetensors")

    def made(artifact: Path, name: str) -> list[bytes]:
        options = ("--steps", 2, "--smallest-fill", 0, "--checks", "", "--count", 1, "--guidance", 6)
        masks = ("--masks", dataset / "thing/ground_truth")
        result = run("generate", artifact, dataset, "--out", tmp_path / name, *options, *masks)
        assert result.exit_code == 0, result.output
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("thing/test/*/*.png"))]

    learned = load_artifact(out)
    learned.adapter = {name: 10 * tensor for name, tensor in learned.adapter.items()}
    save_artifact(learned, tmp_path / "stronger.safetensors")
    learned.adapter = {}
    save_artifact(learned, tmp_path / "without.safetensors")
    adapted, again = made(out, "adapted"), made(out, "again")
    assert len(adapted) == 2 and adapted == again
    assert made(tmp_path / "stronger.safetensors", "stronger") != made(
        tmp_path / "without.safetensors", "without"
    )


def test_the_command_refuses_what_does_not_go_together(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lora = tmp_path / "a.safetensors", tmp_path / "a.lora.safetensors"
    lora.write_bytes(b"mine")
    refused(train_adapting(dataset, out), "a.lora.safetensors exists already: choose another name")
    assert lora.read_bytes() == b"mine" and not out.exists()
    lora.unlink()
    assert train_adapting(dataset, out, "--defect", "scratch").exit_code == 0
    more = tmp_path / "more.safetensors"
    refused(train_adapting(dataset, more, "--extend", out), "--adapt and --extend exclude each other")
    extended = train_quickly(dataset, more, "--extend", out, "--no-spatial-encoder")
    assert extended.exit_code == 0 and (tmp_path / "more.lora.safetensors").exists()
    first, both = load_artifact(out), load_artifact(more)
    assert same(first.adapter, both.adapter) and sorted(both.anomaly) == ["thing/scratch", "thing/stain"]
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(
        train_adapting(dataset, tmp_path / "b.safetensors"), "peft, which adapts a base, is not installed"
    )


def test_what_extends_an_adapted_artifact_is_learned_on_the_adapted_base(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "a.safetensors", tmp_path / "more.safetensors"
    assert train_adapting(dataset, out, "--defect", "scratch").exit_code == 0
    extended = train_quickly(dataset, more, "--extend", out, "--no-spatial-encoder", "--mask-steps", 0)
    assert extended.exit_code == 0
    learned: Any = load_artifact(more)
    config, found = TrainingConfig(**learned.training["added"][0]["config"]), find_dataset(dataset)
    commanded.adapt(learned.adapter)
    again: Any = train_model(commanded, found, config, 0, 0.5, known=load_artifact(out)).learned
    assert again.training["added"][0]["loss"] == learned.training["added"][0]["loss"]


def test_without_adapt_an_artifact_is_as_ever(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    assert train_quickly(dataset, out, "--no-spatial-encoder").exit_code == 0
    with safe_open(out, framework="pt") as file:
        assert {key.partition("/")[0] for key in file.keys()} == {"anomaly", "mask"}  # noqa: SIM118
        assert "adapter" not in file.metadata()
        assert set(json.loads(file.metadata()["training"])) == {"anomaly", "mask", "improvement"}
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["a.safetensors"]
