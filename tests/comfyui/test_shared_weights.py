"""nodes/host/trainable.py: what the host holds is the same, to the bit and to the object, after any node."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_inputs import DEMO, SAMPLER
from torch import Tensor

SETTINGS = {"steps": 3, "batch_size": 1, "share": 0.6, "preview_every": 0, "size": 64, "tokens": 2}
LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def held(base: Any) -> dict[str, tuple[int, str]]:
    """All weights that the host holds: which objects they are, and a hash of their values."""
    return {
        f"{kind} {name}": (id(tensor), hashlib.sha256(tensor.detach().cpu().numpy().tobytes()).hexdigest())
        for kind, patcher in (("model", base.model), ("clip", base.clip.patcher), ("vae", base.vae.patcher))
        for name, tensor in (*patcher.model.named_parameters(), *patcher.model.named_buffers())
    }


@pytest.fixture(scope="module")
def base(run: Any) -> SimpleNamespace:
    """The embedded base as a user has it after a first picture: loaded."""
    import comfy.model_management  # type: ignore[import-not-found]

    model, clip, vae = run("ADiff_LoadTinyBase")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model, clip.patcher, vae.patcher])
    dataset = run("ADiff_LoadDataset", **DEMO | {"defects": "burn"}, normal_count=1)[0]
    return SimpleNamespace(model=model, clip=clip, vae=vae, dataset=dataset)


def with_lora(model: Any, strength: float = 1.0) -> Any:
    patched = model.clone()
    weight = model.model.state_dict()[LAYER]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert patched.add_patches({LAYER: ("diff", (change,))}, strength)
    return patched


@pytest.fixture
def fails_with(pack: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets the second step of a training fail, in its midst."""
    defects = importlib.import_module(f"{pack.__name__}.anomalydiffusion_core.training.defects")
    loss, seen = defects.AnomalyTask.loss, []

    def fail(error: BaseException) -> None:
        def failing(self: Any, *arguments: Any) -> Tensor:
            value = loss(self, *arguments)
            if torch.is_grad_enabled():  # no measurement
                seen.append(arguments)
                if len(seen) == 2:
                    raise error
            return value

        monkeypatch.setattr(defects.AnomalyTask, "loss", failing)

    return fail


def train(run: Any, base: Any, seed: int, **changed: Any) -> tuple:
    inputs = {"model": base.model, "clip": base.clip, "vae": base.vae, "dataset": base.dataset, "seed": seed}
    return run("ADiff_TrainAnomaly", **inputs | SETTINGS | changed)


def sampled(base: Any, model: Any) -> Tensor:
    """One Euler step of ComfyUI's sampler."""
    import comfy.sample  # type: ignore[import-not-found]
    import comfy.samplers  # type: ignore[import-not-found]

    with torch.inference_mode():
        hidden = base.clip.encode_from_tokens(base.clip.tokenize("a hole"))
        noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
        sigmas = torch.tensor([2.0, 0.0])
        euler, words = comfy.samplers.sampler_object("euler"), [[hidden, {}]]
        nothing = torch.zeros_like(noise)
        return comfy.sample.sample_custom(
            model, noise, 1.0, euler, sigmas, words, words, nothing, disable_pbar=True
        ).clone()


def test_after_a_training(run: Any, base: Any) -> None:
    before = held(base)
    train(run, base, 100)
    assert held(base) == before


def test_after_a_training_in_low_memory(run: Any, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    before = held(base)
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_: True)
    train(run, base, 101, low_memory=True)
    assert held(base) == before and base.model.model.diffusion_model.dtype == torch.float32


def test_after_an_error(run: Any, base: Any, fails_with: Any) -> None:
    before = held(base)
    fails_with(RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        train(run, base, 102)
    assert held(base) == before


def test_after_memory_ran_out(run: Any, base: Any, fails_with: Any) -> None:
    before = held(base)
    fails_with(torch.OutOfMemoryError("of the card"))
    with pytest.raises(ValueError, match="The device ran out of memory"):
        train(run, base, 103)
    assert held(base) == before


def test_after_a_cancel(run: Any, base: Any, fails_with: Any) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    before = held(base)
    fails_with(comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run, base, 104)
    assert held(base) == before


def test_after_a_training_with_a_lora_that_is_in_force(run: Any, base: Any) -> None:
    patched = with_lora(base.model)
    sampled(base, patched)  # its weights stand in the place of the plain ones now
    before = held(base)
    plain, with_it = train(run, base, 105)[0], train(run, base, 105, model=patched)[0]
    assert held(base) == before
    name = next(iter(plain.anomaly))
    assert not torch.equal(plain.anomaly[name]["clip_l"], with_it.anomaly[name]["clip_l"])
    assert not torch.equal(sampled(base, patched), sampled(base, base.model))


def test_after_mask_training_conditioning_and_sampling(run: Any, base: Any) -> None:
    three = {"model": base.model, "clip": base.clip, "vae": base.vae}
    sampled(base, base.model)  # the host takes the LoRA of before off
    before = held(base)
    embeddings, _ = train(run, base, 106)
    options = {"steps": 2, "batch_size": 1, "share": 0.6, "preview_every": 0, "tokens": 2, "seed": 0}
    run("ADiff_TrainMasks", **three, embeddings=embeddings, dataset=base.dataset, **options)
    mask = torch.zeros(1, 64, 64)
    mask[:, 10:40, 20:50] = 1
    positive, negative = run(
        "ADiff_AnomalyConditioning", **three, embeddings=embeddings, mask=mask, defect_type="",
        template="a photo of a {}",
    )  # fmt: skip
    run(
        "ADiff_KSampler", model=base.model, vae=base.vae, positive=positive, negative=negative,
        image=torch.rand(1, 64, 64, 3), mask=mask, seed=1, mode="adaptive", strength=1.0, feather=1.0,
        **SAMPLER,
    )  # fmt: skip
    assert held(base) == before


def test_a_lora_acts_after_a_failed_training_as_before(run: Any, base: Any, fails_with: Any) -> None:
    patched = with_lora(base.model)
    plain, changed = sampled(base, base.model), sampled(base, patched)
    fails_with(RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        train(run, base, 107)
    assert torch.equal(sampled(base, patched), changed) and torch.equal(sampled(base, base.model), plain)
    assert float((changed - plain).abs().max()) > 1e-3


def test_the_embedded_base_is_loaded_again_where_the_host_wants_weights_of_its_own(base: Any) -> None:
    for patcher in (base.model, base.clip.patcher, base.vae.patcher):
        reload, arguments = patcher.cached_patcher_init
        with torch.inference_mode(False):
            again = reload(*arguments, disable_dynamic=True)
        state = again.model.state_dict()
        assert again.model is not patcher.model
        for name, tensor in patcher.model.state_dict().items():
            assert torch.equal(tensor, state[name]) and tensor.data_ptr() != state[name].data_ptr(), name


def test_comfyui_s_own_lora_trainer_takes_the_embedded_base(base: Any) -> None:
    from comfy_extras.nodes_train import TrainLoraNode  # type: ignore[import-not-found]

    with torch.inference_mode():
        hidden = base.clip.encode_from_tokens(base.clip.tokenize("a hole"))
        inputs = {
            "model": base.model.clone(), "latents": {"samples": torch.randn(1, 8, 8, 8)},
            "positive": [[hidden, {}]],
            "batch_size": 1, "grad_accumulation_steps": 1, "steps": 1, "learning_rate": 1e-3, "rank": 2,
            "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32",
            "lora_dtype": "fp32", "algorithm": "LoRA", "gradient_checkpointing": False,
            "existing_lora": "[None]",
            "quantized_backward": False, "checkpoint_depth": 1, "offloading": False, "bucket_mode": False,
            "bypass_mode": False,
        }  # fmt: skip
        if hasattr(TrainLoraNode, "execute"):
            trainer: Any = TrainLoraNode.PREPARE_CLASS_CLONE({}).execute
        else:
            trainer = TrainLoraNode().train
        known = inspect.signature(trainer).parameters
        given = {name: value for name, value in inputs.items() if name in known}
        if getattr(TrainLoraNode, "INPUT_IS_LIST", False):
            given = {name: [value] for name, value in given.items()}
            given["latents"] *= 2  # of one alone 0.3.75 makes an error
        result = trainer(**given)
    outputs = getattr(result, "args", result)
    losses = next(value["loss"] for value in outputs if isinstance(value, dict) and "loss" in value)
    assert len(losses) == 1 and losses[0] > 0


def test_weights_that_are_loaded_piece_by_piece_are_loaded_whole_or_refused_in_a_sentence(base: Any) -> None:
    from adiff_pack.nodes.host.trainable import loaded_whole  # type: ignore[import-not-found]
    from comfy.model_patcher import ModelPatcher  # type: ignore[import-not-found]

    class Dynamic(ModelPatcher):
        """As newer hosts have them on NVIDIA cards; benchmarks/dynamic_loading.py runs the real ones."""

        cached_patcher_init: Any = None

        def is_dynamic(self) -> bool:
            return True

        def clone(self, disable_dynamic: bool = False) -> Any:
            assert disable_dynamic
            return base.model

    patcher = Dynamic(base.model.model, base.model.load_device, base.model.offload_device)
    with pytest.raises(
        ValueError, match="loads this MODEL piece by piece.* or start ComfyUI with --disable-dyn"
    ):
        loaded_whole(patcher, "MODEL")
    patcher.cached_patcher_init = (lambda: None, ())
    assert loaded_whole(patcher, "MODEL") is base.model is loaded_whole(base.model, "MODEL")
