"""What a training step costs: ours on a pool of ready views, over diffusers' textual_inversion example.

Same base, photos, batch, resolution and number of tokens; the two take turns step by step in one process.
Ours is `fit` on an `AnomalyTask` (anomaly embeddings and spatial encoder); the reference is in
textual_inversion_step.py. The aim is at most 1.0 for both ratios. On CPU, seconds are CPU time of one thread;
on CUDA, wall-clock time. Peak memory is that of a process which loads the base and trains alone.

    .venv/bin/python benchmarks/training.py --batch 4 --steps 4 --rounds 5
    .venv/bin/python benchmarks/training.py --base stable-diffusion-v1-5/stable-diffusion-v1-5 --device cuda
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
from dataclasses import asdict
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
from textual_inversion_step import TextualInversion

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_views
from anomalydiffusion_core.diffusers_model import DiffusersModel, load_base
from anomalydiffusion_core.pipeline import starting_encoders
from anomalydiffusion_core.spatial_encoder import SpatialEncoder
from anomalydiffusion_core.tiny_base import architecture
from anomalydiffusion_core.tiny_base.few_shot import write_few_shot_dataset
from anomalydiffusion_core.training import AnomalyTask, TrainingConfig, fit

WARM_UP = 2  # steps of each
VIEWS_PER_PAIR = 2
SPATIAL_TOKENS = 4


def spatial_encoders(base: DiffusersModel) -> dict[str, SpatialEncoder]:
    """The base's own encoders; for a tiny base file without any, untrained ones of the same size."""
    if base.fingerprint.family == "tiny" and not base.spatial_encoders:
        return {name: SpatialEncoder(architecture.SPATIAL_ENCODER) for name in base.token_widths}
    return starting_encoders(base)


def make_task(base: DiffusersModel, photos: Path, config: TrainingConfig) -> AnomalyTask:
    """Anomaly embeddings and spatial encoder on a pool of views, encoded here and not in the step."""
    generator = torch.Generator().manual_seed(config.seed)
    pool = make_views(
        base, find_dataset(photos).by_type(), config.views_per_pair, config.image_size, generator
    )
    return AnomalyTask(base, pool, spatial_encoders(base), config)


def make_reference(base: DiffusersModel, photos: Path, config: TrainingConfig) -> TextualInversion:
    """The example's loop on the same photos; it takes over the text encoder and tokenizer of `base`."""
    files = [pair.image for pair in find_dataset(photos).pairs]
    count = config.anomaly_tokens + SPATIAL_TOKENS
    return TextualInversion(base, files, config.batch_size, config.image_size, count)


def measure_seconds(base: DiffusersModel, photos: Path, options: Options) -> dict[str, list[float]]:
    """Median seconds per step of both, by round of `options.steps` steps taken in turns."""
    total = WARM_UP + options.rounds * options.steps
    config = _config(options, base, total)
    task = make_task(base, photos, config)
    other = copy.copy(base)
    other.text_encoder, other.tokenizer = copy.deepcopy(base.text_encoder), copy.deepcopy(base.tokenizer)
    reference = make_reference(other, photos, config)
    steps: dict[str, list[float]] = {"ours": [], "reference": []}
    start = 0.0

    def take_turn(_step: int, _total: int, _loss: float) -> None:
        nonlocal start
        ours_ended = busy_seconds(options.device)
        steps["ours"].append(ours_ended - start)
        reference.step()
        start = busy_seconds(options.device)
        steps["reference"].append(start - ours_ended)

    start = busy_seconds(options.device)
    fit(task, config, on_step=take_turn)
    return {name: _by_round(values[WARM_UP:], options.steps) for name, values in steps.items()}


def measure_peaks(photos: Path, options: Options) -> dict[str, float]:
    """MiB of a process that loads the base and trains WARM_UP + 1 steps, ours or the reference."""

    def ours() -> None:
        base = load_base(options.base, options.device)
        config = _config(options, base, WARM_UP + 1)
        fit(make_task(base, photos, config), config)

    def reference() -> None:
        base = load_base(options.base, options.device)
        loop = make_reference(base, photos, _config(options, base, WARM_UP + 1))
        for _ in range(WARM_UP + 1):
            loop.step()

    return {
        "ours": peak_memory(ours, options.device),
        "reference": peak_memory(reference, options.device),
    }


def measure(options: Options) -> dict[str, object]:
    """The benchmark's result, ready for JSON."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        write_few_shot_dataset(photos, options.size or architecture.NATIVE_SIZE, pairs=3, normals=1)
        peaks = measure_peaks(photos, options)
        base = load_base(options.base, options.device)
        seconds = measure_seconds(base, photos, options)
    ratio = paired_ratio(seconds["ours"], seconds["reference"])
    return {
        "step_over_diffusers_textual_inversion": round(ratio.median, 4),
        "peak_memory_over_diffusers_textual_inversion": round(peaks["ours"] / peaks["reference"], 4),
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "peak_mib": {name: round(peak, 1) for name, peak in peaks.items()},
        "spread": ratio.rounded(),
        "options": {**asdict(options), "size": options.size or base.native_size},
        "torch": torch.__version__,
    }


def _config(options: Options, base: DiffusersModel, steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=options.batch,
        image_size=options.size or base.native_size,
        views_per_pair=VIEWS_PER_PAIR,
    )


def _by_round(values: list[float], steps: int) -> list[float]:
    return [statistics.median(values[i : i + steps]) for i in range(0, len(values), steps)]


if __name__ == "__main__":
    use_one_thread()
    options, _ = read_options(options_parser(str(__doc__), 4, 6, "training steps in a round"))
    print(json.dumps(measure(options)))
