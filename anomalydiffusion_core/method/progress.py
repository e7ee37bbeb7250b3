"""What long work tells while it runs: the callbacks that progress bars, plain lines and nodes give it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

OnStage = Callable[[str, int, int, str], None]  # stage, done, total, a note beside it
OnStep = Callable[[int, int, Tensor], None]  # step, total, estimate of the clean latent (B,C,h,w)
