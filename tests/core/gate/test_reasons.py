"""gate/reasons.py: why a pair was stopped, what to change, and on which grounds the gate asks."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from small_gates import POOLING, gate_of, spots, stain

from anomalydiffusion_core.gate.checks import CHECKS, Scores
from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.reasons import Reason, advice, counted, grounds, measured, reasons

HELP = Path(__file__).parents[3] / "nodes" / "web" / "docs" / "ADiff_QualityGate.md"


def test_a_stopped_pair_is_told_what_it_scored_what_real_ones_reach_and_what_to_change() -> None:
    scores = {"fill": 0.93, "contrast": 0.41, "seam": 1.8, "duplicate": 20.0}
    limits = {"fill": 0.3, "contrast": 0.6, "seam": 1.5, "plausibility": 1.0}
    faint, seam = reasons(scores, limits)
    assert faint == Reason("contrast", 0.41, 0.6) and faint.problem == "faint"
    assert faint.sentence == "too faint: contrast 0.41, real ones reach 0.60"
    assert faint.explained == f"Too faint: contrast 0.41, real ones reach 0.60. {faint.remedy}"
    assert seam.problem == "seam" and "1.80 times" in seam.sentence and "within 1.50" in seam.sentence
    assert seam.remedy != faint.remedy
    assert [reason.check for reason in reasons(scores, limits, ["seam"])] == ["seam"]
    assert reasons({**scores, "contrast": 0.6, "seam": 1.5}, limits) == []


def test_a_score_just_beyond_its_limit_is_not_shown_as_equal_to_it() -> None:
    assert Reason("contrast", 0.5981, 0.6012).sentence.endswith("contrast 0.598, real ones reach 0.601")


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_says_score_and_limit_and_ends_its_remedy_as_a_sentence(name: str) -> None:
    fields = [field for _, field, _, _ in string.Formatter().parse(CHECKS[name].fault) if field]
    assert sorted(fields) == ["limit", "score"]
    assert CHECKS[name].remedy[0].isupper() and CHECKS[name].remedy.endswith(".")
    assert f"| {CHECKS[name].problem} | {CHECKS[name].remedy} |" in HELP.read_text()


def test_reasons_are_the_gate_s_own_problems() -> None:
    gate = gate_of(5)
    for view in (stain(2), spots(1)[0], stain(9)):
        scores = gate.score_seen(view)
        told = reasons(scores, gate.limits, gate.config.checks)
        assert [reason.problem for reason in told] == gate.problems(scores)


def test_every_score_is_shown_with_its_direction_and_limit() -> None:
    scores = Scores({"fill": 0.93, "seam": 1.2, "duplicate": 12.0})
    limits = Scores({"fill": 0.3, "seam": 1.5, "contrast": 0.2})
    shown = measured(scores, limits, CHECKS)
    assert shown == ["fill 0.93 (at least 0.30)", "seam 1.20 (at most 1.50)", "duplicate 12.00 (not asked)"]
    assert measured(scores, limits, ["fill"])[1] == "seam 1.20 (not asked)"


def test_what_stopped_most_pairs_comes_first_with_how_near_the_nearest_came() -> None:
    faint = [Reason("contrast", value, 0.6) for value in (0.1, 0.5, 0.3)]
    seam = Reason("seam", 2.0, 1.5)
    pairs = [[faint[0], seam], [faint[1]], [], [faint[2]]]
    assert counted(pairs) == "3 faint, 1 seam" and counted([[], []]) == "" and advice([[]]) == []
    first, second = advice(pairs)
    assert first == f"3 faint, the nearest to passing: {faint[1].sentence}. {faint[1].remedy}"
    assert second == f"1 seam: {seam.sentence}. {seam.remedy}"


def test_with_few_real_pairs_the_gate_says_which_checks_it_leaves_out_and_what_it_asks_instead() -> None:
    alone = gate_of(1)
    asked, left_out = grounds(alone)
    assert asked == (
        f"Asked for: fill at least {alone.limits['fill']:.2f}, contrast at least "
        f"{alone.limits['contrast']:.2f}."
    )
    assert left_out == (
        "Not checked, for want of real pairs (known: 1; needed: seam (3), plausibility (3), "
        "duplicate (2), tone (3), shape (3))."
    )
    assert len(grounds(gate_of(5))) == 1 and "plausibility at most" in grounds(gate_of(5))[0]
    _, none = grounds(gate_of(0))
    needed = "contrast (1), seam (3), plausibility (3), duplicate (2), tone (3), shape (3)"
    assert f"(known: 0; needed: {needed})" in none


def test_checks_that_were_switched_off_are_not_missed() -> None:
    gate = Gate([[stain(0)]], spots(), POOLING, GateConfig(("fill",)))
    assert grounds(gate) == [f"Asked for: fill at least {gate.limits['fill']:.2f}."]
    assert grounds(Gate([[stain(0)]], spots(), POOLING, GateConfig(()))) == ["Asked for: nothing."]


def test_a_check_in_which_real_defects_are_no_better_than_none_is_named() -> None:
    alike = Gate([[view] for view in spots(4)], spots(4), POOLING, GateConfig(("contrast", "fill")))
    assert "contrast" not in alike.limits
    assert grounds(alike)[1] == "Not checked, since real defects score no better than none: contrast."
    one = Gate([[spots(1)[0]]], spots(1), POOLING, GateConfig(("contrast",)))  # as many as it needs
    assert grounds(one)[1] == "Not checked, since real defects score no better than none: contrast."
    unlit = Gate([[stain(i)] for i in range(4)], [], POOLING, GateConfig(("contrast", "fill")))
    assert (
        grounds(unlit)[1]
        == "Not checked, since no normal photo is known that a real mask fits into: contrast."
    )
