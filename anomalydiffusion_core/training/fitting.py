"""How any task is trained: warm-up and cosine decay, a moving average of what is learned, measurements on
held-out pairs, the best so far. All that a next step depends on can be saved, and restored bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..dataset.views import RefreshedPool, ViewPool
from .config import FitConfig
from .history import History
from .processes import ALONE, Processes
from .task import Task, sample_batch
from .validation import Validation

# of AdamW; with 0.9 for the first, tokens learn a little more slowly (docs/results/training.md)
BETAS = (0.8, 0.99)
EXPLODED = 10.0  # times the loss of the first steps
COMPARED = 20  # steps whose mean loss is compared, first ones and last ones


class TrainingStopped(ValueError):
    """A training that cannot go on; what was best before stays in the task."""


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
        config: FitConfig,
        validation: Validation | None,
        history: History,
        *,
        processes: Processes = ALONE,
        pools: RefreshedPool | None = None,
    ) -> None:
        self.task, self.config, self.validation, self.history = task, config, validation, history
        self.processes, self.pools = processes, pools
        self.optimizer = torch.optim.AdamW(task.parameter_groups(), betas=BETAS, weight_decay=0.0)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.set_parameters(processes.broadcast([p.detach().cpu() for p in self.parameters]))
        # of decay 0, the parameters themselves
        self.average = self.copied_parameters() if config.averaging else [p.detach() for p in self.parameters]
        self.best: list[Tensor] | None = None  # the average at the best measurement
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.elapsed, self._since = 0.0, time.monotonic()  # seconds before this process, and its start
        self.whole = True  # not in the middle of a step

    def copied_parameters(self) -> list[Tensor]:
        """The parameters' values, which later steps leave alone."""
        return [p.detach().clone() for p in self.parameters]

    @property
    def seconds(self) -> float:
        """Since the training began, without the time that it was cut off."""
        return self.elapsed + time.monotonic() - self._since

    @property
    def progress(self) -> float:
        """By steps or by `config.minutes`, on the first process's clock, whichever is further; 1 = done."""
        minutes = self.config.minutes
        by_time = self.processes.broadcast(self.seconds) / (60 * minutes) if minutes else 0.0
        return max(self.step / self.config.steps if self.config.steps else 1.0, by_time)

    @property
    def done(self) -> bool:
        """Whether steps, minutes or patience are at an end."""
        gave_up = self.validation is not None and self.validation.gave_up(self.history)
        return self.progress >= 1 or gave_up

    def take_step(self) -> None:
        """One step of AdamW on `config.accumulate` batches of every process; raises TrainingStopped where the
        loss says that it cannot go on.

        Stopped before any parameter changes, everything is as it was before the step.
        """
        ramp = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        rate = ramp * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, self.progress))))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self.optimizer.zero_grad(set_to_none=True)
        drawn = self.generator.get_state()
        try:
            value = self._gradients()
        except BaseException:  # a cancel, or memory that ran out
            self.generator.set_state(drawn)
            raise
        norms = [nn.utils.clip_grad_norm_(g["params"], 1.0) for g in self.optimizer.param_groups]
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self._average()
        self.history.loss.append(value)
        self.history.gradient.append(float(torch.stack(norms).norm()))
        self.history.rate.append(rate)
        self.whole = True

    def _gradients(self) -> float:
        """Leaves the gradients of all processes' batches at the parameters; their mean loss."""
        losses = self.processes.gather(self.processes.together(self._backward))
        value = sum(losses) / len(losses)
        self._check(value)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for gradient, mean in zip(gradients, self.processes.mean(gradients), strict=True):
            gradient.copy_(mean)
        return value

    def _backward(self) -> float:
        """The loss of this process's part of the batches, which are alike in all processes."""
        pool, size, total = self._pool(), self.config.batch_size, 0.0
        local_rows = slice(self.processes.index * size, (self.processes.index + 1) * size)
        for _ in range(self.config.accumulate):
            batch = sample_batch(pool, self.processes.count * size, self.generator)
            loss = self.task.loss(pool, batch.part(local_rows, self.task.base.device)).mean()
            loss = loss / self.config.accumulate
            loss.backward()
            total += float(loss.detach())
        return total

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
        if len(losses) > 2 * COMPARED and sum(losses[-COMPARED:]) > EXPLODED * sum(losses[:COMPARED]):
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
        current = self.copied_parameters()
        try:
            self.set_parameters(self.average)
            measured.append((self.step, self.processes.broadcast(self.validation.measure(self.task))))
        finally:
            self.set_parameters(current)
        if self.history.best() == len(measured) - 1:
            self.best = [mean.clone() for mean in self.average]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors by name, and the rest, fit for JSON."""
        tensors = {
            **_numbered("parameter", self.copied_parameters()),
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
        self.set_parameters(_unnumbered("parameter", tensors))
        for mean, value in zip(self.average, _unnumbered("average", tensors), strict=True):
            mean.copy_(value)
        self.best = _unnumbered("best", tensors) or None
        self.generator.set_state(tensors["generator"])
        self.step, self.elapsed, self._since = record["step"], record["seconds"], time.monotonic()
        history = self.history
        history.loss, history.gradient, history.rate = record["loss"], record["gradient"], record["rate"]
        history.validation = list(zip(record["validated"], _unnumbered("validation", tensors), strict=True))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def keep_best(self) -> None:
        """Sets the parameters to the best that was measured, or to the average where nothing was."""
        self.set_parameters(self.best or self.average)

    @torch.no_grad()
    def set_parameters(self, values: list[Tensor]) -> None:
        """Copies values into the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


def fit(
    task: Task,
    config: FitConfig,
    validation: Validation | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, total, loss: None,
    *,
    history: History | None = None,
    keeper: Keeper | None = None,
    processes: Processes = ALONE,
    pools: RefreshedPool | None = None,
) -> History:
    """Trains a task, on its pool or on `pools`; returns (and, for interrupts, fills in place) its history.

    It ends with `config.steps`, `config.minutes` or the validation's patience, whichever comes first, and
    leaves in the task the average of the best measurement, or the last one. `on_step(step, total, loss)` may
    raise to stop. With a keeper it goes on where the training kept there was cut off, and is kept there in
    turn. Several processes call `fit` alike, and the first of them keeps it. Raises TrainingStopped where the
    loss is no number any more or explodes.
    """
    history = History() if history is None else history
    fitting = Fitting(task, config, validation, history, processes=processes, pools=pools)
    if keeper:
        processes.together(lambda: keeper.restore(fitting))
    try:
        while True:
            if validation and validation.due(fitting.step):
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
    except (OSError, TrainingStopped):  # of the keeper; of what would stop it there again
        raise
    except BaseException:  # whatever stops a step, or `on_step`
        if keeper and fitting.whole:
            processes.first(lambda: keeper.keep(fitting))
        raise
    finally:
        fitting.keep_best()
    return fitting.history


def _numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{i}": tensor for i, tensor in enumerate(tensors)}


def _unnumbered(name: str, tensors: dict[str, Tensor]) -> list[Tensor]:
    """What `_numbered` numbered."""
    count = sum(key.startswith(f"{name}/") for key in tensors)
    return [tensors[f"{name}/{i}"] for i in range(count)]
