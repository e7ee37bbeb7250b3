"""How much of one contender's error another leaves: (1 - pixel AP) over (1 - pixel AP), paired.

Where the first finds nearly everything there is no room for a gain in points, but for one in what is left.
Both were trained on the same seeds and measured on the same photos, so that seeds and photos are drawn
together for the interval: what is hard for both counts for neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .results import ContenderResult

DRAWS = 2000
MEASURED = "pixel_ap"
NONE_LEFT = 1e-6  # error of who finds everything


@dataclass(frozen=True)
class ErrorLeft:
    """The ratio, a geometric mean over seeds, and its 95 % interval over seeds and photos; None where results
    of before kept no draws of photos.
    """

    ratio: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Such as '0.72 (0.42 to 1.24)'."""
        return f"{self.ratio:.2f}" + ("" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})")


def error_left(
    results: list[ContenderResult], contender: str, than: str, categories: list[str]
) -> ErrorLeft | None:
    """What `contender` leaves of the error of `than`, the mean over categories; None where they have no seed
    in common in one of them.
    """
    whole, drawn = list[float](), list[np.ndarray]()
    random = np.random.default_rng(0)
    for category in categories:
        mine, theirs = (_by_seed(results, name, category) for name in (contender, than))
        seeds = sorted(set(mine) & set(theirs))
        if not seeds:
            return None
        pairs = [(mine[seed], theirs[seed]) for seed in seeds]
        whole.append(float(np.mean([_log_error(a) - _log_error(b) for a, b in pairs])))
        if all(result.draws for pair in pairs for result in pair):
            logs = np.array([_log_errors(a.draws) - _log_errors(b.draws) for a, b in pairs])
            of_seeds = random.integers(len(seeds), size=(DRAWS, len(seeds)))
            of_photos = random.integers(logs.shape[1], size=(DRAWS, 1))
            drawn.append(logs[of_seeds, of_photos].mean(1))
    ratio = float(np.exp(np.mean(whole)))
    if len(drawn) < len(categories):
        return ErrorLeft(ratio)
    low, high = np.exp(np.quantile(np.mean(drawn, 0), [0.025, 0.975]))
    return ErrorLeft(ratio, float(low), float(high))


def _by_seed(results: list[ContenderResult], name: str, category: str) -> dict[int, ContenderResult]:
    chosen = {r.seed: r for r in results if (r.contender, r.category) == (name, category)}
    return {seed: result for seed, result in chosen.items() if MEASURED in result.metrics["all"]}


def _log_error(result: ContenderResult) -> float:
    return float(_log_errors([result.metrics["all"][MEASURED]])[0])


def _log_errors(precisions: list[float]) -> np.ndarray:
    return np.log(np.maximum(1 - np.asarray(precisions), NONE_LEFT))
