"""How the command line talks: progress bars on a terminal, plain lines elsewhere, one line for a problem."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.processes import ALONE, Processes
from . import missing

if TYPE_CHECKING:
    from ..method.progress import OnStage, OnStep

DENOISING = "denoising"  # a stage that starts anew with every batch
PLAIN_EVERY = 0.1  # share of a stage between two plain lines


@contextmanager
def progress() -> Iterator[OnStage]:
    """A callback (stage, done, total, note) that draws bars on a terminal and prints some lines elsewhere."""
    if not sys.stdout.isatty():
        yield _plain_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            elif done < bars.tasks[tasks[stage]].completed:  # it starts anew
                bars.reset(tasks[stage])
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


def _plain_lines() -> OnStage:
    shown: dict[str, float] = {}
    began: dict[str, float] = {}
    completed: dict[str, int] = {}
    start = time.monotonic()

    def show(stage: str, done: int, total: int, note: str) -> None:
        share, now = done / max(total, 1), time.monotonic()
        began.setdefault(stage, now)
        if done <= completed.get(stage, -1) or (stage == DENOISING and share < 1):
            return  # it has started anew, or will
        if stage in shown and share < 1 and share - shown[stage] < PLAIN_EVERY:
            return
        shown[stage] = share
        if share >= 1:
            completed[stage] = done
        spent = now - began[stage]
        left = f"  {spent / share - spent:.0f} s left" if spent and 0 < share < 1 else ""
        print(f"[{now - start:6.1f} s] {stage}: {done}/{total}  {note}{left}", flush=True)

    return show


def steps_shown(on_stage: OnStage) -> OnStep:
    """A callback for the steps of a sampler, shown as the stage `denoising`."""
    return lambda step, total, _clean: on_stage(DENOISING, step, total, "")


@contextmanager
def interrupted_between(on_stage: OnStage, processes: Processes = ALONE) -> Iterator[OnStage]:
    """The callback, which on Ctrl-C in any process raises KeyboardInterrupt at its next call in all, so that
    no step is cut in two; pressed again, Ctrl-C does so at once.
    """
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def show(stage: str, done: int, total: int, note: str) -> None:
        on_stage(stage, done, total, note)
        if any(processes.gather(pressed)):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield show
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """One line of ordinary output."""
    print(text, flush=True)


def pairs_in_words(count: int) -> str:
    """Such as '1 pair' or '20 pairs'."""
    return f"{count} {'pair' if count == 1 else 'pairs'}"


def check_new(path: Path) -> None:
    """Raises ValueError when `path` exists or cannot be made, so that it is known before the work begins."""
    if path.exists():
        raise ValueError(f"{path} exists already: choose another name, nothing is overwritten.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raises ValueError when neither `path` nor the folders that it needs can be written."""
    nearest = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), None)
    if nearest is None:
        raise ValueError(
            f"{path} cannot be written: there is no {path.absolute().anchor}; choose another place."
        )
    if nearest != path and not nearest.is_dir():
        raise ValueError(f"{path} cannot be written: {nearest} is a file; choose another place.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{path} cannot be written: {nearest} is read-only; choose another place.")


def check_file(path: Path) -> None:
    """Raises ValueError when `path` is a folder, or cannot be written."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it.")
    check_writable(path)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing of what is printed is shown."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


def run_command(
    command: Callable[[], dict[str, Any]],
    json_path: Path | None,
    processes: Processes = ALONE,
    *,
    kept: str = "nothing was written.",
) -> int:
    """Runs a command and turns its end into an exit code: 0 done, 2 bad input, 130 interrupted.

    The returned summary goes to `json_path` when given. A summary with `interrupted` true gives 130, one with
    a `shortfall` (why less was made than asked for) says so and gives 2. `kept` says what is there after
    Ctrl-C, and how to go on. Of several `processes` that run it, the first alone speaks and writes, and all
    end with its exit code.
    """
    with silence() if processes.index else nullcontext():
        return processes.broadcast(_exit_code(command, json_path, processes, kept))


def _exit_code(
    command: Callable[[], dict[str, Any]], json_path: Path | None, processes: Processes, kept: str
) -> int:
    try:
        if json_path:
            processes.first(lambda: check_file(json_path))
        summary = command()
        if json_path:
            processes.first(lambda: _write_summary(summary, json_path))
    except KeyboardInterrupt:
        print(f"Interrupted; {kept}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"error: {missing.sentence(error)}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    if summary.get("shortfall"):
        print(f"error: {summary['shortfall']}", file=sys.stderr)
        return 2
    return 130 if summary.get("interrupted") else 0


def _write_summary(summary: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or "a file"
        return f"{where}: {error.strerror}. Check the path, its permissions and the free space."
    return " ".join(str(error).split())
