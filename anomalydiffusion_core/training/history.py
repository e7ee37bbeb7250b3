"""What a training was like, step by step, and what an artifact remembers of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from torch import Tensor

from .config import FitConfig


@dataclass
class History:
    """By step: loss, norm of the gradient before it is clipped, learning rate; and (N, repeats) losses of the
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


def training_record(config: FitConfig, history: History, processes: int = 1) -> dict[str, object]:
    """What an artifact remembers of a training."""
    return {
        "config": asdict(config),
        "processes": processes,
        "steps": len(history.loss),
        "loss": [round(x, 5) for x in history.loss],
        "gradient": [round(x, 5) for x in history.gradient],
        "validation": [(step, float(losses.mean())) for step, losses in history.validation],
        **({} if (best := history.best()) is None else {"kept_step": history.validation[best][0]}),
    }
