"""Adaptation to normal photos: what is learned, what it is fused into, and that nothing else changes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_onto
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_normal_views
from anomalydiffusion_core.method.artifact import export_lora, learned_hash, save_artifact
from anomalydiffusion_core.method.reweighting import AttentionWeights
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.adaptation import AdaptationTask, adapt_to_normals, training_normals
from anomalydiffusion_core.training.config import (
    AdaptationConfig,
    DefectConfig,
    MaskEmbeddingConfig,
    TrainingConfig,
)
from anomalydiffusion_core.training.fitting import fit
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.task import Batch
from anomalydiffusion_core.training.validation import Validation

ADAPTATION = AdaptationConfig(steps=4, batch_size=2, views_per_photo=2, warmup_steps=1)
DEFECTS = DefectConfig(steps=3, batch_size=2, views_per_pair=2, warmup_steps=1, spatial_encoder=False)
MASKS = MaskEmbeddingConfig(steps=2, batch_size=2, views_per_pair=2, warmup_steps=1)
PLAIN = TrainingConfig(64, 0.5, DEFECTS, None)
ADAPTED = TrainingConfig(64, 0.5, DEFECTS, MASKS, ADAPTATION)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


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


def test_an_adapter_begins_at_zero_and_goes_without_a_trace(lora_base: DiffusersModel) -> None:
    before, plain = predicted(lora_base), weights(lora_base)
    with lora_base.adapting(4, seeded()) as parameters:
        assert torch.equal(predicted(lora_base), before)
        layers = {name.rpartition(".")[0] for name in parameters}
        assert {p.shape for p in (parameters[f"{LAYER}.down"], parameters[f"{LAYER}.up"])} == {
            (4, 16),
            (32, 4),
        }
        assert parameters.keys() == {f"{layer}.{matrix}" for layer in layers for matrix in ("down", "up")}
        expected = {name.removesuffix(".weight") for name in plain if ".attn" in name and "norm" not in name}
        assert layers == {name for name in expected if not name.endswith(".bias")}
        downs = [p.detach().clone() for name, p in parameters.items() if name.endswith(".down")]
    with lora_base.adapting(4, seeded()) as parameters:
        again = [p for name, p in parameters.items() if name.endswith(".down")]
        assert all(torch.equal(a, b) and a.any() for a, b in zip(downs, again, strict=True))
    assert same(weights(lora_base), plain) and torch.equal(predicted(lora_base), before)


def test_the_fused_base_predicts_what_the_active_adapter_did(lora_base: DiffusersModel) -> None:
    plain, before, fingerprint = (
        weights(lora_base),
        predicted(lora_base),
        lora_base.fingerprint,
    )
    active: list[Tensor] = []
    adapter = some_adapter(lora_base, active)
    assert float((active[0] - before).abs().max()) > 0.01
    lora_base.adapt(adapter)
    torch.testing.assert_close(predicted(lora_base), active[0], atol=1e-5, rtol=0)
    fused = weights(lora_base)
    for name, tensor in plain.items():
        layer = name.removesuffix(".weight")
        expected = tensor
        if f"{layer}.up" in adapter:
            expected = tensor + (adapter[f"{layer}.up"].double() @ adapter[f"{layer}.down"].double()).float()
            assert not torch.equal(fused[name], tensor)
        torch.testing.assert_close(fused[name], expected, atol=1e-6, rtol=0)
    assert lora_base.fingerprint == fingerprint


def test_an_adapter_is_fused_once_and_no_other_after_it(lora_base: DiffusersModel) -> None:
    adapter = some_adapter(lora_base)
    lora_base.adapt({})
    lora_base.adapt(adapter)
    once = weights(lora_base)
    lora_base.adapt({name: tensor.clone() for name, tensor in adapter.items()})
    assert same(weights(lora_base), once)
    other = adapter | {f"{LAYER}.up": adapter[f"{LAYER}.up"] + 1}
    for another in (other, {}):
        with pytest.raises(ValueError, match="adapted to another training already: load it"):
            lora_base.adapt(another)
    with pytest.raises(ValueError, match="another training already"), lora_base.adapting(4, seeded()):
        pass
    assert same(weights(lora_base), once)


def test_an_adapter_of_another_architecture_is_refused_and_changes_nothing(
    lora_base: DiffusersModel,
) -> None:
    plain, adapter = weights(lora_base), some_adapter(lora_base)
    moved = {name.replace("mid_block", "middle"): tensor for name, tensor in adapter.items()}
    wider = adapter | {f"{LAYER}.down": torch.zeros(4, 17)}
    for wrong, layer in ((moved, "middle.attentions"), (wider, LAYER)):
        with pytest.raises(ValueError, match=f"does not fit the base, whose {layer}.* give the base"):
            lora_base.adapt(wrong)
    assert same(weights(lora_base), plain) and not lora_base.adapter


def test_training_changes_the_adapter_alone_and_lowers_the_loss(
    lora_base: DiffusersModel, dataset: Path
) -> None:
    photos = training_normals(find_dataset(dataset))
    pool = make_normal_views(lora_base, photos, 2, 64, generator=seeded())
    plain, text = weights(lora_base), copy.deepcopy(lora_base.text_encoder.state_dict())
    with lora_base.adapting(4, seeded()) as parameters:
        start = {name: p.detach().clone() for name, p in parameters.items()}
        task = AdaptationTask(lora_base, pool, parameters)
        measured = fit(task, replace(ADAPTATION, steps=30), Validation(pool)).validation
        assert all(not torch.equal(start[name], p) for name, p in parameters.items())
        assert {p.dtype for p in parameters.values()} == {torch.float32}
    (_, before), (_, after) = measured
    assert float((after < before).float().mean()) > 0.8
    assert same(weights(lora_base), plain) and same(lora_base.text_encoder.state_dict(), text)


def test_the_loss_is_the_base_s_own_with_every_second_prompt_empty(
    lora_base: DiffusersModel, dataset: Path
) -> None:
    pool = make_normal_views(
        lora_base, {"metal_nut": training_normals(find_dataset(dataset))["thing"]}, 1, 64, generator=seeded()
    )
    task, rows, t = AdaptationTask(lora_base, pool, {}), torch.arange(2), torch.tensor([300, 800])
    noise = torch.randn(2, 4, 8, 8, generator=seeded())
    named = PHOTO_TEMPLATES[3].replace("{}", "metal nut")
    with torch.no_grad():
        for template, prompts in ((6, [named, ""]), (7, ["", named])):
            alpha = lora_base.schedule.alphas_cumprod[t].sqrt()[:, None, None, None]
            noisy = alpha * pool.latents[:2] + (1 - alpha**2).sqrt() * noise
            eps_hat = lora_base.predict_noise(noisy, t, lora_base.encode_prompts(prompts))
            expected = (eps_hat - noise).square().mean((1, 2, 3))
            torch.testing.assert_close(task.loss(pool, Batch(rows, t, noise, template)), expected)


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
    pool = make_normal_views(fake_base, photos, 3, 64, generator=seeded())
    assert pool.names == ["gray", "thing"] and pool.types.tolist() == [0] * 3 + [1] * 9
    assert pool.masks.shape == (12, 1, 64, 64) and not pool.masks.any()
    torch.testing.assert_close(pool.latents[:3], torch.full((3, 4, 8, 8), 51 / 127.5 - 1))
    thing = pool.latents[3:]
    assert float(thing.abs().max()) < 0.5 and len({float(view.mean()) for view in thing}) == 9


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_dataset_without_training_normals_is_refused(
    lora_base: DiffusersModel, dataset: Path, write_image: Any, folder: str
) -> None:
    for path in (dataset / "thing/train/good").iterdir():
        path.unlink()
    if folder == "test":  # kept for measuring
        write_image(dataset / "thing/test/good/0.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="no normal photos to adapt the base to: add some under train/good"):
        adapt_to_normals(lora_base, find_dataset(dataset), ADAPTATION, 64)


def test_a_saved_adapter_makes_a_fresh_base_the_adapted_one(
    lora_base: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    plain = copy.deepcopy(lora_base)
    outcome = TrainingJob(lora_base, find_dataset(dataset), ADAPTED).run()
    save_artifact(outcome.learned, tmp_path / "a.safetensors")
    learned = load_onto(plain, tmp_path / "a.safetensors")
    assert same(weights(plain), weights(lora_base)) and learned_hash(learned) == learned_hash(outcome.learned)
    assert torch.equal(predicted(plain), predicted(lora_base))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["adapter"]) == {"rank": 8, "alpha": 8}
        kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
    assert kinds == {"anomaly", "mask", "adapter"}
    assert load_onto(plain, tmp_path / "a.safetensors").adapter.keys() == learned.adapter.keys()


def test_defects_are_learned_on_the_adapted_base(lora_base: DiffusersModel, dataset: Path) -> None:
    plain, found = copy.deepcopy(lora_base), find_dataset(dataset)
    outcome = TrainingJob(lora_base, found, replace(ADAPTED, masks=None)).run()
    record: Any = outcome.learned.training["normals"]
    assert record["steps"] == 4 and outcome.end.finished
    again = TrainingJob(plain, found, PLAIN).run().learned  # not adapted
    assert again.training["anomaly"]["loss"] != outcome.learned.training["anomaly"]["loss"]  # type: ignore[index]
    plain.adapt(outcome.learned.adapter)
    again = TrainingJob(plain, found, PLAIN).run().learned
    assert learned_hash(again) == learned_hash(outcome.learned)


def test_bf16_and_checkpointing_learn_nearly_the_same(lora_base: DiffusersModel, dataset: Path) -> None:
    half, found = copy.deepcopy(lora_base), find_dataset(dataset)
    half.save_memory(bf16=True, checkpointing=True)
    adapt_to_normals(lora_base, found, ADAPTATION, 64)
    adapt_to_normals(half, found, ADAPTATION, 64)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    exact, near = (torch.cat([v.flatten() for v in base.adapter.values()]) for base in (lora_base, half))
    assert near.dtype == torch.float32 and 0 < (near - exact).norm() < 0.2 * exact.norm()


def test_attention_is_reweighted_on_the_adapted_base_as_on_any(lora_base: DiffusersModel) -> None:
    lora_base.adapt(some_adapter(lora_base))
    plain = predicted(lora_base)
    weights_map = AttentionWeights("adaptive", slice(2, 5))
    for value, equal in ((1.0, True), (3.0, False)):
        weights_map.w = torch.full((2, 1, 8, 8), value)
        with lora_base.reweighted(weights_map):
            assert torch.allclose(predicted(lora_base), plain, atol=1e-5) == equal


def test_the_exported_lora_holds_every_layer_in_kohya_s_names(
    lora_base: DiffusersModel, learned: Any, tmp_path: Path
) -> None:
    learned.adapter = some_adapter(lora_base)
    export_lora(learned, tmp_path / "a.lora.safetensors")
    tensors = load_file(tmp_path / "a.lora.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    assert torch.equal(tensors[f"{key}.lora_down.weight"], learned.adapter[f"{LAYER}.down"])
    assert torch.equal(tensors[f"{key}.lora_up.weight"], learned.adapter[f"{LAYER}.up"])
    assert tensors[f"{key}.alpha"] == 4.0
    assert len(tensors) == len(learned.adapter) * 3 // 2
