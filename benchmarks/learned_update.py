"""What learning an update of the base costs (`train --learn both`), over tokens and spatial encoder alone:
a training step, by turns in one process, and the peak of all tensors. `--base random-sd` has Stable Diffusion
1.5's size, and random weights.

    .venv/bin/python benchmarks/learned_update.py --batch 4 --steps 4 --rounds 5
    .venv/bin/python benchmarks/learned_update.py --base random-sd --size 256 --batch 1 --steps 1 --rounds 3
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
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

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_views
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset
from anomalydiffusion_core.training.adaptation import normal_views
from anomalydiffusion_core.training.config import DefectConfig, Learn
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.encoders import starting_encoders
from anomalydiffusion_core.training.fitting import fit

LEARN: tuple[Learn, Learn] = ("tokens", "both")
VIEWS_PER_PAIR = 2


@contextmanager
def task_of(base: DiffusersModel, photos: Path, config: DefectConfig, size: int) -> Iterator[AnomalyTask]:
    """What a training learns, on views that are encoded here and not in the step."""
    dataset, generator = find_dataset(photos), torch.Generator().manual_seed(0)
    pool = make_views(base, dataset.by_type(), VIEWS_PER_PAIR, size, generator=generator)
    if config.learn == "tokens":
        yield AnomalyTask(base, pool, starting_encoders(base), config)
        return
    normals = normal_views(base, dataset, config, size, VIEWS_PER_PAIR, generator=generator)
    with base.adapting(config.rank, generator) as adapter:
        yield AnomalyTask(base, pool, starting_encoders(base), config, adapter=adapter, normals=normals)


def config_of(options: Options, learn: Learn) -> DefectConfig:
    return DefectConfig(
        steps=options.steps, batch_size=options.batch, views_per_pair=VIEWS_PER_PAIR, learn=learn
    )


def measure_seconds(options: Options, photos: Path, size: int) -> dict[str, list[float]]:
    """Seconds of `options.steps` steps of each, by round; the first warms up."""
    seconds: dict[str, list[float]] = {learn: [] for learn in LEARN}
    base = load_base_or_random(options.base, options.device)
    for _ in range(options.rounds + 1):
        for learn in LEARN:
            config = config_of(options, learn)
            with task_of(base, photos, config, size) as task:
                start = busy_seconds(options.device)
                fit(task, config)
                seconds[learn].append(busy_seconds(options.device) - start)
    return {learn: values[1:] for learn, values in seconds.items()}


def measure_peak(options: Options, photos: Path, size: int, learn: Learn) -> float:
    """MiB."""

    def job(base: DiffusersModel) -> None:
        base.to(options.device)
        config = config_of(options, learn)
        with task_of(base, photos, config, size) as task:
            base.release_codec()
            if options.device == "cpu":  # where it would still be counted
                del base.codec
            fit(task, config)

    return peak_allocated(partial(load_base_or_random, options.base, "cpu"), job, options.device)


if __name__ == "__main__":
    use_one_thread()
    options, _ = read_options(options_parser(str(__doc__), 4, 4, "training steps in a round"))
    size = options.size or architecture.NATIVE_SIZE
    with tempfile.TemporaryDirectory() as folder:
        write_few_shot_dataset(Path(folder), size, pairs=3, normals=2)
        seconds = measure_seconds(options, Path(folder), size)
        peaks = {learn: measure_peak(options, Path(folder), size, learn) for learn in LEARN}
    ratio = paired_ratio(seconds["both"], seconds["tokens"])
    print(
        json.dumps(
            {
                "step_over_tokens": round(ratio.median, 3),
                "spread": ratio.rounded(),
                "peak_over_tokens": round(peaks["both"] / peaks["tokens"], 3),
                "peak_mib": {learn: round(peak) for learn, peak in peaks.items()},
                "options": asdict(options),
            }
        )
    )
