"""Trainings in several processes, which together learn what one learns from larger batches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, run
from small_tasks import make_task
from torch import Tensor

from anomalydiffusion_core.cli.console import interrupted_between
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.config import DefectConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.fitting import TrainingStopped, fit
from anomalydiffusion_core.training.history import History
from anomalydiffusion_core.training.processes import Processes
from anomalydiffusion_core.training.validation import Validation

CONFIG = DefectConfig(steps=5, batch_size=2, tokens=3, warmup_steps=2, encoder_rate=1e-3, validate_every=2)


class Threads(Processes):
    """Processes that are threads of the test, and meet in a list."""

    def __init__(self, index: int, desk: list[Any], meeting: threading.Barrier) -> None:
        self.index, self.count, self.desk, self.meeting = index, len(desk), desk, meeting

    def gather(self, value: Any) -> list[Any]:
        self.desk[self.index] = value
        self.meeting.wait()
        values = list(self.desk)
        self.meeting.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        copies = [tensor.clone() for tensor in tensors]
        return [torch.stack(each).mean(0) for each in zip(*self.gather(copies), strict=True)]


def in_threads(work: Callable[[Processes], Any], count: int = 2) -> list[Any]:
    """What each of them returns or raises."""
    desk, meeting = [None] * count, threading.Barrier(count, timeout=30)
    results: list[Any] = [None] * count

    def start(index: int) -> None:
        try:
            results[index] = work(Threads(index, desk, meeting))
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=start, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def learned(task: AnomalyTask) -> list[Tensor]:
    return [*task.tokens.values(), *(p for e in task.encoders.values() for p in e.parameters())]


# --- the same as one process


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (3, 2)])
def test_processes_learn_what_one_learns_from_the_larger_batch(
    make_fake_base: Any, count: int, accumulate: int
) -> None:
    config = replace(CONFIG, accumulate=accumulate)
    tasks = [make_task(make_fake_base(), config) for _ in range(count)]

    def work(processes: Processes) -> tuple[AnomalyTask, History]:
        task = tasks[processes.index]
        return task, fit(task, config, Validation(task.pool, every=2), processes=processes)

    alone = replace(config, batch_size=count * config.batch_size)
    task = make_task(make_fake_base(), alone)
    history = fit(task, alone, Validation(task.pool, every=2))
    parts = in_threads(work, count)
    for part, its_history in parts:
        assert its_history.loss == pytest.approx(history.loss, rel=1e-5)
        assert its_history.gradient == pytest.approx(history.gradient, rel=1e-4)
        assert [float(v.mean()) for _, v in its_history.validation] == pytest.approx(
            [float(v.mean()) for _, v in history.validation], rel=1e-4
        )
        for value, same, expected in zip(learned(part), learned(parts[0][0]), learned(task), strict=True):
            assert torch.equal(value, same)
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


def test_all_begin_with_what_the_first_begins_with(make_fake_base: Any) -> None:
    tasks = [make_task(make_fake_base(), CONFIG) for _ in range(2)]

    def work(processes: Processes) -> list[Tensor]:
        task = tasks[processes.index]
        with torch.no_grad():
            task.tokens["clip_l"] += processes.index
        fit(task, CONFIG, processes=processes)
        return learned(task)

    first, second = in_threads(work)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_clock_of_the_first_ends_all(make_fake_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, steps=40, minutes=1.0)
    tasks = [make_task(make_fake_base(), config) for _ in range(2)]

    def work(processes: Processes) -> tuple[int, list[float]]:
        clock = iter(range(0, 10**6, 4 if processes.index == 0 else 1))
        clocks[threading.get_ident()] = lambda: float(next(clock))
        history = fit(tasks[processes.index], config, processes=processes)
        return len(history.loss), history.rate

    clocks: dict[int, Callable[[], float]] = {}
    monkeypatch.setattr(time, "monotonic", lambda: clocks.get(threading.get_ident(), time.perf_counter)())
    first, second = in_threads(work)
    assert first == second and 0 < first[0] < 40


def test_processes_that_were_cut_off_go_on_bit_for_bit(make_fake_base: Any, tmp_path: Path) -> None:
    tasks = [make_task(make_fake_base(), CONFIG) for _ in range(6)]

    def work(processes: Processes) -> tuple[list[Tensor], list[Tensor]]:
        def stop(step: int, _total: int, _loss: float) -> None:
            if step == 3:
                raise KeyboardInterrupt

        whole, cut, resumed = tasks[processes.index :: 2]
        fit(whole, CONFIG, Validation(whole.pool, every=2), processes=processes)
        keeper = Checkpoints(tmp_path).stage("anomaly", {"processes": processes.count})
        with pytest.raises(KeyboardInterrupt):
            fit(cut, CONFIG, Validation(cut.pool, every=2), stop, keeper=keeper, processes=processes)
        fit(resumed, CONFIG, Validation(resumed.pool, every=2), keeper=keeper, processes=processes)
        return learned(whole), learned(resumed)

    for whole, resumed in in_threads(work):
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


# --- ends


def test_a_failure_in_one_ends_all_and_keeps_the_best(make_fake_base: Any) -> None:
    tasks = [make_task(make_fake_base(), CONFIG) for _ in range(2)]

    def work(processes: Processes) -> list[Tensor]:
        class Failing(AnomalyTask):
            def loss(self, *of: Any) -> Tensor:
                if processes.index == 1 and len(history.loss) == 3:
                    raise torch.OutOfMemoryError("no memory")
                return super().loss(*of)

        history, good = History(), tasks[processes.index]
        task = Failing(good.base, good.pool, good.encoders, CONFIG)
        with pytest.raises(torch.OutOfMemoryError, match="no memory"):
            fit(task, CONFIG, history=history, processes=processes)
        assert len(history.loss) == 3
        return learned(task)

    first, second = in_threads(work)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_loss_that_is_no_number_in_one_stops_all(make_fake_base: Any) -> None:
    tasks = [make_task(make_fake_base(), CONFIG) for _ in range(2)]

    def work(processes: Processes) -> None:
        class Diverging(AnomalyTask):
            def loss(self, *of: Any) -> Tensor:
                return super().loss(*of) * (float("nan") if processes.index == 1 else 1.0)

        good = tasks[processes.index]
        fit(Diverging(good.base, good.pool, good.encoders, CONFIG), CONFIG, processes=processes)

    first, second = in_threads(work)
    assert isinstance(first, TrainingStopped) and isinstance(second, TrainingStopped)


def test_what_only_the_first_does_fails_in_all() -> None:
    def work(processes: Processes) -> None:
        processes.first(lambda: done.append(processes.index))
        processes.first(lambda: (_ for _ in ()).throw(OSError("disk full")))

    done: list[int] = []
    ends = in_threads(work)
    assert done == [0] and [str(end) for end in ends] == ["disk full", "disk full"]


def test_ctrl_c_in_one_interrupts_all_at_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    presses: list[Callable[[], None]] = []
    monkeypatch.setattr(signal, "signal", lambda _, handler: presses.append(handler))

    def work(processes: Processes) -> int:
        calls = 0
        with (
            interrupted_between(lambda *_: None, processes) as on_stage,
            pytest.raises(KeyboardInterrupt),
        ):
            for calls in range(1, 9):
                if processes.index == 1 and calls == 3:
                    presses[0]()
                on_stage("train", calls, 9, "")
        return calls

    assert in_threads(work) == [3, 3]


# --- as they are launched


def launched(*arguments: object) -> subprocess.Popen[str]:
    """Two processes on CPUs, as the README starts them, in a session of their own."""
    how = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    command = (sys.executable, *how, "-m", "anomalydiffusion_core.cli", *arguments)
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """What was printed by the end, which must come within two minutes."""
    try:
        return process.communicate(timeout=120)[0]
    finally:
        process.kill()


def training(data: Path, out: Path, batch: int, *more: object) -> tuple[object, ...]:
    sizes = ("--steps", 30, "--mask-steps", 2, "--size", 64, "--share", 0.5, "--batch", batch)
    return ("train", data, "--out", out, *sizes, "--device", "cpu", *more)


def test_launched_processes_stop_at_ctrl_c_and_resume_to_what_one_learns(
    dataset: Path, tmp_path: Path
) -> None:
    one, two, summary = (tmp_path / name for name in ("one.safetensors", "two.safetensors", "two.json"))
    assert run(*training(dataset, one, 4)).exit_code == 0
    process = launched(*training(dataset, two, 2, "--json", summary, "--checkpoint-minutes", 0))
    kept, deadline = tmp_path / "two.training" / "anomaly.safetensors", time.monotonic() + 120
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert json.loads(summary.read_text())["interrupted"] and output.count("Artifact: ") == 1, output
    assert 1 <= load_artifact(two).training["anomaly"]["steps"] < 30  # type: ignore[index]
    refused(run(*training(dataset, two, 2, "--resume")), "was begun with processes 2, not 1")

    process = launched(*training(dataset, two, 2, "--resume"))
    output = output_of(process)
    assert process.returncode == 0 and output.count("Artifact: ") == 1, output
    assert not (tmp_path / "two.training").exists()
    expected: Any = load_artifact(one).training
    trained: Any = load_artifact(two).training
    for stage, steps in (("anomaly", 30), ("mask", 2)):
        assert trained[stage]["processes"] == 2 and trained[stage]["config"]["batch_size"] == 2
        assert len(trained[stage]["loss"]) == steps
        assert trained[stage]["loss"] == pytest.approx(expected[stage]["loss"], rel=1e-4)


def test_bad_input_that_only_the_first_process_meets_is_said_once_and_ends_both(
    dataset: Path, tmp_path: Path
) -> None:
    with Checkpoints(tmp_path / "a.training").alone():
        process = launched(*training(dataset, tmp_path / "a.safetensors", 2))
        output = output_of(process)
    assert output.count("error: ") == output.count("error: Another training is writing to") == 1, output
    *_, root_cause = re.findall(r"exitcode +: (-?\d+)", output)  # the launcher may have ended the other
    assert process.returncode and root_cause == "2", output
