"""Guards cli/console.py: what plain lines tell of stages, also of one that starts anew."""

from __future__ import annotations

import pytest
import torch

from anomalydiffusion_core.cli.console import progress, steps_shown


def stages(printed: str) -> list[str]:
    return [line.partition("] ")[2].partition("  ")[0] for line in printed.splitlines()]


def test_a_stage_that_goes_on_prints_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as on_stage:
        for done in range(1, 65):
            on_stage("training", done, 64, "")
    assert stages(capsys.readouterr().out) == [
        f"training: {done}/64"
        for done in (1, 8, 15, 22, 29, 36, 43, 50, 57, 64)  # seven are the least over 6.4
    ]


def test_denoising_starts_anew_with_every_batch_and_prints_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as on_stage:
        on_step = steps_shown(on_stage)
        for batch in range(3):
            for step in range(1, 21):
                on_step(step, 20, torch.zeros(1))
            on_stage("thing/dent", batch + 1, 3, "")
    printed = stages(capsys.readouterr().out)
    assert printed == ["denoising: 20/20", "thing/dent: 1/3", "thing/dent: 2/3", "thing/dent: 3/3"]


def test_a_stage_that_was_complete_and_starts_anew_prints_nothing_again_but_more_than_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as on_stage:
        for done, total in ((1, 2), (2, 2), (1, 2), (2, 2), (3, 3)):
            on_stage("masks", done, total, "")
    assert stages(capsys.readouterr().out) == ["masks: 1/2", "masks: 2/2", "masks: 3/3"]
