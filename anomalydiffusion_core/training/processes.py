"""One training in several processes: each takes its share of every batch, and all learn the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Processes:
    """This process alone. All methods are to be called in every process, in the same order."""

    index, count = 0, 1

    def local_device(self, name: str | None) -> str | None:
        """This process's device, where all are given the same name; raises ValueError where it has none."""
        return name

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """Of each tensor, its mean over the processes."""
        return tensors

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by index."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value of the first process."""
        return value

    def together(self, action: Callable[[], T]) -> T:
        """What an action returns here; what it raises in one process is raised in all."""
        result: Any = None
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        for problem in (failure, *self.gather(failure)):
            if problem:
                raise problem
        return result

    def first(self, action: Callable[[], object]) -> None:
        """Does in the first process what is to be done once; what it raises is raised in all."""
        self.together(action if self.index == 0 else lambda: None)

    def end(self, code: int) -> NoReturn:
        """Ends this process with an exit code."""
        sys.exit(code)

    @contextmanager
    def held(self, context: AbstractContextManager[object]) -> Iterator[None]:
        """Enters a context in the first process, for all."""
        with ExitStack() as stack:
            self.first(lambda: stack.enter_context(context))
            yield


ALONE = Processes()


class LaunchedProcesses(Processes):
    """Those that `accelerate launch --multi_gpu` started, on a GPU each or all on CPUs."""

    def __init__(self, device: str | None) -> None:
        from accelerate import PartialState

        self.here = int(os.environ["LOCAL_WORLD_SIZE"])
        self.gpus = torch.cuda.device_count()
        self.state = PartialState(cpu=device == "cpu" or self.gpus < self.here)
        self.index, self.count = self.state.process_index, self.state.num_processes

    def local_device(self, name: str | None) -> str | None:
        if name not in (None, "cpu", "cuda"):
            raise ValueError(f"{self.count} processes cannot share device {name!r}: give cpu, cuda or none.")
        if name == "cpu" or (name is None and not self.gpus):
            return "cpu"
        if self.gpus < self.here:
            raise ValueError(
                f"{self.here} processes need a GPU each, and {self.gpus} are here: lower --num_processes, or "
                "give --device cpu."
            )
        return str(self.state.device)

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        from accelerate.utils import reduce

        flat: Any = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")  # in one message
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        return gather_object([value])

    def broadcast(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def end(self, code: int) -> NoReturn:
        self.state.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread of torch may abort an interpreter that shuts down, after all is done


def launched(device: str | None) -> Processes:
    """The processes of this launch, to train on `device`."""
    return ALONE if int(os.environ.get("WORLD_SIZE", 1)) == 1 else LaunchedProcesses(device)
