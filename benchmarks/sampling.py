"""What attention re-weighting costs: blended sampling in each AAR mode over plain blended sampling.

Mode `paper` decodes an image for every evaluation: `paper` does so through the base's own decoder, and with
`--tiny-decoder` there is `paper_tiny`, through that. The embedded base's decoder is linear and costs next to
nothing; what the mode costs on Stable Diffusion, `--base random-sd` tells, of its true size.

Same photos, masks, prompt, steps, batch and scheduler; no guidance, so that every evaluation is re-weighted
(`adaptive` and `paper` leave the first one plain). The modes take turns in each round; a ratio is the median
over rounds of mode / plain. The aims: at most 1.05 for `adaptive` and `released`, 1.25 for `paper_tiny`. On
CPU, seconds are CPU time of one thread; on CUDA, wall-clock time. Peak memory is that of a process which
loads the base and samples once.

    .venv/bin/python benchmarks/sampling.py --batch 4 --steps 10
    .venv/bin/python benchmarks/sampling.py --base random-sd --size 256 --batch 1 --tiny-decoder taesd
    .venv/bin/python benchmarks/sampling.py --base stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measurement import (
    Options,
    busy_seconds,
    options_parser,
    paired_ratio,
    peak_memory,
    read_options,
    use_one_thread,
)
from random_base import load_base_or_random
from torch import Tensor

from anomalydiffusion_core.bases.tiny_decoder import load_tiny_decoder
from anomalydiffusion_core.method.inpainting import Decode
from anomalydiffusion_core.method.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.method.reweighting import MODES, AARConfig
from anomalydiffusion_core.method.sampling import (
    SamplingConfig,
    SamplingRequest,
    image_generator,
    sample_into,
)
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.config import DefectConfig

SPATIAL_TOKENS = 4
PLAIN, TINY = "plain", "paper_tiny"
VARIANTS = {PLAIN: "off"} | {mode: mode for mode in MODES if mode != "off"}


@dataclass(frozen=True)
class Workload:
    """Photos (B,3,H,W) in [-1,1], masks (B,1,H,W) in {0,1} and the context of one batch."""

    base: LatentDiffusion
    images: Tensor
    masks: Tensor
    context: Context
    steps: int
    tiny_decoder: Decode | None

    @property
    def variants(self) -> list[str]:
        """What is measured."""
        return [*VARIANTS, *([TINY] if self.tiny_decoder else [])]

    def sample(self, variant: str) -> Tensor:
        """Latents (B,C,h,w) of one batch; the noise is the same for every variant."""
        config = SamplingConfig(steps=self.steps, aar=AARConfig(VARIANTS.get(variant, "paper")))
        generators = [image_generator(0, i) for i in range(len(self.images))]
        decode = self.tiny_decoder if variant == TINY else None
        return sample_into(
            self.base,
            self.images,
            self.masks,
            SamplingRequest(self.context, None, generators, decode=decode),
            config=config,
        )


@torch.no_grad()
def make_workload(options: Options, tiny_decoder: Path | None = None) -> Workload:
    """Smooth random photos with one round defect each, a fifth of the side in radius at most."""
    base = load_base_or_random(options.base, options.device)
    size = options.size or base.native_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((options.batch, 3, 16, 16), generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    centre = 0.25 + 0.5 * torch.rand((options.batch, 2, 1, 1), generator=generator)
    radius = 0.08 + 0.12 * torch.rand((options.batch, 1, 1), generator=generator)
    masks = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).float()[:, None]
    count = DefectConfig.tokens + SPATIAL_TOKENS
    words = {name: v.mean(0, keepdim=True) for name, v in base.word_vectors("scratch stain hole").items()}
    inserted = {name: v.expand(options.batch, count, -1) for name, v in words.items()}
    context = base.encode_prompts([PHOTO_TEMPLATES[0]] * options.batch, inserted)
    decode = load_tiny_decoder(tiny_decoder, base) if tiny_decoder else None
    return Workload(base, images.to(base.device), masks.to(base.device), context, options.steps, decode)


def measure_seconds(workload: Workload, options: Options) -> dict[str, list[float]]:
    """Seconds per batch of every variant, by round; each round starts with another one."""
    variants = workload.variants
    for variant in variants:
        workload.sample(variant)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(options.rounds):
        first = turn % len(variants)
        for variant in variants[first:] + variants[:first]:
            start = busy_seconds(options.device)
            workload.sample(variant)
            seconds[variant].append(busy_seconds(options.device) - start)
    return seconds


def measure(options: Options, tiny_decoder: Path | None) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    adaptive = "adaptive"
    peaks = {
        name: peak_memory(lambda name=name: make_workload(options).sample(name), options.device)
        for name in (PLAIN, adaptive)
    }
    workload = make_workload(options, tiny_decoder)
    seconds = measure_seconds(workload, options)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: paired_ratio(seconds[name], seconds[PLAIN]) for name in workload.variants[1:]}
    return {
        **{f"aar_{name}_over_plain": round(ratio.median, 4) for name, ratio in ratios.items()},
        "peak_memory_over_plain": round(peaks[adaptive] / peaks[PLAIN], 4),
        "pairs_per_second": {name: round(options.batch / median, 3) for name, median in medians.items()},
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "peak_mib": {name: round(peak, 1) for name, peak in peaks.items()},
        "spread": {name: ratio.rounded() for name, ratio in ratios.items()},
        "options": {**asdict(options), "size": workload.images.shape[-1]},
        "torch": torch.__version__,
    }


def main() -> None:
    parser = options_parser(str(__doc__), 10, 7, "denoising steps")
    parser.add_argument("--tiny-decoder", type=Path, help="TAESD of the base's latents: a file or folder")
    options, arguments = read_options(parser)
    use_one_thread()
    print(json.dumps(measure(options, arguments.tiny_decoder)))


if __name__ == "__main__":
    main()
