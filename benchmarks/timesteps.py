"""Which timesteps should training draw? Where gradients are large, and what comes of drawing more there.

First the root mean square of the tokens' gradient per view in each tenth of the timesteps, before and after a
training that draws them evenly, as `fit` does; and by how much the variance of the gradient would fall, at
best, where timesteps were drawn in proportion and losses weighted against it. Then the held-out loss of
trainings that draw t with density in proportion to t^(1/power - 1): power 1 is even, less prefers noisy ones.
The loss is always measured on even timesteps. Prints a JSON line each.

    .venv/bin/python benchmarks/timesteps.py data/leather --steps 300 --powers 1 0.7 0.5
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from torch import Tensor
from training_steps import study_parser

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base
from anomalydiffusion_core.dataset.layout import find_dataset, split_pairs
from anomalydiffusion_core.dataset.views import ViewPool, make_views
from anomalydiffusion_core.training.config import DefectConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.encoders import starting_encoders
from anomalydiffusion_core.training.fitting import fit
from anomalydiffusion_core.training.task import Batch
from anomalydiffusion_core.training.validation import Validation, paired_improvement

TENTHS = 10


class Skewed(AnomalyTask):
    """Learns from timesteps 1000 u^power, where u is even, and is measured on even ones."""

    power = 1.0

    def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            batch = replace(batch, t=(1000 * ((batch.t + 0.5) / 1000) ** self.power).long())
        return super().loss(pool, batch)


def gradients(task: AnomalyTask, views: int) -> list[float]:
    """RMS over views of the norm of the tokens' gradient, by tenth of the timesteps."""
    generator, tokens = torch.Generator().manual_seed(5), list(task.tokens.values())
    rows = torch.randperm(len(task.pool), generator=generator)[:views]
    result = []
    for tenth in range(TENTHS):
        squares = []
        for row in rows:
            t = ((tenth + torch.rand(1, generator=generator)) * 1000 / TENTHS).long()
            noise = torch.randn((1, *task.pool.latents.shape[1:]), generator=generator)
            device = task.base.device
            loss = task.loss(task.pool, Batch(row[None], t.to(device), noise.to(device))).mean()
            squares.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, tokens)))
        result.append((sum(squares) / len(squares)) ** 0.5)
    return result


def tell_gradients(when: str, rms: list[float]) -> None:
    """Prints them, and the variance at best: (mean of rms)^2 over the mean of rms^2."""
    mean, square = sum(rms) / TENTHS, sum(x * x for x in rms) / TENTHS
    row = {
        "gradient_rms": when,
        "by_tenth": [round(x, 5) for x in rms],
        "variance": round(mean**2 / square, 3),
    }
    print(json.dumps(row), flush=True)


def make_task(base: DiffusersModel, pool: ViewPool, config: DefectConfig, power: float) -> Skewed:
    task = Skewed(base, pool, starting_encoders(base), config)
    task.power = power
    return task


def main() -> None:
    parser = study_parser(str(__doc__))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--powers", type=float, nargs="+", default=[1.0, 0.7, 0.5])
    parser.add_argument("--share", type=float, default=1 / 3, help="of each type's pairs, which trains")
    parser.add_argument("--views", type=int, default=24, help="for the gradients")
    arguments = parser.parse_args()
    base = load_base(arguments.base, arguments.device)
    config = DefectConfig(steps=arguments.steps)
    groups = find_dataset(arguments.dataset).by_type()
    parts = {name: split_pairs(pairs, arguments.share) for name, pairs in groups.items()}

    def views(part: int, each: int) -> ViewPool:
        pairs, generator = (
            {name: group[part] for name, group in parts.items()},
            torch.Generator().manual_seed(0),
        )
        return make_views(base, pairs, each, arguments.size, generator=generator)

    pool, validation = views(0, config.views_per_pair), Validation(views(1, 1))
    for power in arguments.powers:
        task = make_task(base, pool, config, power)
        if power == 1:
            tell_gradients("before training", gradients(task, arguments.views))
        history = fit(task, config, validation)
        if power == 1:
            tell_gradients("after training", gradients(task, arguments.views))
        before, after = (losses.numpy() for _, losses in (history.validation[0], history.validation[-1]))
        change = paired_improvement(before, after)
        row = {"power": power, "change": round(change.relative, 4)}
        row |= {"interval_95": [round(change.low, 4), round(change.high, 4)]}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
