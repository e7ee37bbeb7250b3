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
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import export_lora
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.training.config import DefectConfig, TrainingConfig
from anomalydiffusion_core.training.jobs import TrainingJob


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


def drawn(run: Any, trained: Any, adapted: Any, learned: Learned, model: Any) -> Tensor:
    """One image of KSampler (Anomaly), whose conditioning is that of `learned`."""
    base = {"clip": adapted.clip, "vae": adapted.vae}
    mask = torch.zeros(1, 128, 128)
    mask[0, 40:80, 40:80] = 1
    positive, negative = run(
        "ADiff_AnomalyConditioning",
        model=adapted.host,
        **base,
        embeddings=learned,
        mask=mask,
        defect_type="leather/ink",
        template="a photo of a {}",
    )
    settings = {"steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "mode": "off"}
    images, *_ = run(
        "ADiff_KSampler",
        model=model,
        positive=positive,
        negative=negative,
        vae=adapted.vae,
        image=trained.normals[:1],
        mask=mask,
        seed=1,
        strength=1.0,
        feather=1.0,
        **settings,
    )
    return images


def test_the_update_is_laid_on_model_by_itself_and_once(run: Any, trained: Any, adapted: Any) -> None:
    learned = replace(trained.embeddings, adapter=adapted.adapter)
    laid, by_lora = (
        drawn(run, trained, adapted, learned, model) for model in (adapted.host, adapted.patched)
    )
    without = drawn(run, trained, adapted, trained.embeddings, adapted.host)
    torch.testing.assert_close(laid, by_lora, atol=1e-4, rtol=0)
    assert float((laid - without).abs().max()) > 0.02


def test_masks_are_invented_with_the_update(run: Any, trained: Any, adapted: Any) -> None:
    def invented(learned: Learned, model: Any) -> Tensor:
        settings = {"steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 1}
        base = {"model": model, "clip": adapted.clip, "vae": adapted.vae}
        pictures: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patched:
            from adiff_pack.nodes.host import mask_invention  # type: ignore[import-not-found]

            def sampled(*arguments: Any, **options: Any) -> Tensor:
                pictures.append(plainly(*arguments, **options))
                raise InterruptedError

            plainly = mask_invention.sample_images
            patched.setattr(mask_invention, "sample_images", sampled)
            with pytest.raises(InterruptedError):
                run(
                    "ADiff_GenerateMasks",
                    **base,
                    embeddings=learned,
                    defect_type="leather/ink",
                    count=1,
                    **settings,
                )
        return pictures[0]

    learned = replace(trained.embeddings, adapter=adapted.adapter)
    laid, by_lora = (invented(learned, model) for model in (adapted.host, adapted.patched))
    torch.testing.assert_close(laid, by_lora, atol=1e-4, rtol=0)
    assert float((laid - invented(trained.embeddings, adapted.host)).abs().max()) > 0.1


def test_a_sampler_that_runs_again_finds_the_weights_patched(adapted: Any) -> None:
    from adiff_pack.nodes.host.update import with_update  # type: ignore[import-not-found]

    first, again = (with_update(adapted.host, adapted.adapter) for _ in range(2))
    other = {name: 2 * tensor for name, tensor in adapted.adapter.items()}
    assert first is not again and first.clone_has_same_weights(again)
    for model in (adapted.host, with_update(adapted.host, other), with_update(first, other)):
        assert not model.clone_has_same_weights(again)


def test_another_lora_on_the_same_layers_does_not_pass_for_the_update(adapted: Any) -> None:
    from adiff_pack.nodes.host.update import has_update, with_update  # type: ignore[import-not-found]

    other = {name: 2 * tensor for name, tensor in adapted.adapter.items()}
    patched = with_update(adapted.host, other)
    assert has_update(patched, other) and not has_update(patched, adapted.adapter)
    both = with_update(patched, adapted.adapter)
    assert has_update(both, other) and has_update(both, adapted.adapter)
    assert all(len(patches) == 2 for patches in both.patches.values())


def test_mask_conditioning_tells_of_an_update_that_model_lacks(
    run: Any, trained: Any, adapted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    learned = replace(trained.embeddings, adapter=adapted.adapter)
    for model, told in ((adapted.host, True), (adapted.patched, False)):
        caplog.clear()
        base = {"model": model, "clip": adapted.clip, "vae": adapted.vae}
        run("ADiff_MaskConditioning", **base, embeddings=learned, defect_type="leather/ink")
        assert ("update of the base, which this MODEL lacks" in caplog.text) == told


def test_every_use_of_embeddings_takes_the_base_with_their_update(trained: Any, adapted: Any) -> None:
    from adiff_pack.nodes.host.base_model import load_for  # type: ignore[import-not-found]

    learned = replace(trained.embeddings, adapter=adapted.adapter)
    base = load_for(learned, adapted.host, adapted.clip, adapted.vae)
    assert len(base.model.patches) == len(adapted.adapter) // 2 and not adapted.host.patches
    assert load_for(learned, adapted.patched, adapted.clip, adapted.vae).model is adapted.patched
    strange = {f"none.{name}": tensor for name, tensor in adapted.adapter.items()}
    with pytest.raises(ValueError, match="update of the base, which does not fit this MODEL"):
        load_for(replace(learned, adapter=strange), adapted.host, adapted.clip, adapted.vae)


@pytest.mark.parametrize("learn", ["both", "lora"])
def test_an_update_is_learned_in_comfyui_as_by_the_command(
    run: Any, trained: Any, adapted: Any, learn: str
) -> None:
    settings = {"steps": 2, "batch_size": 2, "share": 0.6, "seed": 3, "size": 64, "tokens": 2}
    before = {name: weight.clone() for name, weight in adapted.host.model.state_dict().items()}
    embeddings, _ = run(
        "ADiff_TrainAnomaly",
        **trained.base | {"model": adapted.host},
        dataset=trained.dataset,
        preview_every=0,
        learn=learn,
        **settings,
    )
    after = adapted.host.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    headless = load_base("tiny")
    config = DefectConfig(steps=2, batch_size=2, seed=3, tokens=2, learn=learn)  # type: ignore[arg-type]
    dataset = find_dataset(trained.dataset.root, next(iter(trained.dataset.categories)))
    job = TrainingJob(headless, dataset, TrainingConfig(64, 0.6, config, None))
    expected = job.train_defects().learned
    assert embeddings.adapter.keys() == expected.adapter.keys() == adapted.adapter.keys()
    with torch.inference_mode():
        (masks,) = run(
            "ADiff_TrainMasks",
            **trained.base | {"model": adapted.host},
            dataset=trained.dataset,
            embeddings=embeddings,
            **{name: settings[name] for name in ("steps", "batch_size", "share", "seed", "tokens")},
            preview_every=0,
        )
        (without,) = run(
            "ADiff_TrainMasks",
            **trained.base | {"model": adapted.host},
            dataset=trained.dataset,
            embeddings=replace(embeddings, adapter={}),
            **{name: settings[name] for name in ("steps", "batch_size", "share", "seed", "tokens")},
            preview_every=0,
        )
    ink, plain_ink = (some.mask["leather/ink"]["clip_l"] for some in (masks, without))
    assert masks.adapter.keys() == expected.adapter.keys() and not torch.equal(ink, plain_ink)
    ours, theirs, plain = load_for_noise(adapted, embeddings), predicted(headless), predicted(adapted.plain)
    learned = (theirs - plain).norm()
    assert float(learned) > 0.01 and float((ours - theirs).norm() / learned) < 0.1


def load_for_noise(adapted: Any, learned: Learned) -> Tensor:
    """What MODEL with the embeddings' update predicts."""
    from adiff_pack.nodes.host.base_model import load_for  # type: ignore[import-not-found]

    return in_comfyui(adapted, load_for(learned, adapted.host, adapted.clip, adapted.vae).model)


def test_an_adapted_artifact_is_saved_and_loaded_with_its_adapter(
    run: Any, trained: Any, adapted: Any, tmp_path: Path
) -> None:
    from anomalydiffusion_core.method.artifact import load_artifact

    learned = replace(trained.embeddings, adapter=adapted.adapter)
    (path,) = run("ADiff_SaveEmbeddings", embeddings=learned, filename_prefix="adapted/a")
    from adiff_pack.nodes.host.folders import embeddings_names  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    lora = load_file(path.replace(".safetensors", ".lora.safetensors"))
    assert len(lora) == 1.5 * len(adapted.adapter), "two matrices and their scale for each layer"
    assert not any(
        name.endswith((".lora.safetensors", ".lora.safetensors [output]")) for name in embeddings_names()
    )
    loaded = load_artifact(Path(path)).adapter
    assert loaded.keys() == adapted.adapter.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapted.adapter.items())
