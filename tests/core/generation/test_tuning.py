"""Guards the settings that are found for a type: which are tried, which are kept, which pairs are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.dataset.photos import short_hash
from anomalydiffusion_core.generation import tuning as tuning_module
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.runs import RunWatch
from anomalydiffusion_core.generation.tuning import OTHER_DENOISES, TRIES, best_tuning, tune
from anomalydiffusion_core.masks.invention import TriesExhausted
from anomalydiffusion_core.method.embeddings import Learned, Tuning
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.sampling import SamplingConfig

STAIN, SCRATCH = "thing/stain", "thing/scratch"
NEW = Tuning("noise", 0.3, 1.0, "off", 0.5)


def judge(accepts: dict[tuple[str, float], int], **others: int) -> Any:
    """Accepts so many of eight from a start and its share; guidance or mode, as named, changes that."""

    def accepted(tuning: Tuning) -> Tuning:
        count = accepts[tuning.start, tuning.denoise]
        usual = 1.0 if tuning.start == "pasted" else 2.5
        count += others.get("guidance", 0) if tuning.guidance != usual else others.get(tuning.aar_mode, 0)
        return replace(tuning, accepted=count, tries=8)

    return accepted


DENOISES = 0.3, *OTHER_DENOISES
PASTED = {("pasted", share): 5 for share in DENOISES}


@pytest.mark.parametrize(
    ("accepts", "start", "denoise"),
    [
        ({("pasted", share): 8 for share in DENOISES} | {("noise", 0.3): 8}, "pasted", 0.3),
        (PASTED | {("noise", 0.3): 6, ("pasted", 0.2): 6, ("pasted", 0.6): 6}, "pasted", 0.3),
        (PASTED | {("noise", 0.3): 0, ("pasted", 0.6): 7}, "pasted", 0.6),
        (PASTED | {("noise", 0.3): 8, ("pasted", 0.2): 7}, "noise", 0.3),
        (PASTED | {("noise", 0.3): 7, ("pasted", 0.2): 7}, "pasted", 0.2),
        ({("pasted", share): 0 for share in DENOISES} | {("noise", 0.3): 2}, "noise", 0.3),
    ],
)
def test_a_defect_starts_as_usual_unless_another_start_is_accepted_clearly_more_often(
    accepts: dict[tuple[str, float], int], start: str, denoise: float
) -> None:
    best = best_tuning(judge(accepts))
    assert best and (best.start, best.denoise, best.aar_mode) == (start, denoise, "released")
    assert best.guidance == (1.0 if start == "pasted" else 2.5)
    assert (best.accepted, best.tries) == (accepts[start, denoise], 8)


def test_where_hardly_a_try_is_accepted_nothing_is_kept() -> None:
    assert best_tuning(judge({("pasted", share): 1 for share in DENOISES} | {("noise", 0.3): 0})) is None


@pytest.mark.parametrize(
    ("others", "guidance", "mode"),
    [
        ({"guidance": 1, "off": 1, "adaptive": 1}, 1.0, "released"),
        ({"guidance": 2, "off": 0}, 2.0, "released"),
        ({"guidance": 0, "off": 2, "adaptive": 3}, 1.0, "off"),
        ({"guidance": 0, "off": -1, "adaptive": 2}, 1.0, "adaptive"),
    ],
)
def test_guidance_and_attention_stay_as_usual_unless_others_are_accepted_more_often(
    others: dict[str, int], guidance: float, mode: str
) -> None:
    best = best_tuning(judge(PASTED | {("noise", 0.3): 0}, **others))
    assert best and (best.guidance, best.aar_mode) == (guidance, mode)


@pytest.fixture
def few_shot(dataset: Path, learned: Learned) -> Dataset:
    """All three stains trained, and two of four scratches."""
    found = find_dataset(dataset)
    for name, count in ((STAIN, 3), (SCRATCH, 2)):
        pairs = found.by_type()[name][:count]
        learned.trained_on[name] = [short_hash(pair.image) for pair in pairs]
    return found


def test_settings_are_tried_on_the_training_pairs_of_types_that_have_three(
    fake_base: LatentDiffusion, learned: Learned, few_shot: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, stages = list[GenerationConfig](), list[tuple[str, int, int]]()

    def accepted(generator: PairGenerator, name: str, masks: Any, count: int, on_step: Any) -> Iterator[int]:
        config = generator.drafter.config_of(name)
        tried.append(config)
        assert name == STAIN and set(masks) == {STAIN} and count == TRIES
        assert len(generator.drafter.real_masks(STAIN)) == 3 and generator.config.tries_per_pair == 1
        for number in range(count):
            if number == (7 if config.sampling.denoise == 0.45 else 3):
                raise TriesExhausted("all tries are spent")
            yield number

    monkeypatch.setattr(PairGenerator, "accepted", accepted)
    tune(fake_base, learned, few_shot, [SCRATCH, STAIN], RunWatch(lambda *stage: stages.append(stage[:3])))
    assert learned.tunings == {STAIN: Tuning("pasted", 0.45, 1.0, "released", 1.0, 7, TRIES)}
    assert [config.sampling.denoise for config in tried[:5]] == [*DENOISES, 0.3]
    assert [config.start for config in tried] == ["pasted"] * 4 + ["noise"] + ["pasted"] * 3
    assert (tried[4].sampling.guidance, tried[5].pasted_guidance) == (2.5, 2.0)
    assert [x.sampling.aar.mode for x in tried[6:]] == ["off", "adaptive"]
    assert stages[-1] == (f"{STAIN} settings", 8, 8)


def test_no_setting_is_lost_where_the_work_is_cut_off(
    fake_base: LatentDiffusion, learned: Learned, few_shot: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned.trained_on[SCRATCH] = [short_hash(pair.image) for pair in few_shot.by_type()[SCRATCH]]

    def on_stage(stage: str, done: int, total: int, note: str) -> None:
        if stage.startswith(STAIN):
            raise KeyboardInterrupt

    def best(judged: Any) -> Tuning:
        return judged(NEW)

    monkeypatch.setattr(tuning_module, "best_tuning", best)
    with pytest.raises(KeyboardInterrupt):
        tune(fake_base, learned, few_shot, [SCRATCH, STAIN], RunWatch(on_stage), tries=1)
    assert list(learned.tunings) == [SCRATCH] and learned.tunings[SCRATCH].tries == 1


def test_a_tuned_type_is_made_by_its_settings_and_others_as_usual() -> None:
    config, tunings = GenerationConfig(SamplingConfig(denoise=0.4, guidance=3.0)), {STAIN: NEW}
    tuned, usual = config.of_type(STAIN, tunings), config.of_type(SCRATCH, tunings)
    assert (tuned.start, tuned.sampling.guidance, tuned.sampling.denoise) == ("noise", 1.0, 0.3)
    assert (tuned.sampling.aar.mode, tuned.sampling.aar.strength) == ("off", 0.5)
    assert usual == replace(config, start="pasted")
    pasted = config.of_type(STAIN, {STAIN: replace(NEW, start="pasted")})
    assert (pasted.start, pasted.pasted_guidance) == ("pasted", 1.0)
    assert pasted.sampling.guidance == 3.0, "of noise, where the real pairs are missing"
    by_hand = replace(config, start="mixed").of_type(STAIN, tunings)
    assert (by_hand.start, by_hand.sampling) == ("mixed", config.sampling)
    named = replace(config, denoises=((STAIN, 0.7),), aar_strengths=((STAIN, 2.0),)).of_type(STAIN, tunings)
    assert (named.sampling.denoise, named.sampling.aar.strength, named.sampling.aar.mode) == (0.7, 2.0, "off")
