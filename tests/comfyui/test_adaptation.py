"""A base adapted to normal photos, in ComfyUI: with the exported LoRA, MODEL is the headless adapted base."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base
from anomalydiffusion_core.method.artifact import export_lora
from anomalydiffusion_core.method.embeddings import Learned


@torch.no_grad()
def some_adapter(base: DiffusersModel) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    with base.adapting(4, random) as parameters:
        return {name: 0.1 * torch.randn(p.shape, generator=random) for name, p in parameters.items()}


@pytest.fixture(scope="module")
def adapted(run: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The embedded base plain and adapted, and in ComfyUI plain and with the LoRA by ComfyUI's own node."""
    import folder_paths  # type: ignore[import-not-found]

    from nodes import LoraLoaderModelOnly  # type: ignore[import-not-found]

    plain, base = load_base("tiny"), load_base("tiny")
    adapter = some_adapter(base)
    base.adapt(adapter)
    folder = tmp_path_factory.mktemp("loras")
    model = Learned(base.fingerprint, 64, ("a photo of a {}",), adapter=adapter)
    export_lora(model, folder / "a.lora.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder))
    with torch.inference_mode():
        host, clip, vae = run("ADiff_LoadTinyBase")
        told = logging.getLogger()
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
        told.addHandler(handler)
        (patched,) = LoraLoaderModelOnly().load_lora_model_only(host, "a.lora.safetensors", 1.0)
        told.removeHandler(handler)
    return SimpleNamespace(
        plain=plain, base=base, adapter=adapter, host=host, patched=patched, clip=clip, vae=vae, told=records
    )


def predicted(host: Any) -> Tensor:
    random, t = torch.Generator().manual_seed(5), torch.tensor([150, 700])
    noisy = torch.randn(2, 8, 16, 16, generator=random)
    with torch.no_grad():
        return host.predict_noise(noisy, t, host.encode_prompts(["a photo of leather", ""]))


def in_comfyui(adapted: Any, model: Any) -> Tensor:
    import comfy.model_management  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return predicted(ComfyModel(model, adapted.clip, adapted.vae))


def test_the_lora_predicts_what_the_adapted_base_does_and_every_key_is_used(adapted: Any) -> None:
    assert not adapted.told  # such as "lora key not loaded"
    assert len(adapted.patched.patches) == len(adapted.adapter) // 2
    expected, without = predicted(adapted.base), predicted(adapted.plain)
    assert float((expected - without).abs().max()) > 0.1
    torch.testing.assert_close(in_comfyui(adapted, adapted.patched), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(in_comfyui(adapted, adapted.host), without, atol=1e-4, rtol=0)


def test_a_lora_leaves_the_fingerprint_that_of_the_plain_weights(adapted: Any) -> None:
    import comfy.model_management  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    for model in (adapted.patched, adapted.host):
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        assert vars(ComfyModel(model, adapted.clip, adapted.vae).fingerprint) == vars(
            adapted.base.fingerprint
        )


def test_an_adapted_artifact_asks_for_its_lora_where_the_model_has_none(
    run: Any, trained: Any, adapted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked = "load the .lora.safetensors file beside it by LoraLoaderModelOnly"
    learned = replace(trained.embeddings, adapter=adapted.adapter)
    for embeddings, model, told in (
        (learned, adapted.host, True),
        (learned, adapted.patched, False),
        (trained.embeddings, adapted.host, False),
    ):
        caplog.clear()
        run(
            "ADiff_AnomalyConditioning",
            model=model,
            clip=adapted.clip,
            vae=adapted.vae,
            embeddings=embeddings,
            mask=torch.ones(1, 64, 64),
            defect_type="leather/ink",
            template="a photo of a {}",
        )
        assert (asked in caplog.text) == told and "other weights" not in caplog.text


def test_an_adapted_artifact_is_saved_and_loaded_with_its_adapter(
    run: Any, trained: Any, adapted: Any, tmp_path: Path
) -> None:
    from anomalydiffusion_core.method.artifact import load_artifact

    learned = replace(trained.embeddings, adapter=adapted.adapter)
    (path,) = run("ADiff_SaveEmbeddings", embeddings=learned, filename_prefix="adapted/a")
    loaded = load_artifact(Path(path)).adapter
    assert loaded.keys() == adapted.adapter.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapted.adapter.items())
