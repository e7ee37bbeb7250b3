"""The gate: limits learned from real pairs and from nothing at all, and what they let through."""

from __future__ import annotations

import numpy as np
import pytest
from small_gates import POOLING, gate_of, marked, spots, stain, surface

from anomalydiffusion_core.gate.checks import CHECKS, ENOUGH, Scores
from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.prediction import next_within
from anomalydiffusion_core.gate.reference import Known
from anomalydiffusion_core.gate.region_view import ChangedRegion, RegionView
from anomalydiffusion_core.gate.scores import (
    VISIBLE,
    contrast,
    look_distance,
    look_of,
    seam,
    surroundings,
    tone,
)


def changed(view: RegionView, before: np.ndarray) -> ChangedRegion:
    return ChangedRegion(view, before, view.pixels, view.mask, 5.0)


def test_limits_lie_between_what_real_defects_score_and_what_nothing_does() -> None:
    gate, real, nothing = gate_of(5), [stain(i) for i in range(5)], spots()
    contrasts = [[contrast(c.pixels, c.mask) for c in part] for part in (real, nothing)]
    assert gate.limits["contrast"] == pytest.approx(
        (np.quantile(contrasts[0], 0.1) + np.median(contrasts[1])) / 2
    )
    seams = [[seam(c.pixels, c.mask) for c in part] for part in (real, nothing)]
    spread = np.quantile(seams[1], 0.9) - np.median(seams[1])
    largest = max(np.quantile(seams[0], 0.9) + spread, next_within(seams[0]))
    assert gate.limits["seam"] == gate.usual_seam == pytest.approx(largest)


def test_the_farthest_plausible_defect_is_measured_from_pair_to_pair() -> None:
    gate = gate_of(5)
    real = [POOLING.features(c.pixels, c.mask) for c in (stain(i) for i in range(5))]
    nothing = [POOLING.features(c.pixels, c.mask) for c in spots()]
    every = np.array(real + nothing)
    deviation = every.std(0) + 1e-3 * np.abs(every).mean()

    def nearest(one: np.ndarray, others: list[np.ndarray]) -> float:
        return min(float(np.sqrt(np.mean(((one - other) / deviation) ** 2))) for other in others)

    own = [nearest(f, real[:i] + real[i + 1 :]) for i, f in enumerate(real)]
    worst, typical = np.quantile(own, 0.9), np.median([nearest(f, real) for f in nothing])
    assert typical > worst and (worst + typical) / 2 > next_within(own)
    assert gate.limits["plausibility"] == pytest.approx((worst + typical) / 2)
    assert gate.score_seen(spots(1)[0])["plausibility"] == pytest.approx(nearest(nothing[0], real))


def test_real_pairs_to_come_may_lie_farther_apart_than_the_few() -> None:
    gate = gate_of(5)
    distances, spots = [4.0, 5, 6, 9, 5], [1.0] * 5
    gate.distances = lambda features, without=None: np.array(  # type: ignore[method-assign]
        [spots[0] if without is None else distances[without]]
    )
    assert CHECKS["plausibility"].limit(gate, Known([], [])) == pytest.approx(next_within(distances))


def test_pairs_may_be_as_alike_as_two_real_ones_to_come_of_few_not_more_than_is_seen() -> None:
    looks = [look_of(c.pixels, c.mask) for c in map(stain, range(5))]
    nearest = [min(look_distance(a, b) for b in looks if b is not a) for a in looks]
    rarest = np.exp(-next_within(-np.log(nearest)))
    assert 0.2 * min(nearest) < rarest < min(nearest)
    assert gate_of(5).limits["duplicate"] == pytest.approx(rarest / 2)
    assert min(nearest[:2]) / 2 > VISIBLE and gate_of(2).limits["duplicate"] == VISIBLE


def test_a_real_pair_that_is_there_twice_counts_once() -> None:
    once = [[stain(number)] for number in range(4)]
    limits = [Gate(real, spots(), POOLING, GateConfig()).limits for real in (once, [*once, [stain(2)]])]
    assert limits[0] == limits[1] and limits[0]["duplicate"] > 0
    alone, twice = (Gate([[stain(0)]] * n, spots(), POOLING, GateConfig()).limits for n in (1, 2))
    assert alone == twice


def test_few_real_pairs_do_not_say_how_much_they_differ() -> None:
    few, enough = gate_of(ENOUGH - 1), gate_of(ENOUGH)
    assert "seam" not in few.limits and "plausibility" not in few.limits and few.usual_seam is not None
    assert "seam" in enough.limits and "plausibility" in enough.limits
    alone = gate_of(1)
    assert "duplicate" not in alone.limits and "contrast" in alone.limits


def test_without_real_pairs_only_fill_is_asked_for() -> None:
    gate = gate_of(0, GateConfig(smallest_fill=0.4))
    assert gate.limits == Scores({"fill": 0.4}) and gate.usual_seam is None
    scores = gate.score(changed(stain(3), surface(3)))
    assert scores["fill"] == 1 and "plausibility" not in scores and "duplicate" not in scores


def test_contrast_is_not_asked_where_real_pairs_have_none() -> None:
    gate = Gate([[c] for c in spots(4)], spots(), POOLING, GateConfig())
    assert "contrast" not in gate.limits or gate.limits["contrast"] < 0.3
    flat = [RegionView(np.full((64, 64, 3), 120.0), marked(i)) for i in range(4)]
    assert "contrast" not in Gate([[c] for c in flat], flat, POOLING, GateConfig()).limits


def test_real_pairs_may_ask_for_more_fill_not_for_less() -> None:
    asked = gate_of(5, GateConfig(smallest_fill=0.01)).limits["fill"]
    assert asked == pytest.approx((0.05 + 1) / 2, abs=0.01)  # these stains show all over
    assert gate_of(5, GateConfig(smallest_fill=0.9)).limits["fill"] == 0.9


@pytest.mark.parametrize(
    ("check", "word", "worse"),
    [
        ("fill", "unfilled", -0.1),
        ("contrast", "faint", -0.1),
        ("seam", "seam", 0.1),
        ("plausibility", "implausible", 0.1),
        ("duplicate", "duplicate", -0.1),
        ("tone", "wrong tone", 0.1),
        ("shape", "misshapen", 0.1),
    ],
)
def test_a_score_at_its_limit_passes_and_one_beyond_it_is_named(check: str, word: str, worse: float) -> None:
    gate = gate_of(5)
    limit = gate.limits[check]
    assert gate.problems(Scores({check: limit})) == []
    assert gate.problems(Scores({check: limit - worse})) == []
    assert gate.problems(Scores({check: limit + worse})) == [word]
    others = tuple(name for name in CHECKS if name != check)
    gate.config = GateConfig(others)
    assert gate.problems(Scores({check: limit + worse})) == []


def test_the_worst_region_counts_and_of_two_limits_the_stricter() -> None:
    a = Scores({"fill": 0.5, "contrast": 0.9, "seam": 2.0, "plausibility": None, "duplicate": 10.0})
    b = Scores({"fill": 0.7, "contrast": 0.1, "seam": 3.0, "plausibility": 1.5})
    others = {"plausibility": 1.5, "duplicate": 10.0}
    assert Scores.worst([a, b]) == {"fill": 0.5, "contrast": 0.1, "seam": 3.0, **others}
    assert Scores.strictest([a, b]) == {"fill": 0.7, "contrast": 0.9, "seam": 2.0, **others}
    assert Scores({"fill": 0.123456, "seam": 2.0}).rounded() == {"fill": 0.1235, "seam": 2.0}


def test_copies_of_training_defects_and_of_earlier_pairs_are_duplicates() -> None:
    gate = gate_of(4)
    copy = RegionView(stain(2).pixels[:, ::-1], stain(2).mask[:, ::-1])
    assert gate.score_seen(copy)["duplicate"] == 0
    new = stain(9)
    first = gate.score_seen(new)["duplicate"]
    assert first > 0
    gate.remember(new)
    assert gate.score_seen(RegionView(np.rot90(new.pixels), np.rot90(new.mask)))["duplicate"] == 0


def of_tones(*differences: float, ground: list[float] | None = None) -> Gate:
    """A gate whose real defects differ from a plain ground by so many grey levels."""
    real = [[RegionView(patched(difference), marked(0))] for difference in differences]
    nothing = [RegionView(patched(level), marked(0)) for level in ground or [0.0, 0.0]]
    return Gate(real, nothing, POOLING, GateConfig(("tone",)))


def patched(difference: float) -> np.ndarray:
    pixels = np.full((64, 64, 3), 120.0, np.float32)
    pixels[marked(0)] += difference
    return pixels


def wrong(gate: Gate, difference: float) -> bool:
    return gate.problems(gate.score_seen(RegionView(patched(difference), marked(0)))) == ["wrong tone"]


def test_a_defect_is_as_much_darker_or_brighter_than_its_ground_as_real_ones() -> None:
    gate = of_tones(-54, -60, -64)
    few = 2.920 * 5.033 * np.sqrt(4 / 3)  # around the mean, -59.33, by the prediction limit
    assert gate.limits["tone"] == pytest.approx(few - (64 - 59.333), abs=0.01)
    assert [wrong(gate, tone) for tone in (-77, -76, -60, -54, -42, -41)] == [True, *[False] * 4, True]
    assert wrong(gate, 60)


def test_what_is_darker_in_all_real_pairs_is_never_accepted_brighter() -> None:
    gate = of_tones(-4, -60, -90)
    assert gate.limits["tone"] == pytest.approx(4)  # half of the range, 43, would reach far above zero
    assert not wrong(gate, -1) and wrong(gate, 1)
    # where grounds themselves vary, so may the sign
    assert of_tones(-4, -60, -90, ground=[-6.0, 6.0]).limits["tone"] == pytest.approx(4 + 6)
    either = of_tones(-40, 20, 30)
    assert either.limits["tone"] == pytest.approx(next_within([-40.0, 20, 30]) - 30)
    assert not wrong(either, 130) and wrong(either, 133)
    assert of_tones(-54, -60, -64, ground=[-9.0, 9.0]).limits["tone"] == pytest.approx(5 + 9)  # half, and 9


def test_tone_is_read_against_what_lies_around() -> None:
    pixels, mask = patched(30), marked(0)
    assert tone(pixels, mask) == pytest.approx(30)
    pixels[..., 0] -= 60  # another ground, everywhere
    assert tone(pixels, mask) == pytest.approx(30)
    pixels[~mask & ~surroundings(mask)] = 0
    assert tone(pixels, mask) == pytest.approx(30) and tone(pixels, np.ones_like(mask)) == 0


def test_the_least_filled_part_counts() -> None:
    gate, before = gate_of(4), surface(7)
    mask, after = np.zeros((64, 64), bool), surface(7)
    mask[10:20, 10:20] = mask[40:42, 40:45] = True
    after[10:20, 10:20] = 20
    after[40, 40:45] = 20
    assert gate.score(ChangedRegion(RegionView(after, mask), before, after, mask, 5.0))["fill"] == 0.5


def test_checks_are_named_and_others_refused() -> None:
    assert GateConfig(("seam", "fill")).checks == ("seam", "fill") and GateConfig().checks == tuple(CHECKS)
    with pytest.raises(ValueError, match="no check 'looks': choose from fill, contrast, seam, plausibility"):
        GateConfig(("fill", "looks"))
