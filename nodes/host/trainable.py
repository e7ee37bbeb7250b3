"""ComfyUI's MODEL and CLIP to be trained through: copies of their networks, made for one training.

What the host holds stays as it is, to the bit and to the object: it is shared with every other node. Nor can
the host move a copy away while it is trained through, load it piece by piece, or patch it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base_model import ComfyModel

# what the host notes at a module that it loads in part, the last two with functions that patch its weights
CASTING = ("comfy_cast_weights", "weight_function", "bias_function")


@contextmanager
def trainable(base: ComfyModel) -> Iterator[None]:
    """While active, gradients flow through `base`: through copies of MODEL and CLIP, with the LoRA and other
    patches of both, whole and on their devices, the U-Net in `base.dtype`.

    Raises ValueError for quantised weights, and for weights that the host loads piece by piece and cannot
    load otherwise.
    """
    for patcher, name in ((base.model, "MODEL"), (base.clip.patcher, "CLIP")):
        _refuse_quantised(patcher.model, name)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # in which nothing can be trained through
        stack.enter_context(torch.enable_grad())
        # ComfyUI's CLIP layers add in place
        stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        network = copy_of_network(loaded_whole(base.model, "MODEL"), base.dtype)
        network.diffusion_model.dtype, network.manual_cast_dtype = base.dtype, None
        text = copy_of_network(loaded_whole(base.clip.patcher, "CLIP"))
        if base.checkpointing:
            _recompute_blocks(network.diffusion_model)
        stack.enter_context(base.computing_with(network, text))
        yield


def loaded_whole(patcher: ModelPatcher, name: str) -> ModelPatcher:
    """The patcher; where the host loads its weights piece by piece, as they are used, one that has them
    whole, with the same patches.

    Raises ValueError where the loader did not say how to load them again.
    """
    dynamic: Any = getattr(patcher, "is_dynamic", None)
    if not dynamic or not dynamic():
        return patcher
    if not getattr(patcher, "cached_patcher_init", None):
        raise ValueError(
            f"ComfyUI loads this {name} piece by piece, through which nothing can be trained, and its loader "
            "gives no way to load it whole: take one of ComfyUI's own loaders, or start ComfyUI with "
            "--disable-dynamic-vram."
        )
    clone: Callable[..., ModelPatcher] = patcher.clone
    return clone(disable_dynamic=True)


@torch.no_grad()
def copy_of_network(patcher: ModelPatcher, dtype: torch.dtype | None = None) -> Any:
    """The patcher's network on its load device, patched, with weights of its own in `dtype` (None: each in
    that which it has).
    """
    network, device = patcher.model, patcher.load_device
    size = sum(p.numel() * (dtype or p.dtype).itemsize for p in network.parameters())
    comfy.model_management.free_memory(size + comfy.model_management.minimum_inference_memory(), device)
    names = {*patcher.object_patches, *patcher.object_patches_backup}
    objects = {name: patcher.get_model_object(name) for name in names}
    copies = _copied_weights(patcher, dtype) | _shared(network)
    for module in _modules([network, *objects.values()]):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            copies.setdefault(id(tensor), tensor.detach().to(device, copy=True))
    with _injected(patcher):
        own = copy.deepcopy(network, copies)
    for name, value in objects.items():
        comfy.utils.set_attr(own, name, copy.deepcopy(value, copies))
    for module in own.modules():
        for name in CASTING:
            vars(module).pop(name, None)
    return own


def _copied_weights(patcher: ModelPatcher, dtype: torch.dtype | None) -> dict[int, Any]:
    """Patched weights by the ids of those that they are copies of, as `deepcopy` takes note of what it has
    copied.
    """
    weights, device, copies = patcher.get_key_patches(), patcher.load_device, {}
    for name, parameter in patcher.model.named_parameters():
        # what the host put aside while a patched weight stands in its place, and what it is to be patched
        # with
        (weight, _), *patches = weights[name]
        value = weight.detach()
        if patches:
            value = comfy.lora.calculate_weight(patches, value.to(device, torch.float32, copy=True), name)
            value = value.to(weight.dtype)  # as the host holds it
        value = value.to(device, dtype or weight.dtype, copy=True)
        copies[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return copies


def _shared(network: Any) -> dict[int, Any]:
    """What a copy of the network has in common with it, or leaves out, as `_copied_weights`."""
    common = (getattr(network, name, None) for name in ("model_config", "current_patcher"))
    shared = {id(value): value for value in common if value is not None}
    for module in network.modules():
        for functions in (vars(module).get(name) for name in CASTING[1:]):
            if functions:
                shared[id(functions)] = []
    return shared


def _modules(objects: list[Any]) -> Iterator[nn.Module]:
    for value in objects:
        if isinstance(value, nn.Module):
            yield from value.modules()


@contextmanager
def _injected(patcher: ModelPatcher) -> Iterator[None]:
    """While active, what is injected into the network is the patcher's, not that of another patcher of it."""
    with ExitStack() as stack:
        for loaded in comfy.model_management.current_loaded_models:
            other: Any = loaded.model
            if other is not None and patcher.is_clone(other):
                stack.enter_context(other.use_ejected())
        patcher.inject_model()
        stack.callback(patcher.eject_model)
        yield


def _recompute_blocks(unet: UNetModel) -> None:
    """Lets activations inside residual and transformer blocks not be kept, but computed again for the
    gradient (gradient checkpointing).
    """
    for block in unet.modules():
        if isinstance(block, (ResBlock, SpatialTransformer)):
            block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    # the host notes in one dictionary which block is at work: each keeps what it was told
    copies = [dict(argument) if isinstance(argument, dict) else argument for argument in arguments]
    output: Any = checkpoint(forward, *copies, use_reentrant=False, preserve_rng_state=False, **options)
    return output


def _refuse_quantised(module: nn.Module, name: str) -> None:
    for parameter in module.parameters():
        # a quantised tensor is a class of its own, and may name the type that it would be unpacked to
        plain = type(parameter) is nn.Parameter
        if not plain or parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            precision = parameter.dtype if plain else type(parameter).__name__
            raise ValueError(
                f"{name} holds {precision} weights, through which nothing can be trained: load it with "
                "fp16, bf16 or fp32 weights."
            )
