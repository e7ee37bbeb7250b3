"""How the benchmarks measure on shared, noisy machines: busy time, paired ratios, peak memory."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import resource
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from multiprocessing.queues import SimpleQueue
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What every benchmark is asked; `size` None is the base's native size."""

    base: str
    size: int | None
    batch: int
    steps: int
    rounds: int
    device: str


def options_parser(description: str, steps: int, rounds: int, steps_help: str) -> argparse.ArgumentParser:
    """The command line of a benchmark, with its own default `steps` and `rounds`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="tiny", help="tiny, a diffusers folder or hub id, or a checkpoint")
    parser.add_argument("--size", type=int, help="pixels per side; default: the base's native size")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=steps, help=steps_help)
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each variant")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def read_options(parser: argparse.ArgumentParser) -> tuple[Options, argparse.Namespace]:
    """What `options_parser`'s command line was given, and all else that a benchmark added to it."""
    arguments = parser.parse_args()
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    if min(options.batch, options.steps, options.rounds) < 1:
        parser.error("--batch, --steps and --rounds must be at least 1")
    return options, arguments


def use_one_thread() -> None:
    """Makes CPU time a fair measure: with several threads it also counts their waiting for each other.

    Must run before any tensor operation, so that forked processes inherit no thread pool.
    """
    torch.set_num_threads(1)


def busy_seconds(device: str) -> float:
    """CPU time of this process; on CUDA wall-clock time once the queued kernels are done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_memory(job: Callable[[], object], device: str, start: Literal["fork", "spawn"] = "fork") -> float:
    """MiB at the peak of `job`: resident in a process of its own, or allocated on the GPU, here.

    `job` loads what it needs, and keeps nothing. Libraries that the parent has loaded count only for a
    process that is spawned, which `job` must be picklable for. Raises RuntimeError when it fails there.
    """
    if device.startswith("cuda"):  # which a forked process could not use
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        job()
        return torch.cuda.max_memory_allocated() / 2**20
    context: Any = multiprocessing.get_context(start)
    answer = context.SimpleQueue()
    process = context.Process(target=_report_peak, args=(job, answer))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"The process that measured memory ended with code {process.exitcode}.")
    return answer.get()


def _report_peak(job: Callable[[], object], answer: SimpleQueue[float]) -> None:
    job()
    unit = 1 if sys.platform == "darwin" else 1024
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def peak_allocated(prepare: Callable[[], T], job: Callable[[T], object], device: str) -> float:
    """MiB at the peak of `job`, given what `prepare` makes on the CPU: allocated on the GPU, or on a CPU the
    sum of all live tensors that took part.
    """
    prepared = prepare()
    if device.startswith("cuda"):
        return peak_memory(lambda: job(prepared), device)
    with LiveTensors() as live:
        job(prepared)
    return live.peak / 2**20


class LiveTensors(TorchDispatchMode):
    """While active, keeps account of the bytes of all tensors that take part in any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Ratio:
    """Paired over rounds: the median of (variant / reference), its quartiles and extremes."""

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    rounds: int

    def rounded(self) -> dict[str, object]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


def paired_ratio(variant: list[float], reference: list[float]) -> Ratio:
    """Ratio of two equally long lists of seconds, measured side by side."""
    ratios = sorted(a / b for a, b in zip(variant, reference, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(statistics.median(ratios), (low, high), (ratios[0], ratios[-1]), len(ratios))


def paired_difference(
    values: Sequence[float | None], reference: Sequence[float | None], resamples: int = 4000
) -> dict[str, object] | None:
    """Mean of value - reference, with its 95 % bootstrap interval, over the pairs where both are known."""
    known = [a - b for a, b in zip(values, reference, strict=True) if a is not None and b is not None]
    if not known:
        return None
    differences = np.asarray(known)
    rows = np.random.default_rng(0).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.quantile(differences[rows].mean(1), [0.025, 0.975])
    return {
        "mean": round(float(differences.mean()), 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
    }


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(x) for x in value] if isinstance(value, tuple) else value
