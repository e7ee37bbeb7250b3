"""What KSampler (Anomaly) costs over ComfyUI's own KSampler with a noise mask, inside a real ComfyUI.

Same MODEL, photos, masks, conditioning, sampler, scheduler, steps, guidance and batch. "sampling" is the part
that both have; "node" is the whole node against VAE Encode, Set Latent Noise Mask, KSampler and VAE Decode
in a row. The variants take turns in each round; a ratio is the median over rounds. Aims: at most 1.05 for
`adaptive`, within 1 % with AAR off. Seconds are CPU time of one thread; on CUDA, wall-clock time.

    .venv/bin/python benchmarks/comfyui_sampling.py --comfyui .comfyui/ComfyUI
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measurement import Ratio, busy_seconds, paired_ratio, use_one_thread
from real_comfyui import import_pack

SAMPLER = {"cfg": 2.5, "sampler_name": "euler", "scheduler": "normal"}


def scene(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random photos (B,S,S,3) in [0,1] and masks (B,S,S) of one square each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((batch, 3, 16, 16), generator=generator)
    photos = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    masks = torch.zeros(batch, size, size)
    masks[:, size // 4 : size // 2, size // 3 : 2 * size // 3] = 1
    return photos.movedim(1, -1), masks


def variants(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is measured, by name. The pack must have been imported."""
    from adiff_pack.anomalydiffusion_core.method.reweighting import (  # type: ignore[import-not-found]
        AARConfig,
    )
    from adiff_pack.nodes import conditioning, embeddings, sampling  # type: ignore[import-not-found]
    from adiff_pack.nodes.base_models import LoadTinyBase  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.folders import BUNDLED_DEMO  # type: ignore[import-not-found]
    from adiff_pack.nodes.host.sampling import (  # type: ignore[import-not-found]
        MaskedPhotos,
        SamplerSettings,
        sample_latents,
    )

    core: Any = importlib.import_module("nodes")  # ComfyUI's, not the pack's
    model, clip, vae = LoadTinyBase.execute().args
    learned, _ = embeddings.LoadEmbeddings.execute(BUNDLED_DEMO).args
    photos, masks = scene(options.batch, options.size)
    positive, negative = conditioning.AnomalyConditioning.execute(
        model, clip, vae, learned, defect_type="leather/burn", template="a photo of a {}", mask=masks
    ).args
    given: dict[str, Any] = {
        "model": model, "positive": positive, "negative": negative, "vae": vae, "image": photos,
        "seed": 0, "steps": options.steps, **SAMPLER,
    }  # fmt: skip
    encoded = MaskedPhotos.encoded(photos, masks[:, None], vae)
    settings = SamplerSettings(0, options.steps, **SAMPLER)

    def ksampler(latent: dict[str, Any]) -> dict[str, Any]:
        return core.common_ksampler(
            model, 0, options.steps, *SAMPLER.values(), positive, negative, latent
        )[0]  # fmt: skip

    def core_chain() -> object:
        (latent,) = core.VAEEncode().encode(vae, photos)
        (latent,) = core.SetLatentNoiseMask().set_mask(latent, masks)
        return core.VAEDecode().decode(vae, ksampler(latent))

    def ours(mode: str) -> Callable[[], object]:
        aar = AARConfig(mode)
        return lambda: sample_latents(encoded, model, positive, negative, settings=settings, aar=aar)

    def node(mode: str) -> Callable[[], object]:
        return lambda: sampling.KSampler.execute(mask=masks, feather=1.0, mode=mode, strength=1.0, **given)

    latent = {"samples": encoded.latent, "noise_mask": masks[:, None]}
    return {
        "sampling": lambda: ksampler(latent),
        "sampling_off": ours("off"),
        "sampling_adaptive": ours("adaptive"),
        "node": core_chain,
        "node_off": node("off"),
        "node_adaptive": node("adaptive"),
    }


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    jobs = variants(options)
    for job in jobs.values():
        job()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = busy_seconds(device)
            jobs[name]()
            seconds[name].append(busy_seconds(device) - start)
    ratios: dict[str, Ratio] = {
        f"{name}_over_core": paired_ratio(seconds[name], seconds[name.partition("_")[0]])
        for name in names
        if "_" in name
    }
    return {
        **{name: round(ratio.median, 4) for name, ratio in ratios.items()},
        "spread": {name: ratio.rounded() for name, ratio in ratios.items()},
        "options": {key: str(value) for key, value in vars(options).items()},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI's main.py")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    import_pack(options.comfyui)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    use_one_thread()
    main()
