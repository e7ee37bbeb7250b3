"""Guards report/settings.py: settings become sentences, and whatever a file says otherwise is left out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.method.embeddings import Tuning
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig
from anomalydiffusion_core.report.settings import pair_in_words, raw_settings, settings_in_words


def row(config: GenerationConfig, **more: Any) -> dict[str, Any]:
    """A row as it is read: settings have been JSON in between."""
    return json.loads(json.dumps({"base_family": "tiny", "config": asdict(config), **more}))


def test_a_run_is_told_in_sentences() -> None:
    sampling = SamplingConfig("euler", 20, guidance=3.5, aar=AARConfig("adaptive", 0.5, start=0.25))
    config = GenerationConfig(sampling, gate=GateConfig(("fill", "seam"), 0.4), seed=7, placement="free")
    text = " ".join(settings_in_words(row(config, mask_sources="invented=2,real=1 0123456789abcdef")))
    for words in (
        "of the family tiny",
        "20 steps of euler with guidance 3.5",
        "by mode adaptive (",
        "at strength 0.5, from 0.25 to 1 of the steps",
        "invented (weight 2, ",
        "real (weight 1, ",
        "anywhere on the object",
        "the mask's outline shows (seam)",
        "At least 0.4 of each mark",
        "The seed is 7",
    ):
        assert words in text
    assert "0123456789abcdef" not in text and "strength varies" not in text
    assert "The pasted defect's contrast varies by up to 0.3 of itself" in text


@pytest.mark.parametrize(("start", "who"), [("pasted", "Pairs"), ("mixed", "About half of the pairs")])
def test_what_pairs_start_from_is_told(start: Any, who: str) -> None:
    config = GenerationConfig(SamplingConfig(denoise=0.35), start=start, pasted_guidance=1.25)
    text = " ".join(settings_in_words(row(config)))
    assert f"{who} start from a real training defect, laid into the mask and noised to 0.35 of the" in text
    assert "with guidance 1.25; others from noise." in text
    assert "real training defect" not in " ".join(settings_in_words(row(replace(config, start="noise"))))


def test_what_was_tuned_is_told_type_by_type_and_what_is_no_tuning_is_left_out() -> None:
    tunings = {"a/cut": vars(Tuning("pasted", 0.45, 1.0, "off", 1.0, 7, 8)), "a/dent": 3}
    text = " ".join(settings_in_words(row(GenerationConfig()) | {"tunings": tunings}))
    assert "Pairs start from a real training defect" in text
    assert (
        "a/cut was tuned: from a real defect noised to 0.45, guidance 1, attention off, by which the gate"
        in text
    )
    assert "accepted 7 of 8 tries" in text and "a/dent" not in text


def test_what_is_off_is_told_so() -> None:
    plain = GenerationConfig(SamplingConfig(aar=AARConfig("off")), gate=GateConfig(()), vary_strength=0.2)
    text = " ".join(settings_in_words(row(replace(plain, foreground="none"))))
    assert "Attention was not re-weighted." in text and "The quality gate checked nothing." in text
    assert "strength varies by up to 0.2" in text and "anywhere in the photo" in text


def test_a_graph_is_told_node_by_node_by_what_was_set_by_hand() -> None:
    prompt = {
        "3": {"class_type": "ADiff_KSampler", "inputs": {"steps": 20, "mode": "released", "model": ["1", 0]}}
    }
    assert settings_in_words({"prompt": prompt}) == ["KSampler: steps 20, mode released."]


def test_a_pair_is_told_by_its_photo_prompt_and_masks() -> None:
    made = {"normal": "a/train/good/00003.png", "template": "a photo of a {}", "index": 0, "run": "abc"}
    words = pair_in_words({**made, "masks_from": {"a/cut": "invented"}, "strength": 0.9, "guidance": 2.5})
    text = " ".join(words)
    assert "a/train/good/00003.png" in text and "“a photo of a …”" in text and "a/cut: invented" in text
    assert "the real defect of" not in text
    pasted = " ".join(pair_in_words(made | {"pasted_from": {"a/cut": ["0123", "0123"], "a/dent": ["4567"]}}))
    assert "Denoised from the real defect of the training photo 0123, 4567 (hash)." in pasted
    assert "0.9 of its strength" in text and "try number 0 of its run (abc)" in text


@pytest.mark.parametrize("nonsense", [None, 5, "x", [], [{}], {"sampling": 3, "gate": {"checks": [[], 1]}}])
def test_nonsense_in_a_row_ends_nothing(nonsense: object) -> None:
    keys = (
        "config",
        "prompt",
        "mask_sources",
        "base_family",
        "masks_from",
        "strength",
        "index",
        "template",
        "pasted_from",
    )
    rows = [dict.fromkeys(keys, nonsense), {"prompt": {"1": nonsense, "2": {"inputs": nonsense}}}]
    for one in rows:
        for text in (*settings_in_words(one), *pair_in_words(one), *(v for _, v in raw_settings(one))):
            assert isinstance(text, str)
