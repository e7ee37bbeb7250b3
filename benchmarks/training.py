"""What a training step costs: ours on a pool of ready views, over two references.

They are diffusers' textual_inversion example (textual_inversion_step.py; the aim is at most 0.8 of its time
and memory) and the authors' released step (released_step.py; at most 0.5 of its time, 0.6 of its memory),
that with their spatial encoder and with ours. Same base, photos, batch, resolution, precision and number of
tokens; all take turns step by step in one process. Ours is `fit` on an `AnomalyTask` (anomaly embeddings and
spatial encoder). On CPU, seconds are CPU time of one thread; on CUDA, wall-clock time. Peak memory is of a
base that is trained on alone: what PyTorch allocates on CUDA, the sum of all live tensors on CPU.
`--base random-sd` has Stable Diffusion 1.5's size, and random weights; `--only` takes one of the two.

    .venv/bin/python benchmarks/training.py --batch 4 --steps 4 --rounds 5
    .venv/bin/python benchmarks/training.py --base random-sd --device cuda --precision bf16 --checkpointing
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measurement import (
    Options,
    busy_seconds,
    options_parser,
    paired_ratio,
    peak_allocated,
    read_options,
    use_one_thread,
)
from random_base import load_base_or_random
from released_encoder import ReleasedEncoder
from released_step import ReleasedStep
from textual_inversion_step import TextualInversion
from torch import nn

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_views
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset
from anomalydiffusion_core.training.config import DefectConfig, TrainingConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.encoders import starting_encoders
from anomalydiffusion_core.training.fitting import fit

OURS = "ours"
WARM_UP = 2  # steps of each
VIEWS_PER_PAIR = 2
SPATIAL_TOKENS = 4


def make_task(base: DiffusersModel, photos: Path, config: TrainingConfig) -> AnomalyTask:
    """Anomaly embeddings and spatial encoder on a pool of views, encoded here and not in the step."""
    defects, pairs = config.defects, find_dataset(photos).by_type()
    generator = torch.Generator().manual_seed(defects.seed)
    pool = make_views(base, pairs, defects.views_per_pair, config.image_size, generator=generator)
    return AnomalyTask(base, pool, starting_encoders(base), defects)


def make_textual_inversion(base: DiffusersModel, photos: Path, config: TrainingConfig) -> TextualInversion:
    """The example's loop on the same photos; it takes over the text encoder and tokenizer of `base`."""
    files = [pair.image for pair in find_dataset(photos).pairs]
    count = config.defects.tokens + SPATIAL_TOKENS
    return TextualInversion(base, files, config.defects.batch_size, config.image_size, tokens=count)


def make_released(base: DiffusersModel, photos: Path, config: TrainingConfig) -> ReleasedStep:
    """The authors' loop on the same photos."""
    torch.manual_seed(0)
    encoders = {name: ReleasedEncoder(width, SPATIAL_TOKENS) for name, width in base.token_widths.items()}
    return _released(base, photos, config, encoders)


def make_released_with_our_encoder(
    base: DiffusersModel, photos: Path, config: TrainingConfig
) -> ReleasedStep:
    """The authors' loop with the spatial encoder that ours trains."""
    return _released(base, photos, config, starting_encoders(base))


def _released(
    base: DiffusersModel, photos: Path, config: TrainingConfig, encoders: Mapping[str, nn.Module]
) -> ReleasedStep:
    config = replace(config, defects=replace(config.defects, normalisation="released"))
    return ReleasedStep(base, find_dataset(photos).by_type(), dict(encoders), config)


References = dict[str, Callable[[DiffusersModel, Path, TrainingConfig], TextualInversion | ReleasedStep]]
REFERENCES: References = {
    "diffusers_textual_inversion": make_textual_inversion,
    "released_step": make_released,
    "released_step_with_our_encoder": make_released_with_our_encoder,
}


@dataclass(frozen=True)
class Job:
    """What is trained, and how."""

    photos: Path
    options: Options
    bf16: bool
    checkpointing: bool
    references: tuple[str, ...]  # names in REFERENCES

    def base(self) -> DiffusersModel:
        """The base, loaded anew, on the CPU."""
        base = load_base_or_random(self.options.base, "cpu")
        base.save_memory(self.bf16, self.checkpointing)
        return base

    def config(self, base: DiffusersModel, steps: int) -> TrainingConfig:
        """A training of so many steps."""
        defects = DefectConfig(
            steps=steps,
            batch_size=self.options.batch,
            views_per_pair=VIEWS_PER_PAIR,
            checkpointing=self.checkpointing,
        )
        return TrainingConfig(self.options.size or base.native_size, defects=defects)


def measure_seconds(job: Job) -> dict[str, list[float]]:
    """Median seconds per step of each, by round of `options.steps` steps taken in turns."""
    options, base = job.options, job.base()
    base.to(options.device)
    config = job.config(base, WARM_UP + options.rounds * options.steps)
    task = make_task(base, job.photos, config)
    others = {}
    for name in job.references:
        other = copy.copy(base)
        other.text_encoder, other.tokenizer = copy.deepcopy(base.text_encoder), copy.deepcopy(base.tokenizer)
        others[name] = REFERENCES[name](other, job.photos, config)
    steps: dict[str, list[float]] = {OURS: [], **{name: [] for name in others}}
    start = 0.0

    def take_turns(_step: int, _total: int, _loss: float) -> None:
        nonlocal start
        now = busy_seconds(options.device)
        steps[OURS].append(now - start)
        for name, other in others.items():
            start = now
            other.step()
            now = busy_seconds(options.device)
            steps[name].append(now - start)
        start = now

    start = busy_seconds(options.device)
    fit(task, config.defects, on_step=take_turns)
    return {name: _by_round(values[WARM_UP:], options.steps) for name, values in steps.items()}


def measure_peaks(job: Job) -> dict[str, float]:
    """MiB where the base is trained on for WARM_UP steps, by ours or a reference."""

    device = job.options.device

    def ours(base: DiffusersModel) -> None:
        base.to(device)
        config = job.config(base, WARM_UP)
        task = make_task(base, job.photos, config)
        base.release_codec()
        if device == "cpu":  # where it would still be counted
            del base.codec
        fit(task, config.defects)

    def reference(name: str, base: DiffusersModel) -> None:
        base.to(device)
        loop = REFERENCES[name](base, job.photos, job.config(base, WARM_UP))
        for _ in range(WARM_UP):  # the optimiser has its moments from the first on
            loop.step()

    peaks = {name: peak_allocated(job.base, partial(reference, name), device) for name in job.references}
    return {OURS: peak_allocated(job.base, ours, device), **peaks}


def measure(job: Job, memory: bool, time: bool) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    result: dict[str, object] = {}
    if memory:
        peaks = measure_peaks(job)
        result |= {
            "peak_memory_over": {name: round(peaks[OURS] / peaks[name], 4) for name in job.references},
            "peak_mib": {name: round(peak, 1) for name, peak in peaks.items()},
        }
    if time:
        seconds = measure_seconds(job)
        ratios = {name: paired_ratio(seconds[OURS], seconds[name]) for name in job.references}
        result |= {
            "step_over": {name: round(ratio.median, 4) for name, ratio in ratios.items()},
            "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
            "spread": {name: ratio.rounded() for name, ratio in ratios.items()},
        }
    return {
        **result,
        "options": {**asdict(job.options), "bf16": job.bf16, "checkpointing": job.checkpointing},
        "torch": torch.__version__,
    }


def _by_round(values: list[float], steps: int) -> list[float]:
    return [statistics.median(values[i : i + steps]) for i in range(0, len(values), steps)]


if __name__ == "__main__":
    use_one_thread()
    parser = options_parser(str(__doc__), 4, 6, "training steps in a round")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the U-Net")
    parser.add_argument("--checkpointing", action="store_true", help="of gradients, in all contenders")
    parser.add_argument("--only", choices=["memory", "time"])
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    options, arguments = read_options(parser)
    with tempfile.TemporaryDirectory() as folder:
        write_few_shot_dataset(Path(folder), options.size or architecture.NATIVE_SIZE, pairs=3, normals=1)
        bf16, references = arguments.precision == "bf16", tuple(arguments.references)
        job = Job(Path(folder), options, bf16, arguments.checkpointing, references)
        print(json.dumps(measure(job, memory=arguments.only != "time", time=arguments.only != "memory")))
