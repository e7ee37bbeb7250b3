"""Gradients where ComfyUI loads weights piece by piece, as they are used, against those of weights loaded
whole.

ComfyUI does so since 0.16 on NVIDIA cards, in memory of the package comfy-aimdo, and never on a CPU. Here
`cpu:0` plays the card: the host's own code loads and casts, into memory of the CPU, as much of it as a case
allows; a weight that does not fit shares one buffer with all others that do not. For a checkpoint of Stable
Diffusion 1.x's architecture with random weights, in each precision and with memory for all, half and none of
it: the relative difference of the gradient, with and without a LoRA; the same where training would go through
the loading itself (which is why it does not); and whether all weights that the host holds stayed the same
bits.

Needs the folder of a ComfyUI of 0.33 or so, and an environment with its requirements and this package's:

    python benchmarks/dynamic_loading.py --comfyui ComfyUI
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_comfyui import import_pack
from safetensors.torch import load_file, save_file
from torch import Tensor

CARD = torch.device("cpu", 0)
BUFFER = 256 << 20  # bytes of the one that weights share
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LORA_LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2],
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4,
    "transformer_depth_middle": 1, "context_dim": 768, "use_spatial_transformer": True,
    "use_linear_in_transformer": False, "num_heads": 8, "num_head_channels": -1, "legacy": False,
    "adm_in_channels": None,
}  # fmt: skip
SMALL_TEXT = {"clip_l_model_config": {"num_hidden_layers": 2, "intermediate_size": 64}}
# in ComfyUI's comfy/ops.py: whether a weight is on the card is asked by devices, which here are all CPUs
CASTS = {
    'if hasattr(s, "_v") and comfy.model_management.is_device_cpu(device):': "if False:",
    'elif hasattr(s, "_v") and s.weight.device != device:': 'elif hasattr(s, "_v"):',
}


class Card:
    """Memory of the pretended card: `left` bytes."""

    left = 1 << 60


class VirtualMemory:
    """comfy_aimdo's ModelVBAR: addresses that get memory when they are used, while there is any."""

    def __init__(self, size: int, device: object) -> None:
        self.blocks: list[np.ndarray | None] = []

    def alloc(self, size: int) -> tuple[VirtualMemory, int, int]:
        self.blocks.append(None)
        return self, len(self.blocks) << 32, size

    def prioritize(self) -> None: ...

    def loaded_size(self) -> int:
        return sum(block.nbytes for block in self.blocks if block is not None)

    def free_memory(self, size: int) -> int:
        return 0

    def at(self, start: int) -> np.ndarray | None:
        return self.blocks[(start >> 32) - 1]


def fault(address: tuple[VirtualMemory, int, int]) -> bytes | None:
    """Memory for an address: a signature, or None where there is none left."""
    memory, start, size = address
    if memory.at(start) is None:
        if Card.left < size:
            return None
        Card.left -= size
        memory.blocks[(start >> 32) - 1] = np.zeros(size, np.uint8)
    return b"there"


class SharedBuffer:
    """comfy_aimdo's VRAMBuffer: what does not fit passes through one piece of memory."""

    def __init__(self, size: int, index: object) -> None:
        self.data = np.zeros(BUFFER, np.uint8)

    def get(self, size: int, offset: int) -> np.ndarray:
        return self.data[offset : offset + size]

    def size(self) -> int:
        return self.data.size


class HostBuffer:
    def __init__(self, *sizes: int) -> None:
        self.size = 0

    def truncate(self, *arguments: object, **options: object) -> None: ...


class Stream:
    """Of two, on which weights are copied in turn."""

    def as_context(self, *_: object) -> Any:
        return contextlib.nullcontext()

    def wait_stream(self, stream: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def module(name: str) -> Any:
    """One of ComfyUI's, of a version that need not be the one that types are checked against."""
    return import_module(name)


def pretend(comfyui: Path) -> None:
    """Imports ComfyUI and the pack with `cpu:0` as the card, on which weights are loaded as they are used."""
    sys.argv = [sys.argv[0]]
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # type: ignore[import-not-found]

    args.cpu = args.disable_pinned_memory = True
    import comfy_aimdo.host_buffer  # type: ignore[import-not-found]
    import comfy_aimdo.model_vbar as vbar  # type: ignore[import-not-found]
    import comfy_aimdo.torch  # type: ignore[import-not-found]
    import comfy_aimdo.vram_buffer  # type: ignore[import-not-found]

    vbar.ModelVBAR, vbar.vbar_fault = VirtualMemory, fault
    vbar.vbar_unpin = lambda address: None
    vbar.vbar_signature_compare = lambda a, b: a is not None and a == b
    vbar.vbars_analyze = lambda device=None: 0
    comfy_aimdo.torch.aimdo_to_tensor = lambda memory, device: torch.from_numpy(
        memory if isinstance(memory, np.ndarray) else memory[0].at(memory[1])
    )
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.vram_buffer.VRAMBuffer = SharedBuffer
    _import_casts(comfyui)
    module("comfy.utils").load_safetensors = lambda path: (load_file(path), {})
    management, patchers = module("comfy.model_management"), module("comfy.model_patcher")
    streams, turns = (Stream(), Stream()), [0]

    def next_stream(device: object) -> Stream:
        turns[0] += 1
        return streams[turns[0] % 2]

    management.is_device_cpu = lambda device: (
        device is None or (device.type == "cpu" and device.index is None)
    )
    management.get_torch_device = management.text_encoder_device = lambda: CARD
    management.unet_offload_device = management.text_encoder_offload_device = lambda: torch.device("cpu")
    management.should_use_fp16 = management.should_use_bf16 = lambda *_, **options: True
    management.get_offload_stream = next_stream
    management.sync_stream = management.current_stream = lambda *_: None
    patchers.CoreModelPatcher = patchers.ModelPatcherDynamic
    import_pack(comfyui)
    args.cpu = True


def _import_casts(comfyui: Path) -> None:
    """Imports comfy/ops.py, changed by `CASTS`."""
    path = comfyui / "comfy" / "ops.py"
    source = path.read_text(encoding="utf-8")
    for condition, instead in CASTS.items():
        if source.count(condition) != 1:
            raise SystemExit(f"{path} asks otherwise whether a weight is on the card: not {condition!r}.")
        source = source.replace(condition, instead)
    spec = importlib.util.spec_from_file_location("comfy.ops", path)
    assert spec
    casts = sys.modules["comfy.ops"] = importlib.util.module_from_spec(spec)
    exec(compile(source, path, "exec"), vars(casts))
    module("comfy").ops = casts


@contextlib.contextmanager
def piece_by_piece(dynamic: bool) -> Iterator[None]:
    """While active, the host's loaders load so, or not."""
    host = module("comfy.memory_management")
    host.aimdo_enabled = dynamic
    try:
        yield
    finally:
        host.aimdo_enabled = True


@torch.inference_mode()
def write_checkpoint(path: Path, dtype: torch.dtype) -> int:
    """Random weights of a small Stable Diffusion 1.x, as a file; how many bytes they are."""
    text, models = module("comfy.sd1_clip"), module("comfy.supported_models")
    random = torch.Generator().manual_seed(0)

    def drawn(network: Any, old: str, new: str) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            value = torch.randn(parameter.shape, generator=random) / max(fan_in, 4) ** 0.5
            tensors[name.replace(old, new, 1)] = value.to(dtype)
        return tensors

    with piece_by_piece(False):
        config = models.SD15(UNET)
        config.set_inference_dtype(dtype, None)
        target = module("comfy.supported_models_base").ClipTarget(text.SD1Tokenizer, text.SD1ClipModel)
        options = {"dtype": dtype, **SMALL_TEXT}
        clip = module("comfy.sd").CLIP(target, model_options=options, disable_dynamic=True)
        tensors = drawn(config.get_model({}, device="cpu"), "diffusion_model.", "model.diffusion_model.")
        tensors |= drawn(clip.cond_stage_model, "clip_l.", "cond_stage_model.")
    save_file(tensors, path)
    return sum(tensor.nbytes for tensor in tensors.values())


def load(path: Path, dtype: torch.dtype, dynamic: bool, lora: bool) -> Any:
    """The checkpoint by ComfyUI's own loader, as the pack's base."""
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]

    host = module("comfy.sd")
    with piece_by_piece(False):
        vae = host.VAE(sd=module("comfy.taesd.taesd").TAESD().state_dict())
    with piece_by_piece(dynamic):
        model, clip, *_ = host.load_checkpoint_guess_config(
            str(path), output_vae=False, model_options={"dtype": dtype},
            te_model_options={"dtype": dtype, **SMALL_TEXT}, disable_dynamic=not dynamic,
        )  # fmt: skip
    assert model.is_dynamic() == clip.patcher.is_dynamic() == dynamic
    if lora:
        random = torch.Generator().manual_seed(1)
        up, down = 0.2 * torch.randn(320, 4, generator=random), 0.2 * torch.randn(4, 768, generator=random)
        model = model.clone()
        assert model.add_patches({LORA_LAYER: ("diff", ((up @ down).to(dtype),))}, 1.0)
    return ComfyModel(model, clip, vae)


@contextlib.contextmanager
def through_the_loading(base: Any) -> Iterator[None]:
    """In place of the pack's `trainable`: gradients through the weights as the host loads them."""
    allowed = torch.autograd.graph.allow_mutation_on_saved_tensors()
    with torch.inference_mode(False), torch.enable_grad(), allowed:
        module("comfy.model_management").load_models_gpu([base.model, base.clip.patcher])
        yield


def gradient(base: Any, trainable: Callable[[Any], contextlib.AbstractContextManager[None]]) -> Tensor:
    """Of one training step in the inserted vectors."""
    with torch.inference_mode(), trainable(base):
        vectors = {name: rows[None].clone() for name, rows in base.word_vectors("hole").items()}
        for rows in vectors.values():
            rows.requires_grad_(True)
        context = base.encode_prompts(["a photo of a {}"], vectors)
        noisy = torch.randn(1, base.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
        base.predict_noise(noisy, torch.tensor([500]), context).square().mean().backward()
        return torch.cat([rows.grad.flatten() for rows in vectors.values() if rows.grad is not None])


def held(base: Any) -> str:
    """Hash of all weights that the host holds, and of which objects they are."""
    digest = hashlib.sha256()
    for patcher in (base.model, base.clip.patcher, base.vae.patcher):
        for name, tensor in patcher.model.named_parameters():
            digest.update(f"{name} {id(tensor)} {tensor.dtype}".encode())
            digest.update(tensor.detach().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measure(path: Path, dtype: torch.dtype, size: int) -> Iterator[tuple[str, str, str]]:
    """Memory, and what came of it through copies and through the loading itself."""
    from adiff_pack.nodes.host.trainable import trainable  # type: ignore[import-not-found]

    for lora in (False, True):
        with torch.inference_mode():
            base = load(path, dtype, dynamic=False, lora=lora)
        whole = gradient(base, trainable)
        for memory, share in (("all", 4.0), ("half", 0.5), ("none", 0.0)):
            Card.left = int(share * size)
            with torch.inference_mode():  # as ComfyUI runs nodes
                base = load(path, dtype, dynamic=True, lora=lora)
            before = held(base)
            copied = gradient(base, trainable)
            same = "same weights after" if held(base) == before else "OTHER WEIGHTS AFTER"
            difference = float((copied - whole).norm() / whole.norm())
            Card.left = int(share * size)
            try:
                direct = gradient(load(path, dtype, dynamic=True, lora=lora), through_the_loading)
                told = f"{float((direct - whole).norm() / whole.norm()):.1e}"
            except RuntimeError as error:
                told = f"fails ({str(error).splitlines()[0][:50]})"
            yield memory + (" + LoRA" if lora else ""), f"{difference:.1e} ({same})", told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI's main.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretend(options.comfyui.resolve())
    print("| weights | memory for | gradient through copies | through the loading |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in PRECISIONS.items():
            path = Path(folder) / f"{name}.safetensors"
            size = write_checkpoint(path, dtype)
            for row in measure(path, dtype, size):
                print("|", " | ".join((name, *row)), "|", flush=True)


if __name__ == "__main__":
    main()
