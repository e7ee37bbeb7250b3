"""How any task is trained: warm-up and cosine decay, a moving average of what is learned, measurements on
held-out pairs, the best so far. All that a next step depends on can be saved, and restored bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..dataset.views import RefreshedPool, ViewPool
from .defects import Task, TrainingConfig
from .processes import ALONE, Processes

BETAS = (0.8, 0.99)  # of AdamW; with 0.9 for the first, tokens learn a little more slowly (docs/results.md)
EXPLODED = 10.0  # times the loss of the first steps
SETTLED = 20  # steps whose mean loss is compared


class TrainingStopped(ValueError):
    """A training that cannot go on; what was best before stays in the task."""


@dataclass
class History:
    """By step: loss, norm of the gradient before it is clipped, learning rate; and (N, draws) losses of the
    held-out pairs where measured.
    """

    loss: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)  # as a share of each group's peak
    validation: list[tuple[int, Tensor]] = field(default_factory=list)

    def best(self) -> int | None:
        """Index of the measurement with the least mean loss since the start, None where there is none."""
        means = {i: float(losses.mean()) for i, (step, losses) in enumerate(self.validation) if step}
        return min(means, key=means.__getitem__) if means else None


class Keeper(Protocol):
    """Somewhere to keep a training, in case it is cut off."""

    def restore(self, fitting: Fitting) -> None: ...

    def after_step(self, fitting: Fitting) -> None: ...

    def keep(self, fitting: Fitting) -> None: ...


class Fitting:
    """A training under way: the task's parameters, and everything that their next step depends on."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        validation: Validation | None,
        history: History,
        processes: Processes = ALONE,
        pools: RefreshedPool | None = None,
    ) -> None:
        self.task, self.config, self.validation, self.history = task, config, validation, history
        self.processes, self.pools = processes, pools
        self.optimizer = torch.optim.AdamW(task.parameter_groups(config), betas=BETAS, weight_decay=0.0)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.put(processes.agree([p.detach().cpu() for p in self.parameters]))
        # of decay 0, the parameters themselves
        self.average = self.values() if config.averaging else [p.detach() for p in self.parameters]
        self.best: list[Tensor] | None = None  # the average at the best measurement
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.elapsed, self._since = 0.0, time.monotonic()  # seconds before this process, and its start
        self.whole = True  # not in the middle of a step

    def values(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.parameters]

    @property
    def seconds(self) -> float:
        """Since the training began, without the time that it was cut off."""
        return self.elapsed + time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """By steps or by `config.minutes`, on the first process's clock, whichever is further; 1 = done."""
        minutes = self.config.minutes
        by_time = self.processes.agree(self.seconds) / (60 * minutes) if minutes else 0.0
        return max(self.step / self.config.steps if self.config.steps else 1.0, by_time)

    @property
    def due(self) -> bool:
        """Whether a measurement is."""
        every = self.config.validate_every
        return self.step % every == 0 if every else self.step == 0

    @property
    def done(self) -> bool:
        """Whether steps, minutes or patience are at an end."""
        best = self.history.best()
        waited = 0 if best is None else len(self.history.validation) - 1 - best
        return self.progress >= 1 or 0 < self.config.patience <= waited

    def take_step(self) -> None:
        """One step of AdamW on `config.accumulate` batches of every process; raises TrainingStopped where the
        loss says that it cannot go on.
        """
        self.whole = False
        ramp = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        rate = ramp * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, self.progress))))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.processes.gather(self.processes.together(self._backward))
        value = sum(losses) / len(losses)
        self._check(value)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for gradient, mean in zip(gradients, self.processes.mean(gradients), strict=True):
            gradient.copy_(mean)
        norms = [nn.utils.clip_grad_norm_(g["params"], 1.0) for g in self.optimizer.param_groups]
        self.optimizer.step()
        self.step += 1
        self._average()
        self.history.loss.append(value)
        self.history.gradient.append(float(torch.stack(norms).norm()))
        self.history.rate.append(rate)
        self.whole = True

    def _backward(self) -> float:
        """The loss of this process's part of the batches, which all processes draw alike."""
        pool, device, size, value = self._pool(), self.task.base.device, self.config.batch_size, 0.0
        own = slice(self.processes.index * size, (self.processes.index + 1) * size)
        for _ in range(self.config.accumulate):
            rows, t, noise, template = draw(pool, self.processes.count * size, self.generator)
            loss = self.task.loss(pool, rows[own], t[own].to(device), noise[own].to(device), template).mean()
            loss = loss / self.config.accumulate
            loss.backward()
            value += float(loss.detach())
        return value

    def _pool(self) -> ViewPool:
        try:
            return self.pools.at(self.step) if self.pools else self.task.pool
        except (OSError, ValueError) as error:  # a photo that is gone, say
            raise TrainingStopped(f"No new views could be made: {error}") from error

    def _check(self, loss: float) -> None:
        losses = self.history.loss
        if not math.isfinite(loss):
            raise TrainingStopped(
                f"The loss became {loss} at step {self.step + 1}: lower the learning rates."
            )
        if len(losses) > 2 * SETTLED and sum(losses[-SETTLED:]) > EXPLODED * sum(losses[:SETTLED]):
            raise TrainingStopped(
                f"The loss grew to {EXPLODED:g} times that of the first steps by step {self.step + 1}: lower "
                "the learning rates."
            )

    @torch.no_grad()
    def _average(self) -> None:
        if not self.config.averaging:
            return
        # while young, an average over all steps so far, so that it does not lag behind the start
        decay = min(self.config.averaging, self.step / (self.step + 10))
        for mean, value in zip(self.average, self.parameters, strict=True):
            mean.lerp_(value.detach(), 1 - decay)

    def measure(self) -> None:
        """Takes note of the held-out loss of the average, once a step, and of the average where none was
        better.
        """
        measured = self.history.validation
        if not self.validation or (measured and measured[-1][0] == self.step):
            return
        own = self.values()
        try:
            self.put(self.average)
            measured.append((self.step, self.processes.agree(self.validation.measure(self.task))))
        finally:
            self.put(own)
        if self.history.best() == len(measured) - 1:
            self.best = [mean.clone() for mean in self.average]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors by name, and the rest, fit for JSON."""
        tensors = {
            **_numbered("parameter", self.values()),
            **_numbered("average", self.average),
            **_numbered("best", self.best or []),
            **_numbered("validation", [losses for _, losses in self.history.validation]),
            "generator": self.generator.get_state(),
        }
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        history = self.history
        record = {
            "step": self.step,
            "seconds": self.seconds,
            "loss": history.loss,
            "gradient": history.gradient,
            "rate": history.rate,
            "validated": [step for step, _ in history.validation],
        }
        return tensors, record

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Brings a fresh training of the same task to a `state`."""
        self.put(_taken("parameter", tensors))
        for mean, value in zip(self.average, _taken("average", tensors), strict=True):
            mean.copy_(value)
        self.best = _taken("best", tensors) or None
        self.generator.set_state(tensors["generator"])
        self.step, self.elapsed, self._since = record["step"], record["seconds"], time.monotonic()
        history = self.history
        history.loss, history.gradient, history.rate = record["loss"], record["gradient"], record["rate"]
        history.validation = list(zip(record["validated"], _taken("validation", tensors), strict=True))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def settle(self) -> None:
        """Puts the best that was measured into the task, or the average where nothing was."""
        self.put(self.best or self.average)

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        """Sets the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def fit(
    task: Task,
    config: TrainingConfig,
    validation: Validation | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, total, loss: None,
    history: History | None = None,
    keeper: Keeper | None = None,
    processes: Processes = ALONE,
    pools: RefreshedPool | None = None,
) -> History:
    """Trains a task, on its pool or on `pools`; returns (and, for interrupts, fills in place) its history.

    It ends with `config.steps`, `config.minutes` or `config.patience`, whichever comes first, and leaves in
    the task the average of the best measurement, or the last one. `on_step(step, total, loss)` may raise to
    stop. With a keeper it goes on where that one's training was cut off, and is kept there, by the first of
    several processes, in all of which `fit` is called alike. Raises TrainingStopped where the loss is no
    number any more or explodes.
    """
    fitting = Fitting(
        task, config, validation, history if history is not None else History(), processes, pools
    )
    if keeper:
        processes.together(lambda: keeper.restore(fitting))
    try:
        while True:
            if fitting.due:
                fitting.measure()
            if fitting.done:
                break
            fitting.take_step()
            if keeper:
                processes.first(lambda: keeper.after_step(fitting))
            on_step(fitting.step, config.steps, fitting.history.loss[-1])
        fitting.measure()
        if keeper:
            processes.first(lambda: keeper.keep(fitting))
    except OSError:  # of the keeper
        raise
    except BaseException:  # whatever `on_step` stops with
        if keeper and fitting.whole:
            processes.first(lambda: keeper.keep(fitting))
        raise
    finally:
        fitting.settle()
    return fitting.history


def draw(pool: ViewPool, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows of as many types as there are in `batch`, timesteps one in each of `batch` equal strata, noise, a
    template number.
    """
    types = torch.randperm(len(pool.names), generator=generator)
    rows = [_any_row(pool, int(types[i % len(types)]), generator) for i in range(batch)]
    t = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch * 1000
    noise = torch.randn((batch, *pool.latents.shape[1:]), generator=generator)
    template = int(torch.randint(1 << 16, (), generator=generator))
    return torch.tensor(rows), t.long(), noise, template


def _any_row(pool: ViewPool, kind: int, generator: torch.Generator) -> int:
    rows = (pool.types == kind).nonzero()[:, 0]
    return int(rows[torch.randint(len(rows), (), generator=generator)])


class Validation:
    """Losses on held-out pairs at fixed timesteps and noise, so that two measurements pair up."""

    def __init__(self, pool: ViewPool, draws: int = 4, seed: int = 1234) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pool, self.draws = pool, draws
        self.rows = torch.arange(len(pool)).repeat_interleave(draws)
        strata = torch.arange(draws).repeat(len(pool))
        self.t = ((strata + torch.rand(len(self.rows), generator=generator)) / draws * 1000).long()
        self.noise = torch.randn((len(self.rows), *pool.latents.shape[1:]), generator=generator)

    @torch.no_grad()
    def measure(self, task: Task) -> Tensor:
        """Loss of every pair at each of its timesteps, (N, draws)."""
        device = task.base.device
        parts = [
            task.loss(self.pool, self.rows[part], self.t[part].to(device), self.noise[part].to(device), 0)
            for part in torch.arange(len(self.rows)).split(8)
        ]
        return torch.cat(parts).cpu().view(-1, self.draws)


def training_record(config: TrainingConfig, history: History, processes: int = 1) -> dict[str, object]:
    """What an artifact remembers of a training run."""
    return {
        "config": asdict(config),
        "processes": processes,
        "steps": len(history.loss),
        "loss": [round(x, 5) for x in history.loss],
        "gradient": [round(x, 5) for x in history.gradient],
        "validation": [(step, float(losses.mean())) for step, losses in history.validation],
        **({} if (best := history.best()) is None else {"kept_step": history.validation[best][0]}),
    }


def _numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{i}": tensor for i, tensor in enumerate(tensors)}


def _taken(name: str, tensors: dict[str, Tensor]) -> list[Tensor]:
    """What `_numbered` numbered."""
    count = sum(key.startswith(f"{name}/") for key in tensors)
    return [tensors[f"{name}/{i}"] for i in range(count)]
