"""A model of Stable Diffusion 1.5's true size, with random weights, in a real ComfyUI: it loads through
ComfyUI's own checkpoint loader, trains for two steps at 512 px and samples two. Time and peak memory as JSON.

    .venv/bin/python benchmarks/sd15_in_comfyui.py --comfyui .comfyui/ComfyUI
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from measurement import LiveTensors, peak_memory
from real_comfyui import import_pack
from torch import nn

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "context_dim": 768,
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "num_heads": 8,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip
AUTOENCODER = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
SIZE, STEPS = 512, 2


def write_checkpoint(path: Path) -> None:
    """An SD 1.x single-file checkpoint in half precision. ComfyUI must have been imported."""
    import comfy.sd1_clip  # type: ignore[import-not-found]
    from comfy.ldm.models.autoencoder import AutoencoderKL  # type: ignore[import-not-found]
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # type: ignore[import-not-found]
    from safetensors.torch import save_file

    parts: dict[str, nn.Module] = {
        "model.diffusion_model.": UNetModel(**UNET, dtype=torch.float16),
        "first_stage_model.": AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4).half(),
        "cond_stage_model.": comfy.sd1_clip.SDClipModel(dtype=torch.float16),
    }
    generator, state = torch.Generator().manual_seed(0), {}
    for prefix, module in parts.items():
        for name, tensor in module.state_dict().items():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else tensor.numel()
            values = torch.randn(tensor.shape, generator=generator) / max(fan_in, 1) ** 0.5
            state[prefix + name] = values.to(torch.float16)
    save_file(state, path)


def job(comfyui: Path, checkpoint: Path, base_folder: Path, batch: int, low_memory: bool) -> dict[str, float]:
    """Seconds for loading, training and sampling; GiB of all tensors in training at their most."""
    import_pack(comfyui)
    import comfy.sd  # type: ignore[import-not-found]
    import folder_paths  # type: ignore[import-not-found]
    from adiff_pack.anomalydiffusion_core.dataset.layout import find_dataset  # type: ignore[import-not-found]
    from adiff_pack.anomalydiffusion_core.procedural.few_shot import (  # type: ignore[import-not-found]
        write_few_shot_dataset,
    )
    from adiff_pack.anomalydiffusion_core.training.config import (  # type: ignore[import-not-found]
        DefectConfig,
        TrainingConfig,
    )
    from adiff_pack.anomalydiffusion_core.training.jobs import TrainingJob  # type: ignore[import-not-found]
    from adiff_pack.nodes import conditioning, sampling  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.base_model import ComfyModel  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.pixels import photo_batch  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.trainable import trainable  # type: ignore[import-not-found]

    folder_paths.set_temp_directory(str(base_folder / "temp"))
    clock = [time.monotonic()]
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    clock.append(time.monotonic())
    write_few_shot_dataset(base_folder / "data", 128, pairs=2, normals=1)
    dataset = find_dataset(base_folder / "data", "leather", ["burn"])
    normals = photo_batch(dataset.categories["leather"].normals, 1)
    base = ComfyModel(model, clip, vae)
    if low_memory:
        base.save_memory()
    # one view, nothing held out: on a CPU the autoencoder alone would take minutes more
    config = TrainingConfig(SIZE, 1.0, DefectConfig(STEPS, batch, views_per_pair=1), None)
    with LiveTensors() as live, trainable(base):
        learned = TrainingJob(base, dataset, config).run().learned
    clock.append(time.monotonic())
    photo = torch.nn.functional.interpolate(normals.movedim(-1, 1), (SIZE, SIZE)).movedim(1, -1)
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 100:300, 200:400] = 1
    positive, negative = conditioning.AnomalyConditioning.execute(
        model, clip, vae, learned, defect_type="leather/burn", template="a photo of a {}", mask=mask
    ).args
    images, *_ = sampling.KSampler.execute(
        image=photo, mask=mask, vae=vae, feather=1.0, model=model, positive=positive, negative=negative,
        seed=0, steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="normal", mode="adaptive", strength=1.0,
    ).args  # fmt: skip
    clock.append(time.monotonic())
    assert learned.image_size == SIZE and torch.isfinite(images).all()
    load, train, sample = (round(b - a, 1) for a, b in zip(clock, clock[1:], strict=False))
    seconds = {"load_seconds": load, "train_seconds": train, "sample_seconds": sample}
    return {**seconds, "train_gib": round(live.peak / 2**30, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI's main.py")
    parser.add_argument("--batch", type=int, default=1, help="views per training step")
    parser.add_argument("--low-memory", action="store_true", help="the training nodes' input of that name")
    arguments = parser.parse_args()
    comfyui = arguments.comfyui
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "sd15.safetensors"
        # in a process of its own, so that making the file does not count as memory
        peak_memory(lambda: (import_pack(comfyui), write_checkpoint(checkpoint)), "cpu")
        with torch.inference_mode():
            figures = job(comfyui, checkpoint, Path(folder), arguments.batch, arguments.low_memory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**figures, "peak_gib": round(peak, 2), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
