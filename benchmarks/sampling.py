"""What attention re-weighting costs: blended sampling in each AAR mode over plain blended sampling.

Same photos, masks, prompt, steps, batch and scheduler; no guidance, so that every evaluation is re-weighted
(`adaptive` and `paper` leave the first one plain). The modes take turns in each round; a ratio is the median
over rounds of mode / plain. The aim is at most 1.05 for `adaptive`. On CPU, seconds are CPU time of one
thread; on CUDA, wall-clock time. Peak memory is that of a process which loads the base and samples once.

    .venv/bin/python benchmarks/sampling.py --batch 4 --steps 10
    .venv/bin/python benchmarks/sampling.py --base stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass

import torch
from measurement import (
    Options,
    busy_seconds,
    paired_ratio,
    peak_memory,
    read_options,
    use_one_thread,
)
from torch import Tensor

from anomalydiffusion_core.diffusers_model import load_base
from anomalydiffusion_core.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.reweighting import AARConfig, AARMode
from anomalydiffusion_core.sampling import SamplingConfig, image_generator, sample_into
from anomalydiffusion_core.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training import TrainingConfig

SPATIAL_TOKENS = 4
MODES = (AARMode.OFF, AARMode.ADAPTIVE, AARMode.RELEASED, AARMode.PAPER)


@dataclass(frozen=True)
class Workload:
    """Photos (B,3,H,W) in [-1,1], masks (B,1,H,W) in {0,1} and the context of one batch."""

    base: LatentDiffusion
    images: Tensor
    masks: Tensor
    context: Context
    steps: int

    def sample(self, mode: AARMode) -> Tensor:
        """Latents (B,C,h,w) of one batch; the noise is the same for every mode."""
        config = SamplingConfig(steps=self.steps, aar=AARConfig(mode))
        generators = [image_generator(0, i) for i in range(len(self.images))]
        return sample_into(self.base, self.images, self.masks, self.context, None, config, generators)


@torch.no_grad()
def make_workload(options: Options) -> Workload:
    """Smooth random photos with one round defect each, a fifth of the side in radius at most."""
    base = load_base(options.base, options.device)
    size = options.size or base.native_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((options.batch, 3, 16, 16), generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    centre = 0.25 + 0.5 * torch.rand((options.batch, 2, 1, 1), generator=generator)
    radius = 0.08 + 0.12 * torch.rand((options.batch, 1, 1), generator=generator)
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).float()[:, None]
    count = TrainingConfig().anomaly_tokens + SPATIAL_TOKENS
    words = {name: v.mean(0, keepdim=True) for name, v in base.word_vectors("scratch stain hole").items()}
    inserted = {name: v.expand(options.batch, count, -1) for name, v in words.items()}
    context = base.encode_prompts([PHOTO_TEMPLATES[0]] * options.batch, inserted)
    return Workload(base, images.to(base.device), masks.to(base.device), context, options.steps)


def measure_seconds(workload: Workload, options: Options) -> dict[AARMode, list[float]]:
    """Seconds per batch of every mode, by round; each round starts with another mode."""
    for mode in MODES:
        workload.sample(mode)
    seconds: dict[AARMode, list[float]] = {mode: [] for mode in MODES}
    for turn in range(options.rounds):
        first = turn % len(MODES)
        for mode in MODES[first:] + MODES[:first]:
            start = busy_seconds(options.device)
            workload.sample(mode)
            seconds[mode].append(busy_seconds(options.device) - start)
    return seconds


def measure(options: Options) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    peaks = {
        mode: peak_memory(lambda mode=mode: make_workload(options).sample(mode), options.device)
        for mode in (AARMode.OFF, AARMode.ADAPTIVE)
    }
    workload = make_workload(options)
    seconds = measure_seconds(workload, options)
    medians = {mode: statistics.median(seconds[mode]) for mode in MODES}
    ratios = {mode: paired_ratio(seconds[mode], seconds[AARMode.OFF]) for mode in MODES[1:]}
    return {
        **{f"aar_{mode.value}_over_plain": round(ratio.median, 4) for mode, ratio in ratios.items()},
        "peak_memory_over_plain": round(peaks[AARMode.ADAPTIVE] / peaks[AARMode.OFF], 4),
        "pairs_per_second": {_name(mode): round(options.batch / medians[mode], 3) for mode in MODES},
        "seconds": {_name(mode): round(medians[mode], 4) for mode in MODES},
        "peak_mib": {_name(mode): round(peak, 1) for mode, peak in peaks.items()},
        "spread": {mode.value: ratio.rounded() for mode, ratio in ratios.items()},
        "options": {**asdict(options), "size": workload.images.shape[-1]},
        "torch": torch.__version__,
    }


def _name(mode: AARMode) -> str:
    return "plain" if mode is AARMode.OFF else mode.value


if __name__ == "__main__":
    use_one_thread()
    print(json.dumps(measure(read_options(str(__doc__), 10, 7, "denoising steps"))))
