"""How a training is run: what it tells, where it is kept, in which processes, how it ends. None of it
changes what is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..dataset.views import RefreshedPool
from ..method.embeddings import Learned
from ..method.progress import OnStage
from .checkpoint import Checkpoints
from .config import FitConfig
from .fitting import Keeper, TrainingStopped, fit
from .history import History
from .processes import ALONE, Processes
from .task import Task
from .tensorboard import PREVIEW_EVERY, TensorBoardLog
from .validation import Improvement, Validation


@dataclass
class Monitor:
    """Looks on at a training: `history` fills step by step, and every `every` steps (0: never) `show` is
    given latents (N,C,h,w) of one view of each of the first types, and its preview; a `log` has all of it.
    """

    history: History = field(default_factory=History)
    every: int = 0
    show: Callable[[Tensor, Tensor], None] = lambda real, sampled: None
    types: int = 4  # at most
    log: TensorBoardLog | None = None

    def look(self, task: Task, stage: str, step: int, total: int) -> None:
        """To be called after each step."""
        if self.log:
            self.log.step(stage, self.history)
        if not self.every or (step % self.every and step != total):
            return
        first = [int((task.pool.types == i).nonzero()[0]) for i in range(len(task.pool.names))]
        rows = torch.tensor(first[: self.types])
        real, sampled = task.pool.latents[rows].to(task.base.device), task.preview(rows)
        self.show(real, sampled)
        if self.log:
            self.log.show(stage, step, real, sampled)


@dataclass(frozen=True)
class End:
    """How a training ended: of itself, `interrupted`, or by a `problem`."""

    interrupted: bool = False
    problem: str = ""

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return not self.interrupted and not self.problem

    def check(self) -> None:
        """Raises KeyboardInterrupt, or ValueError with the problem, where it did not."""
        if not self.finished:
            raise ValueError(self.problem) if self.problem else KeyboardInterrupt


@dataclass
class TrainingOutcome:
    """What a training job hands back: the best of what was learned, however it ended."""

    learned: Learned
    improvement: Improvement | None
    end: End


@dataclass
class Stage:
    """One training of a job. Any of `interrupts` ends it with the best so far, also within a step."""

    name: str
    on_stage: OnStage = lambda *_: None
    monitor: Monitor = field(default_factory=Monitor)
    keeper: Keeper | None = None
    processes: Processes = ALONE
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,)

    def tell(self, note: str) -> None:
        """Says what is done before the first step."""
        self.on_stage("read", 0, 1, note)

    def train(
        self,
        task: Task,
        config: FitConfig,
        validation: Validation | None = None,
        pools: RefreshedPool | None = None,
    ) -> End:
        """Trains a task, and says how that ended: what was best before is in the task then."""
        history = self.monitor.history

        def on_step(step: int, total: int, loss: float) -> None:
            self.processes.first(lambda: self.monitor.look(task, self.name, step, total))
            gradient, rate = history.gradient[-1], 100 * history.rate[-1]
            note = f"loss {loss:.4f}  gradient {gradient:.3f}  rate {rate:.0f} %"
            self.on_stage(self.name, step, total, note)

        if not pools:
            task.base.release_codec()  # its views are made
        try:
            fit(
                task,
                config,
                validation,
                on_step,
                history=history,
                keeper=self.keeper,
                processes=self.processes,
                pools=pools,
            )
            if self.monitor.log:
                self.monitor.log.measured(self.name, history)
        except self.interrupts:
            return End(interrupted=True)
        except TrainingStopped as stopped:
            return End(problem=str(stopped))
        except OSError as error:  # of a checkpoint
            where, why = error.filename or self.name, error.strerror or error
            return End(problem=f"{where}: {why}; nothing more was learned.")
        except torch.OutOfMemoryError:
            return End(problem="The device ran out of memory: lower batch or size, and train again.")
        finally:
            if pools:
                pools.close()
        return End()


@dataclass(frozen=True)
class TrainingRun:
    """What all trainings of a job are run with. Several `processes` that run the same learn it together, each
    with `config.batch_size` views at a time.
    """

    on_stage: OnStage = lambda *_: None
    checkpoints: Checkpoints | None = None
    log: TensorBoardLog | None = None
    processes: Processes = ALONE

    def stage(self, name: str, origin: dict[str, Any] | None = None) -> Stage:
        """One of the trainings, kept where there are checkpoints, as of what `origin` says."""
        monitor = Monitor(every=PREVIEW_EVERY if self.log else 0, log=self.log)
        keeper = self.checkpoints.stage(name, origin) if self.checkpoints and origin else None
        return Stage(name, self.on_stage, monitor, keeper, self.processes)
