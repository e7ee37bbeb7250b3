"""The recipes of docs/architecture.md in a real ComfyUI: the nodes have what is added to a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Run = Callable[..., tuple]


def inputs_of(run: Run, node_id: str) -> dict[str, Any]:
    return {entry.id: entry for entry in run.nodes[node_id].define_schema().inputs}  # type: ignore[attr-defined]


def test_a_mode_of_re_weighting_is_offered_and_samples(
    run: Run, generated: Run, masks: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.anomalydiffusion_core.method.reweighting import (  # type: ignore[import-not-found]
        MODES,
        ReweightingMode,
    )

    dummy = ReweightingMode(
        lambda moment, aar: moment.target.m_z,
        "inside the mask",
        MODES["masked"].attention,
        lambda m_z, progress, steps, widening: m_z,
    )
    monkeypatch.setitem(MODES, "dummy", dummy)
    for node_id in ("ADiff_KSampler", "ADiff_AttentionReweighting"):
        mode = inputs_of(run, node_id)["mode"]
        assert mode.options == list(MODES) and "dummy: inside the mask." in mode.tooltip
    images, marked, _, _ = generated(masks, mode="dummy")
    plain = generated(masks, mode="off")[0]
    difference = (images - plain).abs().amax(-1)
    assert float(difference[marked > 0].max()) > 0.01
    assert torch.equal(images[marked == 0], plain[marked == 0])


def test_inputs_of_mix_masks_keep_their_ids_and_order_and_show_the_sources_names(run: Run) -> None:
    inputs = inputs_of(run, "ADiff_MixMasks")
    assert list(inputs)[:8] == [
        *("generated", "real", "drawn", "procedural"),
        *("count", "width", "height", "seed"),
    ]
    shown = {name: entry.display_name for name, entry in inputs.items() if entry.display_name}
    assert shown == {
        "generated": "invented",
        "real": "real",
        "drawn": "given",
        "procedural": "procedural",
        "generated_masks": "invented_masks",
        "drawn_masks": "given_masks",
    }
    assert [inputs[name].default for name in ("generated", "real", "drawn", "procedural")] == [1, 1, 0, 0]


def test_a_mask_source_added_to_the_table_is_an_input_at_the_end_and_is_mixed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.anomalydiffusion_core.masks import sources  # type: ignore[import-not-found]

    def squares(request: Any) -> Any:
        shape = np.zeros((64, 96), bool)
        shape[10:20, 30:40] = True
        return lambda number: sources.SourcedMask(shape, "squares", placed=True)

    monkeypatch.setitem(sources.SOURCES, "squares", sources.Source(squares, "plain squares"))
    *_, (name, entry) = inputs_of(run, "ADiff_MixMasks").items()
    assert name == "squares" and entry.optional and entry.default == 0 and "plain squares" in entry.tooltip
    weights = {"generated": 0.0, "real": 0.0, "drawn": 0.0, "procedural": 0.0, "squares": 1.0}
    (masks,) = run("ADiff_MixMasks", **weights, count=2, width=96, height=64, seed=0)
    expected = torch.zeros(2, 64, 96)
    expected[:, 10:20, 30:40] = 1
    assert torch.equal(masks, expected)


def test_a_check_added_to_the_table_is_an_input_at_the_end_and_stops_pairs(
    run: Run, trained: Any, masks: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adiff_pack.anomalydiffusion_core.gate import checks  # type: ignore[import-not-found]

    before = list(inputs_of(run, "ADiff_QualityGate"))
    assert before[-7:] == ["fill", "contrast", "seam", "plausibility", "duplicate", "tone", "shape"]
    area = float(masks[1].mean())
    check = checks.Check(
        "too large",
        "pairs that mark too much",
        at_most=True,
        score=lambda reference, view, changed: float(view.mask.mean()),
        limit=lambda reference, known: area,
        fault="marks {score} of the photo, more than {limit}",
        remedy="Give smaller masks.",
    )
    monkeypatch.setitem(checks.CHECKS, "area", check)
    inputs = inputs_of(run, "ADiff_QualityGate")
    assert list(inputs) == [*before, "area"]
    assert inputs["area"].optional and inputs["area"].default is True
    assert inputs["area"].tooltip == "Leave out pairs that mark too much."
    given = {"images": 1 - trained.normals, "masks": masks, "normals": trained.normals}
    given |= {"vae": trained.base["vae"], "smallest_fill": 0.0}
    _, kept, _, scores, report, _, left = run("ADiff_QualityGate", **given)
    assert all(float(mask.mean()) <= area for mask in kept) and len(kept) + len(left) == 3
    assert all(float(mask.mean()) > area for mask in left) and len(left) > 0
    assert f"area at most {area:.2f}" in report and report.count("left out: too large") == len(left)
    assert all(score["thresholds"]["area"] == round(area, 4) for score in scores)
    assert len(run("ADiff_QualityGate", **given, area=False)[1]) == 3
