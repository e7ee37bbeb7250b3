"""What the gate says to people: why a pair was stopped, what to change then, and what it asks and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .checks import CHECKS, failed
from .gate import Gate

MOST_DIGITS = 4


@dataclass(frozen=True)
class Reason:
    """Why a pair was stopped: the check that it failed, what it scored, and what was asked."""

    check: str
    score: float
    limit: float

    @property
    def problem(self) -> str:
        """In a word, to count by."""
        return CHECKS[self.check].problem

    @property
    def sentence(self) -> str:
        """Such as 'too faint: contrast 0.41, real ones reach 0.60'."""
        score, limit = _told_apart(self.score, self.limit)
        return CHECKS[self.check].fault.format(score=score, limit=limit)

    @property
    def remedy(self) -> str:
        """What to change, a whole sentence."""
        return CHECKS[self.check].remedy

    @property
    def explained(self) -> str:
        """What is wrong and what to change, in two whole sentences."""
        return f"{self.sentence[0].upper()}{self.sentence[1:]}. {self.remedy}"


def reasons(
    scores: Mapping[str, float], limits: Mapping[str, float], checks: Iterable[str] | None = None
) -> list[Reason]:
    """Why a pair of these scores is stopped, by the checks given or all; nothing where it passes. Scores and
    limits may be those of a manifest row.
    """
    names = failed(scores, limits, CHECKS if checks is None else checks)
    return [Reason(name, scores[name], limits[name]) for name in names]


def measured(
    scores: Mapping[str, float], limits: Mapping[str, float], checks: Iterable[str] | None = None
) -> list[str]:
    """Each score with what the checks given, or all, ask of it: 'contrast 0.41 (at least 0.60)'."""
    names = CHECKS if checks is None else checks
    asked = {name: CHECKS[name].asked(limits[name]) for name in names if name in limits}
    return [f"{name} {score:.2f} ({asked.get(name, 'not asked')})" for name, score in scores.items()]


def counted(pairs: Sequence[Sequence[Reason]]) -> str:
    """How often what was wrong, the most frequent first: '3 faint, 1 seam'."""
    problems = Counter(reason.problem for reasons in pairs for reason in reasons)
    return ", ".join(f"{count} {problem}" for problem, count in problems.most_common())


def advice(pairs: Sequence[Sequence[Reason]]) -> list[str]:
    """What to change, for each check that stopped some of these pairs, the most frequent first: how many it
    stopped, how near the nearest came, and the remedy.
    """
    stopped = [reason for reasons in pairs for reason in reasons]
    lines = []
    for check, count in Counter(reason.check for reason in stopped).most_common():
        nearest = min(
            (reason for reason in stopped if reason.check == check), key=lambda r: abs(r.score - r.limit)
        )
        who = f"{count} {nearest.problem}" + (", the nearest to passing" if count > 1 else "")
        lines.append(f"{who}: {nearest.sentence}. {nearest.remedy}")
    return lines


def grounds(gate: Gate) -> list[str]:
    """What the gate asks, and which of its checks it leaves out and why: a sentence a line."""
    return [f"Asked for: {', '.join(_asked(gate)) or 'nothing'}.", *unasked(gate)]


def unasked(gate: Gate) -> list[str]:
    """Which of its checks a gate leaves out and why: a sentence a line, none where it asks all."""
    known = len(gate.real_features)
    left_out = [name for name in gate.config.checks if name not in gate.limits]
    few = [name for name in left_out if CHECKS[name].needs > known]
    # enough real pairs, yet no limit
    other = [name for name in left_out if name not in few]
    lines = []
    if few:
        needs = ", ".join(f"{name} ({CHECKS[name].needs})" for name in few)
        lines.append(f"Not checked, for want of real pairs (known: {known}; needed: {needs}).")
    if other:
        why = (
            "real defects score no better than none"
            if gate.spot_features
            else "no normal photo is known that a real mask fits into"
        )
        lines.append(f"Not checked, since {why}: {', '.join(other)}.")
    return lines


def _asked(gate: Gate) -> list[str]:
    return [f"{x} {CHECKS[x].asked(gate.limits[x])}" for x in gate.config.checks if x in gate.limits]


def _told_apart(score: float, limit: float) -> tuple[str, str]:
    """Both in as few digits, from two on, as tell them apart."""
    digits = next((n for n in range(2, MOST_DIGITS) if f"{score:.{n}f}" != f"{limit:.{n}f}"), MOST_DIGITS)
    return f"{score:.{digits}f}", f"{limit:.{digits}f}"
